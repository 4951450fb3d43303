// probe.cpp — what the library makes of files that Python wrote, as files that Python reads; see interop.py.
//   interop_probe ids TOKENIZER TEXTS.json OUT.json         ids of each text, and what they decode to
//   interop_probe chats DIR CHATS.json OUT.json             ids up to the last answer; ids and labels of the whole
//   interop_probe matches EXPRESSIONS.json TEXT.json OUT.json   where the matches of each begin and end
//   interop_probe logits DIR IDS.json OUT.safetensors [ADAPTER]   logits (T, V) in float32, of the base or adapted
//   interop_probe train DIR IDS.json ADAPTER RANK ALPHA     three steps from random adapters, saved for peft
//   interop_probe logits4 ..., train4 ...                   the same of a model in NF4
//   interop_probe quantize DIR OUT DOUBLE                   the model in NF4; DOUBLE 1: with double quantization
//   interop_probe merge DIR ADAPTER OUT                     the model with the adapter inside its weights, in float32,
//                                                           with its tokenizer
//   interop_probe export DIR OUT.gguf f16|q8_0|q4_0 [ADAPTER]   a GGUF file of the model, without a tokenizer, or of an
//                                                           adapter
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "qlora/configs/any.hpp"
#include "qlora/cpu.hpp"
#include "qlora/io/adapter.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/gguf_model.hpp"
#include "qlora/io/json.hpp"
#include "qlora/io/merge.hpp"
#include "qlora/io/open_model.hpp"
#include "qlora/io/quantize.hpp"
#include "qlora/io/safetensors_writer.hpp"
#include "qlora/io/tokenizer_file.hpp"
#include "qlora/text/chat_directory.hpp"
#include "qlora/text/prompt.hpp"
#include "qlora/text/regex.hpp"
#include "qlora/text/tokenizer.hpp"
#include "qlora/text/tokenizer_directory.hpp"
#include "qlora/train/trainer.hpp"

namespace {

namespace fs = std::filesystem;
using namespace qlora;
using B = Cpu<float>;
using Ids = std::vector<std::int32_t>;

Json read(const fs::path& path) { return parse_json(read_text(path, std::size_t{1} << 28), path.string()); }

void write_ids(const Tokenizer& tokenizer, const Json& texts, const fs::path& out) {
  Json all = Json::array();
  for (const Json& text : texts) {
    const Ids ids = tokenizer.encode(text.get<std::string>());
    all.push_back({{"ids", ids}, {"decoded", tokenizer.decode(ids)}});
  }
  write_file_atomically(out, all.dump());
}

void write_chats(const fs::path& dir, const Json& chats, const fs::path& out) {
  const Tokenizer tokenizer = Tokenizer::load(tokenizer_file(dir));
  const ChatTemplate form = chat_template_of(dir, tokenizer);
  Json all{{"form", form.name()}, {"chats", Json::array()}};
  for (const Json& chat : chats) {
    std::vector<Message> messages;
    for (const Json& message : chat) {
      messages.push_back({message.at("role").get<std::string>(), message.at("content").get<std::string>()});
    }
    const TokenDocument whole = chat_document(tokenizer, form, messages);
    messages.pop_back();
    all["chats"].push_back(
        {{"open", chat_tokens(tokenizer, form, messages)}, {"ids", whole.ids}, {"answer", whole.answer}});
  }
  write_file_atomically(out, all.dump());
}

void write_matches(const Json& expressions, const std::string& text, const fs::path& out) {
  Json all = Json::array();
  for (const Json& expression : expressions) {
    std::vector<std::size_t> places;
    const Regex regex(expression.get<std::string>());
    regex.for_each_match(text, [&](std::size_t begin, std::size_t end) { places.insert(places.end(), {begin, end}); });
    all.push_back(places);
  }
  write_file_atomically(out, all.dump());
}

void merge(const fs::path& dir, const fs::path& adapter, const fs::path& out) {
  MergeLanes lanes = host_merge_lanes(2);
  MergeOptions options;
  options.dtype = DType::f32;
  options.tokenizer_from = dir;
  options.files = tokenizer_files_beside(dir);
  merge_model(hf::ModelDir::open(dir), PeftAdapter::open(adapter), out, lanes, options);
}

void write_gguf(const fs::path& dir, const fs::path& out, const std::string& type, const fs::path& adapter) {
  const hf::ModelDir model = hf::ModelDir::open(dir);
  if (!adapter.empty()) {
    gguf::write_adapter(model, PeftAdapter::open(adapter), out);
    return;
  }
  const gguf::Type as = type == "f16" ? gguf::Type::f16 : type == "q8_0" ? gguf::Type::q8_0 : gguf::Type::q4_0;
  gguf::write_model(model, as, {}, out);
}

/// A trainer of the directory's model for these ids, on its weights as C holds them.
template <Config C>
class Model {
 public:
  Model(const fs::path& dir, Ids ids, int rank, float alpha)
      : directory_(hf::ModelDir::open(dir)),
        ids_(std::move(ids)),
        trainer_(directory_.source(),
                 {.rank = rank,
                  .targets = Proj::all,
                  .alpha = alpha,
                  .dropout = 0.0F,
                  .lr = 0.02F,
                  .total_steps = 3,
                  .batch = 1,
                  .seq = static_cast<int>(ids_.size()),
                  .model = model_options(directory_)},
                 B(2)) {}

  void write_logits(const fs::path& adapter, const fs::path& out) {
    trainer_.context().use_base();
    if (!adapter.empty()) {
      read_adapter(trainer_.model(), adapter);
      trainer_.context().use_own();
    }
    auto& pass = trainer_.core().network();
    BatchBuilder builder(ids_.size());
    pass.forward(builder.build(windows()));
    std::vector<float> values(ids_.size() * static_cast<std::size_t>(directory_.shape.vocab));
    pass.logits(values.data());
    const std::vector<std::int64_t> shape{static_cast<std::int64_t>(ids_.size()), directory_.shape.vocab};
    write_safetensors(out, {{"logits", {DType::f32, shape, std::as_bytes(std::span<const float>(values))}}});
  }

  void train(const fs::path& adapter) {
    for (int step = 0; step < 3; ++step) std::printf("loss %.6f\n", trainer_.step(windows()).loss);
    write_adapter(adapter, trainer_.model());
  }

 private:
  [[nodiscard]] Windows windows() const { return {static_cast<int>(ids_.size()), ids_, ids_, {}}; }

  hf::ModelDir directory_;
  Ids ids_;
  Trainer<C, B> trainer_;
};

template <Config C>
void write_logits(const std::vector<std::string>& arguments) {
  const fs::path adapter = arguments.size() > 4 ? arguments[4] : "";
  const int rank = adapter.empty() ? 1 : highest_rank(PeftAdapter::open(adapter));
  Model<C>(arguments[1], read(arguments[2]).get<Ids>(), rank, 1.0F).write_logits(adapter, arguments[3]);
}
template <Config C>
void train(const std::vector<std::string>& arguments) {
  Model<C>(arguments[1], read(arguments[2]).get<Ids>(), std::stoi(arguments[4]), std::stof(arguments[5]))
      .train(arguments[3]);
}

int run(const std::vector<std::string>& arguments) {
  constexpr Config plain = any_model.with(unquantized);
  const auto is = [&](const char* verb, std::size_t least) { return arguments.size() > least && arguments[0] == verb; };
  if (is("ids", 3)) {
    write_ids(Tokenizer::load(arguments[1]), read(arguments[2]), arguments[3]);
  } else if (is("chats", 3)) {
    write_chats(arguments[1], read(arguments[2]), arguments[3]);
  } else if (is("matches", 3)) {
    write_matches(read(arguments[1]), read(arguments[2]).get<std::string>(), arguments[3]);
  } else if (is("merge", 3)) {
    merge(arguments[1], arguments[2], arguments[3]);
  } else if (is("quantize", 3)) {
    (void)quantize_model(hf::ModelDir::open(arguments[1]), arguments[2],
                         {.storage = {.double_quant = arguments[3] == "1"}, .threads = 2});
  } else if (is("export", 3)) {
    write_gguf(arguments[1], arguments[2], arguments[3], arguments.size() > 4 ? arguments[4] : "");
  } else if (is("logits", 3)) {
    write_logits<plain>(arguments);
  } else if (is("logits4", 3)) {
    write_logits<any_model>(arguments);
  } else if (is("train", 5)) {
    train<plain>(arguments);
  } else if (is("train4", 5)) {
    train<any_model>(arguments);
  } else {
    std::fputs("usage: see the head of tests/interop/probe.cpp\n", stderr);
    return 2;
  }
  return 0;
}

}  // namespace

int main(int count, char** values) {
  try {
    return run(std::vector<std::string>(values + 1, values + count));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
