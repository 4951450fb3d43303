// examples/world/train_model.cpp — trains the small chat model from random weights, on the CPU, with this library.
//   train_model CORPUS_JSONL TOKENIZER_MODEL CONFIG_JSON OUT_DIR [--steps N] [--threads N] [--checkpoints DIR]
// Trainable::all: every weight learns. The run saves a checkpoint every 250 steps and goes on from the newest one, so it
// can be stopped at any time; for one binary the result does not depend on how often it was, nor on the threads.
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "qlora/configs/tiny.hpp"
#include "qlora/io/checkpoint.hpp"
#include "qlora/io/hf.hpp"
#include "qlora/llama2.hpp"
#include "qlora/text/document.hpp"
#include "qlora/text/packing.hpp"
#include "qlora/text/prompt.hpp"
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

volatile std::sig_atomic_t stopping = 0;

struct Arguments {
  fs::path corpus, tokenizer, config, out, checkpoints;
  int steps = 4722;  // what the shipped model had: nine tenths of its corpus, once
  int threads = 0;
};

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
    const std::string value = argv[++i];
    if (word == "--checkpoints") {
      arguments.checkpoints = value;
    } else if (word == "--steps" || word == "--threads") {
      const long number = std::strtol(value.c_str(), nullptr, 10);
      if (number <= 0 || number > 1'000'000) throw Error(word + " " + value + " is no count", ErrorKind::usage);
      (word == "--steps" ? arguments.steps : arguments.threads) = static_cast<int>(number);
    } else {
      throw Error("unknown option " + word, ErrorKind::usage);
    }
  }
  if (names.size() != 4) {
    throw Error(
        "usage: train_model CORPUS_JSONL TOKENIZER_MODEL CONFIG_JSON OUT_DIR [--steps N] [--threads N] "
        "[--checkpoints DIR]",
        ErrorKind::usage);
  }
  arguments.corpus = names[0];
  arguments.tokenizer = names[1];
  arguments.config = names[2];
  arguments.out = names[3];
  if (arguments.checkpoints.empty()) arguments.checkpoints = arguments.out.string() + "-checkpoints";
  return arguments;
}

PackedWindows read_corpus(const fs::path& corpus, const Tokenizer& tokenizer) {
  std::vector<TokenDocument> documents;
  for (const Document& document : read_documents(corpus)) {
    documents.push_back(document.messages.empty()
                            ? text_document(tokenizer, document.text)
                            : chat_document(tokenizer, std::span<const Message>(document.messages)));
  }
  return pack_documents(documents, {.seq = seq, .split = SplitChoice::pad});
}

/// Copies the windows of a step out of the corpus.
struct StepBatch {
  std::vector<std::int32_t> ids, labels, documents;
  Windows gather(const PackedWindows& from, std::span<const std::uint32_t> chosen) {
    ids.clear();
    labels.clear();
    documents.clear();
    for (const std::uint32_t window : chosen) {
      const auto first = static_cast<std::ptrdiff_t>(window) * seq;
      const auto copy = [&](const std::vector<std::int32_t>& source, std::vector<std::int32_t>& to) {
        to.insert(to.end(), source.begin() + first, source.begin() + first + seq);
      };
      copy(from.ids, ids);
      copy(from.labels, labels);
      copy(from.documents, documents);
    }
    return {seq, ids, labels, documents};
  }
};

void save(ModelTrainer& trainer, const fs::path& root) {
  std::vector<NamedTensor> tensors;
  trainer.core().for_each_state([&](const std::string& name, const float* data, std::int64_t count) {
    tensors.push_back({name, {count}, {data, static_cast<std::size_t>(count)}});
  });
  save_checkpoint(root, trainer.core().steps_done(), tensors, Json::object(), 2);
}

void resume(ModelTrainer& trainer, const fs::path& root) {
  if (!fs::exists(root)) return;
  const CheckpointSearch found = load_latest_checkpoint(root);
  for (const std::string& sentence : found.skipped) std::fprintf(stderr, "skipped: %s\n", sentence.c_str());
  if (!found.checkpoint) return;
  trainer.core().for_each_state([&](const std::string& name, float* data, std::int64_t count) {
    const TensorRef tensor = found.checkpoint->tensors.at(name);
    QLORA_EXPECTS(tensor.size() == count, name, " of the checkpoint has ", tensor.size(), " values, not ", count);
    read_floats(tensor, 0, {data, static_cast<std::size_t>(count)});
  });
  trainer.core().set_steps_done(static_cast<int>(found.checkpoint->step));
  std::fprintf(stderr, "going on after step %d\n", trainer.core().steps_done());
}

void write_model(ModelTrainer& trainer, const Arguments& arguments) {
  hf::ModelConfig config = hf::parse_config(read_json_object(arguments.config, 1 << 20), arguments.config.string());
  QLORA_EXPECTS(config.shape == model.shape, arguments.config.string(), " is of another shape");
  hf::ModelWriter writer(arguments.out, config, {.tokenizer_from = arguments.tokenizer.parent_path()});
  const float* trained = trainer.model().weights().trained();
  trainer.model().weights().for_each_trained(
      [&](const std::string& name, std::int64_t rows, std::int64_t cols, std::int64_t offset) {
        writer.write(name, {trained + offset, static_cast<std::size_t>(rows * cols)});
      });
  writer.finish();
}

int run(const Arguments& arguments) {
  const Tokenizer tokenizer = Tokenizer::load(arguments.tokenizer);
  const PackedWindows corpus = read_corpus(arguments.corpus, tokenizer);
  std::fprintf(stderr, "%lld documents, %lld tokens in %lld windows\n", static_cast<long long>(corpus.counts.documents),
               static_cast<long long>(corpus.counts.tokens), static_cast<long long>(corpus.windows()));
  ModelTrainer trainer(random_weights(model.shape, 1),
                       {.lr = 3e-3F,
                        .schedule = Schedule::cosine,
                        .warmup_steps = 100,
                        .total_steps = arguments.steps,
                        .beta2 = 0.99F,
                        .weight_decay = 0.05F,
                        .seed = 7,
                        .batch = batch,
                        .seq = seq},
                       Cpu<>(arguments.threads));
  resume(trainer, arguments.checkpoints);
  DataOrder order(static_cast<int>(corpus.windows()), batch, 7);
  StepBatch step_batch;
  const auto start = std::chrono::steady_clock::now();
  const int first = trainer.core().steps_done();
  for (int step = first; step < arguments.steps && stopping == 0; ++step) {
    const StepReport report = trainer.step(step_batch.gather(corpus, order.step(step)));
    if (report.step % 50 == 0) {
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      const double per_step = seconds.count() / (report.step - first);
      std::fprintf(stderr, "step %d of %d  loss %.4f  %.0f tok/s  %.0f s left\n", report.step, arguments.steps,
                   report.loss, static_cast<double>(report.tokens) / per_step,
                   per_step * (arguments.steps - report.step));
    }
    if (report.step % save_every == 0) save(trainer, arguments.checkpoints);
  }
  if (trainer.core().steps_done() < arguments.steps) {
    save(trainer, arguments.checkpoints);
    throw Error("stopped; the same command goes on", ErrorKind::interrupted);
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
