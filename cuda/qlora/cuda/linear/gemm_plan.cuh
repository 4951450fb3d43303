// qlora/cuda/linear/gemm_plan.cuh — a matrix product in cuBLASLt's terms: the key of its shape, descriptors, the
// launch.
// Layout     cuBLASLt is column-major: row-major C = op(A) op(B) is its C^T = op(B) op(A), so its first operand is our
//            B. A row-major matrix (r, c) with a stride is its matrix (c, r) with that leading dimension
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <compare>
#include <map>
#include <mutex>

#include "qlora/cuda/context/context.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

enum class Source : std::uint8_t { none, apart, in_place };

/// Everything that the descriptors and the choice of an algorithm depend on.
struct MatmulKey {
  std::int64_t product = 0;  ///< Product
  std::int64_t m = 0, n = 0, k = 0;
  std::int64_t a_stride = 0, b_stride = 0, c_stride = 0;
  std::int64_t c_float = 0;
  std::int64_t source = 0;  ///< Source
  std::int64_t batch = 1, a_step = 0, b_step = 0, c_step = 0;
  std::int64_t a_align = 0, b_align = 0, c_align = 0, source_align = 0;
  friend auto operator<=>(const MatmulKey&, const MatmulKey&) = default;
};
template <class Key, class Visit>
void for_each_field(Key& key, Visit&& visit) {
  visit(key.product), visit(key.m), visit(key.n), visit(key.k);
  visit(key.a_stride), visit(key.b_stride), visit(key.c_stride), visit(key.c_float), visit(key.source);
  visit(key.batch), visit(key.a_step), visit(key.b_step), visit(key.c_step);
  visit(key.a_align), visit(key.b_align), visit(key.c_align), visit(key.source_align);
}

/// No cuBLASLt kernel requires more than 16-byte alignment.
[[nodiscard]] inline std::int64_t alignment_of(const void* data) {
  const auto address = reinterpret_cast<std::uintptr_t>(data) | 16U;
  return static_cast<std::int64_t>(address & (~address + 1U));
}

[[nodiscard]] inline MatmulKey key_of(const Matmul& p) {
  const Source source = p.source == nullptr ? Source::none : p.source == p.c ? Source::in_place : Source::apart;
  MatmulKey key{.product = static_cast<std::int64_t>(p.product),
                .m = p.m,
                .n = p.n,
                .k = p.k,
                .a_stride = p.a.stride,
                .b_stride = p.b.stride,
                .c_stride = p.c_stride,
                .c_float = p.c_float ? 1 : 0,
                .source = static_cast<std::int64_t>(source),
                .batch = p.batch};
  if (p.batch > 1) {
    key.a_step = p.a_step;
    key.b_step = p.b_step;
    key.c_step = p.c_step;
  }
  key.a_align = alignment_of(p.a.data);
  key.b_align = alignment_of(p.b.data);
  key.c_align = alignment_of(p.c);
  key.source_align = source == Source::none ? key.c_align : alignment_of(p.source);
  return key;
}

/// Rounded up to three significant bits: at most four values per power of two, and an increase of at most 25 %.
[[nodiscard]] constexpr std::int64_t rounded_tokens(std::int64_t tokens) {
  const int drop = std::max(0, static_cast<int>(std::bit_width(static_cast<std::uint64_t>(tokens))) - 3);
  const std::int64_t unit = std::int64_t{1} << drop;
  return (tokens + unit - 1) / unit * unit;
}
/// The shape under which an algorithm is stored. Tokens are the rows of A or, in tn, the summed dimension.
[[nodiscard]] inline MatmulKey tuning_key(MatmulKey key) {
  std::int64_t& tokens = key.product == static_cast<std::int64_t>(Product::tn) ? key.k : key.m;
  tokens = rounded_tokens(tokens);
  return key;
}

/// Descriptors of one shape and its algorithm.
struct MatmulPlan {
  cublasLtMatmulDescOpaque_t operation{};
  cublasLtMatrixLayoutOpaque_t first{};   // our B
  cublasLtMatrixLayoutOpaque_t second{};  // our A
  cublasLtMatrixLayoutOpaque_t out{};
  cublasLtMatmulAlgo_t algorithm{};
};

}  // namespace detail

/// Cached plans and algorithms, of a context and its forks.
struct GemmState {
  std::mutex guard;                                              // plans stay where they are and do not change
  std::map<detail::MatmulKey, detail::MatmulPlan> plans;         // by exact shape
  std::map<detail::MatmulKey, cublasLtMatmulAlgo_t> algorithms;  // by tuning_key
  /// Plans of RowOrder::newest and RowOrder::prompt, by exact shape, and their algorithms, by the shape in the fixed
  /// number of rows.
  std::array<std::map<detail::MatmulKey, detail::MatmulPlan>, 2> ordered_plans;
  std::array<std::map<detail::MatmulKey, cublasLtMatmulAlgo_t>, 2> ordered_algorithms;
};

namespace detail {

inline void set_layout(cublasLtMatrixLayoutOpaque_t& layout, cudaDataType_t type, std::int64_t rows, std::int64_t cols,
                       std::int64_t stride, std::int64_t batch, std::int64_t step) {
  check(cublasLtMatrixLayoutInit(&layout, type, static_cast<std::uint64_t>(rows), static_cast<std::uint64_t>(cols),
                                 stride),
        "describing a matrix");
  if (batch == 1) return;
  const auto count = static_cast<std::int32_t>(batch);
  check(cublasLtMatrixLayoutSetAttribute(&layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof(count)),
        "describing a batch");
  check(cublasLtMatrixLayoutSetAttribute(&layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step, sizeof(step)),
        "describing a batch");
}

/// C^T (n,m) = op(B) (n,k) op(A) (k,m).
[[nodiscard]] inline MatmulPlan describe(const MatmulKey& key) {
  MatmulPlan plan;
  const bool narrow = key.product == static_cast<std::int64_t>(Product::nt_fp8);
  const bool nt = narrow || key.product == static_cast<std::int64_t>(Product::nt);
  const bool tn = key.product == static_cast<std::int64_t>(Product::tn);
  const cublasOperation_t op_first = nt ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t op_second = tn ? CUBLAS_OP_T : CUBLAS_OP_N;
  check(cublasLtMatmulDescInit(&plan.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "describing a product");
  check(cublasLtMatmulDescSetAttribute(&plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, &op_first, sizeof(op_first)),
        "describing a product");
  check(cublasLtMatmulDescSetAttribute(&plan.operation, CUBLASLT_MATMUL_DESC_TRANSB, &op_second, sizeof(op_second)),
        "describing a product");
  if (narrow) {
    constexpr std::int32_t by_row = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    for (const auto mode : {CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_DESC_B_SCALE_MODE}) {
      check(cublasLtMatmulDescSetAttribute(&plan.operation, mode, &by_row, sizeof(by_row)), "describing scales");
    }
  }
  const cudaDataType_t operand = narrow ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
  set_layout(plan.first, operand, nt ? key.k : key.n, nt ? key.n : key.k, key.b_stride, key.batch, key.b_step);
  set_layout(plan.second, operand, tn ? key.m : key.k, tn ? key.k : key.m, key.a_stride, key.batch, key.a_step);
  set_layout(plan.out, key.c_float != 0 ? CUDA_R_32F : CUDA_R_16BF, key.n, key.m, key.c_stride, key.batch, key.c_step);
  return plan;
}

/// Of nt_fp8, where the scales are: the one thing of a product that is not in its key.
inline void set_scales(cublasLtMatmulDescOpaque_t& operation, const Matmul& p) {
  if (p.product != Product::nt_fp8) return;
  check(cublasLtMatmulDescSetAttribute(&operation, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &p.b_scales, sizeof(void*)),
        "describing scales");
  check(cublasLtMatmulDescSetAttribute(&operation, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &p.a_scales, sizeof(void*)),
        "describing scales");
}

[[nodiscard]] inline cublasStatus_t launch_product(const Context& context, const MatmulPlan& plan,
                                                   const cublasLtMatmulAlgo_t& algorithm, const Matmul& p,
                                                   const void* source, void* c) {
  const float beta = source != nullptr ? 1.0F : 0.0F;
  cublasLtMatmulDescOpaque_t operation = plan.operation;
  set_scales(operation, p);
  return cublasLtMatmul(
      context.blas, &operation, &p.alpha, p.b.data, const_cast<cublasLtMatrixLayoutOpaque_t*>(&plan.first), p.a.data,
      const_cast<cublasLtMatrixLayoutOpaque_t*>(&plan.second), &beta, source != nullptr ? source : c,
      const_cast<cublasLtMatrixLayoutOpaque_t*>(&plan.out), c, const_cast<cublasLtMatrixLayoutOpaque_t*>(&plan.out),
      &algorithm, context.workspace, static_cast<std::size_t>(context.workspace_bytes), context.stream);
}

[[nodiscard]] inline std::string shape_text(const Matmul& p) {
  constexpr std::array<const char*, 4> names{"nt", "nn", "tn", "nt_fp8"};
  return concat("product ", names[static_cast<std::size_t>(p.product)], " m ", p.m, " n ", p.n, " k ", p.k, " strides ",
                p.a.stride, " ", p.b.stride, " ", p.c_stride, " batch ", p.batch);
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace qlora
