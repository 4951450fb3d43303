// Packs a small data set for examples/02_finetune.cpp: prepare MODEL_DIR OUT_DIR.
#include <qlora/text/dataset.hpp>
#include <qlora/text/packing.hpp>
#include <qlora/text/prompt.hpp>
#include <qlora/text/tokenizer.hpp>

#include <filesystem>
#include <string>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const auto tokenizer = qlora::Tokenizer::load(std::filesystem::path(argv[1]) / "tokenizer.model");
  std::vector<qlora::TokenDocument> documents;
  qlora::DatasetInfo info;
  for (int i = 0; i < 8; ++i) {
    const std::string text = "The price of item " + std::to_string(i) + " is " + std::to_string(7 * i) + " coins.";
    documents.push_back(qlora::text_document(tokenizer, text));
    info.sources.emplace_back().source = std::to_string(i);
  }
  info.vocab_size = tokenizer.vocab_size();
  const qlora::PackedWindows windows = qlora::pack_documents(documents, {.seq = 64, .split = qlora::SplitChoice::pad});
  qlora::write_dataset(argv[2], windows, info);
}
