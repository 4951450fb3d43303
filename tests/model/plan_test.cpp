// The memory plan: equal to the bytes that the CPU's arenas hand out, to arithmetic by hand for a published model, and
// usable in static_assert. The layouts beneath it have no gaps and no overlaps.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <algorithm>

#include "qlora/configs/llama2.hpp"
#include "qlora/cpu.hpp"
#include "qlora/generate/decoder.hpp"
#include "qlora/train/fits.hpp"
#include "support/arenas.hpp"
#include "support/small_model.hpp"

using namespace qlora;

// What a user writes beside a config, with the options of the trainer.
static_assert(fits<llama2_7b>(gpu::a10g_24gb, {.batch = 2}));
static_assert(FitsInto<training_bytes<llama2_7b>({.batch = 2}), gpu::a10g_24gb.bytes>);
static_assert(fits<llama2_7b_chat>({"16 GB", 15360 * gpu::mib}, {.batch = 1}));
static_assert(!fits<llama2_7b>({"16 GB", 15360 * gpu::mib}, {.batch = 16}));
static_assert(fits<llama2_13b>(gpu::a10g_24gb, {.batch = 1}));
static_assert(!fits<llama2_70b>(gpu::a100_40gb, {.batch = 1, .seq = 128}));
static_assert(fits<llama2_70b>(gpu::h100_80gb, {.batch = 1}));
static_assert(fits<llama2_7b>(gpu::h200_141gb, {.batch = 8, .model = {.keep_dequantized = true}}));
static_assert(!fits<llama2_7b>(gpu::a10g_24gb, {.batch = 2, .recompute = Recompute::none}));
// One default: what a plan assumes is what a trainer does.
static_assert(run_of(TrainOptions{}, false) == Run{});
static_assert(training_bytes<llama2_7b>() == memory_plan<llama2_7b>({}).total());
// The kernels need compute capability 8.0; a T4 has 7.5.
static_assert(std::none_of(gpu::all.begin(), gpu::all.end(),
                           [](const Gpu& card) { return card.name.starts_with("T4"); }));

// A budget decides at compile time, too.
static_assert(choose_recompute(llama2_7b, {.batch = 1}, gpu::h200_141gb.bytes).recompute == Recompute::none);
static_assert(choose_recompute(llama2_7b, {.batch = 8}, gpu::a10g_24gb.bytes).recompute == Recompute::block);

// A plan that is made without a backend's code asks the function that its arenas are made from.
static_assert(storage_of<Cpu<float>>(3) == cpu::storage(3));

namespace {

//                                     vocab dim layers heads kv head ffn
constexpr Config net{.shape = /*    */ {53, 36, 3, 6, 2, 6, 50}, .lora = {.rank = 5}};
constexpr Config some = net.with(Lora{.rank = 7, .targets = Proj::q | Proj::up}).with(Quant{.double_quant = false});
constexpr Config plain = net.with(unquantized);
constexpr Config full = net.with(Trainable::all);
constexpr Config tied_full = [] {
  Config c = full;
  c.shape.tied_embeddings = true;
  return c;
}();

template <Config C, class B>
void check_arenas() {
  for (const int threads : {1, 3}) {
    arenas::for_each_options([&](const TrainOptions& how) {
      Trainer<C, B> trainer(small_model::weights(C.shape, 1), how, B(threads));
      arenas::check_full(trainer, threads);
    });
  }
}

template <Config C, class B>
void check_decoder() {
  for (const int threads : {1, 3}) {
    Model<C, B> model(small_model::weights(C.shape, 1), {}, B(threads));
    for (const DecodeLimits& limits :
         {DecodeLimits{.sequences = 1, .length = 17, .step_tokens = 5},
          DecodeLimits{.sequences = 7, .length = 64, .step_tokens = 33, .all_logits = true}}) {
      const Decoder<code_of(C), B> decoder(model.context(), limits);
      CHECK(decoder.arena().used() == decode_bytes(C, limits, storage_of<B>(threads)));
      CHECK(decoder.arena().size() == decoder.arena().used());
    }
  }
}

template <Config C, class B>
struct Of {
  static constexpr Config config = C;
  using Backend = B;
};

/// Marks [first, first + count) and says whether it was free.
bool claim(std::vector<bool>& taken, std::int64_t first, std::int64_t count) {
  bool free = first >= 0 && first + count <= static_cast<std::int64_t>(taken.size());
  for (std::int64_t i = first; free && i < first + count; ++i) {
    free = !taken[static_cast<std::size_t>(i)];
    taken[static_cast<std::size_t>(i)] = true;
  }
  return free;
}

}  // namespace

TEST_CASE_TEMPLATE("arenas of trainers and decoders hold exactly what the plan says", Planned, Of<net, Cpu<float>>,
                   Of<some, Cpu<float>>, Of<plain, Cpu<float>>, Of<full, Cpu<float>>, Of<tied_full, Cpu<float>>,
                   Of<net, Cpu<double>>, Of<net, Cpu<float, Rounding::bf16>>) {
  check_arenas<Planned::config, typename Planned::Backend>();
  check_decoder<Planned::config, typename Planned::Backend>();
}

TEST_CASE("a trainer with default options takes what the plan of these options says") {
  const TrainOptions how{.seq = 40};
  Trainer<net, Cpu<float>> trainer(small_model::weights(net.shape, 1), how, Cpu<float>(2));
  CHECK(trainer.core().arena_bytes_used() == memory_plan(net, run_of(how, false), cpu::storage(2)).total());
  CHECK(trainer.core().network().run() == Run{.seq = 40});
}

TEST_CASE("probes in the loop of LLaMA-2 7B, 8 of 500 tokens, by hand") {
  const DecodeLimits probes{.sequences = 8, .length = 500, .step_tokens = 512, .all_logits = true};
  // keys and values, 16 bits each; logits of a whole call in 32 bits; rotary tables for 500 positions
  constexpr std::int64_t cache = 32LL * 8 * 500 * 2 * 4096 * 2;
  constexpr std::int64_t logits = 512LL * 32000 * 4;
  constexpr std::int64_t tables = 2LL * 500 * 64 * 4;
  // stream twice, norm with the adapters' room behind it, qkv, attention's output, gate|up, act: elements of a token
  constexpr std::int64_t token = 2LL * 4096 + (4096 + 192) + 12288 + (4096 + 64) + 22016 + (11008 + 64);
  // [W | s B] and A as in training; last rows of 8 sequences; a statistic for each token
  constexpr std::int64_t work = (22016LL * (4096 + 128) + 192 * 4096) * 2 + 8 * 4096 * 2 + 512 * 4;
  // ids that are picked; what a repeated step stages: ids and positions, 24 bytes a sequence of how its id is drawn,
  // and as many in each layer
  constexpr std::int64_t step = 64 + (2 * 32 + 8 * 24 + 32 * 8 * 24);
  CHECK(decode_bytes(llama2_7b, probes, gpu_storage) == cache + logits + tables + 512 * token * 2 + work + step);

  const Run run{.batch = 2};
  Run probed = run;
  probed.probing = probes;
  CHECK(memory_plan<llama2_7b>(probed).total() - memory_plan<llama2_7b>(run).total() ==
        decode_bytes(llama2_7b, probes, gpu_storage));
  // They take the place of activations: more is computed again than without them.
  const std::int64_t budget = gpu::a10g_24gb.bytes;
  CHECK(choose_recompute(llama2_7b, probed, budget).recompute_layers >
        choose_recompute(llama2_7b, run, budget).recompute_layers);
}

TEST_CASE("LLaMA-2 7B on a GPU, batch 2 of 2048, by hand") {
  const MemoryPlan plan = memory_plan<llama2_7b>({.batch = 2});
  CHECK(plan[Purpose::nf4_codes] == 3'238'002'688);  // 6,476,005,376 weights in the projections, half a byte each
  CHECK(plan[Purpose::nf4_scales] == 101'187'584 + 1'581'056);  // a byte for 64 of them, a float for 64 * 256
  CHECK(plan[Purpose::embedding_head] == 2 * 262'144'000 + 65 * 4 * 4096);
  CHECK(plan[Purpose::trained] == 4 * 159'907'840);
  CHECK(plan[Purpose::gradients] == 4 * 159'907'840 + 4 * 159'907'840 / 32);  // and of a layer of a micro-batch
  CHECK(plan[Purpose::moments] == 8 * 159'907'840LL);
  // block recompute keeps the stream that enters each of 32 blocks, the last one, and the statistic of the final norm
  CHECK(plan[Purpose::activations] == 33LL * 4096 * 4096 * 2 + 4096 * 4);
  // [W | s B] of gate and up, and the largest stacked A, that of down (one adapter) or of qkv (three)
  CHECK(plan[Purpose::weight_scratch] == 2 * 11008 * (4096 + 2 * 64) * 2 + 3 * 64 * 4096 * 2);
  CHECK(plan[Purpose::input_scratch] == 0);  // products drop on their way
  CHECK(memory_plan<llama2_7b.with(Lora{.rank = 256})>({.batch = 2})[Purpose::input_scratch] == 4096 * 4096 * 2);
  CHECK(plan[Purpose::dense_linears] == 0);
  CHECK(memory_plan<llama2_7b>({.keep_dequantized = true})[Purpose::dense_linears] ==
        32LL * 2 * (12288 * (4096 + 192) + 4096 * (4096 + 64) + 22016 * (4096 + 128) + 4096 * (11008 + 64)));
  CHECK(memory_plan<llama2_7b>({.dropout = false})[Purpose::input_scratch] == 0);
}

TEST_CASE("the pieces of a workspace lie inside it, apart where they are used together") {
  const auto check = [](const WorkspaceBytes& bytes, const auto& pieces, const WorkspaceNeeds& needs,
                        const std::byte* memory) {
    const auto at = [&](const void* piece) { return static_cast<const std::byte*>(piece) - memory; };
    // One product at a time needs its weight, its adapters and its input; the loss follows when none runs.
    CHECK(at(pieces.linear.weight) == 0);
    CHECK(at(pieces.linear.adapter) == bytes.weight);
    if (bytes.input > 0) CHECK(at(pieces.linear.input) == bytes.weight + bytes.adapter);
    CHECK((pieces.linear.input == nullptr) == (bytes.input == 0));
    CHECK(pieces.loss.chunk == needs.loss_chunk);
    CHECK(at(pieces.loss.rows) == 0);
    CHECK(at(pieces.loss.grads) == bytes.loss_rows);
    CHECK(at(pieces.loss.logits) == 2 * bytes.loss_rows);
    CHECK(at(pieces.loss.logit_grads) == 2 * bytes.loss_rows + (bytes.logit_gradients > 0 ? bytes.logits : 0));
    CHECK(at(pieces.attention) >= std::max(bytes.products(), bytes.loss()));
    CHECK(at(pieces.attention) + pieces.attention_bytes == bytes.total());
  };
  for (const Config& config : {net, some, plain, full}) {
    for (const bool keep : {false, true}) {
      for (const auto& [chunk, products] : {std::pair{1, Products::bf16}, {512, Products::bf16}, {7, Products::fp8}}) {
        Run run{.batch = 3, .seq = 19, .loss_chunk = chunk, .dropout = !keep, .keep_dequantized = keep};
        run.products = keep ? Products::bf16 : products;
        const WorkspaceNeeds needs = workspace_needs(config, run, 3);
        const WorkspaceBytes host = Cpu<float>::workspace_bytes(needs);
        const WorkspaceBytes device = gpu_workspace_bytes(needs);
        std::vector<std::byte> memory(static_cast<std::size_t>(std::max(host.total(), device.total())));
        CHECK(host.total() > 0);
        check(host, Cpu<float>::carve(needs, memory.data()), needs, memory.data());
        check(device, carve_workspace<bf16, float>(device, needs, memory.data()), needs, memory.data());
      }
    }
  }
}

TEST_CASE("recomputation is chosen by memory: the least that fits, and never more with more memory") {
  constexpr std::int64_t step = 250'000'000;
  for (const Config& config : {llama2_7b, llama2_13b, net}) {
    const int layers = config.shape.layers;
    for (const Run& run : {Run{.batch = 2}, Run{.batch = 1, .seq = 512, .dropout = false}}) {
      const auto bytes = [&](Recompute policy, int count) {
        Run other = run;
        other.recompute = policy;
        other.recompute_layers = count;
        return memory_plan(config, other, gpu_storage).total();
      };
      const std::int64_t least = bytes(Recompute::block, layers);
      const std::int64_t most = bytes(Recompute::none, 0);
      // More is recomputed by a stronger policy, then by more layers.
      const auto amount = [&](const Run& chosen) {
        return static_cast<int>(chosen.recompute) * 1000 + chosen.recompute_layers;
      };
      int before = static_cast<int>(Recompute::block) * 1000 + layers;
      for (std::int64_t budget = least; budget < most + step;
           budget += std::max<std::int64_t>(1, (most - least) / 97)) {
        const Run chosen = choose_recompute(config, run, budget);
        CHECK(memory_plan(config, chosen, gpu_storage).total() <= budget);
        CHECK(amount(chosen) <= before);
        before = amount(chosen);
        if (chosen.recompute != Recompute::none && chosen.recompute_layers > 1) {
          CHECK(bytes(chosen.recompute, chosen.recompute_layers - 1) > budget);  // no fewer layers would do
        }
      }
      CHECK(choose_recompute(config, run, most).recompute == Recompute::none);
      CHECK(choose_recompute(config, run, most - 1).recompute != Recompute::none);
      CHECK(choose_recompute(config, run, least).recompute_layers <= layers);
    }
  }
}

TEST_CASE("a budget that nothing fits is refused with what is needed") {
  const Run run{.batch = 64};
  const std::int64_t needed = memory_plan<llama2_70b>(run).total();
  CHECK_NOTHROW((void)choose_recompute(llama2_70b, run, needed));
  try {
    (void)choose_recompute(llama2_70b, run, gpu::a10g_24gb.bytes);
    FAIL("70B in 24 GB");
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::resource);
    const std::string said = error.what();
    CHECK(said.find(std::to_string(needed / 1'000'000'000)) != std::string::npos);
    CHECK(said.find("64 x 2048 tokens") != std::string::npos);
    CHECK(said.find("24.146 GB") != std::string::npos);
  }
}

TEST_CASE("presets: parameters of adapters, and what of a config is code") {
  CHECK(adapter_parameters(llama2_7b.shape, {.rank = 8, .targets = Proj::q | Proj::v}) == 4'194'304);
  CHECK(parameters(llama2_70b_chat.shape) == 68'976'648'192);
  CHECK(code_of(llama2_7b) == code_of(llama2_7b_chat));
  CHECK_FALSE(code_of(llama2_7b) == code_of(llama2_13b));
  CHECK_FALSE(code_of(llama2_7b) == code_of(llama2_7b.with(Lora{.rank = 8})));
  Config deeper = llama2_7b;
  deeper.shape.layers = 40;
  deeper.rope_theta = 1e6F;
  deeper.norm_eps = 1e-6F;
  CHECK(code_of(llama2_7b) == code_of(deeper));
}

TEST_CASE("trained tensors lie behind one another, without gaps or overlaps") {
  const auto check_adapters = [](const Config& config) {
    const TrainedLayout layout{config.shape, config.lora, config.trainable};
    std::vector<bool> taken(static_cast<std::size_t>(layout.total()));
    for (int layer = 0; layer < config.shape.layers; ++layer) {
      for (const Proj proj : all_projections) {
        if (!contains(config.lora.targets, proj)) continue;
        CHECK(claim(taken, layout.a(layer, proj), std::int64_t{config.lora.rank} * cols_of(config.shape, proj)));
        CHECK(claim(taken, layout.b(layer, proj), std::int64_t{config.lora.rank} * rows_of(config.shape, proj)));
      }
    }
    CHECK(std::count(taken.begin(), taken.end(), false) == 0);
    CHECK(layout.total() == adapter_parameters(config.shape, config.lora));
  };
  check_adapters(net);
  for (unsigned targets = 1; targets < 128; ++targets) {
    check_adapters(net.with(Lora{.rank = 3, .targets = static_cast<Proj>(targets)}));
  }
  for (const Config& config : {full, tied_full}) {
    const Shape& s = config.shape;
    const TrainedLayout layout{s, {.rank = 0, .targets = Proj::none}, Trainable::all};
    std::vector<bool> taken(static_cast<std::size_t>(layout.total()));
    CHECK(claim(taken, 0, layout.table()));
    for (int layer = 0; layer < s.layers; ++layer) {
      CHECK(claim(taken, layout.norm(layer, NormBefore::attention), s.dim));
      CHECK(claim(taken, layout.norm(layer, NormBefore::feed_forward), s.dim));
      for (const Proj proj : all_projections) CHECK(claim(taken, layout.weight(layer, proj), layout.matrix(proj)));
    }
    CHECK(claim(taken, layout.final_norm(), s.dim));
    if (!s.tied_embeddings) CHECK(claim(taken, layout.head(), layout.table()));
    CHECK(std::count(taken.begin(), taken.end(), false) == 0);
    CHECK(layout.total() == parameters(s));
  }
}
