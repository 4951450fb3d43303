// qlora/text/token_rows.hpp — rows of token ids as Python packages write them: the Arrow folder that `datasets` saves
// (save_to_disk), one of its .arrow files, or JSON Lines. docs/dataset.md describes the columns.
// Columns    input_ids, labels (as long, -100 where nothing is predicted), attention_mask (0 on padding), document (a
//            number for each token, -1 on padding); all but the first may be missing
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/arrow.hpp"
#include "qlora/io/arrow_writer.hpp"
#include "qlora/io/directory.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/json.hpp"
#include "qlora/io/sha256.hpp"
#include "qlora/text/document.hpp"

namespace qlora {
inline namespace v0 {

/// Columns of a row, by their number in TokenRow.
enum class RowColumn : std::size_t { ids, labels, mask, document };

/// A row; its columns are of one length S, and those that are not there are empty.
struct TokenRow {
  std::array<std::vector<std::int64_t>, 4> columns;  ///< (S) each
  std::array<bool, 4> is_here{};                     ///< which columns there are; the first is

  /// The numbers of a column.
  [[nodiscard]] std::vector<std::int64_t>& operator[](RowColumn c) { return columns[static_cast<std::size_t>(c)]; }
  /// The numbers of a column.
  [[nodiscard]] const std::vector<std::int64_t>& operator[](RowColumn c) const {
    return columns[static_cast<std::size_t>(c)];
  }
  /// Whether there is this column.
  [[nodiscard]] bool has(RowColumn c) const { return is_here[static_cast<std::size_t>(c)]; }
};

namespace detail {

inline constexpr std::array<const char*, 4> row_columns{"input_ids", "labels", "attention_mask", "document"};

inline void check_row(const TokenRow& row, const std::string& where) {
  const std::size_t length = row[RowColumn::ids].size();
  for (std::size_t c = 1; c < row_columns.size(); ++c) {
    if (row.is_here[c] && row.columns[c].size() != length)
      throw Error(concat(where, ": ", row.columns[c].size(), " numbers in ", row_columns[c], ", ", length,
                         " in input_ids; both must have one for each token"));
  }
}

template <class Use>
void for_each_arrow_row(const std::filesystem::path& path, const Use& use, Sha256* hash) {
  const arrow::ListFile file(path);
  if (!file.has(row_columns[0]))
    throw Error(concat(path.string(), ": has no column input_ids, its columns are ", file.names(),
                       "; texts are packed by `qlora pack` from JSON Lines (to_json)"));
  TokenRow row;
  for (std::size_t c = 0; c < row_columns.size(); ++c) row.is_here[c] = file.has(row_columns[c]);
  file.rows(
      {row_columns.begin(), row_columns.end()},
      [&](std::int64_t number, const std::vector<std::vector<std::int64_t>>& lists) {
        for (std::size_t c = 0; c < lists.size(); ++c) row.columns[c] = lists[c];
        const std::string where = concat(path.string(), ", row ", number);
        check_row(row, where);
        use(row, where);
      },
      [&](std::span<const std::byte> bytes) {
        if (hash != nullptr) hash->update(bytes);
      });
}

template <class Use>
void for_each_json_row(const std::filesystem::path& path, const Use& use, Sha256* hash) {
  auto [file, by_line] = open_documents(path);
  const auto on_piece = [&](std::string_view piece) {
    if (hash != nullptr) hash->update(piece);
  };
  const auto on_line = [&](std::string_view line, std::size_t number) {
    if (number == 1) refuse_lfs_pointer(line, path.string());
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) return;
    const std::string where = concat(path.string(), ":", number);
    const nlohmann::json object = parse_json_line(line, where);
    if (!object.is_object() || !object.contains(row_columns[0]))
      throw Error(where + ": is no object with \"input_ids\"; lines of text are packed by `qlora pack`");
    TokenRow row;
    for (std::size_t c = 0; c < row_columns.size(); ++c) {
      const auto found = object.find(row_columns[c]);
      row.is_here[c] = found != object.end();
      if (!row.is_here[c]) continue;
      const bool list = found->is_array() && std::all_of(found->begin(), found->end(), [](const auto& value) {
                          return value.is_number_integer() &&
                                 (!value.is_number_unsigned() || value.template get<std::uint64_t>() <= INT64_MAX);
                        });
      if (!list) throw Error(concat(where, ": \"", row_columns[c], "\" is no list of whole numbers"));
      row.columns[c] = found->template get<std::vector<std::int64_t>>();
    }
    check_row(row, where);
    use(row, where);
  };
  for_each_line(file, path.string(), on_line, on_piece);
}

}  // namespace detail

/// The files of rows that a path stands for: itself if it is a .jsonl or .arrow file, else the Arrow files of a folder
/// that save_to_disk wrote. Throws Error for anything else.
[[nodiscard]] inline std::vector<std::filesystem::path> row_files(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  if (!fs::is_directory(path)) {
    if (!fs::exists(path)) throw Error(concat("cannot open ", path.string(), ": no such file or folder"));
    if (path.extension() != ".jsonl" && path.extension() != ".arrow")
      throw Error(path.string() + ": neither a .jsonl or .arrow file nor a folder of save_to_disk", ErrorKind::usage);
    return {path};
  }
  if (fs::exists(path / "dataset_dict.json"))
    throw Error(path.string() + ": holds several splits; give one of them, " + (path / "train").string() + " say");
  if (!fs::exists(path / "state.json"))
    throw Error(path.string() + ": no folder that datasets' save_to_disk wrote: it has no state.json");
  const std::string where = (path / "state.json").string();
  const Json state = read_json_object(path / "state.json");
  const Json list = json_at(state, "_data_files", where);
  if (const Json* indices = json_find(state, "_indices_data_files"); indices != nullptr && !indices->empty())
    throw Error(where + ": the rows are chosen by a list of indices, which is not read; flatten_indices() and save it");
  if (!list.is_array() || list.empty()) throw Error(where + ": '_data_files' is no list of files");
  std::vector<fs::path> files;
  for (const Json& entry : list) {
    if (!entry.is_object()) throw Error(where + ": '_data_files' is no list of files");
    const std::string name = json_string(entry, "filename", where);
    if (name.empty() || name.find('/') != std::string::npos || name.starts_with('.'))
      throw Error(concat(where, ": '", detail::excerpt(name), "' is no name of a file in this folder"));
    files.push_back(path / name);
  }
  return files;
}

/// Calls use(row, "FILE, row N") for each row of a file, and adds the file's bytes to `hash`, if it is not null, as
/// they are read. Throws Error that names the place of what is wrong.
template <class Use>
void for_each_row(const std::filesystem::path& file, const Use& use, Sha256* hash = nullptr) {
  if (file.extension() == ".jsonl") return detail::for_each_json_row(file, use, hash);
  detail::for_each_arrow_row(file, use, hash);
}

/// Writes rows of one length as the folder that save_to_disk writes, or as JSON Lines. What has the name is replaced at
/// finish(), if it is of that kind. Used by one thread at a time.
class RowWriter {
 public:
  /// A .jsonl file, or a folder. `rows` of `seq` tokens each will come, with their document numbers or without.
  /// Throws Error (usage) when the folder holds other files.
  RowWriter(const std::filesystem::path& path, std::int64_t rows, std::int64_t seq, bool with_documents)
      : path_(path), rows_(rows), columns_(with_documents ? 4U : 3U) {
    if (path.extension() == ".jsonl") {
      lines_.emplace_back(path);
      return;
    }
    folder_.emplace_back(path, temporary_beside(directory_itself(path)), is_own_file);
    const std::int64_t bytes = rows * seq * (with_documents ? 17 : 13);
    shards_ = std::max<std::int64_t>(1, (bytes + shard_bytes - 1) / shard_bytes);
  }

  /// Writes the next row, all of whose columns but the document's are there. Throws Error (resource) when it cannot.
  void add(const TokenRow& row) {
    const std::span<const std::vector<std::int64_t>> columns = std::span(row.columns).first(columns_);
    if (!lines_.empty()) {
      nlohmann::ordered_json object;
      for (std::size_t c = 0; c < columns.size(); ++c) object[detail::row_columns[c]] = columns[c];
      held_ += object.dump() + "\n";
      if (held_.size() > (std::size_t{1} << 20)) flush();
      return;
    }
    if (done_ == rows_ * shard_ / shards_) next_shard();
    file_.back().add(columns);
    ++done_;
  }
  /// Gives file or folder its name; `fingerprint` is what `datasets` calls the rows' identity.
  void finish(const std::string& fingerprint) {
    if (!lines_.empty()) {
      flush();
      lines_.back().commit();
      return;
    }
    close_shard();
    Json files = Json::array();
    for (std::int64_t i = 0; i < shards_; ++i) files.push_back({{"filename", name_of_shard(i)}});
    const Json state{{"_data_files", files},  {"_fingerprint", fingerprint.substr(0, 16)},
                     {"_format_columns", {}}, {"_format_kwargs", Json::object()},
                     {"_format_type", {}},    {"_output_all_columns", false},
                     {"_split", {}}};
    Json features = Json::object();
    for (std::size_t c = 0; c < columns_; ++c) {
      // "Sequence" and not "List", which versions of `datasets` before 4 do not know.
      features[detail::row_columns[c]] = {{"feature", {{"dtype", concat("int", bits[c])}, {"_type", "Value"}}},
                                          {"_type", "Sequence"}};
    }
    const Json about{{"citation", ""}, {"description", ""}, {"features", features}, {"homepage", ""}, {"license", ""}};
    write_file_atomically(folder_.back().temporary() / "state.json", json_text(state));
    write_file_atomically(folder_.back().temporary() / "dataset_info.json", json_text(about));
    folder_.back().commit();
  }

 private:
  static constexpr std::int64_t shard_bytes = 500'000'000;  // as `datasets` cuts
  static constexpr std::array<int, 4> bits{32, 64, 8, 32};  // as `datasets` stores what a tokenizer returns

  static bool is_own_file(std::string_view name) {
    return name == "state.json" || name == "dataset_info.json" ||
           (name.starts_with("data-") && name.ends_with(".arrow"));
  }
  [[nodiscard]] std::string name_of_shard(std::int64_t index) const {
    const auto five = [](std::int64_t number) {
      const std::string digits = std::to_string(number);
      return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits;
    };
    return concat("data-", five(index), "-of-", five(shards_), ".arrow");
  }
  void close_shard() {
    if (file_.empty()) return;
    file_.back().finish();
    file_.clear();
  }
  void next_shard() {
    close_shard();
    std::vector<arrow::ListColumn> columns;
    for (std::size_t c = 0; c < columns_; ++c) columns.push_back({detail::row_columns[c], bits[c]});
    file_.emplace_back(folder_.back().temporary() / name_of_shard(shard_++), std::move(columns));
  }
  void flush() {
    lines_.back().write_at(written_, std::as_bytes(std::span(held_)));
    written_ += held_.size();
    held_.clear();
  }

  std::filesystem::path path_;
  std::int64_t rows_;
  std::size_t columns_;
  std::int64_t shards_ = 0;
  std::int64_t shard_ = 0;               // that are begun
  std::int64_t done_ = 0;                // rows
  std::vector<AtomicFile> lines_;        // one, or none
  std::vector<AtomicDirectory> folder_;  // one, or none
  std::vector<arrow::ListWriter> file_;  // one, or none: the shard that is written, before the folder goes
  std::string held_;                     // lines
  std::uint64_t written_ = 0;
};

}  // namespace v0
}  // namespace qlora
