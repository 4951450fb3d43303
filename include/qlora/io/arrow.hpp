// qlora/io/arrow.hpp — lists of whole numbers out of Arrow IPC streams, the files of `datasets`' save_to_disk.
// Layout     messages: FF FF FF FF, i32 bytes of metadata, a FlatBuffer (Message), a body; the first is the schema, the
//            others are record batches; 0 bytes of metadata end the stream
// Read       columns of list, large_list and fixed_size_list of 8 to 64 bits and of booleans; other columns are passed
//            over, whatever they hold
// Refused    by name: compressed buffers, dictionaries and nulls in the columns that are read, views, unions, run ends,
//            big endian, Arrow's file format (Feather) and streams from before version 0.15
// Why not Arrow's library: Debian has none, and that in the Python wheel serves one version of one wheel. What is read
// here is a small part of the format; tests/interop/rows.py checks it with pyarrow, in both directions.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/flatbuffer.hpp"
#include "qlora/io/json.hpp"

namespace qlora {
inline namespace v0 {
namespace arrow {

static_assert(std::endian::native == std::endian::little, "Arrow files are read as they are");

namespace detail {

using qlora::detail::excerpt;

/// Numbers of the types in Arrow's schema (format/Schema.fbs), as their place in this list.
inline constexpr std::array<std::string_view, 27> type_names{"none",
                                                             "null",
                                                             "int",
                                                             "float",
                                                             "binary",
                                                             "string",
                                                             "bool",
                                                             "decimal",
                                                             "date",
                                                             "time",
                                                             "timestamp",
                                                             "interval",
                                                             "list",
                                                             "struct",
                                                             "union",
                                                             "fixed_size_binary",
                                                             "fixed_size_list",
                                                             "map",
                                                             "duration",
                                                             "large_binary",
                                                             "large_string",
                                                             "large_list",
                                                             "run_end_encoded",
                                                             "binary_view",
                                                             "string_view",
                                                             "list_view",
                                                             "large_list_view"};
enum Type : int {
  type_int = 2,
  type_bool = 6,
  type_list = 12,
  type_fixed_size_list = 16,
  type_large_list = 21,
};

/// A column's type.
struct Field {
  std::string name;
  int type = 0;
  int bits = 0;             // of whole numbers
  bool is_signed = false;   // whole numbers
  bool dictionary = false;  // the column holds numbers of a dictionary's entries
  std::int64_t list_size = 0;
  std::vector<Field> children;
};

inline std::string name_of(const Field& field) {
  const auto index = static_cast<std::size_t>(field.type);
  std::string name(index < type_names.size() ? type_names[index] : "unknown");
  if (field.type == type_int) name = concat(field.is_signed ? "int" : "uint", field.bits);
  if (field.dictionary) name = concat("dictionary of ", name);
  if (!field.children.empty() && field.children.size() == 1) name += concat("<", name_of(field.children[0]), ">");
  return name;
}

/// Buffers of a type in a record batch, its children's not counted; -1: a type that cannot be passed over.
inline int buffers_of(int type) {
  constexpr std::array<int, 27> counts{-1, 0, 2, 2, 3, 3, 2, 2, 2,  2,  2,  2,  2, 1,
                                       -1, 2, 1, 2, 2, 3, 3, 2, -1, -1, -1, -1, -1};
  return type > 0 && type < static_cast<int>(counts.size()) ? counts[static_cast<std::size_t>(type)] : -1;
}

inline Field read_field(const flat::Table& table, int depth, int& count, const std::string& where) {
  if (depth > 16 || ++count > 10'000 || table.vector(0, 1).count > 1000)
    throw Error(where + ": its schema is nested too deeply, or has too many columns or too long names");
  Field field{.name = table.text(0), .type = table.number<std::uint8_t>(2, 0), .children = {}};
  const std::optional<flat::Table> type = table.table(3);
  if (type && field.type == type_int) {
    field.bits = type->number<std::int32_t>(0, 0);
    field.is_signed = type->number<std::uint8_t>(1, 0) != 0;
  }
  if (type && field.type == type_fixed_size_list) field.list_size = type->number<std::int32_t>(0, 0);
  field.dictionary = table.table(4).has_value();
  const flat::Vector children = table.vector(5, sizeof(std::uint32_t));
  for (std::size_t i = 0; i < children.count; ++i)
    field.children.push_back(read_field(table.element(children, i), depth + 1, count, where));
  return field;
}

/// A message: its header, and its body.
struct Message {
  int kind = 0;  // 1 schema, 2 dictionary, 3 record batch
  flat::Table header;
  std::span<const std::byte> body;
};

/// A column of lists in one record batch. Offsets and values are not aligned.
struct Lists {
  const Field* values = nullptr;  // their type
  std::span<const std::byte> bytes;
  std::span<const std::byte> offsets;  // empty: every list has list_size values
  std::size_t offset_bytes = 4;
  std::int64_t list_size = 0;
  std::int64_t count = 0;  // of values
};

/// Takes the columns of a record batch in their order.
class BatchReader {
 public:
  BatchReader(const Message& message, const std::string& where)
      : where_(&where),
        table_(message.header),
        body_(message.body),
        nodes_(table_.vector(1, 16)),
        buffers_(table_.vector(2, 16)),
        rows_(table_.number<std::int64_t>(0, 0)) {
    expect(rows_ >= 0);
    if (const auto compression = table_.table(3)) {
      throw Error(concat(where, ": its buffers are compressed (",
                         compression->number<std::int8_t>(0, 0) == 1 ? "ZSTD" : "LZ4",
                         "), which is not read here; write it without compression, as datasets' save_to_disk does"));
    }
  }
  [[nodiscard]] std::int64_t rows() const { return rows_; }

  /// Passes a column over.
  void skip(const Field& field) {
    const int buffers = field.dictionary ? 2 : buffers_of(field.type);
    if (buffers < 0) {
      throw Error(concat(*where_, ": the column '", excerpt(field.name), "' has the type ", name_of(field),
                         ", which is not read here; remove it (remove_columns)"));
    }
    (void)node();
    for (int i = 0; i < buffers; ++i) (void)buffer();
    if (field.dictionary) return;
    for (const Field& child : field.children) skip(child);
  }
  /// A column of lists, whose type list_problem() has nothing against.
  [[nodiscard]] Lists take(const Field& field) {
    expect(without_nulls(field, field) == rows_);
    (void)buffer();  // which lists are not null: all
    Lists lists{.values = &field.children[0], .bytes = {}, .offsets = {}};
    if (field.type == type_fixed_size_list) {
      lists.list_size = field.list_size;
    } else {
      lists.offset_bytes = field.type == type_large_list ? 8 : 4;
      lists.offsets = buffer();
      const auto most = static_cast<std::int64_t>(lists.offsets.size() / lists.offset_bytes);
      expect(rows_ < most || (rows_ == 0 && most == 0));
    }
    lists.count = without_nulls(field, field.children[0]);
    (void)buffer();
    lists.bytes = buffer();
    const std::int64_t bits = lists.values->type == type_bool ? 1 : lists.values->bits;
    std::int64_t all = 0;
    expect(!__builtin_mul_overflow(lists.count, bits, &all));
    expect(static_cast<std::uint64_t>(all / 8 + (all % 8 != 0 ? 1 : 0)) <= lists.bytes.size());
    expect(!__builtin_mul_overflow(rows_, lists.list_size, &all) && all <= lists.count);
    return lists;
  }

 private:
  void expect(bool holds) const {
    if (!holds) throw Error(*where_ + ": damaged: a record batch states more than it holds; write the file again");
  }
  std::array<std::int64_t, 2> next(const flat::Vector& of, std::size_t& index) {
    expect(index < of.count);
    const std::size_t at = of.at + 16 * index++;
    return {table_.buffer().read<std::int64_t>(at), table_.buffer().read<std::int64_t>(at + 8)};
  }
  std::array<std::int64_t, 2> node() {
    const auto found = next(nodes_, node_);
    expect(found[0] >= 0 && found[1] >= 0 && found[1] <= found[0]);
    return found;
  }
  /// The length of the next node.
  std::int64_t without_nulls(const Field& column, const Field& field) {
    const auto [length, nulls] = node();
    if (nulls == 0) return length;
    throw Error(concat(*where_, ": the column '", excerpt(column.name), "' has ", nulls, " nulls",
                       &column == &field ? "" : " in its lists", "; take these rows out, or fill them"));
  }
  std::span<const std::byte> buffer() {
    const auto [offset, length] = next(buffers_, buffer_);
    expect(offset >= 0 && length >= 0 && static_cast<std::uint64_t>(offset) <= body_.size() &&
           static_cast<std::uint64_t>(length) <= body_.size() - static_cast<std::uint64_t>(offset));
    return body_.subspan(static_cast<std::size_t>(offset), static_cast<std::size_t>(length));
  }

  const std::string* where_;
  flat::Table table_;
  std::span<const std::byte> body_;
  flat::Vector nodes_;
  flat::Vector buffers_;
  std::int64_t rows_;
  std::size_t node_ = 0;
  std::size_t buffer_ = 0;
};

template <class T>
std::int64_t number_at(std::span<const std::byte> bytes, std::int64_t index) {
  T value{};
  std::memcpy(&value, bytes.data() + static_cast<std::size_t>(index) * sizeof(T), sizeof(T));
  return static_cast<std::int64_t>(value);
}
inline std::int64_t value_at(const Lists& lists, std::int64_t index) {
  const bool is_signed = lists.values->is_signed;
  switch (lists.values->type == type_bool ? 1 : lists.values->bits) {
    case 1:
      return static_cast<std::int64_t>(lists.bytes[static_cast<std::size_t>(index / 8)] >> (index % 8) & std::byte{1});
    case 8:
      return is_signed ? number_at<std::int8_t>(lists.bytes, index) : number_at<std::uint8_t>(lists.bytes, index);
    case 16:
      return is_signed ? number_at<std::int16_t>(lists.bytes, index) : number_at<std::uint16_t>(lists.bytes, index);
    case 32:
      return is_signed ? number_at<std::int32_t>(lists.bytes, index) : number_at<std::uint32_t>(lists.bytes, index);
    default:
      return number_at<std::int64_t>(lists.bytes, index);
  }
}

/// What is wrong with a column as one of lists of whole numbers; empty: nothing.
inline std::string list_problem(const Field& field) {
  const bool list = field.type == type_list || field.type == type_large_list || field.type == type_fixed_size_list;
  const Field* values = list && field.children.size() == 1 ? &field.children[0] : nullptr;
  const auto good_bits = [](const Field& f) { return f.bits == 8 || f.bits == 16 || f.bits == 32 || f.bits == 64; };
  const bool numbers = values != nullptr && !values->dictionary &&
                       (values->type == type_bool || (values->type == type_int && good_bits(*values))) &&
                       (field.type != type_fixed_size_list || field.list_size > 0);
  return numbers && !field.dictionary ? std::string() : concat("has the type ", name_of(field));
}

}  // namespace detail

/// A stream on the disk, mapped. Throws Error that names the file for whatever is refused or damaged. Of one thread.
class ListFile {
 public:
  /// Reads the schema. A null row in a column of this name, or a type that is not read, is found by rows().
  explicit ListFile(const std::filesystem::path& path) : where_(path.string()), file_(path) {
    const std::span<const std::byte> bytes = file_.bytes();
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()), std::min<std::size_t>(bytes.size(), 64));
    refuse_lfs_pointer(text, where_);
    if (text.starts_with("ARROW1"))
      throw Error(where_ + ": is of Arrow's file format (Feather), not a stream; write it by datasets' save_to_disk");
    if (text.starts_with("PAR1"))
      throw Error(where_ + ": is a Parquet file, which is not read here; write it by datasets' save_to_disk");
    const std::optional<detail::Message> first = message(start_);
    if (!first || first->kind != 1) throw Error(where_ + ": does not begin with an Arrow schema");
    if (first->header.number<std::int16_t>(0, 0) != 0) throw Error(where_ + ": is of a big-endian machine");
    const flat::Vector fields = first->header.vector(1, sizeof(std::uint32_t));
    int count = 0;
    for (std::size_t i = 0; i < fields.count; ++i)
      fields_.push_back(detail::read_field(first->header.element(fields, i), 0, count, where_));
  }
  ListFile(const ListFile&) = delete;
  ListFile& operator=(const ListFile&) = delete;
  ~ListFile() = default;

  /// Whether there is a column of this name.
  [[nodiscard]] bool has(std::string_view name) const {
    return std::any_of(fields_.begin(), fields_.end(), [&](const detail::Field& field) { return field.name == name; });
  }
  /// The names of all columns, for a message.
  [[nodiscard]] std::string names() const {
    std::string all;
    for (const detail::Field& field : fields_) all += (all.empty() ? "" : ", ") + detail::excerpt(field.name);
    return all.empty() ? "none" : all;
  }

  /// Calls use(row number from 0, a list for each of `columns`) for each row; a column that is not there has an empty
  /// list. The bytes of the whole file go to on_bytes(bytes) in their order, those of a batch behind its rows. Throws
  /// Error for a column of another type, for nulls, and for a damaged file.
  template <class Use, class OnBytes>
  void rows(const std::vector<std::string>& columns, const Use& use, const OnBytes& on_bytes) const {
    std::vector<std::size_t> place(fields_.size(), columns.size());
    for (std::size_t c = 0; c < columns.size(); ++c) {
      for (std::size_t f = 0; f < fields_.size(); ++f) {
        if (fields_[f].name != columns[c]) continue;
        if (std::find(place.begin(), place.end(), c) != place.end())
          throw Error(concat(where_, ": two columns have the name '", columns[c], "'"));
        const std::string problem = detail::list_problem(fields_[f]);
        if (!problem.empty())
          throw Error(concat(where_, ": the column '", columns[c], "' ", problem, "; a list of whole numbers is read"));
        place[f] = c;
      }
    }
    std::vector<std::vector<std::int64_t>> row(columns.size());
    std::int64_t number = 0;
    std::size_t at = start_;
    std::size_t given = 0;
    while (const auto next = message(at)) {
      if (next->kind == 2) continue;  // of a column that is not read
      if (next->kind != 3) throw Error(where_ + ": damaged: a message that is no record batch; write the file again");
      detail::BatchReader batch(*next, where_);
      std::vector<std::optional<detail::Lists>> lists(columns.size());
      for (std::size_t f = 0; f < fields_.size(); ++f) {
        if (place[f] == columns.size()) {
          batch.skip(fields_[f]);
        } else {
          lists[place[f]] = batch.take(fields_[f]);
        }
      }
      for (std::int64_t r = 0; r < batch.rows(); ++r, ++number) {
        for (std::size_t c = 0; c < columns.size(); ++c) {
          if (lists[c]) read_list(*lists[c], r, row[c]);
        }
        use(number, row);
      }
      on_bytes(file_.bytes().subspan(given, at - given));
      given = at;
    }
    on_bytes(file_.bytes().subspan(given));
  }

 private:
  void read_list(const detail::Lists& lists, std::int64_t row, std::vector<std::int64_t>& into) const {
    std::int64_t begin = row * lists.list_size;
    std::int64_t end = begin + lists.list_size;
    if (!lists.offsets.empty()) {
      const auto offset = [&](std::int64_t index) {
        return lists.offset_bytes == 8 ? detail::number_at<std::int64_t>(lists.offsets, index)
                                       : detail::number_at<std::int32_t>(lists.offsets, index);
      };
      begin = offset(row);
      end = offset(row + 1);
    }
    if (begin < 0 || end < begin || end > lists.count)
      throw Error(concat(where_, ": damaged: the list of row ", row, " of a batch has no valid place; write it again"));
    into.clear();
    for (std::int64_t i = begin; i < end; ++i) into.push_back(detail::value_at(lists, i));
  }

  /// The message at this place, and the place behind it; none at the end mark.
  [[nodiscard]] std::optional<detail::Message> message(std::size_t& at) const {
    const std::span<const std::byte> bytes = file_.bytes();
    const auto cut = [&] { return Error(where_ + ": is cut off: it ends before the stream does; write it again"); };
    if (bytes.size() < at || bytes.size() - at < 8) throw cut();
    const auto mark = static_cast<std::uint32_t>(detail::number_at<std::uint32_t>(bytes.subspan(at), 0));
    const std::int64_t size = detail::number_at<std::int32_t>(bytes.subspan(at + 4), 0);
    if (mark != 0xFFFFFFFFU)
      throw Error(where_ + ": no Arrow stream, or one from before version 0.15; write it by datasets' save_to_disk");
    at += 8;
    if (size == 0) return std::nullopt;
    if (size < 0 || size % 8 != 0 || static_cast<std::uint64_t>(size) > bytes.size() - at) throw cut();
    const auto metadata = bytes.subspan(at, static_cast<std::size_t>(size));
    at += metadata.size();
    buffer_.emplace(metadata, where_);
    const flat::Table table = flat::Table::root(*buffer_);
    const auto version = table.number<std::int16_t>(0, 0);
    if (version != 3 && version != 4)
      throw Error(concat(where_, ": version V", version + 1, " of Arrow's metadata; V4 and V5 are read here"));
    const auto header = table.table(2);
    const auto body = table.number<std::int64_t>(3, 0);
    buffer_->expect(header.has_value());
    if (body < 0 || static_cast<std::uint64_t>(body) > bytes.size() - at) throw cut();
    detail::Message found{table.number<std::uint8_t>(1, 0), *header, bytes.subspan(at, static_cast<std::size_t>(body))};
    at += static_cast<std::size_t>(body);
    return found;
  }

  std::string where_;
  MappedFile file_;
  std::vector<detail::Field> fields_;
  std::size_t start_ = 0;                       // of the first message behind the schema
  mutable std::optional<flat::Buffer> buffer_;  // of the message that was read last
};

}  // namespace arrow
}  // namespace v0
}  // namespace qlora
