// qlora/cuda/decode/decode.cuh — turns queries and keys of new tokens, appends keys and values to caches, and
// attention over them.
// Math       O = softmax(Q K^T / sqrt(E)) V; query i of a sequence sees its first length - added + i + 1 keys
// Shapes     qkv (T,(H+2K)E) bf16 · kv (capacity, 2KE) bf16 · o (T,HE) bf16, any row stride
//            partial (sequences, H, splits, 2 + E) float in the context's workspace: maximum, sum, weighted values
// Writes     rows length - added ... length - 1 of kv and o with = ; qkv may be turned in place
// Split      one new token: a block of 256 threads per (256 keys, kv head, sequence) serves up to 4 query heads, with
//            E/8 lanes (rounded up to a power of 2) per key; then a block per (head, sequence) combines the splits. If
//            all sequences have one new token, the block turns its queries itself, and the one with the newest key
//            turns and stores that: one launch. Several new tokens: rope.cuh, store_kv_kernel and prefill.cuh
// Needs      E a multiple of 8, at most 256; 16-byte alignment
// Numbers    fp32 throughout; lane groups and splits are combined in order, and a sequence's splits depend only on its
//            own length: the bits do not depend on the rest of the batch
// Cost       bound by memory: each key and value is read once per 4 query heads
// Reference  attention_cached in cpu.hpp: rope, store_kv and attention_cached of cpu/
#pragma once

#include <algorithm>
#include <cmath>

#include "qlora/cuda/decode/prefill.cuh"
#include "qlora/cuda/rowwise/turn.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {

namespace detail {

inline constexpr int merge_threads = 128;

template <int Lanes, int Heads>
struct DecodePolicy {
  static constexpr int lanes = Lanes;  ///< lanes that share a key, eight columns each
  static constexpr int heads = Heads;  ///< query heads of one kv head per block
  static constexpr int threads = 256;
  static constexpr int groups = threads / Lanes;  ///< lane groups, each with its own softmax
  static constexpr int keys = 4;                  ///< loads that a group has in flight
};

/// A lane group's softmax over its keys; scores are exponents of two.
template <class Policy>
struct DecodeState {
  float most[Policy::heads];
  float sum[Policy::heads];
  float out[Policy::heads][8];  ///< this lane's columns
};

/// A lane group's next keys and values, or zeros in lanes beyond E and for keys beyond the last.
template <class Policy>
struct DecodeKeys {
  device::Pack8 k[Policy::keys];
  device::Pack8 v[Policy::keys];

  /// Keys first + u * groups, of those below `limit`.
  __device__ __forceinline__ void load(const bf16* keys, const bf16* values, std::int64_t kv_width, int first,
                                       int limit, bool active) {
#pragma unroll
    for (int u = 0; u < Policy::keys; ++u) {
      const int j = first + u * Policy::groups;
      const bool there = active && j < limit;
      k[u] = there ? device::load8(keys + j * kv_width) : zero_pack();
      v[u] = there ? device::load8(values + j * kv_width) : zero_pack();
    }
  }
  /// The key that the cache does not have yet.
  __device__ __forceinline__ void place(int first, int newest, const device::Pack8& key, const device::Pack8& value) {
#pragma unroll
    for (int u = 0; u < Policy::keys; ++u) {
      if (first + u * Policy::groups != newest) continue;
      k[u] = key;
      v[u] = value;
    }
  }
};

/// One step: keys first + u * groups, below `limit`.
template <class Policy>
__device__ __forceinline__ void decode_step(DecodeState<Policy>& state, const float (&q)[Policy::heads][8],
                                            const DecodeKeys<Policy>& held, int first, int limit) {
  float score[Policy::keys][Policy::heads];
#pragma unroll
  for (int u = 0; u < Policy::keys; ++u) {
    float key[8];
    device::to_floats(held.k[u], key);
#pragma unroll
    for (int h = 0; h < Policy::heads; ++h) {
      float dot = 0.0F;
#pragma unroll
      for (int i = 0; i < 8; ++i) dot += q[h][i] * key[i];
#pragma unroll
      for (int distance = Policy::lanes / 2; distance > 0; distance /= 2) {
        dot += __shfl_xor_sync(0xffffffffU, dot, distance);
      }
      score[u][h] = first + u * Policy::groups < limit ? dot : -INFINITY;
    }
  }
#pragma unroll
  for (int h = 0; h < Policy::heads; ++h) {
    float here = state.most[h];
#pragma unroll
    for (int u = 0; u < Policy::keys; ++u) here = fmaxf(here, score[u][h]);
    const float shift = here == -INFINITY ? 0.0F : here;  // a group without a key yet
    const float factor = exp2f(state.most[h] - shift);
    state.most[h] = here;
    state.sum[h] *= factor;
#pragma unroll
    for (int i = 0; i < 8; ++i) state.out[h][i] *= factor;
#pragma unroll
    for (int u = 0; u < Policy::keys; ++u) {
      score[u][h] = exp2f(score[u][h] - shift);
      state.sum[h] += score[u][h];
    }
  }
#pragma unroll
  for (int u = 0; u < Policy::keys; ++u) {
    float value[8];
    device::to_floats(held.v[u], value);
#pragma unroll
    for (int h = 0; h < Policy::heads; ++h) {
#pragma unroll
      for (int i = 0; i < 8; ++i) state.out[h][i] += score[u][h] * value[i];
    }
  }
}

/// Tables of the rotary embedding (positions, E/2); null: queries are turned, and keys in the cache.
struct RopeTables {
  const float* cosine = nullptr;
  const float* sine = nullptr;
};
/// Eight columns of a head from `octet` on, of the half that the lane is in: turned, where there are tables.
struct DecodeTurn {
  int half = 0;      ///< E/2
  bool low = false;  ///< whether the lane's columns are in the lower half
  bool active = false;
  float c[8] = {};
  float s[8] = {};

  __device__ __forceinline__ DecodeTurn(const RopeTables& tables, int head_dim, int column, int position)
      : half(head_dim / 2), low(column < head_dim / 2), active(tables.cosine != nullptr && column < head_dim) {
    if (!active) return;
    const std::int64_t at = std::int64_t{position} * half + (low ? column : column - half);
    device::load8_constant(tables.cosine + at, c);
    device::load8_constant(tables.sine + at, s);
  }
  /// The pack at `from`; its other half is E/2 columns away.
  [[nodiscard]] __device__ __forceinline__ device::Pack8 of(const bf16* from) const {
    if (!active) return device::load8(from);
    const bf16* at = low ? from : from - half;
    float a[8];
    float b[8];
    device::to_floats(device::load8(at), a);
    device::to_floats(device::load8(at + half), b);
    turn8(a, b, c, s);
#pragma unroll
    for (int i = 0; i < 8; ++i) a[i] = low ? a[i] : b[i];
    return device::to_pack(a);
  }
};

/// partial null: there is one split, and the kernel writes o.
template <class Policy>
static __global__ void __launch_bounds__(Policy::threads)
    decode_kernel(AttentionShape shape, const CachedSequence<bf16>* __restrict__ sequences,
                  const bf16* __restrict__ qkv, RopeTables tables, float scale, int splits, float* __restrict__ partial,
                  Rows<bf16> o) {
  static_assert(Policy::lanes >= 4 && Policy::lanes <= 32, "a key's lanes are in one warp");
  constexpr int columns = Policy::lanes * 8;
  __shared__ float most[Policy::groups][Policy::heads];
  __shared__ float sums[Policy::groups][Policy::heads];
  __shared__ float outs[Policy::groups][Policy::heads][columns];
  device::let_next_start();
  device::wait_for_previous();
  const CachedSequence<bf16> sequence = sequences[blockIdx.z];
  const int begin = static_cast<int>(blockIdx.x) * split_keys;
  if (sequence.added != 1 || begin >= sequence.length) return;
  const int limit = min(begin + split_keys, sequence.length);
  const int e = shape.head_dim;
  const int group = shape.heads / shape.kv_heads;
  const int blocks = (group + Policy::heads - 1) / Policy::heads;  // query heads of one kv head
  const int kv_head = static_cast<int>(blockIdx.y) / blocks;
  const int head = kv_head * group + static_cast<int>(blockIdx.y) % blocks * Policy::heads;
  const int heads = min(Policy::heads, (kv_head + 1) * group - head);
  const int lane = static_cast<int>(threadIdx.x) % Policy::lanes;
  const int index = static_cast<int>(threadIdx.x) / Policy::lanes;
  const bool active = lane * 8 < e;
  const std::int64_t kv_width = std::int64_t{2} * shape.kv_heads * e;
  bf16* keys = sequence.kv + std::int64_t{kv_head} * e + lane * 8;
  bf16* values = keys + std::int64_t{shape.kv_heads} * e;
  const int newest = sequence.length - 1;
  const bool fresh = tables.cosine != nullptr && newest < limit;  // the newest key is not in the cache yet
  DecodeKeys<Policy> held;
  held.load(keys, values, kv_width, begin + index, fresh ? newest : limit, active);
  const bf16* row = qkv + std::int64_t{sequence.first} * qkv_width(shape) + lane * 8;
  const DecodeTurn turn(tables, e, lane * 8, newest);
  device::Pack8 key = zero_pack();
  device::Pack8 value = zero_pack();
  if (fresh && active) {
    const bf16* from = row + (std::int64_t{shape.heads} + kv_head) * e;
    key = turn.of(from);
    value = device::load8(from + std::int64_t{shape.kv_heads} * e);
    if (index == 0 && static_cast<int>(blockIdx.y) % blocks == 0) {
      device::store8(keys + newest * kv_width, key);
      device::store8(values + newest * kv_width, value);
    }
  }
  float q[Policy::heads][8];
  DecodeState<Policy> state;
#pragma unroll
  for (int h = 0; h < Policy::heads; ++h) {
    device::to_floats(active && h < heads ? turn.of(row + (std::int64_t{head} + h) * e) : zero_pack(), q[h]);
    state.most[h] = -INFINITY;
    state.sum[h] = 0.0F;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      q[h][i] *= scale;
      state.out[h][i] = 0.0F;
    }
  }
  constexpr int step = Policy::groups * Policy::keys;
  for (int base = begin; base < limit; base += step) {  // uniform: the loop has shuffles
    DecodeKeys<Policy> next;
    next.load(keys, values, kv_width, base + step + index, fresh ? newest : limit, active);
    if (fresh && active) held.place(base + index, newest, key, value);
    decode_step<Policy>(state, q, held, base + index, limit);
    held = next;
  }
#pragma unroll
  for (int h = 0; h < Policy::heads; ++h) {
    if (lane == 0) {
      most[index][h] = state.most[h];
      sums[index][h] = state.sum[h];
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) outs[index][h][lane * 8 + i] = state.out[h][i];
  }
  __syncthreads();
  for (int n = static_cast<int>(threadIdx.x); n < heads * e; n += Policy::threads) {
    const int h = n / e;
    const int column = n % e;
    float largest = most[0][h];
    for (int g = 1; g < Policy::groups; ++g) largest = fmaxf(largest, most[g][h]);
    float sum = 0.0F;
    float out = 0.0F;
    for (int g = 0; g < Policy::groups; ++g) {
      const float weight = exp2f(most[g][h] - largest);
      sum += weight * sums[g][h];
      out += weight * outs[g][h][column];
    }
    if (partial == nullptr) {
      device::native(o.data)[sequence.first * std::int64_t{o.stride} + std::int64_t{head + h} * e + column] =
          __float2bfloat16_rn(out / sum);
      continue;
    }
    float* record = partial + ((std::int64_t{blockIdx.z} * shape.heads + head + h) * splits + blockIdx.x) * (e + 2);
    if (column == 0) {
      record[0] = largest;
      record[1] = sum;
    }
    record[2 + column] = out;
  }
}

static __global__ void __launch_bounds__(merge_threads)
    merge_splits_kernel(AttentionShape shape, const CachedSequence<bf16>* __restrict__ sequences, int splits,
                        const float* __restrict__ partial, Rows<bf16> o) {
  device::let_next_start();
  device::wait_for_previous();
  const CachedSequence<bf16> sequence = sequences[blockIdx.y];
  if (sequence.added != 1) return;
  const int e = shape.head_dim;
  const int count = (sequence.length + split_keys - 1) / split_keys;
  const float* records = partial + (std::int64_t{blockIdx.y} * shape.heads + blockIdx.x) * splits * (e + 2);
  float largest = records[0];
  for (int i = 1; i < count; ++i) largest = fmaxf(largest, records[std::int64_t{i} * (e + 2)]);
  for (int column = static_cast<int>(threadIdx.x); column < e; column += merge_threads) {
    float sum = 0.0F;
    float out = 0.0F;
    for (int i = 0; i < count; ++i) {
      const float* record = records + std::int64_t{i} * (e + 2);
      const float weight = exp2f(record[0] - largest);
      sum += weight * record[1];
      out += weight * record[2 + column];
    }
    device::native(o.data)[sequence.first * std::int64_t{o.stride} + std::int64_t{blockIdx.x} * e + column] =
        __float2bfloat16_rn(out / sum);
  }
}

static __global__ void __launch_bounds__(row_threads)
    store_kv_kernel(AttentionShape shape, const CachedSequence<bf16>* __restrict__ sequences,
                    const bf16* __restrict__ qkv) {
  device::let_next_start();
  device::wait_for_previous();
  const CachedSequence<bf16> sequence = sequences[blockIdx.y];
  const int i = static_cast<int>(blockIdx.x);
  if (i >= sequence.added) return;
  const int kv_width = 2 * shape.kv_heads * shape.head_dim;
  const bf16* from =
      qkv + (std::int64_t{sequence.first} + i) * qkv_width(shape) + std::int64_t{shape.heads} * shape.head_dim;
  bf16* to = sequence.kv + std::int64_t{sequence.length - sequence.added + i} * kv_width;
  for (int at = static_cast<int>(threadIdx.x); at < kv_width / 8; at += row_threads) {
    device::store8(to + at * 8, device::load8(from + at * 8));
  }
}

/// Calls `use` with the policy for heads of `head_dim` columns with `group` query heads per kv head.
template <class Use>
void with_decode_policy(int head_dim, int group, Use&& use) {
  const auto with_lanes = [&](auto single, auto several) {
    if (group == 1) {
      use(single);
    } else {
      use(several);
    }
  };
  if (head_dim <= 32) return with_lanes(DecodePolicy<4, 1>{}, DecodePolicy<4, 4>{});
  if (head_dim <= 64) return with_lanes(DecodePolicy<8, 1>{}, DecodePolicy<8, 4>{});
  if (head_dim <= 128) return with_lanes(DecodePolicy<16, 1>{}, DecodePolicy<16, 4>{});
  return with_lanes(DecodePolicy<32, 1>{}, DecodePolicy<32, 4>{});
}

/// Attention of the sequences with one new token; `longest` is the maximum of their lengths.
inline void launch_decode(Context& context, const AttentionShape& shape, int sequences, int longest,
                          const CachedSequence<bf16>* staged, const bf16* qkv, const RopeTables& tables, float scale,
                          Rows<bf16> o) {
  const int splits = key_splits(longest);
  const std::int64_t each = std::int64_t{shape.heads} * splits * (shape.head_dim + 2) * std::int64_t{sizeof(float)};
  std::int64_t at_once = sequences;
  float* partial = nullptr;
  if (splits > 1) {
    at_once = std::min<std::int64_t>(sequences, context.workspace_bytes / each);
    partial = reinterpret_cast<float*>(context.workspace);
    QLORA_EXPECTS(at_once > 0, "attention_cached: ", longest, " keys need ", each,
                  " bytes of workspace, the context has ", context.workspace_bytes);
  }
  for (std::int64_t first = 0; first < sequences; first += at_once) {
    const auto count = static_cast<unsigned>(std::min<std::int64_t>(at_once, sequences - first));
    with_decode_policy(shape.head_dim, shape.heads / shape.kv_heads, [&](auto policy) {
      using Policy = decltype(policy);
      const int blocks = shape.kv_heads * ((shape.heads / shape.kv_heads + Policy::heads - 1) / Policy::heads);
      const dim3 grid(static_cast<unsigned>(splits), static_cast<unsigned>(blocks), count);
      launch(context, true, "attention_cached, one new token", decode_kernel<Policy>, grid, dim3(Policy::threads), 0,
             shape, staged + first, qkv, tables, scale, splits, partial, o);
    });
    if (partial == nullptr) continue;
    const dim3 grid(static_cast<unsigned>(shape.heads), count);
    launch(context, true, "attention_cached, joining splits", merge_splits_kernel, grid, dim3(merge_threads), 0, shape,
           staged + first, splits, partial, o);
  }
}

/// Checks the sequences; returns them in device memory.
inline const CachedSequence<bf16>* stage_sequences(Context& context, const AttentionShape& shape,
                                                   std::span<const CachedSequence<bf16>> sequences, const bf16* qkv) {
  const char* op = "attention_cached";
  QLORA_EXPECTS(shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0, op, ": ", shape.heads,
                " query heads cannot share ", shape.kv_heads, " kv heads");
  QLORA_EXPECTS(shape.head_dim > 0 && shape.head_dim % 8 == 0, op, ": the head dimension ", shape.head_dim,
                " is not a multiple of 8");
  QLORA_EXPECTS(sequences.size() <= 65535, op, ": ", sequences.size(), " sequences, more than a grid holds");
  expect_packs(op, "qkv", Rows<const bf16>{qkv, shape.width()}, shape.width());
  const int kv_width = 2 * shape.kv_heads * shape.head_dim;
  for (const CachedSequence<bf16>& sequence : sequences) {
    QLORA_EXPECTS(sequence.added > 0 && sequence.added <= sequence.length, op, ": ", sequence.added,
                  " new tokens in a sequence of ", sequence.length);
    expect_packs(op, "a cache", Rows<bf16>{sequence.kv, kv_width}, kv_width);
  }
  return static_cast<const CachedSequence<bf16>*>(
      stage(context, sequences.data(), static_cast<std::int64_t>(sequences.size_bytes())));
}

}  // namespace detail

QLORA_CUDA_LAUNCHER void attention_cached(Context& context, const AttentionShape& shape, const float* cosine,
                                          const float* sine, const std::int32_t* position, int tokens,
                                          std::span<const CachedSequence<bf16>> sequences, bf16* qkv, Rows<bf16> o) {
  if (sequences.empty()) return;
  QLORA_EXPECTS(shape.head_dim <= 256, "attention_cached: the head dimension ", shape.head_dim, " is above 256");
  expect_packs("attention_cached", "o", o, shape.heads * shape.head_dim);
  const CachedSequence<bf16>* staged = detail::stage_sequences(context, shape, sequences, qkv);
  const float scale = log2_e / std::sqrt(static_cast<float>(shape.head_dim));
  const auto count = static_cast<int>(sequences.size());
  int keys = 0;     // of the longest sequence with one new token
  int queries = 0;  // maximum of new tokens over the sequences with several
  for (const CachedSequence<bf16>& sequence : sequences) {
    if (sequence.added == 1) {
      keys = std::max(keys, sequence.length);
    } else {
      queries = std::max(queries, sequence.added);
    }
  }
  if (queries == 0) {
    const detail::RopeTables tables{cosine, sine};
    return detail::launch_decode(context, shape, count, keys, staged, qkv, tables, scale, o);
  }
  rope(context, tokens, shape, cosine, sine, position, 1, qkv);
  const dim3 grid(static_cast<unsigned>(queries), static_cast<unsigned>(count));
  launch(context, true, "attention_cached, keys", detail::store_kv_kernel, grid, dim3(row_threads), 0, shape, staged,
         qkv);
  if (keys > 0) detail::launch_decode(context, shape, count, keys, staged, qkv, {}, scale, o);
  const auto prefill = [&](auto policy) {
    detail::launch_prefill<decltype(policy)>(context, shape, count, queries, staged, qkv, scale, o);
  };
  if (shape.head_dim <= 32) return prefill(detail::PrefillPolicy<32>{});
  if (shape.head_dim <= 64) return prefill(detail::PrefillPolicy<64>{});
  if (shape.head_dim <= 128) return prefill(detail::PrefillPolicy<128>{});
  return prefill(detail::PrefillPolicy<256>{});
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
