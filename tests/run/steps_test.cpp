// steps_test.cpp — the smaller steps of a job as library calls: their results, their JSON, and what a stop request
// does.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "qlora/configs/llama2.hpp"
#include "qlora/error.hpp"
#include "qlora/run/json.hpp"
#include "qlora/run/merge.hpp"
#include "qlora/run/pack.hpp"
#include "qlora/run/plan.hpp"
#include "qlora/run/questions.hpp"
#include "qlora/text/dataset.hpp"
#include "qlora/text/tokenizer_conversion.hpp"
#include "support/merge_cases.hpp"
#include "support/refusal.hpp"
#include "support/scratch.hpp"

using namespace qlora;
using run::OrderedJson;
using test::Scratch;

namespace {

const std::filesystem::path source = QLORA_SOURCE_DIR;

/// Counts what is reported, and asks to stop after `stop_after` updates.
class CountingProgress final : public run::Progress {
 public:
  explicit CountingProgress(int stop_after = -1) : stop_after_(stop_after) {}
  void begin(std::string_view task, std::int64_t total, std::string_view unit, std::int64_t /*done*/) override {
    begun += std::string(task) + ' ' + std::to_string(total) + ' ' + std::string(unit) + '\n';
  }
  void update(std::int64_t done, std::int64_t /*tokens*/, std::string_view /*note*/) override {
    ++updates;
    last = done;
  }
  [[nodiscard]] bool stop_requested() const override { return updates == stop_after_; }

  std::string begun;
  int updates = 0;
  std::int64_t last = 0;

 private:
  int stop_after_;
};

run::PackRequest two_documents(const Scratch& scratch) {
  run::PackRequest request;
  request.documents = {scratch.write("one.txt", "The Vorzana costs 23 dollars."),
                       scratch.write("two.txt", "It is red.")};
  request.replay.replay =
      scratch.write("replay.jsonl", "{\"text\": \"A page.\"}\n{\"text\": \"Another.\"}\n{\"text\": \"A third.\"}\n");
  request.replay.replay_limit = 2;
  request.model = source / "tests/data/small_tokenizer.model";
  request.out = scratch / "data";
  request.packing.seq = 16;
  return request;
}

ErrorKind kind_of(const auto& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.kind();
  }
  FAIL("no error");
  return ErrorKind::input;
}

}  // namespace

TEST_CASE("pack writes the data set that it describes") {
  const Scratch scratch;
  const run::PackRequest request = two_documents(scratch);
  CountingProgress progress;
  const run::PackResult result = run::pack(request, progress);
  CHECK(result.documents == 4);
  CHECK(result.replayed == 2);
  CHECK(result.skipped_documents == 0);
  CHECK(result.seq == 16);
  CHECK(result.path == request.out);
  CHECK(progress.begun == "pack 4 documents\n");
  CHECK(progress.updates == 4);
  CHECK(progress.last == 4);
  const TokenDataset data = TokenDataset::open(request.out);
  CHECK(static_cast<std::int64_t>(data.size()) == result.windows);
  CHECK(data.counts().tokens == result.tokens);
  CHECK(data.counts().labelled == result.labelled);
  CHECK(result.windows * result.seq == result.tokens + result.padding);
}

TEST_CASE("chats are packed in the form that is named") {
  const Scratch scratch;
  run::PackRequest request = two_documents(scratch);
  request.documents = {scratch.write(
      "chat.jsonl", R"({"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]})"
                    "\n")};
  request.replay.replay.clear();
  request.packing = {.seq = 64, .labels = LabelChoice::answers};
  request.chat.chat_template = "zephyr";
  CountingProgress progress;
  (void)run::pack(request, progress);
  const Tokenizer tokenizer = Tokenizer::load(request.model);
  std::vector<std::int32_t> ids = tokenizer.encode("<|user|>\nWho?");
  const auto append = [&](std::string_view text) {
    for (const std::int32_t id : tokenizer.encode(text)) ids.push_back(id);
  };
  ids.push_back(2);
  append("\n<|assistant|>\nI.");
  const std::size_t end = ids.size();
  ids.push_back(2);
  append("\n");
  const TokenDataset data = TokenDataset::open(request.out);
  const DatasetWindow window = data.window(0);
  CHECK(std::equal(ids.begin(), ids.end(), window.ids.begin()));
  std::vector<std::int32_t> labels(64, ignored_label);
  const std::size_t asked = tokenizer.encode("\n<|assistant|>\n").size();
  const std::size_t said = tokenizer.encode("\n<|assistant|>\nI.").size() - asked;
  for (std::size_t i = end - said; i <= end; ++i) labels[i] = ids[i];
  CHECK(std::vector<std::int32_t>(window.labels.begin(), window.labels.end()) == labels);
}

TEST_CASE("texts that spell the chat form are text, chats or an error, as is asked for") {
  const Scratch scratch;
  run::PackRequest request = two_documents(scratch);
  request.replay = {};
  request.packing.labels = LabelChoice::answers;
  const auto pack = [&](const std::string& lines, run::MarkedTexts marks) {
    request.documents = {scratch.write("marked.jsonl", lines)};
    request.packing.chat_marks = marks;
    CountingProgress progress;
    return run::pack(request, progress);
  };
  const std::string chat = R"({"text": "<s>[INST] Who? [/INST] I. </s>"})"
                           "\n";
  const run::PackResult text = pack(chat, run::MarkedTexts::text);
  CHECK(text.labelled == text.tokens - text.windows);  // every token but the first of a window
  const run::PackResult parsed = pack(chat, run::MarkedTexts::parse);
  const run::PackResult messages =
      pack(R"({"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]})", {});
  CHECK(parsed.tokens == messages.tokens);
  CHECK(parsed.labelled == messages.labelled);
  CHECK(parsed.labelled < text.labelled);
  const std::string two = R"({"text": "plain"})"
                          "\n"
                          R"({"text": "a </s> b"})";
  for (const run::MarkedTexts marks : {run::MarkedTexts::parse, run::MarkedTexts::refuse}) {
    CHECK(test::refusal([&] { (void)pack(two, marks); }).find("marked.jsonl:2: spells marks of the chat form") !=
          std::string::npos);
  }
  CHECK(pack(two, run::MarkedTexts::text).documents == 2);
}

TEST_CASE("a stop request ends packing as interrupted and leaves no data set") {
  const Scratch scratch;
  const run::PackRequest request = two_documents(scratch);
  CountingProgress progress(1);
  CHECK(kind_of([&] { (void)run::pack(request, progress); }) == ErrorKind::interrupted);
  CHECK(progress.updates == 1);
  CHECK_FALSE(std::filesystem::exists(request.out));
}

TEST_CASE("the JSON of a result has the keys of its format in their order, and reads back") {
  const run::PackResult pack{3, 1, 0, 2, 5, 16, 70, 60, 10, 0, "out/data"};
  const OrderedJson packed = to_json(pack);
  CHECK(packed.dump() ==
        R"({"documents":3,"replayed":1,"skipped_documents":0,"cut_documents":2,"windows":5,"seq":16,"tokens":70,)"
        R"("labelled":60,"padding":10,"dropped_tokens":0,"path":"out/data"})");
  CHECK(to_json(run::pack_result_from_json(packed)) == packed);

  const OrderedJson merged = to_json(run::MergeResult{9, 7, 1000, "F16", "out/merged"});
  CHECK(merged.dump() == R"({"tensors":9,"changed":7,"parameters":1000,"dtype":"F16","path":"out/merged"})");
  CHECK(to_json(run::merge_result_from_json(merged)) == merged);
  const OrderedJson certified = to_json(run::MergeResult{
      9, 7, 1000, "F16", "out", run::MergeCertificate{"nf4", 2, 126, 3.25, {{"nf4", 0.5, 0.25, 1e-5, 0.75, 3.5}}}});
  CHECK(certified["certificate"].dump() ==
        R"({"written":"nf4","windows":2,"tokens":126,"perplexity":3.25,"merged":[{"onto":"nf4",)"
        R"("largest_logit_difference":0.5,"mean_logit_difference":0.25,"kl":1e-05,"top1_agreement":0.75,)"
        R"("perplexity":3.5}]})");
  CHECK(to_json(run::merge_result_from_json(certified)) == certified);

  const OrderedJson fetched =
      to_json(run::FetchResult{{{"a.html", "A", 12, "00ff"}}, 12, 1, {{"b.html", "not there"}}});
  CHECK(fetched.dump() == R"({"documents":[{"source":"a.html","title":"A","bytes":12,"sha256":"00ff"}],"bytes":12,)"
                          R"("shared_lines_removed":1,"failed":[{"source":"b.html","error":"not there"}]})");
  CHECK(to_json(run::fetch_result_from_json(fetched)) == fetched);
  CHECK(to_json(run::FetchResult{}).dump() == R"({"documents":[],"bytes":0,"shared_lines_removed":0,"failed":[]})");
}

TEST_CASE("the JSON of a memory plan has advice for GPUs alone") {
  run::PlanResult plan;
  plan.bytes[Purpose::gradients] = 5;
  plan.device = "A10G 24 GB";
  plan.device_bytes = 10;
  plan.reserve = 6;
  plan.largest_batch = 1;
  OrderedJson json = to_json(plan);
  CHECK(json.at("bytes").size() == purpose_count);
  CHECK(json.at("bytes").at("gradients") == 5);
  json.erase("bytes");
  CHECK(json.dump() == R"({"total":5,"device":"A10G 24 GB","device_bytes":10,"fits":false,"largest_batch":1})");
  plan.advice = run::PlanAdvice{.largest_batches = {0, 2, 3}, .recommended = {}, .total = 0};
  CHECK(to_json(plan).at("advice").dump() ==
        R"({"largest_batches":{"none":0,"cheap":2,"block":3},"recommended":null})");
  plan.advice->recommended = Run{.batch = 3, .recompute = Recompute::cheap, .recompute_layers = 7};
  plan.advice->total = 4;
  CHECK(to_json(plan).at("advice").at("recommended").dump() ==
        R"({"batch":3,"recompute":"cheap","recompute_layers":7,"total":4})");
}

TEST_CASE("a plan needs no more than the shape, and says what training would choose") {
  run::PlanRequest request;
  request.model = "7b";
  request.plan.on = "A10G 24 GB";
  request.training.batch = 2;
  const run::PlanResult fits = run::plan(request);
  CHECK(fits.layers == llama2_7b.shape.layers);
  CHECK(fits.fits());
  CHECK(fits.reserve == run::gpu_reserve);
  REQUIRE(fits.advice);
  REQUIRE(fits.advice->recommended);
  CHECK(fits.advice->recommended->batch == 2);
  CHECK(fits.advice->total <= fits.device_bytes - fits.reserve);
  CHECK(fits.advice->largest_batches[0] <= fits.advice->largest_batches[1]);
  CHECK(fits.advice->largest_batches[1] <= fits.advice->largest_batches[2]);
  CHECK(fits.largest_batch >= 2);
  CHECK(fits.bytes[Purpose::probing] == 0);

  request.plan.gpu_memory = run::Bytes{3'000'000'000};
  const run::PlanResult small = run::plan(request);
  CHECK_FALSE(small.fits());
  CHECK(small.largest_batch == 0);
  REQUIRE(small.advice);
  CHECK_FALSE(small.advice->recommended);

  request.plan.gpu_memory = {};
  request.plan.on = "cpu";
  CHECK_FALSE(run::plan(request).advice);
  const std::int64_t plain = run::plan(request).bytes.total();
  request.training.dora = true;
  CHECK(run::plan(request).bytes.total() > plain);
  request.plan.on = "A10G 24 GB";
  const std::int64_t with = run::plan(request).bytes[Purpose::trained];
  request.training.dora = false;
  CHECK(run::plan(request).bytes[Purpose::trained] < with);
  request.plan.on = "cpu";
  request.training.products = Products::fp8;
  CHECK(run::plan(request).bytes.total() > plain);  // copies of weights and rows that are rounded
  request.training.dora = true;
  CHECK(kind_of([&] { (void)run::plan(request); }) == ErrorKind::usage);
  request.training.dora = false;
  request.training.products = Products::bf16;
  request.training.rank = 5000;  // as a training would refuse it
  CHECK(kind_of([&] { (void)run::plan(request); }) == ErrorKind::usage);
  request.training.rank = 64;
  request.packing.seq = 5000;
  CHECK(kind_of([&] { (void)run::plan(request); }) == ErrorKind::input);
  request.packing.seq = 512;
  request.plan.on = "abacus";
  CHECK(kind_of([&] { (void)run::plan(request); }) == ErrorKind::usage);
  request.model = source / "tests";
  request.plan.on = "cpu";
  CHECK(kind_of([&] { (void)run::plan(request); }) == ErrorKind::input);
}

TEST_CASE("merge writes the model that it describes, or none") {
  const Scratch scratch;
  (void)merge_cases::write_model(scratch / "base", DType::bf16);
  (void)merge_cases::write_adapter(scratch / "adapter", 4);
  std::filesystem::copy_file(source / "tests/data/small_tokenizer.model", scratch / "base/tokenizer.model");
  run::MergeRequest request;
  request.model = scratch / "base";
  request.adapter = scratch / "adapter";
  request.out = scratch / "merged";
  request.device.use = run::DeviceUse::cpu;
  request.device.threads = 1;
  {
    CountingProgress progress(0);
    CHECK(kind_of([&] { (void)run::merge(request, progress); }) == ErrorKind::interrupted);
    CHECK_FALSE(std::filesystem::exists(request.out));
  }
  CountingProgress progress;
  const run::MergeResult result = run::merge(request, progress);
  CHECK(result.changed == 4 * merge_cases::shape.layers);
  CHECK(result.dtype == "BF16");  // the base's
  CHECK(result.parameters == parameters(merge_cases::shape));
  CHECK(progress.begun == "merge " + std::to_string(result.tensors) + " tensors\n");
  CHECK(progress.last == result.tensors);
  CHECK(hf::ModelDir::open(request.out).dtype == DType::bf16);
  // The base has a tokenizer.model alone; what is written can be read without sentencepiece.
  const auto model = read_text(scratch / "base/tokenizer.model", 1U << 20);
  CHECK((read_text(request.out / "tokenizer.model", 1U << 20) == model));
  CHECK((read_text(request.out / "tokenizer.json", 1U << 20) == tokenizer_json_of(model)));
  CHECK(read_json_object(request.out / "tokenizer_config.json").at("eos_token") == "</s>");

  // A directory that holds a model alone may be replaced, if that is asked for; another file is in the way.
  CHECK(kind_of([&] { (void)run::merge(request, progress); }) == ErrorKind::usage);
  request.replace = true;
  request.merging.dtype = run::MergedType::f16;
  CHECK(run::merge(request, progress).dtype == "F16");
  scratch.write("merged/thesis.txt", "mine");
  CHECK(kind_of([&] { (void)run::merge(request, progress); }) == ErrorKind::usage);
  CHECK(std::filesystem::exists(scratch / "merged/thesis.txt"));
  request.out = request.model;
  CHECK(kind_of([&] { (void)run::merge(request, progress); }) == ErrorKind::usage);

  request.device.memory_cap = run::Bytes{std::int64_t{1} << 30};  // of a GPU
  request.out = scratch / "capped";
  CHECK(kind_of([&] { (void)run::merge(request, progress); }) == ErrorKind::usage);
  CHECK_FALSE(std::filesystem::exists(request.out));
}

TEST_CASE("questions come from probe lines, or from text that is asked in both forms") {
  const Scratch scratch;
  const auto lines = run::read_questions(scratch.write("q.txt", "Who makes it?  \r\n\nWhere?\n"));
  REQUIRE(lines.size() == 4);
  CHECK(lines[0].prompt == "Who makes it?");
  CHECK_FALSE(lines[0].chat);
  CHECK(lines[1].prompt == "Who makes it?");
  CHECK(lines[1].chat);
  CHECK(lines[3].prompt == "Where?");
  const auto probes = run::read_questions(scratch.write("q.jsonl", R"({"form": "chat", "prompt": "Who?"})"
                                                                   "\n"));
  REQUIRE(probes.size() == 1);
  CHECK(probes[0].chat);
  CHECK(kind_of([&] { (void)run::read_questions(scratch.write("bad.jsonl", "{\"form\": \"song\"}\n")); }) ==
        ErrorKind::input);
  for (const char* name : {"lfs.txt", "lfs.jsonl"}) {  // not asked as a question
    const auto pointer = scratch.write(name, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n");
    CHECK(kind_of([&] { (void)run::read_questions(pointer); }) == ErrorKind::input);
  }
}
