// qlora/run/export.hpp — a model, or an adapter, as a file of other programs. io/gguf_model.hpp has the file.
#pragma once

#include "qlora/run/options.hpp"
#include "qlora/run/prebuilt.hpp"
#include "qlora/run/progress.hpp"
#include "qlora/run/steps.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// Writes the file `request.out`: the model with its tokenizer and chat template, or with an adapter that alone, for
/// use beside the model's file. Throws Error: (input) for an adapter of other weights, a tokenizer or a rotary
/// embedding that llama.cpp does not have, and a value that the type cannot hold, (usage) when the file would replace
/// one of the model's, (resource) when it cannot be written, (interrupted) when progress asks to stop.
QLORA_STEP ExportResult export_model(const ExportRequest& request, Progress& progress);

}  // namespace run
}  // namespace v0
}  // namespace qlora

#ifdef QLORA_STEP_CODE  // prebuilt.hpp
#include <cstdint>
#include <filesystem>
#include <string>
#include <system_error>

#include "qlora/error.hpp"
#include "qlora/io/gguf_model.hpp"
#include "qlora/io/hf_model.hpp"
#include "qlora/run/adapter.hpp"
#include "qlora/text/gguf_vocab.hpp"

namespace qlora {
inline namespace v0 {
namespace run {
namespace detail {

[[nodiscard]] constexpr gguf::Type type_of(GgufType type) {
  return type == GgufType::f16 ? gguf::Type::f16 : type == GgufType::q8_0 ? gguf::Type::q8_0 : gguf::Type::q4_0;
}

}  // namespace detail

QLORA_STEP ExportResult export_model(const ExportRequest& request, Progress& progress) {
  const hf::ModelDir model = hf::ModelDir::open(request.model, verify_of(request.device));
  for (const std::filesystem::path& read : {request.model, request.adapter}) {
    std::error_code absent;
    const std::filesystem::path folder = request.out.has_parent_path() ? request.out.parent_path() : ".";
    if (!read.empty() && std::filesystem::exists(request.out, absent) &&
        std::filesystem::equivalent(folder, read, absent)) {
      throw Error(request.out.string() + " is a file of what is exported; choose another --out", ErrorKind::usage);
    }
  }
  const auto on_tensor = [&](std::int64_t done) {
    if (done == 0) progress.begin("export", 0, "tensors");
    if (done > 0) progress.update(done);
    return !progress.stop_requested();
  };
  gguf::Report report;
  if (request.adapter.empty()) {
    report = gguf::write_model(model, detail::type_of(request.exporting.type),
                               gguf::tokenizer_values(model.path, model.shape.vocab, model.bos_token_id), request.out,
                               on_tensor);
  } else {
    const PeftAdapter adapter = open_adapter(request.adapter, model, request.any_base, verify_of(request.device));
    report = gguf::write_adapter(model, adapter, request.out, on_tensor);
  }
  progress.end(std::to_string(report.tensors) + " tensors");
  return {.tensors = report.tensors, .bytes = static_cast<std::int64_t>(report.bytes), .path = request.out};
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
#endif  // QLORA_STEP_CODE
