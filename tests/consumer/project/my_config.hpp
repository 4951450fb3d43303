// A user's own model.
#pragma once

#include <qlora/config.hpp>

namespace my {
inline constexpr qlora::Config config{
    .shape = {.vocab = 64, .dim = 64, .layers = 2, .heads = 4, .kv_heads = 2, .head_dim = 16, .ffn = 128},
    .lora = {.rank = 4, .targets = qlora::Proj::q | qlora::Proj::v}};
}  // namespace my
