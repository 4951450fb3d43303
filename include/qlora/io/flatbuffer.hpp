// qlora/io/flatbuffer.hpp — FlatBuffers, the encoding of Arrow's metadata: read with every offset checked, and written.
// Layout     u32 offset of the root table; a table begins with an i32, its own place minus that of its vtable; a vtable
//            is u16 sizes of itself and of the table, then a u16 for each field: its place in the table, 0 for absent
// Written    front to back: what a table refers to lies behind it, so that its u32 offsets are never negative
// Checked by tests/io/arrow_test.cpp and, against another implementation, by tests/interop/rows.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "qlora/error.hpp"

namespace qlora {
inline namespace v0 {
namespace flat {

/// Bytes of a buffer and what messages call it. Every read is checked.
class Buffer {
 public:
  /// Both must outlive this.
  Buffer(std::span<const std::byte> bytes, const std::string& where) : bytes_(bytes), where_(&where) {}

  /// A little-endian number at this place. Throws Error where it is not inside.
  template <class T>
  [[nodiscard]] T read(std::size_t at) const {
    expect(at <= bytes_.size() && sizeof(T) <= bytes_.size() - at);
    T value{};
    std::memcpy(&value, bytes_.data() + at, sizeof value);
    return value;
  }
  /// The bytes [at,at+size). Throws Error where they are not inside.
  [[nodiscard]] std::span<const std::byte> part(std::size_t at, std::size_t size) const {
    expect(at <= bytes_.size() && size <= bytes_.size() - at);
    return bytes_.subspan(at, size);
  }
  /// Where the u32 offset at this place leads. Throws Error for one that leads nowhere.
  [[nodiscard]] std::size_t follow(std::size_t at) const {
    const std::size_t target = at + read<std::uint32_t>(at);
    expect(target > at && target < bytes_.size());
    return target;
  }
  /// Throws Error unless it holds.
  void expect(bool holds) const {
    if (!holds) throw Error(*where_ + ": damaged: its metadata is no FlatBuffer; write the file again");
  }

 private:
  std::span<const std::byte> bytes_;
  const std::string* where_;
};

/// Elements one after another, or none.
struct Vector {
  std::size_t at = 0;     ///< of the first
  std::size_t count = 0;  ///< of elements
};

/// A table; fields are known by their number in the schema.
class Table {
 public:
  /// The table at this place of a buffer, which must outlive it. Throws Error for what is none.
  Table(const Buffer& buffer, std::size_t at) : buffer_(&buffer), at_(at) {
    const std::int64_t vtable = static_cast<std::int64_t>(at) - buffer.read<std::int32_t>(at);
    buffer.expect(vtable >= 0);
    vtable_ = static_cast<std::size_t>(vtable);
    fields_ = buffer.read<std::uint16_t>(vtable_);
    buffer.expect(fields_ >= 4 && fields_ % 2 == 0);
    (void)buffer.part(vtable_, fields_);
    (void)buffer.part(at_, buffer.read<std::uint16_t>(vtable_ + 2));
  }
  /// The root of a buffer.
  [[nodiscard]] static Table root(const Buffer& buffer) { return {buffer, buffer.follow(0)}; }

  /// The number in a field, or `otherwise` where it is absent.
  template <class T>
  [[nodiscard]] T number(int field, T otherwise) const {
    const std::size_t at = place(field);
    return at == 0 ? otherwise : buffer_->read<T>(at);
  }
  /// The table that a field refers to; none: it is absent.
  [[nodiscard]] std::optional<Table> table(int field) const {
    const std::size_t at = place(field);
    return at == 0 ? std::nullopt : std::optional(Table(*buffer_, buffer_->follow(at)));
  }
  /// The vector that a field refers to, whose elements have this size; empty: it is absent.
  [[nodiscard]] Vector vector(int field, std::size_t element_bytes) const {
    const std::size_t at = place(field);
    if (at == 0) return {};
    const std::size_t begin = buffer_->follow(at);
    const Vector found{begin + sizeof(std::uint32_t), buffer_->read<std::uint32_t>(begin)};
    (void)buffer_->part(found.at, found.count * element_bytes);
    return found;
  }
  /// The text that a field refers to; empty: it is absent.
  [[nodiscard]] std::string text(int field) const {
    const Vector found = vector(field, 1);
    const auto bytes = buffer_->part(found.at, found.count);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
  /// The table that an element of a vector of offsets refers to.
  [[nodiscard]] Table element(const Vector& tables, std::size_t index) const {
    return {*buffer_, buffer_->follow(tables.at + index * sizeof(std::uint32_t))};
  }
  /// The buffer it is of.
  [[nodiscard]] const Buffer& buffer() const { return *buffer_; }

 private:
  [[nodiscard]] std::size_t place(int field) const {
    const std::size_t entry = 4 + 2 * static_cast<std::size_t>(field);
    if (entry + 2 > fields_) return 0;
    const std::size_t offset = buffer_->read<std::uint16_t>(vtable_ + entry);
    return offset == 0 ? 0 : at_ + offset;
  }

  const Buffer* buffer_;
  std::size_t at_;
  std::size_t vtable_ = 0;
  std::size_t fields_ = 0;  // bytes of the vtable
};

/// A field of a table that is written: a number of 1, 2, 4 or 8 bytes, or an offset that is filled in later.
struct Field {
  int id = 0;              ///< its number in the schema
  std::size_t bytes = 0;   ///< of the number; 4 for an offset
  std::int64_t value = 0;  ///< the number; 0 for an offset
};

/// Writes a buffer. A place that an offset stands at is given to point_here() once what it refers to comes.
class Writer {
 public:
  Writer() { put(0, 4); }  // the offset of the root

  /// Writes a table, and its vtable before it; gives the place of each field, in the order given.
  std::vector<std::size_t> table(std::initializer_list<Field> fields) {
    int last = -1;
    std::size_t size = 4;
    std::vector<std::size_t> offsets;
    for (const Field& field : fields) {
      size = (size + field.bytes - 1) / field.bytes * field.bytes;
      offsets.push_back(size);
      size += field.bytes;
      last = field.id > last ? field.id : last;
    }
    const std::size_t entries = static_cast<std::size_t>(last + 1);
    const std::size_t vtable_bytes = 4 + 2 * entries;
    while ((bytes_.size() + vtable_bytes) % 8 != 0) put(0, 1);
    const std::size_t vtable = bytes_.size();
    bytes_.resize(vtable + vtable_bytes);
    set(vtable, static_cast<std::int64_t>(vtable_bytes), 2);
    set(vtable + 2, static_cast<std::int64_t>(size), 2);
    const std::size_t at = bytes_.size();
    last_ = at;
    bytes_.resize(at + size);
    set(at, static_cast<std::int64_t>(at - vtable), 4);
    std::size_t index = 0;
    std::vector<std::size_t> places;
    for (const Field& field : fields) {
      const std::size_t offset = offsets[index++];
      set(vtable + 4 + 2 * static_cast<std::size_t>(field.id), static_cast<std::int64_t>(offset), 2);
      set(at + offset, field.value, field.bytes);
      places.push_back(at + offset);
    }
    return places;
  }
  /// The place of the table that was written last.
  [[nodiscard]] std::size_t last_table() const { return last_; }
  /// Begins a vector of that many elements, whose first lies at a multiple of 8; its place, for point().
  std::size_t vector(std::size_t count) {
    while ((bytes_.size() + 4) % 8 != 0) put(0, 1);
    const std::size_t at = bytes_.size();
    put(static_cast<std::int64_t>(count), 4);
    return at;
  }
  /// Writes a text; its place.
  std::size_t text(std::string_view text) {
    const std::size_t at = vector(text.size());
    for (const char c : text) put(static_cast<unsigned char>(c), 1);
    put(0, 1);
    return at;
  }
  /// Appends a number of that many bytes; its place.
  std::size_t put(std::int64_t value, std::size_t bytes) {
    const std::size_t at = bytes_.size();
    bytes_.resize(at + bytes);
    set(at, value, bytes);
    return at;
  }
  /// Makes the offset at `from` lead to `to`, which lies behind it.
  void point(std::size_t from, std::size_t to) { set(from, static_cast<std::int64_t>(to - from), 4); }
  /// The buffer with this table as its root, a multiple of 8 bytes.
  [[nodiscard]] const std::vector<std::byte>& finish(std::size_t root) {
    point(0, root);
    while (bytes_.size() % 8 != 0) put(0, 1);
    return bytes_;
  }

 private:
  void set(std::size_t at, std::int64_t value, std::size_t bytes) { std::memcpy(bytes_.data() + at, &value, bytes); }

  std::vector<std::byte> bytes_;
  std::size_t last_ = 0;
};

}  // namespace flat
}  // namespace v0
}  // namespace qlora
