// bench/ops_measure.hpp — buffers of random numbers, the time of a launcher, and the ceilings of its rate.
// Plain C++ over qlora/cuda/launch.hpp: time is the host's clock around a batch of launches with one wait at its end.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "qlora/cuda/launch.hpp"
#include "qlora/error.hpp"

// The driver's device-to-device copy, which no launcher makes. Declared here, since only kernels include CUDA's
// headers; qlora::cuda links the runtime.
extern "C" int cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, int kind, void* stream);
extern "C" int cudaDeviceSynchronize();

namespace qlora::bench {

inline constexpr int batches = 20;
inline constexpr std::int64_t arena_size = std::int64_t{6} << 30;
/// Bytes that copies of an op cover; the L2 cache of an H200 has 60 MB.
inline constexpr std::int64_t rotation = std::int64_t{256} << 20;
/// Bytes of the copy that is a ceiling.
inline constexpr std::int64_t copied = std::int64_t{1} << 30;

// --- the device, and memory full of random numbers -------------------------------------------------------------------

inline void wait_for_device() {
  const int status = cudaDeviceSynchronize();
  QLORA_EXPECTS(status == 0, "waiting for the device: error ", status);
}
inline void copy_on_device(void* to, const void* from, std::int64_t bytes) {
  const int status = cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), 3 /* device to device */, nullptr);
  QLORA_EXPECTS(status == 0, "copying on the device: error ", status);
}

/// A context, and buffers that are allocated in order and freed all at once.
class Gpu {
 public:
  Gpu() {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0.0F, 1.0F);
    std::uniform_real_distribution<float> uniform(0.01F, 1.0F);
    normals_ = master<bf16>([&] { return bf16(normal(random)); });
    float_normals_ = master<float>([&] { return normal(random); });
    positives_ = master<float>([&] { return uniform(random); });
    bytes_ = master<std::uint8_t>([&] { return static_cast<std::uint8_t>(random()); });
    base_ = used_;
  }
  ~Gpu() { cuda::release(*context, arena_, arena_size); }
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;

  /// N(0,1)
  [[nodiscard]] bf16* normals(std::int64_t count) { return filled<bf16>(count, normals_); }
  [[nodiscard]] float* float_normals(std::int64_t count) { return filled<float>(count, float_normals_); }
  /// (0,1]
  [[nodiscard]] float* positives(std::int64_t count) { return filled<float>(count, positives_); }
  [[nodiscard]] std::uint8_t* bytes(std::int64_t count) { return filled<std::uint8_t>(count, bytes_); }
  template <class T>
  [[nodiscard]] T* uploaded(const std::vector<T>& from) {
    T* to = take<T>(static_cast<std::int64_t>(from.size()));
    cuda::upload(*context, from.data(), static_cast<std::int64_t>(from.size() * sizeof(T)), to);
    return to;
  }
  void give_back() { used_ = base_; }
  [[nodiscard]] std::int64_t taken() const { return used_ - base_; }

 private:
  struct Destroy {
    void operator()(cuda::Context* context) const { cuda::destroy_context(context); }
  };
  using Handle = std::unique_ptr<cuda::Context, Destroy>;
  static constexpr std::int64_t master_size = 60'000'000 / 256 * 256;  // no power of 2: rows of a matrix differ

  template <class T>
  [[nodiscard]] T* take(std::int64_t count) {
    const std::int64_t bytes = (count * static_cast<std::int64_t>(sizeof(T)) + 255) / 256 * 256;
    QLORA_EXPECTS(used_ + bytes <= arena_size, "the benchmark's memory has no room for ", bytes, " bytes");
    T* out = reinterpret_cast<T*>(arena_ + used_);
    used_ += bytes;
    return out;
  }
  template <class T, class Draw>
  [[nodiscard]] const T* master(const Draw& draw) {
    std::vector<T> some(1 << 16);
    for (T& value : some) value = draw();
    std::vector<T> all(master_size / sizeof(T));
    std::uint64_t state = 1;
    for (T& value : all) {
      state = state * 6364136223846793005ULL + 1442695040888963407ULL;  // Knuth's MMIX
      value = some[state >> 48];
    }
    return uploaded(all);
  }
  template <class T>
  [[nodiscard]] T* filled(std::int64_t count, const T* from) {
    T* out = take<T>(count);
    const std::int64_t size = master_size / static_cast<std::int64_t>(sizeof(T));
    start_ = (start_ + 7919 * 256) % (master_size / 2);  // no two buffers alike
    std::int64_t skipped = start_ / static_cast<std::int64_t>(sizeof(T));
    for (std::int64_t done = 0; done < count; skipped = 0) {
      const std::int64_t now = std::min(count - done, size - skipped);
      copy_on_device(out + done, from + skipped, now * static_cast<std::int64_t>(sizeof(T)));
      done += now;
    }
    wait_for_device();
    return out;
  }

  Handle own_{cuda::create_context({})};
  Handle own_fast_{cuda::create_context({.fast = true})};

 public:
  cuda::Context* const context = own_.get();
  cuda::Context* const fast = own_fast_.get();  ///< allows kernels whose sums depend on timing

 private:
  std::byte* const arena_ = cuda::allocate(*context, arena_size);
  std::int64_t used_ = 0, base_ = 0, start_ = 0;
  const bf16* normals_ = nullptr;
  const float* float_normals_ = nullptr;
  const float* positives_ = nullptr;
  const std::uint8_t* bytes_ = nullptr;
};

inline std::unique_ptr<Gpu> device;  ///< made by the first benchmark that runs
inline Gpu& gpu() {
  if (device == nullptr) device = std::make_unique<Gpu>();
  return *device;
}

// --- measuring -------------------------------------------------------------------------------------------------------

using Launch = std::function<void(cuda::Context&)>;
struct Op {
  std::string name;
  double bytes = 0.0;
  double flop = 0.0;
  std::function<Launch(Gpu&)> make;  ///< buffers and arguments of one copy
  bool fast = false;                 ///< runs in the context that allows nondeterministic kernels
};
struct Timing {
  double median = 0.0;  ///< seconds of one launch
  double spread = 0.0;  ///< (9th decile - 1st) / median
};

/// A batch takes at least `batch_s`, after `heat_s` of the same work, since the GPU clock falls under load.
inline Timing measure(const Op& op, double batch_s, double heat_s) {
  Gpu& g = gpu();
  wait_for_device();  // an op that threw may have left work running
  g.give_back();
  cuda::Context& context = op.fast ? *g.fast : *g.context;
  std::vector<Launch> copies;
  do {
    copies.push_back(op.make(g));
  } while (g.taken() < rotation && copies.size() < 64);
  std::size_t next = 0;
  const auto run = [&](int launches) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < launches; ++i, next = (next + 1) % copies.size()) copies[next](context);
    wait_for_device();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  run(static_cast<int>(copies.size()));  // algorithms and plans are chosen here
  int launches = 1;
  double took = run(1);
  while (took < batch_s) {
    launches = static_cast<int>(std::ceil(launches * std::clamp(1.1 * batch_s / took, 1.2, 10.0)));
    took = run(launches);
  }
  for (double heated = 0.0; heated < heat_s;) heated += run(launches);
  std::vector<double> each;
  for (int i = 0; i < batches; ++i) each.push_back(run(launches) / launches);
  std::sort(each.begin(), each.end());
  const double median = (each[batches / 2 - 1] + each[batches / 2]) / 2;
  return {median, (each[batches * 9 / 10 - 1] - each[batches / 10]) / median};
}

inline Op copy_by_driver() {
  return {"ceiling/copy/driver", 2.0 * copied, 0.0, [](Gpu& g) -> Launch {
            std::byte* const from = reinterpret_cast<std::byte*>(g.normals(copied / 2));
            std::byte* const to = reinterpret_cast<std::byte*>(g.normals(copied / 2));
            return [=](cuda::Context&) { copy_on_device(to, from, copied); };
          }};
}
inline Op copy_by_embed() {
  constexpr int dim = 8192;
  constexpr int rows = static_cast<int>(copied / 2 / dim);
  return {"ceiling/copy/embed", 2.0 * copied, 0.0, [](Gpu& g) -> Launch {
            std::vector<std::int32_t> ids(rows);
            for (int i = 0; i < rows; ++i) ids[static_cast<std::size_t>(i)] = i;
            const std::int32_t* const index = g.uploaded(ids);
            const bf16* const from = g.normals(copied / 2);
            bf16* const to = g.normals(copied / 2);
            return [=](cuda::Context& context) { cuda::embed(context, rows, dim, index, from, {to, dim}); };
          }};
}
/// C = op(A) op(B), all dense; `adds`: C is float and added to.
inline Op product(std::string name, cuda::Product kind, int m, int n, int k, bool adds = false, int batch = 1) {
  const double moved = batch * (2.0 * k * (double{1} * m + n) + (adds ? 8.0 : 2.0) * m * n);
  return {std::move(name), moved, 2.0 * batch * m * n * k, [=](Gpu& g) -> Launch {
            const bool nt = kind == cuda::Product::nt;
            const bool tn = kind == cuda::Product::tn;
            // Parts of a group stand side by side: one row holds `batch` pieces, but C's lie one behind the other.
            const int a_stride = (tn ? m : k) * batch;
            const int b_stride = (nt ? k : n) * batch;
            cuda::Matmul p{.product = kind, .m = m, .n = n, .k = k, .c_stride = n, .c_float = adds, .batch = batch};
            p.a = {g.normals(std::int64_t{a_stride} * (tn ? k : m)), a_stride};
            p.b = {g.normals(std::int64_t{b_stride} * (nt ? n : k)), b_stride};
            const std::int64_t size = std::int64_t{m} * n;
            p.c = adds ? static_cast<void*>(g.float_normals(size * batch)) : g.normals(size * batch);
            if (adds) p.source = p.c;
            if (batch > 1) {
              p.a_step = a_stride / batch;
              p.b_step = b_stride / batch;
              p.c_step = size;
            }
            return [=](cuda::Context& context) { cuda::matmul(context, p); };
          }};
}

struct Ceilings {
  Timing driver, embed, product;
  double bytes_per_s = 0.0;
  double flop_per_s = 0.0;
};
inline const Op& ceiling_product() {
  static const Op op = product("ceiling/product/4096x13824x5120", cuda::Product::nt, 4096, 13824, 5120);
  return op;
}
inline const Ceilings& ceilings() {
  static const Ceilings measured = [] {
    Ceilings c;
    c.driver = measure(copy_by_driver(), 0.01, 0.0);
    c.embed = measure(copy_by_embed(), 0.01, 0.0);
    c.product = measure(ceiling_product(), 0.05, 0.5);
    c.bytes_per_s = 2.0 * copied / std::min(c.driver.median, c.embed.median);
    c.flop_per_s = ceiling_product().flop / c.product.median;
    return c;
  }();
  return measured;
}

}  // namespace qlora::bench
