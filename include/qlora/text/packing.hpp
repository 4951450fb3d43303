// qlora/text/packing.hpp — documents as token ids to windows of one length, with labels and document boundaries.
// Shapes     ids, labels, documents (N,S) row-major i32, N windows of S tokens
// labels     aligned with ids: labels[t] is what position t - 1 must predict, ignored_label where there is no target
// documents  index of the document in the input, no_document on padding; attention stays inside equal numbers and
//            positions start at 0 where the number changes or the window begins
// What may not change: every token of every document is in exactly one place, in order, or is counted as dropped.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/label.hpp"

namespace qlora {
inline namespace v0 {

/// The document number of padding.
inline constexpr std::int32_t no_document = -1;

/// A document as token ids, begin and end tokens included. A document without ids is skipped and counted.
struct TokenDocument {
  std::vector<std::int32_t> ids;     ///< empty: the document is skipped
  std::vector<std::uint8_t> answer;  ///< per id, 1 in the assistant's turns; empty if the document is no conversation
};

/// Which tokens are labels.
enum class LabelChoice {
  all,      ///< every token that has one before it
  answers,  ///< in conversations only the assistant's turns; in other documents every token
};

/// What happens to a document that the current window cannot hold.
enum class SplitChoice {
  carry,  ///< it is cut and continues in the next window; only the last window is padded
  pad,    ///< a document that fits into one window starts a new one; only longer documents are cut
};

/// How documents become windows.
struct PackingOptions {
  int seq = 0;                             ///< tokens per window, at least 2
  LabelChoice labels = LabelChoice::all;   ///< which tokens are predicted
  SplitChoice split = SplitChoice::carry;  ///< what happens to a document that does not fit
  std::int32_t pad_id = 2;                 ///< fills windows; LLaMA-2 has no padding id and uses the end token
  bool drop_unlabelled = false;            ///< leave windows without a label out: nothing can be learned from them, and
                                           ///< a step of such windows alone has no loss. Their tokens count as dropped
};

/// Counts of documents and tokens; documents + skipped_documents is the number of inputs.
struct PackingCounts {
  std::int64_t documents = 0;          ///< in the windows, or dropped
  std::int64_t skipped_documents = 0;  ///< without any text
  std::int64_t cut_documents = 0;      ///< in more than one window
  std::int64_t tokens = 0;             ///< in the windows, padding not counted
  std::int64_t labelled = 0;           ///< tokens that are labels
  std::int64_t padding = 0;            ///< padding tokens
  std::int64_t dropped_tokens = 0;     ///< in no window
  friend bool operator==(const PackingCounts&, const PackingCounts&) = default;
};

/// A document of which no token is in a window.
struct SkippedDocument {
  std::int64_t document = 0;  ///< index in the input
  std::string reason;         ///< one phrase, for a reader
};

/// One window; the spans live as long as what it is taken from.
struct DatasetWindow {
  std::span<const std::int32_t> ids;        ///< (S)
  std::span<const std::int32_t> labels;     ///< (S), aligned with ids; ignored_label where nothing is predicted
  std::span<const std::int32_t> documents;  ///< (S), number of the document; no_document on padding
};

/// Windows one after another, and what was done with the documents.
struct PackedWindows {
  int seq = 0;                           ///< S, tokens in a window; 0: no windows
  std::vector<std::int32_t> ids;         ///< (N,S)
  std::vector<std::int32_t> labels;      ///< (N,S), ignored_label where nothing is predicted
  std::vector<std::int32_t> documents;   ///< (N,S), no_document on padding
  PackingCounts counts;                  ///< of all inputs
  std::vector<SkippedDocument> skipped;  ///< in the order of the inputs

  /// N, the number of windows.
  [[nodiscard]] std::int64_t windows() const { return seq == 0 ? 0 : static_cast<std::int64_t>(ids.size()) / seq; }
  /// The window of that number, from 0; it must be below windows().
  [[nodiscard]] DatasetWindow window(std::int64_t index) const {
    const auto length = static_cast<std::size_t>(seq);
    const std::size_t at = static_cast<std::size_t>(index) * length;
    const auto of = [&](const std::vector<std::int32_t>& column) { return std::span(column).subspan(at, length); };
    return {of(ids), of(labels), of(documents)};
  }
};

/// BOS (where there is one: it is not negative), the text's ids, EOS; nothing at all for a text without ids.
[[nodiscard]] inline TokenDocument framed_document(std::vector<std::int32_t> text, std::int32_t bos, std::int32_t eos) {
  TokenDocument result{.ids = std::move(text), .answer = {}};
  if (result.ids.empty()) return result;
  if (bos >= 0) result.ids.insert(result.ids.begin(), bos);
  result.ids.push_back(eos);
  return result;
}

namespace detail {

inline constexpr const char* no_text = "no text after tokenization";

inline void check_documents(std::span<const TokenDocument> documents, int seq) {
  QLORA_EXPECTS(seq >= 2, "windows of ", seq, " tokens; a label needs a token before it");
  QLORA_EXPECTS(documents.size() <= static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()),
                documents.size(), " documents in one data set");
  for (std::size_t i = 0; i < documents.size(); ++i)
    QLORA_EXPECTS(documents[i].answer.empty() || documents[i].answer.size() == documents[i].ids.size(), "document ", i,
                  " has ", documents[i].ids.size(), " ids and ", documents[i].answer.size(), " answer flags");
}

/// Skips and counts documents without tokens; true when the document is to be packed.
inline bool admit(PackedWindows& out, const TokenDocument& document, std::size_t index) {
  if (document.ids.empty()) {
    ++out.counts.skipped_documents;
    out.skipped.push_back({static_cast<std::int64_t>(index), no_text});
    return false;
  }
  ++out.counts.documents;
  return true;
}

}  // namespace detail

/// Packs documents densely, each isolated from the others, and hands every window over as soon as it is full, so that
/// a data set need not fit in memory. A document's first token in a window is never a label, since it has no context.
class WindowPacker {
 public:
  /// Gets each window; its spans are good until it returns.
  using Use = std::function<void(const DatasetWindow&)>;

  /// Throws Error for windows of less than two tokens.
  WindowPacker(const PackingOptions& options, Use use) : options_(options), use_(std::move(use)) {
    QLORA_EXPECTS(options.seq >= 2, "windows of ", options.seq, " tokens; a label needs a token before it");
    for (std::vector<std::int32_t>* column : {&ids_, &labels_, &documents_}) column->reserve(seq());
  }

  /// Packs the next document. Throws Error when flags and ids differ in number, and what the user of windows throws.
  void add(const TokenDocument& document) {
    QLORA_EXPECTS(document.answer.empty() || document.answer.size() == document.ids.size(), "document ", number_,
                  " has ", document.ids.size(), " ids and ", document.answer.size(), " answer flags");
    QLORA_EXPECTS(number_ < std::numeric_limits<std::int32_t>::max(), number_, " documents in one data set");
    const std::int32_t number = number_++;
    if (document.ids.empty()) {
      ++counts_.skipped_documents;
      skipped_.push_back({number, detail::no_text});
      return;
    }
    ++counts_.documents;
    const std::size_t length = document.ids.size();
    if (options_.split == SplitChoice::pad && length > seq() - ids_.size() && length <= seq()) fill();
    const bool answers_only = options_.labels == LabelChoice::answers && !document.answer.empty();
    const bool is_cut = length > seq() - ids_.size();
    for (std::size_t i = 0; i < length; ++i) {
      const bool first_here = i == 0 || ids_.empty();
      const bool labelled = !first_here && (!answers_only || document.answer[i] != 0);
      ids_.push_back(document.ids[i]);
      labels_.push_back(labelled ? document.ids[i] : ignored_label);
      documents_.push_back(number);
      counts_.labelled += labelled ? 1 : 0;
      if (ids_.size() == seq()) hand_over();
    }
    counts_.tokens += static_cast<std::int64_t>(length);
    counts_.cut_documents += is_cut ? 1 : 0;
  }
  /// Pads the last window and hands it over. More documents begin a new one.
  void finish() { fill(); }

  /// Of all documents so far; the tokens of a window that is not full are counted already.
  [[nodiscard]] const PackingCounts& counts() const { return counts_; }
  /// Windows without a label that were left out so far.
  [[nodiscard]] std::int64_t dropped_windows() const { return dropped_windows_; }
  /// Documents without ids so far.
  [[nodiscard]] const std::vector<SkippedDocument>& skipped() const { return skipped_; }

 private:
  [[nodiscard]] std::size_t seq() const { return static_cast<std::size_t>(options_.seq); }

  void fill() {
    if (ids_.empty()) return;
    const std::size_t missing = seq() - ids_.size();
    ids_.insert(ids_.end(), missing, options_.pad_id);
    labels_.insert(labels_.end(), missing, ignored_label);
    documents_.insert(documents_.end(), missing, no_document);
    counts_.padding += static_cast<std::int64_t>(missing);
    hand_over();
  }
  void hand_over() {
    // A window's first label is never asked for.
    const bool labelled =
        std::any_of(labels_.begin() + 1, labels_.end(), [](std::int32_t label) { return label != ignored_label; });
    if (labelled || !options_.drop_unlabelled) {
      use_({ids_, labels_, documents_});
    } else {
      const auto padding = std::count(documents_.begin(), documents_.end(), no_document);
      counts_.padding -= padding;
      counts_.tokens -= options_.seq - padding;
      counts_.dropped_tokens += options_.seq - padding;
      ++dropped_windows_;
    }
    for (std::vector<std::int32_t>* column : {&ids_, &labels_, &documents_}) column->clear();
  }

  PackingOptions options_;
  Use use_;
  std::int32_t number_ = 0;
  std::vector<std::int32_t> ids_;  // of the window that is being filled
  std::vector<std::int32_t> labels_;
  std::vector<std::int32_t> documents_;
  PackingCounts counts_;
  std::int64_t dropped_windows_ = 0;
  std::vector<SkippedDocument> skipped_;
};

/// All windows of these documents, in memory; see WindowPacker.
[[nodiscard]] inline PackedWindows pack_documents(std::span<const TokenDocument> documents,
                                                  const PackingOptions& options) {
  PackedWindows out;
  out.seq = options.seq;
  WindowPacker packer(options, [&out](const DatasetWindow& window) {
    out.ids.insert(out.ids.end(), window.ids.begin(), window.ids.end());
    out.labels.insert(out.labels.end(), window.labels.begin(), window.labels.end());
    out.documents.insert(out.documents.end(), window.documents.begin(), window.documents.end());
  });
  for (const TokenDocument& document : documents) packer.add(document);
  packer.finish();
  out.counts = packer.counts();
  out.skipped = packer.skipped();
  return out;
}

/// The packing of the AWS article (docs/article.md): all documents (BOS and text, no EOS, framed by the caller) as
/// one stream in which attention crosses documents, labels equal to the ids, the incomplete last window dropped.
/// The loss never asks for a window's first label, so `labelled` does not count it.
[[nodiscard]] inline PackedWindows pack_as_article(std::span<const TokenDocument> documents, int seq) {
  detail::check_documents(documents, seq);
  PackedWindows out;
  out.seq = seq;
  std::vector<std::size_t> ends;  // of each document in the stream
  for (std::size_t index = 0; index < documents.size(); ++index) {
    if (!detail::admit(out, documents[index], index)) continue;
    out.ids.insert(out.ids.end(), documents[index].ids.begin(), documents[index].ids.end());
    ends.push_back(out.ids.size());
  }
  const auto length = static_cast<std::size_t>(seq);
  const std::size_t kept = out.ids.size() / length * length;
  out.counts.dropped_tokens = static_cast<std::int64_t>(out.ids.size() - kept);
  std::size_t begin = 0;
  for (const std::size_t end : ends) {
    const std::size_t last = std::min(end, kept);
    if (begin < last && begin / length != (last - 1) / length) ++out.counts.cut_documents;
    begin = end;
  }
  out.ids.resize(kept);
  out.labels = out.ids;
  out.documents.assign(kept, 0);
  out.counts.tokens = static_cast<std::int64_t>(kept);
  out.counts.labelled = static_cast<std::int64_t>(kept - kept / length);
  return out;
}

}  // namespace v0
}  // namespace qlora
