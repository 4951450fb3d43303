// qlora/net/xml.hpp — a small XML answer of a server as a tree of names and texts. The parser is libxml2's, which is
// kept from the network, from files and from entities that grow, and refuses more than 256 levels.
#pragma once

#include <libxml/parser.h>
#include <libxml/tree.h>

#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "qlora/error.hpp"

namespace qlora {
inline namespace v0 {
namespace net {

/// An element: its text without that of its children, and these in their order. Attributes are left out.
struct XmlElement {
  std::string name;                  ///< without a namespace
  std::string text;                  ///< as it stands, entities resolved
  std::vector<XmlElement> children;  ///< elements inside

  /// The first child of a name; null: there is none.
  [[nodiscard]] const XmlElement* find(std::string_view wanted) const {
    for (const XmlElement& child : children)
      if (child.name == wanted) return &child;
    return nullptr;
  }
  /// The text of the first child of a name; empty where there is none.
  [[nodiscard]] std::string text_of(std::string_view wanted) const {
    const XmlElement* child = find(wanted);
    return child == nullptr ? std::string() : child->text;
  }
};

namespace detail {

[[nodiscard]] inline XmlElement xml_element(const xmlNode* node) {
  const auto text_of = [](const xmlChar* text) {
    return text == nullptr ? std::string_view() : std::string_view(reinterpret_cast<const char*>(text));
  };
  XmlElement element{.name = std::string(text_of(node->name)), .text = {}, .children = {}};
  for (const xmlNode* child = node->children; child != nullptr; child = child->next) {
    if (child->type == XML_ELEMENT_NODE) element.children.push_back(xml_element(child));
    if (child->type == XML_TEXT_NODE || child->type == XML_CDATA_SECTION_NODE) element.text += text_of(child->content);
  }
  return element;
}

}  // namespace detail

/// The root of a document. Throws Error (network), which says `where`, for what is no whole XML.
[[nodiscard]] inline XmlElement parse_xml(std::string_view text, std::string_view where) {
  static std::once_flag once;
  std::call_once(once, [] { xmlInitParser(); });
  if (text.size() > static_cast<std::size_t>(std::numeric_limits<int>::max()))
    throw Error(concat(where, ": an answer too long to be read"), ErrorKind::network);
  constexpr int options = XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING;
  const std::unique_ptr<xmlDoc, decltype(&xmlFreeDoc)> document(
      xmlReadMemory(text.data(), static_cast<int>(text.size()), nullptr, nullptr, options), &xmlFreeDoc);
  const xmlNode* root = document ? xmlDocGetRootElement(document.get()) : nullptr;
  if (root == nullptr)
    throw Error(concat(where, ": the answer is no XML; is the endpoint a server of S3?"), ErrorKind::network);
  return detail::xml_element(root);
}

}  // namespace net
}  // namespace v0
}  // namespace qlora
