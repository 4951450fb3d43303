// qlora/io/gguf.hpp — writes a GGUF file (version 3), the format of llama.cpp: named values, then tensors.
// Layout     magic, version, counts; values (name, type, value); tensors (name, sizes fastest first, type, offset); the
//            tensors' bytes, each begun at a multiple of 32. All little-endian.
// Blocks     of 32 values in a row. Q8_0: a float16 d = max|x| / 127 and 32 bytes x / d rounded half away from zero.
//            Q4_0: d = the value of the largest size / -8 and 32 nibbles x / d + 8 (value i low, value 16 + i high).
// Source     ggml's docs/gguf.md, and quantize_row_q8_0_ref and quantize_row_q4_0_ref in ggml-quants.c, to the bit.
// Reference  tests/io/gguf_test.cpp, blocks and files of the Python package gguf.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "qlora/dtype.hpp"
#include "qlora/error.hpp"
#include "qlora/io/file.hpp"

namespace qlora {
inline namespace v0 {
namespace gguf {

/// How a tensor is stored; the numbers are the file's.
enum class Type : std::uint32_t { f32 = 0, f16 = 1, q4_0 = 2, q8_0 = 8 };

/// Values of a block, and the multiple that a row of Q4_0 and Q8_0 must have.
inline constexpr std::size_t block_values = 32;
/// Multiple of bytes at which tensors begin.
inline constexpr std::uint64_t alignment = 32;

/// Bytes of `values` values, which are whole blocks.
[[nodiscard]] constexpr std::uint64_t bytes_of(Type type, std::uint64_t values) {
  switch (type) {
    case Type::f32:
      return 4 * values;
    case Type::f16:
      return 2 * values;
    case Type::q8_0:
      return values / block_values * 34;
    case Type::q4_0:
      return values / block_values * 18;
  }
  return 0;
}

/// A value of the file.
using Value = std::variant<bool, std::uint32_t, float, std::string, std::vector<std::int32_t>, std::vector<float>,
                           std::vector<std::string>>;
/// Values by their names.
using Values = std::map<std::string, Value>;

/// A tensor whose bytes will come.
struct Tensor {
  std::string name;                 ///< "blk.0.attn_q.weight"
  Type type = Type::f32;            ///< of its values
  std::vector<std::int64_t> shape;  ///< outermost dimension first, as in safetensors

  /// Number of values.
  [[nodiscard]] std::uint64_t size() const {
    std::uint64_t count = 1;
    for (const std::int64_t length : shape) count *= static_cast<std::uint64_t>(length);
    return count;
  }
};

namespace detail {

template <class Number>
void put(std::string& out, Number value) {
  char bytes[sizeof value];
  std::memcpy(bytes, &value, sizeof value);
  out.append(bytes, sizeof value);
}
inline void put_text(std::string& out, std::string_view text) {
  put(out, static_cast<std::uint64_t>(text.size()));
  out += text;
}

/// The file's numbers of types.
enum class ValueType : std::uint32_t { u32 = 4, i32 = 5, f32 = 6, boolean = 7, string = 8, array = 9 };

inline void put_value(std::string& out, const Value& value) {
  const auto type = [&](ValueType kind) { put(out, static_cast<std::uint32_t>(kind)); };
  const auto list = [&](ValueType kind, const auto& items, const auto& put_item) {
    type(ValueType::array);
    type(kind);
    put(out, static_cast<std::uint64_t>(items.size()));
    for (const auto& item : items) put_item(item);
  };
  if (const auto* flag = std::get_if<bool>(&value)) {
    type(ValueType::boolean);
    out += *flag ? '\1' : '\0';
  } else if (const auto* count = std::get_if<std::uint32_t>(&value)) {
    type(ValueType::u32);
    put(out, *count);
  } else if (const auto* number = std::get_if<float>(&value)) {
    type(ValueType::f32);
    put(out, *number);
  } else if (const auto* text = std::get_if<std::string>(&value)) {
    type(ValueType::string);
    put_text(out, *text);
  } else if (const auto* ints = std::get_if<std::vector<std::int32_t>>(&value)) {
    list(ValueType::i32, *ints, [&](std::int32_t item) { put(out, item); });
  } else if (const auto* floats = std::get_if<std::vector<float>>(&value)) {
    list(ValueType::f32, *floats, [&](float item) { put(out, item); });
  } else {
    list(ValueType::string, std::get<std::vector<std::string>>(value), [&](auto& item) { put_text(out, item); });
  }
}

inline void put_half(std::string& out, float value) { put(out, to_f16(value)); }

}  // namespace detail

/// Appends the bytes of whole blocks. Throws Error naming the tensor when a value is not finite, or not in float16
/// where that is what is stored.
inline void encode(std::span<const float> values, Type type, std::string_view name, std::string& out) {
  const auto expect_finite = [&](float value, float stored) {
    if (std::isfinite(stored)) return;
    throw Error(concat("the value ", value, " in tensor '", name, "' is not finite in ",
                       std::isfinite(value) ? "float16, which GGUF files of this type hold" : "any type"));
  };
  for (const float value : values) expect_finite(value, value);
  if (type == Type::f32) {
    for (const float value : values) detail::put(out, value);
    return;
  }
  if (type == Type::f16) {
    for (const float value : values) {
      expect_finite(value, from_f16(to_f16(value)));
      detail::put_half(out, value);
    }
    return;
  }
  QLORA_EXPECTS(values.size() % block_values == 0, values.size(), " values are no whole blocks of ", block_values);
  for (std::size_t begin = 0; begin < values.size(); begin += block_values) {
    const std::span<const float> block = values.subspan(begin, block_values);
    const float largest =
        *std::max_element(block.begin(), block.end(), [](float a, float b) { return std::fabs(a) < std::fabs(b); });
    const float step = type == Type::q8_0 ? std::fabs(largest) / 127.0F : largest / -8.0F;
    const float inverse = step != 0.0F && std::isfinite(1.0F / step) ? 1.0F / step : 0.0F;
    // The product rounded by itself, which compilers would fuse with the sum.
    const auto scaled = [&](float value) { return static_cast<float>(static_cast<double>(value) * inverse); };
    expect_finite(largest, from_f16(to_f16(step)));
    detail::put_half(out, step);
    if (type == Type::q8_0) {
      for (const float value : block) out += static_cast<char>(static_cast<std::int8_t>(std::round(scaled(value))));
      continue;
    }
    const auto nibble = [&](float value) {
      return std::min(15, static_cast<int>(static_cast<std::int8_t>(scaled(value) + 8.5F)));
    };
    for (std::size_t i = 0; i < block_values / 2; ++i)
      out += static_cast<char>(nibble(block[i]) | nibble(block[i + block_values / 2]) << 4);
  }
}

/// Writes one file. Values and tensors are known at the start; the tensors' bytes come in any order and in pieces;
/// finish() makes the file durable under its name. Without finish() nothing is left behind.
class Writer {
 public:
  /// Reserves the file's full size. Throws Error when it cannot be written, and (resource) for a full disk.
  Writer(const std::filesystem::path& path, const Values& values, std::vector<Tensor> tensors)
      : file_(path), tensors_(std::move(tensors)) {
    std::string head = "GGUF";
    detail::put(head, std::uint32_t{3});
    detail::put(head, static_cast<std::uint64_t>(tensors_.size()));
    detail::put(head, static_cast<std::uint64_t>(values.size()));
    for (const auto& [name, value] : values) {
      detail::put_text(head, name);
      detail::put_value(head, value);
    }
    std::uint64_t offset = 0;
    for (const Tensor& tensor : tensors_) {
      detail::put_text(head, tensor.name);
      detail::put(head, static_cast<std::uint32_t>(tensor.shape.size()));
      for (auto length = tensor.shape.rbegin(); length != tensor.shape.rend(); ++length)
        detail::put(head, static_cast<std::uint64_t>(*length));
      detail::put(head, static_cast<std::uint32_t>(tensor.type));
      detail::put(head, offset);
      begins_.push_back(offset);
      offset = aligned(offset + bytes_of(tensor.type, tensor.size()));
    }
    head.resize(aligned(head.size()), '\0');
    for (std::uint64_t& begin : begins_) begin += head.size();
    bytes_ = head.size() + offset;
    file_.reserve(bytes_);
    file_.write_at(0, std::as_bytes(std::span(head)));
    done_.resize(tensors_.size());
  }

  /// The tensors in the file's order.
  [[nodiscard]] const std::vector<Tensor>& tensors() const { return tensors_; }
  /// Of the whole file.
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
  /// Appends values of a tensor, whole blocks. Throws Error as encode() does.
  void append(std::size_t tensor, std::span<const float> values) {
    std::string bytes;
    encode(values, tensors_[tensor].type, tensors_[tensor].name, bytes);
    QLORA_EXPECTS(done_[tensor] + bytes.size() <= bytes_of(tensors_[tensor].type, tensors_[tensor].size()),
                  "more values than tensor '", tensors_[tensor].name, "' has");
    file_.write_at(begins_[tensor] + done_[tensor], std::as_bytes(std::span(bytes)));
    done_[tensor] += bytes.size();
  }
  /// Throws Error naming a tensor that did not come in full.
  void finish() {
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      const std::uint64_t all = bytes_of(tensors_[i].type, tensors_[i].size());
      QLORA_EXPECTS(done_[i] == all, "tensor '", tensors_[i].name, "' has ", done_[i], " of its ", all, " bytes");
      const std::string padding(aligned(begins_[i] + all) - (begins_[i] + all), '\0');
      if (!padding.empty()) file_.write_at(begins_[i] + all, std::as_bytes(std::span(padding)));
    }
    file_.commit();
  }

 private:
  [[nodiscard]] static std::uint64_t aligned(std::uint64_t offset) {
    return (offset + alignment - 1) / alignment * alignment;
  }

  AtomicFile file_;
  std::vector<Tensor> tensors_;
  std::vector<std::uint64_t> begins_;  // in the file
  std::vector<std::uint64_t> done_;    // bytes of each
  std::uint64_t bytes_ = 0;
};

}  // namespace gguf
}  // namespace v0
}  // namespace qlora
