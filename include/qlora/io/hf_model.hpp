// qlora/io/hf_model.hpp — opens a Hugging Face model directory: config.json, and safetensors in one file or in
// shards, which are mapped, or read while they are used where stand-ins lie for them (io/byte_source.hpp).
// What may not change: pickle files are never read; a directory that opens has every tensor the config promises, with
// the right shape, and none that this library would have to ignore.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/bnb.hpp"
#include "qlora/io/checksum.hpp"
#include "qlora/io/file_sums.hpp"
#include "qlora/io/hf_config.hpp"
#include "qlora/io/json.hpp"
#include "qlora/io/safetensors.hpp"
#include "qlora/io/sha256.hpp"
#include "qlora/io/tensor_stream.hpp"
#include "qlora/io/tensor_sums.hpp"
#include "qlora/io/tokenizer_file.hpp"
#include "qlora/tensor.hpp"

namespace qlora {
inline namespace v0 {
namespace hf {
namespace detail {

/// The weights of a directory: shards, and which of them holds a name.
struct Weights {
  std::vector<SafetensorsFile> shards;
  std::map<std::string, std::size_t, std::less<>> where;
  std::map<std::string, Nf4Ref, std::less<>> nf4;  ///< matrices that are stored in NF4
  std::string note;                                ///< what is odd and harmless

  /// Whether all tensors are in mapped files.
  [[nodiscard]] bool is_mapped() const {
    return std::all_of(shards.begin(), shards.end(), [](const SafetensorsFile& shard) { return shard.is_mapped(); });
  }
  /// With its bytes where they are mapped.
  [[nodiscard]] std::optional<TensorRef> find(std::string_view name) const {
    const auto found = where.find(name);
    return found == where.end() ? std::nullopt : shards[found->second].look_up(name);
  }
  /// Tensors that are there, with the first `most` bytes of each; those of a shard are read together.
  [[nodiscard]] std::vector<TensorRef> read(std::span<const std::string> names,
                                            std::uint64_t most = std::uint64_t{INT64_MAX}) const {
    std::map<std::size_t, std::vector<std::size_t>> by_shard;
    for (std::size_t i = 0; i < names.size(); ++i) by_shard[where.at(names[i])].push_back(i);
    std::vector<TensorRef> all(names.size());
    for (const auto& [shard, places] : by_shard) {
      std::vector<std::string> own;
      for (const std::size_t i : places) own.push_back(names[i]);
      std::vector<TensorRef> tensors = shards[shard].read(own, most);
      for (std::size_t i = 0; i < places.size(); ++i) all[places[i]] = std::move(tensors[i]);
    }
    return all;
  }
  /// The same of whole tensors, compared with the checksums that their files state.
  [[nodiscard]] std::vector<TensorRef> read_verified(std::span<const std::string> names,
                                                     ::qlora::detail::TensorSums& sums) const {
    std::vector<TensorRef> tensors = read(names);
    for (std::size_t i = 0; i < names.size(); ++i)
      sums.know(names[i], shards[where.at(names[i])].verify(names[i], tensors[i]));
    return tensors;
  }
  /// Of a tensor that is there; see SafetensorsFile::verify.
  [[nodiscard]] Checksum verify(const std::string& name) const { return shards[where.at(name)].verify(name); }
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
  for (const auto& [name, shard] : weights.where) total += weights.shards[shard].bytes_of(name);
  const Json& stated = json_at(*metadata, "total_size", where);
  if (!stated.is_number() || stated.get<double>() != static_cast<double>(total)) {  // some writers make it a float
    weights.note = concat(where, ": total_size is ", ::qlora::detail::excerpt(stated.dump()), " but the tensors have ",
                          total, " bytes; all of them are there");
  }
}

[[nodiscard]] inline Weights open_shards(const std::filesystem::path& directory,
                                         const std::filesystem::path& index_path, Verify verify) {
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
    if (is_new) weights.shards.emplace_back(directory / file, verify);
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

[[nodiscard]] inline Weights open_weights(const std::filesystem::path& directory, Verify verify) {
  const std::filesystem::path single = directory / "model.safetensors";
  const std::filesystem::path index = directory / "model.safetensors.index.json";
  if (std::filesystem::exists(single)) {
    Weights weights;
    weights.shards.emplace_back(single, verify);
    for (std::string& name : weights.shards[0].names()) weights.where.emplace(std::move(name), 0);
    return weights;
  }
  if (std::filesystem::exists(index)) return open_shards(directory, index, verify);
  refuse_without_safetensors(directory);
}

/// The tensors of a directory in the order in which a model takes them: tensor_names, and behind the codes of a matrix
/// in NF4 its other parts.
[[nodiscard]] inline std::vector<std::string> stored_names(const ModelConfig& model) {
  std::vector<std::string> names;
  for (NamedShape& tensor : tensor_names(model.shape)) {
    if (model.nf4 && is_projection(tensor.name)) {
      const std::vector<std::string> parts = bnb::part_names(tensor.name, model.nf4->double_quant);
      names.insert(names.end(), parts.begin(), parts.end());
    } else {
      names.push_back(std::move(tensor.name));
    }
  }
  return names;
}

/// What the weight files of a model in NF4 say of the one that it was made from, `digits` of a hash; empty: nothing.
[[nodiscard]] inline std::string origin_of(const Weights& weights, const char* key, std::size_t digits) {
  for (const SafetensorsFile& shard : weights.shards) {
    const auto found = shard.metadata().find(key);
    if (found == shard.metadata().end() || weights.nf4.empty()) continue;
    const bool whole =
        found->second.size() == digits && found->second.find_first_not_of("0123456789abcdef") == std::string::npos;
    if (whole) return found->second;
  }
  return {};
}

/// What read_quantized looks at, read together where it has to be read; empty where it is mapped.
[[nodiscard]] inline std::map<std::string, TensorRef, std::less<>> states_and_codebooks(const Weights& weights,
                                                                                        const ModelConfig& model) {
  std::map<std::string, TensorRef, std::less<>> small;
  if (weights.is_mapped()) return small;
  std::vector<std::string> names;
  for (const NamedShape& tensor : tensor_names(model.shape)) {
    for (const std::string_view suffix :
         {bnb::state_suffix, std::string_view(".quant_map"), std::string_view(".nested_quant_map")}) {
      std::string name = tensor.name + std::string(suffix);
      if (weights.where.contains(name)) names.push_back(std::move(name));
    }
  }
  constexpr std::uint64_t most = 4097;  // a state may have 4096 bytes, and a longer one is refused
  std::vector<TensorRef> tensors = weights.read(names, most);
  for (std::size_t i = 0; i < names.size(); ++i) small.emplace(std::move(names[i]), std::move(tensors[i]));
  return small;
}

/// Reads the states of all matrices that are stored in NF4.
inline void read_quantized(Weights& weights, const ModelConfig& model, const std::filesystem::path& directory) {
  const std::string where = directory.string();
  if (!model.nf4) {
    for (const auto& [name, shard] : weights.where) {
      if (name.find(".quant_state.bitsandbytes__") == std::string::npos) continue;
      throw Error(concat(where, ": the tensor '", ::qlora::detail::excerpt(name),
                         "' is that of a model in 4 bits, and config.json has no quantization_config"));
    }
    return;
  }
  const std::map<std::string, TensorRef, std::less<>> small = states_and_codebooks(weights, model);
  const bnb::detail::Parts::Find find = [&](std::string_view name) {
    const auto found = small.find(name);
    return found == small.end() ? weights.find(name) : found->second;
  };
  for (const NamedShape& tensor : tensor_names(model.shape)) {
    const auto has = [&](std::string_view suffix) { return weights.where.contains(tensor.name + std::string(suffix)); };
    const bool in_4_bits = has(bnb::state_suffix);
    if (has(".quant_state.bitsandbytes__fp4")) {
      throw Error(concat(where, ": the tensor '", tensor.name, "' is in FP4; NF4 is read", bnb::detail::cure));
    }
    if (!is_projection(tensor.name)) {
      if (!in_4_bits) continue;
      throw Error(concat(where, ": the tensor '", tensor.name, "' is in 4 bits, which only the seven projections of a ",
                         "layer may be; give it to transformers in llm_int8_skip_modules"));
    }
    if (!in_4_bits && has("") && !has(".absmax")) {
      throw Error(concat(where, ": the tensor '", tensor.name, "' is not in 4 bits as the others are ",
                         "(llm_int8_skip_modules), which is not computed here", bnb::detail::cure));
    }
    weights.nf4.emplace(tensor.name, bnb::read_matrix(find, tensor.name, tensor.shape, *model.nf4, where));
  }
}

/// Every expected tensor is there and right, and nothing is there that would be left out of the computation.
inline void check_weights(const Weights& weights, const ModelConfig& model, const std::filesystem::path& directory) {
  const Shape& shape = model.shape;
  const std::vector<NamedShape> expected = tensor_names(shape);
  std::vector<std::string> known = stored_names(model);
  for (const NamedShape& needed : expected) {
    if (weights.nf4.contains(needed.name)) continue;
    const auto tensor = weights.find(needed.name);
    if (!tensor) {
      const bool head = needed.name == tensor_name::head;
      throw Error(concat(directory.string(), ": the tensor '", needed.name, "' is missing",
                         head ? "; if the head is the embedding table, config.json must say tie_word_embeddings" : ""));
    }
    if (tensor->shape != needed.shape) {
      throw Error(concat(directory.string(), ": the tensor '", needed.name, "' has shape ", shape_text(tensor->shape),
                         ", config.json needs ", shape_text(needed.shape)));
    }
    const DType type = tensor->dtype;
    if (type != DType::f16 && type != DType::bf16 && type != DType::f32 && type != DType::f64) {
      throw Error(concat(directory.string(), ": the tensor '", needed.name, "' holds ", ::qlora::name_of(type),
                         ", not floating-point numbers"));
    }
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

  /// Opens and checks; maps the weights but reads none. Throws Error naming file and key or tensor, or the small file
  /// that does not have its checksum.
  [[nodiscard]] static ModelDir open(const std::filesystem::path& directory, Verify verify = Verify::checksums) {
    if (!std::filesystem::is_directory(directory)) {
      throw Error(concat(directory.string(), ": no such model directory"));
    }
    const std::filesystem::path config = directory / "config.json";
    if (!std::filesystem::exists(config)) {
      throw Error(concat(directory.string(), " is no model directory: it has no config.json"));
    }
    if (verify == Verify::checksums) check_file_sums(directory);
    ModelDir model;
    static_cast<ModelConfig&>(model) = parse_config(read_json_object(config, 1U << 20), config.string());
    model.path = directory;
    detail::Weights weights = detail::open_weights(directory, verify);
    detail::read_quantized(weights, model, directory);
    detail::check_weights(weights, model, directory);
    model.weights_ = std::make_shared<const detail::Weights>(std::move(weights));
    model.dtype = model.weights_->find(tensor_name::embedding)->dtype;  // the file knows better than the config
    model.read_extras();
    if (verify == Verify::checksums) model.make_sums();
    return model;
  }

  /// Finds weights by name; a tied head is found as the embedding table. Keeps the files mapped; those that are not are
  /// read, batches ahead unless `ahead` is 0 (io/tensor_stream.hpp). Unless the directory was opened with
  /// Verify::nothing, a tensor is read and compared with the checksum that its file states before it is returned, and
  /// the source throws Error naming file and tensor where it differs; other threads read the next `ahead` tensors
  /// meanwhile. 0 is for callers that take tensors with several threads. Matrices that are stored in NF4 are
  /// found by TensorSource::nf4 alone.
  [[nodiscard]] TensorSource source(int ahead = read_ahead()) const {
    if (!weights_->is_mapped()) return streamed_source(ahead > 0);
    return {[weights = weights_, sums = sums_, tied = shape.tied_embeddings, ahead](std::string_view name) {
              const std::string_view stored = tied && name == tensor_name::head ? tensor_name::embedding : name;
              auto tensor = weights->nf4.contains(stored) ? std::nullopt : weights->find(stored);
              if (tensor && sums) (void)sums->of(stored, ahead);
              return tensor;
            },
            [weights = weights_, sums = sums_, where = path.string(), ahead](std::string_view name) {
              const auto found = weights->nf4.find(name);
              std::optional<Nf4Ref> matrix;
              if (found == weights->nf4.end()) return matrix;
              matrix = found->second;
              if (sums) {
                for (const std::string& part : bnb::part_names(found->first, matrix->double_quant())) {
                  (void)sums->of(part, ahead);
                }
              }
              bnb::expect_finite_scales(*matrix, name, where);
              return matrix;
            }};
  }
  /// Tensors that are read while the one before them is used: as many as the processor has threads. On a GPU, which
  /// quantizes as fast as memory is read, with a quarter of them the load waits for checksums.
  [[nodiscard]] static int read_ahead() {
    return static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1U, 64U));
  }

  /// What any changed bit of a tensor changes, and any other number of the network: XXH3 over shape, rope_theta,
  /// norm_eps, and names and checksums of all tensors in the order in which a model takes them, as 32 digits; of a
  /// model that was quantized here, that of the one that it was made from. Reads what source() has not read yet. Empty
  /// with Verify::nothing, and where that one's is not known.
  [[nodiscard]] std::string checksum() const {
    if (!sums_) return {};
    if (!detail::origin_of(*weights_, bnb::origin_key, 64).empty()) {
      return detail::origin_of(*weights_, bnb::origin_checksum_key, 32);  // not known where that one was not verified
    }
    const Shape& s = shape;
    RunningChecksum all;
    const auto add = [&](const std::string& line) { all.update(std::as_bytes(std::span(line))); };
    add(concat(s.vocab, ' ', s.dim, ' ', s.layers, ' ', s.heads, ' ', s.kv_heads, ' ', s.head_dim, ' ', s.ffn, ' ',
               s.tied_embeddings, ' ', rope_theta, ' ', norm_eps, '\n'));
    const RopeScaling& r = rope_scaling;
    if (r.kind != RopeKind::none) {
      add(concat(static_cast<int>(r.kind), ' ', r.factor, ' ', r.old_positions, ' ', r.low, ' ', r.high, ' ', r.fast,
                 ' ', r.slow, ' ', r.whole_pairs, ' ', r.attention, '\n'));
    }
    for (const std::string& name : detail::stored_names(*this)) {
      add(concat(name, ' ', sums_->of(name, weights_->is_mapped() ? read_ahead() : 0).hex(), '\n'));
    }
    return all.value().hex();
  }

  /// Type of a tensor as the files have it, of the codes of a matrix in NF4 too. Throws Error for a name that the model
  /// does not have.
  [[nodiscard]] DType stored_type(std::string_view name) const {
    const auto tensor = weights_->find(name);
    QLORA_EXPECTS(tensor.has_value(), path.string(), " has no tensor '", name, "'");
    return tensor->dtype;
  }

  /// What is odd about the directory and does no harm; empty: nothing.
  [[nodiscard]] const std::string& note() const { return weights_->note; }

  /// Tells models of one shape apart without reading all of them: SHA-256 of the first 4 KiB of every tensor, in the
  /// order in which a model takes them. The same weights stored in another type have another one; a model that was
  /// quantized here has that of the one that it was made from.
  [[nodiscard]] std::string fingerprint() const {
    if (std::string origin = detail::origin_of(*weights_, bnb::origin_key, 64); !origin.empty()) return origin;
    const std::lock_guard lock(beginnings_->mutex);
    std::string& known = beginnings_->sha256;
    if (!known.empty()) return known;
    const std::vector<std::string> names = detail::stored_names(*this);
    const std::vector<TensorRef> tensors = weights_->read(names, 4096);
    Sha256 sum;
    for (std::size_t i = 0; i < names.size(); ++i) sum.update(names[i]).update(tensors[i].bytes);
    return known = sum.hex();
  }

 private:
  /// generation_config.json may name more end tokens; the tokenizer's files are optional.
  void read_extras() {
    const std::filesystem::path generation = path / "generation_config.json";
    if (std::filesystem::exists(generation)) {
      const Json ids = read_json_object(generation, 1U << 20);
      if (json_find(ids, "eos_token_id") != nullptr) detail::read_token_ids(ids, generation.string(), *this);
    }
    if (const std::filesystem::path found = ::qlora::tokenizer_file(path); std::filesystem::exists(found)) {
      tokenizer_file = found;
    }
    const std::filesystem::path tokenizer = path / "tokenizer_config.json";
    has_chat_template = std::filesystem::exists(path / "chat_template.jinja") ||
                        (std::filesystem::exists(tokenizer) &&
                         json_find(read_json_object(tokenizer, 16U << 20), "chat_template") != nullptr);
  }

  void make_sums() {
    sums_ = std::make_shared<::qlora::detail::TensorSums>(
        detail::stored_names(*this), [weights = weights_](const std::string& name) { return weights->verify(name); });
  }

  [[nodiscard]] TensorSource streamed_source(bool ahead) const {
    const auto read = [weights = weights_, sums = sums_](std::span<const std::string> names) {
      return sums ? weights->read_verified(names, *sums) : weights->read(names);
    };
    const auto bytes_of = [&](const std::string& name) {
      return weights_->shards[weights_->where.at(name)].bytes_of(name);
    };
    const auto stream = std::make_shared<::qlora::detail::TensorStream>(detail::stored_names(*this), bytes_of, read);
    return {[weights = weights_, stream, tied = shape.tied_embeddings, ahead](std::string_view name) {
              const std::string_view stored = tied && name == tensor_name::head ? tensor_name::embedding : name;
              const bool is_here = weights->where.contains(stored) && !weights->nf4.contains(stored);
              return is_here ? std::optional(stream->get(stored, ahead)) : std::nullopt;
            },
            [weights = weights_, stream, where = path.string(), ahead,
             twice = nf4 && nf4->double_quant](std::string_view name) {
              const auto found = weights->nf4.find(name);
              std::optional<Nf4Ref> matrix;
              if (found == weights->nf4.end()) return matrix;
              const auto parts = std::make_shared<std::map<std::string, TensorRef>>();
              for (const std::string& part : bnb::part_names(found->first, twice))
                parts->emplace(part, stream->get(part, ahead));
              matrix = found->second;
              matrix->codes = parts->at(found->first).bytes;
              matrix->absmax = parts->at(found->first + ".absmax").bytes;
              if (twice) matrix->nested = parts->at(found->first + ".nested_absmax").bytes;
              matrix->keep = parts;
              bnb::expect_finite_scales(*matrix, name, where);
              return matrix;
            }};
  }

  /// fingerprint(), which is asked for again and again.
  struct Beginnings {
    std::mutex mutex;
    std::string sha256;
  };

  std::shared_ptr<const detail::Weights> weights_;
  std::shared_ptr<Beginnings> beginnings_ = std::make_shared<Beginnings>();
  std::shared_ptr<::qlora::detail::TensorSums> sums_;  // null: nothing is verified
};

}  // namespace hf
}  // namespace v0
}  // namespace qlora
