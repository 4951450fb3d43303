// data.cpp — `qlora data show DIR`: the first windows of a data set, token by token: which document each belongs to and
// whether it is learned. On a terminal by colour, elsewhere by marks, so that a pipe shows the same facts.
#include <unistd.h>

#include <array>
#include <filesystem>
#include <memory>
#include <optional>
#include <ostream>
#include <string>

#include "options.hpp"
#include "qlora/error.hpp"
#include "qlora/io/sha256.hpp"
#include "qlora/run/console_progress.hpp"
#include "qlora/run/data_files.hpp"
#include "qlora/run/options.hpp"
#include "qlora/text/dataset.hpp"
#include "qlora/text/document.hpp"
#include "qlora/text/tokenizer.hpp"
#include "qlora/text/utf8.hpp"
#include "verb.hpp"

namespace qlora::program {
namespace {

namespace fs = std::filesystem;

struct ShowOptions {
  fs::path data;
  fs::path model;
  run::Show show;
};

/// A token as a reader can see it: control characters and line breaks made visible.
std::string visible(const Tokenizer* tokenizer, std::int32_t id) {
  if (tokenizer == nullptr) return std::to_string(id) + " ";
  if (tokenizer->is_control(id)) return tokenizer->piece(id);
  std::string out;
  for (const char c : tokenizer->surface(id)) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n') {
      out += "\xE2\x8F\x8E";  // return symbol
    } else if (byte < 0x20 || byte == 0x7F) {
      out += "?";
    } else {
      out += c;
    }
  }
  // A byte piece may be a part of a character, which no terminal can show.
  return find_invalid_utf8(out) != std::string_view::npos ? tokenizer->piece(id) : out;
}

/// One window as text. Without colour, tokens that are not learned stand in brackets, and documents begin with a bar.
class WindowPrinter {
 public:
  WindowPrinter(std::ostream& out, const Tokenizer* tokenizer, bool color)
      : out_(out), tokenizer_(tokenizer), color_(color) {}

  void print(const DatasetWindow& window, const TokenDataset& data) {
    std::int32_t document = no_document;
    bool open = false;
    std::size_t padding = 0;
    const auto close = [&] {
      if (open && !color_) out_ << ']';
      open = false;
    };
    for (std::size_t i = 0; i < window.ids.size(); ++i) {
      if (window.documents[i] == no_document) {
        ++padding;
        continue;
      }
      if (i == 0 || window.documents[i] != document) {
        close();
        document = window.documents[i];
        const DatasetSource source = data.source(static_cast<std::size_t>(document));
        out_ << (i == 0 ? "" : "\n") << "| document " << document << ", " << printable(source.source) << '\n';
      }
      const bool learned = window.labels[i] != ignored_label;
      if (color_) {
        static constexpr std::array<const char*, 4> colors{"\033[36m", "\033[33m", "\033[32m", "\033[35m"};
        out_ << (learned ? "" : "\033[2;7m") << colors[static_cast<std::size_t>(document) % colors.size()]
             << visible(tokenizer_, window.ids[i]) << "\033[0m";
        continue;
      }
      if (learned) close();
      if (!learned && !open) {
        out_ << '[';
        open = true;
      }
      out_ << visible(tokenizer_, window.ids[i]);
    }
    close();
    if (padding > 0) out_ << "\n| padding, " << padding << " tokens";
    out_ << "\n\n";
  }

 private:
  static std::string printable(const std::string& text) {
    std::string out;
    for (const char c : text) out += static_cast<unsigned char>(c) < 0x20 || c == 0x7F ? '?' : c;
    return out;
  }

  std::ostream& out_;
  const Tokenizer* tokenizer_;
  bool color_;
};

Result show(const ShowOptions& options, Context& context) {
  const TokenDataset data = TokenDataset::open(options.data, static_cast<std::size_t>(options.show.windows));
  std::optional<Tokenizer> tokenizer;
  if (!options.model.empty()) {
    const fs::path file = fs::is_directory(options.model) ? qlora::tokenizer_file(options.model) : options.model;
    tokenizer = Tokenizer::load(file);
    if (sha256_file(file) != data.info().tokenizer_sha256) {
      throw Error(file.string() + " is not the tokenizer that " + options.data.string() + " was packed with");
    }
  }
  const bool color = options.show.color == run::ColorUse::always ||
                     (options.show.color == run::ColorUse::automatic && run::color_for(STDOUT_FILENO));
  context.out << data.size() << " windows of " << data.seq() << ", " << data.counts().documents << " documents, "
              << data.counts().tokens << " tokens, " << data.counts().labelled << " learned; "
              << (color ? "inverse: not learned" : "in brackets: not learned") << "\n\n";
  WindowPrinter printer(context.out, tokenizer ? &*tokenizer : nullptr, color);
  ShownData shown{.windows = data.size(),
                  .seq = data.seq(),
                  .tokens = data.counts().tokens,
                  .labelled = data.counts().labelled,
                  .fingerprint = data.fingerprint(),
                  .shown = {}};
  for (std::size_t i = 0; i < std::min(data.size(), static_cast<std::size_t>(options.show.windows)); ++i) {
    const DatasetWindow window = data.window(i);
    context.out << "window " << i << '\n';
    printer.print(window, data);
    shown.shown.push_back({{window.ids.begin(), window.ids.end()},
                           {window.labels.begin(), window.labels.end()},
                           {window.documents.begin(), window.documents.end()}});
  }
  return result_of(shown);
}

Result say(const run::PackResult& result, Context& context) {
  context.out << result.windows << " windows of " << result.seq << ": " << result.documents << " documents, "
              << result.tokens << " tokens, " << result.labelled << " labelled, " << result.padding << " padding, "
              << result.dropped_tokens << " dropped; in " << result.path.string() << '\n';
  return result_of(result);
}

}  // namespace

void add_data(OptionSet app, Invocation& call) {
  OptionSet data = app.subcommand("data", "Look at a packed data set; take it from Python and back");
  data.require_subcommand();
  auto in = std::make_shared<run::ImportRequest>();
  OptionSet take =
      add_verb(data, call, "import", "Make a data set of the rows that Python's datasets saved, or of JSONL");
  take.add("rows", in->rows, "Folder of save_to_disk, or an .arrow or .jsonl file").required().type_name("PATH");
  take.add_model("-m,--model", in->model, "Model directory, or the tokenizer file, of the ids")
      .required()
      .type_name("DIR");
  take.add_output("-o,--out", in->out, Written::directory, "Directory of the data set").required().type_name("DIR");
  take.on_call([&call, in] {
    call.action = [in](Context& context) {
      check_no_model(in->out);
      return say(run::import_rows(*in, context.progress), context);
    };
  });
  auto out = std::make_shared<run::ExportRowsRequest>();
  OptionSet rows = add_verb(data, call, "export", "Write a data set's windows for Python's datasets, or as JSONL");
  rows.add("data", out->data, "Directory of the data set").required().type_name("DIR");
  rows.add_output("-o,--out", out->out, Written::either, "A .jsonl file, or the folder for load_from_disk")
      .required()
      .type_name("PATH");
  rows.on_call([&call, out] {
    call.action = [out](Context& context) { return say(run::export_rows(*out, context.progress), context); };
  });
  OptionSet verb = add_verb(data, call, "show", "Print the first windows, marked by document and by what is learned");
  auto options = std::make_shared<ShowOptions>();
  verb.add("data", options->data, "Directory of the data set").required().type_name("DIR");
  verb.add_model("-m,--model", options->model, "Model directory or tokenizer.model; without it ids are shown")
      .type_name("DIR");
  add_table(verb, options->show);
  verb.on_call([&call, options] { call.action = [options](Context& context) { return show(*options, context); }; });
}

}  // namespace qlora::program
