// qlora/text/message.hpp — one turn of a conversation.
#pragma once

#include <string>

namespace qlora {
inline namespace v0 {

/// A turn; role is "system", "user" or "assistant".
struct Message {
  std::string role;
  std::string content;
};

}  // namespace v0
}  // namespace qlora
