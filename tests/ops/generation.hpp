// tests/ops/generation.hpp — the golden hd128 model (the one whose head size GPUs have kernels for) on a tested
// backend:
// logits of bitsandbytes, greedy decoding, and cached decoding against the whole network.
#pragma once

#include "harness.hpp"
#include "qlora/generate/generator.hpp"
#include "support/golden_models.hpp"

namespace generation {

using namespace qlora;

inline constexpr Config net = golden::hd128;
inline constexpr std::size_t vocab = 512;
static_assert(vocab == static_cast<std::size_t>(net.shape.vocab));

/// Logits of every token of (N x 64) ids, in host memory.
template <class B>
[[nodiscard]] std::vector<float> logits_of(Model<net, B>& model, const std::vector<std::int32_t>& ids) {
  Network<code_of(net), B> pass(model.context(), {.batch = 2, .seq = 64, .dropout = false});
  BatchBuilder builder(ids.size());
  pass.forward(builder.build({64, ids, ids, {}}));
  const auto count = static_cast<std::int64_t>(ids.size() * vocab);
  auto arena = model.backend().arena(arena_bytes(count * 4));
  auto* there = arena.template take<typename B::Param>(count);
  pass.logits(there);
  std::vector<float> values(ids.size() * vocab);
  model.backend().download(there, values);
  return values;
}

/// Within 1e-2 of what bitsandbytes computes in bf16 (golden/README.md).
template <class B>
void check_logits(B backend) {
  const golden::Model golden_model("hd128");
  Model<net, B> model(golden_model.directory.source(), {}, std::move(backend));
  const std::vector<float> ours = logits_of(model, golden_model.ints("input_ids"));
  const SafetensorsFile theirs(golden::folder() / "hd128" / "bnb_logits.safetensors");
  CHECK(golden::relative(ours, golden::floats(theirs, "bnb.logits")) < 1e-2);
  CHECK(golden::relative(ours, golden_model.floats("nf4.logits")) < 1e-2);
}

/// A step that a backend may repeat from a recording has the logits of the same step run by itself, to the bit: with
/// one sequence and two, over lengths that need more thread blocks, with adapters of two scales and without, after
/// sequences were cut.
template <class B>
void check_repeated(B backend) {
  const golden::Model golden_model("hd128");
  Model<net, B> model(golden_model.directory.source(), {}, std::move(backend));
  golden::load_adapters(model.weights(), model.backend(), golden_model, "lora.weight.", 8, 16.0F, false);
  using Decoding = Decoder<code_of(net), B>;
  const DecodeLimits limits{.sequences = 2, .length = 530, .step_tokens = 512, .all_logits = true};
  Decoding repeated(model.context(), limits);
  Decoding single(model.context(), limits);
  std::vector<std::int32_t> ids;
  for (int i = 0; i < 530; ++i) ids.push_back(i * 37 % static_cast<int>(vocab));
  const std::span<const std::int32_t> all(ids);
  int different = 0;
  const auto step = [&](std::span<const typename Decoding::Addition> additions) {
    const std::span<const float> a = repeated.extend(additions);
    const std::span<const float> b = single.extend_all(additions);
    different += std::equal(a.begin(), a.end(), b.begin(), b.end()) ? 0 : 1;
  };
  for (const auto& [sequences, start] : {std::pair{1, 250}, std::pair{2, 505}, std::pair{1, 3}}) {
    for (int slot = 0; slot < sequences; ++slot) {
      for (Decoding* decoder : {&repeated, &single}) {
        decoder->clear(slot);
        const typename Decoding::Addition prompt[] = {{slot, all.first(static_cast<std::size_t>(start))}};
        (void)decoder->extend(prompt);
      }
    }
    for (int i = 0; i < 16; ++i) {
      if (i % 5 == 0) model.context().use_own(i % 10 == 0 ? 1.0F : 0.5F);
      if (i == 11) model.context().use_base();
      std::vector<typename Decoding::Addition> additions;
      for (int slot = 0; slot < sequences; ++slot) {
        additions.push_back({slot, all.subspan(static_cast<std::size_t>(start + i - slot), 1)});
      }
      step(additions);
    }
  }
  CHECK(different == 0);
}

/// Sequences with adapters of two scales and without, in one pass: the logits of sequences that have the same by
/// themselves, whole prompts, pieces of them and single tokens, also where the step is repeated. `bound`: relative.
template <class B>
void check_mixed(B backend, double bound) {
  const golden::Model golden_model("hd128");
  Model<net, B> model(golden_model.directory.source(), {}, std::move(backend));
  golden::load_adapters(model.weights(), model.backend(), golden_model, "lora.weight.", 8, 16.0F, false);
  using Decoding = Decoder<code_of(net), B>;
  using Chosen = typename Context<code_of(net), B>::Adapters;
  auto& context = model.context();
  const std::array<Chosen, 5> choices{context.own_choice(), context.base(), context.own_choice(0.5F), context.base(),
                                      context.own_choice(-2.0F)};
  constexpr int sequences = choices.size();
  const DecodeLimits limits{.sequences = sequences, .length = 200, .step_tokens = 400};
  Decoding together(context, limits);
  Decoding single(context, limits);
  std::vector<std::int32_t> ids;
  for (int i = 0; i < 200; ++i) ids.push_back(i * 37 % static_cast<int>(vocab));
  const std::span<const std::int32_t> all(ids);
  std::vector<float> mixed;
  std::vector<float> alone;
  std::size_t done = 0;
  for (const std::size_t piece : {40U, 1U, 1U, 1U, 3U, 30U, 1U, 1U}) {
    std::vector<AppliedAdapters<B>> applied;
    for (const Chosen& choice : choices) applied.push_back(context.applied(choice));
    std::vector<typename Decoding::Addition> additions;
    for (int slot = 0; slot < sequences; ++slot) {
      const auto first = done + static_cast<std::size_t>(slot) * 7;
      additions.push_back({slot, all.subspan(first, piece), &applied[static_cast<std::size_t>(slot)]});
    }
    const std::span<const float> logits = together.extend(additions);
    mixed.insert(mixed.end(), logits.begin(), logits.end());
    for (int slot = 0; slot < sequences; ++slot) {
      const UsingAdapters<code_of(net), B> used(context, choices[static_cast<std::size_t>(slot)]);
      const typename Decoding::Addition one[] = {{slot, additions[static_cast<std::size_t>(slot)].ids}};
      const std::span<const float> expected = single.extend(one);
      alone.insert(alone.end(), expected.begin(), expected.end());
    }
    done += piece;
  }
  CHECK(golden::relative(mixed, alone) <= bound);
  const auto rows = static_cast<std::ptrdiff_t>(vocab);  // adapters make a difference
  const std::vector<float> own(alone.begin(), alone.begin() + rows);
  const std::vector<float> base(alone.begin() + rows, alone.begin() + 2 * rows);
  CHECK(golden::relative(own, base) > 0.1);
}

/// With one order of sums the logits of a sequence have the same bits alone and beside up to 40 others, with adapters
/// of two scales and without: of newest tokens, of pieces of prompts, and of prompts that are cut at other places.
template <class B>
void check_one_order(B backend) {
  const golden::Model golden_model("hd128");
  Model<net, B> model(golden_model.directory.source(), {}, std::move(backend));
  golden::load_adapters(model.weights(), model.backend(), golden_model, "lora.weight.", 8, 16.0F, false);
  using Decoding = Decoder<code_of(net), B>;
  using Chosen = typename Context<code_of(net), B>::Adapters;
  auto& context = model.context();
  const std::array<Chosen, 3> choices{context.own_choice(), context.base(), context.own_choice(0.5F)};
  constexpr int sequences = 41;
  const DecodeLimits limits{.sequences = sequences, .length = 80, .step_tokens = 1700, .one_order = true};
  Decoding together(context, limits);
  Decoding single(context, limits);
  std::vector<std::int32_t> ids;
  for (int i = 0; i < 400; ++i) ids.push_back(i * 37 % static_cast<int>(vocab));
  std::vector<AppliedAdapters<B>> applied;
  // Neighbours have the same adapters, since a pass has few runs of them.
  const auto choice_of = [&](int slot) { return static_cast<std::size_t>(slot * 3 / sequences); };
  for (int slot = 0; slot < sequences; ++slot) applied.push_back(context.applied(choices[choice_of(slot)]));
  int different = 0;
  std::size_t done = 0;
  for (const std::size_t piece : {40U, 1U, 1U, 5U, 1U}) {
    const auto ids_of = [&](int slot) {
      return std::span<const std::int32_t>(ids).subspan(done + static_cast<std::size_t>(slot) * 7, piece);
    };
    for (const int others : {sequences, 3}) {  // the second time in the place of the first
      std::vector<typename Decoding::Addition> additions;
      for (int slot = 0; slot < sequences; slot += sequences / others) {
        if (others != sequences) together.truncate(slot, static_cast<int>(done));
        additions.push_back({slot, ids_of(slot), &applied[static_cast<std::size_t>(slot)]});
      }
      const std::span<const float> logits = together.extend(additions);
      for (std::size_t i = 0; i < additions.size(); ++i) {
        const int slot = additions[i].slot;
        const UsingAdapters<code_of(net), B> used(context, choices[choice_of(slot)]);
        single.truncate(slot, static_cast<int>(done));
        std::span<const std::int32_t> rest = additions[i].ids;
        if (rest.size() > 10) {  // in two pieces of other sizes
          const typename Decoding::Addition front[] = {{slot, rest.first(7)}};
          (void)single.extend(front);
          rest = rest.subspan(7);
        }
        const typename Decoding::Addition one[] = {{slot, rest}};
        const std::span<const float> expected = single.extend(one);
        different += std::equal(expected.begin(), expected.end(), logits.begin() + i * vocab) ? 0 : 1;
      }
    }
    done += piece;
  }
  CHECK(different == 0);
}

/// Every golden token has the largest logit, or one that rounding cannot tell from it; what the generator writes is
/// golden up to the first such tie.
template <class B>
void check_greedy(B backend) {
  const golden::Model golden_model("hd128");
  Model<net, B> model(golden_model.directory.source(), {}, std::move(backend));
  golden::load_adapters(model.weights(), model.backend(), golden_model, "lora.weight.", 8, 16.0F, false);
  const std::vector<std::int32_t> whole = golden_model.ints("lora.greedy");
  REQUIRE(whole.size() == 64);
  std::size_t certain = whole.size();
  {
    Decoder<code_of(net), B> decoder(model.context(), {.sequences = 1, .length = 64, .step_tokens = 24});
    const std::span<const std::int32_t> all(whole);
    for (std::size_t done = 0; done + 1 < whole.size();) {
      const std::size_t piece = done == 0 ? 16 : 1;
      const typename Decoder<code_of(net), B>::Addition addition[] = {{0, all.subspan(done, piece)}};
      const std::span<const float> logits = decoder.extend(addition);
      done += piece;
      const auto expected = static_cast<std::size_t>(whole[done]);
      const auto best = static_cast<std::size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
      double squares = 0.0;
      for (const float value : logits) squares += static_cast<double>(value) * static_cast<double>(value);
      CAPTURE(done);
      // logits are within 1e-2 of float's by norm: a gap of two typical errors can close
      const double typical = 1e-2 * std::sqrt(squares / static_cast<double>(vocab));
      const auto gap = static_cast<double>(logits[best] - logits[expected]);
      CHECK(gap <= 4.0 * typical);
      if (best != expected) certain = std::min(certain, done);
    }
  }
  CHECK(certain > 20);
  Generator<net, B> generator(model, {.sequences = 3, .length = 64, .step_tokens = 24});
  const std::vector<std::int32_t> prompt(whole.begin(), whole.begin() + 16);
  const std::vector<std::vector<std::int32_t>> prompts{prompt, {prompt.begin(), prompt.begin() + 5}, prompt, prompt};
  const auto made = generator.generate(prompts, {.max_new_tokens = 48, .sampling = greedy, .stop_ids = {}});
  for (const std::size_t same : {0U, 2U, 3U}) {
    REQUIRE(made[same].ids.size() == 48);
    CHECK(std::equal(whole.begin() + 16, whole.begin() + static_cast<std::ptrdiff_t>(certain), made[same].ids.begin()));
  }
}

/// Prompts in pieces and beside others: the logits of the whole network.
template <class B>
void check_cached(B backend) {
  const golden::Model golden_model("hd128");
  Model<net, B> model(golden_model.directory.source(), {}, std::move(backend));
  golden::load_adapters(model.weights(), model.backend(), golden_model, "lora.weight.", 8, 16.0F, false);
  const std::vector<std::int32_t> ids = golden_model.ints("input_ids");
  const std::vector<float> whole = logits_of(model, ids);
  Decoder<code_of(net), B> decoder(model.context(), {.sequences = 3, .length = 64, .step_tokens = 90});
  const std::span<const std::int32_t> all(ids);
  std::size_t done = 0;
  for (const std::size_t piece : {1U, 2U, 30U, 1U, 29U, 1U}) {
    const typename Decoder<code_of(net), B>::Addition additions[] = {{2, all.subspan(done, piece)},
                                                                     {0, all.subspan(64, 9)}};
    decoder.clear(0);
    const std::span<const float> logits = decoder.extend(additions);
    done += piece;
    const auto row = [&](std::size_t t) {
      return std::vector<float>(whole.begin() + static_cast<std::ptrdiff_t>(t * vocab),
                                whole.begin() + static_cast<std::ptrdiff_t>((t + 1) * vocab));
    };
    // one row alone, both ways rounded: twice the bound on a whole set of logits
    CHECK(golden::relative(std::vector<float>(logits.begin(), logits.begin() + vocab), row(done - 1)) < 2e-2);
    CHECK(golden::relative(std::vector<float>(logits.begin() + vocab, logits.end()), row(64 + 8)) < 2e-2);
  }
}

}  // namespace generation
