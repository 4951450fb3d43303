// qlora/label.hpp — the label of a token that is not to be predicted.
#pragma once

#include <cstdint>

namespace qlora {
inline namespace v0 {

/// The value that torch's cross-entropy ignores.
inline constexpr std::int32_t ignored_label = -100;

}  // namespace v0
}  // namespace qlora
