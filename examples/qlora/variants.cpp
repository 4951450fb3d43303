// variants.cpp — the list of compiled shapes, and what is said about one that is not in it.
#include <algorithm>
#include <string>

#include "qlora/error.hpp"
#include "variant.hpp"

namespace qlora::program {

std::vector<std::unique_ptr<Variant>>& variants() {
  static std::vector<std::unique_ptr<Variant>> list;
  return list;
}

namespace {

const Variant* find(const Shape& shape, int rank, Device device, Method method) {
  const Variant* best = nullptr;
  const Trainable wanted = method == Method::full ? Trainable::all : Trainable::adapters;
  for (const auto& one : variants()) {
    const int cap = one->config().lora.rank;
    if (one->device() != device || one->config().shape != shape || one->config().trainable != wanted) continue;
    if (method == Method::qlora && cap < rank) continue;
    if (best == nullptr || cap < best->config().lora.rank) best = one.get();
  }
  return best;
}

/// Says which lines compile a shape in.
[[noreturn]] void refuse(const Shape& s, int rank, Device device, Method method) {
  int highest = 0;
  for (const auto& one : variants()) {
    const bool adapters = method == Method::qlora && one->config().trainable == Trainable::adapters;
    if (adapters && one->device() == device && one->config().shape == s)
      highest = std::max(highest, one->config().lora.rank);
  }
  const std::string what = highest > 0 ? qlora::detail::concat("rank ", rank, " is above ", highest,
                                                               ", the highest compiled in for this model")
                                       : std::string("this model's shape was not compiled in");
  const bool gpu = device == Device::cuda;
  throw Error(
      qlora::detail::concat(
          what,
          gpu ? " for CUDA; write examples/qlora/variant_mine_cuda.cpp" : "; write examples/qlora/variant_mine.cpp",
          " with these lines and build again:",
          "\n    #include \"variant_impl.hpp\"\n    static constexpr "
          "qlora::Config mine{.shape = {",
          s.vocab, ", ", s.dim, ", ", s.layers, ", ", s.heads, ", ", s.kv_heads, ", ", s.head_dim, ", ", s.ffn,
          s.tied_embeddings ? ", true" : "", "}, .lora = {.rank = ", std::max(rank, 16),
          "}};\n    static const qlora::program::Registered<mine",
          method == Method::full ? ".with(qlora::Trainable::all)" : "", gpu ? ", qlora::Cuda" : "", "> registered;"),
      ErrorKind::usage);
}

}  // namespace

Chosen choose_variant(const Shape& shape, int rank, const DeviceSection& asked, int threads, Method method) {
  if (method == Method::full) {
    if (asked.use == "cuda" || asked.fast || asked.resident || !asked.memory_cap.empty()) {
      throw Error(
          "every weight is trained on the CPU only: leave --device cuda, --fast, --resident and --memory-cap out",
          ErrorKind::usage);
    }
    const Variant* all = find(shape, rank, Device::cpu, method);
    if (all == nullptr) refuse(shape, rank, Device::cpu, method);
    return {all, {.threads = threads}};
  }
  Machine machine{.threads = threads,
                  .memory_cap = bytes_of_option("--memory-cap", asked.memory_cap),
                  .fast = asked.fast,
                  .resident = asked.resident};
  const Variant* on_gpu = find(shape, rank, Device::cuda, method);
  if (asked.use != "cpu") {
    std::string why;
    const bool usable = cuda_usable(why);
    // A model that the CPU has no code for is one for the GPU, whether that was said or not.
    const bool needed = asked.use == "cuda" || (on_gpu != nullptr && find(shape, rank, Device::cpu, method) == nullptr);
    if (needed && !usable) {
      throw Error(qlora::detail::concat("no GPU can be used: ", why,
                                        asked.use == "cuda" ? "; or compute on the processor with --device cpu" : ""),
                  ErrorKind::resource);
    }
    if (usable && on_gpu != nullptr) {
      machine.device = Device::cuda;
      return {on_gpu, machine};
    }
    if (asked.use == "cuda") refuse(shape, rank, Device::cuda, method);
  } else if (asked.fast || asked.resident || machine.memory_cap > 0) {
    throw Error("--fast, --resident and --memory-cap are for a GPU; leave them or --device cpu out", ErrorKind::usage);
  }
  const Variant* on_cpu = find(shape, rank, Device::cpu, method);
  if (on_cpu == nullptr) refuse(shape, rank, Device::cpu, method);
  return {on_cpu, machine};
}

}  // namespace qlora::program
