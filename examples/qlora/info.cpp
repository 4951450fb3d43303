// info.cpp — `qlora info PATH`: what a model directory, an adapter, a data set or a safetensors file holds.
#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <iomanip>
#include <memory>
#include <nlohmann/json.hpp>
#include <ostream>
#include <string>

#include "options.hpp"
#include "qlora/config.hpp"
#include "qlora/error.hpp"
#include "qlora/io/hf.hpp"
#include "qlora/io/hf_config.hpp"
#include "qlora/io/hf_model.hpp"
#include "qlora/io/json.hpp"
#include "qlora/io/safetensors.hpp"
#include "qlora/text/chat_directory.hpp"
#include "qlora/text/dataset_manifest.hpp"
#include "verb.hpp"

namespace qlora::program {
namespace {

namespace fs = std::filesystem;
using OrderedJson = nlohmann::ordered_json;

OrderedJson describe_model(const fs::path& path) {
  const hf::ModelDir model = hf::ModelDir::open(path);
  const Shape& s = model.shape;
  OrderedJson targets = OrderedJson::object();
  for (const int rank : {8, 16, 64}) {
    targets[std::to_string(rank)] = adapter_parameters(s, {.rank = rank, .targets = Proj::all});
  }
  return {{"kind", "model"},
          {"path", path.string()},
          {"vocab", s.vocab},
          {"dim", s.dim},
          {"layers", s.layers},
          {"heads", s.heads},
          {"kv_heads", s.kv_heads},
          {"head_dim", s.head_dim},
          {"ffn", s.ffn},
          {"tied_embeddings", s.tied_embeddings},
          {"dtype", name_of(model.dtype)},
          {"quantization", !model.nf4                ? "none"
                           : model.nf4->double_quant ? "NF4 with double quantization"
                                                     : "NF4"},
          {"rope_theta", model.rope_theta},
          {"norm_eps", shortest_decimal(model.norm_eps)},
          {"max_positions", model.max_positions},
          {"tokenizer", model.tokenizer_file ? model.tokenizer_file->filename().string() : "none"},
          {"chat_template", model.has_chat_template},
          {"chat_form", model.tokenizer_file ? chat_description(path) : "none: the directory has no tokenizer"},
          {"parameters", parameters(s)},
          {"linear_parameters", linear_parameters(s)},
          {"lora_parameters_by_rank", targets}};
}

/// Tensors, elements and bytes of a safetensors file, and its shapes by name.
OrderedJson describe_tensors(const fs::path& path) {
  const SafetensorsFile file(path);
  std::int64_t elements = 0;
  std::size_t bytes = 0;
  OrderedJson tensors = OrderedJson::object();
  for (const std::string& name : file.names()) {
    const TensorRef tensor = file.look_up(name).value();
    elements += tensor.size();
    bytes += static_cast<std::size_t>(file.bytes_of(name));
    tensors[name] = {{"dtype", name_of(tensor.dtype)}, {"shape", tensor.shape}};
  }
  return {{"kind", "tensors"},    {"path", path.string()}, {"tensor_count", tensors.size()},
          {"elements", elements}, {"bytes", bytes},        {"metadata", file.metadata()},
          {"tensors", tensors}};
}

OrderedJson describe_adapter(const fs::path& path) {
  const Json config = read_json_object(path / "adapter_config.json", 1U << 20);
  OrderedJson all = describe_tensors(path / "adapter_model.safetensors");
  OrderedJson result{{"kind", "adapter"}, {"path", path.string()}};
  for (const char* key : {"peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "target_modules",
                          "rank_pattern", "alpha_pattern", "base_model_name_or_path"}) {
    if (config.contains(key)) result[key] = config[key];
  }
  result["parameters"] = all["elements"];
  result["tensor_count"] = all["tensor_count"];
  return result;
}

/// A packed data set's own manifest, with the first of its sources: a corpus may have a million.
OrderedJson describe_data(const fs::path& path) {
  constexpr std::size_t most = 1000;
  const DatasetManifest manifest(path / "manifest.json");
  OrderedJson result{{"kind", "data"}, {"path", path.string()}, {"source_count", manifest.size()}};
  Json shown = manifest.rest();
  for (std::size_t i = 0; i < std::min(most, manifest.size()); ++i) shown["sources"].push_back(manifest.source(i));
  result["manifest"] = shown;
  return result;
}

OrderedJson describe(const fs::path& path) {
  if (!fs::exists(path)) throw Error(path.string() + " is not there");
  if (fs::is_regular_file(path)) return describe_tensors(path);
  if (fs::exists(path / "adapter_config.json")) return describe_adapter(path);
  if (fs::exists(path / "config.json")) return describe_model(path);
  if (fs::exists(path / "manifest.json")) return describe_data(path);
  throw Error(path.string() + " is no model (config.json), adapter (adapter_config.json) or data set (manifest.json)");
}

void print(const OrderedJson& result, std::ostream& out, const std::string& indent = {}) {
  for (const auto& [key, value] : result.items()) {
    if (value.is_object() && !value.empty()) {
      out << indent << key << '\n';
      print(value, out, indent + "  ");
    } else {
      out << indent << std::left << std::setw(24) << key << ' '
          << (value.is_string() ? value.get<std::string>()
                                : value.dump(-1, ' ', false, OrderedJson::error_handler_t::replace))
          << '\n';
    }
  }
}

}  // namespace

void add_info(OptionSet app, Invocation& call) {
  OptionSet verb = add_verb(app, call, "info", "Say what a model, adapter, data set or safetensors file holds");
  auto path = std::make_shared<fs::path>();
  verb.add_model("path", *path, "Directory or .safetensors file").required().type_name("PATH");
  verb.on_call([&call, path] {
    call.action = [path](Context& context) {
      const OrderedJson result = describe(*path);
      print(result, context.out);
      return Result{result.dump(2, ' ', false, OrderedJson::error_handler_t::replace) + "\n"};
    };
  });
}

}  // namespace qlora::program
