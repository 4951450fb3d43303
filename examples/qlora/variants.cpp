// variants.cpp — the list of compiled shapes, and what is said about one that is not in it.
#include <algorithm>
#include <string>

#include "qlora/error.hpp"
#include "variant.hpp"

namespace qlora::program {

std::vector<std::unique_ptr<Variant>>& variants() {
  static std::vector<std::unique_ptr<Variant>> list;
  return list;
}

namespace {

/// The three lines that compile a shape in.
std::string lines_for(const Shape& s, int rank) {
  return qlora::detail::concat(
      "\n    #include \"variant_impl.hpp\"\n    static constexpr qlora::Config mine{.shape = {", s.vocab, ", ", s.dim,
      ", ", s.layers, ", ", s.heads, ", ", s.kv_heads, ", ", s.head_dim, ", ", s.ffn, s.tied_embeddings ? ", true" : "",
      "}, .lora = {.rank = ", rank, "}};\n    static const qlora::program::Registered<mine> registered;");
}

}  // namespace

const Variant& variant_for(const Shape& shape, int rank) {
  const Variant* best = nullptr;
  int highest = 0;
  for (const auto& one : variants()) {
    const Config& config = one->config();
    if (config.shape != shape) continue;
    highest = std::max(highest, config.lora.rank);
    if (config.lora.rank >= rank && (best == nullptr || config.lora.rank < best->config().lora.rank)) {
      best = one.get();
    }
  }
  if (best != nullptr) return *best;
  const std::string what = highest > 0 ? qlora::detail::concat("rank ", rank, " is above ", highest,
                                                               ", the highest compiled in for this model")
                                       : std::string("this model's shape was not compiled in");
  throw Error(what + "; write examples/qlora/variant_mine.cpp with these lines and build again:" +
                  lines_for(shape, std::max(rank, 16)),
              ErrorKind::usage);
}

}  // namespace qlora::program
