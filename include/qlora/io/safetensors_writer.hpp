// qlora/io/safetensors_writer.hpp — writes safetensors files piece by piece, so that no tensor need fit in memory.
// What may not change: the header's order and spelling. A file written here from the tensors of one that the reference
// implementation wrote has the same bytes (tests/io/safetensors_test.cpp does that with the golden files).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/dtype.hpp"
#include "qlora/error.hpp"
#include "qlora/io/checksum.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/json.hpp"
#include "qlora/io/safetensors.hpp"
#include "qlora/tensor.hpp"

namespace qlora {
inline namespace v0 {

/// What a file is told about a tensor before its bytes come.
struct TensorInfo {
  std::string name;                 ///< unique in its file
  DType dtype = DType::f32;         ///< type of each element
  std::vector<std::int64_t> shape;  ///< outermost dimension first; empty for a scalar
};

namespace detail {

/// Wide types first, so that every tensor is aligned; among equals the reference's order.
[[nodiscard]] constexpr int safetensors_rank(DType type) {
  constexpr DType order[] = {DType::i64, DType::f64, DType::f32, DType::i32, DType::bf16,
                             DType::f16, DType::i16, DType::i8,  DType::u8,  DType::boolean};
  int rank = 0;
  while (order[rank] != type) ++rank;
  return rank;
}

/// Converts to a floating type of the file. Throws Error naming the tensor when a value is not finite in that type.
inline void encode_floats(std::span<const float> values, DType dtype, std::string_view name,
                          std::vector<std::byte>& out) {
  const auto refuse = [&](float value) {
    throw Error(concat("the value ", value, " in tensor '", excerpt(name), "' is not finite in ", name_of(dtype),
                       std::isfinite(value) ? "; write a type with more range" : ""));
  };
  out.resize(values.size() * size_of(dtype));
  const auto each = [&](auto convert, auto is_finite) {
    bool finite = true;
    for (std::size_t i = 0; i < values.size(); ++i) {  // no branch inside, for the compiler's vectors
      const auto stored = convert(values[i]);
      finite &= is_finite(stored);
      std::memcpy(out.data() + i * sizeof stored, &stored, sizeof stored);
    }
    if (finite) return;
    refuse(*std::find_if(values.begin(), values.end(), [&](float value) { return !is_finite(convert(value)); }));
  };
  if (dtype == DType::f16) {
    each([](float value) { return to_f16(value); }, [](std::uint16_t bits) { return (bits & 0x7c00U) != 0x7c00U; });
  } else if (dtype == DType::bf16) {
    each([](float value) { return to_bf16(value); }, [](std::uint16_t bits) { return (bits & 0x7f80U) != 0x7f80U; });
  } else if (dtype == DType::f64) {
    each([](float value) { return static_cast<double>(value); }, [](double value) { return std::isfinite(value); });
  } else {
    each([](float value) { return value; }, [](float value) { return std::isfinite(value); });
  }
}

}  // namespace detail

/// Whether a file states the checksums of its tensors and of its header, in metadata that other programs pass over.
enum class Checksums : std::uint8_t {
  none,    ///< the file has the bytes that the reference implementation writes
  stated,  ///< SafetensorsFile::verify compares them
};

/// Writes one file. The tensors are named at the start; their bytes come in any order and in pieces; finish() makes the
/// file durable under its name. Without finish() nothing is left behind. Different tensors may be written by different
/// threads at once.
class SafetensorsWriter {
 public:
  /// Reserves the file's full size. Throws Error for two equal names, impossible shapes and a full disk.
  SafetensorsWriter(const std::filesystem::path& path, std::vector<TensorInfo> tensors,
                    const std::map<std::string, std::string>& metadata = {{"format", "pt"}},
                    Checksums checksums = Checksums::none)
      : file_(path), metadata_(metadata), checksums_(checksums) {
    std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
      return std::pair(detail::safetensors_rank(a.dtype), std::string_view(a.name)) <
             std::pair(detail::safetensors_rank(b.dtype), std::string_view(b.name));
    });
    std::uint64_t end = 0;
    for (TensorInfo& tensor : tensors) {
      const auto bytes = detail::checked_bytes(tensor.dtype, tensor.shape);
      if (!bytes || tensor.shape.size() > detail::max_safetensors_dims || tensor.name == "__metadata__" ||
          __builtin_add_overflow(end, *bytes, &end)) {
        throw Error(concat(path.string(), ": cannot hold a tensor '", detail::excerpt(tensor.name),
                           "' of this name and shape"));
      }
      std::string name = tensor.name;
      Part part;
      part.info = std::move(tensor);
      part.begin = end - *bytes;
      part.size = *bytes;
      if (checksums == Checksums::stated) part.sum.emplace();
      if (!parts_.emplace(name, std::move(part)).second) {
        throw Error(concat(path.string(), ": two tensors are named '", detail::excerpt(name), "'"));
      }
      order_.push_back(std::move(name));
    }
    if (checksums == Checksums::stated) {  // room for them; finish() knows them
      metadata_[detail::header_sum_key] = std::string(detail::sum_digits, '0');
      metadata_[detail::tensor_sums_key] = std::string(order_.size() * detail::sum_digits, '0');
    }
    const std::string head = header();
    data_begin_ = head.size();
    if (data_begin_ - 8 > detail::max_safetensors_header)
      throw Error(path.string() + ": too many tensors for one file");
    file_.reserve(data_begin_ + end);
    file_.write_at(0, std::as_bytes(std::span(head)));
  }

  /// Writes a piece of a tensor, `offset` bytes into it.
  void write(std::string_view name, std::uint64_t offset, std::span<const std::byte> bytes) {
    Part& part = at(name);
    QLORA_EXPECTS(offset <= part.size && bytes.size() <= part.size - offset, "a piece of ", bytes.size(), " bytes at ",
                  offset, " of tensor '", name, "', which has ", part.size);
    file_.write_at(data_begin_ + part.begin + offset, bytes);
    part.written += bytes.size();
    if (part.sum && part.summed == offset) {
      part.sum->update(bytes);
      part.summed += bytes.size();
    }
  }
  /// Writes all bytes of a tensor.
  void write(std::string_view name, std::span<const std::byte> bytes) { write(name, 0, bytes); }

  /// Writes floats from element `first` on in the tensor's own type. Throws Error for values that it cannot hold.
  void write_floats(std::string_view name, std::uint64_t first, std::span<const float> values) {
    constexpr std::size_t step = 1U << 16;  // the buffer stays in the cache
    const DType dtype = at(name).info.dtype;
    QLORA_EXPECTS(dtype == DType::f16 || dtype == DType::bf16 || dtype == DType::f32 || dtype == DType::f64,
                  "floats for tensor '", name, "', which holds ", name_of(dtype));
    std::vector<std::byte> buffer;
    for (std::size_t i = 0; i < values.size(); i += step) {
      detail::encode_floats(values.subspan(i, std::min(step, values.size() - i)), dtype, name, buffer);
      write(name, (first + i) * size_of(dtype), buffer);
    }
  }

  /// Completes the file. Throws Error when a tensor's bytes did not all come.
  void finish() {
    for (const auto& [name, part] : parts_) {
      QLORA_EXPECTS(part.written == part.size, "tensor '", name, "' of ", file_.path().string(), " got ", part.written,
                    " of its ", part.size, " bytes");
    }
    if (checksums_ == Checksums::stated) state_checksums();
    file_.commit();
  }
  /// True once every byte has been written.
  [[nodiscard]] bool complete() const {
    return std::all_of(parts_.begin(), parts_.end(),
                       [](const auto& entry) { return entry.second.written == entry.second.size; });
  }

 private:
  struct Part {
    TensorInfo info;
    std::uint64_t begin = 0;
    std::uint64_t size = 0;
    std::uint64_t written = 0;
    std::optional<RunningChecksum> sum;  // where checksums are stated
    std::uint64_t summed = 0;            // bytes from the tensor's begin that are in `sum`
  };

  /// Writes the header again, with the checksums in it. Tensors whose pieces came in another order are read back, which
  /// is no loss of safety: commit() compares the file with what was in memory.
  void state_checksums() {
    std::string sums;
    for (const std::string& name : order_) {
      const Part& part = at(name);
      const bool in_order = part.summed == part.size;
      sums += (in_order ? part.sum->value() : file_.checksum_of(data_begin_ + part.begin, part.size)).hex();
    }
    metadata_[detail::tensor_sums_key] = sums;
    std::string head = header();
    const std::string_view text = std::string_view(head).substr(8);
    const std::size_t place = detail::place_of_header_sum(text);
    head.replace(8 + place, detail::sum_digits, detail::header_sum(text, place).hex());
    file_.write_at(0, std::as_bytes(std::span(head)));
  }

  [[nodiscard]] Part& at(std::string_view name) {
    const auto found = parts_.find(name);
    QLORA_EXPECTS(found != parts_.end(), file_.path().string(), " was not told of a tensor '", name, "'");
    return found->second;
  }

  /// Length and JSON text, padded with spaces so that the data begins at a multiple of 8.
  [[nodiscard]] std::string header() const {
    std::string text = "{";
    if (!metadata_.empty()) text += "\"__metadata__\":" + compact(Json(metadata_));
    for (const std::string& name : order_) {
      const Part& part = parts_.find(name)->second;
      text += concat(text.size() > 1 ? "," : "", compact(Json(name)), ":{\"dtype\":\"", name_of(part.info.dtype),
                     "\",\"shape\":", compact(Json(part.info.shape)), ",\"data_offsets\":[", part.begin, ",",
                     part.begin + part.size, "]}");
    }
    text += "}";
    text.resize((text.size() + 7) / 8 * 8, ' ');
    const std::uint64_t length = text.size();
    std::string head(8, '\0');
    std::memcpy(head.data(), &length, 8);
    return head + text;
  }
  [[nodiscard]] static std::string compact(const Json& value) {
    std::string text = json_text(value, -1);
    text.pop_back();  // the line end
    return text;
  }

  AtomicFile file_;
  std::map<std::string, std::string> metadata_;
  Checksums checksums_;
  std::map<std::string, Part, std::less<>> parts_;
  std::vector<std::string> order_;  // as in the file
  std::uint64_t data_begin_ = 0;
};

/// Writes a file from tensors that are all in memory.
inline void write_safetensors(const std::filesystem::path& path,
                              const std::vector<std::pair<std::string, TensorRef>>& tensors,
                              const std::map<std::string, std::string>& metadata = {{"format", "pt"}}) {
  std::vector<TensorInfo> plan;
  plan.reserve(tensors.size());
  for (const auto& [name, tensor] : tensors) plan.push_back({name, tensor.dtype, tensor.shape});
  SafetensorsWriter writer(path, std::move(plan), metadata);
  for (const auto& [name, tensor] : tensors) writer.write(name, tensor.bytes);
  writer.finish();
}

}  // namespace v0
}  // namespace qlora
