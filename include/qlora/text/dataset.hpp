// qlora/text/dataset.hpp — packed windows on disk: safetensors shards and a manifest with their hashes.
// Layout     DIR/manifest.json, DIR/tokens-00000.safetensors ...; a shard has input_ids, labels, document (n,S) I32
// Writes     into a directory beside it, which takes its place whole: a pack that fails leaves the data set that was
// Checks     opening verifies every SHA-256, shape, id, label and document number, so that reading needs no checks
// Needs no tokenizer: training runs where sentencepiece is not installed.
// What may not change: version 1 files stay readable; a change of meaning raises the version.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/directory.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/json.hpp"
#include "qlora/io/safetensors.hpp"
#include "qlora/io/safetensors_writer.hpp"
#include "qlora/io/sha256.hpp"
#include "qlora/text/dataset_manifest.hpp"
#include "qlora/text/packing.hpp"

namespace qlora {
inline namespace v0 {

/// How the windows were made: pack_documents or pack_as_article.
enum class PackingForm { isolated, article };

/// Metadata of a data set.
struct DatasetInfo {
  std::int32_t vocab_size = 0;               ///< every id is below it
  std::string tokenizer_sha256;              ///< of tokenizer.model
  PackingForm form = PackingForm::isolated;  ///< which packer made the windows
  LabelChoice labels = LabelChoice::all;     ///< which tokens are labels
  SplitChoice split = SplitChoice::carry;    ///< what happened to documents that did not fit a window
  std::vector<DatasetSource> sources;        ///< to write, by document number; of an open data set see source()
};

namespace detail {

inline constexpr std::string_view dataset_format = "qlora token dataset";
inline constexpr std::int64_t dataset_version = 1;
inline constexpr std::int64_t max_dataset_seq = std::int64_t{1} << 20;
inline constexpr std::size_t shard_tokens = std::size_t{1} << 19;  // 6 MB a shard: what packing holds in memory
inline constexpr std::array<const char*, 3> shard_tensors{"input_ids", "labels", "document"};

[[nodiscard]] inline std::string shard_name(std::size_t index) {
  std::string digits = std::to_string(index);
  return "tokens-" + std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits + ".safetensors";
}

[[nodiscard]] inline const char* name_of(PackingForm form) {
  return form == PackingForm::isolated ? "isolated" : "article";
}
[[nodiscard]] inline const char* name_of(LabelChoice labels) { return labels == LabelChoice::all ? "all" : "answers"; }
[[nodiscard]] inline const char* name_of(SplitChoice split) { return split == SplitChoice::carry ? "carry" : "pad"; }

template <class Choice>
[[nodiscard]] Choice choice_named(const Json& object, const char* key, std::string_view where, Choice a, Choice b) {
  const std::string name = json_string(object, key, where);
  if (name == name_of(a)) return a;
  if (name == name_of(b)) return b;
  throw Error(concat(where, ": '", key, "' is '", excerpt(name), "', not ", name_of(a), " or ", name_of(b)));
}

using CountField = std::pair<const char*, std::int64_t PackingCounts::*>;
inline constexpr std::array<CountField, 7> count_fields{{{"documents", &PackingCounts::documents},
                                                         {"skipped_documents", &PackingCounts::skipped_documents},
                                                         {"cut_documents", &PackingCounts::cut_documents},
                                                         {"tokens", &PackingCounts::tokens},
                                                         {"labelled", &PackingCounts::labelled},
                                                         {"padding", &PackingCounts::padding},
                                                         {"dropped_tokens", &PackingCounts::dropped_tokens}}};

/// Checks the rules that every window must follow. Throws Error that names the place of the first violation.
inline void check_windows(std::span<const std::int32_t> ids, std::span<const std::int32_t> labels,
                          std::span<const std::int32_t> documents, std::int64_t vocab_size, std::size_t sources,
                          const std::string& where) {
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size)
      throw Error(concat(where, ": token ", i, " is the id ", ids[i], ", outside the vocabulary of ", vocab_size));
    if (labels[i] != ignored_label && labels[i] != ids[i])
      throw Error(concat(where, ": the label of token ", i, " is ", labels[i], ", neither -100 nor its id ", ids[i]));
    const bool padding = documents[i] == no_document;
    if (!padding && (documents[i] < 0 || static_cast<std::size_t>(documents[i]) >= sources))
      throw Error(concat(where, ": token ", i, " is of document ", documents[i], ", there are ", sources));
    if (padding && labels[i] != ignored_label) throw Error(concat(where, ": token ", i, " is padding and has a label"));
  }
}

/// Whether write_dataset writes files of this name.
[[nodiscard]] inline bool is_dataset_file(std::string_view name) {
  constexpr std::string_view front = "tokens-";
  constexpr std::string_view back = ".safetensors";
  if (name == "manifest.json") return true;
  if (!name.starts_with(front) || !name.ends_with(back) || name.size() < front.size() + 5 + back.size()) return false;
  name.remove_prefix(front.size());
  name.remove_suffix(back.size());
  return name.find_first_not_of("0123456789") == std::string_view::npos;
}

}  // namespace detail

/// Writes a data set window by window. Only the windows of one shard are in memory at a time, and no sources.
class DatasetWriter {
 public:
  /// `seq` and `vocab_size` are those of all windows. Throws Error (usage) when the directory holds another file than
  /// those of a data set, which finish() replaces.
  DatasetWriter(const std::filesystem::path& directory, int seq, std::int32_t vocab_size)
      : whole_(directory, temporary_beside(directory_itself(directory)), detail::is_dataset_file),
        seq_(static_cast<std::size_t>(seq)),
        vocab_size_(vocab_size),
        sources_(whole_.temporary()) {
    QLORA_EXPECTS(seq >= 2 && seq <= detail::max_dataset_seq, "windows of ", seq, " tokens");
  }

  /// Throws Error for a window that breaks the rules of packing.hpp, and when a shard cannot be written.
  void add(const DatasetWindow& window) {
    const std::array<std::span<const std::int32_t>, 3> columns{window.ids, window.labels, window.documents};
    for (std::size_t c = 0; c < columns.size(); ++c) {
      QLORA_EXPECTS(columns[c].size() == seq_, "a window of ", columns[c].size(), " numbers in a data set of ", seq_);
      columns_[c].insert(columns_[c].end(), columns[c].begin(), columns[c].end());
    }
    if (++held_ == std::max<std::size_t>(1, detail::shard_tokens / seq_)) write_shard();
  }
  /// Adds what document number `sources()` is.
  void add_source(const DatasetSource& source) { sources_.add(source); }
  /// Sources that were added so far.
  [[nodiscard]] std::size_t sources() const { return sources_.size(); }
  /// Windows that were added so far.
  [[nodiscard]] std::size_t size() const { return windows_ + held_; }

  /// Adds the sources of `info`, writes the manifest and takes the place of an earlier data set, which stays if this
  /// throws. Throws Error when there is no window, or one is of a document that has no source.
  void finish(const DatasetInfo& info, const PackingCounts& counts, std::span<const SkippedDocument> skipped) {
    if (size() == 0)
      throw Error(concat("no window to write: ", counts.documents, " documents with text, ", counts.skipped_documents,
                         " without, ", counts.dropped_tokens,
                         " tokens dropped; shorter windows or more text are needed"));
    if (held_ > 0) write_shard();
    for (const DatasetSource& source : info.sources) add_source(source);
    if (last_document_ >= static_cast<std::int64_t>(sources()))
      throw Error(
          concat(whole_.target().string(), ": a token is of document ", last_document_, ", there are ", sources()));
    write_manifest(info, counts, skipped);
    whole_.commit();
  }

 private:
  void write_shard() {
    const std::string name = detail::shard_name(shards_.size());
    detail::check_windows(columns_[0], columns_[1], columns_[2], vocab_size_, std::numeric_limits<std::int32_t>::max(),
                          whole_.target().string());
    last_document_ = std::max<std::int64_t>(last_document_, *std::max_element(columns_[2].begin(), columns_[2].end()));
    const std::filesystem::path path = whole_.temporary() / name;
    const std::vector<std::int64_t> shape{static_cast<std::int64_t>(held_), static_cast<std::int64_t>(seq_)};
    SafetensorsWriter writer(path, {{detail::shard_tensors[0], DType::i32, shape},
                                    {detail::shard_tensors[1], DType::i32, shape},
                                    {detail::shard_tensors[2], DType::i32, shape}});
    for (std::size_t c = 0; c < columns_.size(); ++c)
      writer.write(detail::shard_tensors[c], std::as_bytes(std::span(columns_[c])));
    writer.finish();
    shards_.push_back({{"file", name}, {"windows", held_}, {"sha256", sha256_file(path)}});
    windows_ += held_;
    held_ = 0;
    for (std::vector<std::int32_t>& column : columns_) column.clear();
  }

  /// JSON without white space and with the hash of itself: what json_text makes of the parsed manifest.
  void write_manifest(const DatasetInfo& info, const PackingCounts& counts, std::span<const SkippedDocument> skipped) {
    Json rest{{"format", detail::dataset_format},
              {"version", detail::dataset_version},
              {"seq", seq_},
              {"windows", windows_},
              {"vocab_size", info.vocab_size},
              {"tokenizer_sha256", info.tokenizer_sha256},
              {"packing",
               {{"form", detail::name_of(info.form)},
                {"labels", detail::name_of(info.labels)},
                {"split", detail::name_of(info.split)}}},
              {"sources", Json::array()},
              {"shards", shards_}};
    for (const auto& [name, member] : detail::count_fields) rest["counts"][name] = counts.*member;
    const std::string text = json_text(rest, -1);
    constexpr std::string_view list = "\"sources\":[";
    const std::size_t place = text.find(list) + list.size();
    const std::size_t hash_place = text.find("\"shards\":");
    const auto behind_hash = [&](const auto& use) {
      use(std::string_view(text).substr(hash_place, place - hash_place));
      auto next = skipped.begin();
      sources_.for_each([&](std::size_t i, const std::string& source) {
        if (i > 0) use(",");
        if (next == skipped.end() || static_cast<std::size_t>(next->document) != i) return use(source);
        Json marked = Json::parse(source);
        marked["skipped"] = next++->reason;
        use(marked.dump());
      });
      use(std::string_view(text).substr(place));
    };
    Sha256 hash;
    hash.update(std::string_view(text).substr(0, hash_place));
    behind_hash([&](std::string_view part) { hash.update(part); });
    AtomicFile file(whole_.temporary() / "manifest.json");
    std::string held = concat(text.substr(0, hash_place), "\"sha256\":\"", hash.hex(), "\",");
    std::uint64_t written = 0;
    const auto flush = [&] {
      file.write_at(written, std::as_bytes(std::span(held)));
      written += held.size();
      held.clear();
    };
    behind_hash([&](std::string_view part) {
      held += part;
      if (held.size() >= std::size_t{1} << 20) flush();
    });
    flush();
    file.commit();
  }

  AtomicDirectory whole_;
  std::size_t seq_;
  std::int32_t vocab_size_;
  detail::SourceSpool sources_;
  std::array<std::vector<std::int32_t>, 3> columns_;  // of the windows that are in no shard yet
  std::size_t held_ = 0;                              // number of these
  std::size_t windows_ = 0;                           // in shards
  std::int64_t last_document_ = no_document;          // highest number in shards
  Json shards_ = Json::array();
};

/// Writes windows that are in memory and their manifest; see DatasetWriter, which throws Error.
inline void write_dataset(const std::filesystem::path& directory, const PackedWindows& windows,
                          const DatasetInfo& info) {
  QLORA_EXPECTS(windows.seq >= 2 && windows.seq <= detail::max_dataset_seq, "windows of ", windows.seq, " tokens");
  const auto seq = static_cast<std::size_t>(windows.seq);
  QLORA_EXPECTS(windows.ids.size() % seq == 0 && windows.labels.size() == windows.ids.size() &&
                    windows.documents.size() == windows.ids.size(),
                windows.ids.size(), " ids, ", windows.labels.size(), " labels, ", windows.documents.size(),
                " document numbers for windows of ", seq);
  DatasetWriter writer(directory, windows.seq, info.vocab_size);
  for (std::int64_t i = 0; i < windows.windows(); ++i) writer.add(windows.window(i));
  writer.finish(info, windows.counts, windows.skipped);
}

/// A data set in memory, verified in full when it is opened. Used by one thread at a time.
class TokenDataset {
 public:
  /// Keeps the first `kept` windows in memory; all are verified. Throws Error that names file and place if anything
  /// differs from what write_dataset writes.
  [[nodiscard]] static TokenDataset open(const std::filesystem::path& directory,
                                         std::size_t kept = std::numeric_limits<std::size_t>::max()) {
    TokenDataset result;
    result.kept_ = kept;
    const std::filesystem::path path = directory / "manifest.json";
    if (!std::filesystem::exists(path)) {
      throw Error(concat(directory.string(), " is no packed data set: it has no manifest.json"));
    }
    const std::string where = path.string();
    result.manifest_ = std::make_shared<const DatasetManifest>(path);
    const Json& manifest = result.manifest_->rest();
    result.read_manifest(manifest, where);
    const Json shards = json_at(manifest, "shards", where);
    if (!shards.is_array()) throw Error(where + ": 'shards' must be a list");
    const std::int64_t windows = json_int(manifest, "windows", where, 1, std::numeric_limits<std::int32_t>::max());
    result.reserve(directory, shards.size());
    for (std::size_t index = 0; index < shards.size(); ++index)
      result.read_shard(directory, shards[index], index, where);
    if (static_cast<std::int64_t>(result.size()) != windows)
      throw Error(concat(where, ": ", windows, " windows are announced, the shards hold ", result.size()));
    result.check_counts(where);
    return result;
  }

  /// N, the number of windows.
  [[nodiscard]] std::size_t size() const { return windows_; }
  /// S, tokens in a window.
  [[nodiscard]] int seq() const { return seq_; }
  /// What the manifest says of tokenizer and packing; without the sources.
  [[nodiscard]] const DatasetInfo& info() const { return info_; }
  /// Counts of documents and tokens, checked against the shards.
  [[nodiscard]] const PackingCounts& counts() const { return counts_; }
  /// SHA-256 of the manifest without its own hash; it holds those of the shards: equal for equal data sets only.
  [[nodiscard]] const std::string& fingerprint() const { return manifest_->fingerprint(); }
  /// The same without the places that documents are from: equal for equal windows of equal documents, wherever these
  /// lay. It is what a run that goes on compares.
  [[nodiscard]] const std::string& identity() const { return manifest_->identity(); }
  /// Number of documents that were packed, those without text included.
  [[nodiscard]] std::size_t sources() const { return manifest_->size(); }
  /// Where a document came from, read from the manifest. Throws Error when that fails.
  [[nodiscard]] DatasetSource source(std::size_t document) const {
    return detail::source_of(manifest_->source(document), "manifest.json");
  }

  /// Token ids of all windows that are kept, (N,S).
  [[nodiscard]] std::span<const std::int32_t> ids() const { return columns_[0]; }  // (N,S)
  /// Their labels, (N,S), aligned with ids.
  [[nodiscard]] std::span<const std::int32_t> labels() const { return columns_[1]; }  // (N,S)
  /// Their document numbers, (N,S).
  [[nodiscard]] std::span<const std::int32_t> documents() const { return columns_[2]; }  // (N,S)
  /// The window of that number, from 0. Throws Error beyond the last, and for one that was not kept.
  [[nodiscard]] DatasetWindow window(std::size_t index) const {
    QLORA_EXPECTS(index < std::min(windows_, kept_), "window ", index, " of ", size(), ", ", kept_, " kept");
    const auto seq = static_cast<std::size_t>(seq_);
    return {ids().subspan(index * seq, seq), labels().subspan(index * seq, seq), documents().subspan(index * seq, seq)};
  }

 private:
  TokenDataset() = default;

  void read_manifest(const Json& manifest, const std::string& where) {
    constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
    if (json_string(manifest, "format", where) != detail::dataset_format)
      throw Error(where + ": not the manifest of a token data set");
    const std::int64_t version = json_int(manifest, "version", where, 1, most);
    if (version != detail::dataset_version)
      throw Error(concat(where, ": version ", version, " of the format; this program reads version 1"));
    seq_ = static_cast<int>(json_int(manifest, "seq", where, 2, detail::max_dataset_seq));
    info_.vocab_size =
        static_cast<std::int32_t>(json_int(manifest, "vocab_size", where, 1, std::numeric_limits<std::int32_t>::max()));
    info_.tokenizer_sha256 = json_string(manifest, "tokenizer_sha256", where);
    const Json packing = json_at(manifest, "packing", where);
    const Json counts = json_at(manifest, "counts", where);
    const Json sources = json_at(manifest, "sources", where);
    if (!packing.is_object() || !counts.is_object() || !sources.is_array())
      throw Error(where + ": 'packing' and 'counts' must be objects and 'sources' a list");
    info_.form = detail::choice_named(packing, "form", where, PackingForm::isolated, PackingForm::article);
    info_.labels = detail::choice_named(packing, "labels", where, LabelChoice::all, LabelChoice::answers);
    info_.split = detail::choice_named(packing, "split", where, SplitChoice::carry, SplitChoice::pad);
    for (const auto& [name, member] : detail::count_fields) counts_.*member = json_int(counts, name, where, 0, most);
  }

  /// Room for all windows at once: columns that grow would hold up to three times as much. By the sizes of the files:
  /// what the manifest says is not checked yet.
  void reserve(const std::filesystem::path& directory, std::size_t shards) {
    std::uintmax_t bytes = 0;
    for (std::size_t index = 0; index < shards; ++index) {
      std::error_code missing;  // read_shard says so
      const std::uintmax_t size = std::filesystem::file_size(directory / detail::shard_name(index), missing);
      if (!missing) bytes += size;
    }
    const std::uintmax_t tokens = bytes / columns_.size() / sizeof(std::int32_t);
    const std::uintmax_t windows = tokens / static_cast<std::uintmax_t>(seq_);
    for (auto& column : columns_)
      column.reserve(std::min<std::uintmax_t>(windows, kept_) * static_cast<std::uintmax_t>(seq_));
  }

  void read_shard(const std::filesystem::path& directory, const Json& entry, std::size_t index,
                  const std::string& where) {
    const std::string name = detail::shard_name(index);
    if (!entry.is_object() || json_string(entry, "file", where) != name)
      throw Error(concat(where, ": shard ", index, " must be the file ", name));
    const std::int64_t windows = json_int(entry, "windows", where, 1, std::numeric_limits<std::int32_t>::max());
    const std::string expected = json_string(entry, "sha256", where), path = (directory / name).string();
    const std::string found = sha256_file(path);
    if (found != expected) {
      refuse_lfs_pointer_in(path);
      throw Error(concat(path, ": damaged: its SHA-256 is ", found, ", the manifest says ", detail::excerpt(expected),
                         "; pack the documents again"));
    }
    const SafetensorsFile file(path);
    const std::size_t before = columns_[0].size();
    for (std::size_t c = 0; c < columns_.size(); ++c) {
      const TensorRef tensor = file.at(detail::shard_tensors[c]);
      if (tensor.dtype != DType::i32 || tensor.shape != std::vector<std::int64_t>{windows, seq_})
        throw Error(concat(path, ": ", detail::shard_tensors[c], " must be I32 of shape [", windows, ", ", seq_, "]"));
      columns_[c].resize(before + tensor.bytes.size() / sizeof(std::int32_t));
      std::memcpy(columns_[c].data() + before, tensor.bytes.data(), tensor.bytes.size());
    }
    if (file.names().size() != columns_.size()) throw Error(path + ": holds more than ids, labels and documents");
    const std::span<const std::int32_t> own = documents().subspan(before);
    detail::check_windows(ids().subspan(before), labels().subspan(before), own, info_.vocab_size, sources(), path);
    padding_ += std::count(own.begin(), own.end(), no_document);
    windows_ += static_cast<std::size_t>(windows);
    if (windows_ <= kept_) return;
    for (auto& column : columns_) column.resize(std::min(column.size(), kept_ * static_cast<std::size_t>(seq_)));
  }

  void check_counts(const std::string& where) const {
    const std::int64_t tokens = static_cast<std::int64_t>(windows_) * seq_ - padding_;
    if (padding_ != counts_.padding || tokens != counts_.tokens)
      throw Error(concat(where, ": ", counts_.tokens, " tokens and ", counts_.padding,
                         " padding are announced, the shards hold ", tokens, " and ", padding_));
  }

  int seq_ = 1;
  DatasetInfo info_;
  PackingCounts counts_;
  std::shared_ptr<const DatasetManifest> manifest_;
  std::array<std::vector<std::int32_t>, 3> columns_;  // ids, labels, documents, each (N,S)
  std::size_t kept_ = 0;                              // windows that stay in the columns, at most
  std::size_t windows_ = 0;
  std::int64_t padding_ = 0;
};

}  // namespace v0
}  // namespace qlora
