// tests/compile_fail/case.hpp — what the cases share: a config that is right, and the switch that makes a case right.
#pragma once

#include "qlora/config.hpp"

#ifdef POSITIVE
inline constexpr bool right = true;
#else
inline constexpr bool right = false;
#endif

inline constexpr qlora::Config sound{
    .shape = {.vocab = 64, .dim = 32, .layers = 2, .heads = 4, .kv_heads = 2, .head_dim = 8, .ffn = 96},
    .lora = {.rank = 8, .targets = qlora::Proj::all}};

/// What Model, Trainer and Generator ask of a config.
template <qlora::Config C>
requires qlora::ValidConfig<C>
struct User {
};
