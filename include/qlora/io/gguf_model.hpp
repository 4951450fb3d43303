// qlora/io/gguf_model.hpp — a model directory as the tensors and values of a GGUF file, and an adapter as those of a
// GGUF LoRA, with the names and the order of rows that llama.cpp wants.
// What may not change: llama.cpp rotates neighbours 2i and 2i + 1 of a head in models of its architecture "llama",
// where Hugging Face's files have i and i + E/2. So rows of queries and keys, their biases, and B of their adapters
// change places. Its architecture "qwen2" rotates as the files do.
// Memory: a piece of one tensor at a time.
// Source: llama.cpp's conversion scripts (LlamaModel, Qwen2Model, convert_lora_to_gguf.py).
// Reference: tests/io/gguf_test.cpp; tests/interop, where the package gguf reads the files.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <numbers>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "qlora/config.hpp"
#include "qlora/error.hpp"
#include "qlora/io/gguf.hpp"
#include "qlora/io/hf_model.hpp"
#include "qlora/io/peft.hpp"
#include "qlora/model/names.hpp"
#include "qlora/tensor.hpp"

namespace qlora {
inline namespace v0 {
namespace gguf {

namespace detail {

/// What a tensor of the file is made from.
struct Source {
  Tensor tensor;
  std::string name;     ///< in the model directory; empty: `values`
  int heads = 0;        ///< rows of so many heads change places; 0: they stay
  float factor = 1.0F;  ///< of all values
  std::vector<float> values{};
};

[[nodiscard]] inline bool is_qwen(const hf::ModelConfig& model) {
  return !model.file.is_null() && model.file.value("model_type", "") == "qwen2";
}
[[nodiscard]] inline std::string architecture(const hf::ModelConfig& model) {
  return is_qwen(model) ? "qwen2" : "llama";
}

[[nodiscard]] inline std::string module(int layer, Proj proj) {
  const auto name = [&] {
    switch (proj) {
      case Proj::q:
        return "attn_q";
      case Proj::k:
        return "attn_k";
      case Proj::v:
        return "attn_v";
      case Proj::o:
        return "attn_output";
      case Proj::gate:
        return "ffn_gate";
      case Proj::up:
        return "ffn_up";
      default:
        return "ffn_down";
    }
  };
  return concat("blk.", layer, ".", name());
}
/// Heads whose rows change places in a projection.
[[nodiscard]] inline int moved_heads(const hf::ModelConfig& model, Proj proj) {
  if (is_qwen(model)) return 0;
  return proj == Proj::q ? model.shape.heads : proj == Proj::k ? model.shape.kv_heads : 0;
}
/// The row of Hugging Face's file that is row `row` of llama.cpp's.
[[nodiscard]] inline std::int64_t source_row(std::int64_t row, std::int64_t rows, int heads) {
  if (heads == 0) return row;
  const std::int64_t size = rows / heads, within = row % size;
  return row - within + within % 2 * (size / 2) + within / 2;
}

/// By how much llama.cpp divides each pair's frequency, for Llama 3's scaling.
[[nodiscard]] inline std::vector<float> llama3_factors(const hf::ModelConfig& model) {
  const RopeScaling& scaling = model.rope_scaling;
  std::vector<float> factors;
  for (int pair = 0; pair < model.shape.head_dim / 2; ++pair) {
    const double frequency = std::pow(static_cast<double>(model.rope_theta), -2.0 * pair / model.shape.head_dim);
    const double turns = scaling.old_positions * frequency / (2 * std::numbers::pi);  // in the old context
    const double low = scaling.low, high = scaling.high, factor = scaling.factor;
    const double share = std::clamp((turns - low) / (high - low), 0.0, 1.0);  // of the frequency as it is
    factors.push_back(static_cast<float>(1 / ((1 - share) / factor + share)));
  }
  return factors;
}

inline void set_rope(const hf::ModelConfig& model, const std::string& arch, Values& values) {
  const RopeScaling& scaling = model.rope_scaling;
  values[arch + ".rope.freq_base"] = model.rope_theta;
  values[arch + ".rope.dimension_count"] = static_cast<std::uint32_t>(model.shape.head_dim);
  if (scaling.kind == RopeKind::none || scaling.kind == RopeKind::llama3) return;  // the latter has a tensor of factors
  const bool is_yarn = scaling.kind == RopeKind::yarn;
  values[arch + ".rope.scaling.type"] = is_yarn ? "yarn" : "linear";
  values[arch + ".rope.scaling.factor"] = scaling.factor;
  if (!is_yarn) return;
  const float usual = scaling.factor <= 1 ? 1.0F : static_cast<float>(0.1 * std::log(scaling.factor) + 1);
  if (scaling.fast != 32 || scaling.slow != 1 || !scaling.whole_pairs ||
      std::fabs(scaling.attention - usual) > 1e-5F * usual) {
    throw Error(
        "rotary embedding of type yarn with beta_fast, beta_slow, truncate or attention_factor of its own cannot be "
        "written to a GGUF file");
  }
  values[arch + ".rope.scaling.original_context_length"] = static_cast<std::uint32_t>(scaling.old_positions);
}

/// Of a matrix: embedding and head are q8_0 where q4_0 is asked for, and rows that are no whole blocks f16.
[[nodiscard]] inline Type stored(Type asked, bool at_the_ends, std::int64_t columns) {
  const Type type = asked == Type::q4_0 && at_the_ends ? Type::q8_0 : asked;
  const bool whole = static_cast<std::uint64_t>(columns) % block_values == 0;
  return (type == Type::q4_0 || type == Type::q8_0) && !whole ? Type::f16 : type;
}

/// The file's tensors in the order of the model.
[[nodiscard]] inline std::vector<Source> sources(const hf::ModelConfig& model, Type type) {
  const Shape& s = model.shape;
  std::vector<Source> out;
  const auto matrix = [&](std::string to, std::string from, std::int64_t rows, std::int64_t columns, bool at_the_ends,
                          int heads = 0) {
    out.push_back({{std::move(to), stored(type, at_the_ends, columns), {rows, columns}}, std::move(from), heads});
  };
  const auto vector = [&](std::string to, std::string from, std::int64_t size, int heads = 0) {
    out.push_back({{std::move(to), Type::f32, {size}}, std::move(from), heads});
  };
  matrix("token_embd.weight", std::string(tensor_name::embedding), s.vocab, s.dim, true);
  if (model.rope_scaling.kind == RopeKind::llama3) {
    out.push_back({{"rope_freqs.weight", Type::f32, {s.head_dim / 2}}, {}, 0, 1.0F, llama3_factors(model)});
  }
  for (int layer = 0; layer < s.layers; ++layer) {
    vector(concat("blk.", layer, ".attn_norm.weight"), tensor_name::norm(layer, NormBefore::attention), s.dim);
    vector(concat("blk.", layer, ".ffn_norm.weight"), tensor_name::norm(layer, NormBefore::feed_forward), s.dim);
    for (const Proj proj : all_projections) {
      const int heads = moved_heads(model, proj);
      matrix(module(layer, proj) + ".weight", tensor_name::weight(layer, proj), rows_of(s, proj), cols_of(s, proj),
             false, heads);
      const bool has_bias = proj == Proj::o ? s.o_bias : s.qkv_bias && group_of(proj) == Group::qkv;
      if (has_bias) vector(module(layer, proj) + ".bias", tensor_name::bias(layer, proj), rows_of(s, proj), heads);
    }
  }
  vector("output_norm.weight", std::string(tensor_name::final_norm), s.dim);
  if (!s.tied_embeddings) matrix("output.weight", std::string(tensor_name::head), s.vocab, s.dim, true);
  return out;
}

inline void write_tensor(Writer& writer, std::size_t index, const Source& source, const TensorRef& from) {
  const std::int64_t rows = from.shape.front(), columns = from.size() / rows;
  const std::int64_t at_once = std::max<std::int64_t>(1, (std::int64_t{1} << 18) / columns);
  std::vector<float> values;
  for (std::int64_t first = 0; first < rows; first += at_once) {
    const std::int64_t here = std::min(at_once, rows - first);
    values.resize(static_cast<std::size_t>(here * columns));
    for (std::int64_t row = 0; row < here; ++row) {
      const auto to =
          std::span(values).subspan(static_cast<std::size_t>(row * columns), static_cast<std::size_t>(columns));
      read_floats(from, source_row(first + row, rows, source.heads) * columns, to);
    }
    if (source.factor != 1.0F) {
      for (float& value : values) value *= source.factor;
    }
    writer.append(index, values);
  }
}

}  // namespace detail

/// The values of a model beside those of its tokenizer. Throws Error for a rotary embedding that llama.cpp has not.
[[nodiscard]] inline Values model_values(const hf::ModelConfig& model, Type type, const std::string& name) {
  const Shape& s = model.shape;
  const std::string arch = detail::architecture(model);
  const auto count = [](int value) { return static_cast<std::uint32_t>(value); };
  Values values{{"general.architecture", arch},
                {"general.type", std::string("model")},
                {"general.name", name},
                {"general.file_type", count(type == Type::f16    ? 1
                                            : type == Type::q8_0 ? 7
                                                                 : 2)},
                {"general.quantization_version", count(2)},
                {arch + ".vocab_size", count(s.vocab)},
                {arch + ".context_length", count(model.max_positions)},
                {arch + ".embedding_length", count(s.dim)},
                {arch + ".block_count", count(s.layers)},
                {arch + ".feed_forward_length", count(s.ffn)},
                {arch + ".attention.head_count", count(s.heads)},
                {arch + ".attention.head_count_kv", count(s.kv_heads)},
                {arch + ".attention.key_length", count(s.head_dim)},
                {arch + ".attention.value_length", count(s.head_dim)},
                {arch + ".attention.layer_norm_rms_epsilon", model.norm_eps}};
  detail::set_rope(model, arch, values);
  return values;
}

/// Called with 0 at first and with the tensors that are done; false: stop.
using OnTensor = std::function<bool(std::int64_t)>;

/// What was written.
struct Report {
  std::int64_t tensors = 0;  ///< of the file
  std::uint64_t bytes = 0;   ///< of the file
};

namespace detail {

/// `find` gives what a source names.
[[nodiscard]] inline Report write(const std::filesystem::path& out, const Values& values,
                                  const std::vector<Source>& all,
                                  const std::function<std::optional<TensorRef>(std::string_view)>& find,
                                  const OnTensor& on_tensor) {
  std::vector<Tensor> tensors;
  for (const Source& source : all) tensors.push_back(source.tensor);
  Writer writer(out, values, std::move(tensors));
  const auto tell = [&](std::size_t done) {
    if (on_tensor && !on_tensor(static_cast<std::int64_t>(done)))
      throw Error("interrupted while writing " + out.string() + "; nothing was written", ErrorKind::interrupted);
  };
  for (std::size_t i = 0; i < all.size(); ++i) {
    tell(i);
    if (all[i].name.empty()) {
      writer.append(i, all[i].values);
    } else {
      const std::optional<TensorRef> from = find(all[i].name);
      if (!from)
        throw Error(concat("there is no tensor ", all[i].name, " in 16 or 32 bits; export the model in those"));
      write_tensor(writer, i, all[i], *from);
    }
  }
  tell(all.size());
  writer.finish();
  return {static_cast<std::int64_t>(all.size()), writer.bytes()};
}

}  // namespace detail

/// Writes a model's file: matrices of this type, embedding and head in q8_0 where it is q4_0, norms and biases in f32,
/// and f16 where a row is no whole blocks. `tokenizer` are the values of its tokenizer. Throws Error, with nothing left
/// behind, naming the tensor whose value does not fit, and when the disk is full.
inline Report write_model(const hf::ModelDir& model, Type type, const Values& tokenizer,
                          const std::filesystem::path& out, const OnTensor& on_tensor = {}) {
  Values values = model_values(model, type, std::filesystem::weakly_canonical(model.path).filename().string());
  values.insert(tokenizer.begin(), tokenizer.end());
  return detail::write(out, values, detail::sources(model, type), model.source(), on_tensor);
}

/// Writes an adapter's file, in float32. llama.cpp multiplies by alpha / rank: where the adapter says otherwise for a
/// module, its B is scaled. Throws Error when the adapter is of another model.
inline Report write_adapter(const hf::ModelDir& model, const PeftAdapter& adapter, const std::filesystem::path& out,
                            const OnTensor& on_tensor = {}) {
  if (adapter.dora || adapter.embedding || adapter.head) {
    throw Error(concat(adapter.path.string(), adapter.dora ? " has DoRA (use_dora)" : " has modules_to_save",
                       ", which a GGUF LoRA cannot say; merge it (qlora merge) and export the model"));
  }
  const float alpha = adapter.alpha > 0 ? adapter.alpha : 1.0F;  // it takes 0 for "as it is"
  const Values values{{"general.architecture", detail::architecture(model)},
                      {"general.type", std::string("adapter")},
                      {"general.name", std::filesystem::weakly_canonical(adapter.path).filename().string()},
                      {"general.file_type", std::uint32_t{0}},
                      {"adapter.type", std::string("lora")},
                      {"adapter.lora.alpha", alpha}};
  const TensorSource find = adapter.source();
  std::vector<detail::Source> all;
  for (int layer = 0; layer < adapter.layers; ++layer) {
    for (const Proj proj : all_projections) {
      const std::string a_name = lora_name(layer, proj, 'A'), b_name = lora_name(layer, proj, 'B');
      const auto a = find(a_name), b = find(b_name);
      if (!a || !b) continue;
      const int rows = rows_of(model.shape, proj), columns = cols_of(model.shape, proj);
      if (layer >= model.shape.layers || a->shape[1] != columns || b->shape[0] != rows) {
        throw Error(concat(adapter.path.string(), ": the adapter of layer ", layer, " is ", b->shape[0], " x ",
                           a->shape[1], ", the model has ", model.shape.layers, " layers and ", rows, " x ", columns,
                           " there; it was trained on another model"));
      }
      const std::string to = detail::module(layer, proj) + ".weight";
      const int rank = rank_of(adapter, layer, proj);
      const float factor = scale_of(adapter, layer, proj) * static_cast<float>(rank) / alpha;
      all.push_back({{to + ".lora_a", Type::f32, a->shape}, a_name});
      all.push_back({{to + ".lora_b", Type::f32, b->shape}, b_name, detail::moved_heads(model, proj), factor});
    }
  }
  return detail::write(out, values, all, find, on_tensor);
}

}  // namespace gguf
}  // namespace v0
}  // namespace qlora
