// The memory plan: equal to the bytes that the CPU's arenas hand out, to arithmetic by hand for a published model, and
// usable in static_assert. The layouts beneath it have no gaps and no overlaps.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include "qlora/configs/llama2.hpp"
#include "qlora/cpu.hpp"
#include "qlora/train/trainer.hpp"
#include "small_model.hpp"

using namespace qlora;

// What a user writes beside a config.
static_assert(fits<llama2_7b>(gpu::a10g_24gb, {.batch = 2}));
static_assert(fits<llama2_7b_chat>(gpu::t4_16gb, {.batch = 1}));
static_assert(!fits<llama2_7b>(gpu::t4_16gb, {.batch = 16}));
static_assert(fits<llama2_13b>(gpu::a10g_24gb, {.batch = 1}));
static_assert(!fits<llama2_70b>(gpu::a100_40gb, {.batch = 1, .seq = 128}));
static_assert(fits<llama2_70b>(gpu::h100_80gb, {.batch = 1}));
static_assert(fits<llama2_7b>(gpu::h200_141gb, {.batch = 8, .keep_dequantized = true}));
static_assert(!fits<llama2_7b>(gpu::a10g_24gb, {.batch = 2, .recompute = Recompute::none}));

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
  TrainOptions how{.loss_chunk = 11};
  for (const int threads : {1, 3}) {
    for (const float dropout : {0.0F, 0.1F}) {
      for (const bool keep : {false, true}) {
        for (const Recompute recompute : {Recompute::none, Recompute::cheap, Recompute::block}) {
          for (const int layers : {-1, 0, 2, 9}) {
            how.batch = layers == 0 ? 1 : 3;  // sizes that cache lines divide, and do not
            how.seq = layers == 0 ? 64 : 19;
            how.dropout = dropout;
            how.model.keep_dequantized = keep;
            how.recompute = recompute;
            how.recompute_layers = layers;
            Trainer<C, B> trainer(small_model::weights(C.shape, 1), how, B(threads));
            const Run& run = trainer.core().pass().run();
            const MemoryPlan plan = Pass<code_of(C), B>::plan(C.shape.layers, run, threads);
            CHECK(trainer.core().arena_bytes_used() == plan.total());
            CHECK(trainer.core().pass().arena().used() == trainer.core().pass().arena().size());
            const auto& weights = trainer.model().weights().arena();
            CHECK(weights.used() == weights.size());
          }
        }
      }
    }
  }
}

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

TEST_CASE("arenas hold exactly what the plan says") {
  check_arenas<net, Cpu<float>>();
  check_arenas<some, Cpu<float>>();
  check_arenas<plain, Cpu<float>>();
  check_arenas<full, Cpu<float>>();
  check_arenas<tied_full, Cpu<float>>();
  check_arenas<net, Cpu<double>>();
  check_arenas<net, Cpu<float, Rounding::bf16>>();
}

TEST_CASE("LLaMA-2 7B on a GPU, batch 2 of 2048, by hand") {
  const MemoryPlan plan = memory_plan<llama2_7b>({.batch = 2});
  CHECK(plan[Purpose::nf4_codes] == 3'238'002'688);  // 6,476,005,376 weights in the projections, half a byte each
  CHECK(plan[Purpose::nf4_scales] == 101'187'584 + 1'581'056);  // a byte for 64 of them, a float for 64 * 256
  CHECK(plan[Purpose::embedding_head] == 2 * 262'144'000 + 65 * 4 * 4096);
  CHECK(plan[Purpose::trained] == 4 * 159'907'840);
  CHECK(plan[Purpose::gradients] == 4 * 159'907'840);
  CHECK(plan[Purpose::moments] == 8 * 159'907'840LL);
  CHECK(plan[Purpose::trained_copy] == 2 * 159'907'840);
  // block recompute keeps the stream that enters each of 32 blocks, the last one, the final norm and its statistic
  CHECK(plan[Purpose::activations] == 34LL * 4096 * 4096 * 2 + 4096 * 4);
  CHECK(plan[Purpose::weight_scratch] == 11008 * 4096 * 2);
  CHECK(plan[Purpose::input_scratch] == 4096 * 11008 * 2);
  CHECK(plan[Purpose::dense_linears] == 0);
  CHECK(memory_plan<llama2_7b>({.keep_dequantized = true})[Purpose::dense_linears] == 2 * 6'476'005'376);
  CHECK(memory_plan<llama2_7b>({.dropout = false})[Purpose::input_scratch] == 0);
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
      for (const Proj one : all_projections) {
        if (!contains(config.lora.targets, one)) continue;
        CHECK(claim(taken, layout.a(layer, one), std::int64_t{config.lora.rank} * cols_of(config.shape, one)));
        CHECK(claim(taken, layout.b(layer, one), std::int64_t{config.lora.rank} * rows_of(config.shape, one)));
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
      CHECK(claim(taken, layout.norm(layer, 0), s.dim));
      CHECK(claim(taken, layout.norm(layer, 1), s.dim));
      for (const Proj one : all_projections) CHECK(claim(taken, layout.weight(layer, one), layout.matrix(one)));
    }
    CHECK(claim(taken, layout.final_norm(), s.dim));
    if (!s.tied_embeddings) CHECK(claim(taken, layout.head(), layout.table()));
    CHECK(std::count(taken.begin(), taken.end(), false) == 0);
    CHECK(layout.total() == parameters(s));
  }
}
