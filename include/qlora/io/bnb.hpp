// qlora/io/bnb.hpp — matrices in NF4 as transformers and bitsandbytes store them: "quantization_config" of a
// config.json, and the tensors that stand for one matrix P.weight:
//   P.weight                                    (out in / 2, 1) bytes, two codes each, in any element type
//   P.weight.absmax                             F32 one a block; U8 codes of them with double quantization
//   P.weight.quant_map                          F32 (16), the codebook
//   P.weight.nested_absmax, .nested_quant_map   F32 of the codes, and their codebook (256), with double quantization
//   P.weight.quant_state.bitsandbytes__nf4      U8, a JSON text: block sizes, dtype, shape, nested_offset
// What may not change: what was quantized in another way is refused by name and value, and nothing is taken on trust
// that the file says twice: codebooks, sizes and shapes are compared.
// Reference: bitsandbytes' QuantState.as_dict(packed=True); tests/io/bnb_test.cpp against files that it wrote.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "qlora/dtype.hpp"
#include "qlora/error.hpp"
#include "qlora/io/json.hpp"
#include "qlora/nf4.hpp"
#include "qlora/tensor.hpp"

namespace qlora {
inline namespace v0 {
/// Pre-quantized checkpoints as bitsandbytes writes them.
namespace bnb {

/// How a model's matrices are stored in NF4.
struct Storage {
  bool double_quant = true;     ///< scales in 8 bits
  DType compute = DType::bf16;  ///< what transformers multiplies in; without a meaning here
  friend constexpr bool operator==(const Storage&, const Storage&) = default;
};

/// "float16": a type as torch names it. f16, bf16 or f32.
[[nodiscard]] constexpr std::string_view torch_name(DType dtype) {
  return dtype == DType::f16 ? "float16" : dtype == DType::bf16 ? "bfloat16" : "float32";
}
/// The type that torch_name names; nothing for any other text.
[[nodiscard]] constexpr std::optional<DType> torch_type(std::string_view name) {
  for (const DType type : {DType::f16, DType::bf16, DType::f32}) {
    if (name == torch_name(type)) return type;
  }
  return std::nullopt;
}

namespace detail {

/// Keys of quantization_config that say nothing of a model in 4 bits, or that are read.
inline constexpr std::array known_keys{"_load_in_4bit",
                                       "_load_in_8bit",
                                       "bnb_4bit_compute_dtype",
                                       "bnb_4bit_quant_storage",
                                       "bnb_4bit_quant_type",
                                       "bnb_4bit_use_double_quant",
                                       "llm_int8_enable_fp32_cpu_offload",
                                       "llm_int8_has_fp16_weight",
                                       "llm_int8_skip_modules",
                                       "llm_int8_threshold",
                                       "load_in_4bit",
                                       "load_in_8bit",
                                       "quant_method"};
inline constexpr const char* cure = "; give the 16-bit model, it is quantized here";

}  // namespace detail

/// Reads "quantization_config". `where` is the file's name. Throws Error naming key and value for any other way than
/// bitsandbytes' NF4.
[[nodiscard, gnu::cold]] inline Storage parse_storage(const Json& config, std::string_view where) {
  const std::string here = concat(where, ": quantization_config");
  if (!config.is_object()) throw Error(here + " must be an object");
  const auto excerpt = [](std::string_view text) { return ::qlora::detail::excerpt(text); };
  const std::string method = json_string_or(config, "quant_method", here, "bitsandbytes");
  if (method != "bitsandbytes") {
    throw Error(concat(here, ": quant_method is '", excerpt(method), "'; of quantized models those of 'bitsandbytes' ",
                       "in NF4 are read", detail::cure));
  }
  if (json_bool_or(config, "load_in_8bit", here, json_bool_or(config, "_load_in_8bit", here, false))) {
    throw Error(concat(here, ": load_in_8bit is true: int8 is not computed here", detail::cure));
  }
  if (!json_bool_or(config, "load_in_4bit", here, json_bool_or(config, "_load_in_4bit", here, false))) {
    throw Error(concat(here, ": load_in_4bit is not true; of quantized models those in NF4 are read", detail::cure));
  }
  const std::string type = json_string_or(config, "bnb_4bit_quant_type", here, "fp4");  // as in transformers
  if (type != "nf4") {
    throw Error(concat(here, ": bnb_4bit_quant_type is '", excerpt(type), "'; 'nf4' is read", detail::cure));
  }
  for (const auto& [key, value] : config.items()) {
    const bool off = value.is_null() || value == Json(false) || value.empty();
    if (off || std::find(detail::known_keys.begin(), detail::known_keys.end(), key) != detail::known_keys.end()) {
      continue;
    }
    throw Error(
        concat(here, ": '", excerpt(key), "' is ", excerpt(value.dump()), ", which is not known here", detail::cure));
  }
  Storage storage;
  storage.double_quant = json_bool_or(config, "bnb_4bit_use_double_quant", here, false);
  const std::string compute = json_string_or(config, "bnb_4bit_compute_dtype", here, "float32");
  const std::optional<DType> named = torch_type(compute);
  if (!named) {
    throw Error(
        concat(here, ": bnb_4bit_compute_dtype is '", excerpt(compute), "', not 'bfloat16', 'float16' or 'float32'"));
  }
  storage.compute = *named;
  return storage;
}

/// "quantization_config" as transformers writes it.
[[nodiscard, gnu::cold]] inline Json storage_json(const Storage& storage) {
  return Json{{"_load_in_4bit", true},
              {"_load_in_8bit", false},
              {"bnb_4bit_compute_dtype", torch_name(storage.compute)},
              {"bnb_4bit_quant_storage", "uint8"},
              {"bnb_4bit_quant_type", "nf4"},
              {"bnb_4bit_use_double_quant", storage.double_quant},
              {"llm_int8_enable_fp32_cpu_offload", false},
              {"llm_int8_has_fp16_weight", false},
              {"llm_int8_skip_modules", nullptr},
              {"llm_int8_threshold", 6.0},
              {"load_in_4bit", true},
              {"load_in_8bit", false},
              {"quant_method", "bitsandbytes"}};
}

/// Metadata of a weight file that was quantized here: fingerprint() and checksum() of the model directory that it was
/// made from. The model in 4 bits counts as that one, since it computes the same: adapters of either fit both.
inline constexpr const char* origin_key = "quantized_from_sha256";
inline constexpr const char* origin_checksum_key = "quantized_from_xxh3_128";  ///< see origin_key

/// What is behind a matrix's name in the name of its state.
inline constexpr std::string_view state_suffix = ".quant_state.bitsandbytes__nf4";

/// The names of all tensors of one matrix, the codes first.
[[nodiscard, gnu::cold]] inline std::vector<std::string> part_names(const std::string& weight, bool double_quant) {
  std::vector<std::string> names{weight, weight + ".absmax", weight + ".quant_map"};
  if (double_quant) names.insert(names.end(), {weight + ".nested_absmax", weight + ".nested_quant_map"});
  names.push_back(weight + std::string(state_suffix));
  return names;
}

/// A double as Python's json module writes it.
[[nodiscard, gnu::cold]] inline std::string python_number(double value) {
  std::array<char, 40> text{};
  const double size = std::abs(value);
  const bool plain = size == 0 || (size >= 1e-4 && size < 1e16);
  const auto result = std::to_chars(text.data(), text.data() + text.size(), value,
                                    plain ? std::chars_format::fixed : std::chars_format::scientific);
  std::string out(text.data(), result.ptr);
  if (plain && out.find('.') == std::string::npos) out += ".0";
  return out;
}

/// The text of a matrix's state, to the byte as bitsandbytes writes it.
[[nodiscard, gnu::cold]] inline std::string state_text(DType state, std::int64_t rows, std::int64_t cols,
                                                       std::optional<float> offset) {
  std::string text = concat(R"({"quant_type": "nf4", "blocksize": 64, "dtype": ")", torch_name(state),
                            R"(", "shape": [)", rows, ", ", cols, ']');
  if (offset) {
    text += concat(R"(, "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": )",
                   python_number(static_cast<double>(*offset)));
  }
  return text + "}";
}

namespace detail {

/// The parts of one matrix, found and compared.
class Parts {
 public:
  using Find = std::function<std::optional<TensorRef>(std::string_view name)>;

  Parts(const Find& find, std::string weight, std::string_view where)
      : find_(find), weight_(std::move(weight)), where_(where) {}

  [[nodiscard]] Nf4Ref read(const std::vector<std::int64_t>& shape, const Storage& storage) const {
    const Json state = read_state();
    check_state(state, shape, storage);
    Nf4Ref out;
    out.shape = shape;
    out.state = torch_type(json_string(state, "dtype", state_name())).value();
    const Nf4Layout layout = Nf4Layout::of(shape[0] * shape[1], {.double_quant = storage.double_quant});
    const TensorRef codes = part("");
    const auto code_bytes = codes.size() * static_cast<std::int64_t>(size_of(codes.dtype));
    if (code_bytes != layout.code_bytes) {
      refuse("", concat("has ", code_bytes, " bytes of codes, a matrix of shape ", shape_text(shape), " needs ",
                        layout.code_bytes));
    }
    out.codes = codes.bytes;
    out.absmax = numbers(".absmax", storage.double_quant ? DType::u8 : DType::f32, layout.blocks).bytes;
    expect_map(".quant_map", nf4::codebook);
    if (storage.double_quant) {
      out.nested = numbers(".nested_absmax", DType::f32, layout.nested).bytes;
      expect_map(".nested_quant_map", nf4::dynamic8);
      out.offset = static_cast<float>(json_number(state, "nested_offset", state_name(), -1e38, 1e38));
    }
    return out;
  }

 private:
  [[nodiscard]] std::string state_name() const { return concat(where_, ": ", weight_, state_suffix); }
  [[noreturn]] void refuse(std::string_view suffix, const std::string& why) const {
    throw Error(concat(where_, ": the tensor '", weight_, suffix, "' ", why));
  }
  [[nodiscard]] TensorRef part(std::string_view suffix) const {
    std::optional<TensorRef> found = find_(weight_ + std::string(suffix));
    if (!found) refuse(suffix, "is missing; the matrix is in 4 bits");
    return *std::move(found);
  }
  [[nodiscard]] TensorRef numbers(std::string_view suffix, DType type, std::int64_t count) const {
    TensorRef tensor = part(suffix);
    if (tensor.dtype != type || tensor.size() != count) {
      refuse(suffix, concat("holds ", tensor.size(), " of type ", name_of(tensor.dtype), ", not ", count, " of type ",
                            name_of(type)));
    }
    return tensor;
  }
  template <std::size_t Count>
  void expect_map(std::string_view suffix, const std::array<float, Count>& codebook) const {
    const TensorRef map = numbers(suffix, DType::f32, Count);
    if (!std::ranges::equal(map.bytes, std::as_bytes(std::span(codebook)))) {
      refuse(suffix, concat("is another codebook than that of bitsandbytes", cure));
    }
  }
  [[nodiscard]] Json read_state() const {
    const TensorRef tensor = part(state_suffix);
    if (tensor.dtype != DType::u8 || tensor.bytes.size() > 4096) refuse(state_suffix, "is no short text");
    const std::string_view text(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
    const Json state = parse_json(text, state_name());
    if (!state.is_object()) refuse(state_suffix, "holds no JSON object");
    return state;
  }
  void check_state(const Json& state, const std::vector<std::int64_t>& shape, const Storage& storage) const {
    const std::string here = state_name();
    const auto expect = [&](const char* key, const Json& value) {
      const Json found = json_at(state, key, here);
      if (found != value) {
        throw Error(concat(here, ": ", key, " is ", ::qlora::detail::excerpt(found.dump()), ", not ", value.dump()));
      }
    };
    expect("quant_type", "nf4");
    expect("blocksize", 64);
    expect("shape", shape);
    if (!torch_type(json_string(state, "dtype", here))) {
      throw Error(concat(here, ": dtype is '", ::qlora::detail::excerpt(json_string(state, "dtype", here)),
                         "', not 'float16', 'bfloat16' or 'float32'"));
    }
    if (storage.double_quant) {
      expect("nested_blocksize", 256);
      expect("nested_dtype", "float32");
    } else if (json_find(state, "nested_blocksize") != nullptr) {
      throw Error(concat(here,
                         ": the scales are quantized again, and config.json says that they are not "
                         "(bnb_4bit_use_double_quant)"));
    }
  }

  const Find& find_;
  std::string weight_;
  std::string_view where_;
};

}  // namespace detail

/// The matrix `weight` of that shape (out, in), whose parts `find` finds. Reads its state and codebooks; codes and
/// scales are not looked at, and may come without their bytes. Throws Error, which begins with `where`, naming the
/// tensor that is missing or not as it should be.
[[nodiscard, gnu::cold]] inline Nf4Ref read_matrix(const detail::Parts::Find& find, const std::string& weight,
                                                   const std::vector<std::int64_t>& shape, const Storage& storage,
                                                   std::string_view where) {
  return detail::Parts(find, weight, where).read(shape, storage);
}

/// Values of the flattened matrix from element `first` on, which is even, rounded to what they were before, as
/// bitsandbytes dequantizes them.
inline void dequantize(const Nf4Ref& matrix, std::int64_t first, std::span<float> out) {
  constexpr std::int64_t block = 64;
  const auto float_at = [](std::span<const std::byte> bytes, std::int64_t index) {
    float value = 0.0F;
    std::memcpy(&value, bytes.data() + static_cast<std::size_t>(index) * sizeof value, sizeof value);
    return value;
  };
  const auto byte_at = [](std::span<const std::byte> bytes, std::int64_t index) {
    return std::to_integer<std::size_t>(bytes[static_cast<std::size_t>(index)]);
  };
  QLORA_EXPECTS(first >= 0 && first % 2 == 0 &&
                    first + static_cast<std::int64_t>(out.size()) <= 2 * static_cast<std::int64_t>(matrix.codes.size()),
                "elements ", first, " to ", first + static_cast<std::int64_t>(out.size()), " of a matrix in NF4");
  std::array<float, 16> values{};
  std::int64_t known = -1;  // the block whose values these are
  for (std::size_t i = 0; i < out.size(); ++i) {
    const std::int64_t at = first + static_cast<std::int64_t>(i);
    if (const std::int64_t b = at / block; b != known) {
      const float absmax = matrix.double_quant() ? nf4::rounded_product(nf4::dynamic8[byte_at(matrix.absmax, b)],
                                                                        float_at(matrix.nested, b / 256)) +
                                                       matrix.offset
                                                 : float_at(matrix.absmax, b);
      for (std::size_t code = 0; code < values.size(); ++code) {
        values[code] = rounded_to(matrix.state, nf4::codebook[code] * absmax);
      }
      known = b;
    }
    const std::size_t pair = byte_at(matrix.codes, at / 2);
    out[i] = values[at % 2 == 0 ? pair >> 4 : pair & 15U];
  }
}

/// Throws Error, which begins with `where`, when a scale is not finite: the matrix is damaged.
[[gnu::cold]] inline void expect_finite_scales(const Nf4Ref& matrix, std::string_view weight, std::string_view where) {
  const std::span<const std::byte> floats = matrix.double_quant() ? matrix.nested : matrix.absmax;
  for (std::size_t at = 0; at < floats.size(); at += sizeof(float)) {
    float value = 0.0F;
    std::memcpy(&value, floats.data() + at, sizeof value);
    if (std::isfinite(value)) continue;
    throw Error(concat(where, ": the tensor '", weight, matrix.double_quant() ? ".nested_absmax" : ".absmax",
                       "' holds ", value, " at index ", at / sizeof(float), ": the model is damaged"));
  }
}

}  // namespace bnb
}  // namespace v0
}  // namespace qlora
