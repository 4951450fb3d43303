// bench/step_bench.cpp — the share of a training step that Eigen's products take, at the rate of Eigen alone.
//   products_alone   every product of a step as a plain Eigen expression on one thread, without tiles or adapter code
//   step             the step itself, one thread
//   share            both in turn; the counter percent_products = time of the products alone / time of the step
// The model is tiny-chat with adapters of rank 64 on every linear layer, dense NF4 weights and dropout. Attention's
// products are not in the list, so the share is a lower bound.
#include <benchmark/benchmark.h>

#include <chrono>
#include <vector>

#include "qlora/configs/tiny.hpp"
#include "qlora/llama2.hpp"

namespace {

using namespace qlora;

constexpr Config model = tiny.with(Lora{.rank = 64});
constexpr int seq = 384;
constexpr int batch = 4;
constexpr int tokens = seq * batch;

enum class Kind { nt, nn, tn };
struct Product {
  Kind kind;
  int m, n, k;
  [[nodiscard]] double flop() const { return 2.0 * m * n * k; }
};

/// Every product of one step, in order.
std::vector<Product> products_of_step() {
  std::vector<Product> list;
  const Shape& s = model.shape;
  const int rank = model.lora.rank;
  for (int layer = 0; layer < s.layers; ++layer) {
    for (const Group g : all_groups) {
      const int in = group_in(s, g);
      const int xa = adapter_width(model.lora, g);
      const bool lowest = layer == 0 && g == Group::qkv;  // nothing below it is trained
      list.push_back({Kind::nt, tokens, xa, in});
      for (int i = 0; i < part_count(g); ++i) {
        const int rows = rows_of(s, part(g, i));
        list.push_back({Kind::nt, tokens, rows, in});
        list.push_back({Kind::nt, tokens, rows, rank});
        list.push_back({Kind::nn, tokens, rank, rows});
        list.push_back({Kind::tn, rows, rank, tokens});
        if (!lowest) list.push_back({Kind::nn, tokens, in, rows});
      }
      list.push_back({Kind::tn, xa, in, tokens});
      if (!lowest) list.push_back({Kind::nn, tokens, in, xa});
    }
  }
  constexpr int chunk = TrainOptions{}.loss_chunk;
  for (int row = 0; row < tokens; row += chunk) {
    list.push_back({Kind::nt, chunk, s.vocab, s.dim});
    list.push_back({Kind::nn, chunk, s.dim, s.vocab});
  }
  return list;
}

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

class ProductsAlone {
 public:
  ProductsAlone() : list_(products_of_step()), memory_(1 << 23, 0.01F), out_(1 << 23) {}
  void run() {
    for (const Product& p : list_) {
      Eigen::Map<Matrix> c(out_.data(), p.m, p.n);
      const float* a = memory_.data();
      const float* b = memory_.data() + (1 << 22);
      using In = Eigen::Map<const Matrix>;
      switch (p.kind) {
        case Kind::nt:
          c.noalias() = In(a, p.m, p.k) * In(b, p.n, p.k).transpose();
          break;
        case Kind::nn:
          c.noalias() = In(a, p.m, p.k) * In(b, p.k, p.n);
          break;
        case Kind::tn:
          c.noalias() = In(a, p.k, p.m).transpose() * In(b, p.k, p.n);
          break;
      }
      benchmark::DoNotOptimize(out_.data());
    }
  }
  [[nodiscard]] double flop() const {
    double sum = 0;
    for (const Product& p : list_) sum += p.flop();
    return sum;
  }

 private:
  std::vector<Product> list_;
  std::vector<float> memory_, out_;
};

class Step {
 public:
  explicit Step(int threads)
      : trainer_(random_weights(model.shape, 1),
                 {.lr = 1e-3F,
                  .schedule = Schedule::constant,
                  .batch = batch,
                  .seq = seq,
                  .model = {.keep_dequantized = true}},
                 Cpu<>(threads)) {
    for (int i = 0; i < tokens; ++i) {
      ids_.push_back(static_cast<std::int32_t>((i * 7919 + i / 5) % model.shape.vocab));
      documents_.push_back(i / 96);
    }
  }
  void run() { benchmark::DoNotOptimize(trainer_.step({seq, ids_, ids_, documents_}).loss); }

 private:
  Trainer<model, Cpu<>> trainer_;
  std::vector<std::int32_t> ids_, documents_;
};

double seconds(auto&& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void products_alone(benchmark::State& state) {
  ProductsAlone products;
  for (auto _ : state) products.run();
  state.counters["GFLOP/s"] = benchmark::Counter(products.flop() * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
}

void step(benchmark::State& state) {
  Step training(static_cast<int>(state.range(0)));
  training.run();
  for (auto _ : state) training.run();
  state.counters["GFLOP/s"] =
      benchmark::Counter(ProductsAlone().flop() * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["tok/s"] = benchmark::Counter(tokens, benchmark::Counter::kIsIterationInvariantRate);
}

void share(benchmark::State& state) {
  ProductsAlone products;
  Step training(1);
  training.run();
  double alone = 0;
  double whole = 0;
  for (auto _ : state) {
    alone += seconds([&] { products.run(); });
    whole += seconds([&] { training.run(); });
  }
  state.counters["percent_products"] = 100 * alone / whole;
}

BENCHMARK(products_alone)->Unit(benchmark::kMillisecond);
BENCHMARK(step)->Arg(1)->Arg(2)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(share)->Unit(benchmark::kMillisecond)->Iterations(10);

}  // namespace

BENCHMARK_MAIN();
