// engine_test.cpp — a model opened with adapters by name: the shipped model with random adapters, against a Model that
// was given the same matrices directly.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/run/engine.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <list>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "qlora/configs/tiny.hpp"
#include "qlora/io/json.hpp"
#include "qlora/run/compiled.hpp"
#include "qlora/run/json.hpp"
#include "qlora/run/merge.hpp"
#include "qlora/run/recall.hpp"
#include "qlora/text/document.hpp"
#include "support/checksums.hpp"
#include "support/refusal.hpp"
#include "support/scratch.hpp"

using namespace qlora;
namespace fs = std::filesystem;

namespace {

using test::refusal;

constexpr Config config = tiny.with(Lora{.rank = 16, .targets = Proj::q | Proj::down});
const run::RegisteredCode<config> code;
const fs::path model_dir = fs::path(QLORA_SOURCE_DIR) / "examples/models/tiny-chat";

/// Random A and B of the adapted modules, in the order of for_each_module.
struct Matrices {
  int rank;
  Proj targets;
  std::list<std::vector<float>> values{};
};
template <class Use>
void for_each_module(Proj targets, const Use& use) {
  for (int layer = 0; layer < config.shape.layers; ++layer) {
    for (const Proj proj : all_projections) {
      if (contains(targets, proj)) use(layer, proj);
    }
  }
}
Matrices random_matrices(int rank, Proj targets, std::uint64_t seed) {
  Matrices made{rank, targets};
  for_each_module(targets, [&](int layer, Proj proj) {
    const std::string name = std::to_string(layer) + std::string(name_of(proj));
    auto& a = made.values.emplace_back(static_cast<std::size_t>(rank * cols_of(config.shape, proj)));
    qlora::detail::fill_normal(name + "A", seed, 0.06F, a);
    auto& b = made.values.emplace_back(static_cast<std::size_t>(rows_of(config.shape, proj) * rank));
    qlora::detail::fill_normal(name + "B", seed, 0.06F, b);
  });
  return made;
}

void write(const fs::path& dir, const Matrices& adapter, float alpha, const std::string& base_checksum = {}) {
  PeftConfig peft{.r = adapter.rank, .alpha = alpha, .targets = adapter.targets};
  peft.base_checksum = base_checksum;
  std::vector<PeftTensor> tensors;
  auto next = adapter.values.begin();
  for_each_module(adapter.targets, [&](int layer, Proj proj) {
    tensors.push_back({lora_name(layer, proj, 'A'), {adapter.rank, cols_of(config.shape, proj)}, *next++});
    tensors.push_back({lora_name(layer, proj, 'B'), {rows_of(config.shape, proj), adapter.rank}, *next++});
  });
  write_peft(dir, peft, tensors);
}

const std::vector<std::vector<std::int32_t>> texts{{1, 17, 300, 45, 9, 812}, {1, 5, 6}};

using Logits = std::vector<float>;
Logits logits_of(run::Session& session) {
  Logits all;
  session.read(texts, [&](std::size_t, std::size_t, std::span<const float> logits) {
    all.insert(all.end(), logits.begin(), logits.end());
    return true;
  });
  return all;
}

/// The same from a Model that was given the matrices; none: its base.
Logits expected(const Matrices* adapter, float alpha) {
  const hf::ModelDir dir = hf::ModelDir::open(model_dir);
  Model<config, Cpu<>> model(
      dir.source(), {.rope_theta = dir.rope_theta, .norm_eps = dir.norm_eps, .keep_dequantized = true}, Cpu<>(1));
  if (adapter != nullptr) {
    auto next = adapter->values.begin();
    for_each_module(config.lora.targets, [&](int layer, Proj proj) {
      std::vector<float> a(static_cast<std::size_t>(adapter->rank * cols_of(config.shape, proj)), 0.0F);
      std::vector<float> b(static_cast<std::size_t>(rows_of(config.shape, proj) * adapter->rank), 0.0F);
      if (contains(adapter->targets, proj)) {
        a = *next++;
        b = *next++;
      }
      model.weights().load_adapter(model.backend(), layer, proj, adapter->rank, alpha, false, a, b);
    });
  }
  Logits all;
  Scorer<config, Cpu<>> scorer(model, {.sequences = 2, .length = 6, .step_tokens = 16, .all_logits = true});
  scorer.read(texts, [&](std::size_t, std::size_t, std::span<const float> logits) {
    all.insert(all.end(), logits.begin(), logits.end());
    return true;
  });
  return all;
}

void check_close(const Logits& ours, const Logits& theirs) {
  REQUIRE(ours.size() == theirs.size());
  for (std::size_t i = 0; i < ours.size(); ++i) CHECK(ours[i] == doctest::Approx(theirs[i]).epsilon(1e-4));
}

}  // namespace

TEST_CASE("a chat reads what is new of each turn, and answers as one that reads all of it") {
  run::Engine engine(model_dir);
  const run::Sampling sampling{.max_new_tokens = 12};
  std::vector<Message> history;
  std::size_t seen = 0;
  for (const char* prompt : {"Hello!", "What can you tell me?", "And what else?"}) {
    const run::Question question{.chat = true, .prompt = prompt, .history = history};
    const std::string answer = engine.ask({question}, sampling)[0].text;
    CHECK(static_cast<std::size_t>(engine.session().cached()) >= seen);
    run::EngineSession fresh = engine.open_session();
    CHECK(answer == fresh.ask({question}, sampling)[0].text);
    CHECK(fresh.session().cached() == 0);
    seen = eval::question_tokens(engine.tokenizer(), engine.chat_template(), true, prompt, history).size() - 1;
    history.push_back({"user", prompt});
    history.push_back({"assistant", answer});
  }
  CHECK(engine.session().cached() > 0);
  (void)engine.ask({{.prompt = "Once", .history = {}}, {.prompt = "Twice", .history = {}}}, sampling);
  CHECK(engine.session().cached() == 0);
  // 2 (keys, values) x 4 heads x 32 numbers x 4 layers x 4 bytes: a token takes 4 KiB.
  constexpr std::int64_t each = 512 * 4096;
  const auto slots = [&](std::int64_t bytes) {
    return engine.open_batch({.sequences = 5, .length = 512, .step_tokens = 8}, bytes)->load().slots;
  };
  CHECK(slots(0) == 5);
  CHECK(slots(3 * each) == 3);
  CHECK(slots(3 * each - 1) == 2);
  CHECK(slots(1000 * each) == 5);
  CHECK(refusal([&] { (void)slots(each / 2); }).find("one request of 512 tokens take 2 MiB, and 1 MiB") !=
        std::string::npos);
}

TEST_CASE("adapters are attached, used and detached by name, and the base stays what it was to the bit") {
  const test::Scratch scratch;
  const Matrices first = random_matrices(8, Proj::q | Proj::down, 1);
  const Matrices second = random_matrices(16, Proj::q, 2);
  write(scratch / "first", first, 16);
  write(scratch / "second", second, 4);

  run::Engine engine(model_dir, {.adapters = {{"first", scratch / "first"}, {"second", scratch / "second"}}});
  const Logits base = logits_of(engine.session());
  check_close(base, expected(nullptr, 0));
  engine.use("first");
  const Logits with_first = logits_of(engine.session());
  check_close(with_first, expected(&first, 16));
  engine.use("second");  // leaves nothing of the first where it adapts less
  check_close(logits_of(engine.session()), expected(&second, 4));
  engine.use("first");
  CHECK(logits_of(engine.session()) == with_first);
  engine.use("");
  CHECK(logits_of(engine.session()) == base);
  engine.use("first");
  engine.detach("first");
  CHECK(logits_of(engine.session()) == base);
  CHECK(refusal([&] { engine.use("first"); }).find("\"first\"") != std::string::npos);
  engine.attach("first", scratch / "second");  // the name is free again
  engine.use("first");
  check_close(logits_of(engine.session()), expected(&second, 4));
}

TEST_CASE("sessions answer at once, each with its adapter and scale, and outlive the engine") {
  const test::Scratch scratch;
  write(scratch / "first", random_matrices(8, Proj::q | Proj::down, 1), 16);
  write(scratch / "second", random_matrices(16, Proj::q, 2), 4);
  write(scratch / "half", random_matrices(8, Proj::q | Proj::down, 1), 8);
  std::optional<run::Engine> engine(
      std::in_place, model_dir,
      run::EngineOptions{
          .adapters = {{"first", scratch / "first"}, {"second", scratch / "second"}, {"half", scratch / "half"}}});
  struct Use {
    std::string adapter;
    float scale;
  };
  const std::vector<Use> uses{{"", 1.0F}, {"first", 1.0F}, {"second", 1.0F}, {"first", 0.5F}, {"half", 1.0F}};
  std::vector<Logits> alone;
  for (const Use& use : uses) {
    engine->use(use.adapter, use.scale);
    alone.push_back(logits_of(engine->session()));
  }
  CHECK(alone[3] == alone[4]);
  CHECK(alone[3] != alone[1]);
  std::vector<Logits> together(uses.size());
  std::vector<run::EngineSession> sessions;
  for (const Use& use : uses) {
    sessions.push_back(engine->open_session(1));
    sessions.back().use(use.adapter, use.scale);
  }
  engine.reset();
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < uses.size(); ++i) {
    threads.emplace_back([&, i] { together[i] = logits_of(sessions[i].session()); });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::size_t i = 0; i < uses.size(); ++i) CHECK(together[i] == alone[i]);
  CHECK(refusal([&] { sessions[0].use("third"); }).find("\"third\"") != std::string::npos);
}

TEST_CASE("an adapter that the code cannot hold whole, and a name that is taken, are refused by name") {
  const test::Scratch scratch;
  write(scratch / "qv", random_matrices(8, Proj::q | Proj::v, 1), 16);
  write(scratch / "q", random_matrices(8, Proj::q, 1), 16);
  write(scratch / "r17", random_matrices(17, Proj::q, 1), 16);
  run::Engine engine(model_dir, {.adapters = {{"q", scratch / "q"}}});
  CHECK(refusal([&] { engine.attach("qv", scratch / "qv"); }).find("self_attn.v_proj") != std::string::npos);
  CHECK(refusal([&] { engine.attach("r17", scratch / "r17"); }).find("rank 17") != std::string::npos);
  CHECK(refusal([&] { engine.attach("q", scratch / "q"); }).find("taken") != std::string::npos);
  CHECK(!refusal([&] { engine.detach("nothing"); }).empty());
  // Opened with such an adapter, the registry is asked, and names what it lacks.
  CHECK(refusal([&] {
          run::Engine(model_dir, {.adapters = {{"r17", scratch / "r17"}}});
        }).find("rank 17") != std::string::npos);
  const run::EngineOptions full{.base = run::BaseWeights::full, .adapters = {{"q", scratch / "q"}}};
  CHECK(refusal([&] { run::Engine(model_dir, full); }).find("4-bit") != std::string::npos);
  run::Engine plain(model_dir, {.base = run::BaseWeights::full});
  CHECK(!refusal([&] { plain.attach("q", scratch / "q"); }).empty());
  CHECK(!refusal([&] { plain.use("q"); }).empty());
}

TEST_CASE(
    "an adapter is refused on a base of which a bit has changed, unless any base will do or nothing is compared") {
  const test::Scratch scratch;
  fs::copy(model_dir, scratch / "model");
  write(scratch / "q", random_matrices(2, Proj::q, 3), 4.0F, hf::ModelDir::open(model_dir).checksum());
  const run::EngineOptions options{.adapters = {{"q", scratch / "q"}}};
  CHECK(refusal([&] { run::Engine engine(scratch / "model", options); }).empty());
  const std::uintmax_t size = fs::file_size(scratch / "model/model.safetensors");
  test::flip_bit(scratch / "model/model.safetensors", size / 2 * 8);  // inside a matrix
  CHECK(refusal([&] { run::Engine engine(scratch / "model", options); }).find("although all tensors begin alike") !=
        std::string::npos);
  run::Engine attached_later(scratch / "model");
  CHECK(refusal([&] { attached_later.attach("q", scratch / "q"); }).find("although all tensors") != std::string::npos);
  run::EngineOptions trusting = options;
  trusting.any_base = true;
  CHECK(refusal([&] { run::Engine engine(scratch / "model", trusting); }).empty());
  trusting.any_base = false;
  trusting.device.no_verify = true;
  CHECK(refusal([&] { run::Engine engine(scratch / "model", trusting); }).empty());
}

TEST_CASE("questions are answered in their order, and a stop request ends the answers with an error") {
  struct Stopped final : run::Progress {
    [[nodiscard]] bool stop_requested() const override { return true; }
  };
  run::Engine engine(model_dir);
  const std::vector<run::Question> questions{{true, "Who are you?", {}}, {false, "The", {}}, {true, "Hello", {}}};
  const auto replies = engine.ask(questions, {.max_new_tokens = 8, .temperature = 0});
  REQUIRE(replies.size() == 3);
  for (std::size_t i = 0; i < questions.size(); ++i) {
    CHECK(engine.ask({questions[i]}, {.max_new_tokens = 8, .temperature = 0})[0].text == replies[i].text);
  }
  CHECK_THROWS_AS((void)engine.ask(questions, {.max_new_tokens = 8}, Stopped()), Error);
}

TEST_CASE("recall writes the documents that it counts, the same for the same seed") {
  const test::Scratch scratch;
  run::Progress silent;
  run::RecallRequest request;
  request.model = model_dir;
  request.recall = {.documents = 3, .prompt = "[INST]"};
  request.sampling.max_new_tokens = 60;
  request.out = scratch / "one.jsonl";
  const run::RecallResult result = run::recall(request, silent);
  CHECK(result.documents + result.left_out == 3);
  const std::vector<Document> documents = read_documents(request.out);
  CHECK(static_cast<std::int64_t>(documents.size()) == result.documents);
  for (const Document& document : documents) CHECK(document.source.starts_with("recall:42:"));
  request.out = scratch / "two.jsonl";
  CHECK(run::recall(request, silent).chats == result.chats);
  CHECK(read_documents(request.out).front().sha256 == documents.front().sha256);
  request.out = scratch / "two.txt";
  CHECK_THROWS_AS(run::recall(request, silent), Error);
  CHECK_FALSE(fs::exists(request.out));
}

TEST_CASE("recall needs a beginning where no mark begins a text") {
  const test::Scratch scratch;
  const fs::path unmarked = scratch / "model";
  fs::copy(model_dir, unmarked);
  fs::remove(unmarked / "tokenizer.model");
  std::ifstream kinds(fs::path(QLORA_SOURCE_DIR) / "tests/data/tokenizers.json");
  Json tokenizer = Json::parse(kinds).at("llama2_prepend").at("file");
  tokenizer.erase("post_processor");
  std::ofstream(unmarked / "tokenizer.json") << tokenizer.dump();
  run::Progress silent;
  run::RecallRequest request;
  request.model = unmarked;
  request.out = scratch / "texts.jsonl";
  request.recall.documents = 1;
  CHECK_THROWS_WITH_AS(run::recall(request, silent), doctest::Contains("--prompt"), Error);
}

TEST_CASE("a merge says how far the model is from its adapter, and writes the nearer one") {
  const test::Scratch scratch;
  write(scratch / "adapter", random_matrices(4, Proj::q | Proj::down, 5), 8);
  run::MergeRequest request;
  request.model = model_dir;
  request.adapter = scratch / "adapter";
  request.out = scratch / "out/merged";
  request.merging.onto = run::MergeBase::best;
  request.merging.windows = 2;
  request.device.threads = 1;
  run::Progress silent;
  const run::MergeResult result = run::merge(request, silent);
  REQUIRE(result.certificate.has_value());
  const run::MergeCertificate& found = *result.certificate;
  CHECK(read_text(request.out / "merge_certificate.json", 10'000) == to_json(found).dump(2) + '\n');
  CHECK(found.windows == 2);
  CHECK(found.tokens == 2 * 63);
  REQUIRE(found.merged.size() == 2);
  const run::MergeDifference& original = found.merged[0];
  const run::MergeDifference& nf4 = found.merged[1];
  // The adapter is used on what the codes mean, so the model merged onto that is the same but for rounding to float16.
  CHECK(original.onto == "original");
  CHECK(nf4.onto == "nf4");
  CHECK(found.written == "nf4");
  CHECK(nf4.kl < 1e-4);
  CHECK(nf4.kl < original.kl / 10);
  CHECK(nf4.largest_logit < original.largest_logit);
  CHECK(nf4.mean_logit < original.mean_logit);
  CHECK(nf4.agreement >= original.agreement);
  CHECK(nf4.perplexity == doctest::Approx(found.perplexity).epsilon(0.01));
  CHECK(std::distance(fs::directory_iterator(scratch / "out"), fs::directory_iterator()) == 1);  // what helped is gone

  run::Engine live(model_dir, {.adapters = {{"a", request.adapter}}, .device = request.device});
  live.use("a");
  const auto largest_difference = [&](const fs::path& dir) {
    run::Engine merged(dir, {.base = run::BaseWeights::full, .device = request.device});
    const Logits a = logits_of(live.session()), b = logits_of(merged.session());
    float largest = 0;
    for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::fabs(a[i] - b[i]));
    return largest;
  };
  const float written = largest_difference(request.out);
  CHECK(written < 0.05F);
  request.merging = {};
  request.out = scratch / "plain";
  CHECK_FALSE(run::merge(request, silent).certificate.has_value());
  CHECK_FALSE(fs::exists(request.out / "merge_certificate.json"));
  CHECK(largest_difference(request.out) > 2 * written);
}

TEST_CASE("the numbers of a merge's certificate, by hand") {
  run::MergeDistance distance;
  const float log3 = std::log(3.0F);
  distance.add(std::vector<float>{0, log3}, std::vector<float>{0, 0}, 1);  // 1/4 and 3/4 beside 1/2 and 1/2
  const run::MergeDifference one = distance.of("x");
  CHECK(one.kl == doctest::Approx(0.25 * std::log(0.5) + 0.75 * std::log(1.5)));
  CHECK(one.largest_logit == doctest::Approx(std::log(3.0)));
  CHECK(one.mean_logit == doctest::Approx(std::log(3.0) / 2));
  CHECK(one.agreement == 0);
  CHECK(one.perplexity == doctest::Approx(2));
  distance.add(std::vector<float>{5, log3}, std::vector<float>{6, log3 + 1}, 0);  // the same but for a constant
  CHECK(distance.of("x").agreement == 0.5);
  CHECK(distance.of("x").kl == doctest::Approx(one.kl / 2));
}

TEST_CASE("a model is asked in its own form, and in the one that is named") {
  const std::vector<run::Question> asked{{true, "Who makes it?", {}}};
  run::Engine own(model_dir, {.base = run::BaseWeights::full});
  CHECK(own.chat_template().name() == "llama2");  // by the template of its tokenizer_config.json
  run::Engine named(model_dir, {.base = run::BaseWeights::full, .chat = {"zephyr"}});
  const run::Sampling greedy{.max_new_tokens = 8, .temperature = 0};
  for (run::Engine* engine : {&own, &named}) {
    const Tokenizer& tokenizer = engine->tokenizer();
    const std::string text = engine == &own
                                 ? "[INST] Who makes it? [/INST]"
                                 : "<|user|>\nWho makes it?";  // behind it an end mark, and "\n<|assistant|>\n"
    std::vector<std::int32_t> prompt = tokenizer.encode(text);
    if (engine == &own) prompt.insert(prompt.begin(), tokenizer.bos());
    if (engine == &named) {
      prompt.push_back(tokenizer.eos());
      for (const std::int32_t id : tokenizer.encode("\n<|assistant|>\n")) prompt.push_back(id);
    }
    GenerateOptions options = run::generation(greedy);
    options.stop_ids = {tokenizer.eos(), tokenizer.bos()};
    const Generated expected = engine->session().generate(std::span(&prompt, 1), options, {})[0];
    std::string reply = tokenizer.decode(expected.ids);
    reply.erase(std::min(reply.find(engine == &own ? "[INST]" : "<|user|>"), reply.size()));
    CHECK(engine->ask(asked, greedy)[0].text == reply);
  }
  CHECK_THROWS_WITH_AS(run::Engine(model_dir, {.chat = {"gpt"}}), doctest::Contains("no chat template 'gpt'"), Error);
}
