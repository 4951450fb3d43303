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
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/sha256.hpp"
#include "qlora/text/dataset.hpp"
#include "qlora/text/packing.hpp"
#include "qlora/text/token_rows.hpp"
#include "qlora/text/tokenizer.hpp"

namespace qlora {
inline namespace v0 {
namespace run {
namespace detail {

/// Rows of files to the windows of a data set.
class RowImport {
 public:
  RowImport(const ImportRequest& request, std::int32_t vocab_size, std::int32_t pad_id, std::int64_t seq)
      : writer_(request.out, static_cast<int>(seq), vocab_size), vocab_size_(vocab_size), pad_id_(pad_id), seq_(seq) {}

  /// The rows that follow are of this file.
  void begin_file(const std::filesystem::path& file) {
    file_ = file.string();
    file_sha256_ = sha256_file(file);
    own_document_ = -1;
  }
  void add(const TokenRow& row, const std::string& where) {
    for (auto* column : {&ids_, &labels_, &documents_}) column->clear();
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
        throw Error(concat(where, ": token ", i, " goes on with a document that ended before it in this row"));
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

  PackResult finish(const std::filesystem::path& out, DatasetInfo info, Progress& progress) {
    PackingCounts counts = counts_;
    counts.documents = static_cast<std::int64_t>(sources_.size());
    for (const auto& [document, windows] : windows_of_) counts.cut_documents += windows > 1 && isolated_ ? 1 : 0;
    info.form = isolated_ ? PackingForm::isolated : PackingForm::article;
    info.labels = all_labels_ ? LabelChoice::all : LabelChoice::answers;
    info.sources = sources_;
    writer_.finish(info, counts, {});
    if (dropped_ > 0) progress.say(concat(dropped_, " rows had no label and were left out"));
    return {.documents = counts.documents,
            .cut_documents = counts.cut_documents,
            .windows = static_cast<std::int64_t>(writer_.size()),
            .seq = static_cast<int>(seq_),
            .tokens = counts.tokens,
            .labelled = counts.labelled,
            .padding = counts.padding,
            .dropped_tokens = counts.dropped_tokens,
            .path = out};
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
    sources_.push_back({name, "", file_sha256_, 0});
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
    ids_.push_back(id);
    labels_.push_back(label);
    documents_.push_back(document);
  }
  void hand_over(bool labelled) {
    const auto all = static_cast<std::int64_t>(ids_.size());
    const auto padded = static_cast<std::int64_t>(std::count(documents_.begin(), documents_.end(), no_document));
    if (!labelled) {
      counts_.dropped_tokens += all - padded;
      ++dropped_;
      return;
    }
    std::int32_t last = no_document;
    for (std::size_t i = 0; i < ids_.size(); ++i) {
      const std::int32_t document = documents_[i];
      if (document == no_document) continue;
      ++sources_[static_cast<std::size_t>(document)].tokens;
      const bool has_label = labels_[i] != ignored_label;
      counts_.labelled += has_label && i > 0 ? 1 : 0;
      if (document == last && !has_label) all_labels_ = false;
      if (document != last) ++windows_of_[document];
      last = document;
    }
    while (static_cast<std::int64_t>(ids_.size()) < seq_) append(pad_id_, ignored_label, no_document);
    counts_.padding += padded + seq_ - all;
    counts_.tokens += all - padded;
    writer_.add({ids_, labels_, documents_});
  }

  DatasetWriter writer_;
  std::int64_t vocab_size_;
  std::int32_t pad_id_;
  std::int64_t seq_;
  std::string file_;
  std::string file_sha256_;
  std::int32_t own_document_ = -1;                // of rows without document numbers: the file's
  std::map<std::int64_t, std::int32_t> numbers_;  // of documents in the rows, to ours
  std::map<std::int32_t, std::int64_t> windows_of_;
  std::vector<DatasetSource> sources_;
  std::vector<std::int32_t> ids_;  // of the window
  std::vector<std::int32_t> labels_;
  std::vector<std::int32_t> documents_;
  PackingCounts counts_;
  std::int64_t dropped_ = 0;
  bool isolated_ = false;
  bool all_labels_ = true;
};

inline void stop_if_asked(const Progress& progress, const char* doing) {
  if (progress.stop_requested())
    throw Error(concat("interrupted while ", doing, "; start again"), ErrorKind::interrupted);
}

}  // namespace detail

QLORA_STEP PackResult import_rows(const ImportRequest& request, Progress& progress) {
  const std::filesystem::path file =
      std::filesystem::is_directory(request.model) ? tokenizer_file(request.model) : request.model;
  const Tokenizer tokenizer = Tokenizer::load(file);
  const std::vector<std::filesystem::path> files = row_files(request.rows);
  std::int64_t rows = 0;
  std::size_t seq = 0;
  bool any_documents = false;
  bool all_documents = true;
  for (const std::filesystem::path& one : files) {
    for_each_row(one, [&](const TokenRow& row, const std::string& where) {
      const std::size_t length = row[RowColumn::ids].size();
      if (length > static_cast<std::size_t>(qlora::detail::max_dataset_seq))
        throw Error(concat(where, ": ", length, " tokens, more than a window may have"));
      any_documents = any_documents || row.has(RowColumn::document);
      all_documents = all_documents && row.has(RowColumn::document);
      seq = std::max(seq, length);
      ++rows;
      detail::stop_if_asked(progress, "importing");
    });
  }
  if (any_documents && !all_documents)
    throw Error(request.rows.string() + ": some rows have document numbers and some have none; give all or none");
  if (seq < 2) throw Error(concat(request.rows.string(), ": ", rows, " rows, none of two tokens or more"));
  detail::RowImport import(request, tokenizer.vocab_size(), tokenizer.eos(), static_cast<std::int64_t>(seq));
  progress.begin("import", rows, "rows");
  std::int64_t done = 0;
  for (const std::filesystem::path& one : files) {
    import.begin_file(one);
    for_each_row(one, [&](const TokenRow& row, const std::string& where) {
      detail::stop_if_asked(progress, "importing");
      import.add(row, where);
      progress.update(++done);
    });
  }
  const PackResult result = import.finish(
      request.out, {.vocab_size = tokenizer.vocab_size(), .tokenizer_sha256 = sha256_file(file), .sources = {}},
      progress);
  progress.end(concat(result.windows, " windows of ", result.seq));
  return result;
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
