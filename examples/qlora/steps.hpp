// steps.hpp — what verbs need of steps.cpp beside the steps themselves.
#pragma once

#include <filesystem>
#include <string>

#include "qlora/run/options.hpp"

namespace qlora {
inline namespace v0 {
namespace run {
struct Comparison;
}  // namespace run
}  // namespace v0
}  // namespace qlora

namespace qlora::program {

/// What the page of `qlora compare` says of how its answers were made. Paths may be empty.
struct PageSettings {
  std::filesystem::path model;
  std::filesystem::path adapter;
  std::filesystem::path merged;
  std::filesystem::path full;
  run::Sampling sampling;
};

/// Writes the page, with the curves of the training that made the adapter, if its record lies beside it.
void write_page(const std::filesystem::path& file, const run::Comparison& comparison, const PageSettings& settings);

/// A line for each config that this program holds, for `qlora --version`.
std::string configs_text();

}  // namespace qlora::program
