// Memory on the GPU: arenas hold exactly what the plan says, a cap refuses with sizes, and steps take nothing.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <algorithm>
#include <cctype>

#include "qlora/cuda.hpp"
#include "qlora/generate/decoder.hpp"
#include "qlora/train/trainer.hpp"
#include "support/arenas.hpp"
#include "support/small_model.hpp"

using namespace qlora;

namespace {

//                                    vocab dim layers heads kv head ffn
constexpr Config net{.shape = /*    */ {72, 128, 3, 4, 2, 32, 192}, .lora = {.rank = 8}};
constexpr Config some = net.with(Lora{.rank = 16, .targets = Proj::q | Proj::up}).with(Quant{.double_quant = false});
constexpr Config tied = [] {
  Config c = net;
  c.shape.tied_embeddings = true;
  return c;
}();
constexpr Config chat{.shape = /*   */ {1536, 256, 2, 8, 4, 32, 704}, .lora = {.rank = 16}};

template <Config C>
void check_arenas() {
  arenas::for_each_options([](const TrainOptions& how) {
    Cuda gpu;
    const std::int64_t before = cuda::device_info(gpu.context()).allocated;
    Trainer<C, Cuda> trainer(small_model::weights(C.shape, 1), how, gpu);
    const MemoryPlan plan = arenas::check_full(trainer, 0);
    CHECK(cuda::device_info(gpu.context()).allocated - before == plan.total());
  });
}

}  // namespace

TEST_CASE("long: arenas hold exactly what the plan says") {
  check_arenas<net>();
  check_arenas<some>();
  check_arenas<tied>();
}

TEST_CASE("a decoder beside a trainer takes exactly what the plan says") {
  Cuda gpu;
  TrainOptions how{.batch = 1, .seq = 64};
  Trainer<chat, Cuda> trainer(small_model::weights(chat.shape, 1), how, gpu);
  for (const DecodeLimits& limits :
       {DecodeLimits{.sequences = 1, .length = 17, .step_tokens = 5},
        DecodeLimits{.sequences = 7, .length = 64, .step_tokens = 33, .all_logits = true}}) {
    const std::int64_t before = cuda::device_info(gpu.context()).allocated;
    const Decoder<code_of(chat), Cuda> decoder(trainer.model().context(), limits);
    CHECK(decoder.arena().used() == decoder.arena().size());
    CHECK(cuda::device_info(gpu.context()).allocated - before == decode_bytes(chat, limits, gpu_storage));
  }
}

TEST_CASE("what a trainer took comes back") {
  Cuda gpu;
  const std::int64_t before = cuda::device_info(gpu.context()).allocated;
  { const Trainer<net, Cuda> trainer(small_model::weights(net.shape, 1), {.batch = 1, .seq = 64}, gpu); }
  CHECK(cuda::device_info(gpu.context()).allocated == before);
}

TEST_CASE("a cap refuses what is too large, with sizes, by the driver's count") {
  const auto used = [] {
    const Cuda gpu;
    return cuda::device_info(gpu.context()).driver_used;
  }();
  Cuda gpu({.memory_cap = used + (std::int64_t{64} << 20)});
  const Trainer<net, Cuda> small(small_model::weights(net.shape, 1), {.batch = 1, .seq = 64}, gpu);  // fits
  std::string message;
  ErrorKind kind = ErrorKind::usage;
  try {
    const Trainer<net, Cuda> large(small_model::weights(net.shape, 1), {.batch = 64, .seq = 4096}, gpu);
  } catch (const Error& error) {
    message = error.what();
    kind = error.kind();
  }
  CAPTURE(message);
  CHECK(kind == ErrorKind::resource);
  CHECK(std::count_if(message.begin(), message.end(), [](unsigned char c) { return std::isdigit(c) != 0; }) >= 4);
  CHECK_THROWS_AS((void)gpu.arena(std::int64_t{1} << 50), Error);
  CHECK_NOTHROW((void)gpu.arena(1 << 20));  // and it goes on
}

TEST_CASE("steps take no memory, by the driver's count") {
  Cuda gpu;
  TrainOptions how{.batch = 2, .seq = 128};
  const small_model::Data data(3, how.seq, chat.shape.vocab, 1, 50);  // two micro-batches, the second smaller
  for (const Recompute policy : {Recompute::none, Recompute::cheap, Recompute::block}) {
    how.recompute = policy;
    Trainer<chat, Cuda> trainer(small_model::weights(chat.shape, 1), how, gpu);
    trainer.step(data.all());
    const cuda::DeviceInfo before = cuda::device_info(gpu.context());
    for (int step = 2; step <= 5; ++step) trainer.step(data.all());
    const cuda::DeviceInfo after = cuda::device_info(gpu.context());
    CHECK(after.driver_used == before.driver_used);
    CHECK(after.allocated == before.allocated);
    CHECK(after.workspace == before.workspace);
  }
}
