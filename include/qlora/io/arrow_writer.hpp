// qlora/io/arrow_writer.hpp — lists of whole numbers into Arrow IPC streams, as `datasets` saves and loads them.
// io/arrow.hpp has the layout. Buffers begin at multiples of 64 bytes; no column has nulls.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/flatbuffer.hpp"

namespace qlora {
inline namespace v0 {
namespace arrow {

/// A column of lists of signed whole numbers.
struct ListColumn {
  std::string name;  ///< in UTF-8
  int bits = 32;     ///< of a number: 8, 32 or 64
};

/// Writes one stream; the file appears under its name at finish(), whole. Throws Error (resource) when the system
/// cannot write it. Used by one thread at a time.
class ListWriter {
 public:
  /// Begins the file and writes the schema.
  ListWriter(const std::filesystem::path& path, std::vector<ListColumn> columns)
      : file_(path), columns_(std::move(columns)), offsets_(columns_.size(), {0}), values_(columns_.size()) {
    write_schema();
  }

  /// Adds a row: a list for each column, of numbers that its type holds. Rows go out in batches, as `datasets` writes
  /// them: of a thousand at most, and of some megabytes.
  void add(std::span<const std::vector<std::int64_t>> row) {
    QLORA_EXPECTS(row.size() == columns_.size(), row.size(), " lists for ", columns_.size(), " columns");
    for (std::size_t c = 0; c < row.size(); ++c) {
      const auto bytes = static_cast<std::size_t>(columns_[c].bits / 8);
      const std::size_t before = values_[c].size();
      values_[c].resize(before + row[c].size() * bytes);
      for (std::size_t i = 0; i < row[c].size(); ++i)
        std::memcpy(values_[c].data() + before + i * bytes, &row[c][i], bytes);  // little-endian
      offsets_[c].push_back(static_cast<std::int32_t>(values_[c].size() / bytes));
    }
    ++rows_;
    if (rows_ == 1000 || values_[0].size() > (std::size_t{16} << 20)) write_batch();
  }
  /// Writes what is left and the end mark, and gives the file its name.
  void finish() {
    if (rows_ > 0) write_batch();
    write_number(0xFFFFFFFFU);
    write_number(0);
    file_.commit();
  }
  /// Bytes of the file so far.
  [[nodiscard]] std::uint64_t bytes() const { return at_; }

 private:
  static constexpr std::int64_t metadata_v5 = 4;

  void write(std::span<const std::byte> bytes) {
    file_.write_at(at_, bytes);
    at_ += bytes.size();
  }
  void write_number(std::uint32_t number) { write(std::as_bytes(std::span(&number, 1))); }
  void pad() {
    static constexpr std::byte zeros[64]{};
    write(std::span(zeros).first((64 - at_ % 64) % 64));
  }
  /// A message of this header; the body follows.
  void write_message(flat::Writer& out, std::size_t root) {
    const std::vector<std::byte>& metadata = out.finish(root);
    // The body begins at a multiple of 64 bytes as well: zeros behind the buffer belong to the metadata.
    const std::size_t padded = (at_ + 8 + metadata.size() + 63) / 64 * 64 - at_ - 8;
    write_number(0xFFFFFFFFU);
    write_number(static_cast<std::uint32_t>(padded));
    write(metadata);
    pad();
  }
  /// The table Message; its place, and that of the offset of its header.
  static std::pair<std::size_t, std::size_t> begin_message(flat::Writer& out, int kind, std::int64_t body) {
    const auto places = out.table({{0, 2, metadata_v5}, {1, 1, kind}, {2, 4}, {3, 8, body}});
    return {out.last_table(), places[2]};
  }
  /// A field of the schema; its place, and that of the offsets of its name, its type and its children.
  static std::vector<std::size_t> begin_field(flat::Writer& out, int type) {
    auto places = out.table({{0, 4}, {1, 1, 1}, {2, 1, type}, {3, 4}, {5, 4}});
    return {out.last_table(), places[0], places[3], places[4]};
  }

  void write_schema() {
    constexpr int type_int = 2;
    constexpr int type_list = 12;
    flat::Writer out;
    const auto [root, header] = begin_message(out, 1, 0);
    const auto schema = out.table({{0, 2, 0}, {1, 4}});
    out.point(header, out.last_table());
    const std::size_t fields = out.vector(columns_.size());
    out.point(schema[1], fields);
    std::vector<std::size_t> places;
    for (std::size_t c = 0; c < columns_.size(); ++c) places.push_back(out.put(0, 4));
    for (std::size_t c = 0; c < columns_.size(); ++c) {
      const auto list = begin_field(out, type_list);
      out.point(places[c], list[0]);
      out.point(list[1], out.text(columns_[c].name));
      (void)out.table({});
      out.point(list[2], out.last_table());
      out.point(list[3], out.vector(1));
      const std::size_t child = out.put(0, 4);
      const auto item = begin_field(out, type_int);
      out.point(child, item[0]);
      out.point(item[1], out.text("item"));
      (void)out.table({{0, 4, columns_[c].bits}, {1, 1, 1}});
      out.point(item[2], out.last_table());
      out.point(item[3], out.vector(0));
    }
    write_message(out, root);
  }

  void write_batch() {
    const auto padded = [](std::size_t bytes) { return static_cast<std::int64_t>((bytes + 63) / 64 * 64); };
    std::int64_t body = 0;
    std::vector<std::array<std::int64_t, 2>> buffers;
    std::vector<std::int64_t> lengths;
    const auto add_buffer = [&](std::size_t bytes) {
      buffers.push_back({body, static_cast<std::int64_t>(bytes)});
      body += padded(bytes);
    };
    for (std::size_t c = 0; c < columns_.size(); ++c) {
      lengths.insert(lengths.end(), {rows_, offsets_[c].back()});
      add_buffer(0);
      add_buffer(offsets_[c].size() * sizeof(std::int32_t));
      add_buffer(0);
      add_buffer(values_[c].size());
    }
    flat::Writer out;
    const auto [root, header] = begin_message(out, 3, body);
    const auto batch = out.table({{0, 8, rows_}, {1, 4}, {2, 4}});
    out.point(header, out.last_table());
    out.point(batch[1], out.vector(lengths.size()));
    for (const std::int64_t length : lengths) {
      out.put(length, 8);
      out.put(0, 8);  // nulls
    }
    out.point(batch[2], out.vector(buffers.size()));
    for (const auto& [offset, length] : buffers) {
      out.put(offset, 8);
      out.put(length, 8);
    }
    write_message(out, root);
    for (std::size_t c = 0; c < columns_.size(); ++c) {
      write(std::as_bytes(std::span(offsets_[c])));
      pad();
      write(values_[c]);
      pad();
      offsets_[c].assign(1, 0);
      values_[c].clear();
    }
    rows_ = 0;
  }

  AtomicFile file_;
  std::vector<ListColumn> columns_;
  std::vector<std::vector<std::int32_t>> offsets_;  // of the batch that is being filled, by column
  std::vector<std::vector<std::byte>> values_;
  std::int64_t rows_ = 0;  // of the batch
  std::uint64_t at_ = 0;   // bytes that were written
};

}  // namespace arrow
}  // namespace v0
}  // namespace qlora
