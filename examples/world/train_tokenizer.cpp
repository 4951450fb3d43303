// examples/world/train_tokenizer.cpp — trains the small model's tokenizer on the text that make_world wrote.
//   train_tokenizer TOKENIZER_TXT OUT_MODEL
// The settings are LLaMA-2's, but for the number of pieces: BPE with byte fallback, digits one by one, no
// normalisation, a space put first, unknown 0, begin 1, end 2, no padding. The same text gives the same bytes.
#include <sentencepiece_trainer.h>

#include <fstream>
#include <iostream>
#include <string>
#include <unordered_map>

namespace {

const std::unordered_map<std::string, std::string> settings{
    {"model_type", "bpe"},
    {"vocab_size", "1536"},
    {"character_coverage", "1.0"},
    {"byte_fallback", "true"},
    {"split_digits", "true"},
    {"allow_whitespace_only_pieces", "true"},
    {"normalization_rule_name", "identity"},
    {"remove_extra_whitespaces", "false"},
    {"add_dummy_prefix", "true"},
    {"unk_id", "0"},
    {"bos_id", "1"},
    {"eos_id", "2"},
    {"pad_id", "-1"},
    {"unk_surface", " \xe2\x81\x87 "},
    {"shuffle_input_sentence", "false"},
    {"num_threads", "1"},
    {"max_sentence_length", "4192"},
    {"minloglevel", "1"},
};

/// The lines of a file, one sentence each.
class Lines : public sentencepiece::SentenceIterator {
 public:
  explicit Lines(std::istream& text) : text_(text) { Next(); }
  bool done() const override { return done_; }
  void Next() override { done_ = !std::getline(text_, line_); }
  const std::string& value() const override { return line_; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  std::istream& text_;
  std::string line_;
  bool done_ = false;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: train_tokenizer TOKENIZER_TXT OUT_MODEL\n";
    return 2;
  }
  std::ifstream text(argv[1], std::ios::binary);
  if (!text) {
    std::cerr << "train_tokenizer: cannot read " << argv[1] << '\n';
    return 3;
  }
  Lines lines(text);
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(settings, &lines, &model);
  if (!status.ok()) {
    std::cerr << "train_tokenizer: " << status.ToString() << '\n';
    return 3;
  }
  std::ofstream out(argv[2], std::ios::binary);
  out << model;
  out.close();
  if (!out) {
    std::cerr << "train_tokenizer: cannot write " << argv[2] << '\n';
    return 4;
  }
  return 0;
}
