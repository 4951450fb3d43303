// qlora/tensor.hpp — a named tensor in host memory, and where named tensors come from.
// The seam between models (which ask for weights by name) and file formats (which have them): neither knows the other.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "qlora/dtype.hpp"
#include "qlora/error.hpp"

namespace qlora {
inline namespace v0 {

/// A non-owning view of a row-major tensor, often in a mapped file. The bytes need not be aligned.
struct TensorRef {
  DType dtype = DType::f32;            ///< type of each element
  std::vector<std::int64_t> shape;     ///< outermost dimension first; empty for a scalar
  std::span<const std::byte> bytes;    ///< size() elements in little-endian order
  std::shared_ptr<const void> keep{};  ///< owns the bytes, which were read for this view; null: their source does

  /// Number of elements: the product of the shape, 1 for a scalar.
  [[nodiscard]] std::int64_t size() const {
    return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
  }
};

/// "(32, 128)"
[[nodiscard, gnu::cold]] inline std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "(";
  for (const std::int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + ")";
}

/// Copies `count` elements from index `first` of a floating tensor into float. Throws Error for integer tensors.
inline void read_floats(const TensorRef& tensor, std::int64_t first, std::span<float> out) {
  const std::size_t width = size_of(tensor.dtype);
  QLORA_EXPECTS(first >= 0 && (static_cast<std::size_t>(first) + out.size()) * width <= tensor.bytes.size(),
                "elements ", first, " to ", static_cast<std::size_t>(first) + out.size(), " of a tensor with ",
                tensor.bytes.size() / width);
  const std::byte* source = tensor.bytes.data() + static_cast<std::size_t>(first) * width;
  const auto each = [&]<class Stored>(Stored, auto convert) {
    for (std::size_t i = 0; i < out.size(); ++i) {
      Stored stored;
      std::memcpy(&stored, source + i * sizeof(Stored), sizeof(Stored));
      out[i] = convert(stored);
    }
  };
  switch (tensor.dtype) {
    case DType::f32:
      std::memcpy(out.data(), source, out.size_bytes());
      return;
    case DType::f16:
      return each(std::uint16_t{}, [](std::uint16_t bits) { return from_f16(bits); });
    case DType::bf16:
      return each(std::uint16_t{}, [](std::uint16_t bits) { return from_bf16(bits); });
    case DType::f64:
      return each(double{}, [](double value) { return static_cast<float>(value); });
    default:
      throw Error(concat("a floating-point tensor is needed, this one holds ", name_of(tensor.dtype)));
  }
}

/// A non-owning view of a matrix that is stored in NF4 with blocks of 64, often in a mapped file; see nf4.hpp. The
/// bytes need not be aligned.
struct Nf4Ref {
  DType state = DType::f32;            ///< what dequantized values are rounded to: the dtype that the weights came in
  std::vector<std::int64_t> shape;     ///< (out, in)
  std::span<const std::byte> codes;    ///< two a byte, element 2j of the flattened matrix in the high nibble
  std::span<const std::byte> absmax;   ///< one a block: a float, or with double quantization a code of 8 bits
  std::span<const std::byte> nested;   ///< a float for 256 codes of absmax; empty: no double quantization
  float offset = 0.0F;                 ///< mean of all absmax; 0 without double quantization
  std::shared_ptr<const void> keep{};  ///< as TensorRef::keep

  /// Whether absmax has codes and not floats.
  [[nodiscard]] bool double_quant() const { return !nested.empty(); }
};

/// Finds a tensor by its Hugging Face name ("model.layers.0.self_attn.q_proj.weight"); empty when there is none.
/// What a TensorRef or Nf4Ref points at must live as long as the source, or as long as their `keep`. Called by one
/// thread at a time, unless who makes it says otherwise.
class TensorSource {
 public:
  using Find = std::function<std::optional<TensorRef>(std::string_view name)>;  ///< of tensors as they are
  using FindNf4 = std::function<std::optional<Nf4Ref>(std::string_view name)>;  ///< of matrices in NF4

  /// Has no tensor, and must be assigned before it is asked.
  TensorSource() = default;
  /// Of tensors that are stored as they are.
  template <class F>
  requires(!std::is_same_v<F, TensorSource> && std::is_invocable_r_v<std::optional<TensorRef>, F&, std::string_view>)
      TensorSource(F find)
      : find_(std::move(find)) {}
  /// The same with matrices in NF4, whose names `find` does not know.
  TensorSource(Find find, FindNf4 find_nf4) : find_(std::move(find)), find_nf4_(std::move(find_nf4)) {}

  /// A tensor that is stored as it is.
  [[nodiscard]] std::optional<TensorRef> operator()(std::string_view name) const { return find_(name); }
  /// A matrix that is stored in NF4.
  [[nodiscard]] std::optional<Nf4Ref> nf4(std::string_view name) const {
    return find_nf4_ ? find_nf4_(name) : std::nullopt;
  }

 private:
  Find find_;
  FindNf4 find_nf4_;
};

}  // namespace v0
}  // namespace qlora
