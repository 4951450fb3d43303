// variant.hpp — a compiled config behind a virtual interface, so that verbs are compiled once and not
// per shape. Calls through it are per training step or per batch of answers; nothing inside a step is virtual.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "device.hpp"
#include "qlora/config.hpp"
#include "qlora/generate/generator.hpp"
#include "qlora/generate/scorer.hpp"
#include "qlora/io/checkpoint.hpp"
#include "qlora/io/hf.hpp"
#include "qlora/io/hf_model.hpp"
#include "qlora/io/json.hpp"
#include "qlora/io/peft.hpp"
#include "qlora/train/trainer.hpp"

namespace qlora::program {

/// Up to this many parameters the CPU holds frozen weights dense as well as in 4 bits: two gigabytes at most, for a
/// product without dequantization.
inline constexpr std::int64_t dense_limit = 500'000'000;

/// Sequences that a session grows side by side where memory is no concern, and new tokens of them in one call.
inline constexpr std::size_t most_side_by_side = 32;
inline constexpr int decode_step_tokens = 512;
/// What a training keeps room for: probes of at most `length` tokens, eight side by side if there are so many.
[[nodiscard]] constexpr DecodeRoom room_for_probes(std::size_t count, int length) {
  constexpr std::size_t planned = 8;
  return {.sequences = static_cast<int>(count < planned ? count : planned),
          .length = length,
          .step_tokens = decode_step_tokens,
          .all_logits = true};
}

/// How the frozen weights are held.
enum class Base : std::uint8_t {
  nf4,   ///< quantized, adapters can be attached
  full,  ///< as they are in the files
};

/// What is trained.
enum class Method : std::uint8_t {
  qlora,  ///< adapters on the quantized base
  full,   ///< every weight of the base as it is in the files, on the CPU
};

/// A model that answers and is asked how likely it finds what it is shown. Base::full has no adapters.
class Session {
 public:
  Session() = default;
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  virtual ~Session() = default;

  /// Puts an adapter on, in place of one that is there.
  virtual void attach(const PeftAdapter& adapter) = 0;
  /// Off, the model is its base to the bit.
  virtual void use_adapters(bool on) = 0;
  [[nodiscard]] virtual std::vector<Generated> generate(std::span<const std::vector<std::int32_t>> prompts,
                                                        const GenerateOptions& options, const OnToken& on_token) = 0;
  /// log p(candidate | prompt) in nats, for each candidate of each question.
  [[nodiscard]] virtual std::vector<std::vector<double>> score(std::span<const Continuations> questions) = 0;
  /// The logits at every token of all texts.
  virtual void read(std::span<const std::vector<std::int32_t>> texts, const OnPrediction& use) = 0;
};

/// A model in training.
class Training {
 public:
  Training() = default;
  Training(const Training&) = delete;
  Training& operator=(const Training&) = delete;
  virtual ~Training() = default;

  virtual StepReport step(const Windows& windows) = 0;
  [[nodiscard]] virtual int steps_done() const = 0;
  /// Saves parameters and moments under root/checkpoint-STEP with `state` beside them.
  virtual void save(const std::filesystem::path& root, const Json& state, int keep) = 0;
  /// Goes back to a checkpoint of a run with the same settings. Throws Error when it is of another shape.
  virtual void restore(const Checkpoint& checkpoint) = 0;
  /// What was trained: adapters as a PEFT directory, with the targets of the training, or all weights as a model
  /// directory with the base's tokenizer.
  virtual void write(const std::filesystem::path& dir, PeftConfig config, const hf::ModelDir& base) = 0;
  /// The model as it is between two steps; adapters on, until it is told otherwise. Lives as long as the training.
  [[nodiscard]] virtual Session& session() = 0;
  /// Bytes taken now: arenas, and on a GPU the libraries' workspaces.
  [[nodiscard]] virtual std::int64_t memory() const = 0;
  /// What was made of the options, for the reader: "NVIDIA H200, blocks computed again in 20 of 32 layers".
  [[nodiscard]] virtual std::string about() const = 0;
};

/// How much is computed again in the backward pass; automatic: on a GPU what its memory asks for, nothing on the CPU.
enum class RecomputeChoice : std::uint8_t { automatic, none, cheap, block };

/// A compiled config on one kind of device.
class Variant {
 public:
  Variant() = default;
  Variant(const Variant&) = delete;
  Variant& operator=(const Variant&) = delete;
  virtual ~Variant() = default;

  /// May have dynamic numbers.
  [[nodiscard]] virtual const Config& config() const = 0;
  [[nodiscard]] virtual Device device() const = 0;
  /// `adapters`: room for every adapter that will be attached.
  [[nodiscard]] virtual std::unique_ptr<Session> open(const hf::ModelDir& model, Base base, const Lora& adapters,
                                                      const Machine& machine) const = 0;
  /// `probes`: what of its session will be asked between steps, at its longest; no sequences: nothing. On a GPU room is
  /// kept for that; throws Error (resource) when there is none.
  [[nodiscard]] virtual std::unique_ptr<Training> train(const hf::ModelDir& model, TrainOptions options,
                                                        RecomputeChoice recompute, const DecodeRoom& probes,
                                                        const Machine& machine) const = 0;
};

/// All that was compiled in.
std::vector<std::unique_ptr<Variant>>& variants();

/// Code for a model, and where it will run.
struct Chosen {
  const Variant* variant = nullptr;
  Machine machine;
};

/// Room for one adapter more.
[[nodiscard]] inline Lora room_for(Lora room, const PeftAdapter& adapter) {
  return {.rank = std::max(room.rank, highest_rank(adapter)), .targets = room.targets | adapter.targets};
}
/// No adapter: the least room that code for adapters has.
inline constexpr Lora no_adapters{.rank = 1, .targets = Proj::q};

/// The code for a model of this shape that holds such adapters, on the device that is asked for: a static config of the
/// very shape with the least rank cap if there is one, else a dynamic one. Throws Error (resource) with what is missing
/// when there is no GPU, and (usage) with what to build when the program has no code for the device.
[[nodiscard]] Chosen choose_variant(const Shape& shape, const Lora& adapters, const DeviceSection& asked, int threads,
                                    Method method = Method::qlora);

}  // namespace qlora::program
