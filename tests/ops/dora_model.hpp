// tests/ops/dora_model.hpp — models with DoRA on a tested backend: training steps measured as those without
// (steps.hpp), peft's adapter beside its base, and sequences with several adapters in one pass.
#pragma once

#include <cmath>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "generation.hpp"
#include "qlora/io/adapter.hpp"
#include "steps.hpp"
#include "support/scratch.hpp"

namespace dora_model {

using namespace qlora;
using ops::error_of;
using ops::Reference;
using ops::Yardstick;
using steps::First;

[[nodiscard]] inline TrainOptions options(float dropout) {
  TrainOptions how = steps::options();
  how.dora = true;
  how.dropout = dropout;
  return how;
}

/// A run whose magnitudes are not the lengths of rows: those are near 0.8.
template <Config C, class B>
[[nodiscard]] steps::Run<C, B> make_run(B backend, const TrainOptions& how) {
  steps::Run<C, B> run(std::move(backend), how);
  auto& model = run.trainer.model();
  model.weights().for_each_target([&](int layer, Proj proj) {
    std::vector<float> magnitude(static_cast<std::size_t>(rows_of(C.shape, proj)));
    detail::fill_normal(std::to_string(layer) + std::string(name_of(proj)) + "M", 7, 0.15F, magnitude);
    for (float& value : magnitude) value += 0.8F;
    model.weights().own().load_magnitude(model.backend(), layer, proj, magnitude);
  });
  run.trainer.core().measure_rows();
  return run;
}
template <Config C, class B>
[[nodiscard]] First first_step(B backend, const TrainOptions& how) {
  steps::Run<C, B> run = make_run<C>(std::move(backend), how);
  const double loss = run.step().loss;
  return {loss, run.gradients()};
}

template <Config C, class B>
void check_first_step(B backend, float dropout) {
  steps::Run<C, B> run = make_run<C>(std::move(backend), options(dropout));
  steps::check_step(run, first_step<C>(Reference{}, options(dropout)), first_step<C>(Yardstick{}, options(dropout)));
}

template <Config C, class B>
void check_losses(B backend, float dropout) {
  auto exact = make_run<C>(Reference{}, options(dropout));
  auto run = make_run<C>(std::move(backend), options(dropout));
  steps::check_same_losses(exact, run, 30);
}

/// The same bits in every run and whatever is made again; the memory of the plan; resident weights and another split,
/// the same but for rounding.
template <Config C, class B, class Make>
void check_policies(Make&& make, float dropout, const Storage& storage) {
  const First expected = first_step<C>(make(), options(dropout));
  for (const Recompute policy : {Recompute::none, Recompute::cheap, Recompute::block}) {
    TrainOptions how = options(dropout);
    how.recompute = policy;
    auto run = make_run<C>(make(), how);
    CHECK(run.step().loss == expected.loss);
    CHECK(run.gradients() == expected.gradients);
    MemoryPlan plan = memory_plan(run.trainer.model().resolved_config(), run_of(how, false), storage);
    plan[Purpose::context] = plan[Purpose::library] = 0;
    CHECK(run.trainer.core().arena_bytes_used() == plan.total());
  }
  auto run = make_run<C>(make(), options(dropout));
  auto other = make_run<C>(make(), options(dropout));
  for (int step = 0; step < 3; ++step) CHECK(run.step().loss == other.step().loss);
  CHECK(run.state() == other.state());
  const double rounding = 2.0 * error_of(first_step<C>(Yardstick{}, options(dropout)).gradients,
                                         first_step<C>(Reference{}, options(dropout)).gradients);
  TrainOptions how = options(dropout);
  how.model.keep_dequantized = true;
  CHECK(error_of(first_step<C>(make(), how).gradients, expected.gradients) <= rounding);
  how = options(dropout);
  how.batch = 3;
  CHECK(error_of(first_step<C>(make(), how).gradients, expected.gradients) <= rounding);
}

/// The adapter that peft saved, beside its base, by a decoder in pieces: peft's logits. `bound`: relative.
template <class B>
void check_attached(B backend, double bound) {
  const std::filesystem::path folder = std::filesystem::path(QLORA_SOURCE_DIR) / "tests/golden";
  const SafetensorsFile reference(folder / "variants/dora.safetensors");
  constexpr Config config = golden::gqa.with(Lora{.rank = 8});
  const hf::ModelDir directory = hf::ModelDir::open(folder / "gqa/model");
  Model<config, B> model(directory.source(), {}, std::move(backend));
  (void)attach_adapter(model, "dora", folder / "variants/dora", AdapterBase::any);
  model.context().use("dora");
  const std::vector<std::int32_t> ids = golden::ints(reference, "input_ids");
  const std::vector<float> expected = golden::floats(reference, "nf4.logits");
  REQUIRE(ids.size() == 48);
  REQUIRE(expected.size() == 48 * 256);
  using Decoding = Decoder<code_of(config), B>;
  Decoding decoder(model.context(), {.sequences = 1, .length = 64, .step_tokens = 40, .all_logits = true});
  std::vector<float> ours;
  for (const std::size_t piece : {40U, 1U, 3U, 1U, 1U, 2U}) {
    const typename Decoding::Addition next[] = {{0, std::span(ids).subspan(ours.size() / 256, piece)}};
    const std::span<const float> logits = decoder.extend_all(next);
    ours.insert(ours.end(), logits.begin(), logits.end());
  }
  CHECK(golden::relative(ours, expected) <= bound);
}

/// Gives a model a plain adapter of its own and one with lengths of rows named "dora".
template <Config C, class B>
void add_adapters(Model<C, B>& model) {
  const int rank = C.lora.rank;
  small_model::load_random_adapters(model.weights(), model.backend(), C.shape, rank, 16.0F, 6);
  auto set = std::make_shared<AdapterSet<B>>(model.weights().layout());
  small_model::load_random_adapters(*set, model.backend(), C.shape, rank, 16.0F, 8);
  set->for_each([&](int layer, Proj proj) {
    std::vector<float> factors(static_cast<std::size_t>(rows_of(C.shape, proj)));
    detail::fill_normal(std::to_string(layer) + std::string(name_of(proj)) + "F", 9, 0.2F, factors);
    for (float& value : factors) value += 1.0F;
    set->set_row_factors(model.backend(), layer, proj, factors);
  });
  model.attach("dora", set);
}

/// Sequences with DoRA at two strengths, with a plain adapter and without any in one pass: what each has by itself.
/// With one order of sums to the bit, otherwise within `bound`.
template <class B>
void check_mixed(B backend, bool one_order, double bound) {
  constexpr Config net = steps::chat;
  Model<net, B> model(small_model::weights(net.shape, 3), {}, std::move(backend));
  add_adapters(model);
  using Decoding = Decoder<code_of(net), B>;
  using Chosen = typename Context<code_of(net), B>::Adapters;
  auto& context = model.context();
  const std::array<Chosen, 5> choices{context.choice("dora"), context.base(), context.choice("dora", 0.5F),
                                      context.own_choice(), context.choice("dora")};
  constexpr int sequences = choices.size();
  const DecodeLimits limits{.sequences = sequences, .length = 100, .step_tokens = 250, .one_order = one_order};
  Decoding together(context, limits);
  Decoding single(context, limits);
  std::vector<std::int32_t> ids;
  for (int i = 0; i < 200; ++i) ids.push_back(i * 37 % net.shape.vocab);
  std::vector<float> mixed;
  std::vector<float> alone;
  std::size_t done = 0;
  for (const std::size_t piece : {40U, 1U, 1U, 1U, 5U, 1U}) {
    std::vector<AppliedAdapters<B>> applied;
    for (const Chosen& choice : choices) applied.push_back(context.applied(choice));
    std::vector<typename Decoding::Addition> additions;
    for (std::size_t slot = 0; slot < choices.size(); ++slot) {
      additions.push_back(
          {static_cast<int>(slot), std::span<const std::int32_t>(ids).subspan(done + slot * 7, piece), &applied[slot]});
    }
    const std::span<const float> logits = together.extend(additions);
    mixed.insert(mixed.end(), logits.begin(), logits.end());
    for (std::size_t slot = 0; slot < choices.size(); ++slot) {
      const UsingAdapters<code_of(net), B> used(context, choices[slot]);
      const typename Decoding::Addition one[] = {{static_cast<int>(slot), additions[slot].ids}};
      const std::span<const float> expected = single.extend(one);
      alone.insert(alone.end(), expected.begin(), expected.end());
    }
    done += piece;
  }
  CHECK(golden::relative(mixed, alone) <= bound);
  const std::ptrdiff_t row = net.shape.vocab;  // the factors make a difference, and so does the strength
  const auto logits_of = [&](std::ptrdiff_t slot) {
    return std::vector<float>(alone.begin() + slot * row, alone.begin() + (slot + 1) * row);
  };
  CHECK(golden::relative(logits_of(0), logits_of(1)) > 0.1);
  CHECK(golden::relative(logits_of(0), logits_of(2)) > 0.1);
}

/// The words of adapters while they are trained and beside a base, where factors are in B, are the same logits.
template <class B>
void check_trained_decoding(B backend, double bound) {
  constexpr Config net = steps::chat;
  auto run = make_run<net>(std::move(backend), options(0.0F));
  (void)run.step();
  auto& model = run.trainer.model();
  using Decoding = Decoder<code_of(net), B>;
  std::vector<std::int32_t> ids;
  for (int i = 0; i < 60; ++i) ids.push_back(i * 37 % net.shape.vocab);
  const auto logits = [&] {
    Decoding decoder(model.context(), {.sequences = 1, .length = 64, .step_tokens = 50, .all_logits = true});
    std::vector<float> all;
    std::size_t done = 0;
    for (const std::size_t piece : {50U, 1U, 1U, 1U, 7U}) {
      const typename Decoding::Addition next[] = {{0, std::span<const std::int32_t>(ids).subspan(done, piece)}};
      const std::span<const float> some = decoder.extend_all(next);
      all.insert(all.end(), some.begin(), some.end());
      done += piece;
    }
    return all;
  };
  const std::vector<float> trained = logits();
  const test::Scratch scratch;
  write_adapter(scratch / "adapter", model);
  (void)attach_adapter(model, "written", scratch / "adapter", AdapterBase::any);
  model.context().use("written");
  CHECK(golden::relative(logits(), trained) <= bound);
  model.context().use_base();
  CHECK(golden::relative(logits(), trained) > 0.1);
}

}  // namespace dora_model
