// qlora/text/dataset_manifest.hpp — manifest.json of a data set: read and written without its list of sources in
// memory, which of a corpus of a million documents takes most of a manifest, and ten times as much as a tree of JSON.
// What may not change: the bytes that are written, and what a fingerprint is: the SHA-256 of the manifest without its
// own hash, keys sorted, indented by two, as the first versions wrote it.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/json.hpp"
#include "qlora/io/sha256.hpp"

namespace qlora {
inline namespace v0 {

/// Where a document of the data set came from, in the order in which the packer got them.
struct DatasetSource {
  std::string source;       ///< URL or path
  std::string title;        ///< may be empty
  std::string sha256;       ///< of its text
  std::int64_t tokens = 0;  ///< begin and end tokens included; 0 if it was skipped
  friend bool operator==(const DatasetSource&, const DatasetSource&) = default;
};

namespace detail {

inline constexpr std::size_t max_manifest_bytes = std::size_t{1} << 28;

[[nodiscard]] inline DatasetSource source_of(const Json& source, const std::string& where) {
  if (!source.is_object()) throw Error(where + ": every one of 'sources' must be an object");
  return {json_string(source, "source", where), json_string_or(source, "title", where, ""),
          json_string(source, "sha256", where),
          json_int(source, "tokens", where, 0, std::numeric_limits<std::int64_t>::max())};
}

/// A file of which ranges are read in their order: a window of it is in memory.
class RangeReader {
 public:
  RangeReader(const FileDescriptor& file, const std::filesystem::path& path, std::size_t size)
      : file_(&file), path_(&path), size_(size) {}

  /// Bytes [begin,end) of the file; the view is valid until the next call.
  [[nodiscard]] std::string_view read(std::size_t begin, std::size_t end) {
    if (begin < begin_ || end > begin_ + window_.size()) {
      begin_ = begin;
      window_.resize(std::min(std::max(window_bytes, end - begin), size_ - begin));
      if (!read_at(*file_, *path_, begin, std::as_writable_bytes(std::span(window_)))) {
        throw Error(concat(path_->string(), " was shortened while it was read"));
      }
    }
    return std::string_view(window_).substr(begin - begin_, end - begin);
  }
  /// Hands all of [begin,end) to `use` in pieces.
  template <class Use>
  void for_each_piece(std::size_t begin, std::size_t end, const Use& use) {
    while (begin < end) {
      const std::size_t next = std::min(end, begin + window_bytes);
      use(read(begin, next));
      begin = next;
    }
  }

 private:
  static constexpr std::size_t window_bytes = std::size_t{1} << 16;
  const FileDescriptor* file_;
  const std::filesystem::path* path_;
  std::size_t size_;
  std::size_t begin_ = 0;
  std::string window_;
};

/// Finds, in one pass over a JSON text, where the elements of the outer object's list "sources" stand and where its key
/// "sha256" does, and keeps all but these elements. What it keeps is parsed afterwards, and so is each element, so
/// that a text that is no JSON is found then.
class ManifestScan {
 public:
  std::string rest;                     ///< the text, its list of sources empty
  std::vector<std::uint32_t> elements;  ///< where each begins, and behind the last one's comma or bracket
  std::size_t sha_begin = 0;            ///< of the key "sha256", with its quote
  std::size_t sha_end = 0;              ///< of the key behind it; 0: there are not both

  void read(std::string_view piece) {
    for (const char c : piece) {
      if (!in_list_) rest += c;
      read(c);
      ++at_;
    }
  }

 private:
  static bool is_blank(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

  void read(char c) {
    if (in_string_) {
      if (!escaped_ && c == '"') {
        in_string_ = false;
        if (is_key_) end_key();
      } else {
        escaped_ = !escaped_ && c == '\\';
        if (is_key_ && key_.size() < 16) key_ += c;
      }
      return;
    }
    if (in_list_ && depth_ == 2 && (c == ',' || c == ']')) end_element(c == ']');
    if (in_list_ && !is_blank(c)) blank_ = c == ',' && depth_ == 2 ? blank_ : false;
    if (c == '"') {
      in_string_ = true;
      is_key_ = depth_ == 1 && before_key_;
      if (is_key_) begin_key();
      before_key_ = false;
    } else if (c == '{' || c == '[') {
      begins_ = depth_ == 1 && c == '[' && key_ == "sources";
      before_key_ = depth_ == 0 && c == '{';
      ++depth_;
      if (begins_ && !in_list_) begin_list();
    } else if (c == '}' || c == ']') {
      if (depth_ > 0) --depth_;
    } else if (c == ',' && depth_ == 1) {
      before_key_ = true;
    }
  }
  void begin_key() {
    if (sha_begin > 0 && sha_end == 0) sha_end = at_;
    key_.clear();
    key_at_ = at_;
  }
  void end_key() {
    is_key_ = false;
    if (key_ == "sha256" && sha_begin == 0) sha_begin = key_at_;
  }
  void begin_list() {
    in_list_ = true;
    blank_ = true;
    elements.assign(1, static_cast<std::uint32_t>(at_ + 1));
  }
  void end_element(bool last) {
    if (!last || !blank_ || elements.size() > 1) elements.push_back(static_cast<std::uint32_t>(at_ + 1));
    if (!last) return;
    in_list_ = false;
    rest += ']';
  }

  std::size_t at_ = 0;
  std::size_t depth_ = 0;
  std::size_t key_at_ = 0;
  std::string key_;  // the last one of the outer object
  bool in_string_ = false, escaped_ = false, is_key_ = false, before_key_ = false;
  bool in_list_ = false, blank_ = true, begins_ = false;
};

/// Sources on their way into a manifest: JSON texts in a file without a name.
class SourceSpool {
 public:
  /// Makes its file in this directory, which keeps nothing of it.
  explicit SourceSpool(const std::filesystem::path& directory)
      : path_(directory / "sources"),
        file_(FileDescriptor::open("cannot create", path_, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600)) {
    std::filesystem::remove(path_);
  }

  void add(const DatasetSource& entry) {
    Json source{{"source", entry.source}, {"sha256", entry.sha256}, {"tokens", entry.tokens}};
    if (!entry.title.empty()) source["title"] = entry.title;
    held_ += json_text(source, -1);
    if (held_.size() >= held_bytes) flush();
    ++size_;
  }
  [[nodiscard]] std::size_t size() const { return size_; }

  /// Hands the text of each to use(index, text).
  template <class Use>
  void for_each(const Use& use) {
    flush();
    RangeReader reader(file_, path_, written_);
    std::string line;
    std::size_t index = 0;
    reader.for_each_piece(0, written_, [&](std::string_view piece) {
      for (std::size_t end = piece.find('\n'); end != std::string_view::npos; end = piece.find('\n')) {
        line += piece.substr(0, end);
        use(index++, std::exchange(line, {}));
        piece.remove_prefix(end + 1);
      }
      line += piece;
    });
  }

 private:
  static constexpr std::size_t held_bytes = std::size_t{1} << 16;
  void flush() {
    write_all(file_, path_, written_, std::as_bytes(std::span(held_)));
    written_ += held_.size();
    held_.clear();
  }

  std::filesystem::path path_;
  FileDescriptor file_;
  std::string held_;
  std::size_t written_ = 0;
  std::size_t size_ = 0;
};

}  // namespace detail

/// A manifest whose list of sources stays on the disk. Used by one thread at a time.
class DatasetManifest {
 public:
  /// Throws Error when it cannot be read, is no JSON object, was changed after it was written, or has a source that is
  /// none.
  explicit DatasetManifest(const std::filesystem::path& path) : path_(path), file_(open_regular(path, size_)) {
    const std::string where = path_.string();
    if (size_ > detail::max_manifest_bytes)
      throw Error(
          concat(where, " holds ", size_, " bytes, more than the ", detail::max_manifest_bytes, " it may have"));
    refuse_lfs_pointer_in(path);
    detail::ManifestScan scan;
    detail::RangeReader reader(file_, path_, size_);
    reader.for_each_piece(0, size_, [&](std::string_view piece) { scan.read(piece); });
    elements_ = std::move(scan.elements);
    rest_ = parse_json(scan.rest, where);
    if (!rest_.is_object()) throw Error(where + ": not a JSON object");
    check_hash(scan, where);
  }

  /// The manifest without its hash, its list of sources empty.
  [[nodiscard]] const Json& rest() const { return rest_; }
  /// See the head of this file; of a manifest without a hash, the SHA-256 of its bytes.
  [[nodiscard]] const std::string& fingerprint() const { return fingerprint_; }
  /// The same without the places that the sources are from: documents that are packed from another folder have it, too.
  [[nodiscard]] const std::string& identity() const { return identity_; }
  /// Number of sources.
  [[nodiscard]] std::size_t size() const { return elements_.empty() ? 0 : elements_.size() - 1; }
  /// One source, read from the file that was opened. Throws Error when that fails.
  [[nodiscard]] Json source(std::size_t index) const {
    QLORA_EXPECTS(index < size(), "source ", index, " of ", size());
    detail::RangeReader reader(file_, path_, elements_[index + 1]);
    return read_source(reader, index);
  }

 private:
  [[nodiscard]] Json read_source(detail::RangeReader& reader, std::size_t index) const {
    return parse_json(reader.read(elements_[index], elements_[index + 1] - 1), path_.string());
  }

  /// Checks the hash, takes it out. Manifests of earlier versions have none, and no other key either.
  void check_hash(const detail::ManifestScan& scan, const std::string& where) {
    constexpr std::array<std::string_view, 9> keys{"counts",  "format",  "packing",          "seq",       "shards",
                                                   "sources", "version", "tokenizer_sha256", "vocab_size"};
    if (json_find(rest_, "sha256") == nullptr) {
      for (const auto& [key, value] : rest_.items()) {
        if (key == "windows" || std::find(keys.begin(), keys.end(), key) != keys.end()) continue;
        throw Error(
            concat(where, ": the key '", detail::excerpt(key), "' belongs to no manifest; pack the documents again"));
      }
      fingerprint_ = hash_without(0, 0);
      (void)read_sources();
      return;
    }
    const bool indented = scan.rest.starts_with("{\n");  // as earlier versions wrote it
    const std::string stated = json_string(rest_, "sha256", where);
    detail::RangeReader reader(file_, path_, size_);
    const std::string_view cut = scan.sha_end == 0 ? std::string_view() : reader.read(scan.sha_begin, scan.sha_end);
    const std::string expected =
        indented ? concat("\"sha256\": \"", stated, "\",\n  ") : concat("\"sha256\":\"", stated, "\",");
    const bool in_place =
        cut == expected && scan.sha_end + 8 <= size_ && reader.read(scan.sha_end, scan.sha_end + 8) == "\"shards\"";
    rest_.erase("sha256");
    const std::string found = in_place ? hash_without(scan.sha_begin, scan.sha_end) : std::string();
    if (stated != found) {
      throw Error(
          concat(where, ": was changed after it was written: its SHA-256 does not match; pack the documents again"));
    }
    const std::string of_content = read_sources();
    fingerprint_ = indented ? found : of_content;
  }

  [[nodiscard]] std::string hash_without(std::size_t begin, std::size_t end) const {
    Sha256 hash;
    detail::RangeReader reader(file_, path_, size_);
    const auto update = [&](std::string_view piece) { hash.update(piece); };
    reader.for_each_piece(0, begin, update);
    reader.for_each_piece(end, size_, update);
    return hash.hex();
  }

  /// Checks each source and sets identity_; the hash of the manifest as earlier versions wrote it.
  [[nodiscard]] std::string read_sources() {
    const std::string text = json_text(rest_);
    constexpr std::string_view list = "\n  \"sources\": [";  // no string holds a line break
    const std::size_t place = std::min(text.find(list), text.size() - list.size()) + list.size();
    Sha256 hash, placeless;
    hash.update(std::string_view(text).substr(0, place));
    placeless.update(text);
    detail::RangeReader reader(file_, path_, size_);
    for (std::size_t i = 0; i < size(); ++i) {
      const Json source = read_source(reader, i);
      const DatasetSource known = detail::source_of(source, path_.string());
      placeless.update(json_text(Json{known.title, known.sha256, known.tokens}, -1));
      hash.update(i == 0 ? "\n    " : ",\n    ");
      const std::string lines = source.dump(2);
      for (std::size_t at = 0; at < lines.size();) {
        const std::size_t end = std::min(lines.find('\n', at), lines.size() - 1) + 1;
        hash.update(std::string_view(lines).substr(at, end - at));
        if (end < lines.size()) hash.update("    ");
        at = end;
      }
    }
    identity_ = placeless.hex();
    if (size() > 0) hash.update("\n  ");
    return hash.update(std::string_view(text).substr(place)).hex();
  }

  std::filesystem::path path_;
  std::size_t size_ = 0;
  FileDescriptor file_;
  std::vector<std::uint32_t> elements_;
  Json rest_;
  std::string fingerprint_;
  std::string identity_;
};

}  // namespace v0
}  // namespace qlora
