// Probes in the loop on the GPU: training keeps room for them under a cap, in smaller groups where memory is
// short, says so where there is none, and its session answers as the shipped model's card states.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "qlora/configs/tiny.hpp"
#include "qlora/cuda.hpp"
#include "qlora/eval/measure.hpp"
#include "qlora/eval/metrics.hpp"
#include "qlora/io/hf_writer.hpp"
#include "qlora/run/compiled.hpp"
#include "support/small_model.hpp"

using namespace qlora;
using namespace qlora::run;
namespace fs = std::filesystem;

namespace {

// Little to train and much to remember: keys and values of a sequence of 12,000 tokens take 393 MB, more than the
// reserve that no plan gives away.
//                                    vocab dim layers heads kv head ffn
constexpr Config wide{.shape = /*   */ {512, 1024, 8, 16, 16, 64, 1024}, .lora = {.rank = 8}};
constexpr int longest = 12000;

DecodeLimits probes_of(int sequences) { return limits_for_probes(static_cast<std::size_t>(sequences), longest); }
TrainOptions options() { return {.rank = 8, .total_steps = 4, .batch = 2, .seq = 256}; }
/// A cap for a training with so many probes side by side.
std::int64_t cap_for(Recompute policy, int sequences) {
  const TrainOptions how = options();
  return gpu_reserve + memory_plan<wide>({.batch = how.batch,
                                          .seq = how.seq,
                                          .recompute = policy,
                                          .loss_chunk = how.loss_chunk,
                                          .probing = probes_of(sequences)})
                           .total();
}
DeviceOptions under(std::int64_t cap) { return {.device = Device::cuda, .memory_cap = cap}; }

/// A model directory of that shape.
struct Wide {
  fs::path path = fs::temp_directory_path() / ("qlora_cuda_probes_" + std::to_string(getpid()));
  run::detail::CompiledCode<wide, Cuda> code;
  small_model::Data data{2, options().seq, wide.shape.vocab, 1, 50};

  Wide() {
    hf::ModelWriter writer(path, hf::ModelConfig{.shape = wide.shape, .max_positions = 16384});
    const TensorSource source = small_model::weights(wide.shape, 1);
    std::vector<float> values;
    for (const auto& tensor : writer.tensors()) {
      const TensorRef ref = source(tensor.name).value();
      values.resize(static_cast<std::size_t>(ref.size()));
      read_floats(ref, 0, values);
      writer.write(tensor.name, values);
    }
    writer.finish();
  }
  Wide(const Wide&) = delete;
  Wide& operator=(const Wide&) = delete;
  ~Wide() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }

  std::unique_ptr<TrainingSession> train(Recomputation recompute, int sequences, std::int64_t cap) {
    return code.train(hf::ModelDir::open(path), options(), recompute, probes_of(sequences), under(cap));
  }
  std::string refusal(Recomputation recompute, int sequences, std::int64_t cap) {
    try {
      (void)train(recompute, sequences, cap);
    } catch (const Error& error) {
      CHECK(error.kind() == ErrorKind::resource);
      return error.what();
    }
    return "";
  }
};

/// Reads eight texts of the longest kind; the most that the driver counted meanwhile.
std::int64_t read_long(Session& session) {
  std::vector<std::vector<std::int32_t>> texts(8);
  for (std::size_t i = 0; i < texts.size(); ++i) {
    for (int t = 0; t < longest; ++t) texts[i].push_back((t * 7 + static_cast<int>(i)) % wide.shape.vocab);
  }
  const Cuda outside;
  std::int64_t most = 0;
  std::size_t read = 0;
  session.read(texts, [&](std::size_t, std::size_t position, std::span<const float>) {
    ++read;
    if (position % 1000 == 0) most = std::max(most, cuda::device_info(outside.context()).driver_used);
    return true;
  });
  CHECK(read == texts.size() * (longest - 1));
  return most;
}

}  // namespace

TEST_CASE_FIXTURE(Wide,
                  "large: probes that were planned for live beside a training under its cap, by the driver's count") {
  for (const int sequences : {8, 1}) {
    const std::int64_t cap = cap_for(Recompute::block, sequences);
    const auto training = train(Recomputation::automatic, 8, cap);  // in groups of what fits
    (void)training->step(data.all());
    CHECK(read_long(training->session()) <= cap);
    const std::vector<std::vector<std::int32_t>> prompts(8, std::vector<std::int32_t>(longest - 40, 5));
    const auto replies = training->session().generate(prompts, {.max_new_tokens = 8, .stop_ids = {}}, {});
    for (const Generated& reply : replies) CHECK(reply.ids == replies[0].ids);
    CHECK(training->step(data.all()).step == 2);
  }
}

TEST_CASE_FIXTURE(Wide, "large: without a plan the same cap has no room for them") {
  const auto training = train(Recomputation::automatic, 0, cap_for(Recompute::block, 0));
  (void)training->step(data.all());
  CHECK_THROWS_AS(read_long(training->session()), Error);
  CHECK(training->step(data.all()).step == 2);  // and it goes on
}

TEST_CASE_FIXTURE(Wide, "large: probes take the place of activations, and are refused by name where there is none") {
  const std::int64_t all_kept = cap_for(Recompute::none, 0);
  CHECK(train(Recomputation::automatic, 0, all_kept)->about().ends_with("all activations kept"));
  const std::int64_t least = cap_for(Recompute::block, 1);
  CHECK(train(Recomputation::automatic, 8, least)->about().ends_with("computed again in 8 of 8 layers"));
  const std::string why = refusal(Recomputation::automatic, 8, least - 1);
  CAPTURE(why);
  CHECK(why.find("room for probes of up to 12000 tokens") != std::string::npos);
  CHECK(why.find("every block is computed again") != std::string::npos);
  const std::string kept = refusal(Recomputation::none, 8, cap_for(Recompute::none, 1) - 1);
  CAPTURE(kept);
  CHECK(kept.find("room for probes of up to 12000 tokens") != std::string::npos);
  CHECK(kept.find("more that is computed again") != std::string::npos);
  CHECK_NOTHROW((void)train(Recomputation::none, 8, cap_for(Recompute::none, 1)));
}

TEST_CASE("a training's session knows on the GPU what the model's card says, adapters on and off") {
  constexpr Config chat = tiny_chat.with(Lora{.rank = 16});
  const fs::path source(QLORA_SOURCE_DIR);
  const hf::ModelDir model = hf::ModelDir::open(source / "examples/models/tiny-chat");
  const Tokenizer tokenizer = Tokenizer::load(model.path / "tokenizer.model");
  std::vector<eval::Item> items = eval::read_items(source / "examples/quickstart/retention.jsonl");
  items.resize(64);
  const auto length = static_cast<int>(eval::longest_sequence(tokenizer, items));
  const auto training = run::detail::CompiledCode<chat, Cuda>().train(
      model, {.rank = 16, .batch = 2, .seq = 128}, Recomputation::automatic, limits_for_probes(items.size(), length),
      under(0));
  for (const bool adapters : {false, true}) {  // B = 0: they change nothing yet
    training->session().use(adapters ? trained_adapter : std::string_view());
    const eval::ItemResults readings = eval::measure(training->session(), tokenizer, items);
    const eval::Metrics figures = eval::metrics_of(items, readings, nullptr);
    CHECK(eval::find_number(figures, "retention.value").value() == 1.0);  // its card: all 240
  }
}
