// qlora/configs/llama2.hpp — the published LLaMA-2 models, side by side.
// Source: the config.json of each Hugging Face checkpoint. All three: head size 128, eps 1e-5, rope_theta 10000.
#pragma once

#include "qlora/config.hpp"

namespace qlora {
inline namespace v0 {

//                                                  vocab  dim   layers heads kv  head ffn
inline constexpr Config llama2_7b{
    .shape = /*  */ {32000, 4096, 32, 32, 32, 128, 11008}};  ///< 6.7e9 weights: 32 * (4*4096^2 + 3*4096*11008) + ...
inline constexpr Config llama2_13b{.shape = /* */ {32000, 5120, 40, 40, 40, 128, 13824}};  ///< 13.0e9 weights
inline constexpr Config llama2_70b{
    .shape = /* */ {32000, 8192, 80, 64, 8, 128, 28672}};  ///< 69.0e9 weights, 8 query heads share a kv head
/// The same shapes, as the chat models are prompted.
inline constexpr Config llama2_7b_chat = llama2_7b.with(Form::chat);
/// See llama2_7b_chat.
inline constexpr Config llama2_13b_chat = llama2_13b.with(Form::chat);
/// See llama2_7b_chat.
inline constexpr Config llama2_70b_chat = llama2_70b.with(Form::chat);

// Published parameter counts, and those of LoRA r 64 on every linear (peft's print_trainable_parameters).
static_assert(parameters(llama2_7b.shape) == 6'738'415'616);
static_assert(parameters(llama2_13b.shape) == 13'015'864'320);
static_assert(parameters(llama2_70b.shape) == 68'976'648'192);
static_assert(adapter_parameters(llama2_7b.shape, {.rank = 64}) == 159'907'840);
static_assert(adapter_parameters(llama2_13b.shape, {.rank = 64}) == 250'347'520);
static_assert(adapter_parameters(llama2_70b.shape, {.rank = 64}) == 828'375'040);

}  // namespace v0
}  // namespace qlora
