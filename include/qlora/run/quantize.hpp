// qlora/run/quantize.hpp — a model with the matrices of its layers in NF4, as transformers and bitsandbytes read it.
// io/quantize.hpp has the files.
#pragma once

#include "qlora/run/options.hpp"
#include "qlora/run/prebuilt.hpp"
#include "qlora/run/progress.hpp"
#include "qlora/run/steps.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// Writes the model directory `request.out`, with generation_config.json, licences and the tokenizer of the model, and
/// a tokenizer.json where that has none (files_beside_weights). Throws Error: (input) for a model that cannot be
/// quantized, (usage) when `out` is that model, (resource) when the directory cannot be written, (interrupted) when
/// progress asks to stop.
QLORA_STEP QuantizeResult quantize(const QuantizeRequest& request, Progress& progress);

}  // namespace run
}  // namespace v0
}  // namespace qlora

#ifdef QLORA_STEP_CODE  // prebuilt.hpp
#include <cstdint>
#include <filesystem>
#include <string>
#include <system_error>

#include "qlora/error.hpp"
#include "qlora/io/hf_model.hpp"
#include "qlora/io/quantize.hpp"
#include "qlora/run/adapter.hpp"
#include "qlora/text/tokenizer_directory.hpp"

namespace qlora {
inline namespace v0 {
namespace run {
namespace detail {

[[nodiscard]] constexpr DType dtype_of(ComputeType type) {
  return type == ComputeType::bf16 ? DType::bf16 : type == ComputeType::f16 ? DType::f16 : DType::f32;
}

}  // namespace detail

QLORA_STEP QuantizeResult quantize(const QuantizeRequest& request, Progress& progress) {
  const hf::ModelDir model = hf::ModelDir::open(request.model, verify_of(request.device));
  std::error_code absent;
  if (std::filesystem::equivalent(request.out, request.model, absent)) {
    throw Error(request.out.string() + " is the model to be quantized; choose another --out", ErrorKind::usage);
  }
  const auto tensors = static_cast<std::int64_t>(hf::tensor_names(model.shape).size());
  const QuantizeReport report =
      quantize_model(model, request.out,
                     {.storage = {.double_quant = !request.quantizing.no_double_quant,
                                  .compute = detail::dtype_of(request.quantizing.compute_dtype)},
                      .max_shard_bytes = static_cast<std::uint64_t>(request.quantizing.shard_bytes),
                      .tokenizer_from = request.model,
                      .files = files_beside_weights(request.model),
                      .threads = request.device.threads,
                      .on_tensor = [&](std::int64_t done) {
                        if (done == 0) progress.begin("quantize", tensors, "tensors");
                        if (done > 0) progress.update(done);
                        return !progress.stop_requested();
                      }});
  const hf::ModelDir written = hf::ModelDir::open(request.out);  // what was written must open as a model again
  progress.end(std::to_string(report.quantized) + " weights in NF4");
  return {.tensors = report.tensors,
          .quantized = report.quantized,
          .double_quant = written.nf4.value().double_quant,
          .path = request.out};
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
#endif  // QLORA_STEP_CODE
