// Every hand-written backward pass against the complex step: f(x + ih) = f(x) + ih f'(x) without cancellation, so the
// double gradient must agree to rounding. First each operator alone, then whole networks.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <complex>
#include <random>

#include "qlora/cpu.hpp"
#include "qlora/model/model.hpp"
#include "support/small_model.hpp"

using namespace qlora;

static_assert(FullBackend<Cpu<float>> && FullBackend<Cpu<double>> && FullBackend<Cpu<std::complex<double>>>);

namespace {

using Real = cpu::Numbers<double>;
using Complex = cpu::Numbers<std::complex<double>>;
template <class N>
using Vector = std::vector<typename N::S>;
constexpr double h = 1e-30;

cpu::ThreadPool& pool() {
  static cpu::ThreadPool two(2);
  return two;
}
std::vector<double> random_numbers(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::vector<double> values(count);
  for (double& value : values) value = normal(random);
  return values;
}

/// forward: all inputs, one behind the other -> all outputs. backward: inputs and d/d(outputs) -> d/d(inputs).
/// The function under test is the sum of the outputs with random weights.
template <class Forward, class Backward>
void check_op(std::size_t inputs, std::size_t outputs, Forward&& forward, Backward&& backward) {
  const std::vector<double> x = random_numbers(inputs, 1);
  const std::vector<double> weight = random_numbers(outputs, 2);
  const std::vector<double> gradient = backward(x, weight);
  REQUIRE(gradient.size() == inputs);
  double norm = 0.0;
  for (const double value : gradient) norm += value * value;
  const double typical = std::sqrt(norm / static_cast<double>(inputs));
  CHECK(typical > 1e-3);
  Vector<Complex> moved(x.begin(), x.end());
  double worst = 0.0;
  for (std::size_t i = 0; i < inputs; ++i) {
    moved[i] = {x[i], h};
    const Vector<Complex> y = forward(Complex{}, moved);
    REQUIRE(y.size() == outputs);
    moved[i] = x[i];
    double derivative = 0.0;
    for (std::size_t j = 0; j < outputs; ++j) derivative += y[j].imag() / h * weight[j];
    const double error = std::abs(gradient[i] - derivative);
    if (!(error <= worst)) worst = error;
  }
  CHECK(worst < 1e-12 * typical);
}

}  // namespace

TEST_CASE("rmsnorm, its gradient added to what comes down the stream beside it") {
  constexpr int t = 5;
  constexpr int d = 19;
  constexpr int wide = d + 3;  // the normalised rows stand apart
  constexpr std::size_t n = t * d;
  // inputs x, w; outputs x, y
  check_op(
      n + d, 2 * n,
      []<class N>(N, const Vector<N>& in) {
        using S = typename N::S;
        Vector<N> out(in.begin(), in.begin() + n);
        Vector<N> y(t * wide), inverse(t);
        cpu::rmsnorm<N>(pool(), t, d, S(1e-2), {in.data(), d}, in.data() + n, {y.data(), wide}, inverse.data());
        for (int row = 0; row < t; ++row) out.insert(out.end(), y.begin() + row * wide, y.begin() + row * wide + d);
        return out;
      },
      [](const std::vector<double>& in, const std::vector<double>& gout) {
        std::vector<double> y(t * wide), gy(t * wide, 1e9), inverse(t), gradient(n + d, 0.0);
        cpu::rmsnorm<Real>(pool(), t, d, 1e-2, {in.data(), d}, in.data() + n, {y.data(), wide}, inverse.data());
        for (int row = 0; row < t; ++row) std::copy_n(gout.begin() + n + row * d, d, gy.begin() + row * wide);
        std::copy_n(gout.begin(), n, gradient.begin());
        cpu::rmsnorm_backward<Real>(pool(), t, d, {gy.data(), wide}, {in.data(), d}, inverse.data(), in.data() + n,
                                    true, {gradient.data(), d}, gradient.data() + n);
        return gradient;
      });
}

TEST_CASE("swiglu") {
  constexpr int t = 4;
  constexpr int f = 13;
  check_op(
      t * 2 * f, t * f,
      []<class N>(N, const Vector<N>& in) {
        Vector<N> out(t * f);
        cpu::swiglu<N>(pool(), t, f, in.data(), {out.data(), f});
        return out;
      },
      [](const std::vector<double>& in, const std::vector<double>& gout) {
        std::vector<double> gradient(t * 2 * f);
        cpu::swiglu_backward<Real>(pool(), t, f, {gout.data(), f}, in.data(), gradient.data());
        return gradient;
      });
}

TEST_CASE("rotary embedding") {
  constexpr int t = 6;
  constexpr AttentionShape heads{4, 2, 6};
  const std::vector<std::int32_t> positions{0, 1, 2, 0, 7, 3};
  const auto turn = [&]<class N>(N, Vector<N> qkv, int direction) {
    Vector<N> cosine(8 * 3), sine(8 * 3);
    const std::vector<float> frequencies = rope_frequencies(100.0, {}, 6);
    cpu::rope_table(8, std::span(frequencies), 1.0F, cosine.data(), sine.data());
    cpu::rope<N>(pool(), t, heads, cosine.data(), sine.data(), positions.data(), direction, qkv.data());
    return qkv;
  };
  const auto n = static_cast<std::size_t>(t * heads.width());
  check_op(
      n, n, [&]<class N>(N numbers, const Vector<N>& in) { return turn(numbers, in, 1); },
      [&](const std::vector<double>&, const std::vector<double>& gout) { return turn(Real{}, gout, -1); });
}

TEST_CASE("attention: shared key heads, document segments, more than one tile of queries") {
  constexpr AttentionShape heads{4, 2, 2};
  constexpr int t = 78;
  const std::vector<Segment> segments{{0, 70}, {70, 71}, {71, 78}};
  const std::int64_t scratch_size = cpu::attention_scratch(70);
  const auto n = static_cast<std::size_t>(t * heads.width());
  constexpr std::size_t out_size = t * 8;
  check_op(
      n, out_size,
      [&]<class N>(N, const Vector<N>& in) {
        Vector<N> out(out_size), lse(4 * t), scratch(static_cast<std::size_t>(2 * scratch_size));
        cpu::attention<N>(pool(), t, heads, segments, in.data(), {out.data(), 8}, lse.data(), scratch.data(),
                          scratch_size);
        return out;
      },
      [&](const std::vector<double>& in, const std::vector<double>& gout) {
        std::vector<double> out(out_size), lse(4 * t), scratch(static_cast<std::size_t>(2 * scratch_size));
        std::vector<double> gradient(n, 1e9);  // what was there before must not show
        cpu::attention<Real>(pool(), t, heads, segments, in.data(), {out.data(), 8}, lse.data(), scratch.data(),
                             scratch_size);
        cpu::attention_backward<Real>(pool(), t, heads, segments, {gout.data(), 8}, in.data(), {out.data(), 8},
                                      lse.data(), gradient.data(), scratch.data(), scratch_size);
        return gradient;
      });
}

TEST_CASE("a group of linear layers: three weights, two adapters, dropout") {
  constexpr int t = 9;
  constexpr int k = 11;
  constexpr int rank = 3;
  constexpr std::array<int, 3> rows{6, 4, 5};
  constexpr int width = 15;
  constexpr int wide = k + 2 * rank;
  // inputs: X, the three W, the two stacked A, B of the first and of the last part, the residual
  constexpr std::size_t w0 = t * k;
  constexpr std::size_t a0 = w0 + width * k;
  constexpr std::size_t b0 = a0 + 2 * rank * k;
  constexpr std::size_t residual = b0 + 11 * rank;
  constexpr std::size_t inputs = residual + t * width;
  for (const float p : {0.0F, 0.4F}) {
    const auto run = [&]<class N>(N, const Vector<N>& in, const Vector<N>* gout, Vector<N>& y, Vector<N>& gradient) {
      using S = typename N::S;
      const S* a = in.data() + a0;
      std::array<LinearPart<S>, 3> parts;
      std::size_t at = w0;
      for (std::size_t i = 0; i < 3; ++i) {
        parts[i].weight = {.rows = rows[i], .dense = in.data() + at, .stride = k};
        at += static_cast<std::size_t>(rows[i] * k);
      }
      parts[0] = {parts[0].weight, a, in.data() + b0, S(1.5)};
      parts[2] = {parts[2].weight, a + rank * k, in.data() + b0 + 6 * rank, S(-0.5)};
      Vector<N> input(t * k), x(t * wide), gx(t * wide);
      for (int row = 0; row < t; ++row) std::copy_n(in.begin() + row * k, k, x.begin() + row * wide);
      LinearGroup<S> group{.in = k, .rank = rank, .adapted = 2, .dropout = dropout_rate(p)};
      group.dropout.seed = 3;
      group.input_scratch = input.data();
      y.resize(t * width);
      const std::span<const LinearPart<S>> all(parts);
      cpu::linear_forward<N>(pool(), group, all, {}, t, {x.data(), wide}, in.data() + residual, y.data());
      if (gout == nullptr) return;
      gradient.assign(inputs, S(0));
      std::array<LinearGradient<S>, 3> slots;
      at = w0;
      for (std::size_t i = 0; i < 3; ++i) {
        slots[i].weight = gradient.data() + at;
        at += static_cast<std::size_t>(rows[i] * k);
      }
      slots[0].a = gradient.data() + a0;
      slots[0].b = gradient.data() + b0;
      slots[2].a = gradient.data() + a0 + rank * k;
      slots[2].b = gradient.data() + b0 + 6 * rank;
      cpu::linear_backward<N>(pool(), group, all, std::span<const LinearGradient<S>>(slots), t, gout->data(),
                              {x.data(), wide}, true, {gx.data(), wide});
      for (int row = 0; row < t; ++row) std::copy_n(gx.begin() + row * wide, k, gradient.begin() + row * k);
      std::copy(gout->begin(), gout->end(), gradient.begin() + residual);
    };
    check_op(
        inputs, t * width,
        [&]<class N>(N numbers, const Vector<N>& in) {
          Vector<N> y, unused;
          run(numbers, in, nullptr, y, unused);
          return y;
        },
        [&](const std::vector<double>& in, const std::vector<double>& gout) {
          std::vector<double> y, gradient;
          run(Real{}, in, &gout, y, gradient);
          return gradient;
        });
  }
}

TEST_CASE("cross-entropy over labelled rows, in chunks") {
  constexpr int t = 9;
  constexpr int d = 5;
  constexpr int v = 17;
  const std::vector<std::int32_t> targets{3, -1, 0, 16, -1, 5, 5, 2, -1};
  const auto run = [&]<class N>(N, const Vector<N>& in, typename N::S* gx, typename N::S* gw, typename N::S scale) {
    Vector<N> rows(4 * d), grads(4 * d), logits(4 * v), losses(t);
    const std::vector<std::int32_t> labelled{0, 2, 3, 5, 6, 7};
    const LossScratch<typename N::S> scratch{4, rows.data(), grads.data(), logits.data(), logits.data()};
    const TokenBatch batch{.tokens = t, .targets = targets.data(), .labelled = labelled.data(), .labelled_count = 6};
    cpu::cross_entropy<N>(pool(), d, v, batch, in.data(), in.data() + t * d, scale, scratch, losses.data(), gx, gw);
    typename N::S sum(0);
    for (const auto& loss : losses) sum += loss;
    for (std::size_t i = 0; i < t; ++i) CHECK((targets[i] >= 0 || losses[i] == typename N::S(0)));
    return Vector<N>{sum};
  };
  check_op(
      t * d + v * d, 1,
      [&]<class N>(N numbers, const Vector<N>& in) {
        return run(numbers, in, static_cast<typename N::S*>(nullptr), static_cast<typename N::S*>(nullptr), 0.0);
      },
      [&](const std::vector<double>& in, const std::vector<double>& gout) {
        std::vector<double> gradient(t * d + v * d, 0.0);
        run(Real{}, in, gradient.data(), gradient.data() + t * d, gout[0]);
        return gradient;
      });
}

TEST_CASE("embedding rows") {
  constexpr int d = 70;
  const std::vector<std::int32_t> ids{2, 0, 2, 2, 3};
  check_op(
      4 * d, 5 * d,
      [&]<class N>(N, const Vector<N>& in) {
        Vector<N> out(5 * d);
        cpu::embed<N>(pool(), 5, d, ids.data(), in.data(), {out.data(), d});
        return out;
      },
      [&](const std::vector<double>&, const std::vector<double>& gout) {
        std::vector<double> gradient(4 * d, 0.0);
        cpu::embed_backward<Real>(pool(), 5, d, ids.data(), gout.data(), gradient.data());
        return gradient;
      });
}

namespace {

/// Adapters of every target, or all weights: samples of each tensor of every layer, in a net with document segments,
/// ignored labels, a loss in several chunks, and dropout where there are adapters. With DoRA lengths of rows have no
/// imaginary part, since the backward pass takes them for constants.
template <Config C>
void check_network(int rank, Recompute recompute, bool dora = false, float rate = 0.2F) {
  using R = Cpu<double>;
  using Z = Cpu<std::complex<double>>;
  constexpr bool full = C.trainable == Trainable::all;
  Model<C, R> real(small_model::weights(C.shape, 5), {.dora = dora}, R(2));
  Model<C, Z> complex(small_model::weights(C.shape, 5), {.dora = dora}, Z(2));
  if constexpr (!full) {
    small_model::load_random_adapters(real.weights(), real.backend(), C.shape, rank, 8.0F, 9);
    small_model::load_random_adapters(complex.weights(), complex.backend(), C.shape, rank, 8.0F, 9);
  }
  const small_model::Data data(2, 38, C.shape.vocab, 4, 12);
  BatchBuilder builder(data.ids.size());
  const TokenBatch tokens = builder.build(data.all());
  DropoutSite site = full ? DropoutSite{} : dropout_rate(rate);
  site.seed = 77;
  site.step = 3;
  const Run run{.batch = 2, .seq = 38, .recompute = recompute, .loss_chunk = 13, .dora = dora};
  Network<code_of(C), R> real_pass(real.context(), run);
  Network<code_of(C), Z> complex_pass(complex.context(), run);
  const auto measure = [](auto& model, auto& pass) {
    model.weights().own().rows_changed();
    model.weights().measure_rows(model.backend(), pass.scratch());
  };
  measure(real, real_pass);
  measure(complex, complex_pass);
  real.weights().for_each_trained([&](const std::string& name, std::int64_t, std::int64_t cols, std::int64_t offset) {
    if (!name.ends_with("lora_magnitude_vector")) return;
    for (std::int64_t i = offset; i < offset + cols; ++i) {  // as if trained, so that factors are not 1
      real.weights().trained()[i] *= 1.0 + 0.3 * std::sin(static_cast<double>(i));
      complex.weights().trained()[i] = real.weights().trained()[i];
    }
  });
  measure(real, real_pass);
  measure(complex, complex_pass);

  const TrainedLayout& layout = real.weights().layout();
  const double scale = 1.0 / static_cast<double>(tokens.labelled_count);
  std::vector<double> gradient(static_cast<std::size_t>(layout.total()), 0.0);
  real_pass.forward(tokens, site);
  real_pass.backward(scale, gradient.data());

  std::mt19937 random(8);
  std::int64_t seen = 0;
  real.weights().for_each_trained(
      [&](const std::string& name, std::int64_t rows, std::int64_t cols, std::int64_t offset) {
        CAPTURE(name);
        const std::int64_t count = rows * cols;
        seen += count;
        double norm = 0.0;
        for (std::int64_t i = 0; i < count; ++i) {
          const double g = gradient[static_cast<std::size_t>(offset + i)];
          norm += g * g;
        }
        const double typical = std::sqrt(norm / static_cast<double>(count));
        CHECK(typical > 1e-6);
        for (int sample = 0; sample < 4; ++sample) {
          const std::int64_t at = offset + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(count));
          std::complex<double>& parameter = complex.weights().trained()[at];
          const std::complex<double> before = parameter;
          parameter += std::complex<double>(0.0, h);
          measure(complex, complex_pass);
          complex_pass.forward(tokens, site);
          const std::complex<double>* losses = complex_pass.losses();
          parameter = before;
          std::complex<double> sum = 0.0;
          for (std::size_t t = 0; t < data.ids.size(); ++t) sum += losses[t];
          const double error = std::abs(gradient[static_cast<std::size_t>(at)] - sum.imag() / h * scale);
          CHECK(error < 1e-10 * typical);
        }
      });
  CHECK(seen == layout.total());
}

//                                     vocab dim layers heads kv head ffn tied
constexpr Config untied{.shape = /* */ {37, 23, 2, 4, 2, 6, 29, false}, .lora = {.rank = 5}};
constexpr Config tied{.shape = /*   */ {41, 18, 2, 3, 1, 4, 25, true},
                      .lora = {.rank = 4, .targets = Proj::q | Proj::v | Proj::up | Proj::down},
                      .quant = unquantized};

}  // namespace

TEST_CASE("network: adapters of rank 3 under a cap of 5 on all projections, NF4") {
  check_network<untied>(3, Recompute::none);
}
TEST_CASE("network: adapters on some projections, tied, unquantized, recomputed blocks") {
  check_network<tied>(4, Recompute::block);
}
TEST_CASE("network: adapters with DoRA on all projections, NF4, recomputed blocks") {
  check_network<untied>(3, Recompute::block, true);
}
TEST_CASE("network: adapters with DoRA on some projections, without dropout") {
  check_network<tied>(4, Recompute::cheap, true, 0.0F);
}
TEST_CASE("network: all weights, untied") { check_network<untied.with(Trainable::all)>(0, Recompute::cheap); }
TEST_CASE("network: all weights, tied") { check_network<tied.with(Trainable::all)>(0, Recompute::none); }
