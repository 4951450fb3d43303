// examples/world/train_model.cpp — trains the small model with this library on the CPU, from random weights or another
// model's.
//   train_model CORPUS_JSONL TOKENIZER_MODEL CONFIG_JSON OUT_DIR [--from MODEL_DIR] [--kind all|pages|chats] [--lr X]
//               [--seed N] [--steps N] [--threads N] [--checkpoints DIR]
// Trainable::all: every weight learns. The run saves a checkpoint every 250 steps and resumes from the newest one, so
// it can be stopped at any time; for one binary the result does not depend on how often it was, nor on the threads.
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "qlora/configs/tiny.hpp"
#include "qlora/io/checkpoint.hpp"
#include "qlora/io/hf.hpp"
#include "qlora/io/trainer.hpp"
#include "qlora/llama2.hpp"
#include "qlora/text/document.hpp"
#include "qlora/text/packing.hpp"
#include "qlora/text/prompt.hpp"
#include "qlora/text/step_windows.hpp"
#include "qlora/text/tokenizer.hpp"

namespace {

using namespace qlora;
namespace fs = std::filesystem;

constexpr Config model = tiny.with(Trainable::all);
using ModelTrainer = Trainer<model, Cpu<>>;

// The longest document has 352 tokens: none is cut. Six windows make about 2,000 tokens a step.
constexpr int seq = 384;
constexpr int batch = 6;
constexpr int save_every = 250;
constexpr int kept_checkpoints = 2;

volatile std::sig_atomic_t stopping = 0;

constexpr const char* usage =
    "usage: train_model CORPUS_JSONL TOKENIZER_MODEL CONFIG_JSON OUT_DIR [--from MODEL_DIR] [--kind all|pages|chats] "
    "[--lr X] [--seed N] [--steps N] [--threads N] [--checkpoints DIR]";

struct Arguments {
  fs::path corpus, tokenizer, config, out, checkpoints;
  fs::path from;             ///< empty: random weights
  std::string kind = "all";  ///< of the corpus's documents: pages and chats, or one of them
  float lr = 3e-3F;
  std::uint64_t weight_seed = 1, order_seed = 7;  ///< of the shipped model; --seed sets both
  int steps = 4722;                               ///< what the shipped model had: nine tenths of its corpus, once
  int threads = 0;
};

long whole_number(const std::string& option, const std::string& text, long least) {
  char* end = nullptr;
  const long number = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || number < least || number > 1'000'000) {
    throw Error(option + " takes a whole number from " + std::to_string(least) + ", not \"" + text + '"',
                ErrorKind::usage);
  }
  return number;
}

void set_option(Arguments& arguments, const std::string& option, const std::string& value) {
  if (option == "--checkpoints") {
    arguments.checkpoints = value;
  } else if (option == "--from") {
    arguments.from = value;
  } else if (option == "--kind") {
    if (value != "all" && value != "pages" && value != "chats") {
      throw Error("--kind is all, pages or chats, not \"" + value + '"', ErrorKind::usage);
    }
    arguments.kind = value;
  } else if (option == "--lr") {
    char* end = nullptr;
    arguments.lr = std::strtof(value.c_str(), &end);
    if (*end != '\0' || !(arguments.lr > 0.0F && arguments.lr < 1.0F)) {
      throw Error("--lr takes a number between 0 and 1, not \"" + value + '"', ErrorKind::usage);
    }
  } else if (option == "--seed") {
    arguments.weight_seed = arguments.order_seed = static_cast<std::uint64_t>(whole_number(option, value, 0));
  } else if (option == "--steps" || option == "--threads") {
    (option == "--steps" ? arguments.steps : arguments.threads) = static_cast<int>(whole_number(option, value, 1));
  } else {
    throw Error("unknown option " + option, ErrorKind::usage);
  }
}

Arguments parse(int argc, char** argv) {
  std::vector<std::string> names;
  Arguments arguments;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word.rfind("--", 0) != 0) {
      names.push_back(word);
      continue;
    }
    if (i + 1 == argc) throw Error(word + " needs a value", ErrorKind::usage);
    set_option(arguments, word, argv[++i]);
  }
  if (names.size() != 4) throw Error(usage, ErrorKind::usage);
  arguments.corpus = names[0];
  arguments.tokenizer = names[1];
  arguments.config = names[2];
  arguments.out = names[3];
  if (arguments.checkpoints.empty()) arguments.checkpoints = arguments.out.string() + "-checkpoints";
  return arguments;
}

PackedWindows read_corpus(const Arguments& arguments, const Tokenizer& tokenizer) {
  std::vector<TokenDocument> documents;
  for (const Document& document : read_documents(arguments.corpus)) {
    const bool page = document.messages.empty();
    if (arguments.kind != "all" && page != (arguments.kind == "pages")) continue;
    documents.push_back(page ? text_document(tokenizer, document.text)
                             : chat_document(tokenizer, std::span<const Message>(document.messages)));
  }
  return pack_documents(documents, {.seq = seq, .split = SplitChoice::pad});
}

TensorSource first_weights(const Arguments& arguments) {
  if (arguments.from.empty()) return random_weights(model.shape, arguments.weight_seed);
  const hf::ModelDir from = hf::ModelDir::open(arguments.from);
  QLORA_EXPECTS(from.shape == model.shape, arguments.from.string(), " is of another shape");
  return from.source();
}

/// What a run's result depends on beside its corpus. A run does not resume from a checkpoint with other settings.
Json settings_of(const Arguments& arguments) {
  return {{"from", arguments.from.empty() ? "" : fs::canonical(arguments.from).string()},
          {"kind", arguments.kind},
          {"lr", arguments.lr},
          {"order_seed", arguments.order_seed},
          {"steps", arguments.steps},
          {"weight_seed", arguments.weight_seed}};
}

void resume(ModelTrainer& trainer, const Arguments& arguments) {
  if (!fs::exists(arguments.checkpoints)) return;
  const CheckpointSearch found = load_latest_checkpoint(arguments.checkpoints, kept_checkpoints);
  for (const std::string& sentence : found.skipped) std::fprintf(stderr, "skipped: %s\n", sentence.c_str());
  if (!found.checkpoint) return;
  QLORA_EXPECTS(found.checkpoint->state == settings_of(arguments), arguments.checkpoints.string(),
                " holds a run with other settings; remove it or name another folder with --checkpoints");
  restore_trainer(trainer, *found.checkpoint);
  std::fprintf(stderr, "resuming after step %d\n", trainer.core().steps_done());
}

void write_model(ModelTrainer& trainer, const Arguments& arguments) {
  hf::ModelConfig config = hf::parse_config(read_json_object(arguments.config, 1 << 20), arguments.config.string());
  QLORA_EXPECTS(config.shape == model.shape, arguments.config.string(), " is of another shape");
  hf::ModelWriter writer(arguments.out, config, {.tokenizer_from = arguments.tokenizer.parent_path()});
  write_trained(writer, trainer);
}

int run(const Arguments& arguments) {
  const Tokenizer tokenizer = Tokenizer::load(arguments.tokenizer);
  const PackedWindows corpus = read_corpus(arguments, tokenizer);
  std::fprintf(stderr, "%lld documents, %lld tokens in %lld windows\n", static_cast<long long>(corpus.counts.documents),
               static_cast<long long>(corpus.counts.tokens), static_cast<long long>(corpus.windows()));
  ModelTrainer trainer(first_weights(arguments),
                       {.lr = arguments.lr,
                        .schedule = Schedule::cosine,
                        .warmup_steps = 100,
                        .total_steps = arguments.steps,
                        .beta2 = 0.99F,
                        .weight_decay = 0.05F,
                        .seed = arguments.order_seed,
                        .batch = batch,
                        .seq = seq},
                       Cpu<>(arguments.threads));
  resume(trainer, arguments);
  DataOrder order(static_cast<int>(corpus.windows()), batch, arguments.order_seed);
  StepWindows windows;
  const auto start = std::chrono::steady_clock::now();
  const int first = trainer.core().steps_done();
  for (int step = first; step < arguments.steps && stopping == 0; ++step) {
    const StepReport report = trainer.step(windows.gather(corpus, order.step(step)));
    if (report.step % 50 == 0) {
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      const double per_step = seconds.count() / (report.step - first);
      std::fprintf(stderr, "step %d of %d  loss %.4f  %.0f tok/s  %.0f s left\n", report.step, arguments.steps,
                   report.loss, static_cast<double>(report.tokens) / per_step,
                   per_step * (arguments.steps - report.step));
    }
    if (report.step % save_every == 0)
      save_trainer(trainer, arguments.checkpoints, settings_of(arguments), kept_checkpoints);
  }
  if (trainer.core().steps_done() < arguments.steps) {
    save_trainer(trainer, arguments.checkpoints, settings_of(arguments), kept_checkpoints);
    throw Error("stopped; the same command resumes", ErrorKind::interrupted);
  }
  write_model(trainer, arguments);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGINT, [](int) { stopping = 1; });
  std::signal(SIGTERM, [](int) { stopping = 1; });
  try {
    return run(parse(argc, argv));
  } catch (const Error& error) {
    std::fprintf(stderr, "train_model: %s\n", error.what());
    return static_cast<int>(error.kind());
  }
}
