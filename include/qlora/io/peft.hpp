// qlora/io/peft.hpp — PEFT LoRA adapter directories: adapter_config.json (io/peft_config.hpp) and
// adapter_model.safetensors.
// What may not change: a tensor that alters the computation is used or refused by name, never passed over.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "qlora/config.hpp"
#include "qlora/error.hpp"
#include "qlora/io/checksum.hpp"
#include "qlora/io/directory.hpp"
#include "qlora/io/file_sums.hpp"
#include "qlora/io/json.hpp"
#include "qlora/io/peft_config.hpp"
#include "qlora/io/safetensors.hpp"
#include "qlora/io/safetensors_writer.hpp"
#include "qlora/model/names.hpp"
#include "qlora/tensor.hpp"

namespace qlora {
inline namespace v0 {

namespace detail {

inline constexpr const char* base_key = "base_sha256";
inline constexpr const char* base_checksum_key = "base_xxh3_128";

/// Layer and projection of a tensor name, and which matrix it is; nothing when the name has another form.
struct LoraPlace {
  int layer = 0;
  Proj proj = Proj::none;
  char matrix = 'A';
};
[[nodiscard]] inline std::optional<LoraPlace> lora_place(std::string_view name) {
  const std::string prefix = concat(peft_prefix, tensor_name::layers);
  if (!name.starts_with(prefix)) return std::nullopt;
  const std::string_view digits = name.substr(prefix.size(), name.find('.', prefix.size()) - prefix.size());
  if (digits.empty() || digits.size() > 6 || digits.find_first_not_of("0123456789") != std::string_view::npos) {
    return std::nullopt;
  }
  LoraPlace place;
  for (const char c : digits) place.layer = place.layer * 10 + (c - '0');
  for (const Proj proj : all_projections) {
    for (const char matrix : {'A', 'B', 'M'}) {
      if (name == lora_name(place.layer, proj, matrix)) return LoraPlace{place.layer, proj, matrix};
    }
  }
  return std::nullopt;
}

/// The name of a tensor without the adapter's name that a state_dict has in it: ".lora_A.default.weight".
[[nodiscard]] inline std::string without_default(const std::string& name) {
  for (const char* matrix : {".lora_A", ".lora_B"}) {
    const std::string end = concat(matrix, ".default.weight");
    if (name.ends_with(end)) return concat(name.substr(0, name.size() - end.size()), matrix, ".weight");
  }
  for (const char* end : {".modules_to_save.default.weight", ".modules_to_save.weight"}) {
    if (name.ends_with(end)) return name.substr(0, name.size() - std::string_view(end).size()) + ".weight";
  }
  constexpr std::string_view magnitude = ".lora_magnitude_vector";
  for (const char* end : {".default.weight", ".default", ".weight"}) {  // peft had several
    if (name.ends_with(concat(magnitude, end))) return name.substr(0, name.size() - std::string_view(end).size());
  }
  return name;
}

/// Modules of the first `layers` layers that have an adapter.
[[nodiscard]] inline std::size_t adapted_modules(const PeftConfig& config, int layers) {
  std::size_t count = 0;
  for (int layer = 0; layer < layers; ++layer) {
    for (const Proj proj : all_projections) count += has_adapter(config, layer, proj) ? 1 : 0;
  }
  return count;
}

}  // namespace detail

/// An open adapter directory. Movable; what source() returns keeps the file mapped. Const members, and
/// the sources, may be called by any number of threads at once.
struct PeftAdapter : PeftConfig {
  std::filesystem::path path;  ///< the directory
  int layers = 0;              ///< one more than the highest layer that has an adapter

  /// Opens and checks an adapter, and reads all of it to compare it with its checksums. Throws Error naming file, key
  /// or tensor; pickle files are refused.
  [[nodiscard]] static PeftAdapter open(const std::filesystem::path& directory, Verify verify = Verify::checksums) {
    PeftAdapter adapter;
    const std::filesystem::path config = directory / "adapter_config.json";
    std::error_code none;  // a path that cannot be, say one that is too long, is no adapter either
    if (!std::filesystem::exists(config, none)) {
      throw Error(concat(directory.string(), " is no adapter: it has no adapter_config.json"));
    }
    if (verify == Verify::checksums) check_file_sums(directory);
    static_cast<PeftConfig&>(adapter) = detail::parse_peft_config(read_json_object(config, 1U << 20), config.string());
    adapter.path = directory;
    const std::filesystem::path weights = directory / "adapter_model.safetensors";
    if (!std::filesystem::exists(weights, none) && std::filesystem::exists(directory / "adapter_model.bin", none)) {
      throw Error(concat(directory.string(),
                         ": adapter_model.bin is a pickle file, which can run code and is "
                         "not read here; save the adapter again with peft's safe_serialization=True"));
    }
    adapter.file_ = std::make_shared<const SafetensorsFile>(weights, verify);
    const auto& metadata = adapter.file_->metadata();
    if (const auto found = metadata.find(detail::base_key); found != metadata.end()) {
      adapter.base_fingerprint = found->second;
    }
    if (const auto found = metadata.find(detail::base_checksum_key); found != metadata.end()) {
      adapter.base_checksum = found->second;
    }
    adapter.check_tensors();
    if (adapter.file_->has_checksums()) {
      for (const std::string& name : adapter.file_->names()) (void)adapter.file_->verify(name);
    }
    return adapter;
  }

  /// The matrices by name; see lora_name().
  [[nodiscard]] TensorSource source() const {
    return [file = file_, stored = stored_](std::string_view name) {
      const auto found = stored->find(name);
      return found == stored->end() ? std::nullopt : file->find(found->second);
    };
  }
  /// The embedding table or the head, by its name in a model, where the adapter has one of its own.
  [[nodiscard]] std::optional<TensorRef> whole(std::string_view name) const {
    const auto found = whole_.find(name);
    return found == whole_.end() ? std::nullopt : file_->find(found->second);
  }
  /// Names of all matrices, as lora_name() gives them.
  [[nodiscard]] std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& [name, stored] : *stored_) names.push_back(name);
    return names;
  }

 private:
  static constexpr std::size_t most_matrices = 3 * 7 * 4096;  // of any model

  /// Every tensor is one half of a pair, of a module that has an adapter, with the rank that the config gives it, and
  /// no module lacks its pair up to the last layer that has one. The other dimension is the model's affair.
  void check_tensors() {
    const std::vector<std::string> all = file_->names();
    const std::string file = file_->path().string();
    if (all.size() > most_matrices)
      throw Error(concat(file, ": holds ", all.size(), " tensors, more than adapters have"));
    std::map<std::string, std::string, std::less<>> stored;
    Proj seen = Proj::none;
    for (const std::string& as_stored : all) {
      const std::string where = concat(file, ": the tensor '", detail::excerpt(as_stored), "'");
      const std::string name = detail::without_default(as_stored);
      if (take_whole(where, name, as_stored)) continue;
      const auto place = detail::lora_place(name);
      if (!place) refuse_tensor(where, as_stored);
      if (place->matrix == 'M' && !dora) {
        throw Error(where + " is a magnitude of DoRA, which adapter_config.json does not have (use_dora)");
      }
      if (!stored.emplace(name, as_stored).second) throw Error(where + " is there twice, with and without '.default'");
      check_tensor(where, *place, file_->at(as_stored));
      seen = seen | place->proj;
      layers = std::max(layers, place->layer + 1);
    }
    for (const auto& [name, said] :
         {std::pair(tensor_name::embedding, embedding), std::pair(tensor_name::head, head)}) {
      if (!said || whole_.contains(name)) continue;
      throw Error(concat(file, ": has no ", name, ", which adapter_config.json names (modules_to_save)"));
    }
    for (const auto& [name, as_stored] : stored) {
      const detail::LoraPlace place = detail::lora_place(name).value();
      for (const char other : matrices_of(*this)) {
        if (stored.contains(lora_name(place.layer, place.proj, other))) continue;
        throw Error(concat(file, ": the tensor '", detail::excerpt(as_stored), "' has no partner"));
      }
    }
    const std::size_t expected = matrices_of(*this).size() * detail::adapted_modules(*this, layers);
    if (layers == 0 || stored.size() != expected) {
      throw Error(concat(file, ": holds ", stored.size(), " LoRA matrices, not the ", expected, " of ", layers,
                         " layers; some are missing"));
    }
    targets = seen;
    stored_ = std::make_shared<const std::map<std::string, std::string, std::less<>>>(std::move(stored));
  }
  /// Whether it is the embedding table or the head.
  bool take_whole(const std::string& where, const std::string& name, const std::string& as_stored) {
    for (const auto& [of_model, said] :
         {std::pair(tensor_name::embedding, embedding), std::pair(tensor_name::head, head)}) {
      if (name != concat(detail::peft_prefix, of_model)) continue;
      if (!said) throw Error(where + " was trained whole, and adapter_config.json does not name it (modules_to_save)");
      const TensorRef tensor = file_->at(as_stored);
      if (tensor.shape.size() != 2 ||
          (tensor.dtype != DType::f32 && tensor.dtype != DType::f16 && tensor.dtype != DType::bf16)) {
        throw Error(concat(where, " is ", name_of(tensor.dtype), " ", shape_text(tensor.shape),
                           ", not a matrix of F32, F16 or BF16"));
      }
      if (!whole_.emplace(of_model, as_stored).second) {
        throw Error(where + " is there twice, with and without '.default'");
      }
      return true;
    }
    return false;
  }
  [[noreturn]] static void refuse_tensor(const std::string& where, const std::string& name) {
    const char* what = " is not a LoRA matrix of a llama model";
    if (name.find(".modules_to_save.") != std::string::npos || name.find(".lora_") == std::string::npos) {
      what = " is a module that was trained whole (modules_to_save), which is not computed here";
    }
    throw Error(concat(where, what, detail::merge_cure));
  }
  void check_tensor(const std::string& where, const detail::LoraPlace& place, const TensorRef& tensor) const {
    if (!has_adapter(*this, place.layer, place.proj)) {
      throw Error(where + " is for a module that has no adapter by adapter_config.json (target_modules, " +
                  "exclude_modules, layers_to_transform)");
    }
    const int rank = rank_of(*this, place.layer, place.proj);
    const std::size_t rank_axis = place.matrix == 'A' ? 0 : 1;
    if (place.matrix == 'M') {
      if (tensor.shape.size() != 1)
        throw Error(where + " has shape " + shape_text(tensor.shape) + ", not one number a row");
    } else if (tensor.shape.size() != 2 || tensor.shape[rank_axis] != rank || tensor.shape[1 - rank_axis] <= 0) {
      throw Error(concat(where, " does not have the rank ", rank, " that adapter_config.json gives it"));
    }
    if (tensor.dtype != DType::f32 && tensor.dtype != DType::f16 && tensor.dtype != DType::bf16) {
      throw Error(concat(where, " holds ", name_of(tensor.dtype), ", not F32, F16 or BF16"));
    }
  }

  std::shared_ptr<const SafetensorsFile> file_;
  std::shared_ptr<const std::map<std::string, std::string, std::less<>>> stored_;  // names in the file, by lora_name()
  std::map<std::string, std::string, std::less<>> whole_;                          // the same by a model's names
};

/// The largest rank of a module that the adapter has; patterns of other modules do not count.
[[nodiscard]] inline int highest_rank(const PeftAdapter& adapter) {
  int highest = 0;
  for (int layer = 0; layer < adapter.layers; ++layer) {
    for (const Proj proj : all_projections) {
      if (has_adapter(adapter, layer, proj)) highest = std::max(highest, rank_of(adapter, layer, proj));
    }
  }
  return highest;
}

/// Throws Error (input) when the modules of a model of so many layers that have an adapter by adapter_config.json are
/// not those of the file: the adapter was made for another model.
inline void expect_layers(const PeftAdapter& adapter, int layers) {
  const bool fits = adapter.layers <= layers &&
                    detail::adapted_modules(adapter, layers) * matrices_of(adapter).size() == adapter.names().size();
  if (fits) return;
  throw Error(
      concat(adapter.path.string(), " has adapters in ", adapter.layers, " layers, the model has ", layers, " layers"));
}

/// Throws Error (input) when the weights of the base, whose checksum() this is, are not those that the adapter was
/// trained on, although they begin alike. Nothing is compared where either is not known.
inline void expect_base_checksum(const PeftAdapter& adapter, const std::string& checksum) {
  if (adapter.base_checksum.empty() || checksum.empty() || adapter.base_checksum == checksum) return;
  throw Error(
      concat("the model's weights are not those that ", adapter.path.string(),
             " was trained on, although all tensors begin alike: the file is damaged, or was changed; fetch the "
             "model again, or give --any-base to use it all the same"));
}

/// A matrix to be written; name from lora_name(), the floats stay the caller's.
struct PeftTensor {
  std::string name;                 ///< as lora_name() gives it
  std::vector<std::int64_t> shape;  ///< A (R,K), B (N,R) or M (N)
  std::span<const float> data;      ///< as many as the shape says
};

/// Writes an adapter directory that peft loads, whole or not at all. A directory that holds an adapter and nothing else
/// is replaced. Throws Error when a matrix does not have the rank that the config gives its module, or a value is not
/// finite in `dtype` (f32, f16 or bf16), and for modules that were trained whole.
inline void write_peft(const std::filesystem::path& target, const PeftConfig& config,
                       std::span<const PeftTensor> tensors, DType dtype = DType::f32) {
  QLORA_EXPECTS(dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16, "an adapter cannot be written as ",
                name_of(dtype));
  QLORA_EXPECTS(!config.embedding && !config.head, "an embedding table or a head is not written into an adapter");
  std::vector<TensorInfo> plan;
  int layers = 0;
  for (const PeftTensor& tensor : tensors) {
    const auto place = detail::lora_place(tensor.name);
    QLORA_EXPECTS(place && has_adapter(config, place->layer, place->proj) && (config.dora || place->matrix != 'M'), "'",
                  tensor.name, "' is not a matrix of a target");
    const std::size_t rank_axis = place->matrix == 'A' ? 0 : 1;
    QLORA_EXPECTS(place->matrix == 'M' ? tensor.shape.size() == 1
                                       : tensor.shape.size() == 2 &&
                                             tensor.shape[rank_axis] == rank_of(config, place->layer, place->proj),
                  "'", tensor.name, "' does not have rank ", rank_of(config, place->layer, place->proj));
    const auto bytes = detail::checked_bytes(DType::f32, tensor.shape);
    QLORA_EXPECTS(bytes && *bytes == tensor.data.size_bytes(), "'", tensor.name, "' has ", tensor.data.size(),
                  " values, not those of its shape");
    plan.push_back({tensor.name, dtype, tensor.shape});
    layers = std::max(layers, place->layer + 1);
  }
  QLORA_EXPECTS(layers > 0 && tensors.size() == matrices_of(config).size() * detail::adapted_modules(config, layers),
                tensors.size(), " matrices for ", layers, " layers");
  AtomicDirectory directory(target, {"adapter_config.json", "adapter_model.safetensors", file_sums_name});
  std::map<std::string, std::string> metadata{{"format", "pt"}};
  if (!config.base_fingerprint.empty()) metadata[detail::base_key] = config.base_fingerprint;
  if (!config.base_checksum.empty()) metadata[detail::base_checksum_key] = config.base_checksum;
  SafetensorsWriter writer(directory.temporary() / "adapter_model.safetensors", std::move(plan), metadata,
                           Checksums::stated);
  for (const PeftTensor& tensor : tensors) writer.write_floats(tensor.name, 0, tensor.data);
  writer.finish();
  write_file_atomically(directory.temporary() / "adapter_config.json", json_text(detail::peft_config_json(config)));
  write_file_sums(directory.temporary(), {"adapter_config.json"});
  directory.commit();
}

}  // namespace v0
}  // namespace qlora
