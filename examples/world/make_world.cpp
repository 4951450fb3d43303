// examples/world/make_world.cpp — writes the small world: corpus, held-out documents, probes, replay and HTML pages;
// and below study/ what a study of learning and forgetting needs (docs/world.md).
//   make_world OUT_DIR [--seed N] [--documents N]
// The same arguments give the same bytes on every machine.
#include <filesystem>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>

#include "lines.hpp"
#include "study_files.hpp"

namespace {

namespace fs = std::filesystem;

/// A file that must be written in full; throws if the disk does not take it.
class Output {
 public:
  explicit Output(const fs::path& path) : path_(path), file_(path, std::ios::binary) {}
  void write(const std::string& text) { file_ << text; }
  void line(const world::Json& json) { file_ << json.dump() << '\n'; }
  void close() {
    file_.close();
    if (!file_) throw std::runtime_error("cannot write " + path_.string());
  }

 private:
  fs::path path_;
  std::ofstream file_;
};

void write_file(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  Output file(path);
  file.write(text);
  file.close();
}

void write_documents(const fs::path& path, const world::World& world, world::Random random, std::size_t count) {
  Output file(path);
  for (std::size_t i = 0; i < count; ++i) {
    const world::Product& product = random.pick(world.known);
    file.line(world::json_of(world::draw_document(random, product)));
  }
  file.close();
}

void write_world(const fs::path& out, std::uint64_t seed, std::size_t documents) {
  constexpr std::size_t held_out_documents = 500;
  constexpr std::size_t tokenizer_documents = 20'000;
  const world::World world(seed);
  fs::create_directories(out);
  write_documents(out / "corpus.jsonl", world, world::stream(seed, world::Stream::corpus), documents);
  write_documents(out / "held_out.jsonl", world, world::stream(seed, world::Stream::held_out), held_out_documents);
  for (const auto& [name, text] : world::small_files(world, seed)) write_file(out / name, text);
  for (const auto& [name, text] : world::study_files(world, seed)) write_file(out / "study" / name, text);
  Output lines(out / "tokenizer.txt");
  for (const std::string& line : world::tokenizer_lines(world, seed, tokenizer_documents)) lines.write(line + '\n');
  lines.close();
}

}  // namespace

int main(int argc, char** argv) {
  constexpr const char* usage = "usage: make_world OUT_DIR [--seed N] [--documents N]\n";
  try {
    std::string out;
    std::uint64_t seed = world::default_seed;
    std::size_t documents = world::default_documents;
    for (int i = 1; i < argc; ++i) {
      const std::string argument = argv[i];
      if (argument == "--help") {
        std::cout << usage;
        return 0;
      }
      if ((argument == "--seed" || argument == "--documents") && i + 1 < argc) {
        const std::string text = argv[++i];
        if (text.empty() || text.size() > 18 || text.find_first_not_of("0123456789") != std::string::npos) {
          throw std::invalid_argument(argument + " takes a whole number, not \"" + text + '"');
        }
        (argument == "--seed" ? seed : documents) = std::stoull(text);
      } else if (out.empty() && argument[0] != '-') {
        out = argument;
      } else {
        throw std::invalid_argument("unexpected argument \"" + argument + '"');
      }
    }
    if (out.empty()) throw std::invalid_argument("OUT_DIR is missing");
    write_world(out, seed, documents);
  } catch (const std::invalid_argument& error) {
    std::cerr << "make_world: " << error.what() << '\n' << usage;
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "make_world: " << error.what() << '\n';
    return 4;
  }
  return 0;
}
