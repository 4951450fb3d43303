// qlora/ordered_map.hpp — values by name, in the order in which they were added: for results that are shown and written
// in that order. Look-ups are linear, so it is for tens of names, not for thousands.
#pragma once

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"

namespace qlora {
inline namespace v0 {

/// A list of (name, value) with unique names, in the order in which they were added.
template <class T>
class OrderedMap {
 public:
  using Entry = std::pair<std::string, T>;  ///< name and value

  OrderedMap() = default;
  /// Of two entries with one name, the later value stands in the earlier place.
  OrderedMap(std::initializer_list<Entry> entries) {
    for (const Entry& entry : entries) (*this)[entry.first] = entry.second;
  }

  /// Iteration is in the order of adding; iterators die when a name is added or removed.
  [[nodiscard]] auto begin() const { return entries_.begin(); }
  /// One past the newest entry.
  [[nodiscard]] auto end() const { return entries_.end(); }
  /// Values may be changed through it; a changed name must stay unique.
  [[nodiscard]] auto begin() { return entries_.begin(); }
  /// One past the newest entry.
  [[nodiscard]] auto end() { return entries_.end(); }
  /// Number of names.
  [[nodiscard]] std::size_t size() const { return entries_.size(); }
  /// Whether there is no name.
  [[nodiscard]] bool empty() const { return entries_.empty(); }

  /// Null where there is no such name.
  [[nodiscard]] const T* find(std::string_view name) const {
    const auto found = place(entries_, name);
    return found == entries_.end() ? nullptr : &found->second;
  }
  /// Whether the name was added.
  [[nodiscard]] bool contains(std::string_view name) const { return find(name) != nullptr; }
  /// Throws Error where there is no such name.
  [[nodiscard]] const T& at(std::string_view name) const {
    const T* found = find(name);
    if (found == nullptr) throw Error(concat("nothing is named \"", name, "\""));
    return *found;
  }
  /// Adds a name that is not there at the end, with a value of its own.
  T& operator[](std::string_view name) {
    auto found = place(entries_, name);
    if (found == entries_.end()) found = entries_.insert(found, {std::string(name), T{}});
    return found->second;
  }
  /// Removes a name; the others keep their order. Nothing happens where there is no such name.
  void erase(std::string_view name) {
    std::erase_if(entries_, [&](const Entry& entry) { return entry.first == name; });
  }

  friend bool operator==(const OrderedMap&, const OrderedMap&) = default;

 private:
  template <class Entries>
  static auto place(Entries& entries, std::string_view name) {
    return std::find_if(entries.begin(), entries.end(), [&](const Entry& entry) { return entry.first == name; });
  }

  std::vector<Entry> entries_;
};

}  // namespace v0
}  // namespace qlora
