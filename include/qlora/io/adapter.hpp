// qlora/io/adapter.hpp — the adapters of a model as a PEFT directory:
//   write_adapter(dir, trainer.model());   read_adapter(model, dir);   attach_adapter(model, "legal", dir);
// Rank, alpha, rank stabilisation and targets are those of the model's adapters, so a directory cannot say another
// scale than the one that was trained with.
#pragma once

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <list>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "qlora/cpu/merge.hpp"
#include "qlora/cpu/threads.hpp"
#include "qlora/io/peft.hpp"
#include "qlora/model/model.hpp"

namespace qlora {
inline namespace v0 {

/// What an adapter directory says beside its adapters; see PeftConfig.
struct AdapterNotes {
  float dropout = 0;               ///< rate that it was trained with
  std::string base_model{};        ///< name or path of the base; may be empty
  std::string revision{};          ///< of the base; may be empty
  std::string base_fingerprint{};  ///< hf::ModelDir::fingerprint() of the base; empty: the model's
  std::string base_checksum{};     ///< hf::ModelDir::checksum() of the base; empty: not stated
};

namespace detail {

struct PlacedAdapter {
  int layer = 0;
  Proj proj = Proj::none;
  AdapterState state;
};

/// The first of those that occur most often.
template <class Value>
[[nodiscard]] Value most_common(std::span<const PlacedAdapter> adapters, Value AdapterState::*member) {
  Value best{};
  std::ptrdiff_t most = 0;
  for (const PlacedAdapter& adapter : adapters) {
    const Value value = adapter.state.*member;
    const auto times = std::count_if(adapters.begin(), adapters.end(),
                                     [&](const PlacedAdapter& other) { return other.state.*member == value; });
    if (times > most) {
      most = times;
      best = value;
    }
  }
  return best;
}

/// The config of these adapters: the most common rank and alpha, and patterns for the others.
[[nodiscard]] inline PeftConfig peft_config(std::span<const PlacedAdapter> adapters, const AdapterNotes& notes) {
  PeftConfig config{.r = most_common(adapters, &AdapterState::rank),
                    .alpha = most_common(adapters, &AdapterState::alpha),
                    .dropout = notes.dropout,
                    .rslora = most_common(adapters, &AdapterState::rank_stabilized),
                    .targets = Proj::none,
                    .base_model = notes.base_model,
                    .revision = notes.revision,
                    .base_fingerprint = notes.base_fingerprint,
                    .base_checksum = notes.base_checksum};
  for (const auto& [layer, proj, state] : adapters) {
    const std::string module = module_name(layer, proj);
    if (state.rank == 0) throw Error(concat("the adapter of ", module, " was never set"), ErrorKind::usage);
    if (state.rank_stabilized != config.rslora) {
      throw Error(concat("only some adapters are rank-stabilised, not that of ", module,
                         "; one adapter directory cannot say both"),
                  ErrorKind::usage);
    }
    config.targets = config.targets | proj;
    if (state.rank != config.r) config.rank_pattern[module] = state.rank;
    if (state.alpha != config.alpha) config.alpha_pattern[module] = state.alpha;
  }
  return config;
}

}  // namespace detail

/// Writes what the adapters of a model hold now, without the padding up to the rank cap. Throws Error: (usage) when an
/// adapter was never set or a training step is running, (resource) when the directory cannot be written, and as
/// write_peft does.
template <Config C, class B>
requires(C.trainable == Trainable::adapters) void write_adapter(const std::filesystem::path& dir,
                                                                const Model<C, B>& model,
                                                                const AdapterNotes& notes = {}) {
  const Reading reading(model.weights().own_gate());
  const Shape& s = model.resolved_config().shape;
  std::vector<detail::PlacedAdapter> adapters;
  model.weights().for_each_target([&](int layer, Proj proj) {
    adapters.push_back({layer, proj, model.weights().adapter(layer, proj)});
  });
  PeftConfig config = detail::peft_config(adapters, notes);
  config.dora = model.weights().layout().dora;
  if (config.base_fingerprint.empty()) config.base_fingerprint = model.base_fingerprint();
  std::list<std::vector<float>> values;  // what the tensors point to
  std::vector<PeftTensor> tensors;
  for (const auto& [layer, proj, state] : adapters) {
    std::vector<float>& a = values.emplace_back();
    std::vector<float>& b = values.emplace_back();
    model.weights().save_adapter(model.backend(), layer, proj, a, b);
    tensors.push_back({lora_name(layer, proj, 'A'), {state.rank, cols_of(s, proj)}, a});  // (r, in)
    tensors.push_back({lora_name(layer, proj, 'B'), {rows_of(s, proj), state.rank}, b});  // (out, r)
    if (!config.dora) continue;
    std::vector<float>& m = values.emplace_back();
    model.weights().own().save_magnitude(model.backend(), layer, proj, m);
    tensors.push_back({lora_name(layer, proj, 'M'), {rows_of(s, proj)}, m});
  }
  write_peft(dir, config, tensors);
}

/// Throws Error (input), naming what does not fit, when a model of this config cannot hold the adapter whole. `config`
/// has no dynamic number: Model::resolved_config(). Reads no values: those are checked when they are loaded.
inline void check_adapter(const PeftAdapter& adapter, const Config& config) {
  const Shape& s = config.shape;
  if (adapter.embedding || adapter.head) {
    throw Error(concat(adapter.path.string(), " has ", adapter.embedding ? "an embedding table" : "a head",
                       " of its own (modules_to_save), which is not computed beside a base; merge it (qlora merge) and "
                       "use that model"));
  }
  expect_layers(adapter, s.layers);
  for (const Proj proj : all_projections) {
    if (contains(adapter.targets, proj) && !contains(config.lora.targets, proj)) {
      throw Error(concat(adapter.path.string(), " adapts ", name_of(proj),
                         ", which is no target of the code that runs this model"));
    }
  }
  if (const int rank = highest_rank(adapter); rank > config.lora.rank) {
    throw Error(concat(adapter.path.string(), " has rank ", rank, "; the code that runs this model holds ranks up to ",
                       config.lora.rank));
  }
  const TensorSource source = adapter.source();
  for (const std::string& name : adapter.names()) {
    const auto place = detail::lora_place(name).value();  // PeftAdapter::open has looked
    const std::int64_t rank = rank_of(adapter, place.layer, place.proj);
    std::vector<std::int64_t> expected{rows_of(s, place.proj)};
    if (place.matrix == 'A') expected = {rank, cols_of(s, place.proj)};
    if (place.matrix == 'B') expected.push_back(rank);
    const std::vector<std::int64_t> actual = source(name).value().shape;
    if (actual != expected) {
      throw Error(concat(adapter.path.string(), ": ", name, " has shape ", shape_text(actual), ", this model needs ",
                         shape_text(expected)));
    }
  }
}

/// Which adapters a model takes.
enum class AdapterBase : std::uint8_t {
  same,  ///< those that were trained on its weights, as far as both are known
  any,   ///< all that fit
};

namespace detail {
/// Throws Error (input): the output would be nonsense without any other sign.
inline void expect_same_base(const PeftAdapter& adapter, const std::string& fingerprint, AdapterBase base) {
  if (base == AdapterBase::any || adapter.base_fingerprint.empty() || fingerprint.empty()) return;
  if (adapter.base_fingerprint == fingerprint) return;
  throw Error(concat(adapter.path.string(), " was trained on other weights than those of this model",
                     adapter.base_model.empty() ? "" : ", in " + adapter.base_model));
}
/// A matrix of an adapter as floats; empty when the adapter does not have it. Throws Error for a NaN or an infinity.
[[nodiscard]] inline std::vector<float> finite_floats(const PeftAdapter& adapter, const std::string& name) {
  const auto tensor = adapter.source()(name);
  if (!tensor) return {};
  std::vector<float> values(static_cast<std::size_t>(tensor->size()));
  read_floats(*tensor, 0, values);
  if (!std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); })) {
    throw Error(concat(adapter.path.string(), ": ", name, " holds a NaN or an infinity"));
  }
  return values;
}

/// One adapter as AdapterSet::load takes it.
struct LoadedAdapter {
  int layer = 0;
  Proj proj = Proj::none;
  int rank = 1;
  float alpha = 0;
  std::vector<float> a{};  ///< (rank, in)
  std::vector<float> b{};  ///< (out, rank)
  std::vector<float> m{};  ///< (out), magnitudes; empty: no DoRA
};

/// Reads an adapter that check_adapter has let through, each matrix once: use(LoadedAdapter&&) for every target of the
/// layout, with zeros for those that the adapter does not have. Throws Error for values that are not finite.
template <class Use>
void for_each_adapter(const PeftAdapter& adapter, const TrainedLayout& layout, Use&& use) {
  const Shape& shape = layout.shape;
  for (int layer = 0; layer < shape.layers; ++layer) {
    for (const Proj proj : all_projections) {
      if (!contains(layout.lora.targets, proj)) continue;
      LoadedAdapter loaded{layer, proj, rank_of(adapter, layer, proj), alpha_of(adapter, layer, proj)};
      loaded.a = finite_floats(adapter, lora_name(layer, proj, 'A'));
      loaded.b = finite_floats(adapter, lora_name(layer, proj, 'B'));
      if (adapter.dora) loaded.m = finite_floats(adapter, lora_name(layer, proj, 'M'));
      if (loaded.a.empty()) {
        loaded.rank = 1;
        loaded.a.assign(static_cast<std::size_t>(cols_of(shape, proj)), 0.0F);
        loaded.b.assign(static_cast<std::size_t>(rows_of(shape, proj)), 0.0F);
      }
      use(std::move(loaded));
    }
  }
}

template <class B>
void load(AdapterSet<B>& set, B& backend, const LoadedAdapter& loaded, bool rank_stabilized) {
  set.load(backend, loaded.layer, loaded.proj, loaded.rank, loaded.alpha, rank_stabilized, loaded.a, loaded.b);
}

/// What DoRA multiplies rows by: magnitudes over the lengths of the rows of W + s B A; `w` (N,K) becomes the latter.
[[nodiscard]] inline std::vector<float> dora_factors(cpu::ThreadPool& pool, const LoadedAdapter& loaded, float scale,
                                                     std::vector<float>& w) {
  const std::size_t rows = loaded.m.size();
  const std::size_t cols = w.size() / rows;
  const MergeAdapter adapter{
      .cols = static_cast<int>(cols), .rank = loaded.rank, .scale = scale, .a = loaded.a, .b = loaded.b};
  std::vector<float> factors(rows);
  cpu::for_ranges(pool, static_cast<std::int64_t>(rows), 16, [&](std::int64_t first, std::int64_t last, int) {
    const auto begin = static_cast<std::size_t>(first);
    const auto end = static_cast<std::size_t>(last);
    cpu::add_adapter(adapter, static_cast<int>(first), std::span<float>(w.data() + begin * cols, (end - begin) * cols));
    for (std::size_t row = begin; row < end; ++row) {
      factors[row] = cpu::dora_factor(loaded.m[row], std::span<const float>(w.data() + row * cols, cols));
    }
  });
  return factors;
}
/// Loads an adapter with DoRA for generating: its factors are those of these weights, and stay.
template <class Weights, class B>
void load_dora(AdapterSet<B>& set, const Weights& weights, B& backend, cpu::ThreadPool& pool, LoadedAdapter& loaded,
               bool rank_stabilized) {
  std::vector<float> w = weights.dense_weight(backend, loaded.layer, loaded.proj);
  const std::vector<float> factors =
      dora_factors(pool, loaded, lora_scale(loaded.alpha, loaded.rank, rank_stabilized), w);
  const auto rank = static_cast<std::size_t>(loaded.rank);
  for (std::size_t i = 0; i < loaded.b.size(); ++i) loaded.b[i] *= factors[i / rank];
  load(set, backend, loaded, rank_stabilized);
  set.set_row_factors(backend, loaded.layer, loaded.proj, factors);
}
}  // namespace detail

/// Loads an adapter as the model's own. Modules that it does not adapt get zeros; one with DoRA needs a model that was
/// opened to train it, and the lengths of its rows are measured by a trainer (TrainerCore::measure_rows). Throws Error
/// as check_adapter does or when it was trained on other weights, with the model as it was, and (usage) while the
/// model's own adapters or its context are in use.
template <Config C, class B>
requires(C.trainable == Trainable::adapters) void read_adapter(Model<C, B>& model, const PeftAdapter& adapter,
                                                               AdapterBase base = AdapterBase::same) {
  detail::expect_same_base(adapter, model.base_fingerprint(), base);
  check_adapter(adapter, model.resolved_config());
  if (adapter.dora && !model.weights().layout().dora) {
    throw Error(concat(adapter.path.string(),
                       " is an adapter with DoRA (use_dora), and the model was not opened to train one "
                       "(TrainOptions::dora); attach it beside the model's own (attach_adapter), or merge it"));
  }
  if (!adapter.dora && model.weights().layout().dora) {
    throw Error(concat(adapter.path.string(),
                       " is an adapter without DoRA (use_dora), and the model was opened to train one with it; leave "
                       "TrainOptions::dora out"));
  }
  std::vector<detail::LoadedAdapter> all;  // nothing of the model changes before all of it is read
  detail::for_each_adapter(adapter, model.weights().layout(),
                           [&](detail::LoadedAdapter&& loaded) { all.push_back(std::move(loaded)); });
  const auto entry = model.context().enter_training();
  for (const detail::LoadedAdapter& loaded : all) {
    detail::load(model.weights().own(), model.backend(), loaded, adapter.rslora);
    if (loaded.m.empty()) continue;
    model.weights().own().load_magnitude(model.backend(), loaded.layer, loaded.proj, loaded.m);
  }
}
/// The same from a path; the result is what its files say. Throws Error also when it is no adapter directory.
template <Config C, class B>
requires(C.trainable == Trainable::adapters) PeftAdapter
    read_adapter(Model<C, B>& model, const std::filesystem::path& dir, AdapterBase base = AdapterBase::same) {
  PeftAdapter adapter = PeftAdapter::open(dir);
  read_adapter(model, adapter, base);
  return adapter;
}

/// Holds an adapter under a name, beside the model's own and others, in memory of its own; generators and scorers may
/// run meanwhile in their contexts. Throws Error as check_adapter does or when it was trained on other weights, and
/// (usage) when the name is empty or taken, or while the model's context is in use.
template <Config C, class B>
requires(C.trainable == Trainable::adapters) void attach_adapter(Model<C, B>& model, const std::string& name,
                                                                 const PeftAdapter& adapter,
                                                                 AdapterBase base = AdapterBase::same) {
  model.weights().expect_free(name);
  detail::expect_same_base(adapter, model.base_fingerprint(), base);
  check_adapter(adapter, model.resolved_config());
  TrainedLayout layout = model.weights().layout();
  layout.dora = false;  // what is not trained has its magnitudes in B and in factors
  auto set = std::make_shared<AdapterSet<B>>(layout);
  {
    const auto entry = model.context().enter();
    cpu::ThreadPool pool(adapter.dora ? 0 : 1);
    detail::for_each_adapter(adapter, set->layout(), [&](detail::LoadedAdapter&& loaded) {
      if (loaded.m.empty()) return detail::load(*set, model.backend(), loaded, adapter.rslora);
      detail::load_dora(*set, model.weights(), model.backend(), pool, loaded, adapter.rslora);
    });
  }
  model.attach(name, std::move(set));
}
/// The same from a path, and what its files say. Throws Error also when it is no adapter directory.
template <Config C, class B>
requires(C.trainable == Trainable::adapters) PeftAdapter
    attach_adapter(Model<C, B>& model, const std::string& name, const std::filesystem::path& dir,
                   AdapterBase base = AdapterBase::same) {
  PeftAdapter adapter = PeftAdapter::open(dir);
  attach_adapter(model, name, adapter, base);
  return adapter;
}

}  // namespace v0
}  // namespace qlora
