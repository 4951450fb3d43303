// Ranks that share a step give the bits of one process: losses, norms, parameters, moments, checkpoints and errors. Run
// by mpirun with 2 and 4 processes; what they are compared with, one of them has trained alone.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <cstring>
#include <filesystem>
#include <set>
#include <utility>

#include "qlora/cpu.hpp"
#include "qlora/dist/mpi.hpp"
#include "qlora/io/trainer.hpp"
#include "qlora/train/trainer.hpp"
#include "support/scratch.hpp"
#include "support/small_model.hpp"

using namespace qlora;

namespace {

using B = Cpu<float>;
//                                         vocab dim layers heads kv head ffn: 66,048 trained numbers, five tiles of the
// norm, of which the last of four ranks has none; adapters of the second config end within a tile of two ranks
constexpr Config five_tiles{.shape = /* */ {256, 128, 3, 8, 2, 16, 352}, .lora = {.rank = 10}};
constexpr Config four_tiles{.shape = /* */ {256, 128, 3, 8, 2, 16, 352}, .lora = {.rank = 8}};
constexpr Config all_weights = Config{.shape = {200, 96, 3, 4, 2, 24, 160}}.with(Trainable::all);
constexpr int seq = 24;

Comm& world() {
  static const std::unique_ptr<dist::MpiComm> comm = dist::MpiComm::open(dist::launch_of(dist::process_environment));
  return *comm;
}
const small_model::Data& data() {
  static const small_model::Data windows(14, seq, 200, 1, 20);
  return windows;
}
TrainOptions options() {
  return {.alpha = 12.0F,  // over the rank: no power of two, so that rounding of the scale would show
          .dropout = 0.1F,
          .lr = 5e-3F,
          .schedule = Schedule::cosine,
          .warmup_steps = 1,
          .total_steps = 12,
          .weight_decay = 0.01F,
          .max_grad_norm = 0.05F,
          .batch = 2,
          .seq = seq,
          .loss_chunk = 30};
}
/// Windows of a step: of 7 micro-batches, of 5 with an odd last one, of 1, of 4.
Windows windows_of(int step) {
  constexpr int counts[] = {14, 9, 2, 8};
  return data().all().slice(0, counts[step % 4]);
}

struct Outcome {
  std::vector<double> losses, norms, layers;
  std::vector<std::vector<float>> state;  // trained, both moments
};
template <class AnyTrainer>
std::vector<std::vector<float>> state_of(AnyTrainer& trainer) {
  std::vector<std::vector<float>> state;
  trainer.core().for_each_state(
      [&](const std::string&, const float* values, std::int64_t count) { state.emplace_back(values, values + count); });
  return state;
}
template <class AnyTrainer>
Outcome run(AnyTrainer& trainer, int steps) {
  Outcome outcome;
  while (trainer.core().steps_done() < steps) {
    const StepReport report = trainer.step(windows_of(trainer.core().steps_done()));
    outcome.losses.push_back(report.loss);
    outcome.norms.push_back(report.grad_norm);
    const std::vector<double> norms = trainer.core().layer_gradient_norms();
    outcome.layers.insert(outcome.layers.end(), norms.begin(), norms.end());
  }
  outcome.state = state_of(trainer);
  return outcome;
}
/// What rank 0 makes of `make`; the others wait.
template <class Make>
Outcome from_first(const Make& make) {
  std::string text;
  const auto put = [&](const void* data, std::size_t bytes) { text.append(static_cast<const char*>(data), bytes); };
  const auto put_all = [&](const auto& numbers) {
    const std::size_t count = numbers.size();
    put(&count, sizeof count);
    put(numbers.data(), count * sizeof numbers[0]);
  };
  if (world().rank() == 0) {
    const Outcome made = make();
    for (const auto* numbers : {&made.losses, &made.norms, &made.layers}) put_all(*numbers);
    for (const auto& array : made.state) put_all(array);
  }
  text = world().broadcast(text);
  std::size_t at = 0;
  const auto get_all = [&](auto& numbers) {
    std::size_t count = 0;
    std::memcpy(&count, text.data() + at, sizeof count);
    numbers.resize(count);
    std::memcpy(numbers.data(), text.data() + at + sizeof count, count * sizeof numbers[0]);
    at += sizeof count + count * sizeof numbers[0];
  };
  Outcome outcome;
  for (auto* numbers : {&outcome.losses, &outcome.norms, &outcome.layers}) get_all(*numbers);
  while (at < text.size()) get_all(outcome.state.emplace_back());
  return outcome;
}
/// To the bit, so that -0 is not 0.
void expect_same(const Outcome& expected, const Outcome& got) {
  CHECK(got.losses == expected.losses);
  CHECK(got.norms == expected.norms);
  CHECK(got.layers == expected.layers);
  REQUIRE(got.state.size() == expected.state.size());
  for (std::size_t i = 0; i < got.state.size(); ++i) {
    CAPTURE(i);
    REQUIRE(got.state[i].size() == expected.state[i].size());
    CHECK(std::memcmp(got.state[i].data(), expected.state[i].data(), got.state[i].size() * 4) == 0);
  }
}

template <Config C>
Trainer<C, B> make(TrainOptions how, Comm* comm) {
  how.comm = comm;
  return Trainer<C, B>(small_model::weights(C.shape, 3), how, B(comm == nullptr ? 2 : 1));
}
template <Config C>
void check_same(const TrainOptions& how) {
  const Outcome expected = from_first([&] {
    auto alone = make<C>(how, nullptr);
    return run(alone, 5);
  });
  CHECK(expected.losses[4] < expected.losses[0]);  // the windows of step 0 again
  CHECK(expected.norms[0] > 0.05);                 // so it is clipped
  auto shared = make<C>(how, &world());
  CHECK(shared.core().ranks() == world().size());
  CHECK(shared.core().arena_bytes_used() ==
        memory_plan(shared.model().resolved_config(),
                    run_of(shared.core().options(), shared.model().keeps_dequantized()), cpu::storage(1))
            .total());
  expect_same(expected, run(shared, 5));
}

/// A folder that all ranks know.
std::filesystem::path shared_folder(const char* name) {
  const std::string path = world().broadcast(
      (std::filesystem::temp_directory_path() / concat("mpi_trainer_test-", ::getpid(), "-", name)).string());
  return path;
}

}  // namespace

TEST_CASE("gradients are added in the order of micro-batches, in as many messages as it takes") {
  const TrainedLayout layout{five_tiles.shape, five_tiles.lora, five_tiles.trainable};
  const std::int64_t total = layout.total();
  for (const std::int64_t message : {std::int64_t{9'000}, std::int64_t{16'384}, total}) {
    for (const int micro_batches : {1, 4, 7}) {
      CAPTURE(message);
      CAPTURE(micro_batches);
      std::vector<std::vector<float>> gradients;
      for (int m = 0; m < micro_batches; ++m) {
        gradients.emplace_back(static_cast<std::size_t>(total));
        qlora::detail::fill_normal("gradient", static_cast<std::uint64_t>(m), 1.0F, gradients.back());
      }
      B b(1);
      auto arena = b.arena(64 << 20);
      qlora::detail::RankSums<B> sums(world(), b, arena, layout, message);
      sums.begin(micro_batches);
      for (int round = 0; round < sums.rounds(); ++round) {
        const int m = sums.micro_batch(round);
        sums.add(round, gradients[static_cast<std::size_t>(std::min(m, micro_batches - 1))].data());
      }
      std::vector<float> whole(static_cast<std::size_t>(total), -1.0F);
      sums.collect(whole.data());
      std::int64_t wrong = 0;
      for (std::size_t i = 0; i < whole.size(); ++i) {
        float sum = 0.0F;
        for (const auto& gradient : gradients) sum += gradient[i];
        wrong += whole[i] != sum ? 1 : 0;
      }
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("ranks that share a step give the bits of one process") {
  check_same<five_tiles>(options());
  check_same<four_tiles>(options());
}

TEST_CASE("also with parts that have their own rates, which begin within a shard") {
  TrainOptions how = options();
  how.groups = {{.part = "lora_B", .lr_scale = 4.0F}, {.part = "layers.1.", .lr_scale = 0.5F, .weight_decay = 0.1F}};
  check_same<five_tiles>(how);
}

TEST_CASE("also with moments in 8 bits, and with blocks that are computed again") {
  TrainOptions how = options();
  how.adamw8bit = true;
  check_same<five_tiles>(how);
  how.recompute = Recompute::cheap;
  how.recompute_layers = 2;
  check_same<four_tiles>(how);
}

TEST_CASE("also when every weight is trained") {
  TrainOptions how = options();
  how.lr = 2e-3F;
  how.batch = 4;
  check_same<all_weights>(how);
}

TEST_CASE("a checkpoint is the one of one process, and any number of ranks goes on from it") {
  for (const bool in_8_bits : {false, true}) {
    CAPTURE(in_8_bits);
    TrainOptions how = options();
    how.adamw8bit = in_8_bits;
    const std::filesystem::path by_one = shared_folder("one");
    const std::filesystem::path by_all = shared_folder("all");
    auto alone = make<five_tiles>(how, nullptr);
    run(alone, 3);
    auto shared = make<five_tiles>(how, &world());
    run(shared, 3);
    save_trainer(shared, by_all);
    if (world().rank() == 0) save_trainer(alone, by_one);
    world().barrier();
    for (const char* name :
         {"checkpoint-3/state.safetensors", "checkpoint-3/state.json", "checkpoint-3/MANIFEST.json"}) {
      CAPTURE(name);
      const std::string one = test::contents(by_one / name);
      CHECK(!one.empty());
      CHECK(test::contents(by_all / name) == one);
    }
    const Outcome expected = run(alone, 6);
    auto all_from_one = make<five_tiles>(how, &world());
    REQUIRE(restore_trainer(all_from_one, by_one));
    expect_same(expected, run(all_from_one, 6));
    auto one_from_all = make<five_tiles>(how, nullptr);
    REQUIRE(restore_trainer(one_from_all, by_all));
    expect_same(expected, run(one_from_all, 6));
    world().barrier();
    if (world().rank() == 0) {
      std::filesystem::remove_all(by_one);
      std::filesystem::remove_all(by_all);
    }
  }
}

TEST_CASE("what is not finite is found by all ranks, and changes nothing") {
  TrainOptions how = options();
  how.lr = 1e30F;
  how.warmup_steps = 0;
  const auto error_of = [](auto& trainer) -> std::string {
    const auto before = state_of(trainer);
    try {
      trainer.step(windows_of(1));
    } catch (const Error& error) {
      CHECK(state_of(trainer) == before);
      return error.what();
    }
    return {};
  };
  auto alone = make<five_tiles>(how, nullptr);
  alone.step(windows_of(0));
  auto shared = make<five_tiles>(how, &world());
  shared.step(windows_of(0));
  const std::string expected = error_of(alone);
  CHECK(expected.find("step 2: loss") == 0);
  CHECK(error_of(shared) == expected);
}
