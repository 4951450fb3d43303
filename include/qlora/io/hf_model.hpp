// qlora/io/hf_model.hpp — opens a Hugging Face model directory: config.json, and safetensors in one file or in
// shards.
// What may not change: pickle files are never read; a directory that opens has every tensor the config promises, with
// the right shape, and none that this library would have to ignore.
#pragma once

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/hf_config.hpp"
#include "qlora/io/json.hpp"
#include "qlora/io/safetensors.hpp"
#include "qlora/io/sha256.hpp"
#include "qlora/tensor.hpp"

namespace qlora {
inline namespace v0 {
namespace hf {
namespace detail {

/// The weights of a directory: shards, and which of them holds a name.
struct Weights {
  std::vector<SafetensorsFile> shards;
  std::map<std::string, std::size_t, std::less<>> where;
  std::string note;  ///< what is odd and harmless

  [[nodiscard]] std::optional<TensorRef> find(std::string_view name) const {
    const auto found = where.find(name);
    return found == where.end() ? std::nullopt : shards[found->second].find(name);
  }
};

/// A file name from an index must stay inside the directory.
[[nodiscard]] inline bool is_bare_name(std::string_view name) {
  return name.ends_with(".safetensors") && name.size() <= 255 && name.front() != '.' &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string_view::npos;
}

/// All tensors are there when this is called, so a wrong sum is the writer's mistake and no loss.
inline void note_total_size(const Json& index, Weights& weights, std::string_view where) {
  const Json* metadata = json_find(index, "metadata");
  if (metadata == nullptr || !metadata->is_object() || json_find(*metadata, "total_size") == nullptr) return;
  std::uint64_t total = 0;
  for (const auto& [name, shard] : weights.where) total += weights.shards[shard].at(name).bytes.size();
  const double stated = json_number(*metadata, "total_size", where, 0, 9e15);  // some writers make it a float
  if (stated != static_cast<double>(total)) {
    weights.note = concat(where, ": total_size is ", static_cast<std::uint64_t>(stated), " but the tensors have ",
                          total, " bytes; all of them are there");
  }
}

[[nodiscard]] inline Weights open_shards(const std::filesystem::path& directory,
                                         const std::filesystem::path& index_path) {
  const std::string where = index_path.string();
  const Json index = read_json_object(index_path);
  const Json map = json_at(index, "weight_map", where);
  if (!map.is_object() || map.empty()) throw Error(concat(where, ": weight_map must be an object with tensors"));
  Weights weights;
  std::map<std::string, std::size_t> shard_of;
  for (const auto& [name, value] : map.items()) {
    const std::string file = value.is_string() ? value.get<std::string>() : std::string();
    if (file.empty() || !is_bare_name(file)) {
      throw Error(concat(where, ": the shard name '", ::qlora::detail::excerpt(value.dump()),
                         "' is not a plain .safetensors file name inside the directory"));
    }
    const auto [place, is_new] = shard_of.emplace(file, weights.shards.size());
    if (is_new && shard_of.size() > 10'000) throw Error(concat(where, ": more than 10000 shards"));
    if (is_new) weights.shards.emplace_back(directory / file);
    if (!weights.shards[place->second].find(name)) {
      throw Error(concat(where, ": says that '", ::qlora::detail::excerpt(name), "' is in ", file, ", but it is not"));
    }
    weights.where.emplace(name, place->second);
  }
  note_total_size(index, weights, where);
  return weights;
}

/// Says what to do with a directory that has no safetensors.
[[noreturn]] inline void refuse_without_safetensors(const std::filesystem::path& directory) {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(directory, ignored)) {
    const std::string extension = entry.path().extension().string();
    if (extension == ".bin" || extension == ".pt" || extension == ".pth") {
      throw Error(concat(directory.string(), ": holds ", entry.path().filename().string(),
                         ", a pickle file, which can run code and is not read here; convert it once on a machine that "
                         "trusts it: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"));
    }
  }
  throw Error(concat(directory.string(), ": holds neither model.safetensors nor model.safetensors.index.json"));
}

[[nodiscard]] inline Weights open_weights(const std::filesystem::path& directory) {
  const std::filesystem::path single = directory / "model.safetensors";
  const std::filesystem::path index = directory / "model.safetensors.index.json";
  if (std::filesystem::exists(single)) {
    Weights weights;
    weights.shards.emplace_back(single);
    for (std::string& name : weights.shards[0].names()) weights.where.emplace(std::move(name), 0);
    return weights;
  }
  if (std::filesystem::exists(index)) return open_shards(directory, index);
  refuse_without_safetensors(directory);
}

/// Every expected tensor is there and right, and nothing is there that would be left out of the computation.
inline void check_weights(const Weights& weights, const Shape& shape, const std::filesystem::path& directory) {
  const std::vector<NamedShape> expected = tensor_names(shape);
  std::vector<std::string_view> known;
  for (const NamedShape& one : expected) {
    const auto tensor = weights.find(one.name);
    if (!tensor) {
      const bool head = one.name == tensor_name::head;
      throw Error(concat(directory.string(), ": the tensor '", one.name, "' is missing",
                         head ? "; if the head is the embedding table, config.json must say tie_word_embeddings" : ""));
    }
    if (tensor->shape != one.shape) {
      throw Error(concat(directory.string(), ": the tensor '", one.name, "' has shape ", shape_text(tensor->shape),
                         ", config.json needs ", shape_text(one.shape)));
    }
    const DType type = tensor->dtype;
    if (type != DType::f16 && type != DType::bf16 && type != DType::f32 && type != DType::f64) {
      throw Error(concat(directory.string(), ": the tensor '", one.name, "' holds ", ::qlora::name_of(type),
                         ", not floating-point numbers"));
    }
    known.push_back(one.name);
  }
  if (shape.tied_embeddings) known.emplace_back(tensor_name::head);  // a copy that some writers keep
  std::sort(known.begin(), known.end());
  for (const auto& [name, shard] : weights.where) {
    if (std::binary_search(known.begin(), known.end(), name) || name.ends_with("rotary_emb.inv_freq")) continue;
    throw Error(concat(directory.string(), ": the tensor '", ::qlora::detail::excerpt(name),
                       "' has no place in the model that config.json describes"));
  }
}

}  // namespace detail

/// An open model directory. Movable; sources and TensorRefs taken from it stay valid when it moves. Const
/// members, and the sources, may be called by any number of threads at once.
struct ModelDir : ModelConfig {
  std::filesystem::path path;                           ///< the directory
  std::optional<std::filesystem::path> tokenizer_file;  ///< tokenizer.model or tokenizer.json, when there is one
  bool has_chat_template = false;                       ///< the tokenizer's config brings one: likely a chat model

  /// Opens and checks; maps the weights but reads none. Throws Error naming file and key or tensor.
  [[nodiscard]] static ModelDir open(const std::filesystem::path& directory) {
    if (!std::filesystem::is_directory(directory)) {
      throw Error(concat(directory.string(), ": no such model directory"));
    }
    const std::filesystem::path config = directory / "config.json";
    if (!std::filesystem::exists(config)) {
      throw Error(concat(directory.string(), " is no model directory: it has no config.json"));
    }
    ModelDir model;
    static_cast<ModelConfig&>(model) = parse_config(read_json_object(config, 1U << 20), config.string());
    model.path = directory;
    model.weights_ = std::make_shared<const detail::Weights>(detail::open_weights(directory));
    detail::check_weights(*model.weights_, model.shape, directory);
    model.dtype = model.weights_->find(tensor_name::embedding)->dtype;  // the file knows better than the config
    model.read_extras();
    return model;
  }

  /// Finds weights by name; a tied head is found as the embedding table. Keeps the files mapped.
  [[nodiscard]] TensorSource source() const {
    return [weights = weights_, tied = shape.tied_embeddings](std::string_view name) {
      return weights->find(tied && name == tensor_name::head ? tensor_name::embedding : name);
    };
  }

  /// What is odd about the directory and does no harm; empty: nothing.
  [[nodiscard]] const std::string& note() const { return weights_->note; }

  /// Tells models of one shape apart without reading all of them: SHA-256 of the first 4 KiB of every tensor, in the
  /// order of tensor_names. The same weights stored in another type have another one.
  [[nodiscard]] std::string fingerprint() const {
    constexpr std::size_t seen = 4096;
    const TensorSource find = source();
    Sha256 sum;
    for (const NamedShape& tensor : tensor_names(shape)) {
      const std::span<const std::byte> bytes = find(tensor.name).value().bytes;
      sum.update(tensor.name).update(bytes.first(std::min(bytes.size(), seen)));
    }
    return sum.hex();
  }

 private:
  /// generation_config.json may name more end tokens; the tokenizer's files are optional.
  void read_extras() {
    const std::filesystem::path generation = path / "generation_config.json";
    if (std::filesystem::exists(generation)) {
      const Json ids = read_json_object(generation, 1U << 20);
      if (json_find(ids, "eos_token_id") != nullptr) detail::read_token_ids(ids, generation.string(), *this);
    }
    for (const char* name : {"tokenizer.json", "tokenizer.model"}) {  // the last one that is there rules
      if (std::filesystem::exists(path / name)) tokenizer_file = path / name;
    }
    const std::filesystem::path tokenizer = path / "tokenizer_config.json";
    has_chat_template = std::filesystem::exists(path / "chat_template.jinja") ||
                        (std::filesystem::exists(tokenizer) &&
                         json_find(read_json_object(tokenizer, 16U << 20), "chat_template") != nullptr);
  }

  std::shared_ptr<const detail::Weights> weights_;
};

}  // namespace hf
}  // namespace v0
}  // namespace qlora
