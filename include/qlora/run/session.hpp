// qlora/run/session.hpp — a compiled model behind virtual interfaces: one that is loaded, sessions on it that answer,
// and one in training. So programs are compiled once and not per config. Calls are per training step or per batch of
// prompts; nothing inside a step is virtual. compiled.hpp implements these for every config and backend.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "qlora/comm.hpp"
#include "qlora/generate/generator.hpp"
#include "qlora/generate/request.hpp"
#include "qlora/generate/scorer.hpp"
#include "qlora/io/adapter.hpp"
#include "qlora/io/checkpoint.hpp"
#include "qlora/io/hf.hpp"
#include "qlora/io/hf_model.hpp"
#include "qlora/run/device.hpp"
#include "qlora/run/progress.hpp"
#include "qlora/train/trainer.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// The name of the adapter of a model in training.
inline constexpr std::string_view trained_adapter = "trained";

/// One thread's use of a model: which adapter it applies, and where it computes. Used by one thread at a time; sessions
/// of one model run side by side.
class Session {
 public:
  Session() = default;
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  virtual ~Session() = default;

  /// Which adapter the calls below use, `scale` times as strong as it was trained; empty: none, and the model is its
  /// base to the bit. An adapter that is detached stays in use here until another is chosen. Throws Error (usage) for
  /// an unknown name, or a scale that is not finite.
  virtual void use(std::string_view name, float scale = 1.0F) = 0;

  /// Continuations of all prompts, in their order, as Generator::generate makes them. `on_token` may be empty.
  [[nodiscard]] virtual std::vector<Generated> generate(std::span<const std::vector<std::int32_t>> prompts,
                                                        const GenerateOptions& options, const OnToken& on_token) = 0;
  /// The continuation of one prompt, with what the cache still holds of its beginning, as Generator::go_on makes it.
  /// The other calls, and a prompt whose cache the GPU has no memory for, empty the cache.
  [[nodiscard]] virtual Generated go_on(const std::vector<std::int32_t>& prompt, const GenerateOptions& options,
                                        const OnToken& on_token) = 0;
  /// Tokens of the last go_on()'s prompt that the cache held.
  [[nodiscard]] virtual int cached() const = 0;
  /// log p(candidate | prompt) in nats, for each candidate of each question.
  [[nodiscard]] virtual std::vector<std::vector<double>> score(std::span<const Continuations> questions) = 0;
  /// The logits at every token of all texts.
  virtual void read(std::span<const std::vector<std::int32_t>> texts, const OnPrediction& use) = 0;
};

/// A model whose weights are loaded once for all its sessions. Any number of threads may call it at once.
class LoadedModel {
 public:
  LoadedModel() = default;
  LoadedModel(const LoadedModel&) = delete;
  LoadedModel& operator=(const LoadedModel&) = delete;
  virtual ~LoadedModel() = default;

  /// Holds an adapter under a name that Session::use takes. Throws Error (input), naming the module, layer or rank,
  /// when the code cannot run the adapter whole, and (usage) when the name is taken or the base is not quantized.
  virtual void attach(const std::string& name, const PeftAdapter& adapter) = 0;
  /// Forgets a name. Throws Error (usage) for an unknown one.
  virtual void detach(std::string_view name) = 0;
  /// A session that applies no adapter, with `threads` threads of its own; 0: as many as the model was opened with.
  /// Keeps the weights alive. Throws Error (usage) for threads on a GPU.
  [[nodiscard]] virtual std::unique_ptr<Session> open_session(int threads = 0) const = 0;
  /// What runs many requests side by side, with the room of `limits` or with as many sequences as memory is left for;
  /// `limits.length` 0: the model's context; `cache_bytes`: that keys and values of all sequences take at most, 0: what
  /// is left. Requests name adapters as Session::use does. Keeps the weights alive. Throws Error (usage) when the
  /// length is beyond the model's context, and (resource) when not one sequence fits.
  [[nodiscard]] virtual std::unique_ptr<BatchSession> open_batch(const DecodeLimits& limits,
                                                                 std::int64_t cache_bytes = 0) const = 0;
};

/// What a checkpoint holds beside the tensors.
struct RunState {
  std::string settings;           ///< all that bits depend on, as JSON text; a run resumes from the same ones only
  bool owes_measurement = false;  ///< the step's probes were due and not measured
};

/// A model in training. Used by one thread at a time.
class TrainingSession {
 public:
  TrainingSession() = default;
  TrainingSession(const TrainingSession&) = delete;
  TrainingSession& operator=(const TrainingSession&) = delete;
  virtual ~TrainingSession() = default;

  /// One optimizer step on these windows, as Trainer::step makes it.
  virtual StepReport step(const Windows& windows) = 0;
  /// Optimizer steps of the whole run so far, those before a resume included.
  [[nodiscard]] virtual int steps_done() const = 0;
  /// Saves parameters, moments and `state` as root/checkpoint-STEP and keeps the `keep` newest checkpoints.
  virtual void save(const std::filesystem::path& root, const RunState& state, int keep) = 0;
  /// Continues from a checkpoint of a run with the same settings. Throws Error when it is of another shape.
  virtual void restore(const CheckpointTensors& checkpoint) = 0;
  /// Writes what was trained: adapters as a PEFT directory with these notes, or all weights as a model directory with
  /// the tokenizer of `base`.
  virtual void write(const std::filesystem::path& dir, const AdapterNotes& notes, const hf::ModelDir& base) = 0;
  /// Sets the adapters of a run that begins anew to what quantization lost of the weights of `base`, the model in 16 or
  /// 32 bits that this training was opened with; `progress` counts matrices. Returns and throws what
  /// init_from_residual() of io/residual_init.hpp does. Of several ranks all call this.
  virtual double init_from_residual(const hf::ModelDir& base, std::uint64_t seed, Progress& progress) = 0;
  /// The other processes that share the steps; null: there are none. Of several, all call step(), save() and restore()
  /// at the same time.
  [[nodiscard]] virtual Comm* comm() = 0;
  /// Has a run that begins anew use the algorithms saved under `root`, if there are any, for the bits of the run that
  /// saved them.
  virtual void use_algorithms(const std::filesystem::path& root) = 0;
  /// The model as it is between two steps, with trained_adapter in use until it is told otherwise. Lives as long as
  /// this.
  [[nodiscard]] virtual Session& session() = 0;
  /// Bytes used now: arenas, and on a GPU the libraries' workspaces.
  [[nodiscard]] virtual std::int64_t memory() const = 0;
  /// The device and the recomputation in words: "NVIDIA H200, blocks computed again in 20 of 32 layers".
  [[nodiscard]] virtual std::string about() const = 0;
};

}  // namespace run
}  // namespace v0
}  // namespace qlora
