// The state of a trainer as a checkpoint: a run that resumes from it has the bits of one that was not interrupted, and
// restoring is refused while somebody reads what it would change.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/io/trainer.hpp"

#include <doctest/doctest.h>

#include <vector>

#include "qlora/cpu.hpp"
#include "qlora/generate/generator.hpp"
#include "support/scratch.hpp"
#include "support/small_model.hpp"

using namespace qlora;

namespace {

using B = Cpu<float>;
constexpr Config net{.shape = {53, 36, 2, 6, 2, 6, 50}, .lora = {.rank = 3}};
using Mine = Trainer<net, B>;

Mine make() {
  return Mine(small_model::weights(net.shape, 2), {.lr = 1e-2F, .total_steps = 9, .batch = 2, .seq = 12}, B(2));
}
std::vector<float> state_of(Mine& trainer) {
  std::vector<float> all;
  trainer.core().for_each_state(
      [&](const std::string&, const float* data, std::int64_t count) { all.insert(all.end(), data, data + count); });
  return all;
}

}  // namespace

TEST_CASE("a restored trainer goes on with the bits of one that was not interrupted") {
  const test::Scratch scratch;
  const small_model::Data data(2, 12, net.shape.vocab, 5);
  Mine whole = make();
  for (int step = 0; step < 3; ++step) whole.step(data.all());
  save_trainer(whole, scratch / "run");
  const std::vector<float> saved = state_of(whole);
  for (int step = 0; step < 3; ++step) whole.step(data.all());

  Mine resumed = make();
  const auto found = load_latest_checkpoint(scratch / "run");
  REQUIRE(found.checkpoint.has_value());
  Generator<net, B> generator(resumed.model());
  bool refused = false;
  (void)generator.generate({1, 2, 3}, {.max_new_tokens = 1, .stop_ids = {}}, [&](int, std::int32_t) {
    CHECK_THROWS_WITH_AS(restore_trainer(resumed, *found.checkpoint), doctest::Contains("in use"), Error);
    refused = true;
    return true;
  });
  CHECK(refused);
  CHECK(resumed.core().steps_done() == 0);
  CHECK(!restore_trainer(resumed, scratch / "other"));
  CHECK(restore_trainer(resumed, scratch / "run"));
  CHECK(resumed.core().steps_done() == 3);
  CHECK(state_of(resumed) == saved);
  for (int step = 0; step < 3; ++step) resumed.step(data.all());
  CHECK(state_of(resumed) == state_of(whole));
}

TEST_CASE("a folder whose checkpoints are all damaged is not taken for one without any") {
  const test::Scratch scratch;
  Mine trainer = make();
  save_trainer(trainer, scratch / "run");
  std::filesystem::resize_file(scratch / "run/checkpoint-0/state.safetensors", 100);
  CHECK_THROWS_WITH_AS(restore_trainer(trainer, scratch / "run"), doctest::Contains("state.safetensors"), Error);
}
