// qlora/run/data_files.hpp — packed data sets out of and into the files of Python's `datasets`, and JSON Lines.
#pragma once

#include <filesystem>

#include "qlora/run/prebuilt.hpp"
#include "qlora/run/progress.hpp"
#include "qlora/run/steps.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// Rows of token ids into the data set `out`; text/token_rows.hpp has the files.
struct ImportRequest {
  std::filesystem::path rows;   ///< a folder of save_to_disk, or an .arrow or .jsonl file
  std::filesystem::path model;  ///< model directory, or a tokenizer file: what made the ids
  std::filesystem::path out;    ///< directory of the data set
};

/// A data set into rows.
struct ExportRowsRequest {
  std::filesystem::path data;  ///< directory of the data set
  std::filesystem::path out;   ///< a .jsonl file, or the folder that is written
};

/// Writes the data set: each row a window, as long as the longest; attention goes across all of a row unless it has
/// document numbers. Throws Error: (input) for rows that are damaged, of ids that the tokenizer does not have, or of
/// labels that are no ids, (resource) when the directory cannot be written, (interrupted) when progress asks to stop.
QLORA_STEP PackResult import_rows(const ImportRequest& request, Progress& progress);

/// Writes the windows as rows, with document numbers where documents are isolated. Throws Error as import_rows does.
QLORA_STEP PackResult export_rows(const ExportRowsRequest& request, Progress& progress);

}  // namespace run
}  // namespace v0
}  // namespace qlora

#ifdef QLORA_STEP_CODE  // prebuilt.hpp
#include <fcntl.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/directory.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/sha256.hpp"
#include "qlora/text/dataset.hpp"
#include "qlora/text/packing.hpp"
#include "qlora/text/token_rows.hpp"
#include "qlora/text/tokenizer.hpp"

namespace qlora {
inline namespace v0 {
namespace run {
namespace detail {

inline void stop_if_asked(const Progress& progress, const char* doing) {
  if (progress.stop_requested())
    throw Error(concat("interrupted while ", doing, "; start again"), ErrorKind::interrupted);
}

/// Columns of a window: ids, labels and documents.
using WindowColumns = std::array<std::vector<std::int32_t>, 3>;

/// Windows that wait on the disk until the longest is known, so that the files they come from are read once.
class WindowSpool {
 public:
  /// Makes its file beside `out`; it has no name, and goes with this object.
  explicit WindowSpool(const std::filesystem::path& out) : path_(temporary_beside(directory_itself(out))) {
    if (path_.has_parent_path()) make_directories(path_.parent_path());
    file_ = FileDescriptor::open("cannot create", path_, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
    std::filesystem::remove(path_);
  }
  void add(const WindowColumns& window) {
    lengths_.push_back(static_cast<std::int32_t>(window[0].size()));
    for (const std::vector<std::int32_t>& column : window) held_.insert(held_.end(), column.begin(), column.end());
    if (held_.size() >= most_held) flush();
  }
  [[nodiscard]] std::size_t size() const { return lengths_.size(); }
  /// Hands on each window, which the receiver may change.
  template <class Use>
  void for_each(const Use& use) {
    flush();
    WindowColumns window;
    std::uint64_t at = 0;
    for (const std::int32_t length : lengths_) {
      for (std::vector<std::int32_t>& column : window) {
        column.resize(static_cast<std::size_t>(length));
        const std::span<std::byte> bytes = std::as_writable_bytes(std::span(column));
        QLORA_EXPECTS(read_at(file_, path_, at, bytes), path_.string(), " has no byte ", at);
        at += bytes.size();
      }
      use(window);
    }
  }

 private:
  static constexpr std::size_t most_held = std::size_t{1} << 18;
  void flush() {
    const std::span<const std::byte> bytes = std::as_bytes(std::span<const std::int32_t>(held_));
    write_all(file_, path_, written_, bytes);
    written_ += bytes.size();
    held_.clear();
  }

  std::filesystem::path path_;
  FileDescriptor file_;
  std::vector<std::int32_t> lengths_;
  std::vector<std::int32_t> held_;
  std::uint64_t written_ = 0;
};

/// Rows of files to the windows of a data set.
class RowImport {
 public:
  RowImport(const std::filesystem::path& out, std::int32_t vocab_size, std::int32_t pad_id)
      : out_(out), spool_(out), vocab_size_(vocab_size), pad_id_(pad_id) {}

  /// The rows that follow are of this file.
  void begin_file(const std::filesystem::path& file) {
    file_ = file.string();
    first_source_ = sources_.size();
    own_document_ = -1;
  }
  /// All rows of the file were added.
  void end_file(const std::string& sha256) {
    for (std::size_t i = first_source_; i < sources_.size(); ++i) sources_[i].sha256 = sha256;
  }
  void add(const TokenRow& row, const std::string& where) {
    for (std::vector<std::int32_t>& column : window_) column.clear();
    seq_ = std::max(seq_, row[RowColumn::ids].size());
    std::set<std::int64_t> seen;  // documents of this row that have ended, and the last one
    std::int64_t last = no_document;
    bool labelled = false;
    const auto& ids = row[RowColumn::ids];
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const std::int64_t number = document_of(row, i, where);
      if (number == no_document) {
        append(pad_id_, ignored_label, no_document);
        last = no_document;
        continue;
      }
      if (ids[i] < 0 || ids[i] >= vocab_size_)
        throw Error(concat(where, ": token ", i, " is the id ", ids[i], ", outside the vocabulary of ", vocab_size_,
                           "; give the --model whose tokenizer made the ids"));
      const bool first = number != last;
      if (first && !seen.insert(number).second)
        throw Error(concat(where, ": token ", i, " continues a document that ended before it in this row"));
      last = number;
      std::int64_t label = row.has(RowColumn::labels) ? row[RowColumn::labels][i] : ids[i];
      if (label != ignored_label && label != ids[i])
        throw Error(concat(where, ": the label of token ", i, " is ", label, ", neither -100 nor its id ", ids[i],
                           "; labels stand at their own token, not shifted"));
      if (first && row.has(RowColumn::document)) label = ignored_label;  // nothing of the document is before it
      labelled = labelled || (label != ignored_label && i > 0);
      append(static_cast<std::int32_t>(ids[i]), static_cast<std::int32_t>(label),
             row.has(RowColumn::document) ? index_of(number) : own_document());
    }
    hand_over(labelled);
  }

  /// Tokens of the longest row so far.
  [[nodiscard]] std::size_t longest() const { return seq_; }

  /// Writes the data set.
  PackResult finish(DatasetInfo info, Progress& progress) {
    DatasetWriter writer(out_, static_cast<int>(seq_), vocab_size_);
    progress.begin("write", static_cast<std::int64_t>(spool_.size()), "windows");
    spool_.for_each([&](WindowColumns& window) {
      stop_if_asked(progress, "importing");
      counts_.padding += static_cast<std::int64_t>(seq_ - window[0].size());
      window[0].resize(seq_, pad_id_);
      window[1].resize(seq_, ignored_label);
      window[2].resize(seq_, no_document);
      writer.add({window[0], window[1], window[2]});
      progress.update(static_cast<std::int64_t>(writer.size()));
    });
    PackingCounts counts = counts_;
    counts.documents = static_cast<std::int64_t>(sources_.size());
    for (const auto& [document, windows] : windows_of_) counts.cut_documents += windows > 1 && isolated_ ? 1 : 0;
    info.form = isolated_ ? PackingForm::isolated : PackingForm::article;
    info.labels = all_labels_ ? LabelChoice::all : LabelChoice::answers;
    info.sources = sources_;
    writer.finish(info, counts, {});
    progress.end(concat(writer.size(), " windows of ", seq_));
    if (dropped_ > 0) progress.say(concat(dropped_, " rows had no label and were left out"));
    return {.documents = counts.documents,
            .cut_documents = counts.cut_documents,
            .windows = static_cast<std::int64_t>(writer.size()),
            .seq = static_cast<int>(seq_),
            .tokens = counts.tokens,
            .labelled = counts.labelled,
            .padding = counts.padding,
            .dropped_tokens = counts.dropped_tokens,
            .path = out_};
  }

 private:
  /// The number that the row's columns give a token; no_document for padding.
  static std::int64_t document_of(const TokenRow& row, std::size_t i, const std::string& where) {
    if (row.has(RowColumn::mask)) {
      const std::int64_t mask = row[RowColumn::mask][i];
      if (mask != 0 && mask != 1)
        throw Error(concat(where, ": attention_mask of token ", i, " is ", mask, "; it must be 0 or 1"));
      if (mask == 0) return no_document;
    }
    if (!row.has(RowColumn::document)) return 0;
    const std::int64_t number = row[RowColumn::document][i];
    if (number < no_document) throw Error(concat(where, ": the document of token ", i, " is ", number));
    return number;
  }
  std::int32_t new_source(const std::string& name) {
    if (sources_.size() >= static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()))
      throw Error(file_ + ": more documents than a data set may have");
    sources_.push_back({name, "", {}, 0});
    return static_cast<std::int32_t>(sources_.size() - 1);
  }
  std::int32_t own_document() {
    if (own_document_ < 0) own_document_ = new_source(file_);
    return own_document_;
  }
  std::int32_t index_of(std::int64_t number) {
    isolated_ = true;
    const auto [at, is_new] = numbers_.try_emplace(number, 0);
    if (is_new) at->second = new_source(concat(file_, ", document ", number));
    return at->second;
  }
  void append(std::int32_t id, std::int32_t label, std::int32_t document) {
    window_[0].push_back(id);
    window_[1].push_back(label);
    window_[2].push_back(document);
  }
  void hand_over(bool labelled) {
    const std::vector<std::int32_t>& labels = window_[1];
    const std::vector<std::int32_t>& documents = window_[2];
    const auto all = static_cast<std::int64_t>(documents.size());
    const auto padded = static_cast<std::int64_t>(std::count(documents.begin(), documents.end(), no_document));
    if (!labelled) {
      counts_.dropped_tokens += all - padded;
      ++dropped_;
      return;
    }
    std::int32_t last = no_document;
    for (std::size_t i = 0; i < documents.size(); ++i) {
      const std::int32_t document = documents[i];
      if (document == no_document) continue;
      ++sources_[static_cast<std::size_t>(document)].tokens;
      const bool has_label = labels[i] != ignored_label;
      counts_.labelled += has_label && i > 0 ? 1 : 0;
      if (document == last && !has_label) all_labels_ = false;
      if (document != last) ++windows_of_[document];
      last = document;
    }
    counts_.padding += padded;
    counts_.tokens += all - padded;
    spool_.add(window_);
  }

  std::filesystem::path out_;
  WindowSpool spool_;
  std::int32_t vocab_size_;
  std::int32_t pad_id_;
  std::size_t seq_ = 0;  // of the longest row
  std::string file_;
  std::size_t first_source_ = 0;                  // of this file
  std::int32_t own_document_ = -1;                // of rows without document numbers: the file's
  std::map<std::int64_t, std::int32_t> numbers_;  // of documents in the rows, to ours
  std::map<std::int32_t, std::int64_t> windows_of_;
  std::vector<DatasetSource> sources_;
  WindowColumns window_;
  PackingCounts counts_;
  std::int64_t dropped_ = 0;
  bool isolated_ = false;
  bool all_labels_ = true;
};

}  // namespace detail

QLORA_STEP PackResult import_rows(const ImportRequest& request, Progress& progress) {
  const std::filesystem::path file =
      std::filesystem::is_directory(request.model) ? tokenizer_file(request.model) : request.model;
  const Tokenizer tokenizer = Tokenizer::load(file);
  const std::vector<std::filesystem::path> files = row_files(request.rows);
  detail::RowImport import(request.out, tokenizer.vocab_size(), tokenizer.eos());
  std::int64_t rows = 0;
  bool any_documents = false;
  bool all_documents = true;
  progress.begin("import", 0, "rows");
  for (const std::filesystem::path& one : files) {
    Sha256 hash;
    import.begin_file(one);
    for_each_row(
        one,
        [&](const TokenRow& row, const std::string& where) {
          detail::stop_if_asked(progress, "importing");
          const std::size_t length = row[RowColumn::ids].size();
          if (length > static_cast<std::size_t>(qlora::detail::max_dataset_seq))
            throw Error(concat(where, ": ", length, " tokens, more than a window may have"));
          any_documents = any_documents || row.has(RowColumn::document);
          all_documents = all_documents && row.has(RowColumn::document);
          import.add(row, where);
          progress.update(++rows);
        },
        &hash);
    import.end_file(hash.hex());
  }
  progress.end(concat(rows, " rows"));
  if (any_documents && !all_documents)
    throw Error(request.rows.string() + ": some rows have document numbers and some have none; give all or none");
  if (import.longest() < 2) throw Error(concat(request.rows.string(), ": ", rows, " rows, none of two tokens or more"));
  return import.finish({.vocab_size = tokenizer.vocab_size(), .tokenizer_sha256 = sha256_file(file), .sources = {}},
                       progress);
}

QLORA_STEP PackResult export_rows(const ExportRowsRequest& request, Progress& progress) {
  const TokenDataset data = TokenDataset::open(request.data);
  const bool isolated = data.info().form == PackingForm::isolated;
  const auto windows = static_cast<std::int64_t>(data.size());
  RowWriter writer(request.out, windows, data.seq(), isolated);
  progress.begin("export", windows, "windows");
  TokenRow row;
  for (std::int64_t i = 0; i < windows; ++i) {
    detail::stop_if_asked(progress, "exporting");
    const DatasetWindow window = data.window(static_cast<std::size_t>(i));
    row[RowColumn::ids].assign(window.ids.begin(), window.ids.end());
    row[RowColumn::labels].assign(window.labels.begin(), window.labels.end());
    row[RowColumn::document].assign(window.documents.begin(), window.documents.end());
    row[RowColumn::mask].clear();
    for (const std::int32_t document : window.documents)
      row[RowColumn::mask].push_back(document == no_document ? 0 : 1);
    writer.add(row);
    progress.update(i + 1);
  }
  writer.finish(data.fingerprint());
  progress.end(concat(windows, " rows"));
  const PackingCounts& counts = data.counts();
  return {.documents = static_cast<std::int64_t>(data.sources()),
          .skipped_documents = counts.skipped_documents,
          .cut_documents = counts.cut_documents,
          .windows = windows,
          .seq = data.seq(),
          .tokens = counts.tokens,
          .labelled = counts.labelled,
          .padding = counts.padding,
          .dropped_tokens = counts.dropped_tokens,
          .path = request.out};
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
#endif  // QLORA_STEP_CODE
