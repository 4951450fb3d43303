// qlora/run/exporting_options.hpp — how a model is written for other programs; see options.hpp.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "qlora/run/option.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// A format of other programs.
enum class ExportFormat : std::uint8_t { gguf };
template <>
inline constexpr std::array names_of<ExportFormat>{std::string_view("gguf")};

/// Type of the matrices in a GGUF file.
enum class GgufType : std::uint8_t { f16, q8_0, q4_0 };
template <>
inline constexpr std::array names_of<GgufType>{std::string_view("f16"), std::string_view("q8_0"),
                                               std::string_view("q4_0")};

/// How a model is written for other programs.
struct Exporting {
  ExportFormat to = ExportFormat::gguf;
  GgufType type = GgufType::f16;
};

template <>
struct Table<Exporting> {
  static constexpr std::string_view title = "Exporting";
  static constexpr std::string_view section = "";
  static constexpr std::string_view verbs = "export";
  static constexpr auto options = std::to_array<Option<Exporting>>({
      {.name = "to", .member = choice<&Exporting::to>, .help = "Format: gguf, the one of llama.cpp"},
      {.name = "type",
       .member = choice<&Exporting::type>,
       .help = "Type of a model's matrices; with q4_0 embedding and head are q8_0. Adapters are float"},
  });
};
static_assert(well_formed<Exporting>());

}  // namespace run
}  // namespace v0
}  // namespace qlora
