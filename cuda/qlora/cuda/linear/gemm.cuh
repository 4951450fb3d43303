// qlora/cuda/linear/gemm.cuh — matrix products with cuBLASLt: descriptors are created and algorithms measured once per
// shape.
// Math       nt: C (m,n) = alpha A (m,k) B (n,k)^T + [source]     nn: B (k,n)     tn: A (k,m)
//            nt_fp8: C = diag(a) A B^T diag(b) + [source] of e4m3 operands, a and b the scales of their rows
// Shapes     row-major with strides, A B bf16 or e4m3, C and source bf16 or float; any m n k >= 1; batches at fixed
//            steps
// Writes     C with = ; with source == C that is +=
// Split      cuBLASLt's; row-major C is computed as column-major C^T = op(B) op(A), its first operand is our B
// Needs      the context's workspace; nothing is allocated once a shape is known
// Numbers    products and sums in fp32, one rounding to C's type. Split-K sums are added in fp32 in a separate pass in
//            a fixed order; schemes that add to the output in order of arrival, or that round partial sums to bf16, are
//            used with ContextOptions::fast only. So the bits depend on shape and algorithm only
// Choosing   cuBLASLt's candidates are timed on the caller's operands (power, and so speed, depends on the data). Token
//            counts vary too much to measure each: the count is rounded up to three significant bits, and the first
//            product with such a count chooses for all of them. Under a RowOrder one algorithm serves every count
// Cost       2 m n k FLOP; 640 to 676 TFLOP/s at LLaMA shapes on an H200, limited by its power
// Reference  cpu/gemm.hpp; the parity tests of linear groups
#pragma once

#include <sstream>

#include "qlora/cuda/linear/gemm_plan.cuh"
#include "qlora/gpu_storage.hpp"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Number of candidates, the most promising first. Each costs a few launches once; the fastest is rarely further down.
inline constexpr int most_candidates = 16;
struct Candidates {
  std::array<cublasLtMatmulHeuristicResult_t, most_candidates> list{};
  int count = 0;
};
/// Whether an algorithm sums in fp32 in a fixed order. The preferences ask for that; this verifies the answer.
[[nodiscard]] inline bool ordered(const cublasLtMatmulAlgo_t& algorithm) {
  std::uint32_t scheme = CUBLASLT_REDUCTION_SCHEME_NONE;
  std::size_t written = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoConfigGetAttribute(&algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME,
                                                                     &scheme, sizeof(scheme), &written);
  return status != CUBLAS_STATUS_SUCCESS || scheme == CUBLASLT_REDUCTION_SCHEME_NONE ||
         scheme == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
}
[[nodiscard]] inline Candidates candidates(const Context& context, MatmulPlan& plan, const MatmulKey& key) {
  cublasLtMatmulPreferenceOpaque_t preference{};
  check(cublasLtMatmulPreferenceInit(&preference), "describing preferences");
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t name, const auto& value) {
    check(cublasLtMatmulPreferenceSetAttribute(&preference, name, &value, sizeof(value)), "describing preferences");
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<std::uint64_t>(context.workspace_bytes));
  const std::uint32_t schemes =
      context.options.fast ? CUBLASLT_REDUCTION_SCHEME_MASK : CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;  // or no split-K
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, schemes);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<std::uint32_t>(key.b_align));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<std::uint32_t>(key.a_align));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<std::uint32_t>(key.source_align));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<std::uint32_t>(key.c_align));
  Candidates found;
  int returned = 0;
  // A failure gives an empty list; the caller reports the shape.
  (void)cublasLtMatmulAlgoGetHeuristic(context.blas, &plan.operation, &plan.first, &plan.second, &plan.out, &plan.out,
                                       &preference, most_candidates, found.list.data(), &returned);
  for (int i = 0; i < returned; ++i) {
    const cublasLtMatmulHeuristicResult_t& result = found.list[static_cast<std::size_t>(i)];
    if (result.state != CUBLAS_STATUS_SUCCESS || !(context.options.fast || ordered(result.algo))) continue;
    found.list[static_cast<std::size_t>(found.count++)] = result;
  }
  return found;
}

/// Whether an algorithm that was chosen for a neighbouring shape supports this one.
[[nodiscard]] inline bool usable(const Context& context, MatmulPlan& plan, const cublasLtMatmulAlgo_t& algorithm) {
  cublasLtMatmulHeuristicResult_t result{};
  const cublasStatus_t status = cublasLtMatmulAlgoCheck(context.blas, &plan.operation, &plan.first, &plan.second,
                                                        &plan.out, &plan.out, &algorithm, &result);
  return status == CUBLAS_STATUS_SUCCESS && result.state == CUBLAS_STATUS_SUCCESS &&
         result.workspaceSize <= static_cast<std::size_t>(context.workspace_bytes);
}

/// Two events for the duration of a measurement.
struct Stopwatch {
  cudaEvent_t first = nullptr;
  cudaEvent_t last = nullptr;
  Stopwatch() {
    check(cudaEventCreate(&first), "making an event");
    check(cudaEventCreate(&last), "making an event");
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;
  ~Stopwatch() {
    (void)cudaEventDestroy(first);
    (void)cudaEventDestroy(last);
  }
};

/// The index of the fastest candidate. Each is launched twice (the first launch loads its code); those within 20 % of
/// the fastest are timed in five rounds, so that a change of clocks affects all of them, and compared by their medians.
/// Within 1 % the heuristic's order decides. -1: none works.
[[nodiscard]] inline int fastest(const Context& context, const MatmulPlan& plan, const Candidates& found,
                                 const Matmul& p, const void* source, void* c) {
  constexpr int rounds = 5;
  constexpr float least_ms = 0.2F;  // of one timing: events resolve 0.5 us, gaps between launches are a few us
  std::array<float, most_candidates> once{};
  std::array<std::array<float, rounds>, most_candidates> times{};
  const Stopwatch watch;
  // Milliseconds per launch over `repeats` launches; negative when cuBLASLt refuses.
  const auto time_of = [&](int i, int repeats) {
    const cublasLtMatmulAlgo_t& algorithm = found.list[static_cast<std::size_t>(i)].algo;
    check(cudaEventRecord(watch.first, context.stream), "recording an event");
    for (int j = 0; j < repeats; ++j) {
      if (launch_product(context, plan, algorithm, p, source, c) != CUBLAS_STATUS_SUCCESS) return -1.0F;
    }
    check(cudaEventRecord(watch.last, context.stream), "recording an event");
    check(cudaEventSynchronize(watch.last), "measuring a product");
    float ms = 0.0F;
    check(cudaEventElapsedTime(&ms, watch.first, watch.last), "reading an event");
    return ms / static_cast<float>(repeats);
  };
  float best = -1.0F;
  for (int i = 0; i < found.count; ++i) {
    float& ms = once[static_cast<std::size_t>(i)];
    ms = time_of(i, 1);
    if (ms >= 0.0F) ms = time_of(i, 1);
    if (ms >= 0.0F && (best < 0.0F || ms < best)) best = ms;
  }
  if (best < 0.0F) return -1;
  const int repeats = std::clamp(static_cast<int>(least_ms / std::max(best, 0.001F)), 1, 20);
  const auto near = [&](int i) {
    const float ms = once[static_cast<std::size_t>(i)];
    return ms >= 0.0F && ms <= 1.2F * best + 0.005F;
  };
  for (std::size_t round = 0; round < rounds; ++round) {
    for (int i = 0; i < found.count; ++i) {
      if (!near(i)) continue;
      times[static_cast<std::size_t>(i)][round] = time_of(i, repeats);
    }
  }
  float least = -1.0F;
  for (int i = 0; i < found.count; ++i) {
    if (!near(i)) continue;
    auto& row = times[static_cast<std::size_t>(i)];
    std::sort(row.begin(), row.end());
    const float median = row[rounds / 2];
    if (least < 0.0F || median < least) least = median;
  }
  for (int i = 0; i < found.count; ++i) {
    if (near(i) && times[static_cast<std::size_t>(i)][rounds / 2] <= 1.01F * least) return i;
  }
  return -1;
}

/// Device memory for the duration of a measurement.
struct Twin {
  std::byte* data = nullptr;
  Twin(Context& context, std::int64_t bytes) : data(context.try_allocate(bytes)) {
    if (data != nullptr) check(cudaMemsetAsync(data, 0, static_cast<std::size_t>(bytes), context.stream), "measuring");
  }
  Twin(const Twin&) = delete;
  Twin& operator=(const Twin&) = delete;
  ~Twin() { (void)cudaFree(data); }  // waits for the device
};

/// A product that overwrites C is measured on C itself: the requested product runs last. One that adds to C is measured
/// on a copy of C; without memory for the copy it falls back to cuBLASLt's top heuristic.
[[nodiscard]] inline cublasLtMatmulAlgo_t choose(Context& context, MatmulPlan& plan, const MatmulKey& key,
                                                 const Matmul& p) {
  const Candidates found = candidates(context, plan, key);
  int best = found.count > 0 ? 0 : -1;
  if (found.count > 1) {
    if (key.source == static_cast<std::int64_t>(Source::in_place)) {
      const std::int64_t extent = (key.batch - 1) * key.c_step + (key.m - 1) * key.c_stride + key.n;
      const Twin twin(context, extent * (p.c_float ? 4 : 2));
      if (twin.data != nullptr) best = fastest(context, plan, found, p, twin.data, twin.data);
    } else {
      best = fastest(context, plan, found, p, p.source, p.c);
    }
  }
  QLORA_EXPECTS(best >= 0, "cuBLASLt ", cublasLtGetVersion(), " has no algorithm for ", shape_text(p));
  return found.list[static_cast<std::size_t>(best)].algo;
}

/// Rows that the algorithm of an order is chosen for, the same for products of any number of rows: what a server's
/// steps and its pieces of prompts have.
[[nodiscard]] constexpr std::int64_t ordered_rows(RowOrder order) { return order == RowOrder::newest ? 32 : 256; }

/// The plan for an order: one algorithm for all numbers of rows, so that a row's sums do not depend on how many there
/// are. It is the first of the heuristic for ordered_rows that also takes a single row, and is not measured: the choice
/// is the same in every process. Null: for so many rows it needs more than the workspace.
inline const MatmulPlan* ordered_plan_of(Context& context, const Matmul& p) {
  const std::lock_guard lock(context.gemm->guard);
  const MatmulKey key = key_of(p);
  const std::size_t place = context.order == RowOrder::newest ? 0 : 1;
  auto& plans = context.gemm->ordered_plans[place];
  if (const auto known = plans.find(key); known != plans.end()) return &known->second;
  auto& algorithms = context.gemm->ordered_algorithms[place];
  MatmulKey fixed = key;
  fixed.m = ordered_rows(context.order);
  auto chosen = algorithms.find(fixed);
  if (chosen == algorithms.end()) {
    MatmulPlan many = describe(fixed);
    MatmulKey single = key;
    single.m = 1;
    MatmulPlan one = describe(single);
    const Candidates found = candidates(context, many, fixed);
    const auto first = std::find_if(found.list.begin(), found.list.begin() + found.count,
                                    [&](const auto& result) { return usable(context, one, result.algo); });
    QLORA_EXPECTS(first != found.list.begin() + found.count, "cuBLASLt ", cublasLtGetVersion(),
                  " has no algorithm for any number of rows: ", shape_text(p));
    chosen = algorithms.emplace(fixed, first->algo).first;
  }
  MatmulPlan plan = describe(key);
  plan.algorithm = chosen->second;
  if (!usable(context, plan, plan.algorithm)) return nullptr;
  return &plans.emplace(key, plan).first->second;
}

inline const MatmulPlan& plan_of(Context& context, const Matmul& p) {
  GemmState& state = *context.gemm;
  const std::lock_guard lock(state.guard);
  const MatmulKey key = key_of(p);
  if (const auto known = state.plans.find(key); known != state.plans.end()) return known->second;
  MatmulPlan plan = describe(key);
  set_scales(plan.operation, p);  // the heuristic may ask for them
  const MatmulKey tuning = tuning_key(key);
  if (const auto chosen = state.algorithms.find(tuning); chosen == state.algorithms.end()) {
    plan.algorithm = choose(context, plan, key, p);
    state.algorithms.emplace(tuning, plan.algorithm);
  } else if (usable(context, plan, chosen->second)) {
    plan.algorithm = chosen->second;
  } else {  // the top heuristic depends on the shape only and is not stored in the table
    const Candidates found = candidates(context, plan, key);
    QLORA_EXPECTS(found.count > 0, "cuBLASLt ", cublasLtGetVersion(), " has no algorithm for ", shape_text(p));
    plan.algorithm = found.list[0].algo;
  }
  return state.plans.emplace(key, plan).first->second;
}

inline void launch_plan(const Context& context, const MatmulPlan& plan, const Matmul& p) {
  const cublasStatus_t status = launch_product(context, plan, plan.algorithm, p, p.source, p.c);
  if (status != CUBLAS_STATUS_SUCCESS) check(status, shape_text(p).c_str());
}

/// A product nt under an order, in halves where its algorithm has no workspace for all rows: the bits are the same.
inline void ordered_matmul(Context& context, const Matmul& p) {
  if (const MatmulPlan* plan = ordered_plan_of(context, p); plan != nullptr) return launch_plan(context, *plan, p);
  QLORA_EXPECTS(p.m > ordered_rows(context.order), "an algorithm of cuBLASLt ", cublasLtGetVersion(), " for ",
                ordered_rows(context.order), " rows does not take ", shape_text(p));
  Matmul upper = p;
  upper.m = p.m / 2;
  Matmul lower = p;
  lower.m = p.m - upper.m;
  lower.a.data += std::int64_t{upper.m} * p.a.stride;
  const std::int64_t offset = std::int64_t{upper.m} * p.c_stride * (p.c_float ? 4 : 2);
  lower.c = static_cast<std::byte*>(p.c) + offset;
  if (p.source != nullptr) lower.source = static_cast<const std::byte*>(p.source) + offset;
  ordered_matmul(context, upper);
  ordered_matmul(context, lower);
}

/// What a table of algorithms is valid for: one library version, one kind of GPU, one set of schemes.
[[nodiscard]] inline std::string table_title(const Context& context) {
  return concat("cuBLASLt ", cublasLtGetVersion(), ", ", context.name, context.options.fast ? ", fast" : "");
}

}  // namespace detail

QLORA_CUDA_LAUNCHER std::shared_ptr<GemmState> new_gemm_state() { return std::make_shared<GemmState>(); }

QLORA_CUDA_LAUNCHER void matmul(Context& context, const Matmul& p) {
  const bool tn = p.product == Product::tn;
  const bool narrow = p.product == Product::nt_fp8;
  const bool nt = narrow || p.product == Product::nt;
  QLORA_EXPECTS(
      p.m >= 1 && p.n >= 1 && p.k >= 1 && p.batch >= 1 && p.a.data != nullptr && p.b.data != nullptr && p.c != nullptr,
      "empty ", detail::shape_text(p));
  QLORA_EXPECTS(p.a.stride >= (tn ? p.m : p.k) && p.b.stride >= (nt ? p.k : p.n) && p.c_stride >= p.n,
                "strides are below the widths of ", detail::shape_text(p));
  QLORA_EXPECTS(!narrow || (p.a_scales != nullptr && p.b_scales != nullptr && p.k % 16 == 0 && p.n % 16 == 0),
                "no scales, or sides that are not multiples of 16: ", detail::shape_text(p));
  if (narrow) expect_fp8_card(context.name, context.capability);
  if (context.order != RowOrder::any && nt && !narrow && p.batch == 1) return detail::ordered_matmul(context, p);
  detail::launch_plan(context, detail::plan_of(context, p), p);
}

/// The first line names library and GPU; each further line has the numbers of the key and the eight words of the
/// algorithm.
QLORA_CUDA_LAUNCHER std::string algorithms(const Context& context) {
  std::ostringstream out;
  out << detail::table_title(context) << '\n';
  const std::lock_guard lock(context.gemm->guard);
  for (const auto& [key, algorithm] : context.gemm->algorithms) {
    out << std::dec;
    detail::for_each_field(key, [&](std::int64_t field) { out << field << ' '; });
    out << std::hex;
    for (const std::uint64_t word : algorithm.data) out << ' ' << word;
    out << '\n';
  }
  return out.str();
}

/// A table of another library version, GPU or mode is ignored: its algorithms would select other kernels. Call before
/// the first product; shapes that already have an algorithm keep it.
QLORA_CUDA_LAUNCHER void load_algorithms(Context& context, const std::string& text) {
  std::istringstream lines(text);
  std::string line;
  if (!std::getline(lines, line) || line != detail::table_title(context)) return;
  const std::lock_guard lock(context.gemm->guard);
  for (int number = 2; std::getline(lines, line); ++number) {
    std::istringstream in(line);
    detail::MatmulKey key;
    cublasLtMatmulAlgo_t algorithm{};
    detail::for_each_field(key, [&](std::int64_t& field) { in >> field; });
    in >> std::hex;
    for (std::uint64_t& word : algorithm.data) in >> word;
    QLORA_EXPECTS(!in.fail(), "line ", number, " of the table of algorithms is not one: ", line);
    context.gemm->algorithms.emplace(key, algorithm);
  }
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
