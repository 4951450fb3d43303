// qlora/io/byte_source.hpp — the bytes of a file wherever they lie: on the disk, where they are mapped, or elsewhere,
// where they are read when they are needed.
// A file that lies elsewhere has a stand-in on the disk, a short text under its name, so that a folder lists it; this
// process knows what a stand-in stands for since it made it (stand_in). What may not change: the text of a stand-in is
// never followed, since whoever made a model's folder could have written one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "qlora/error.hpp"
#include "qlora/io/file.hpp"

namespace qlora {
inline namespace v0 {

/// Some bytes of a source, and where they go.
struct BytePiece {
  std::uint64_t offset = 0;     ///< of the first in the source
  std::span<std::byte> into{};  ///< as many as are read
};

/// Bytes that are read by their offsets. Any number of threads may call it at once.
class ByteSource {
 public:
  ByteSource() = default;
  ByteSource(const ByteSource&) = delete;
  ByteSource& operator=(const ByteSource&) = delete;
  virtual ~ByteSource() = default;

  /// A path or an address, for messages.
  [[nodiscard]] virtual std::string name() const = 0;
  /// How many bytes there are.
  [[nodiscard]] virtual std::uint64_t size() const = 0;
  /// All of them, in memory as long as this lives; empty where they have to be read, or there are none.
  [[nodiscard]] virtual std::span<const std::byte> mapped() const { return {}; }
  /// Reads pieces, which lie inside. Those of one call may be read side by side and in any order: a caller that knows
  /// several asks for them together. Throws Error.
  virtual void read(std::span<const BytePiece> pieces) const = 0;
};

/// A file on the disk.
class FileBytes final : public ByteSource {
 public:
  /// Maps a regular file. Throws Error when it cannot be read.
  explicit FileBytes(const std::filesystem::path& path) : path_(path), file_(path) {}
  [[nodiscard]] std::string name() const override { return path_.string(); }
  [[nodiscard]] std::uint64_t size() const override { return file_.bytes().size(); }
  [[nodiscard]] std::span<const std::byte> mapped() const override { return file_.bytes(); }
  void read(std::span<const BytePiece> pieces) const override {
    for (const BytePiece& piece : pieces) {
      const auto from = file_.bytes().subspan(piece.offset, piece.into.size());
      std::copy(from.begin(), from.end(), piece.into.begin());
    }
  }

 private:
  std::filesystem::path path_;
  MappedFile file_;
};

/// Opens what lies elsewhere.
using OpenBytes = std::function<std::shared_ptr<const ByteSource>()>;

namespace detail {

inline constexpr std::string_view stand_in_mark = "qlora reads this file from ";

/// What the stand-ins of this process stand for, by their paths without links.
struct StandIns {
  std::mutex mutex;
  std::map<std::string, OpenBytes> open;
};
[[nodiscard]] inline StandIns& stand_ins() {
  static StandIns all;
  return all;
}

}  // namespace detail

/// The text of a stand-in; `what` says what it stands for, and differs where that does.
[[nodiscard]] inline std::string stand_in_text(std::string_view what) {
  return concat(detail::stand_in_mark, what, "\n");
}

/// Has open_bytes() of this path, where a file with stand_in_text() lies, open something else from now on.
inline void stand_in(const std::filesystem::path& path, OpenBytes open) {
  detail::StandIns& all = detail::stand_ins();
  const std::lock_guard lock(all.mutex);
  all.open[std::filesystem::weakly_canonical(path).string()] = std::move(open);
}

/// The bytes of a file, or of what it stands in for. Throws Error when it cannot be read, and for a stand-in that this
/// process did not make.
[[nodiscard]] inline std::shared_ptr<const ByteSource> open_bytes(const std::filesystem::path& path) {
  auto file = std::make_shared<const FileBytes>(path);
  const std::string_view text(reinterpret_cast<const char*>(file->mapped().data()), file->mapped().size());
  if (!text.starts_with(detail::stand_in_mark)) return file;
  detail::StandIns& all = detail::stand_ins();
  OpenBytes open;
  {
    const std::lock_guard lock(all.mutex);
    const auto found = all.open.find(std::filesystem::weakly_canonical(path).string());
    if (found != all.open.end()) open = found->second;
  }
  if (open) return open();
  throw Error(path.string() + ": stands in for a file that lies elsewhere; give the address that it is read from");
}

}  // namespace v0
}  // namespace qlora
