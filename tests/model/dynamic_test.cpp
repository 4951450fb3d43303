// A dynamic config has the bits of the static config of the same shape: training, evaluation, generation and logits,
// for every small shape, tied and untied, and for subsets of targets; and what cannot run is refused by name.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <filesystem>

#include "qlora/cpu.hpp"
#include "qlora/generate/generator.hpp"
#include "qlora/generate/scorer.hpp"
#include "qlora/train/fits.hpp"
#include "support/golden_models.hpp"
#include "support/small_model.hpp"

using namespace qlora;

namespace {

using B = Cpu<float>;
constexpr Config any{.shape = dynamic_shape, .lora = dynamic_lora};

static_assert(!StaticConfig<any> && ValidConfig<any>);
static_assert(StaticConfig<golden::mha>);
static_assert(sizeof(Mat<float, 8>) == sizeof(float*) + 2 * sizeof(int), "a static width takes no room");

/// `config` without the numbers of its shape and its adapters.
constexpr Config made_dynamic(Config config) {
  config.shape = dynamic_shape;
  config.lora = dynamic_lora;
  return config;
}

struct Result {
  std::vector<double> numbers;
  std::vector<float> trained;
  std::vector<std::int32_t> ids;
  std::int64_t bytes = 0;
  friend bool operator==(const Result&, const Result&) = default;
};

/// Four steps, an evaluation, two continuations and their log-likelihoods.
template <Config C>
Result result_of(const TensorSource& source, TrainOptions options, int vocab) {
  const small_model::Data data(4, 48, vocab, 5, 20);
  options.seq = 48;
  options.lr = 5e-3F;
  options.total_steps = 4;
  options.loss_chunk = 50;
  Trainer<C, B> trainer(source, options, B(2));
  Result result;
  for (int step = 0; step < 4; ++step) {
    const StepReport report = trainer.step(data.all());
    result.numbers.insert(result.numbers.end(), {report.loss, report.grad_norm});
  }
  result.numbers.push_back(trainer.evaluate(data.all()).loss);
  const auto& weights = trainer.model().weights();
  result.trained.assign(weights.trained(), weights.trained() + weights.layout().total());
  const std::vector<std::vector<std::int32_t>> prompts{{1, 5, 9}, {2, 3, 4, 5, 6, 7}};
  Generator<C, B> generator(trainer.model(), {.sequences = 2, .length = 40, .step_tokens = 16});
  for (const Generated& made : generator.generate(prompts, {.max_new_tokens = 12, .sampling = {.temperature = 0.7F}})) {
    result.ids.insert(result.ids.end(), made.ids.begin(), made.ids.end());
  }
  Scorer<C, B> scorer(trainer.model(), {.sequences = 2, .length = 40, .step_tokens = 16});
  const std::vector<Continuations> questions{{{1, 2, 3}, {{4, 5}, {6}}}};
  const std::vector<std::vector<double>> scores = scorer.score(questions);
  result.numbers.insert(result.numbers.end(), scores[0].begin(), scores[0].end());
  result.bytes = trainer.core().arena_bytes_used();
  return result;
}

template <Config C>
void compare(const TensorSource& source, TrainOptions options = {}) {
  const Result expected = result_of<C>(source, options, C.shape.vocab);
  options.model.shape = C.shape;
  if (C.trainable == Trainable::adapters) {
    options.model.lora.rank = C.lora.rank;
    options.targets = C.lora.targets;
  }
  const Result actual = result_of<made_dynamic(C)>(source, options, C.shape.vocab);
  CHECK(actual == expected);
  CHECK(expected.numbers[0] > 0.1);
  CHECK_FALSE(expected.ids.empty());
}

template <Config C>
void compare_golden(const char* name) {
  CAPTURE(name);
  const golden::Model model(name);
  TrainOptions options{.rank = 5, .batch = 2};
  for (const Recompute policy : {Recompute::none, Recompute::cheap, Recompute::block}) {
    options.recompute = policy;
    compare<C>(model.directory.source(), options);
  }
}

template <Proj Targets>
constexpr Config with_targets{.shape = {200, 96, 2, 4, 2, 24, 160}, .lora = {.rank = 6, .targets = Targets}};

template <Proj Targets>
void compare_targets() {
  CAPTURE(static_cast<int>(Targets));
  constexpr Config config = with_targets<Targets>;
  compare<config>(small_model::weights(config.shape, 3), {.rank = 4, .batch = 3});
}

}  // namespace

TEST_CASE("golden models: a dynamic config has the bits of a static one") {
  compare_golden<golden::mha>("mha");
  compare_golden<golden::gqa>("gqa");
  compare_golden<golden::tied>("tied");
  compare_golden<golden::hd128>("hd128");
}

TEST_CASE("subsets of targets") {
  compare_targets<Proj::q | Proj::v>();
  compare_targets<Proj::o>();
  compare_targets<Proj::mlp>();
  compare_targets<Proj::k | Proj::up | Proj::down>();
  compare_targets<Proj::all>();
}

TEST_CASE("full training and unquantized weights, tied and untied") {
  constexpr Config untied = Config{.shape = {200, 96, 2, 4, 2, 24, 160}}.with(Trainable::all);
  constexpr Config tied = Config{.shape = {200, 96, 2, 4, 2, 24, 160, true}}.with(Trainable::all);
  constexpr Config plain = Config{.shape = {200, 96, 2, 4, 4, 24, 160}, .lora = {.rank = 4}}.with(unquantized);
  compare<untied>(small_model::weights(untied.shape, 3), {.batch = 2});
  compare<tied>(small_model::weights(tied.shape, 3), {.batch = 2});
  compare<plain>(small_model::weights(plain.shape, 3), {.batch = 2});
}

TEST_CASE("a config may fix some numbers and leave others") {
  constexpr Config whole{.shape = {200, 96, 2, 4, 2, 24, 160}, .lora = {.rank = 6, .targets = Proj::attention}};
  constexpr Config partly{.shape = {dynamic, 96, dynamic, dynamic, 2, 24, dynamic},
                          .lora = {.rank = 6, .targets = dynamic}};
  const TensorSource source = small_model::weights(whole.shape, 3);
  const Result expected = result_of<whole>(source, {.batch = 2}, whole.shape.vocab);
  TrainOptions options{.targets = Proj::attention, .batch = 2};
  options.model.shape = whole.shape;
  CHECK(result_of<partly>(source, options, whole.shape.vocab) == expected);
}

TEST_CASE("the rank cap of dynamic adapters is the highest rank that is asked for") {
  TrainOptions options{.rank = 5, .overrides = {{.layer = 1, .targets = Proj::q, .rank = 9, .alpha = 4.0F}}};
  CHECK(training_model<any, B>(options).lora.rank == 9);
  options.targets = Proj::q | Proj::down;
  CHECK(training_model<any, B>(options).lora.targets == (Proj::q | Proj::down));
  options.overrides[0].targets = Proj::up;  // gets no adapter
  CHECK(training_model<any, B>(options).lora.rank == 5);
  options.targets = Proj::none;
  CHECK(training_model<any, B>(options).lora.targets == Proj::all);
  CHECK(training_model<golden::mha, B>(options).lora.rank == 0);  // a static config has its own
}

TEST_CASE("targets of a training: those of the config unless others are named, which it must have") {
  constexpr Config some = with_targets<Proj::q | Proj::v>;
  constexpr Config open{.shape = some.shape, .lora = {.rank = 6, .targets = dynamic}};
  constexpr Config full = Config{.shape = some.shape}.with(Trainable::all);
  const auto lora = [](Config config, const ModelOptions& model) { return resolved(config, config.shape, model.lora); };
  CHECK(lora(some, training_model<some, B>({})).lora == some.lora);
  CHECK(lora(some, training_model<some, B>({.targets = Proj::v | Proj::q})).lora == some.lora);
  CHECK(lora(open, training_model<open, B>({.targets = Proj::o})).lora == Lora{.rank = 6, .targets = Proj::o});
  CHECK(lora(open, training_model<open, B>({})).lora == Lora{.rank = 6, .targets = Proj::all});
  TrainOptions options{.model = {.lora = {.rank = 0, .targets = Proj::k}}};
  CHECK(lora(open, training_model<open, B>(options)).lora == Lora{.rank = 6, .targets = Proj::k});
  options.targets = Proj::q;
  CHECK_THROWS_WITH_AS((void)(training_model<open, B>(options)),
                       "training adapts self_attn.q_proj, the model is to be opened for adapters of self_attn.k_proj",
                       Error);
  const TrainOptions fewer{.targets = Proj::q};  // a subset would train what was not asked for
  CHECK_THROWS_WITH_AS((void)(training_model<some, B>(fewer)),
                       doctest::Contains("adapters of self_attn.q_proj were asked for; this config trains those of "
                                         "self_attn.q_proj, self_attn.v_proj"),
                       Error);
  const TrainOptions more{.targets = Proj::q | Proj::v | Proj::down};
  const TensorSource source = small_model::weights(some.shape, 3);
  CHECK_THROWS_WITH_AS((Trainer<some, B>(source, more)), doctest::Contains("mlp.down_proj were asked for"), Error);
  CHECK_THROWS_WITH_AS((Trainer<full, B>(source, more)), doctest::Contains("this config trains every weight"), Error);
}

TEST_CASE("the plan of a dynamic config is that of its numbers") {
  const Config known = resolved(any, golden::gqa.shape, golden::gqa.lora);
  CHECK(known.shape == golden::gqa.shape);
  CHECK(known.lora == golden::gqa.lora);
  const Run run{.batch = 2, .seq = 64};
  CHECK(memory_plan(known, run, gpu_storage).bytes == memory_plan<golden::gqa>(run).bytes);
  const TrainOptions how{.batch = 2, .seq = 64};
  CHECK(training_bytes(known, how) == training_bytes<golden::gqa>(how));
  CHECK(training_bytes(known, how) == memory_plan(known, run, gpu_storage).total());
  CHECK(fits(known, gpu::l4_24gb, how));
  CHECK_FALSE(fits(known, {"small", 1'000'000}, how));
}

/// A backend, as far as its limits go: those of a GPU.
struct Picky {
  static constexpr int rank_step = 8;
  static constexpr ShapeLimits shape_limits{
      .width_step = 8, .head_dim_step = 16, .largest_head_dim = 256, .trained_head_dims = {32, 64, 128}};
};

TEST_CASE("numbers that a backend has no kernels for are refused when they are known") {
  const auto refusal = [](const Shape& shape, int rank, bool trains) -> std::string {
    try {
      expect_served<Picky>(resolved(any, shape, {.rank = rank}), trains);
    } catch (const Error& error) {
      CHECK(error.kind() == ErrorKind::input);
      return error.what();
    }
    return {};
  };
  const Shape good{200, 96, 2, 3, 1, 32, 160};
  const auto with = [&](int Shape::*number, int value) {
    Shape shape = good;
    shape.*number = value;
    return shape;
  };
  CHECK(refusal(good, 8, true).empty());
  CHECK(refusal(with(&Shape::dim, 100), 8, false) == "dim is 100; this backend needs a multiple of 8");
  CHECK(refusal(with(&Shape::ffn, 165), 8, false) == "ffn is 165; this backend needs a multiple of 8");
  CHECK(refusal(with(&Shape::head_dim, 40), 8, false) == "head_dim is 40; this backend needs a multiple of 16");
  CHECK(refusal(with(&Shape::head_dim, 272), 8, false) == "head_dim is 272; this backend has kernels up to 256");
  CHECK(refusal(good, 12, false) == "the rank cap of adapters is 12; this backend needs a multiple of 8");
  CHECK(refusal(with(&Shape::vocab, 201), 8, false).empty());  // a model that only answers has no gradient of logits
  CHECK(refusal(with(&Shape::vocab, 201), 8, true) == "vocab is 201; this backend needs a multiple of 8");
  CHECK(refusal(with(&Shape::head_dim, 48), 8, false).empty());
  CHECK(refusal(with(&Shape::head_dim, 48), 8, true) == "head_dim is 48; this backend trains with 32, 64 or 128");
  CHECK_NOTHROW(expect_served<B>({.shape = {201, 97, 2, 3, 1, 2, 33}, .lora = {.rank = 5}}, true));
}

TEST_CASE("what cannot run is refused by name") {
  const auto refusal = [](const Config& config, const Shape& shape, const Lora& lora) -> std::string {
    try {
      (void)resolved(config, shape, lora);
    } catch (const Error& error) {
      return error.what();
    }
    return {};
  };
  const auto says = [&](const std::string& text, const char* part) {
    CAPTURE(text);
    CHECK(text.find(part) != std::string::npos);
  };
  const Lora none{.rank = 0, .targets = Proj::none};
  const Shape good{200, 96, 2, 4, 2, 24, 160};
  CHECK(refusal(any, good, {.rank = 4}).empty());
  says(refusal(any, {}, {.rank = 4}), "the config's shape is dynamic and no shape was given");
  says(refusal(any, good, {.rank = 0}), "the config's rank is dynamic and no rank was given");
  says(refusal(any, good, {.rank = 97}), "LoRA rank 97 is outside 1 to 96");
  says(refusal(any, good, {.rank = 4, .targets = Proj::none}), "target");
  Shape bad = good;
  bad.kv_heads = 3;
  says(refusal(any, bad, {.rank = 4}), "key heads");
  bad = good;
  bad.head_dim = 23;
  says(refusal(any, bad, {.rank = 4}), "head_dim is even");
  bad = good;
  bad.ffn = 0;
  says(refusal(any, bad, {.rank = 4}), "positive");
  // What a static config holds is fixed.
  const Config some = with_targets<Proj::q | Proj::v>;
  CHECK(refusal(some, good, {.rank = 6, .targets = Proj::v}).empty());
  CHECK(refusal(some, good, none).empty());
  says(refusal(some, good, {.rank = 7, .targets = Proj::q}),
       "adapters of rank 7 were asked for; this config holds ranks up to 6");
  says(refusal(some, good, {.rank = 6, .targets = Proj::q | Proj::o}),
       "adapters of self_attn.q_proj, self_attn.o_proj were asked for; this config's targets are self_attn.q_proj, "
       "self_attn.v_proj");
  const Config full = some.with(Trainable::all);
  says(refusal(full, good, {.rank = 6, .targets = Proj::none}), "this config trains every weight and has none");
  says(refusal(full, good, {.rank = 0, .targets = Proj::q}), "this config trains every weight and has none");
  // Element counts alone do not tell 8 x 16 from 4 x 32 heads.
  Shape other = golden::gqa.shape;
  other.heads = 4;
  other.kv_heads = 1;
  other.head_dim = 32;
  says(refusal(golden::gqa, other, none), "the model has heads 4, this config has 8");
  other = golden::gqa.shape;
  other.tied_embeddings = true;
  says(refusal(golden::gqa, other, none), "embedding table");
}
