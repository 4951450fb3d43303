// dora_test.cpp — adapters with DoRA as peft saves them (tests/golden/make_variants.py): read, written, merged into
// weights in 16 bits and in NF4, and generated with beside their base, against what peft computes.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "qlora/cpu.hpp"
#include "qlora/generate/generator.hpp"
#include "qlora/io/adapter.hpp"
#include "qlora/io/merge.hpp"
#include "qlora/io/open_model.hpp"
#include "qlora/model/init.hpp"
#include "qlora/train/batch.hpp"
#include "support/golden_models.hpp"
#include "support/refusal.hpp"
#include "support/scratch.hpp"

using namespace qlora;

namespace {

using B = Cpu<>;
using Tuned = Model<golden::gqa, B>;
using Ids = std::vector<std::int32_t>;

const std::filesystem::path folder = std::filesystem::path(QLORA_SOURCE_DIR) / "tests/golden";
const std::filesystem::path saved_by_peft = folder / "variants/dora";

/// What peft computed.
const SafetensorsFile& reference() {
  static const SafetensorsFile file(folder / "variants/dora.safetensors");
  return file;
}

/// Logits (T,V) of the adapters that the model's context uses.
std::vector<float> logits(Tuned& model, const Ids& ids) {
  Network<Tuned::code, B> pass(model.context(), {.batch = 1, .seq = static_cast<int>(ids.size()), .dropout = false});
  BatchBuilder builder(ids.size());
  pass.forward(builder.build({static_cast<int>(ids.size()), ids, ids, {}}));
  std::vector<float> all(ids.size() * 256);
  pass.logits(all.data());
  return all;
}

/// The adapter's tensors, and the list that write_peft takes.
struct Tensors {
  std::vector<std::vector<float>> values;
  std::vector<PeftTensor> list;
  explicit Tensors(const PeftAdapter& adapter) {
    for (const std::string& name : adapter.names()) {
      const TensorRef ref = adapter.source()(name).value();
      list.push_back({name, ref.shape, values.emplace_back(golden::floats(ref))});
    }
  }
  Tensors(const Tensors&) = delete;
  Tensors& operator=(const Tensors&) = delete;
};

}  // namespace

TEST_CASE("an adapter with DoRA reads, writes and reads back equal") {
  const test::Scratch scratch;
  const PeftAdapter adapter = PeftAdapter::open(saved_by_peft);
  CHECK(adapter.dora);
  CHECK(adapter.r == 4);
  CHECK(adapter.names().size() == 3 * 14);
  CHECK(adapter.source()(lora_name(1, Proj::k, 'M')).value().shape == std::vector<std::int64_t>{32});
  Tensors all(adapter);
  write_peft(scratch / "again", adapter, all.list);
  const PeftAdapter again = PeftAdapter::open(scratch / "again");
  CHECK(static_cast<const PeftConfig&>(again) == static_cast<const PeftConfig&>(adapter));
  for (const std::string& name : adapter.names()) {
    CHECK(golden::floats(again.source()(name).value()) == golden::floats(adapter.source()(name).value()));
  }
  // A module without its magnitude, and magnitudes without use_dora.
  CHECK(all.list.back().name.ends_with(".lora_magnitude_vector"));
  PeftConfig plain = adapter;
  plain.dora = false;
  CHECK(test::refusal([&] { write_peft(scratch / "plain", plain, all.list); }).find("not a matrix of a target") !=
        std::string::npos);
  all.list.pop_back();
  CHECK(test::refusal([&] { write_peft(scratch / "less", adapter, all.list); }).find("41 matrices") !=
        std::string::npos);
}

TEST_CASE("merged weights are those of merge_and_unload") {
  const test::Scratch scratch;
  const PeftAdapter adapter = PeftAdapter::open(saved_by_peft);
  for (const bool nf4 : {false, true}) {
    CAPTURE(nf4);
    const hf::ModelDir base = hf::ModelDir::open(folder / "gqa" / (nf4 ? "model-bnb-4bit" : "model"));
    MergeLanes lanes = host_merge_lanes(2);
    MergeOptions options;
    options.dtype = DType::f32;
    const std::filesystem::path out = scratch / (nf4 ? "nf4" : "full");
    CHECK(merge_model(base, adapter, out, lanes, options).changed == 14);
    const hf::ModelDir merged = hf::ModelDir::open(out);
    for (const auto& [layer, proj] : {std::pair(0, Proj::q), std::pair(1, Proj::k)}) {
      const std::string name = module_name(layer, proj);
      const std::vector<float> theirs = golden::floats(reference(), (nf4 ? "merged_nf4." : "merged_full.") + name);
      CHECK(golden::relative(golden::floats(merged.source()(tensor_name::weight(layer, proj)).value()), theirs) < 1e-6);
    }
  }
}

TEST_CASE("an embedding table and a head that were trained whole take the place of the model's") {
  const test::Scratch scratch;
  const SafetensorsFile lora(folder / "gqa/adapter/adapter_model.safetensors");
  std::vector<float> table(256 * 128), head(256 * 128);
  detail::fill_normal("table", 1, 1.0F, table);
  detail::fill_normal("head", 1, 1.0F, head);
  const auto as_tensor = [](const std::vector<float>& values, int rows) {
    return TensorRef{DType::f32,
                     {rows, static_cast<std::int64_t>(values.size()) / rows},
                     std::as_bytes(std::span<const float>(values.data(), values.size()))};
  };
  Json config = read_json_object(folder / "gqa/adapter/adapter_config.json");
  config["modules_to_save"] = {"embed_tokens", "lm_head"};
  const auto write = [&](const char* name, int rows) {
    make_directories(scratch / name);
    write_file_atomically(scratch / name / "adapter_config.json", json_text(config));
    std::vector<std::pair<std::string, TensorRef>> tensors;
    for (const std::string& tensor : lora.names()) tensors.emplace_back(tensor, lora.at(tensor));
    tensors.emplace_back("base_model.model.model.embed_tokens.weight", as_tensor(table, rows));
    tensors.emplace_back("base_model.model.lm_head.modules_to_save.default.weight", as_tensor(head, rows));
    write_safetensors(scratch / name / "adapter_model.safetensors", tensors);
    return PeftAdapter::open(scratch / name);
  };
  const PeftAdapter adapter = write("whole", 256);
  CHECK((adapter.embedding && adapter.head));
  CHECK(adapter.names().size() == 2 * 14);
  MergeLanes lanes = host_merge_lanes(2);
  MergeOptions options;
  options.dtype = DType::f32;
  const hf::ModelDir base = hf::ModelDir::open(folder / "gqa/model");
  CHECK(merge_model(base, adapter, scratch / "merged", lanes, options).changed == 16);
  CHECK(merge_model(base, PeftAdapter::open(folder / "gqa/adapter"), scratch / "plain", lanes, options).changed == 14);
  const TensorSource merged = hf::ModelDir::open(scratch / "merged").source();
  const TensorSource plain = hf::ModelDir::open(scratch / "plain").source();
  for (const hf::NamedShape& tensor : hf::tensor_names(base.shape)) {
    CAPTURE(tensor.name);
    const std::vector<float> got = golden::floats(merged(tensor.name).value());
    if (tensor.name == tensor_name::embedding) {
      CHECK(got == table);
    } else if (tensor.name == tensor_name::head) {
      CHECK(got == head);
    } else {
      CHECK(got == golden::floats(plain(tensor.name).value()));
    }
  }
  const auto refusal = [&](const hf::ModelDir& model, const PeftAdapter& with) {
    return test::refusal([&] { (void)merge_model(model, with, scratch / "none", lanes, options); });
  };
  CHECK(refusal(base, write("vocabulary", 128)).find("trained with another vocabulary") != std::string::npos);
  CHECK(refusal(hf::ModelDir::open(folder / "tied/model"), adapter).find("tie_word_embeddings") != std::string::npos);
  CHECK(test::refusal([&] { check_adapter(adapter, golden::gqa); }).find("modules_to_save") != std::string::npos);
}

TEST_CASE("beside its base an adapter with DoRA has the logits and the words of peft") {
  Tuned model = open_model<golden::gqa, B>(folder / "gqa/model-bnb-4bit", {}, B(2));
  const Ids ids = golden::ints(reference(), "input_ids");
  const std::vector<float> base = logits(model, ids);
  (void)attach_adapter(model, "dora", saved_by_peft, AdapterBase::any);
  CHECK(logits(model, ids) == base);
  model.context().use("dora");
  const std::vector<float> theirs = golden::floats(reference(), "nf4.logits");
  CHECK(golden::relative(logits(model, ids), theirs) < 1e-5);
  CHECK(golden::largest_difference(base, theirs) > 0.1);
  model.context().use("dora", 0.0F);
  CHECK(logits(model, ids) == base);

  model.context().use("dora");
  const Ids words = golden::ints(reference(), "greedy");
  Generator<golden::gqa, B> generator(model.context());
  GenerateOptions options;
  options.max_new_tokens = 16;
  options.stop_ids.clear();
  const Generated said = generator.generate(Ids(words.begin(), words.begin() + 8), options);
  CHECK(said.ids == Ids(words.begin() + 8, words.end()));

  const std::string refused = test::refusal([&] { read_adapter(model, saved_by_peft, AdapterBase::any); });
  CHECK(refused.find("DoRA (use_dora), and the model was not opened to train one") != std::string::npos);
}

TEST_CASE("rows with DoRA beside rows without, at half its strength") {
  constexpr int tokens = 5, in = 6, out = 3, rank = 2;
  constexpr int wide = in + rank;
  std::vector<float> w(out * in), a(rank * in), b(out * rank), x(tokens * wide), y(tokens * out);
  detail::fill_normal("w", 1, 1.0F, w);
  detail::fill_normal("a", 1, 1.0F, a);
  detail::fill_normal("b", 1, 1.0F, b);
  detail::fill_normal("x", 1, 1.0F, x);
  const std::vector<float> factors{0.5F, 1.25F, -2.0F};
  LinearPart<float> part;
  part.weight.rows = out;
  part.weight.dense = w.data();
  part.weight.stride = in;
  RowAdapters<float> range{.first = 1, .count = 2, .parts = {}};
  range.parts[0] = {.a = a.data(), .b = b.data(), .scale = 0.25F, .row_factors = factors.data(), .strength = 0.5F};
  LinearGroup<float> group;
  group.in = in;
  group.rank = rank;
  group.adapted = 1;
  cpu::ThreadPool pool(2);
  cpu::linear_forward<cpu::Numbers<float>>(pool, group, std::span<const LinearPart<float>>(&part, 1),
                                           std::span<const RowAdapters<float>>(&range, 1), tokens, {x.data(), wide},
                                           static_cast<const float*>(nullptr), y.data());
  for (int t = 0; t < tokens; ++t) {
    for (int n = 0; n < out; ++n) {
      double sum = 0.0, low = 0.0;
      for (int k = 0; k < in; ++k)
        sum += double{w[static_cast<std::size_t>(n * in + k)]} * double{x[static_cast<std::size_t>(t * wide + k)]};
      for (int r = 0; r < rank; ++r) {
        double xa = 0.0;
        for (int k = 0; k < in; ++k)
          xa += double{a[static_cast<std::size_t>(r * in + k)]} * double{x[static_cast<std::size_t>(t * wide + k)]};
        low += double{b[static_cast<std::size_t>(n * rank + r)]} * xa;
      }
      const bool adapted = t == 1 || t == 2;
      const double expected =
          adapted ? sum * (1.0 + 0.5 * (double{factors[static_cast<std::size_t>(n)]} - 1.0)) + 0.25 * low : sum;
      CHECK(double{y[static_cast<std::size_t>(t * out + n)]} == doctest::Approx(expected).epsilon(1e-5));
    }
  }
}
