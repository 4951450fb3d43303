// A model directory opened as a Model: what config.json says is compared with the config and used, and each tensor has
// the shape that the config gives it.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/io/open_model.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "qlora/cpu.hpp"
#include "qlora/io/adapter.hpp"
#include "qlora/io/hf_writer.hpp"
#include "qlora/io/quantize.hpp"
#include "qlora/model/init.hpp"
#include "support/refusal.hpp"
#include "support/scratch.hpp"

using namespace qlora;
namespace fs = std::filesystem;

namespace {

using test::refusal;

using B = Cpu<float>;
constexpr Config mine{.shape = {40, 32, 2, 8, 4, 8, 48}, .lora = {.rank = 4}};
constexpr Config fewer_heads = [] {  // every tensor has the shape that it has in `mine`
  Config config = mine;
  config.shape.heads = 4;
  config.shape.kv_heads = 2;
  config.shape.head_dim = 16;
  return config;
}();
constexpr Config any{.shape = dynamic_shape, .lora = {.rank = 4}};

const test::Scratch scratch;

fs::path write_model(const std::string& name) {
  const hf::ModelConfig config{.shape = mine.shape, .rope_theta = 500000.0F, .norm_eps = 1e-6F};
  hf::ModelWriter writer(scratch / name, config);
  const TensorSource weights = random_weights(mine.shape, 3);
  for (const hf::NamedShape& tensor : writer.tensors()) {
    std::vector<float> values(static_cast<std::size_t>(weights(tensor.name)->size()));
    read_floats(*weights(tensor.name), 0, values);
    writer.write(tensor.name, values);
  }
  writer.finish();
  return scratch / name;
}

}  // namespace

TEST_CASE("an adapter is written with its base's fingerprint, and refused by a model of other weights") {
  const fs::path dir = write_model("base");
  const hf::ModelDir files = hf::ModelDir::open(dir);
  Model<mine, B> model = open_model<mine, B>(dir, {}, B(1));
  CHECK(model.base_fingerprint() == files.fingerprint());
  model.weights().init_adapters(model.backend(), {.rank = 2}, 1);
  write_adapter(scratch / "adapter", model);
  CHECK(PeftAdapter::open(scratch / "adapter").base_fingerprint == files.fingerprint());
  Model<mine, B> same = open_model<mine, B>(dir, {}, B(1));
  read_adapter(same, scratch / "adapter");
  attach_adapter(same, "named", scratch / "adapter");
  Model<mine, B> other(random_weights(mine.shape, 4), {.base = Fingerprint(std::string(64, '0'))}, B(1));
  for (const auto& load : {std::function<void()>([&] { read_adapter(other, scratch / "adapter"); }),
                           std::function<void()>([&] { attach_adapter(other, "named", scratch / "adapter"); })}) {
    CHECK(refusal(load).find("trained on other weights") != std::string::npos);
  }
  CHECK_FALSE(other.weights().own().is_set());
  read_adapter(other, scratch / "adapter", AdapterBase::any);
  CHECK(other.weights().adapter(1, Proj::q).rank == 2);
  Model<mine, B> unknown(random_weights(mine.shape, 4), {}, B(1));
  CHECK_NOTHROW(read_adapter(unknown, scratch / "adapter"));
}

TEST_CASE("a directory's shape and numbers are those of the model") {
  const fs::path dir = write_model("model");
  const auto fixed = open_model<mine, B>(dir, {}, B(1));
  CHECK(fixed.weights().values().rope_theta == 500000.0F);
  CHECK(fixed.weights().values().norm_eps == 1e-6F);
  const hf::ModelDir opened = hf::ModelDir::open(dir);
  const auto found = open_model<any, B>(opened, {.norm_eps = 1e-4F, .keep_dequantized = true}, B(1));
  CHECK(found.resolved_config().shape == mine.shape);
  CHECK(found.weights().values().rope_theta == 500000.0F);
  CHECK(found.weights().values().norm_eps == 1e-4F);
  CHECK(found.keeps_dequantized());
}

TEST_CASE("another split of the same widths into heads is refused by name") {
  const fs::path dir = write_model("heads");
  CHECK_NOTHROW(Model<fewer_heads, B>(hf::ModelDir::open(dir).source(), {}, B(1)));  // the tensors cannot tell
  const std::string text = refusal([&] { (void)open_model<fewer_heads, B>(dir, {}, B(1)); });
  CHECK(text.find("the model has heads 8, this config has 4") != std::string::npos);
  const hf::ModelDir opened = hf::ModelDir::open(dir);
  CHECK(refusal([&] {
          (void)model_options(opened, {.shape = fewer_heads.shape});
        }).find("another shape than " + (dir / "config.json").string()) != std::string::npos);
  CHECK_FALSE(refusal([&] { (void)open_model<mine, B>(scratch / "nothing", {}, B(1)); }).empty());
}

TEST_CASE("numbers that cannot be meant") {
  const TensorSource weights = random_weights(mine.shape, 3);
  CHECK(refusal([&] { Model<mine, B>(weights, {.rope_theta = -1.0F}, B(1)); }).starts_with("rope_theta is -1;"));
  CHECK(refusal([&] { Model<mine, B>(weights, {.norm_eps = std::nanf("")}, B(1)); }).starts_with("norm_eps is nan;"));
}

TEST_CASE("a tensor of another shape is refused by name, also when it has as many values") {
  constexpr Config full = mine.with(Trainable::all);
  const auto with = [](const std::string& name, std::vector<std::int64_t> shape) -> TensorSource {
    return [name, shape, weights = random_weights(mine.shape, 3)](std::string_view asked) {
      std::optional<TensorRef> tensor = weights(asked);
      if (asked == name) tensor->shape = shape;
      return tensor;
    };
  };
  const auto check = [&](const std::string& name, const std::vector<std::int64_t>& shape, const std::string& text) {
    const TensorSource source = with(name, shape);
    CHECK(refusal([&] { Model<mine, B>(source, {}, B(1)); }) == name + text);
    CHECK(refusal([&] { Model<full, B>(source, {}, B(1)); }) == name + text);
  };
  check("model.layers.1.mlp.down_proj.weight", {48, 32}, " has shape (48, 32), this config needs (32, 48)");
  check("model.layers.0.self_attn.q_proj.weight", {2048}, " has shape (2048), this config needs (64, 32)");
  check("model.embed_tokens.weight", {32, 40}, " has shape (32, 40), this config needs (40, 32)");
  check("lm_head.weight", {1280}, " has shape (1280), this config needs (40, 32)");
  check("model.norm.weight", {1, 32}, " has shape (1, 32), this config needs (32)");
}

TEST_CASE("a model in NF4 has the bits of the one that it was made from, with double quantization and without") {
  const fs::path dir = write_model("plain");
  const hf::ModelDir plain = hf::ModelDir::open(dir);
  for (const bool twice : {true, false}) {
    CAPTURE(twice);
    const fs::path out = scratch / (twice ? "nf4-twice" : "nf4-once");
    (void)quantize_model(plain, out, {.storage = {.double_quant = twice}, .threads = 1});
    auto stored = open_model<any, B>(out, {}, B(1));
    CHECK(stored.resolved_config().quant.double_quant == twice);
    CHECK(stored.weights().bytes_used() == stored.weights().arena().size());  // the plan knows the scales
    // From the same codes, with scales in float or in 8 bits: what quantizing here gives.
    constexpr Config once = any.with(Quant{.double_quant = false});
    const auto expect = [&](auto here) {
      for (const Proj proj : all_projections) {
        CHECK(stored.weights().dense_weight(stored.backend(), 1, proj) ==
              here.weights().dense_weight(here.backend(), 1, proj));
      }
    };
    twice ? expect(open_model<any, B>(dir, {}, B(1))) : expect(open_model<once, B>(dir, {}, B(1)));
  }
}

TEST_CASE("configs that hold weights in another way than they are stored") {
  const fs::path dir = write_model("stored");
  const fs::path out = scratch / "stored-nf4";
  (void)quantize_model(hf::ModelDir::open(dir), out, {.storage = {.double_quant = false}, .threads = 1});
  CHECK(refusal([&] {
          (void)open_model<mine, B>(out, {}, B(1));
        }).find("stored in NF4 without double quantization, and this config of a static shape says otherwise") !=
        std::string::npos);
  CHECK(refusal([&] {
          (void)open_model<mine.with(unquantized), B>(out, {}, B(1));
        }).find("is stored in 4 bits (quantization_config), and computing with weights as they are needs") !=
        std::string::npos);
  CHECK(refusal([&] {
          Model<mine.with(unquantized), B>(hf::ModelDir::open(out).source(), {}, B(1));
        }).starts_with("the model has no tensor model.layers.0.self_attn.q_proj.weight in 16 or 32 bits, only in 4"));
  CHECK(refusal([&] {
          Model<mine, B>(hf::ModelDir::open(out).source(), {}, B(1));
        }).starts_with("model.layers.0.self_attn.q_proj.weight is stored in NF4 with 1024 bytes of codes and 128"));
}
