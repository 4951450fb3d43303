// refusal.hpp — the message of the qlora::Error that a call throws.
#pragma once

#include <string>

#include "qlora/error.hpp"

namespace test {

/// Empty where nothing is thrown. Any other exception passes.
template <class Call>
[[nodiscard]] std::string refusal(const Call& call) {
  try {
    call();
  } catch (const qlora::Error& error) {
    return error.what();
  }
  return {};
}

}  // namespace test
