// qlora/text/packing.hpp — documents as token ids to windows of one length, with labels and document boundaries.
// Shapes     ids, labels, documents (N,S) row-major i32, N windows of S tokens
// labels     aligned with ids: labels[t] is what position t - 1 must predict, ignored_label where there is no target
// documents  index of the document in the input, no_document on padding; attention stays inside equal numbers and
//            positions start at 0 where the number changes or the window begins
// What may not change: every token of every document is in exactly one place, in order, or is counted as dropped.
#pragma once

#include <algorithm>
#include <cstdint>
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
};

/// Counts of documents and tokens; documents + skipped_documents is the number of inputs.
struct PackingCounts {
  std::int64_t documents = 0;          ///< in the windows, or dropped
  std::int64_t skipped_documents = 0;  ///< without any text
  std::int64_t cut_documents = 0;      ///< in more than one window
  std::int64_t tokens = 0;             ///< in the windows, padding not counted
  std::int64_t labelled = 0;           ///< tokens that are labels
  std::int64_t padding = 0;            ///< padding tokens
  std::int64_t dropped_tokens = 0;     ///< in no window (the article's form only)
  friend bool operator==(const PackingCounts&, const PackingCounts&) = default;
};

/// A document of which no token is in a window.
struct SkippedDocument {
  std::int64_t document = 0;  ///< index in the input
  std::string reason;         ///< one phrase, for a reader
};

/// Windows behind one another, and what became of the documents.
struct PackedWindows {
  int seq = 0;                           ///< S, tokens in a window; 0: no windows
  std::vector<std::int32_t> ids;         ///< (N,S)
  std::vector<std::int32_t> labels;      ///< (N,S), ignored_label where nothing is predicted
  std::vector<std::int32_t> documents;   ///< (N,S), no_document on padding
  PackingCounts counts;                  ///< of all inputs
  std::vector<SkippedDocument> skipped;  ///< in the order of the inputs

  /// N, the number of windows.
  [[nodiscard]] std::int64_t windows() const { return seq == 0 ? 0 : static_cast<std::int64_t>(ids.size()) / seq; }
};

/// BOS (where there is one: it is not negative), the text's ids, EOS; nothing at all for a text without ids.
[[nodiscard]] inline TokenDocument framed_document(std::span<const std::int32_t> text, std::int32_t bos,
                                                   std::int32_t eos) {
  TokenDocument result;
  if (text.empty()) return result;
  result.ids.reserve(text.size() + 2);
  if (bos >= 0) result.ids.push_back(bos);
  result.ids.insert(result.ids.end(), text.begin(), text.end());
  result.ids.push_back(eos);
  return result;
}

namespace detail {

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
    out.skipped.push_back({static_cast<std::int64_t>(index), "no text after tokenization"});
    return false;
  }
  ++out.counts.documents;
  return true;
}

inline void fill_window(PackedWindows& out, std::int32_t pad_id) {
  const auto seq = static_cast<std::size_t>(out.seq);
  const std::size_t missing = (seq - out.ids.size() % seq) % seq;
  out.ids.insert(out.ids.end(), missing, pad_id);
  out.labels.insert(out.labels.end(), missing, ignored_label);
  out.documents.insert(out.documents.end(), missing, no_document);
  out.counts.padding += static_cast<std::int64_t>(missing);
}

}  // namespace detail

/// Packs documents densely, each isolated from the others. A document's first token in a window is never a label,
/// since it has no context. Throws Error when flags and ids differ in number.
[[nodiscard]] inline PackedWindows pack_documents(std::span<const TokenDocument> documents,
                                                  const PackingOptions& options) {
  detail::check_documents(documents, options.seq);
  const auto seq = static_cast<std::size_t>(options.seq);
  PackedWindows out;
  out.seq = options.seq;
  for (std::size_t index = 0; index < documents.size(); ++index) {
    const TokenDocument& document = documents[index];
    if (!detail::admit(out, document, index)) continue;
    const std::size_t length = document.ids.size();
    const std::size_t free = seq - out.ids.size() % seq;
    if (options.split == SplitChoice::pad && length > free && length <= seq) detail::fill_window(out, options.pad_id);
    const bool answers_only = options.labels == LabelChoice::answers && !document.answer.empty();
    const std::size_t first_window = out.ids.size() / seq;
    for (std::size_t i = 0; i < length; ++i) {
      const bool first_here = i == 0 || out.ids.size() % seq == 0;
      const bool labelled = !first_here && (!answers_only || document.answer[i] != 0);
      out.ids.push_back(document.ids[i]);
      out.labels.push_back(labelled ? document.ids[i] : ignored_label);
      out.documents.push_back(static_cast<std::int32_t>(index));
      out.counts.labelled += labelled ? 1 : 0;
    }
    out.counts.tokens += static_cast<std::int64_t>(length);
    out.counts.cut_documents += (out.ids.size() - 1) / seq != first_window ? 1 : 0;
  }
  detail::fill_window(out, options.pad_id);
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

/// Takes the windows without any label out: nothing can be learned from them, and a step of such windows alone has no
/// loss. Their tokens count as dropped, their padding no more. Returns how many went.
[[nodiscard]] inline std::int64_t drop_unlabelled(PackedWindows& out) {
  const auto seq = static_cast<std::ptrdiff_t>(out.seq);
  std::ptrdiff_t kept = 0;
  const std::ptrdiff_t windows = out.windows();
  for (std::ptrdiff_t window = 0; window < windows; ++window) {
    const auto of = [&](std::vector<std::int32_t>& column, std::ptrdiff_t at) { return column.begin() + at * seq; };
    const auto labels = of(out.labels, window);
    // A window's first label is never asked for.
    if (std::all_of(labels + 1, labels + seq, [](std::int32_t label) { return label == ignored_label; })) {
      const auto padding = std::count(of(out.documents, window), of(out.documents, window) + seq, no_document);
      out.counts.padding -= padding;
      out.counts.tokens -= seq - padding;
      out.counts.dropped_tokens += seq - padding;
      continue;
    }
    if (kept != window) {
      for (std::vector<std::int32_t>* column : {&out.ids, &out.labels, &out.documents}) {
        std::copy_n(of(*column, window), seq, of(*column, kept));
      }
    }
    ++kept;
  }
  for (std::vector<std::int32_t>* column : {&out.ids, &out.labels, &out.documents}) {
    column->resize(static_cast<std::size_t>(kept * seq));
  }
  return windows - kept;
}

}  // namespace v0
}  // namespace qlora
