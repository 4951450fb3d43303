// qlora/configs/relatives.hpp — published models of LLaMA's architecture by others and from later on, side by side.
// Source: the shapes as published, checked by the published parameter counts below, not by the files. All: eps 1e-5.
#pragma once

#include "qlora/config.hpp"

namespace qlora {
inline namespace v0 {

//                                                        vocab   dim   layers heads kv head ffn
/// TinyLlama-1.1B, all versions.
inline constexpr Config tinyllama_1b{.shape = /*     */ {32000, 2048, 22, 32, 4, 64, 5632}};
/// CodeLlama-7b and its Instruct version; the Python version has a vocabulary of 32,000.
inline constexpr Config codellama_7b{.shape = /*     */ {32016, 4096, 32, 32, 32, 128, 11008}, .rope_theta = 1e6F};
/// CodeLlama-13b and its Instruct version.
inline constexpr Config codellama_13b{.shape = /*    */ {32016, 5120, 40, 40, 40, 128, 13824}, .rope_theta = 1e6F};
/// Mistral-7B-v0.1. Its attention sees 4,096 tokens; longer texts are refused.
inline constexpr Config mistral_7b_v01{.shape = /*   */ {32000, 4096, 32, 32, 8, 128, 14336}};
/// Llama-3.1-8B and its Instruct version.
inline constexpr Config llama31_8b{
    .shape = /*                                      */ {128256, 4096, 32, 32, 8, 128, 14336},
    .rope_theta = 5e5F,
    .rope_scaling = {.kind = RopeKind::llama3, .factor = 8.0F, .old_positions = 8192, .low = 1.0F, .high = 4.0F}};
/// SmolLM2-135M.
inline constexpr Config smollm2_135m{.shape = /*     */ {49152, 576, 30, 9, 3, 64, 1536, true}, .rope_theta = 1e5F};
/// SmolLM2-360M.
inline constexpr Config smollm2_360m{.shape = /*     */ {49152, 960, 32, 15, 5, 64, 2560, true}, .rope_theta = 1e5F};
/// SmolLM2-1.7B.
inline constexpr Config smollm2_1b7{.shape = /*      */ {49152, 2048, 24, 32, 32, 64, 8192, true},
                                    .rope_theta = 1.3e5F};

// Parameter counts of the checkpoints' safetensors, as their pages state them.
static_assert(parameters(tinyllama_1b.shape) == 1'100'048'384);
static_assert(parameters(codellama_7b.shape) == 6'738'546'688);
static_assert(parameters(codellama_13b.shape) == 13'016'028'160);
static_assert(parameters(mistral_7b_v01.shape) == 7'241'732'096);
static_assert(parameters(llama31_8b.shape) == 8'030'261'248);
static_assert(parameters(smollm2_135m.shape) == 134'515'008);
static_assert(parameters(smollm2_360m.shape) == 361'821'120);
static_assert(parameters(smollm2_1b7.shape) == 1'711'376'384);

}  // namespace v0
}  // namespace qlora
