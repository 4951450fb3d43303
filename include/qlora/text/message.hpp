// qlora/text/message.hpp — one turn of a conversation. Apart from document.hpp, so that the chat form needs std only.
#pragma once

#include <string>

namespace qlora {
inline namespace v0 {

/// A turn; role is "system", "user" or "assistant".
struct Message {
  std::string role;     ///< "system", "user" or "assistant"
  std::string content;  ///< UTF-8
  bool operator==(const Message&) const = default;
};

}  // namespace v0
}  // namespace qlora
