// qlora/cpu/loss.hpp — the head's product fused with cross-entropy over labelled rows only.
// Math       z = x W^T;  loss_t = log sum_v e^{z_v} - z_target;  gz = scale (softmax(z) - onehot)
//            gx = gz W;  gW += gz^T x
// Shapes     x gx (T,D) · W gW (V,D) · targets (T), -1 where nothing is predicted · losses (T)
// Writes     losses gx with = (0 in rows without target); gW with +=
// Split      labelled rows are gathered in chunks, so that only chunk x V logits ever exist
// Reference  complex step in tests/cpu/derivative_test.cpp; golden losses and gradients
#pragma once

#include "qlora/cpu/gemm.hpp"
#include "qlora/ops.hpp"

namespace qlora {
inline namespace v0 {
namespace cpu {

/// `gx` null: losses only. `gw` null: the head is frozen. `scale` is d(total loss) / d(loss_t).
template <class N, class S = typename N::S>
void cross_entropy(ThreadPool& pool, int dim, int vocab, const TokenBatch& batch, const S* x, const S* w, S scale,
                   const LossScratch<S>& scratch, S* losses, S* gx, S* gw) {
  const int labelled = batch.labelled_count;
  row_array(losses, batch.tokens).setZero();
  if (gx != nullptr) row_array(gx, std::int64_t{batch.tokens} * dim).setZero();
  using In = Block<const S>;
  for (int done = 0; done < labelled; done += scratch.chunk) {
    const int count = std::min(scratch.chunk, labelled - done);
    const std::int32_t* index = batch.labelled + done;
    for (int i = 0; i < count; ++i) {
      row_array(scratch.rows + std::int64_t{i} * dim, dim) = row_array(x + std::int64_t{index[i]} * dim, dim);
    }
    product_nt<S>(pool, count, vocab, dim, S(1), In{scratch.rows, dim}, In{w, dim}, 0, {scratch.logits, vocab});
    for_ranges(pool, count, 8, [&](std::int64_t first, std::int64_t last, int) {
      for (std::int64_t i = first; i < last; ++i) {
        auto z = row_array(scratch.logits + i * vocab, vocab);
        S largest = z[0];
        for (int v = 1; v < vocab; ++v) {
          if (real_part(z[v]) > real_part(largest)) largest = z[v];
        }
        largest = S(real_part(largest));
        const std::int32_t target = batch.targets[index[i]];
        const S z_target = z[target];
        z = (z - largest).exp();
        const S sum = z.sum();
        using std::log;
        losses[index[i]] = log(sum) + largest - z_target;
        z *= scale / sum;
        z[target] -= scale;
        N::store(scratch.logits + i * vocab, vocab);
      }
    });
    if (gx == nullptr) continue;
    product_nn<S>(pool, count, dim, vocab, S(1), In{scratch.logits, vocab}, In{w, dim}, 0, {scratch.grads, dim});
    if (gw != nullptr) {
      product_tn<S>(pool, vocab, dim, count, S(1), In{scratch.logits, vocab}, In{scratch.rows, dim}, 1, {gw, dim});
    }
    for (int i = 0; i < count; ++i) {
      S* row = gx + std::int64_t{index[i]} * dim;
      row_array(row, dim) = row_array(scratch.grads + std::int64_t{i} * dim, dim);
      N::store(row, dim);
    }
  }
}

#ifdef QLORA_INSTANCE  // numbers.hpp
QLORA_INSTANCE void cross_entropy<Numbers<float>>(ThreadPool&, int, int, const TokenBatch&, const float*, const float*,
                                                  float, const LossScratch<float>&, float*, float*, float*);
#endif

}  // namespace cpu
}  // namespace v0
}  // namespace qlora
