// Files that lie elsewhere: stand-ins, safetensors that are read tensor by tensor with the same bytes and the same
// refusals as mapped ones, and how far a stream of tensors reads ahead.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/io/byte_source.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "qlora/io/hf.hpp"
#include "qlora/io/tensor_stream.hpp"
#include "support/checksums.hpp"
#include "support/golden.hpp"
#include "support/refusal.hpp"
#include "support/scratch.hpp"

using namespace qlora;
using test::refusal;
namespace fs = std::filesystem;

namespace {

const test::Scratch scratch;

/// A file that is read and not mapped.
class ReadFile final : public ByteSource {
 public:
  explicit ReadFile(fs::path path)
      : path_(std::move(path)),
        size_(fs::file_size(path_)),
        file_(FileDescriptor::open("cannot read", path_, O_RDONLY)) {}
  [[nodiscard]] std::string name() const override { return "elsewhere:" + path_.filename().string(); }
  [[nodiscard]] std::uint64_t size() const override { return size_; }
  void read(std::span<const BytePiece> pieces) const override {
    for (const BytePiece& piece : pieces) REQUIRE(read_at(file_, path_, piece.offset, piece.into));
  }

 private:
  fs::path path_;
  std::uint64_t size_;
  FileDescriptor file_;
};

/// A folder that has all files of another but its weights, which stand-ins stand for.
fs::path without_weights(const fs::path& model, const std::string& name) {
  const fs::path folder = scratch / name;
  fs::create_directories(folder);
  for (const auto& entry : fs::directory_iterator(model)) {
    const fs::path to = folder / entry.path().filename();
    if (to.extension() == ".safetensors") {
      write_file_atomically(to, stand_in_text(entry.path().string()));
      stand_in(to, [from = entry.path()] { return std::make_shared<ReadFile>(from); });
    } else {
      fs::copy_file(entry.path(), to);
    }
  }
  return folder;
}

bool same(std::span<const std::byte> a, std::span<const std::byte> b) { return std::ranges::equal(a, b); }

/// All tensors of two directories are the same, taken in the order of a model or by themselves.
void check_same(const hf::ModelDir& a, const hf::ModelDir& b, int ahead) {
  const TensorSource first = a.source(ahead), second = b.source(ahead);
  for (const hf::NamedShape& tensor : hf::tensor_names(a.shape)) {
    CAPTURE(tensor.name);
    if (const auto matrix = first.nf4(tensor.name)) {
      const auto other = second.nf4(tensor.name);
      REQUIRE(other.has_value());
      CHECK(same(matrix->codes, other->codes));
      CHECK(same(matrix->absmax, other->absmax));
      CHECK(same(matrix->nested, other->nested));
      CHECK(matrix->offset == other->offset);
      CHECK(!second(tensor.name).has_value());
    } else {
      const TensorRef one = first(tensor.name).value(), two = second(tensor.name).value();
      CHECK(one.dtype == two.dtype);
      CHECK(one.shape == two.shape);
      CHECK(same(one.bytes, two.bytes));
    }
  }
  CHECK(!second("no.such.tensor").has_value());
}

}  // namespace

TEST_CASE("a stand-in is followed by the process that made it, and by no other") {
  const fs::path file = scratch / "plain.txt";
  write_file_atomically(file, "a file");
  CHECK(open_bytes(file)->mapped().size() == 6);
  const fs::path other = scratch / "other.txt";
  write_file_atomically(other, stand_in_text("somewhere"));
  CHECK(refusal([&] { (void)open_bytes(other); }).find("other.txt: stands in for a file that lies elsewhere") !=
        std::string::npos);
  stand_in(other, [&] { return std::make_shared<ReadFile>(file); });
  CHECK(open_bytes(other)->name() == "elsewhere:plain.txt");
  fs::create_symlink(other, scratch / "link.txt");
  CHECK(open_bytes(scratch / "link.txt")->name() == "elsewhere:plain.txt");
  write_file_atomically(other, "a file of its own");  // whatever stood there before
  CHECK(open_bytes(other)->mapped().size() == 17);
}

TEST_CASE("a model whose weights are read has the tensors, fingerprint and checksum of a mapped one") {
  for (const char* name : {"gqa/model", "tied/model", "gqa/model-bnb-4bit", "hd128/model-bnb-4bit"}) {
    CAPTURE(name);
    const fs::path from = golden::folder() / name;
    const fs::path folder = without_weights(from, std::string("read/") + name);
    const hf::ModelDir mapped = hf::ModelDir::open(from), read = hf::ModelDir::open(folder);
    check_same(mapped, read, 4);
    check_same(mapped, read, 0);
    CHECK(read.fingerprint() == mapped.fingerprint());
    CHECK(read.checksum() == mapped.checksum());
    CHECK(read.dtype == mapped.dtype);
    const hf::ModelDir trusted = hf::ModelDir::open(folder, Verify::nothing);
    check_same(mapped, trusted, 4);
    CHECK(trusted.checksum().empty());
  }
}

TEST_CASE("a tensor outlives the source that read it, and a second source reads again") {
  const fs::path from = golden::folder() / "gqa/model";
  const fs::path folder = without_weights(from, "again");
  const std::string name(tensor_name::embedding);
  std::optional<TensorRef> tensor;
  {
    const hf::ModelDir model = hf::ModelDir::open(folder);
    const TensorSource source = model.source();
    tensor = source(name);
    CHECK(same(source(name)->bytes, tensor->bytes));  // taken already
  }
  const hf::ModelDir mapped = hf::ModelDir::open(from);
  CHECK(same(mapped.source()(name)->bytes, tensor->bytes));
}

TEST_CASE("shards, and bytes that are not what was written") {
  const hf::ModelDir model = hf::ModelDir::open(golden::folder() / "gqa/model");
  const fs::path whole = scratch / "sharded";
  hf::ModelWriter writer(whole, model, {.max_shard_bytes = 200'000, .tokenizer_from = {}});
  const TensorSource source = model.source();
  for (const hf::NamedShape& tensor : writer.tensors()) writer.write_bytes(tensor.name, source(tensor.name)->bytes);
  writer.finish();
  const fs::path folder = without_weights(whole, "read/sharded");
  check_same(model, hf::ModelDir::open(folder), 4);
  const Json index = read_json_object(whole / "model.safetensors.index.json");
  const fs::path last = whole / index.at("weight_map").at("model.norm.weight").get<std::string>();
  test::flip_bit(last, fs::file_size(last) * 8 - 1);
  const auto read_all = [&](Verify verify, int ahead) {
    return refusal([&] {
      const hf::ModelDir damaged = hf::ModelDir::open(folder, verify);
      const TensorSource tensors = damaged.source(ahead);
      for (const hf::NamedShape& tensor : hf::tensor_names(damaged.shape)) (void)tensors(tensor.name).value();
    });
  };
  for (const int ahead : {4, 0}) {
    const std::string said = read_all(Verify::checksums, ahead);
    CHECK(said.find("elsewhere:" + last.filename().string() + ": the tensor '") == 0);
    CHECK(said.find("its checksum differs") != std::string::npos);
    CHECK(read_all(Verify::nothing, ahead).empty());
  }
  test::flip_bit(last, 8 * 20);  // of the header
  CHECK(!read_all(Verify::checksums, 4).empty());
}

TEST_CASE("a stream reads two batches ahead, and again what has gone by") {
  constexpr std::uint64_t half = std::uint64_t{64} << 20;  // of a batch; the tensors themselves are small
  std::vector<std::string> names;
  for (int i = 0; i < 12; ++i) names.push_back(std::to_string(i));
  std::mutex mutex;
  std::vector<std::string> read;  // all that were read, and how many of them at a time
  std::size_t most = 0;
  std::atomic<int> alive = 0;
  struct Counted {
    std::atomic<int>* alive;
    explicit Counted(std::atomic<int>& all) : alive(&all) { ++all; }
    Counted(const Counted&) = delete;
    ~Counted() { --*alive; }
  };
  {
    detail::TensorStream stream(
        names, [&](const std::string&) { return half; },
        [&](std::span<const std::string> wanted) {
          std::vector<TensorRef> tensors;
          const std::lock_guard lock(mutex);
          most = std::max(most, wanted.size());
          for (const std::string& name : wanted) {
            read.push_back(name);
            TensorRef tensor;
            tensor.shape = {std::stoi(name)};
            tensor.keep = std::make_shared<const Counted>(alive);
            tensors.push_back(std::move(tensor));
          }
          return tensors;
        });
    for (int i = 0; i < 6; ++i) {
      CHECK(stream.get(names[static_cast<std::size_t>(i)], true).shape.front() == i);
      CHECK(alive <= 6);  // three batches of two
    }
    CHECK(most == 2);
    CHECK(stream.get("0", true).shape.front() == 0);
    CHECK(std::ranges::count(read, "0") == 2);
    CHECK(stream.get("11", true).shape.front() == 11);
    CHECK(stream.get("10", true).shape.front() == 10);
    CHECK(stream.get("3", false).shape.front() == 3);
  }
  CHECK(alive == 0);
  for (const char* once : {"1", "2", "4", "5", "10", "11"}) CHECK(std::ranges::count(read, once) == 1);
}
