// qlora/model/adapters.hpp — adapters on all targets of a model: matrices in backend memory, rank and scale of each.
// A model holds its own set, which a trainer changes, and others by name. Sets of one model have one layout, so that
// any of them runs on the same code.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "qlora/backend.hpp"
#include "qlora/model/access.hpp"
#include "qlora/model/layout.hpp"
#include "qlora/rng.hpp"

namespace qlora {
inline namespace v0 {

/// Rank and scale of some adapters, other than the rest's.
struct AdapterOverride {
  int layer = -1;            ///< -1: every layer
  Proj targets = Proj::all;  ///< projections that it is for
  int rank = 0;              ///< 0: that of the rule
  float alpha = 0.0F;        ///< 0: that of the rule
};

/// How adapters are set up at run time. The scale of B A is alpha / r, or alpha / sqrt(r) when rank-stabilised.
struct AdapterRule {
  int rank = 0;                              ///< 0: the cap of the config
  float alpha = 16.0F;                       ///< numerator of the scale
  bool rank_stabilized = false;              ///< the scale is alpha / sqrt(r)
  std::vector<AdapterOverride> overrides{};  ///< where several fit, the last one counts
};

/// Rank, alpha and scale of one adapter. Rank 0: it was never set.
struct AdapterState {
  int rank = 0;                  ///< columns of A that are not padding
  float alpha = 0.0F;            ///< numerator of the scale
  float scale = 0.0F;            ///< what B A is multiplied by
  bool rank_stabilized = false;  ///< scale is alpha / sqrt(rank)
  bool has_row_factors = false;  ///< see AdapterSet::row_factors
  bool has_magnitude = false;    ///< its magnitudes were set, or began as the lengths of rows
};

/// Adapters of a model, padded with zeros up to its rank cap. Takes memory when it is first set. Const members may be
/// called by any number of threads at once; the others, and reading values(), need the gate.
template <class B>
class AdapterSet {
 public:
  /// What matrices are stored in.
  using Param = typename B::Param;

  /// No memory yet, and nothing set.
  explicit AdapterSet(const TrainedLayout& layout)
      : layout_(layout), states_(static_cast<std::size_t>(layout.shape.layers) * all_projections.size()) {}
  AdapterSet(const AdapterSet&) = delete;
  AdapterSet& operator=(const AdapterSet&) = delete;

  /// Where the matrices lie in values().
  [[nodiscard]] const TrainedLayout& layout() const { return layout_; }
  /// A and B of all targets as `layout` says: (layout().total()); null until the set is first set.
  [[nodiscard]] Param* values() { return values_; }
  /// The same, to read.
  [[nodiscard]] const Param* values() const { return values_; }
  /// Whether there is something to apply.
  [[nodiscard]] bool is_set() const { return values_ != nullptr; }
  /// Rank and scale of one adapter.
  [[nodiscard]] const AdapterState& state(int layer, Proj proj) const { return states_[slot(layer, proj)]; }
  /// Held while the matrices are read or written.
  [[nodiscard]] AccessGate& gate() const { return gate_; }
  /// Bytes of backend memory.
  [[nodiscard]] std::int64_t bytes() const {
    return (arena_ ? arena_->used() : 0) + (factor_arena_ ? factor_arena_->used() : 0);
  }
  /// Of an adapter with DoRA what rows of the frozen product are multiplied by (N); null: nothing.
  [[nodiscard]] const Param* row_factors(int layer, Proj proj) const {
    return state(layer, proj).has_row_factors ? row_factors_ + row_index(layer, proj) : nullptr;
  }
  /// Of trained adapters with DoRA 1 / |W + s B A| of each row (N), which is in row_factors() and not in B; else null.
  /// Throws Error (usage) when A or B have changed since the rows were measured.
  [[nodiscard]] const Param* inverse_lengths(int layer, Proj proj) const {
    if (!layout_.dora) return nullptr;
    expect_measured();
    return inverse_lengths_ + row_index(layer, proj);
  }
  /// Whether rows have the lengths that were measured last. Of adapters without DoRA always.
  [[nodiscard]] bool is_measured() const { return measured_; }
  /// Says that A or B are others now.
  void rows_changed() { measured_ = !layout_.dora; }
  /// Magnitudes (out) of an adapter that load() has set, which else begin as the lengths of its rows.
  void load_magnitude(B& backend, int layer, Proj proj, std::span<const float> magnitude) {
    QLORA_EXPECTS(layout_.dora && static_cast<int>(magnitude.size()) == rows_of(layout_.shape, proj), magnitude.size(),
                  " magnitudes for ", rows_of(layout_.shape, proj), " rows of adapters ",
                  layout_.dora ? "with" : "without", " DoRA");
    backend.upload(magnitude, values_ + layout_.magnitude(layer, proj));
    states_[slot(layer, proj)].has_magnitude = true;
    rows_changed();
  }
  /// The magnitudes (out) of one adapter with DoRA.
  void save_magnitude(const B& backend, int layer, Proj proj, std::vector<float>& magnitude) const {
    magnitude.resize(static_cast<std::size_t>(rows_of(layout_.shape, proj)));
    backend.download(values_ + layout_.magnitude(layer, proj), magnitude);
  }
  /// Where a measurement of rows goes.
  [[nodiscard]] RowLengths<Param> measuring(B& backend, int layer, Proj proj) {
    take_row_memory(backend, 2);
    inverse_lengths_ = row_factors_ + row_index(layout_.shape.layers, Proj::none);
    AdapterState& state = states_[slot(layer, proj)];
    state.has_row_factors = true;
    const std::int64_t at = row_index(layer, proj);
    return {values_ + layout_.magnitude(layer, proj), !std::exchange(state.has_magnitude, true), inverse_lengths_ + at,
            row_factors_ + at};
  }
  /// All rows were measured.
  void set_measured() { measured_ = true; }

  /// Ranks and scales from a rule, A Kaiming-uniform (a = sqrt 5, so within 1 / sqrt(in)), B zero. The values depend on
  /// seed, layer, projection, row and column alone, so the rank cap does not show in them.
  /// Throws Error when an override is for no adapter of the model, or a rank is above the cap.
  void init(B& backend, const AdapterRule& rule, std::uint64_t seed) {
    for (const AdapterOverride& special : rule.overrides) expect_used(special);
    take_memory(backend);
    for_each([&](int layer, Proj proj) {
      int rank = rule.rank != 0 ? rule.rank : layout_.lora.rank;
      float alpha = rule.alpha;
      for (const AdapterOverride& special : rule.overrides) {
        if ((special.layer >= 0 && special.layer != layer) || !contains(special.targets, proj)) continue;
        if (special.rank != 0) rank = special.rank;
        if (special.alpha > 0.0F) alpha = special.alpha;
      }
      set_state(layer, proj, rank, alpha, rule.rank_stabilized);
      const int in = cols_of(layout_.shape, proj);
      const float bound = 1.0F / std::sqrt(static_cast<float>(in));
      std::vector<float> a(static_cast<std::size_t>(layout_.lora.rank) * static_cast<std::size_t>(in), 0.0F);
      for (int r = 0; r < rank; ++r) {
        for (int c = 0; c < in; ++c) {
          const auto words =
              philox({static_cast<std::uint32_t>(c), static_cast<std::uint32_t>(r), static_cast<std::uint32_t>(layer),
                      use_word(RandomUse::adapter_init, static_cast<std::uint32_t>(proj))},
                     seed);
          a[static_cast<std::size_t>(r * in + c)] = (2.0F * unit_float(words[0]) - 1.0F) * bound;
        }
      }
      // The upload waits, so that B is zero for other streams too when this is done.
      backend.zero(values_ + layout_.b(layer, proj), std::int64_t{rows_of(layout_.shape, proj)} * layout_.lora.rank);
      backend.upload(a, values_ + layout_.a(layer, proj));
    });
  }

  /// Sets one adapter from A (rank, in) and B (out, rank); what is left up to the cap becomes zero.
  void load(B& backend, int layer, Proj proj, int rank, float alpha, bool rank_stabilized, std::span<const float> a,
            std::span<const float> b) {
    QLORA_EXPECTS(contains(layout_.lora.targets, proj), name_of(proj),
                  " has an adapter, but is no target of this model");
    const auto in = static_cast<std::size_t>(cols_of(layout_.shape, proj));
    const auto out = static_cast<std::size_t>(rows_of(layout_.shape, proj));
    const AdapterState before = state(layer, proj);
    set_state(layer, proj, rank, alpha, rank_stabilized);
    const auto r = static_cast<std::size_t>(rank);
    if (a.size() != r * in || b.size() != out * r) {
      states_[slot(layer, proj)] = before;
      throw Error(concat("adapter of layer ", layer, " ", name_of(proj), " has ", a.size(), " and ", b.size(),
                         " values, rank ", rank, " needs ", r * in, " and ", out * r));
    }
    take_memory(backend);
    const auto cap = static_cast<std::size_t>(layout_.lora.rank);
    std::vector<float> padded(cap * in, 0.0F);
    std::copy(a.begin(), a.end(), padded.begin());
    backend.upload(padded, values_ + layout_.a(layer, proj));
    padded.assign(out * cap, 0.0F);
    for (std::size_t row = 0; row < out; ++row) {
      for (std::size_t col = 0; col < r; ++col) padded[row * cap + col] = b[row * r + col];
    }
    backend.upload(padded, values_ + layout_.b(layer, proj));
  }

  /// Gives an adapter that load() has set row factors (out), which its B has in it already.
  void set_row_factors(B& backend, int layer, Proj proj, std::span<const float> factors) {
    QLORA_EXPECTS(static_cast<int>(factors.size()) == rows_of(layout_.shape, proj), factors.size(), " factors for ",
                  rows_of(layout_.shape, proj), " rows");
    take_row_memory(backend, 1);
    backend.upload(factors, row_factors_ + row_index(layer, proj));
    states_[slot(layer, proj)].has_row_factors = true;
  }

  /// One adapter without its padding: A (rank, in), B (out, rank).
  void save(const B& backend, int layer, Proj proj, std::vector<float>& a, std::vector<float>& b) const {
    const auto in = static_cast<std::size_t>(cols_of(layout_.shape, proj));
    const auto out = static_cast<std::size_t>(rows_of(layout_.shape, proj));
    const auto rank = static_cast<std::size_t>(state(layer, proj).rank);
    const auto cap = static_cast<std::size_t>(layout_.lora.rank);
    a.resize(rank * in);
    b.resize(out * rank);
    if (rank == 0) return;
    backend.download(values_ + layout_.a(layer, proj), a);
    std::vector<float> padded(out * cap);
    backend.download(values_ + layout_.b(layer, proj), padded);
    for (std::size_t row = 0; row < out; ++row) {
      for (std::size_t col = 0; col < rank; ++col) b[row * rank + col] = padded[row * cap + col];
    }
  }

  /// Calls visit(layer, projection) for every adapter.
  template <class Visit>
  void for_each(Visit&& visit) const {
    for (int layer = 0; layer < layout_.shape.layers; ++layer) {
      for (const Proj proj : all_projections) {
        if (contains(layout_.lora.targets, proj)) visit(layer, proj);
      }
    }
  }

 private:
  [[nodiscard]] static std::size_t slot(int layer, Proj proj) {
    const auto at = std::find(all_projections.begin(), all_projections.end(), proj) - all_projections.begin();
    return static_cast<std::size_t>(layer) * all_projections.size() + static_cast<std::size_t>(at);
  }
  /// Index of an adapter's row factors; of one past the last layer, their number.
  [[nodiscard]] std::int64_t row_index(int layer, Proj proj) const {
    return layer * layout_.magnitudes(Proj::none) + (proj == Proj::none ? 0 : layout_.magnitudes(proj));
  }
  void take_row_memory(B& backend, int arrays) {
    if (factor_arena_) return;
    const std::int64_t all = arrays * row_index(layout_.shape.layers, Proj::none);
    factor_arena_.emplace(backend.arena(arena_bytes(all * static_cast<std::int64_t>(sizeof(Param)))));
    row_factors_ = factor_arena_->template take<Param>(all);
  }
  void expect_measured() const {
    if (measured_) return;
    throw Error(
        "adapters with DoRA were set and the lengths of their rows not measured since; call measure_rows() of the "
        "trainer's core",
        ErrorKind::usage);
  }
  void take_memory(B& backend) {
    if (values_ != nullptr) return;
    arena_.emplace(backend.arena(arena_bytes(layout_.total() * static_cast<std::int64_t>(sizeof(Param)))));
    values_ = arena_->template take<Param>(layout_.total());
  }
  void expect_used(const AdapterOverride& special) const {
    QLORA_EXPECTS(special.layer >= -1 && special.layer < layout_.shape.layers, "an override for adapters of layer ",
                  special.layer, "; the model has layers 0 to ", layout_.shape.layers - 1);
    for (const Proj proj : all_projections) {
      if (contains(special.targets, proj) && contains(layout_.lora.targets, proj)) return;
    }
    throw Error(concat("an override for adapters of ", names_of(special.targets), "; this model has those of ",
                       names_of(layout_.lora.targets)),
                ErrorKind::usage);
  }
  void set_state(int layer, Proj proj, int rank, float alpha, bool rank_stabilized) {
    QLORA_EXPECTS(rank > 0 && rank <= layout_.lora.rank, "rank ", rank, " for layer ", layer, " ", name_of(proj),
                  " is outside 1 to ", layout_.lora.rank, ", the cap of this model");
    states_[slot(layer, proj)] = {rank, alpha, lora_scale(alpha, rank, rank_stabilized), rank_stabilized};
    rows_changed();
  }

  TrainedLayout layout_;
  std::vector<AdapterState> states_;
  std::optional<typename B::Arena> arena_;
  std::optional<typename B::Arena> factor_arena_;
  Param* values_ = nullptr;
  Param* row_factors_ = nullptr;
  Param* inverse_lengths_ = nullptr;
  bool measured_ = true;
  mutable AccessGate gate_;
};

/// The adapters that a pass through the network applies; no set: the base, to the bit.
template <class B>
struct AppliedAdapters {
  const AdapterSet<B>* set = nullptr;  ///< the matrices
  float scale = 1.0F;                  ///< times the scale of each adapter
};
/// Neighbouring rows of a pass, and what it applies to them.
template <class B>
struct AdaptedRows {
  int first = 0;                  ///< row
  int count = 0;                  ///< rows
  AppliedAdapters<B> adapters{};  ///< with a set
};

}  // namespace v0
}  // namespace qlora
