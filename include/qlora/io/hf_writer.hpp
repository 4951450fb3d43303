// qlora/io/hf_writer.hpp — writes a Hugging Face model directory tensor by tensor.
// What may not change: the directory appears whole or not at all, no value is silently rounded to infinity, and
// transformers loads what is written (config.json in the transformers 4 dialect, which 5 reads too).
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/carried_files.hpp"
#include "qlora/io/directory.hpp"
#include "qlora/io/file_sums.hpp"
#include "qlora/io/hf_config.hpp"
#include "qlora/io/json.hpp"
#include "qlora/io/safetensors_writer.hpp"

namespace qlora {
inline namespace v0 {
namespace hf {

namespace detail {

[[nodiscard]] inline Json token_ids(const std::vector<int>& ids) {
  return ids.empty() ? Json() : ids.size() == 1 ? Json(ids[0]) : Json(ids);
}

}  // namespace detail

/// config.json of a model, with every key that transformers needs. A model with more than the plain keys of LLaMA keeps
/// those of its file.
[[nodiscard]] inline Json config_json(const ModelConfig& model) {
  const Shape& s = model.shape;
  const bool is_plain = model.file.is_null() ||
                        (model.file.value("model_type", "") == "llama" && !s.qkv_bias &&
                         model.file.value("rope_scaling", Json()).is_null() && !model.file.contains("rope_parameters"));
  if (!is_plain) {
    Json file = model.file;
    file.erase("dtype");
    file.erase("quantization_config");  // what is written in one type is not in 4 bits any more
    file["torch_dtype"] = bnb::torch_name(model.dtype);
    return file;
  }
  return Json{{"architectures", {"LlamaForCausalLM"}},
              {"attention_bias", false},
              {"attention_dropout", 0.0},
              {"bos_token_id", model.bos_token_id < 0 ? Json() : Json(model.bos_token_id)},
              {"eos_token_id", detail::token_ids(model.eos_token_ids)},
              {"head_dim", s.head_dim},
              {"hidden_act", "silu"},
              {"hidden_size", s.dim},
              {"initializer_range", 0.02},
              {"intermediate_size", s.ffn},
              {"max_position_embeddings", model.max_positions},
              {"mlp_bias", false},
              {"model_type", "llama"},
              {"num_attention_heads", s.heads},
              {"num_hidden_layers", s.layers},
              {"num_key_value_heads", s.kv_heads},
              {"pretraining_tp", 1},
              {"rms_norm_eps", shortest_decimal(model.norm_eps)},
              {"rope_scaling", nullptr},
              {"rope_theta", shortest_decimal(model.rope_theta)},
              {"tie_word_embeddings", s.tied_embeddings},
              {"torch_dtype", bnb::torch_name(model.dtype)},
              {"use_cache", true},
              {"vocab_size", s.vocab}};
}

/// Files of a tokenizer that are copied beside the weights.
inline constexpr std::array<std::string_view, 8> tokenizer_files{"tokenizer.model",
                                                                 "tokenizer.json",
                                                                 "tokenizer_config.json",
                                                                 "special_tokens_map.json",
                                                                 "chat_template.jinja",
                                                                 "added_tokens.json",
                                                                 "vocab.json",
                                                                 "merges.txt"};

/// What a merge measured, see run/merge_certificate.hpp.
inline constexpr std::string_view merge_certificate_name = "merge_certificate.json";

/// Whether a file of this name may be one that ModelWriter writes.
[[nodiscard]] inline bool is_model_file(std::string_view name) {
  return name == "config.json" || name == merge_certificate_name || is_carried_file(name) || name == file_sums_name ||
         (name.starts_with("model") && name.find(".safetensors") != std::string_view::npos) ||
         std::find(tokenizer_files.begin(), tokenizer_files.end(), name) != tokenizer_files.end();
}

/// Writes one model directory. Takes the tensors of tensor_names(shape) in any order; finish() gives it its name.
/// Different tensors may be written, and different files finished, by different threads at once.
class ModelWriter {
 public:
  /// What is written beside the tensors, and in which pieces.
  struct Options {
    std::uint64_t max_shard_bytes = 2'000'000'000;  ///< a tensor larger than this gets a shard of its own
    std::filesystem::path tokenizer_from;           ///< directory whose tokenizer files are copied; empty: none
    std::map<std::string, std::string> files{};     ///< texts of further files by their names
    /// What is written where that is not tensor_names in one type. Tensors of one inner list stay in one file. A file
    /// is then made when the first of its tensors is written, by one thread.
    std::vector<std::vector<TensorInfo>> tensors{};
    Json config{};         ///< of config.json; null: config_json of the model
    bool replace = false;  ///< take the place of a directory that holds a model alone
  };

  /// `model.dtype` (f16, bf16 or f32) is what is written. Throws Error when the target holds files, or the disk is
  /// full.
  ModelWriter(const std::filesystem::path& target, const ModelConfig& model) : ModelWriter(target, model, Options{}) {}
  /// The same with another limit of the shards, or with tokenizer files.
  ModelWriter(const std::filesystem::path& target, const ModelConfig& model, const Options& options)
      : directory_(target, temporary_beside(directory_itself(target)),
                   [&](std::string_view name) { return options.replace && is_model_file(name); }),
        model_(model),
        options_(options) {
    QLORA_EXPECTS(model.dtype == DType::f16 || model.dtype == DType::bf16 || model.dtype == DType::f32,
                  "a model cannot be written as ", ::qlora::name_of(model.dtype));
    plan();
    const std::filesystem::path beside = directory_.temporary().parent_path();
    expect_free_space(beside.empty() ? "." : beside, total_bytes_);
    if (!options.tensors.empty()) return;
    for (Shard& shard : shards_) open(shard);
  }

  /// The tensors that are expected, in file order.
  [[nodiscard]] std::vector<NamedShape> tensors() const { return tensor_names(model_.shape); }

  /// The same for `threads` that each take the next one: neighbours lie in different files, since a file system lets
  /// one thread at a time write to a file. Files are filled in groups of that number, so that the first are finished
  /// early.
  [[nodiscard]] std::vector<NamedShape> tensors_for(std::size_t threads) const {
    struct Place {
      std::size_t group, round, file;
      NamedShape tensor;
    };
    std::vector<Place> places;
    std::vector<std::size_t> count(files());
    for (NamedShape& tensor : tensors()) {
      const std::size_t file = file_of(tensor.name);
      places.push_back({file / std::max<std::size_t>(threads, 1), count[file]++, file, std::move(tensor)});
    }
    std::sort(places.begin(), places.end(), [](const Place& a, const Place& b) {
      return std::tie(a.group, a.round, a.file) < std::tie(b.group, b.round, b.file);
    });
    std::vector<NamedShape> order;
    for (Place& place : places) order.push_back(std::move(place.tensor));
    return order;
  }

  /// Writes floats from element `first` on. Throws Error naming the tensor when a value overflows the type written.
  void write(std::string_view name, std::span<const float> values, std::uint64_t first = 0) {
    writer_of(name).write_floats(name, first, values);
  }
  /// Writes bytes that are in the written type already, `offset` bytes into the tensor.
  void write_bytes(std::string_view name, std::span<const std::byte> bytes, std::uint64_t offset = 0) {
    writer_of(name).write(name, offset, bytes);
  }

  /// Gives a tensor of Options::tensors another shape, before anything is written into its file.
  void reshape(std::string_view name, std::vector<std::int64_t> shape) {
    Shard& shard = shards_[file_of(name)];
    QLORA_EXPECTS(!shard.writer, "the file of tensor '", name, "' is begun already");
    for (TensorInfo& tensor : shard.tensors) {
      if (tensor.name != name) continue;
      total_bytes_ -= ::qlora::detail::checked_bytes(tensor.dtype, tensor.shape).value();
      total_bytes_ += ::qlora::detail::checked_bytes(tensor.dtype, shape).value();
      tensor.shape = std::move(shape);
      return;
    }
  }
  /// Adds texts to the metadata of the weight files that are not begun yet.
  void describe(const std::map<std::string, std::string>& metadata) {
    for (const auto& [key, text] : metadata) metadata_[key] = text;
  }
  /// The weight files, and which of them a tensor is in.
  [[nodiscard]] std::size_t files() const { return shards_.size(); }
  /// Number of the weight file that the tensor is in. Throws Error for a name that the model does not have.
  [[nodiscard]] std::size_t file_of(std::string_view name) const {
    const auto found = shard_of_.find(name);
    QLORA_EXPECTS(found != shard_of_.end(), "a model of this shape has no tensor '", name, "'");
    return found->second;
  }
  /// Makes one weight file durable, while others are still written; finish() does it for those that are left. Throws
  /// Error naming a tensor that did not come in full.
  void finish_file(std::size_t file) {
    Shard& shard = shards_.at(file);
    if (shard.finished) return;
    shard.writer->finish();
    shard.finished = true;
  }
  /// Completes the directory. Throws Error naming a tensor that did not come in full.
  void finish() {
    for (std::size_t file = 0; file < shards_.size(); ++file) finish_file(file);
    std::vector<std::string> written;
    const auto write = [&](std::string name, const Json& json) {
      write_file_atomically(directory_.temporary() / name, json_text(json));
      written.push_back(std::move(name));
    };
    if (shards_.size() > 1) {
      write("model.safetensors.index.json", {{"metadata", {{"total_size", total_bytes_}}}, {"weight_map", files_}});
    }
    write("config.json", options_.config.is_null() ? config_json(model_) : options_.config);
    if (!options_.files.contains("generation_config.json")) {
      write("generation_config.json", {{"bos_token_id", config_json(model_)["bos_token_id"]},
                                       {"eos_token_id", detail::token_ids(model_.eos_token_ids)}});
    }
    copy_tokenizer(written);
    for (const auto& [name, text] : options_.files) {
      write_file_atomically(directory_.temporary() / name, text);
      written.push_back(name);
    }
    write_file_sums(directory_.temporary(), written);
    directory_.commit();
  }

 private:
  struct Shard {
    std::vector<TensorInfo> tensors;
    std::uint64_t bytes = 0;
    std::string file;
    std::optional<SafetensorsWriter> writer;
    bool finished = false;
  };

  /// Fills shards in file order, as transformers does, and names them.
  void plan() {
    if (options_.tensors.empty()) {
      for (NamedShape& tensor : tensor_names(model_.shape)) {
        options_.tensors.push_back({{std::move(tensor.name), model_.dtype, std::move(tensor.shape)}});
      }
    }
    for (std::vector<TensorInfo>& together : options_.tensors) {
      std::uint64_t bytes = 0;
      for (const TensorInfo& tensor : together) {
        bytes += ::qlora::detail::checked_bytes(tensor.dtype, tensor.shape).value();
      }
      if (shards_.empty() || (shards_.back().bytes > 0 && shards_.back().bytes + bytes > options_.max_shard_bytes)) {
        shards_.emplace_back();
      }
      shards_.back().bytes += bytes;
      total_bytes_ += bytes;
      for (TensorInfo& tensor : together) {
        shard_of_.emplace(tensor.name, shards_.size() - 1);
        shards_.back().tensors.push_back(std::move(tensor));
      }
    }
    options_.tensors.clear();
    const auto padded = [](std::size_t number) {
      const std::string text = std::to_string(number);
      return std::string(text.size() < 5 ? 5 - text.size() : 0, '0') + text;
    };
    for (std::size_t i = 0; i < shards_.size(); ++i) {
      shards_[i].file = shards_.size() == 1
                            ? "model.safetensors"
                            : "model-" + padded(i + 1) + "-of-" + padded(shards_.size()) + ".safetensors";
      for (const TensorInfo& tensor : shards_[i].tensors) files_.emplace(tensor.name, shards_[i].file);
    }
  }

  void open(Shard& shard) {
    shard.writer.emplace(directory_.temporary() / shard.file, shard.tensors, metadata_, Checksums::stated);
  }
  [[nodiscard]] SafetensorsWriter& writer_of(std::string_view name) {
    Shard& shard = shards_[file_of(name)];
    if (!shard.writer) open(shard);
    return *shard.writer;
  }

  void copy_tokenizer(std::vector<std::string>& written) const {
    if (options_.tokenizer_from.empty()) return;
    for (const std::string_view name : tokenizer_files) {
      const std::filesystem::path source = options_.tokenizer_from / name;
      if (!std::filesystem::exists(source)) continue;
      const MappedFile file(source);
      write_file_atomically(directory_.temporary() / name, file.bytes());
      written.emplace_back(name);
    }
  }

  AtomicDirectory directory_;  // first, so that the shards' temporary files go before it does
  ModelConfig model_;
  Options options_;
  std::vector<Shard> shards_;
  std::map<std::string, std::size_t, std::less<>> shard_of_;
  std::map<std::string, std::string> files_;
  std::uint64_t total_bytes_ = 0;
  std::map<std::string, std::string> metadata_{{"format", "pt"}};
};

}  // namespace hf
}  // namespace v0
}  // namespace qlora
