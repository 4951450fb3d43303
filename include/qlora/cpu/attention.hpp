// qlora/cpu/attention.hpp — causal attention bounded by documents, forward and backward.
// Math       P = softmax(Q K^T / sqrt(E)) over keys not after the query and in its document;  O = P V
//            gV = P^T gO;  dS = P o (gO V^T - rowsum(gO o O));  gQ = dS K / sqrt(E);  gK = dS^T Q / sqrt(E)
// Shapes     qkv gqkv (T,(H+2K)E): H query heads, K key heads, K value heads · o go (T,HE) · lse (H,T)
//            segments: document pieces [first, last) of the T tokens, in order, without gaps; query head h reads
//            key head h / (H/K)
// Writes     o lse gqkv with =
// Split      forward: (segment, head, 64 queries); backward: (segment, kv head), so that gK and gV have one writer
// Numbers    P is made again from lse in the backward pass; scratch per worker holds one tile of scores
// Reference  complex step in tests/cpu/derivative_test.cpp; golden logits
#pragma once

#include <cmath>
#include <span>

#include "qlora/cpu/gemm.hpp"
#include "qlora/ops.hpp"

namespace qlora {
inline namespace v0 {

namespace cpu {

namespace detail {

/// Scores of queries [first, first + count) of a segment against its keys up to the last of them, made into
/// probabilities in place. Row i sees keys 0 ... first + i. Columns beyond are 0.
template <class S>
void softmax_rows(S* scores, int count, int stride, int first, S scale, S* lse) {
  for (int i = 0; i < count; ++i) {
    const int visible = first + i + 1;
    auto row = row_array(scores + std::int64_t{i} * stride, visible);
    row *= scale;
    S largest = row[0];  // the largest real part: any shift is exact, and it must not be differentiated
    for (int j = 1; j < visible; ++j) {
      if (real_part(row[j]) > real_part(largest)) largest = row[j];
    }
    largest = S(real_part(largest));
    row = (row - largest).exp();
    const S sum = row.sum();
    row *= S(1) / sum;
    using std::log;
    lse[i] = log(sum) + largest;
    row_array(scores + std::int64_t{i} * stride + visible, stride - visible).setZero();
  }
}

}  // namespace detail

/// Scratch elements that attention and its backward pass need per worker.
[[nodiscard]] constexpr std::int64_t attention_scratch(int longest_segment) {
  return std::int64_t{2} * attention_tile * longest_segment;
}

/// The tiles of 64 queries in all segments; `tile_count` and `find_tile` agree on their order.
[[nodiscard]] inline int query_tiles(std::span<const Segment> segments) {
  int tiles = 0;
  for (const Segment& s : segments) tiles += (s.last - s.first + attention_tile - 1) / attention_tile;
  return tiles;
}

template <class N, class S = typename N::S>
void attention(ThreadPool& pool, int tokens, const AttentionShape& shape, std::span<const Segment> segments,
               const S* qkv, Block<S> o, S* lse, S* scratch, std::int64_t scratch_per_worker) {
  const int e = shape.head_dim;
  const int width = shape.width();
  const int group = shape.heads / shape.kv_heads;
  const int tiles = query_tiles(segments);
  const S scale = S(1.0F / std::sqrt(static_cast<float>(e)));
  pool.for_tiles(tiles * shape.heads, [&](int index, int worker) {
    const int head = index % shape.heads;
    int tile = index / shape.heads;
    std::size_t which = 0;
    for (;; ++which) {
      const int here = (segments[which].last - segments[which].first + attention_tile - 1) / attention_tile;
      if (tile < here) break;
      tile -= here;
    }
    const Segment& segment = segments[which];
    const int first = tile * attention_tile;
    const int count = std::min(attention_tile, segment.last - segment.first - first);
    const int keys = first + count;
    const S* base = qkv + std::int64_t{segment.first} * width;
    const Block<const S> q{base + std::int64_t{first} * width + std::int64_t{head} * e, width};
    const Block<const S> k{base + std::int64_t{shape.heads + head / group} * e, width};
    const Block<const S> v{base + std::int64_t{shape.heads + shape.kv_heads + head / group} * e, width};
    S* scores = scratch + worker * scratch_per_worker;
    tile_nt<S>(count, keys, e, S(1), q, k, 0, {scores, keys});
    detail::softmax_rows(scores, count, keys, first, scale, lse + std::int64_t{head} * tokens + segment.first + first);
    N::store(scores, std::int64_t{count} * keys);
    const Block<S> target{o.row(segment.first + first) + std::int64_t{head} * e, o.stride};
    tile_nn<S>(count, e, keys, S(1), {scores, keys}, v, 0, target);
    N::store(target, count, e);
  });
}

template <class N, class S = typename N::S>
void attention_backward(ThreadPool& pool, int tokens, const AttentionShape& shape, std::span<const Segment> segments,
                        Block<const S> go, const S* qkv, Block<const S> o, const S* lse, S* gqkv, S* scratch,
                        std::int64_t scratch_per_worker) {
  const int e = shape.head_dim;
  const int width = shape.width();
  const int group = shape.heads / shape.kv_heads;
  const S scale = S(1.0F / std::sqrt(static_cast<float>(e)));
  pool.for_tiles(static_cast<int>(segments.size()) * shape.kv_heads, [&](int index, int worker) {
    const Segment& segment = segments[static_cast<std::size_t>(index / shape.kv_heads)];
    const int kv = index % shape.kv_heads;
    const int length = segment.last - segment.first;
    const std::int64_t row0 = segment.first;
    const std::int64_t k_col = std::int64_t{shape.heads + kv} * e;
    const std::int64_t v_col = std::int64_t{shape.heads + shape.kv_heads + kv} * e;
    dense(gqkv + row0 * width + k_col, length, e, width).setZero();
    dense(gqkv + row0 * width + v_col, length, e, width).setZero();
    for (int head = kv * group; head < (kv + 1) * group; ++head) {
      for (int first = 0; first < length; first += attention_tile) {
        const int count = std::min(attention_tile, length - first);
        const int keys = first + count;
        const std::int64_t row = row0 + first;
        const Block<const S> q{qkv + row * width + std::int64_t{head} * e, width};
        const Block<const S> k{qkv + row0 * width + k_col, width};
        const Block<const S> v{qkv + row0 * width + v_col, width};
        const Block<const S> grad_o{go.row(row) + std::int64_t{head} * e, go.stride};
        const Block<const S> out{o.row(row) + std::int64_t{head} * e, o.stride};
        S* p_data = scratch + worker * scratch_per_worker;
        S* ds_data = p_data + std::int64_t{attention_tile} * keys;
        const Block<const S> p{p_data, keys};
        const Block<const S> ds{ds_data, keys};
        tile_nt<S>(count, keys, e, S(1), q, k, 0, {p_data, keys});
        const S* row_lse = lse + std::int64_t{head} * tokens + row;
        for (int i = 0; i < count; ++i) {
          const int visible = first + i + 1;
          auto visible_p = row_array(p_data + std::int64_t{i} * keys, visible);
          visible_p = (visible_p * scale - row_lse[i]).exp();
          row_array(p_data + std::int64_t{i} * keys + visible, keys - visible).setZero();
        }
        N::store(p_data, std::int64_t{count} * keys);
        tile_nt<S>(count, keys, e, S(1), grad_o, v, 0, {ds_data, keys});
        tile_tn<S>(keys, e, count, S(1), p, grad_o, 1, {gqkv + row0 * width + v_col, width});
        for (int i = 0; i < count; ++i) {
          const S delta = (row_array(grad_o.row(i), e) * row_array(out.row(i), e)).sum();
          auto ds_row = row_array(ds_data + std::int64_t{i} * keys, keys);
          ds_row = row_array(static_cast<const S*>(p_data) + std::int64_t{i} * keys, keys) * (ds_row - delta) * scale;
        }
        N::store(ds_data, std::int64_t{count} * keys);
        tile_nn<S>(count, e, keys, S(1), ds, k, 0, {gqkv + row * width + std::int64_t{head} * e, width});
        tile_tn<S>(keys, e, count, S(1), ds, q, 1, {gqkv + row0 * width + k_col, width});
      }
    }
    for (int t = 0; t < length; ++t) {  // rounded once, after all heads of the group have added to it
      N::store(gqkv + (row0 + t) * width + k_col, e);
      N::store(gqkv + (row0 + t) * width + v_col, e);
      N::store(gqkv + (row0 + t) * width + std::int64_t{kv} * group * e, std::int64_t{group} * e);
    }
  });
}

#ifdef QLORA_INSTANCE  // numbers.hpp
QLORA_INSTANCE void attention<Numbers<float>>(ThreadPool&, int, const AttentionShape&, std::span<const Segment>,
                                              const float*, Block<float>, float*, float*, std::int64_t);
QLORA_INSTANCE void attention_backward<Numbers<float>>(ThreadPool&, int, const AttentionShape&,
                                                       std::span<const Segment>, Block<const float>, const float*,
                                                       Block<const float>, const float*, float*, float*, std::int64_t);
#endif

}  // namespace cpu
}  // namespace v0
}  // namespace qlora
