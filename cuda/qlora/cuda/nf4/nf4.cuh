// qlora/cuda/nf4/nf4.cuh — NF4 weights to bf16, alone or as the wide matrix [W | s B] that a group's products read.
// Math       absmax_b = dynamic8[c8_b] nested_{b/256} + offset;  w = bf16(state(codebook[c] absmax_b)), state f16, bf16
//            or f32;  columns K... of row n: s_p B_p in the slot of its part, 0 in the others;  stacked A in bf16
// Shapes     codes (N K / 2) bytes, absmax (N K / 64); out (N, K) bf16 with any stride; B (N,R), A (XA,K) float
// Writes     out, the XA columns and the stacked A with =; nothing else of a row
// Split      a lane dequantizes 8 weights at a time: a warp reads 128 B of codes and writes 512 B. A warp takes 2048
//            weights with 8 loads in flight; lane l decodes the scale of the l-th of their 32 blocks. 8 lanes share a
//            block of 64: each computes two of its 16 possible values, and a lookup is a shuffle among the 8.
// Needs      K, R and strides multiples of 8; block 64, nested block 256; no -ftz
// Numbers    bit-equal to cpu/nf4.hpp with Numbers<float, Rounding::bf16>: each product is rounded separately
// Cost       0.516 B read and 2 B written per weight, bandwidth-bound; about 9 instructions per weight and lane, of the
//            17 that an H200 can issue in that time
// Reference  cpu/nf4.hpp
#pragma once

#include "qlora/cuda/nf4/matrix.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {

/// Work partition of nf4.cuh. A unit is 8 elements of one row.
struct Nf4Policy {
  static constexpr int threads = 256;
  static constexpr int steps = 8;  ///< units per lane
  static constexpr int chunk_units = 32 * steps;
  static constexpr int block_units = threads * steps;
  static constexpr int max_parts = 3;  ///< q, k, v
};

namespace detail {

static_assert(Nf4Policy::steps * 4 == 32, "one scale per lane: 8 units make a block of 64");

/// One NF4 matrix, and where it goes.
struct WeightJob : Nf4Matrix<std::uint32_t> {
  Divider row_units{};
  int gap = 0;  ///< elements between the end of a row and the next
  __nv_bfloat16* out = nullptr;
};
/// The XA columns of one part.
struct AdapterJob {
  const float* b = nullptr;  ///< null: only zeros
  float scale = 0.0F;
  std::uint32_t slot = 0;  ///< first unit of its own among the columns
  std::uint32_t first_row = 0xFFFFFFFFU;
  int stride = 0;
  __nv_bfloat16* out = nullptr;  ///< first XA column of its first row
};
/// Order of the thread blocks: XA columns, stacked A, weights of each part.
struct PrepareArgs {
  AdapterJob adapter[Nf4Policy::max_parts];
  WeightJob weight[Nf4Policy::max_parts];
  std::uint32_t adapter_units = 0;
  std::uint32_t rank_units = 0;
  Divider width_units{};
  std::uint32_t width = 0;  ///< units of XA columns
  const float* a = nullptr;
  __nv_bfloat16* a_out = nullptr;
  std::uint32_t a_units = 0;
  std::uint32_t a_begin = 0;  ///< first block of each kind
  std::uint32_t weight_begin[Nf4Policy::max_parts] = {0xFFFFFFFFU, 0xFFFFFFFFU, 0xFFFFFFFFU};
};

/// Two of a block's 16 values, the even code's in the low half.
__device__ __forceinline__ std::uint32_t value_pair(float2 codes, float absmax, bool half) {
  float low = __fmul_rn(codes.x, absmax);
  float high = __fmul_rn(codes.y, absmax);
  if (half) {
    low = rounded_half(low);
    high = rounded_half(high);
  }
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const std::uint32_t*>(&both);
}

/// The values of a unit's 8 codes, from the 8 lanes that hold their block's values. All lanes of the warp must call it.
__device__ __forceinline__ uint4 look_up(std::uint32_t pair, std::uint32_t word) {
  const std::uint32_t first_odd = (word >> 4) & 0x01010101U;  // lowest bits of the codes in high nibbles
  const std::uint32_t second_odd = word & 0x01010101U;
  std::uint32_t out[4];
#pragma unroll
  for (unsigned k = 0; k < 4; ++k) {
    // A shuffle of width 8 takes the last three bits of its source lane: code / 2 needs no mask.
    const std::uint32_t first = __shfl_sync(0xFFFFFFFFU, pair, static_cast<int>(word >> (8 * k + 5)), 8);
    const std::uint32_t second = __shfl_sync(0xFFFFFFFFU, pair, static_cast<int>(word >> (8 * k + 1)), 8);
    // Selects bytes 1 0 of `first` and of `second`, or 3 2 where the code is odd: adds 0x22 to that half of the
    // selector.
    const std::uint32_t odd = permute_bytes(first_odd, second_odd, k | (k + 4) << 4 | k << 8 | k << 12);
    out[k] = permute_bytes(first, second, odd * 0x22U + 0x5410U);
  }
  return uint4{out[0], out[1], out[2], out[3]};
}

/// The 2048 weights of one warp.
__device__ __forceinline__ void dequantize_chunk(const WeightJob& job, std::uint32_t chunk) {
  const std::uint32_t lane = threadIdx.x % 32;
  const std::uint32_t first = chunk * Nf4Policy::chunk_units + lane;
  std::uint32_t words[Nf4Policy::steps];
#pragma unroll
  for (unsigned s = 0; s < Nf4Policy::steps; ++s) {
    words[s] = first + 32 * s < job.units ? __ldcs(job.codes + first + 32 * s) : 0U;  // read once: evict first from L2
  }
  const std::uint32_t block = chunk * 32 + lane;
  const float scale = block * 8 < job.units ? block_scale(job, block) : 0.0F;
  const Divider row_units = job.row_units;  // copied once: a job is indexed constant memory
  const auto gap = static_cast<std::uint32_t>(job.gap);
  const std::uint32_t units = job.units;
  const bool half = job.state == DType::f16;  // what is bf16 need not be rounded twice
  __nv_bfloat16* out = job.out;
  const float2 codes = reinterpret_cast<const float2*>(codebook.value)[lane % 8];
#pragma unroll
  for (unsigned s = 0; s < Nf4Policy::steps; ++s) {
    const float absmax = __shfl_sync(0xFFFFFFFFU, scale, static_cast<int>(4 * s + lane / 8));
    const uint4 values = look_up(value_pair(codes, absmax, half), words[s]);
    const std::uint32_t unit = first + 32 * s;
    if (unit < units) {
      const std::uint64_t skipped = std::uint64_t{row_units(unit)} * gap;
      *reinterpret_cast<uint4*>(out + std::uint64_t{unit} * 8 + skipped) = values;
    }
  }
}

/// Eight floats times a scale to bf16, rounded once.
__device__ __forceinline__ device::Pack8 scaled_pack(const float* from, float scale) {
  const float4 low = *reinterpret_cast<const float4*>(from);
  const float4 high = *reinterpret_cast<const float4*>(from + 4);
  const float values[8] = {__fmul_rn(low.x, scale),  __fmul_rn(low.y, scale),  __fmul_rn(low.z, scale),
                           __fmul_rn(low.w, scale),  __fmul_rn(high.x, scale), __fmul_rn(high.y, scale),
                           __fmul_rn(high.z, scale), __fmul_rn(high.w, scale)};
  return device::to_pack(values);
}

__device__ __forceinline__ void write_adapter_unit(const PrepareArgs& args, std::uint32_t unit) {
  const std::uint32_t row = args.width_units(unit);
  const std::uint32_t column = unit - row * args.width;
  const int part = (row >= args.adapter[1].first_row ? 1 : 0) + (row >= args.adapter[2].first_row ? 1 : 0);
  const AdapterJob& job = args.adapter[part];
  const std::uint32_t n = row - job.first_row;
  const std::uint32_t own = column - job.slot;  // becomes a large number left of the slot
  device::Pack8 pack{};
  if (job.b != nullptr && own < args.rank_units) {
    pack = scaled_pack(job.b + (static_cast<std::int64_t>(n) * args.rank_units + own) * 8, job.scale);
  }
  *reinterpret_cast<device::Pack8*>(job.out + static_cast<std::int64_t>(n) * job.stride + column * 8) = pack;
}

static __global__ void __launch_bounds__(Nf4Policy::threads) prepare_group(const __grid_constant__ PrepareArgs args) {
  const std::uint32_t block = blockIdx.x;
  if (block >= args.weight_begin[0]) {
    const int part = (block >= args.weight_begin[1] ? 1 : 0) + (block >= args.weight_begin[2] ? 1 : 0);
    const std::uint32_t chunk = (block - args.weight_begin[part]) * (Nf4Policy::threads / 32) + threadIdx.x / 32;
    if (chunk * Nf4Policy::chunk_units < args.weight[part].units) dequantize_chunk(args.weight[part], chunk);
    return;
  }
  const bool stacked = block >= args.a_begin;
  const std::uint32_t first = (stacked ? block - args.a_begin : block) * Nf4Policy::block_units + threadIdx.x;
#pragma unroll 4
  for (unsigned s = 0; s < Nf4Policy::steps; ++s) {
    const std::uint32_t unit = first + s * Nf4Policy::threads;
    if (stacked) {
      if (unit >= args.a_units) return;
      reinterpret_cast<device::Pack8*>(args.a_out)[unit] = scaled_pack(args.a + std::int64_t{unit} * 8, 1.0F);
    } else {
      if (unit >= args.adapter_units) return;
      write_adapter_unit(args, unit);
    }
  }
}

/// One unit per thread, to float.
static __global__ void __launch_bounds__(Nf4Policy::threads)
    dequantize_float(const Nf4Matrix<std::uint32_t> w, const std::int64_t elements, float* __restrict__ out) {
  const std::uint32_t unit = blockIdx.x * Nf4Policy::threads + threadIdx.x;
  const std::int64_t left = elements - std::int64_t{unit} * 8;
  std::uint32_t word = 0;
  if (left >= 8) {
    word = __ldcs(w.codes + unit);
  } else if (left > 0) {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(w.codes + unit);
    for (int k = 0; 2 * k < left; ++k) word |= static_cast<std::uint32_t>(bytes[k]) << (8 * k);
  }
  const float absmax = left > 0 ? block_scale(w, unit / 8) : 0.0F;
  const float code = codebook.value[threadIdx.x % 16];
  float values[8];
#pragma unroll
  for (unsigned i = 0; i < 8; ++i) {
    const unsigned shift = 8 * (i / 2) + (i % 2 == 0 ? 4 : 0);  // the first of two is in the high nibble
    const float value = __fmul_rn(__shfl_sync(0xFFFFFFFFU, code, static_cast<int>(word >> shift), 16), absmax);
    values[i] = in_state(value, w.state);
  }
  float* to = out + std::int64_t{unit} * 8;
  if (left >= 8) {
    reinterpret_cast<float4*>(to)[0] = float4{values[0], values[1], values[2], values[3]};
    reinterpret_cast<float4*>(to)[1] = float4{values[4], values[5], values[6], values[7]};
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i < left) to[i] = values[i];
    }
  }
}

[[nodiscard]] inline std::uint32_t nf4_blocks(std::int64_t units, int per_block) {
  return static_cast<std::uint32_t>((units + per_block - 1) / per_block);
}
[[nodiscard]] inline WeightJob weight_job(const Nf4View& w, int rows, int cols, const Quant& quant, bf16* out,
                                          int stride) {
  QLORA_EXPECTS(rows > 0 && cols > 0 && cols % 8 == 0, "a matrix of ", rows, " x ", cols,
                ": columns must be a multiple of 8");
  QLORA_EXPECTS(stride >= cols && stride % 8 == 0, "rows of ", cols, " at a stride of ", stride);
  QLORA_EXPECTS(starts_on(out, 16), "dequantized weights must start on 16 bytes");
  WeightJob job{nf4_matrix<std::uint32_t>(w, std::int64_t{rows} * cols, quant)};
  job.row_units = Divider::by(static_cast<std::uint32_t>(cols / 8));
  job.gap = stride - cols;
  job.out = reinterpret_cast<__nv_bfloat16*>(out);
  return job;
}

/// The XA columns of all parts and the addresses of their rows. `width` is K + XA.
inline void plan_adapters(const GroupArgs& group, std::span<const Part> parts, int width, Rows<bf16> slots,
                          PrepareArgs& args) {
  QLORA_EXPECTS(group.rank > 0 && group.rank % 8 == 0, "adapter rank ", group.rank, " is not a multiple of 8");
  QLORA_EXPECTS(group.adapted > 0, "a group without adapters has a part with one");
  std::uint32_t row = 0;
  std::uint32_t slot = 0;
  args.rank_units = static_cast<std::uint32_t>(group.rank / 8);
  args.width = static_cast<std::uint32_t>(group.adapter_width() / 8);
  args.width_units = Divider::by(args.width);
  for (std::size_t p = 0; p < parts.size(); ++p) {
    const Part& part = parts[p];
    AdapterJob& job = args.adapter[p];
    // Products see a resident copy as const; its XA columns follow the adapters and are written here.
    bf16* rows = part.weight.dense != nullptr ? const_cast<bf16*>(part.weight.dense)
                                              : group.weight_scratch + static_cast<std::int64_t>(row) * width;
    job.stride = part.weight.dense != nullptr ? part.weight.stride : width;
    int before = group.in;  // columns
    if (slots.data != nullptr) {
      rows = slots.data + static_cast<std::int64_t>(row) * slots.stride;
      job.stride = slots.stride;
      before = 0;
    }
    QLORA_EXPECTS(job.stride >= width - group.in + before && job.stride % 8 == 0 && starts_on(rows, 16),
                  "rows of K + XA = ", width, " at a stride of ", job.stride);
    job.out = reinterpret_cast<__nv_bfloat16*>(rows) + before;
    job.first_row = row;
    if (part.a != nullptr) {
      QLORA_EXPECTS(part.b != nullptr && starts_on(part.b, 16), "adapter B must start on 16 bytes");
      job.b = part.b;
      job.scale = part.scale;
      job.slot = slot;
      slot += args.rank_units;
    }
    row += static_cast<std::uint32_t>(part.weight.rows);
  }
  QLORA_EXPECTS(slot == args.width, "parts with an adapter: ", slot / args.rank_units, ", the group says ",
                group.adapted);
  args.adapter_units = row * args.width;
}

}  // namespace detail

QLORA_CUDA_LAUNCHER void dequantize(Context& context, const Nf4View& w, int rows, int cols, const Quant& quant,
                                    Rows<bf16> out) {
  detail::PrepareArgs args;
  args.weight[0] = detail::weight_job(w, rows, cols, quant, out.data, out.stride);
  args.weight_begin[0] = 0;
  const std::uint32_t blocks = detail::nf4_blocks(args.weight[0].units, Nf4Policy::block_units);
  detail::prepare_group<<<blocks, Nf4Policy::threads, 0, context.stream>>>(args);
  check_launch("dequantize");
}

QLORA_CUDA_LAUNCHER void dequantize_float(Context& context, const Nf4View& w, std::int64_t elements, const Quant& quant,
                                          float* out) {
  QLORA_EXPECTS(detail::starts_on(out, 16), "dequantized weights must start on 16 bytes");
  const auto matrix = detail::nf4_matrix<std::uint32_t>(w, elements, quant);
  const std::uint32_t blocks = detail::nf4_blocks(matrix.units, Nf4Policy::threads);
  detail::dequantize_float<<<blocks, Nf4Policy::threads, 0, context.stream>>>(matrix, elements, out);
  check_launch("dequantize_float");
}

QLORA_CUDA_LAUNCHER void prepare_group(Context& context, const GroupArgs& group, std::span<const Part> parts,
                                       bool weights, bool stacked_a, Rows<bf16> slots) {
  QLORA_EXPECTS(!parts.empty() && parts.size() <= std::size_t{Nf4Policy::max_parts}, "a group of ", parts.size(),
                " parts");
  QLORA_EXPECTS(group.in > 0 && group.in % 8 == 0, "input width ", group.in, " is not a multiple of 8");
  const Part* first_adapted = nullptr;
  for (const Part& part : parts) {
    if (part.a != nullptr && first_adapted == nullptr) first_adapted = &part;
  }
  const int width = group.in + (first_adapted != nullptr ? group.adapter_width() : 0);
  detail::PrepareArgs args;
  if (first_adapted != nullptr) detail::plan_adapters(group, parts, width, slots, args);
  if (first_adapted != nullptr && stacked_a) {
    QLORA_EXPECTS(detail::starts_on(first_adapted->a, 16) && detail::starts_on(group.adapter_scratch, 16),
                  "adapter A and its copy must start on 16 bytes");
    args.a = first_adapted->a;
    args.a_out = reinterpret_cast<__nv_bfloat16*>(group.adapter_scratch);
    args.a_units = args.width * static_cast<std::uint32_t>(group.in);
  }
  args.a_begin = detail::nf4_blocks(args.adapter_units, Nf4Policy::block_units);
  std::uint32_t blocks = args.a_begin + detail::nf4_blocks(args.a_units, Nf4Policy::block_units);
  std::int64_t row = 0;
  std::size_t job = 0;
  for (const Part& part : parts) {
    if (weights && part.weight.dense == nullptr) {
      args.weight[job] = detail::weight_job(part.weight.nf4, part.weight.rows, group.in, group.quant,
                                            group.weight_scratch + row * width, width);
      args.weight_begin[job] = blocks;
      blocks += detail::nf4_blocks(args.weight[job].units, Nf4Policy::block_units);
      ++job;
    }
    row += part.weight.rows;
  }
  if (blocks == 0) return;
  detail::prepare_group<<<blocks, Nf4Policy::threads, 0, context.stream>>>(args);
  check_launch("prepare_group");
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
