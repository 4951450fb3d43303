// qlora/configs/tiny.hpp — the small chat model that comes with the library (examples/models/tiny-chat).
// Small enough to train from scratch on a CPU, yet with every part of the large ones: grouped queries, untied head.
#pragma once

#include "qlora/config.hpp"

namespace qlora {
inline namespace v0 {

/// 3.7e6 weights.
//                                              vocab dim layers heads kv head ffn
inline constexpr Config tiny{.shape = /*    */ {1536, 256, 4, 8, 4, 32, 704}};
/// The same, as tiny-chat is prompted.
inline constexpr Config tiny_chat = tiny.with(Form::chat);

// One layer: q and o 2 * 256*256, k and v 2 * 128*256 (two heads share a kv head), gate, up and down 3 * 704*256.
static_assert(linear_parameters(tiny.shape) == 4 * (131'072 + 65'536 + 540'672));
// All: the four layers, embedding and head 2 * 1536*256, nine norms of 256.
static_assert(parameters(tiny.shape) == 2'949'120 + 786'432 + 2'304);
static_assert(parameters(tiny.shape) == 3'737'856);
// LoRA r 64 on every linear, per layer: q and o 64 * 512 each, k and v 64 * 384 each, the three of the MLP 64 * 960.
static_assert(adapter_parameters(tiny.shape, {.rank = 64}) == 4 * (65'536 + 49'152 + 184'320));

}  // namespace v0
}  // namespace qlora
