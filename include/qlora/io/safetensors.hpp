// qlora/io/safetensors.hpp — the safetensors file format: a reader of files that are mapped, and of those that lie
// elsewhere and are read tensor by tensor. The writer is io/safetensors_writer.hpp.
// Layout: u64 little-endian N, a JSON header of N bytes, then the tensors' bytes without holes.
// What may not change: every file accepted here is accepted by the reference implementation, and means the same there.
// Stricter than the reference: repeated keys, unknown keys, more than 8 dimensions, more than a million tensors and
// element types that nothing here computes with are refused.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/dtype.hpp"
#include "qlora/error.hpp"
#include "qlora/io/byte_source.hpp"
#include "qlora/io/checksum.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/json.hpp"
#include "qlora/tensor.hpp"

namespace qlora {
inline namespace v0 {

static_assert(std::endian::native == std::endian::little, "tensor files are little-endian and are mapped as they are");

namespace detail {

inline constexpr std::uint64_t max_safetensors_header = 100'000'000;  // the reference's own limit
inline constexpr std::size_t max_safetensors_tensors = 1'000'000;
inline constexpr std::size_t max_safetensors_dims = 8;

// Metadata of files with checksums: XXH3 of 128 bits in hexadecimal digits, of the header's JSON text with zeros in
// place of these very digits, and of each tensor, in the order of their bytes.
inline constexpr const char* header_sum_key = "xxh3_128.header";
inline constexpr const char* tensor_sums_key = "xxh3_128.tensors";
inline constexpr std::size_t sum_digits = 32;

/// Where the digits of header_sum_key begin in a header; npos: it has none.
[[nodiscard]] inline std::size_t place_of_header_sum(std::string_view header) {
  const std::string key = concat('"', header_sum_key, "\":\"");
  const std::size_t at = header.find(key);
  return at == std::string_view::npos || header.size() - at < key.size() + sum_digits ? std::string_view::npos
                                                                                      : at + key.size();
}
/// What header_sum_key has to say of this header.
[[nodiscard]] inline Checksum header_sum(std::string_view header, std::size_t place) {
  const std::string zeros(sum_digits, '0');
  return RunningChecksum()
      .update(std::as_bytes(std::span(header.substr(0, place))))
      .update(std::as_bytes(std::span(zeros)))
      .update(std::as_bytes(std::span(header.substr(place + sum_digits))))
      .value();
}

/// One tensor of a header; begin and end count from the first byte after it.
struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

/// Bytes of a tensor, or nothing when a product overflows; dimensions are multiplied in order, as the reference does.
[[nodiscard]] inline std::optional<std::uint64_t> checked_bytes(DType dtype, std::span<const std::int64_t> shape) {
  std::int64_t count = 1;
  for (const std::int64_t dim : shape) {
    if (dim < 0 || __builtin_mul_overflow(count, dim, &count)) return std::nullopt;
  }
  if (__builtin_mul_overflow(count, static_cast<std::int64_t>(size_of(dtype)), &count)) return std::nullopt;
  return static_cast<std::uint64_t>(count);
}

[[nodiscard]] inline std::optional<DType> dtype_named(std::string_view name) {
  for (const DType type : {DType::f64, DType::f32, DType::f16, DType::bf16, DType::i64, DType::i32, DType::i16,
                           DType::i8, DType::u8, DType::boolean}) {
    if (name_of(type) == name) return type;
  }
  return std::nullopt;
}

/// Reads a header in one pass, without a document tree: 400,000 tensors make a header of 45 MB.
class SafetensorsHeader final : public JsonHandler {
 public:
  using JsonHandler::JsonHandler;
  std::vector<SafetensorsEntry> entries;
  std::map<std::string, std::string> metadata;

  bool null() override { refuse("null"); }
  bool boolean(bool /*value*/) override { refuse("a boolean"); }
  bool number_integer(number_integer_t /*value*/) override { refuse("a negative number"); }
  bool number_float(number_float_t /*value*/, const string_t& text) override { refuse("the number ", excerpt(text)); }
  bool number_unsigned(number_unsigned_t value) override {
    if (at_ == At::shape) {
      if (value > std::uint64_t{INT64_MAX}) refuse("the dimension ", value);
      if (entries.back().shape.size() == max_safetensors_dims)
        refuse("more than ", max_safetensors_dims, " dimensions");
      entries.back().shape.push_back(static_cast<std::int64_t>(value));
    } else if (at_ == At::offsets) {
      if (offsets_ == 2) refuse("more than two data_offsets");
      (offsets_++ == 0 ? entries.back().begin : entries.back().end) = value;
    } else {
      refuse("a number");
    }
    return true;
  }
  bool string(string_t& value) override {
    if (at_ == At::metadata) {
      metadata[key_] = std::move(value);
    } else if (at_ == At::entry && key_ == "dtype") {
      const auto dtype = dtype_named(value);
      if (!dtype) refuse("the element type '", excerpt(value), "', which is not read here,");
      entries.back().dtype = *dtype;
    } else {
      refuse("a string");
    }
    return true;
  }
  bool start_object(std::size_t /*elements*/) override {
    if (at_ == At::outside) {
      at_ = At::top;
    } else if (at_ == At::top && key_ == "__metadata__") {
      at_ = At::metadata;
    } else if (at_ == At::top) {
      if (entries.size() == max_safetensors_tensors) fail("more than ", max_safetensors_tensors, " tensors");
      if (key_.find('\0') != std::string::npos) refuse("a NUL in its name");
      entries.emplace_back().name = key_;
      seen_ = offsets_ = 0;
      at_ = At::entry;
    } else {
      refuse("an object");
    }
    return true;
  }
  bool end_object() override {
    if (at_ == At::entry && (seen_ != 7 || offsets_ != 2)) {
      fail("tensor '", excerpt(entries.back().name), "' must have dtype, shape and two data_offsets");
    }
    at_ = at_ == At::top ? At::outside : At::top;
    return true;
  }
  bool key(string_t& name) override {
    if (at_ == At::entry) {
      const unsigned bit = name == "dtype" ? 1U : name == "shape" ? 2U : name == "data_offsets" ? 4U : 0U;
      if (bit == 0) refuse("the unknown key '", excerpt(name), "'");
      if ((seen_ & bit) != 0) refuse("two keys '", name, "'");
      seen_ |= bit;
    } else if (at_ == At::metadata) {
      if (!metadata.emplace(name, "").second) fail("two metadata keys '", excerpt(name), "'");
    } else if (name == "__metadata__") {
      if (has_metadata_) fail("two keys '__metadata__'");
      has_metadata_ = true;
    }
    key_ = std::move(name);
    return true;
  }
  bool start_array(std::size_t /*elements*/) override {
    if (at_ != At::entry || key_ == "dtype") refuse("an array");
    at_ = key_ == "shape" ? At::shape : At::offsets;
    return true;
  }
  bool end_array() override {
    at_ = At::entry;
    return true;
  }

 private:
  enum class At { outside, top, metadata, entry, shape, offsets };
  template <class... Parts>
  [[noreturn]] void refuse(const Parts&... parts) const {
    const bool in_entry = at_ == At::entry || at_ == At::shape || at_ == At::offsets;
    fail(parts..., " does not belong into ",
         in_entry ? "tensor '" + excerpt(entries.back().name) + "'" : "the header at '" + excerpt(key_) + "'");
  }

  At at_ = At::outside;
  std::string key_;
  unsigned seen_ = 0;  // keys of the present entry, one bit each
  unsigned offsets_ = 0;
  bool has_metadata_ = false;
};

/// Checks that the tensors fill [0, data_bytes) without hole or overlap, and that no name stands twice.
/// Leaves the entries sorted by name.
inline void check_safetensors_entries(std::vector<SafetensorsEntry>& entries, std::uint64_t data_bytes,
                                      std::string_view what) {
  const auto by_place = [](const auto& a, const auto& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  };
  std::sort(entries.begin(), entries.end(), by_place);
  std::uint64_t expected = 0;
  for (const SafetensorsEntry& entry : entries) {
    const auto bytes = checked_bytes(entry.dtype, entry.shape);
    if (entry.begin != expected || entry.end < entry.begin || !bytes || entry.end - entry.begin != *bytes) {
      throw Error(concat(what, ": tensor '", excerpt(entry.name), "' at bytes ", entry.begin, " to ", entry.end,
                         entry.begin != expected ? " leaves a hole or overlaps its neighbour"
                                                 : " does not fit its shape and element type"));
    }
    expected = entry.end;
  }
  if (expected != data_bytes) {
    throw Error(concat(what, ": the header describes ", expected, " data bytes, the file has ", data_bytes,
                       "; it was cut or damaged, fetch it again"));
  }
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  const auto twice =
      std::adjacent_find(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.name == b.name; });
  if (twice != entries.end()) throw Error(concat(what, ": two tensors are named '", excerpt(twice->name), "'"));
}

}  // namespace detail

/// A safetensors file. Its header is checked in full when it is opened; its tensors are where verify() is called. Where
/// the file is mapped, TensorRefs point into the map and live as long as it; else their `keep` has their bytes. Const
/// members may be called by any number of threads at once.
class SafetensorsFile {
 public:
  /// Throws Error naming the file for everything that is not exactly a safetensors file, and for a header that does not
  /// have its checksum.
  explicit SafetensorsFile(const std::filesystem::path& path, Verify verify = Verify::checksums)
      : path_(path), bytes_(open_bytes(path)) {
    parse(verify);
  }

  /// Whether the file is mapped: its tensors are there without being read.
  [[nodiscard]] bool is_mapped() const { return bytes_->mapped().size() == bytes_->size(); }
  /// The tensor of that name, or nothing.
  [[nodiscard]] std::optional<TensorRef> find(std::string_view name) const {
    const detail::SafetensorsEntry* entry = entry_of(name);
    if (entry == nullptr) return std::nullopt;
    return is_mapped() ? view(*entry) : read(std::array{std::string(name)}).front();
  }
  /// The same, but without the bytes of a file that is not mapped: for its type and shape.
  [[nodiscard]] std::optional<TensorRef> look_up(std::string_view name) const {
    const detail::SafetensorsEntry* entry = entry_of(name);
    return entry == nullptr ? std::nullopt : std::optional(view(*entry));
  }
  /// Bytes of a tensor that is there.
  [[nodiscard]] std::uint64_t bytes_of(std::string_view name) const {
    const detail::SafetensorsEntry* entry = entry_of(name);
    QLORA_EXPECTS(entry != nullptr, path_.string(), " has no tensor ", name);
    return entry->end - entry->begin;
  }
  /// Several tensors that are there, with the first `most` bytes of each, read together. Throws Error as
  /// ByteSource::read does.
  [[nodiscard]] std::vector<TensorRef> read(std::span<const std::string> names,
                                            std::uint64_t most = std::uint64_t{INT64_MAX}) const {
    std::vector<TensorRef> tensors;
    std::vector<BytePiece> pieces;
    for (const std::string& name : names) {
      const detail::SafetensorsEntry* entry = entry_of(name);
      QLORA_EXPECTS(entry != nullptr, path_.string(), " has no tensor ", name);
      TensorRef& tensor = tensors.emplace_back(view(*entry));
      const auto size = static_cast<std::size_t>(std::min(most, entry->end - entry->begin));
      if (is_mapped()) {
        tensor.bytes = tensor.bytes.first(size);
        continue;
      }
      const std::shared_ptr<std::byte[]> memory(new std::byte[size]);
      tensor.bytes = {memory.get(), size};
      tensor.keep = memory;
      pieces.push_back({.offset = data_begin_ + entry->begin, .into = {memory.get(), size}});
    }
    if (!pieces.empty()) bytes_->read(pieces);
    return tensors;
  }
  /// The tensor of that name; throws Error naming file and tensor when it is not there.
  [[nodiscard]] TensorRef at(std::string_view name) const {
    auto tensor = find(name);
    if (!tensor) throw Error(concat(bytes_->name(), ": has no tensor '", detail::excerpt(name), "'"));
    return *std::move(tensor);
  }
  /// The checksum of a tensor's bytes, all of which are read. Throws Error naming file and tensor when it is not the
  /// one that the file states, or there is no such tensor.
  Checksum verify(std::string_view name) const { return verify(name, at(name)); }
  /// The same of a tensor that read() or find() gave whole.
  Checksum verify(std::string_view name, const TensorRef& tensor) const {
    RunningChecksum running;
    constexpr std::size_t step = std::size_t{4} << 20;
    for (std::size_t begin = 0; begin < tensor.bytes.size(); begin += step) {
      const auto piece = tensor.bytes.subspan(begin, std::min(step, tensor.bytes.size() - begin));
      if (tensor.keep == nullptr) expect_pages(piece);
      running.update(piece);
    }
    const Checksum sum = running.value();
    if (const auto stated = stated_.find(name); stated != stated_.end() && stated->second != sum) {
      throw Error(concat(bytes_->name(), ": the tensor '", detail::excerpt(name),
                         "' is not what was written: its checksum differs; the disk damaged it, or a program changed "
                         "it and kept the checksum; write or fetch the file again"));
    }
    return sum;
  }
  /// Whether the file states checksums that verify() compares.
  [[nodiscard]] bool has_checksums() const { return !stated_.empty(); }
  /// All names, sorted.
  [[nodiscard]] std::vector<std::string> names() const {
    std::vector<std::string> names;
    names.reserve(entries_.size());
    for (const auto& entry : entries_) names.push_back(entry.name);
    return names;
  }
  /// The texts under "__metadata__"; empty without it.
  [[nodiscard]] const std::map<std::string, std::string>& metadata() const { return metadata_; }
  /// The file that is open.
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  /// Finds by name; valid as long as this object stays where it is.
  [[nodiscard]] TensorSource source() const {
    return [this](std::string_view name) { return find(name); };
  }

 private:
  [[nodiscard]] const detail::SafetensorsEntry* entry_of(std::string_view name) const {
    const auto found = std::lower_bound(entries_.begin(), entries_.end(), name,
                                        [](const auto& entry, std::string_view wanted) { return entry.name < wanted; });
    return found == entries_.end() || found->name != name ? nullptr : &*found;
  }
  /// With its bytes where they are mapped.
  [[nodiscard]] TensorRef view(const detail::SafetensorsEntry& entry) const {
    if (!is_mapped()) return {entry.dtype, entry.shape, {}};
    return {entry.dtype, entry.shape, bytes_->mapped().subspan(data_begin_ + entry.begin, entry.end - entry.begin)};
  }
  /// The first bytes of the file, in `memory` where it is not mapped.
  [[nodiscard]] std::string_view beginning(std::uint64_t bytes, std::string& memory) const {
    const auto size = static_cast<std::size_t>(std::min(bytes, bytes_->size()));
    if (is_mapped()) return {reinterpret_cast<const char*>(bytes_->mapped().data()), size};
    memory.resize(size);
    bytes_->read(std::array{BytePiece{.offset = 0, .into = std::as_writable_bytes(std::span(memory))}});
    return memory;
  }

  void parse(Verify verify) {
    constexpr std::uint64_t likely = std::uint64_t{1} << 16;  // of a header, for one request where it lies elsewhere
    const std::string what = bytes_->name();
    const std::uint64_t size = bytes_->size();
    std::string memory;
    std::string_view begin = beginning(likely, memory);
    refuse_lfs_pointer(begin.substr(0, 64), what);
    if (size < 8) throw Error(concat(what, ": too short for a safetensors file"));
    std::uint64_t length = 0;
    std::memcpy(&length, begin.data(), 8);
    if (length > detail::max_safetensors_header || length > size - 8) {
      throw Error(concat(what, ": not a safetensors file, or cut off: its header would have ", length,
                         " bytes, the file has ", size));
    }
    data_begin_ = 8 + length;
    if (begin.size() < data_begin_) begin = beginning(data_begin_, memory);
    const std::string_view text = begin.substr(8, static_cast<std::size_t>(length));
    detail::refuse_odd_json_bytes(text, what);
    detail::SafetensorsHeader header(what);
    Json::sax_parse(text.begin(), text.end(), &header);
    detail::check_safetensors_entries(header.entries, size - data_begin_, what);
    entries_ = std::move(header.entries);
    metadata_ = std::move(header.metadata);
    if (verify == Verify::checksums) read_checksums(text);
  }

  void read_checksums(std::string_view header) {
    const auto own = metadata_.find(detail::header_sum_key);
    const auto all = metadata_.find(detail::tensor_sums_key);
    if (own == metadata_.end() && all == metadata_.end()) return;
    const auto refuse = [&](std::string_view why) {
      throw Error(concat(bytes_->name(), ": the header ", why,
                         "; the disk damaged it, or a program changed it and kept the checksum; write or fetch the "
                         "file again"));
    };
    if (own == metadata_.end() || all == metadata_.end()) refuse("has but one of its two kinds of checksums");
    const std::size_t place = detail::place_of_header_sum(header);
    if (place == std::string_view::npos || Checksum::parse(own->second) != detail::header_sum(header, place))
      refuse("is not what was written: its checksum differs");
    std::vector<std::size_t> order(entries_.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      return std::pair(entries_[a].begin, entries_[a].end) < std::pair(entries_[b].begin, entries_[b].end);
    });
    const std::string_view sums = all->second;
    if (sums.size() != order.size() * detail::sum_digits) refuse("has not one checksum for each tensor");
    for (std::size_t i = 0; i < order.size(); ++i) {
      const auto sum = Checksum::parse(sums.substr(i * detail::sum_digits, detail::sum_digits));
      if (!sum) refuse("has a checksum that is none");
      stated_.emplace(entries_[order[i]].name, *sum);
    }
  }

  std::filesystem::path path_;
  std::shared_ptr<const ByteSource> bytes_;
  std::uint64_t data_begin_ = 0;                   // behind the header
  std::vector<detail::SafetensorsEntry> entries_;  // sorted by name
  std::map<std::string, std::string> metadata_;
  std::map<std::string, Checksum, std::less<>> stated_;  // by tensor; empty: none are stated, or none are wanted
};

}  // namespace v0
}  // namespace qlora
