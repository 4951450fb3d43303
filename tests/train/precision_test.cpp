// The same quantity computed in two ways: a step in micro-batches and at once, documents packed and alone, a rank under
// a higher cap and compiled in exactly, float and double. Equal to rounding, in the scalar at hand.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <limits>
#include <stdexcept>

#include "qlora/cpu.hpp"
#include "qlora/train/trainer.hpp"
#include "support/small_model.hpp"

using namespace qlora;

namespace {

//                                      vocab dim layers heads kv head ffn
constexpr Config capped{.shape = /*  */ {61, 36, 2, 6, 2, 6, 50}, .lora = {.rank = 8}};
constexpr Config exact = capped.with(Lora{.rank = 5});
constexpr int vocab = capped.shape.vocab;

template <class S>
constexpr double rounding = std::is_same_v<S, float> ? 1e-5 : 1e-12;

const small_model::Data& data() {
  static const small_model::Data windows(6, 40, vocab, 1, 12);
  return windows;
}
TrainOptions options(int batch) {
  return {.rank = 5, .dropout = 0.2F, .lr = 2e-3F, .total_steps = 10, .batch = batch, .seq = 40, .loss_chunk = 33};
}
/// With random adapters of rank 5, or of what `how.overrides` ask for.
template <Config C, class S>
std::unique_ptr<Trainer<C, Cpu<S>>> make(const TrainOptions& how) {
  auto trainer = std::make_unique<Trainer<C, Cpu<S>>>(small_model::weights(C.shape, 3), how, Cpu<S>(2));
  small_model::load_random_adapters(trainer->model().weights(), trainer->model().backend(), C.shape, 5, how.alpha, 4);
  return trainer;
}
template <class Values>
double relative(const Values& a, const Values& b) {
  REQUIRE(a.size() == b.size());
  double difference = 0.0;
  double norm = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double x = static_cast<double>(a[i]);
    const double y = static_cast<double>(b[i]);
    difference += (x - y) * (x - y);
    norm += y * y;
  }
  REQUIRE(norm > 0.0);
  return std::sqrt(difference / norm);
}
template <class AnyTrainer>
std::vector<double> gradients(AnyTrainer& trainer) {
  const auto* values = trainer.core().gradients();
  return {values, values + trainer.model().weights().layout().total()};
}

template <class S>
void check_accumulation() {
  auto whole = make<capped, S>(options(6));
  const double loss = whole->step(data().all()).loss;
  const std::vector<double> expected = gradients(*whole);
  for (const int batch : {1, 2, 4}) {  // the last micro-batch of four is smaller; labelled tokens differ in number
    CAPTURE(batch);
    auto split = make<capped, S>(options(batch));
    CHECK(split->step(data().all()).loss == doctest::Approx(loss).epsilon(rounding<S>));
    CHECK(relative(gradients(*split), expected) < rounding<S>);
  }
  TrainOptions other = options(6);
  other.seed += 1;  // the masks do matter
  auto other_masks = make<capped, S>(other);
  other_masks->step(data().all());
  CHECK(relative(gradients(*other_masks), expected) > 1e-2);
}

template <class S>
void check_packing() {
  auto trainer = make<capped, S>(options(6));
  auto& pass = trainer->core().network();
  const auto logits = [&](const Windows& windows) {
    BatchBuilder builder(windows.ids.size());
    pass.forward(builder.build(windows));
    std::vector<S> values(windows.ids.size() * vocab);
    pass.logits(values.data());
    return values;
  };
  const std::vector<S> packed = logits(data().all());
  BatchBuilder builder(data().ids.size());
  const TokenBatch batch = builder.build(data().all());
  CHECK(batch.segments.size() > 12);
  std::vector<S> alone;
  for (const Segment& piece : batch.segments) {
    const auto first = static_cast<std::size_t>(piece.first);
    const auto count = static_cast<std::size_t>(piece.last - piece.first);
    const auto ids = std::span<const std::int32_t>(data().ids).subspan(first, count);
    const std::vector<S> here = logits({static_cast<int>(count), ids, ids, {}});
    alone.insert(alone.end(), here.begin(), here.end());
  }
  CHECK(relative(packed, alone) < rounding<S>);
  double worst = 0.0;
  for (std::size_t i = 0; i < alone.size(); ++i) {
    worst = std::max(worst, std::abs(static_cast<double>(packed[i]) - static_cast<double>(alone[i])));
  }
  CHECK(worst < 10.0 * rounding<S>);
  Windows unbounded = data().all();  // without document numbers they would see each other
  unbounded.documents = {};
  CHECK(relative(logits(unbounded), alone) > 1e-2);
}

}  // namespace

TEST_CASE("accumulated gradients are those of one large batch, dropout on") {
  check_accumulation<double>();
  check_accumulation<float>();
}

TEST_CASE("packed documents give the logits of each document alone") {
  check_packing<double>();
  check_packing<float>();
}

TEST_CASE("a rank below the cap trains as if it were compiled in, and its padding stays zero") {
  TrainOptions how = options(6);
  how.overrides.push_back({.layer = 1, .targets = Proj::q | Proj::down, .rank = 3, .alpha = 4.0F});
  Trainer<capped, Cpu<double>> padded(small_model::weights(capped.shape, 3), how, Cpu<double>(2));
  Trainer<exact, Cpu<double>> full(small_model::weights(exact.shape, 3), how, Cpu<double>(2));
  for (int step = 0; step < 6; ++step) {
    CHECK(padded.step(data().all()).loss == doctest::Approx(full.step(data().all()).loss).epsilon(1e-10));
  }
  const auto& weights = padded.model().weights();
  weights.for_each_target([&](int layer, Proj proj) {
    CAPTURE(layer);
    CAPTURE(name_of(proj));
    const int rank = weights.adapter(layer, proj).rank;
    CHECK(rank == (layer == 1 && (proj == Proj::q || proj == Proj::down) ? 3 : 5));
    std::vector<float> a, b, exact_a, exact_b;
    weights.save_adapter(padded.model().backend(), layer, proj, a, b);
    full.model().weights().save_adapter(full.model().backend(), layer, proj, exact_a, exact_b);
    CHECK(relative(a, exact_a) < 1e-7);  // as far as the saved floats can tell
    CHECK(relative(b, exact_b) < 1e-7);
    const double* matrix = weights.trained() + weights.layout().a(layer, proj);
    const int in = cols_of(capped.shape, proj);
    bool zero = std::all_of(matrix + rank * in, matrix + 8 * in, [](double value) { return value == 0.0; });
    matrix = weights.trained() + weights.layout().b(layer, proj);
    for (int row = 0; row < rows_of(capped.shape, proj); ++row) {
      zero &= std::all_of(matrix + row * 8 + rank, matrix + row * 8 + 8, [](double value) { return value == 0.0; });
    }
    CHECK(zero);
  });
  how.rank = 9;
  CHECK_THROWS_AS((Trainer<capped, Cpu<double>>(small_model::weights(capped.shape, 3), how, Cpu<double>(1))), Error);
}

TEST_CASE("float stays near double") {
  auto single = make<capped, float>(options(6));
  auto wide = make<capped, double>(options(6));
  for (int step = 0; step < 6; ++step) {
    CAPTURE(step);
    const StepReport a = single->step(data().all());
    const StepReport b = wide->step(data().all());
    CHECK(a.loss == doctest::Approx(b.loss).epsilon(1e-6));
    CHECK(a.grad_norm == doctest::Approx(b.grad_norm).epsilon(1e-5));
    CHECK(relative(gradients(*single), gradients(*wide)) < 1e-5);
  }
}

TEST_CASE("settings that cannot be meant") {
  const auto refuses = [](auto&& change) {
    TrainOptions how = options(2);
    change(how);
    CHECK_THROWS_AS((Trainer<capped, Cpu<float>>(small_model::weights(capped.shape, 3), how, Cpu<float>(1))), Error);
  };
  // Refused by name and before a tensor is read.
  const auto refuses_option = [](const std::string& name, auto&& change) {
    TrainOptions how = options(2);
    change(how);
    CAPTURE(name);
    const TensorSource unread = [](std::string_view) -> std::optional<TensorRef> { throw std::logic_error("read"); };
    try {
      Trainer<capped, Cpu<float>>(unread, how, Cpu<float>(1));
      FAIL_CHECK("not refused");
    } catch (const Error& error) {
      CHECK(error.kind() == ErrorKind::usage);
      CHECK(std::string(error.what()).starts_with(name + " is "));
    }
  };
  const auto refuses_number = [&](const std::string& name, float TrainOptions::*member, std::vector<float> values) {
    values.insert(values.end(), {std::nanf(""), std::numeric_limits<float>::infinity(), -0.1F});
    for (const float value : values) refuses_option(name, [&](TrainOptions& how) { how.*member = value; });
  };
  refuses_option("batch", [](TrainOptions& how) { how.batch = 0; });
  refuses_option("batch", [](TrainOptions& how) { how.batch = -1; });
  refuses_option("batch x seq", [](TrainOptions& how) { how.batch = how.seq = 1 << 20; });
  refuses_option("seq", [](TrainOptions& how) { how.seq = 0; });
  refuses_option("loss_chunk", [](TrainOptions& how) { how.loss_chunk = 0; });
  refuses_option("loss_chunk", [](TrainOptions& how) { how.loss_chunk = (1 << 24) + 1; });
  refuses_option("warmup_steps", [](TrainOptions& how) { how.warmup_steps = -1; });
  refuses_option("total_steps", [](TrainOptions& how) { how.total_steps = -1; });
  refuses_option("rank", [](TrainOptions& how) { how.rank = -1; });
  refuses_option("rank of an override", [](TrainOptions& how) { how.overrides = {{.rank = -2}}; });
  refuses_option("alpha of an override", [](TrainOptions& how) { how.overrides = {{.rank = 2, .alpha = -1.0F}}; });
  refuses_number("alpha", &TrainOptions::alpha, {0.0F});
  refuses_number("dropout", &TrainOptions::dropout, {1.0F});
  refuses_number("lr", &TrainOptions::lr, {});
  refuses_number("beta1", &TrainOptions::beta1, {1.0F});
  refuses_number("beta2", &TrainOptions::beta2, {1.0F});
  refuses_number("eps", &TrainOptions::eps, {0.0F});
  refuses_number("weight_decay", &TrainOptions::weight_decay, {});
  refuses_number("max_grad_norm", &TrainOptions::max_grad_norm, {});
  refuses([](TrainOptions& how) { how.overrides = {{.layer = 2, .rank = 2}}; });  // layers 0 and 1
  refuses([](TrainOptions& how) { how.overrides = {{.layer = -2, .rank = 2}}; });
  refuses([](TrainOptions& how) { how.overrides = {{.targets = Proj::none, .rank = 2}}; });
  constexpr Config some = capped.with(Lora{.rank = 8, .targets = Proj::q | Proj::v});
  TrainOptions how = options(2);
  how.overrides = {{.targets = Proj::up | Proj::down, .rank = 2}};
  CHECK_THROWS_WITH_AS((Trainer<some, Cpu<float>>(small_model::weights(some.shape, 3), how, Cpu<float>(1))),
                       "an override for adapters of mlp.up_proj, mlp.down_proj; this model has those of "
                       "self_attn.q_proj, self_attn.v_proj",
                       Error);
  constexpr Config all = capped.with(Trainable::all);
  CHECK_THROWS_WITH_AS((Trainer<all, Cpu<float>>(small_model::weights(all.shape, 3), how, Cpu<float>(1))),
                       doctest::Contains("overrides are for adapters"), Error);
}
