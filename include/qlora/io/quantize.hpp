// qlora/io/quantize.hpp — a model directory with the matrices of its layers in NF4, as transformers and bitsandbytes
// write one (io/bnb.hpp); the other tensors stay as they are. Works on the files, tensor by tensor.
// What may not change: the directory appears whole and durable or not at all, and its bytes do not depend on the number
// of threads. A model computes from it with the same bits as from the directory that it was made from.
// Memory: the codes and scales of one file, whose header says how long the states are that only quantizing tells; and
// the largest matrix in float.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/config.hpp"
#include "qlora/cpu/nf4_quantize.hpp"
#include "qlora/error.hpp"
#include "qlora/io/bnb.hpp"
#include "qlora/io/hf_model.hpp"
#include "qlora/io/hf_writer.hpp"
#include "qlora/tensor.hpp"

namespace qlora {
inline namespace v0 {

/// How a quantized model is written.
struct QuantizeOptions {
  bnb::Storage storage{};                         ///< of the matrices
  std::uint64_t max_shard_bytes = 2'000'000'000;  ///< matrices larger than this get a file of their own
  std::filesystem::path tokenizer_from{};         ///< directory whose tokenizer files are copied; empty: none
  std::map<std::string, std::string> files{};     ///< texts of further files by their names
  int threads = 0;                                ///< 0: one per core
  /// Called with 0 when the target is ready and after each tensor of the model with how many are done; false: stop.
  std::function<bool(std::int64_t)> on_tensor{};
  bool replace = false;  ///< take the place of a directory that holds a model alone
};

/// What was written.
struct QuantizeReport {
  std::int64_t tensors = 0;    ///< of the model
  std::int64_t quantized = 0;  ///< those in NF4
};

namespace detail {

/// Quantizes one tensor after the other.
class Quantizer {
 public:
  Quantizer(const hf::ModelDir& model, const std::filesystem::path& out, const QuantizeOptions& options)
      : model_(model),
        options_(options),
        quant_{.double_quant = options.storage.double_quant},
        source_(model.source()),
        tensors_(hf::tensor_names(model.shape)),
        pool_(options.threads),
        writer_(out, writable(model), writing(model)) {}

  QuantizeReport run() {
    QuantizeReport report;
    tell(0);
    std::vector<Matrix> waiting;  // for the rest of their file
    for (std::size_t at = 0; at < tensors_.size(); ++at) {
      const hf::NamedShape& tensor = tensors_[at];
      if (hf::is_projection(tensor.name)) {
        waiting.push_back(quantized(tensor));
        ++report.quantized;
      }
      const std::size_t file = writer_.file_of(tensor.name);
      if (at + 1 == tensors_.size() || writer_.file_of(tensors_[at + 1].name) != file) {
        if (at + 1 == tensors_.size()) state_origin();  // all of the model has been read
        write_file(file, waiting);
        waiting.clear();
      }
      tell(++report.tensors);
    }
    writer_.finish();
    return report;
  }

 private:
  /// A model with a type that ModelWriter knows; the tensors say their own.
  [[nodiscard]] static hf::ModelConfig writable(const hf::ModelDir& model) {
    hf::ModelConfig config = model;
    if (config.dtype == DType::f64) config.dtype = DType::f32;
    return config;
  }

  static constexpr std::int64_t longest_state = 192;  // but for the digits of a shape

  struct Matrix {
    std::string name;
    std::vector<std::uint8_t> codes, absmax8;
    std::vector<float> absmax, nested;
    std::string state;
  };

  [[nodiscard]] Matrix quantized(const hf::NamedShape& tensor) {
    const TensorRef from = source_(tensor.name).value();
    const Nf4Layout layout = Nf4Layout::of(from.size(), quant_);
    const auto expect_finite = [&](std::int64_t first, std::span<const float> values) {
      const auto bad = std::find_if_not(values.begin(), values.end(), [](float value) { return std::isfinite(value); });
      if (bad == values.end()) return;
      throw Error(
          concat(tensor.name, " holds ", *bad, " at index ", first + (bad - values.begin()), ": the model is damaged"));
    };
    values_.resize(static_cast<std::size_t>(from.size()));
    constexpr std::int64_t step = 1 << 20;
    for (std::int64_t first = 0; first < from.size(); first += step) {
      const auto piece = std::span(values_).subspan(static_cast<std::size_t>(first),
                                                    static_cast<std::size_t>(std::min(step, from.size() - first)));
      read_floats(from, first, piece);
      expect_finite(first, piece);
    }
    Matrix matrix;
    matrix.name = tensor.name;
    matrix.codes.resize(static_cast<std::size_t>(layout.code_bytes));
    matrix.absmax.resize(static_cast<std::size_t>(layout.blocks));
    float offset = 0.0F;
    Nf4Target to{.codes = matrix.codes.data(), .absmax = matrix.absmax.data()};
    if (layout.nested > 0) {
      matrix.absmax8.resize(static_cast<std::size_t>(layout.blocks));
      matrix.nested.resize(static_cast<std::size_t>(layout.nested));
      to.absmax8 = matrix.absmax8.data();
      to.nested = matrix.nested.data();
      to.offset = &offset;
    }
    cpu::quantize_nf4(pool_, values_, quant_, to);
    if (layout.nested > 0) matrix.absmax = {};
    matrix.state = bnb::state_text(from.dtype, tensor.shape[0], tensor.shape[1],
                                   layout.nested > 0 ? std::optional(offset) : std::nullopt);
    return matrix;
  }

  void state_origin() {
    std::map<std::string, std::string> origin{{bnb::origin_key, model_.fingerprint()}};
    if (const std::string sum = model_.checksum(); !sum.empty()) origin[bnb::origin_checksum_key] = sum;
    writer_.describe(origin);
  }
  /// Writes all tensors of a file.
  void write_file(std::size_t file, const std::vector<Matrix>& matrices) {
    for (const Matrix& matrix : matrices) {
      writer_.reshape(matrix.name + std::string(bnb::state_suffix), {static_cast<std::int64_t>(matrix.state.size())});
    }
    for (const Matrix& matrix : matrices) {
      const auto write = [&](std::string_view suffix, const auto& values) {
        writer_.write_bytes(matrix.name + std::string(suffix), std::as_bytes(std::span(values)));
      };
      write("", matrix.codes);
      write(".quant_map", nf4::codebook);
      write(bnb::state_suffix, matrix.state);
      if (matrix.nested.empty()) {
        write(".absmax", matrix.absmax);
      } else {
        write(".absmax", matrix.absmax8);
        write(".nested_absmax", matrix.nested);
        write(".nested_quant_map", nf4::dynamic8);
      }
    }
    for (const hf::NamedShape& tensor : tensors_) {
      if (hf::is_projection(tensor.name) || writer_.file_of(tensor.name) != file) continue;
      writer_.write_bytes(tensor.name, source_(tensor.name).value().bytes);
    }
    writer_.finish_file(file);
  }

  [[nodiscard]] hf::ModelWriter::Options writing(const hf::ModelDir& model) const {
    hf::ModelWriter::Options writing{.max_shard_bytes = options_.max_shard_bytes,
                                     .tokenizer_from = options_.tokenizer_from,
                                     .files = options_.files,
                                     .config = model.file,
                                     .replace = options_.replace};
    writing.config["quantization_config"] = bnb::storage_json(options_.storage);
    for (const hf::NamedShape& tensor : tensors_) writing.tensors.push_back(stored(model, tensor));
    return writing;
  }
  /// The tensors that stand for one of the model.
  [[nodiscard]] std::vector<TensorInfo> stored(const hf::ModelDir& model, const hf::NamedShape& tensor) const {
    const DType type = model.stored_type(tensor.name);
    if (!hf::is_projection(tensor.name)) return {{tensor.name, type, tensor.shape}};
    if (type != DType::f16 && type != DType::bf16 && type != DType::f32) {
      throw Error(concat(model.path.string(), ": the tensor '", tensor.name, "' holds ", ::qlora::name_of(type),
                         "; bitsandbytes quantizes F16, BF16 and F32: store the model in one of them first"));
    }
    const Nf4Layout layout = Nf4Layout::of(tensor.shape[0] * tensor.shape[1], quant_);
    const bool twice = layout.nested > 0;
    std::vector<TensorInfo> all;
    for (std::string& name : bnb::part_names(tensor.name, twice)) all.push_back({std::move(name), DType::f32, {}});
    all[0].dtype = DType::u8;
    all[0].shape = {layout.code_bytes, 1};
    all[1].dtype = twice ? DType::u8 : DType::f32;
    all[1].shape = {layout.blocks};
    all[2].shape = {static_cast<std::int64_t>(nf4::codebook.size())};
    if (twice) {
      all[3].shape = {layout.nested};
      all[4].shape = {static_cast<std::int64_t>(nf4::dynamic8.size())};
    }
    all.back().dtype = DType::u8;
    all.back().shape = {longest_state};  // until it is known
    return all;
  }

  void tell(std::int64_t done) const {
    if (options_.on_tensor && !options_.on_tensor(done)) {
      throw Error("interrupted while quantizing; nothing was written", ErrorKind::interrupted);
    }
  }

  const hf::ModelDir& model_;
  const QuantizeOptions& options_;
  Quant quant_;
  TensorSource source_;
  std::vector<hf::NamedShape> tensors_;
  cpu::ThreadPool pool_;
  std::vector<float> values_;  // of the matrix at hand
  hf::ModelWriter writer_;
};

}  // namespace detail

/// Writes the quantized model. Throws Error, with nothing left behind, when the model is quantized already or in a type
/// that bitsandbytes does not quantize, a value is not finite, or the disk is full.
inline QuantizeReport quantize_model(const hf::ModelDir& model, const std::filesystem::path& out,
                                     const QuantizeOptions& options = {}) {
  if (model.nf4) throw Error(model.path.string() + " is in 4 bits already");
  return detail::Quantizer(model, out, options).run();
}

}  // namespace v0
}  // namespace qlora
