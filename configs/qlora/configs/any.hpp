// qlora/configs/any.hpp — configs whose every number is read from the model directory or the options: one compilation
// runs any LLaMA-architecture model.
#pragma once

#include "qlora/config.hpp"

namespace qlora {
inline namespace v0 {

/// Adapters of any rank and targets on an NF4 base of any shape.
inline constexpr Config any_model{.shape = dynamic_shape, .lora = dynamic_lora};
/// Training of every weight, in a model of any shape.
inline constexpr Config any_model_all_weights = Config{.shape = dynamic_shape}.with(Trainable::all);

}  // namespace v0
}  // namespace qlora
