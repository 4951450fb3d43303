// qlora/run/compiled.hpp — compiles a config for a backend and puts the code on the registry:
//   static const qlora::run::RegisteredCode<qlora::any_model> code;               // any shape, rank and targets
//   static const qlora::run::RegisteredCode<my::config, qlora::Cuda> on_the_gpu;  // preferred for its own shape
// config.with(qlora::Trainable::all) trains every weight. One line of CMake does this in a file of its own, so that
// backends compile side by side: qlora_register(TARGET my::config HEADER my_config.hpp BACKENDS cpu cuda).
// Everything that is expensive to compile is included here; the other headers of run/ know interfaces alone.
#pragma once

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#ifdef QLORA_WITH_MPI
#include "qlora/dist/mpi.hpp"
#endif
#include "qlora/generate/scheduler.hpp"
#include "qlora/io/adapter.hpp"
#include "qlora/io/open_model.hpp"
#include "qlora/io/residual_init.hpp"
#include "qlora/io/trainer.hpp"
#include "qlora/llama2.hpp"
#include "qlora/run/registry.hpp"
#include "qlora/text/tokenizer_directory.hpp"

namespace qlora {
inline namespace v0 {
namespace run {
namespace detail {

template <class B>
inline constexpr bool on_gpu = B::space == Space::device;

#ifdef QLORA_CUDA
/// The card of this process: where it sees one alone, that one, else that of its number on the host.
[[nodiscard]] inline int card_of(const dist::Launch& launch) {
  const int count = cuda::device_count();
  if (launch.size == 1 || count == 1) return 0;
  if (launch.local_rank < count) return launch.local_rank;
  throw Error(concat("rank ", launch.rank, " is number ", launch.local_rank, " on its host, which has ", count,
                     " GPUs; start as many processes as there are GPUs"),
              ErrorKind::resource);
}
#endif

template <class B>
[[nodiscard]] B make_backend(const DeviceOptions& device) {
#ifdef QLORA_CUDA
  if constexpr (on_gpu<B>) {
    return B({.device = card_of(device.launch), .memory_cap = device.memory_cap, .fast = device.fast});
  } else
#endif
  {
    return B(device.threads);
  }
}

/// The other ranks of a training; null: it is alone. What messages take of a GPU is taken off the memory cap.
template <class B>
[[nodiscard]] std::unique_ptr<Comm> join_ranks([[maybe_unused]] const B& backend, DeviceOptions& device) {
  if (device.launch.size == 1) return nullptr;
#ifdef QLORA_CUDA
  if constexpr (on_gpu<B>) {
    const dist::Launch& launch = device.launch;
    if (std::getenv("NCCL_COMM_ID") == nullptr) ::setenv("NCCL_COMM_ID", dist::meeting_point(launch).c_str(), 1);
    ::setenv("NCCL_NVLS_ENABLE", "0", 0);  // for sums in the switch, which nothing here asks NCCL for
    const std::int64_t before = cuda::device_info(backend.context()).driver_used;
    auto comm = backend.join(launch.rank, launch.size, cuda::nccl_id(), device.watch);
    const std::int64_t taken = cuda::device_info(backend.context()).driver_used - before;
    if (device.memory_cap > 0) device.memory_cap = std::max<std::int64_t>(device.memory_cap - taken, 1);
    return comm;
  } else
#endif
  {
#ifdef QLORA_WITH_MPI
    return dist::MpiComm::open(device.launch);
#else
    throw Error(
        "this program was built without MPI, which processes that train on the CPU talk over; build it where "
        "an MPI is (Debian: libopenmpi-dev), or start one process",
        ErrorKind::resource);
#endif
  }
}

#ifdef QLORA_CUDA
[[nodiscard]] inline GpuMemory memory_of(const Cuda& backend, const DeviceOptions& device) {
  const cuda::DeviceInfo info = cuda::device_info(backend.context());
  return gpu_memory(info.allocated + info.workspace + gpu_storage.context, info.total - info.driver_used,
                    device.memory_cap);
}
#endif

/// Bytes that a decoder may take: what the GPU has left, on the CPU any number.
template <class B>
[[nodiscard]] std::int64_t free_bytes([[maybe_unused]] const B& backend, [[maybe_unused]] const DeviceOptions& device) {
#ifdef QLORA_CUDA
  if constexpr (on_gpu<B>) return memory_of(backend, device).free();
#endif
  return std::numeric_limits<std::int64_t>::max();
}

/// Generates and scores in a context. `adapter_` is what its calls apply, whatever the context is set to between them.
template <Config C, class B>
class ModelSession : public Session {
 public:
  using Context = qlora::Context<code_of(C), B>;

  /// `limit`: the longest sequence, in tokens. The context outlives the session.
  ModelSession(Context& context, const Config& config, int limit, const DeviceOptions& device)
      : context_(context), config_(config), limit_(limit), device_(device) {}
  /// In a context of its own.
  ModelSession(std::unique_ptr<Context> made, const Config& config, int limit, const DeviceOptions& device)
      : made_(std::move(made)), context_(*made_), config_(config), limit_(limit), device_(device) {}

  std::vector<Generated> generate(std::span<const std::vector<std::int32_t>> prompts, const GenerateOptions& options,
                                  const OnToken& on_token) override {
    options.check();
    talk_.reset();
    std::size_t longest = 1;
    for (const auto& prompt : prompts) longest = std::max(longest, prompt.size());
    check_length("a prompt", longest + 1);
    const std::int64_t wanted = static_cast<std::int64_t>(longest) + options.max_new_tokens;
    const int length = static_cast<int>(std::min<std::int64_t>(wanted, limit_));
    const Applied applied(context_, adapter_);
    Generator<C, B> generator(context_, limits(prompts.size(), length, false));
    return generator.generate(prompts, options, on_token);
  }

  Generated go_on(const std::vector<std::int32_t>& prompt, const GenerateOptions& options,
                  const OnToken& on_token) override {
    options.check();
    check_length("a prompt", prompt.size() + 1);
    const std::int64_t wanted = static_cast<std::int64_t>(prompt.size()) + options.max_new_tokens;
    const int needed = static_cast<int>(std::min<std::int64_t>(wanted, limit_));
    if (!talk_ || talk_length_ < needed) {
      talk_.reset();  // first, so that both need not fit
      // A chat grows: room for twice as much is made anew seldom.
      talk_length_ = std::min(static_cast<int>(std::bit_ceil(static_cast<unsigned>(std::max(needed, 512)))), limit_);
      const DecodeLimits room{.sequences = 1, .length = talk_length_, .step_tokens = decode_step_tokens};
      if (decode_bytes(config_, room, gpu_storage) > free_bytes()) {
        return generate(std::span(&prompt, 1), options, on_token)[0];
      }
      talk_.emplace(context_, room);
    }
    const Applied applied(context_, adapter_);
    return talk_->go_on(prompt, options, on_token);
  }
  [[nodiscard]] int cached() const override { return talk_ ? talk_->cached() : 0; }

  std::vector<std::vector<double>> score(std::span<const Continuations> questions) override {
    talk_.reset();
    std::size_t longest = 1;
    for (const Continuations& question : questions) {
      for (const auto& candidate : question.candidates) {
        longest = std::max(longest, question.prompt.size() + candidate.size());
      }
    }
    check_length("a prompt with its answer", longest);
    const Applied applied(context_, adapter_);
    return scorer(questions.size(), longest).score(questions);
  }

  void read(std::span<const std::vector<std::int32_t>> texts, const OnPrediction& use) override {
    talk_.reset();
    std::size_t longest = 1;
    for (const auto& text : texts) longest = std::max(longest, text.size());
    check_length("a text", longest);
    const Applied applied(context_, adapter_);
    scorer(texts.size(), longest).read(texts, use);
  }

 private:
  void check_length(const char* what, std::size_t tokens) const {
    if (tokens > static_cast<std::size_t>(limit_)) {
      throw Error(concat(what, " of ", tokens, " tokens; the model's context holds ", limit_));
    }
  }
  [[nodiscard]] Scorer<C, B> scorer(std::size_t count, std::size_t longest) {
    return Scorer<C, B>(context_, limits(count, static_cast<int>(longest), true));
  }

  /// Room for 32 sequences, or for as many as the GPU has memory for.
  [[nodiscard]] DecodeLimits limits(std::size_t asked, int length, bool all_logits) {
    DecodeLimits limits{.sequences = static_cast<int>(std::clamp<std::size_t>(asked, 1, most_sequences)),
                        .length = length,
                        .step_tokens = decode_step_tokens,
                        .all_logits = all_logits};
    const std::int64_t free = free_bytes();
    while (limits.sequences > 1 && decode_bytes(config_, limits, gpu_storage) > free) --limits.sequences;
    return limits;
  }

  [[nodiscard]] std::int64_t free_bytes() { return detail::free_bytes(context_.backend(), device_); }

  std::unique_ptr<Context> made_;
  Context& context_;
  Config config_;
  int limit_;
  DeviceOptions device_;
  std::optional<Generator<C, B>> talk_;  ///< keeps its cache between calls of go_on
  int talk_length_ = 0;                  ///< tokens that it has room for

 protected:
  using Applied = UsingAdapters<code_of(C), B>;
  [[nodiscard]] Context& context() const { return context_; }

  typename Context::Adapters adapter_ = Context::base();
};

/// A session on a loaded model, in a context of its own.
template <Config C, class B>
class LoadedSession final : public ModelSession<C, B> {
 public:
  LoadedSession(std::unique_ptr<Context<code_of(C), B>> context, const Config& config, int limit,
                const DeviceOptions& device)
      : ModelSession<C, B>(std::move(context), config, limit, device) {}

  void use(std::string_view name, float scale) override {
    this->adapter_ = name.empty() ? this->context().base() : this->context().choice(name, scale);
  }
};

/// The session of a model in training, in the trainer's context.
template <Config C, class B>
class TrainedSession final : public ModelSession<C, B> {
 public:
  TrainedSession(Model<C, B>& model, int limit, const DeviceOptions& device)
      : ModelSession<C, B>(model.context(), model.resolved_config(), limit, device) {
    use(trained_adapter, 1.0F);
  }

  void use(std::string_view name, float scale) override {
    if (!name.empty() && name != trained_adapter) {
      throw Error(concat("no adapter is named \"", name, "\""), ErrorKind::usage);
    }
    this->adapter_ = name.empty() ? this->context().base() : this->context().own_choice(scale);
  }
};

/// A model for sessions.
template <Config C, class B>
class CompiledModel final : public LoadedModel {
 public:
  CompiledModel(const hf::ModelDir& model, const ModelOptions& options, const DeviceOptions& device)
      : model_(open_model<C, B>(model, options, make_backend<B>(device))),
        limit_(model.max_positions),
        device_(device) {}

  void attach(const std::string& name, const PeftAdapter& adapter) override {
    if constexpr (C.quant.kind == QuantKind::none) {
      throw Error("an adapter is attached to the quantized model", ErrorKind::usage);
    } else {
      const std::lock_guard lock(loading_);
      attach_adapter(model_, name, adapter, AdapterBase::any);  // open_adapter has compared the bases
    }
  }
  void detach(std::string_view name) override { model_.detach(name); }

  [[nodiscard]] std::unique_ptr<Session> open_session(int threads) const override {
    DeviceOptions device = device_;
    if (threads != 0) {
      if constexpr (on_gpu<B>) throw Error("a session on a GPU has no threads to choose", ErrorKind::usage);
      device.threads = threads;
    }
    auto context = threads == 0 ? model_.make_context() : model_.make_context(make_backend<B>(device));
    return std::make_unique<LoadedSession<C, B>>(std::move(context), model_.resolved_config(), limit_, device);
  }

  [[nodiscard]] std::unique_ptr<BatchSession> open_batch(const DecodeLimits& asked,
                                                         std::int64_t cache_bytes) const override {
    DecodeLimits limits = asked;
    if (limits.length == 0) limits.length = limit_;
    if (limits.length > limit_) {
      throw Error(concat("a context of ", limits.length, " tokens; the model's holds ", limit_), ErrorKind::usage);
    }
    if (cache_bytes > 0) {
      const auto mebibytes = [](std::int64_t bytes) { return concat((bytes + (1 << 20) - 1) >> 20, " MiB"); };
      const std::int64_t each = Decoder<code_of(C), B>::cache_bytes(model_.resolved_config().shape, limits.length);
      if (cache_bytes < each) {
        throw Error(concat("keys and values of one request of ", limits.length, " tokens take ", mebibytes(each),
                           ", and ", mebibytes(cache_bytes), " are allowed for all; allow more with --kv-memory, or ",
                           "shorten requests with --context"),
                    ErrorKind::resource);
      }
      limits.sequences = static_cast<int>(std::min<std::int64_t>(limits.sequences, cache_bytes / each));
    }
    auto context = model_.make_context();
    const std::int64_t free = free_bytes(context->backend(), device_);
    while (limits.sequences > 1 && decode_bytes(model_.resolved_config(), limits, gpu_storage) > free) {
      --limits.sequences;
    }
    return std::make_unique<Scheduler<code_of(C), B>>(std::move(context), limits);
  }

 private:
  Model<C, B> model_;
  std::mutex loading_;  ///< one adapter at a time is loaded, in the model's own context
  int limit_;
  DeviceOptions device_;
};

/// Options with the recomputation that is asked for, or the least that fits the memory which the backend's card has
/// beside the probes. Probes that do not fit at once are planned for in smaller groups, down to one by one.
template <Config C, class B>
[[nodiscard]] TrainOptions with_recompute(TrainOptions options, Recomputation choice,
                                          [[maybe_unused]] DecodeLimits probes,
                                          [[maybe_unused]] const DeviceOptions& device,
                                          [[maybe_unused]] const B& backend) {
  const bool automatic = choice == Recomputation::automatic;
  if (automatic) {
    options.recompute = Recompute::none;  // on the CPU; on a GPU see below
  } else {
    options.recompute = choice == Recomputation::none    ? Recompute::none
                        : choice == Recomputation::cheap ? Recompute::cheap
                                                         : Recompute::block;
  }
#ifdef QLORA_CUDA
  if constexpr (on_gpu<B>) {
    if (!automatic && probes.sequences == 0) return options;  // the arenas will say whether it fits
    if (automatic) options.recompute = Recompute::block;      // the most, while the question is whether anything fits
    const ModelOptions opened = training_model<C, B>(options);
    const Config config = resolved(C, opened.shape, opened.lora, opened.double_quant);
    Run run = run_of(options, options.model.keep_dequantized);
    run.probing = probes;
    const std::int64_t budget = memory_of(backend, device).limit;
    const auto needed = [&] { return memory_plan(config, run, gpu_storage).total(); };
    while (run.probing.sequences > 1 && needed() > budget) run.probing.sequences /= 2;
    if (automatic) {
      run = choose_recompute(config, run, budget);
    } else if (needed() > budget) {
      refuse_run(run, needed(), budget);
    }
    options.recompute = run.recompute;
    options.recompute_layers = run.recompute_layers;
  }
#endif
  return options;
}

template <Config C, class B>
class CompiledTraining final : public TrainingSession {
 public:
  CompiledTraining(const hf::ModelDir& model, const TrainOptions& options, std::unique_ptr<Comm> comm, B backend,
                   const DeviceOptions& device)
      : comm_(std::move(comm)),
        trainer_(model.source(), options, std::move(backend)),
        session_(trainer_.model(), model.max_positions, device),
        threads_(device.threads) {}

  StepReport step(const Windows& windows) override { return trainer_.step(windows); }
  [[nodiscard]] int steps_done() const override { return trainer_.core().steps_done(); }

  void save(const std::filesystem::path& root, const RunState& state, int keep) override {
    const Json json{{"run", Json::parse(state.settings)}, {"to_measure", state.owes_measurement}};
    save_trainer(trainer_, root, json, keep);
  }
  void restore(const CheckpointTensors& checkpoint) override { restore_trainer(trainer_, checkpoint); }
  double init_from_residual([[maybe_unused]] const hf::ModelDir& base, [[maybe_unused]] std::uint64_t seed,
                            [[maybe_unused]] Progress& progress) override {
    if constexpr (C.trainable == Trainable::adapters && C.quant.kind == QuantKind::nf4) {
      const auto tell = [&](int done) {
        progress.update(done);
        return !progress.stop_requested();
      };
      const double left = qlora::init_from_residual(
          trainer_.model(), base.source(), {.seed = seed, .threads = threads_, .comm = comm_.get(), .on_matrix = tell});
      trainer_.core().measure_rows();
      return left;
    } else {
      throw Error("adapters of weights that are not quantized have no residual to begin with", ErrorKind::usage);
    }
  }
  [[nodiscard]] Comm* comm() override { return comm_.get(); }
  void use_algorithms(const std::filesystem::path& root) override { load_algorithms(trainer_, root); }

  void write(const std::filesystem::path& dir, [[maybe_unused]] const AdapterNotes& notes,
             [[maybe_unused]] const hf::ModelDir& base) override {
    if constexpr (C.trainable == Trainable::all) {
      hf::ModelWriter writer(dir, base, {.tokenizer_from = base.path, .files = files_beside_weights(base.path)});
      write_trained(writer, trainer_);
    } else {
      write_adapter(dir, trainer_.model(), notes);
    }
  }

  [[nodiscard]] Session& session() override { return session_; }

  [[nodiscard]] std::int64_t memory() const override {
    std::int64_t bytes = trainer_.core().arena_bytes_used();
#ifdef QLORA_CUDA
    if constexpr (on_gpu<B>) bytes += cuda::device_info(trainer_.model().backend().context()).workspace;
#endif
    return bytes;
  }

  [[nodiscard]] std::string about() const override {
    std::string text = "the CPU";
#ifdef QLORA_CUDA
    if constexpr (on_gpu<B>) text = cuda::device_info(trainer_.model().backend().context()).name;
#endif
    const Run& run = trainer_.core().network().run();
    const int all = trainer_.core().network().layers();
    const int layers = run.recompute_layers < 0 ? all : std::min(run.recompute_layers, all);
    if (run.recompute == Recompute::none) return text + ", all activations kept";
    return concat(text, run.recompute == Recompute::cheap ? ", cheap activations" : ", blocks", " computed again in ",
                  layers, " of ", all, " layers");
  }

 private:
  std::unique_ptr<Comm> comm_;
  Trainer<C, B> trainer_;
  TrainedSession<C, B> session_;
  int threads_;
};

template <Config C, class B>
class CompiledCode final : public ModelCode {
 public:
  [[nodiscard]] const Config& config() const override { return config_; }
  [[nodiscard]] Device device() const override { return on_gpu<B> ? Device::cuda : Device::cpu; }

  [[nodiscard]] bool usable([[maybe_unused]] std::string& why) const override {
#ifdef QLORA_CUDA
    if constexpr (on_gpu<B>) return cuda::device_count(&why) > 0;
#endif
    return true;
  }

  void expect_products([[maybe_unused]] Products products, [[maybe_unused]] const dist::Launch& launch) const override {
#ifdef QLORA_CUDA
    if constexpr (on_gpu<B>) {
      if (products == Products::bf16) return;
      const cuda::Card card = cuda::card_at(card_of(launch));
      expect_fp8_card(card.name, card.compute_capability);
    }
#endif
  }

  [[nodiscard]] std::unique_ptr<LoadedModel> open(const hf::ModelDir& model, BaseWeights base, const Lora& adapters,
                                                  const DeviceOptions& device) const override {
    if constexpr (C.trainable == Trainable::all) {
      throw Error("code that trains every weight opens no session", ErrorKind::usage);  // see select_code
    } else {
      ModelOptions options{.keep_dequantized = keeps_dequantized(model.shape, device)};
      if (base == BaseWeights::full) {
        // Adapters are never attached: the least rank cap whose rows are aligned, so that all configs of a shape share
        // this code.
        constexpr Config plain = C.with(unquantized).with(Lora{.rank = B::rank_step, .targets = Proj::q});
        return std::make_unique<CompiledModel<plain, B>>(model, options, device);
      }
      const int rounded = (std::max(adapters.rank, 1) + B::rank_step - 1) / B::rank_step * B::rank_step;
      options.lora = {.rank = is_dynamic(C.lora.rank) ? rounded : adapters.rank, .targets = adapters.targets};
      if (is_dynamic(C.lora.targets) && adapters.targets == Proj::none) options.lora.targets = Proj::q;  // the least
      return std::make_unique<CompiledModel<C, B>>(model, options, device);
    }
  }

  [[nodiscard]] std::unique_ptr<TrainingSession> train(const hf::ModelDir& model, TrainOptions options,
                                                       Recomputation recompute, const DecodeLimits& probes,
                                                       const DeviceOptions& device) const override {
    B backend = make_backend<B>(device);
    DeviceOptions planned = device;
    std::unique_ptr<Comm> comm = join_ranks(backend, planned);
    options.comm = comm.get();
    options.model = model_options(model, {.keep_dequantized = keeps_dequantized(model.shape, device)});
    options = with_recompute<C, B>(options, recompute, probes, planned, backend);
    return std::make_unique<CompiledTraining<C, B>>(model, options, std::move(comm), std::move(backend), device);
  }

 private:
  Config config_ = C;
};

}  // namespace detail

/// Puts the code of a config on the list, for as long as the program runs. A static object, so that it is there before
/// main begins.
template <Config C, class B = Cpu<>>
requires CanTrain<C, B>
struct RegisteredCode {
  RegisteredCode() { registered_code().push_back(std::make_unique<detail::CompiledCode<C, B>>()); }
};

}  // namespace run
}  // namespace v0
}  // namespace qlora
