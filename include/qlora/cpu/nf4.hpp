// qlora/cpu/nf4.hpp — from NF4 back to numbers, block by block; nf4_quantize.hpp is the other way.
// Math       w = codebook[code] * absmax_b, with double quantization absmax_b = dynamic8[c8_b] * nested_{b/256} +
//            offset
// Shapes     w (elements), flattened (out, in); codes, absmax, absmax8, nested as in Nf4Layout
// Writes     the output with =
// Numbers    bit-equal to bitsandbytes: a value is rounded to the dtype that the weights had before
// Reference  tests/cpu/nf4_test.cpp against golden results
#pragma once

#include <algorithm>
#include <cstdint>

#include "qlora/cpu/nf4_quantize.hpp"
#include "qlora/cpu/numbers.hpp"
#include "qlora/cpu/threads.hpp"
#include "qlora/nf4.hpp"
#include "qlora/ops.hpp"

namespace qlora {
inline namespace v0 {
namespace cpu {

namespace detail {

[[nodiscard]] inline float block_absmax(const Nf4View& w, const Quant& quant, std::int64_t block) {
  if (w.absmax8 == nullptr) return w.absmax[block];
  return nf4::rounded_product(nf4::dynamic8[w.absmax8[block]], w.nested[block / quant.nested_block]) + w.offset;
}

}  // namespace detail

/// Dequantizes a whole matrix into `out` (elements). With N::rounds, values are rounded to bfloat16 as well.
template <class N>
void dequantize_nf4(ThreadPool& pool, const Nf4View& w, std::int64_t elements, const Quant& quant, typename N::S* out) {
  using S = typename N::S;
  const Nf4Layout layout = Nf4Layout::of(elements, quant);
  for_ranges(pool, layout.blocks, 1024, [&](std::int64_t first_block, std::int64_t last_block, int) {
    for (std::int64_t b = first_block; b < last_block; ++b) {
      const float absmax = detail::block_absmax(w, quant, b);
      S table[16];  // 16 products and roundings stand for 64
      for (std::size_t code = 0; code < 16; ++code) {
        table[code] = N::stored(S(rounded_to(w.state, nf4::codebook[code] * absmax)));
      }
      const std::int64_t first = b * quant.block;
      const std::int64_t last = std::min<std::int64_t>(first + quant.block, elements);
      for (std::int64_t i = first; i < last; i += 2) {
        const unsigned pair = w.codes[i / 2];
        out[i] = table[pair >> 4];
        if (i + 1 < last) out[i + 1] = table[pair & 15U];
      }
    }
  });
}

#ifdef QLORA_INSTANCE  // numbers.hpp
QLORA_INSTANCE void dequantize_nf4<Numbers<float>>(ThreadPool&, const Nf4View&, std::int64_t, const Quant&, float*);
#endif

}  // namespace cpu
}  // namespace v0
}  // namespace qlora
