// qlora/run/quantizing_options.hpp — how a model is written in 4 bits; see options.hpp.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "qlora/run/option.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// The type that transformers multiplies a model in 4 bits in.
enum class ComputeType : std::uint8_t { bf16, f16, f32 };
template <>
inline constexpr std::array names_of<ComputeType>{std::string_view("bf16"), std::string_view("f16"),
                                                  std::string_view("f32")};

/// How a model is written in NF4.
struct Quantizing {
  bool no_double_quant = false;
  ComputeType compute_dtype = ComputeType::bf16;
  std::int64_t shard_bytes = 2'000'000'000;
};

template <>
struct Table<Quantizing> {
  static constexpr std::string_view title = "Quantizing";
  static constexpr std::string_view section = "";
  static constexpr std::string_view verbs = "quantize";
  static constexpr auto options = std::to_array<Option<Quantizing>>({
      {.name = "no_double_quant",
       .member = &Quantizing::no_double_quant,
       .help = "Keep the scales in float: 0.5 bits a weight instead of 0.127"},
      {.name = "compute_dtype",
       .member = choice<&Quantizing::compute_dtype>,
       .help = "Type that config.json tells transformers to multiply in; it changes no weight"},
      {.name = "shard_bytes",
       .member = &Quantizing::shard_bytes,
       .help = "Size limit of one weight file, which is in memory while it is made",
       .range = {1 << 20, 1e12},
       .unit = "bytes"},
  });
};
static_assert(well_formed<Quantizing>());

}  // namespace run
}  // namespace v0
}  // namespace qlora
