// tests/support/plain_products.cu — the products that the library hands to cuBLASLt, as one plain kernel, and cuDNN
// declined: linked in front of qlora::cuda it replaces both. So a sanitizer that stumbles over NVIDIA's kernels still
// sees all of ours at work, and the tests hold cuBLASLt's place to a second implementation. One thread for each element
// of C; sums in order.
#include "qlora/cuda/context/context.cuh"

namespace plain {
namespace {

struct Product {
  int m, n, k;
  std::int64_t a_row, a_sum, b_col, b_sum;  // steps in A along its row and its sum, in B along its column and its sum
  const __nv_bfloat16* a;
  const __nv_bfloat16* b;
  float alpha;
  const void* source;
  void* c;
  int c_stride;
  bool c_float;
  std::int64_t a_step, b_step, c_step;
};

__global__ void __launch_bounds__(256) product_kernel(const Product p) {
  const auto n = static_cast<int>(blockIdx.x * 32 + threadIdx.x);
  const auto m = static_cast<int>(blockIdx.y * 8 + threadIdx.y);
  if (n >= p.n || m >= p.m) return;
  const auto batch = static_cast<std::int64_t>(blockIdx.z);
  const __nv_bfloat16* a = p.a + batch * p.a_step + m * p.a_row;
  const __nv_bfloat16* b = p.b + batch * p.b_step + n * p.b_col;
  float sum = 0.0F;
  for (int k = 0; k < p.k; ++k) {
    sum = fmaf(__bfloat162float(a[k * p.a_sum]), __bfloat162float(b[k * p.b_sum]), sum);
  }
  sum *= p.alpha;
  const std::int64_t at = batch * p.c_step + static_cast<std::int64_t>(m) * p.c_stride + n;
  if (p.c_float) {
    if (p.source != nullptr) sum += static_cast<const float*>(p.source)[at];
    static_cast<float*>(p.c)[at] = sum;
  } else {
    if (p.source != nullptr) sum += __bfloat162float(static_cast<const __nv_bfloat16*>(p.source)[at]);
    static_cast<__nv_bfloat16*>(p.c)[at] = __float2bfloat16_rn(sum);
  }
}

}  // namespace
}  // namespace plain

namespace qlora {
inline namespace v0 {
namespace cuda {

std::shared_ptr<GemmState> new_gemm_state() { return nullptr; }

void matmul(Context& context, const Matmul& p) {
  const bool tn = p.product == qlora::cuda::Product::tn;
  const bool nt = p.product == qlora::cuda::Product::nt;
  const plain::Product args{p.m,
                            p.n,
                            p.k,
                            tn ? 1 : p.a.stride,
                            tn ? p.a.stride : 1,
                            nt ? p.b.stride : 1,
                            nt ? 1 : p.b.stride,
                            reinterpret_cast<const __nv_bfloat16*>(p.a.data),
                            reinterpret_cast<const __nv_bfloat16*>(p.b.data),
                            p.alpha,
                            p.source,
                            p.c,
                            p.c_stride,
                            p.c_float,
                            p.a_step,
                            p.b_step,
                            p.c_step};
  const dim3 blocks(static_cast<unsigned>((p.n + 31) / 32), static_cast<unsigned>((p.m + 7) / 8),
                    static_cast<unsigned>(p.batch));
  plain::product_kernel<<<blocks, dim3(32, 8), 0, context.stream>>>(args);
  check_launch("plain product");
}
std::string algorithms(const Context& /*context*/) { return "plain\n"; }
void load_algorithms(Context& /*context*/, const std::string& /*text*/) {}

bool fused_attention(Context& /*context*/, const AttentionShape& /*shape*/, const TokenBatch& /*batch*/,
                     const bf16* /*qkv*/, Rows<bf16> /*o*/, float* /*lse*/) {
  return false;
}
bool fused_attention_backward(Context& /*context*/, const AttentionShape& /*shape*/, const TokenBatch& /*batch*/,
                              Rows<const bf16> /*go*/, const bf16* /*qkv*/, Rows<const bf16> /*o*/,
                              const float* /*lse*/, bf16* /*gqkv*/) {
  return false;
}
std::int64_t fused_workspace(const Context& /*context*/) { return 0; }

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
