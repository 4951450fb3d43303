// qlora/cpu/decode.hpp — keys and values appended to caches, and attention of new tokens over them.
// Math       O = softmax(Q K^T / sqrt(E)) V; query i of a sequence sees its first length - added + i + 1 keys
// Shapes     qkv (T,(H+2K)E), rotated · kv (capacity, 2KE) · o (T,HE), any row stride
// Writes     store_kv: rows length - added ... length - 1 of kv with = ; attention_cached: o with =
// Split      (sequence, head), 64 queries at a time; scratch per worker holds one tile of scores
// Reference  attention.hpp: generation equals the packed forward pass in tests/generate/generator_test.cpp
#pragma once

#include "qlora/cpu/attention.hpp"

namespace qlora {
inline namespace v0 {
namespace cpu {

/// Appends keys and values of the new tokens, already rotated, to each sequence's cache.
template <class S>
void store_kv(const AttentionShape& shape, std::span<const CachedSequence<S>> sequences, const S* qkv) {
  const std::int64_t kv_width = std::int64_t{2} * shape.kv_heads * shape.head_dim;
  const std::int64_t query_width = std::int64_t{shape.heads} * shape.head_dim;
  for (const CachedSequence<S>& sequence : sequences) {
    for (int i = 0; i < sequence.added; ++i) {
      const S* row = qkv + std::int64_t{sequence.first + i} * shape.width() + query_width;
      S* to = sequence.kv + std::int64_t{sequence.length - sequence.added + i} * kv_width;
      row_array(to, kv_width) = row_array(row, kv_width);
    }
  }
}

/// Attention of new tokens over cached keys and values; the decode-step twin of `attention`.
template <class N, class S = typename N::S>
void attention_cached(ThreadPool& pool, const AttentionShape& shape, std::span<const CachedSequence<S>> sequences,
                      const S* qkv, Block<S> o, S* scratch, std::int64_t scratch_per_worker) {
  const int e = shape.head_dim;
  const int group = shape.heads / shape.kv_heads;
  const std::int64_t kv_width = std::int64_t{2} * shape.kv_heads * e;
  const S scale = S(1.0F / std::sqrt(static_cast<float>(e)));
  pool.for_tiles(static_cast<int>(sequences.size()) * shape.heads, [&](int index, int worker) {
    const CachedSequence<S>& sequence = sequences[static_cast<std::size_t>(index / shape.heads)];
    const int head = index % shape.heads;
    const S* keys_data = sequence.kv + std::int64_t{head / group} * e;
    const S* values_data = keys_data + std::int64_t{shape.kv_heads} * e;
    S* scores = scratch + worker * scratch_per_worker;
    S lse[attention_tile];
    for (int done = 0; done < sequence.added; done += attention_tile) {
      const int count = std::min(attention_tile, sequence.added - done);
      const int first = sequence.length - sequence.added + done;
      const int keys = first + count;
      const std::int64_t row = sequence.first + done;
      tile_nt<S>(count, keys, e, S(1), {qkv + row * shape.width() + std::int64_t{head} * e, shape.width()},
                 {keys_data, kv_width}, 0, {scores, keys});
      detail::softmax_rows(scores, count, keys, first, scale, lse);
      N::store(scores, std::int64_t{count} * keys);
      const Block<S> target{o.row(row) + std::int64_t{head} * e, o.stride};
      tile_nn<S>(count, e, keys, S(1), {scores, keys}, {values_data, kv_width}, 0, target);
      N::store(target, count, e);
    }
  });
}

#ifdef QLORA_INSTANCE  // numbers.hpp
QLORA_INSTANCE void attention_cached<Numbers<float>>(ThreadPool&, const AttentionShape&,
                                                     std::span<const CachedSequence<float>>, const float*, Block<float>,
                                                     float*, std::int64_t);
#endif

}  // namespace cpu
}  // namespace v0
}  // namespace qlora
