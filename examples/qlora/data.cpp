// data.cpp — `qlora data show`: the first windows of a data set as qlora/text/display.hpp writes them, in colour on a
// terminal, elsewhere with marks; `data import` and `data export`: rows of Python's datasets, or JSONL.
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "options.hpp"
#include "qlora/error.hpp"
#include "qlora/io/sha256.hpp"
#include "qlora/run/console_progress.hpp"
#include "qlora/run/data_files.hpp"
#include "qlora/run/options.hpp"
#include "qlora/text/dataset.hpp"
#include "qlora/text/display.hpp"
#include "qlora/text/packing.hpp"
#include "qlora/text/tokenizer.hpp"
#include "verb.hpp"

namespace qlora::program {
namespace {

namespace fs = std::filesystem;

struct ShowOptions {
  fs::path data;
  fs::path model;
  run::Show show;
};

/// Shows ids where there is no tokenizer.
struct TokenNumbers {
  [[nodiscard]] static bool is_control(std::int32_t) { return true; }
  [[nodiscard]] static std::string piece(std::int32_t id) { return std::to_string(id) + " "; }
  [[nodiscard]] static std::string surface(std::int32_t id) { return piece(id); }
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
  ShownData shown{.windows = data.size(),
                  .seq = data.seq(),
                  .tokens = data.counts().tokens,
                  .labelled = data.counts().labelled,
                  .fingerprint = data.fingerprint(),
                  .shown = {}};
  DisplayOptions display;
  display.windows = static_cast<int>(std::min(data.size(), static_cast<std::size_t>(options.show.windows)));
  display.colour = options.show.color == run::ColorUse::always ||
                   (options.show.color == run::ColorUse::automatic && run::color_for(STDOUT_FILENO));
  PackedWindows first;
  std::vector<std::string> names;
  for (std::size_t i = 0; i < static_cast<std::size_t>(display.windows); ++i) {
    const DatasetWindow window = data.window(i);
    first.ids.insert(first.ids.end(), window.ids.begin(), window.ids.end());
    first.labels.insert(first.labels.end(), window.labels.begin(), window.labels.end());
    first.documents.insert(first.documents.end(), window.documents.begin(), window.documents.end());
    for (const std::int32_t document : window.documents) {
      if (document == no_document) continue;
      const auto index = static_cast<std::size_t>(document);
      names.resize(std::max(names.size(), index + 1));
      if (names[index].empty()) names[index] = data.source(index).source;
    }
    shown.shown.push_back({{window.ids.begin(), window.ids.end()},
                           {window.labels.begin(), window.labels.end()},
                           {window.documents.begin(), window.documents.end()}});
  }
  const auto text = [&](const auto& tokens) {
    return render_windows(tokens, data.seq(), first.ids, first.labels, first.documents, names, display);
  };
  context.out << data.size() << " windows of " << data.seq() << ", " << data.counts().documents << " documents, "
              << data.counts().tokens << " tokens, " << data.counts().labelled << " learned; "
              << (tokenizer ? text(*tokenizer) : text(TokenNumbers{}));
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
