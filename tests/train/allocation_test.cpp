// No training step allocates: malloc and its kin are counted for the whole process while steps run.
// Needs glibc, whose allocator stays reachable under other names when a program defines malloc itself.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>

#include "qlora/cpu.hpp"
#include "qlora/train/trainer.hpp"
#include "support/small_model.hpp"

#ifdef __GLIBC__

namespace {

std::atomic<bool> counting{false};
std::atomic<long> allocations{0};

void note() {
  if (counting.load(std::memory_order_relaxed)) allocations.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

extern "C" {
void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t count, std::size_t size);
void* __libc_realloc(void* memory, std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);

void* malloc(std::size_t size) noexcept {
  note();
  return __libc_malloc(size);
}
void* calloc(std::size_t count, std::size_t size) noexcept {
  note();
  return __libc_calloc(count, size);
}
void* realloc(void* memory, std::size_t size) noexcept {
  note();
  return __libc_realloc(memory, size);
}
void* memalign(std::size_t alignment, std::size_t size) noexcept {
  note();
  return __libc_memalign(alignment, size);
}
void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
  note();
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** memory, std::size_t alignment, std::size_t size) noexcept {
  note();
  *memory = __libc_memalign(alignment, size);
  return *memory == nullptr ? ENOMEM : 0;
}
}

using namespace qlora;

namespace {

// As wide as the small chat model, with fewer layers: every product is cut and packed as there.
constexpr Config net{
    .shape = {.vocab = 1536, .dim = 256, .layers = 2, .heads = 8, .kv_heads = 4, .head_dim = 32, .ffn = 704},
    .lora = {.rank = 16}};
constexpr Config full = net.with(Trainable::all);

/// Allocations during `steps` steps that follow two others.
template <Config C>
long count_allocations(const TrainOptions& how, int threads, int windows) {
  const small_model::Data data(windows, how.seq, C.shape.vocab, 1, 50);
  const Windows all = data.all();
  Trainer<C, Cpu<float>> trainer(small_model::weights(C.shape, 1), how, Cpu<float>(threads));
  for (int step = 0; step < 2; ++step) trainer.core().step(all);
  allocations = 0;
  counting = true;
  for (int step = 0; step < 2; ++step) trainer.core().step(all);
  counting = false;
  return allocations;
}

}  // namespace

TEST_CASE("the counters see every way to allocate") {
  const auto count = [](auto&& allocate) {
    allocations = 0;
    counting = true;
    allocate();
    counting = false;
    return allocations.load();
  };
  static void* volatile kept = nullptr;  // volatile: a compiler may leave out an allocation that nobody looks at
  CHECK(count([] { kept = std::malloc(8); }) == 1);
  std::free(kept);
  CHECK(count([] { kept = ::operator new(8); }) == 1);
  ::operator delete(kept);
  CHECK(count([] { kept = std::calloc(1, 8); }) == 1);
  std::free(kept);
  CHECK(count([] { kept = std::aligned_alloc(64, 64); }) == 1);
  std::free(kept);
  CHECK(count([] { kept = Eigen::internal::aligned_malloc(64); }) == 1);
  Eigen::internal::aligned_free(kept);
  CHECK(count([] {}) == 0);
}

TEST_CASE("a step of adapter training allocates nothing") {
  TrainOptions how{.batch = 2, .seq = 128};
  for (const int threads : {1, 2, 5}) {
    CAPTURE(threads);
    CHECK(count_allocations<net>(how, threads, 2) == 0);
  }
  how.recompute = Recompute::cheap;
  CHECK(count_allocations<net>(how, 2, 3) == 0);  // two micro-batches, the second smaller
  how.recompute = Recompute::block;
  how.model.keep_dequantized = true;
  CHECK(count_allocations<net>(how, 2, 2) == 0);
}

TEST_CASE("a step of full training allocates nothing") {
  CHECK(count_allocations<full>({.batch = 4, .seq = 128}, 3, 4) == 0);
}

#endif
