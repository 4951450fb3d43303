// variant_impl.hpp — compiles a config for the program. The dynamic ones of variant_*.cpp run any model; a static config
// of one's own is registered with three lines in a .cpp beside this file, and is then preferred for its shape:
//   #include "variant_impl.hpp"
//   static constexpr qlora::Config mine{.shape = {...}, .lora = {.rank = 64}};
//   static const qlora::program::Registered<mine> registered;   // <mine, qlora::Cuda> in a file variant_..._cuda.cpp
// mine.with(qlora::Trainable::all) is the variant that trains every weight, for the CPU alone.
// One file for each backend, so that they compile side by side. Everything expensive to compile is included here and
// nowhere else in the program.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "qlora/io/adapter.hpp"
#include "qlora/llama2.hpp"
#include "variant.hpp"

namespace qlora::program {

template <class B>
inline constexpr bool on_gpu = B::space == Space::device;

template <class B>
ModelOptions model_options(const hf::ModelDir& model, const Machine& machine) {
  return {.shape = model.shape,
          .rope_theta = model.rope_theta,
          .norm_eps = model.norm_eps,
          .keep_dequantized = on_gpu<B> ? machine.resident : parameters(model.shape) <= dense_limit};
}

template <class B>
B make_backend(const Machine& machine) {
  if constexpr (on_gpu<B>) {
    return B({.memory_cap = machine.memory_cap, .fast = machine.fast});
  } else {
    return B(machine.threads);
  }
}

#ifdef QLORA_CUDA
/// Bytes that this process may have in all, as a memory plan counts them.
inline std::int64_t gpu_budget(const Cuda& backend, const Machine& machine) {
  const cuda::DeviceInfo info = cuda::device_info(backend.context());
  // The plan counts the driver's context and the workspaces, which are taken already.
  const std::int64_t free = info.total - info.driver_used + gpu_storage.context + info.workspace;
  return (machine.memory_cap > 0 ? std::min(free, machine.memory_cap) : free) - gpu_reserve;
}
#endif

/// A tensor of an adapter as floats.
inline std::vector<float> floats_of(const TensorSource& source, const std::string& name) {
  const auto tensor = source(name);
  if (!tensor) return {};
  std::vector<float> values(static_cast<std::size_t>(tensor->size()));
  read_floats(*tensor, 0, values);
  return values;
}

/// Throws Error (input), naming what is missing, when the code cannot hold the adapter whole.
inline void check_adapter(const PeftAdapter& adapter, const Config& config) {
  if (adapter.layers != config.shape.layers) {
    throw Error(concat(adapter.path.string(), " has adapters in ", adapter.layers, " layers, the model has ",
                       config.shape.layers, " layers"));
  }
  for (const Proj proj : all_projections) {
    if (contains(adapter.targets, proj) && !contains(config.lora.targets, proj)) {
      throw Error(concat(adapter.path.string(), " adapts ", name_of(proj),
                         ", which is no target of the code that runs this model"));
    }
  }
  if (const int rank = highest_rank(adapter); rank > config.lora.rank) {
    throw Error(concat(adapter.path.string(), " has rank ", rank, "; the code that runs this model holds ranks up to ",
                       config.lora.rank));
  }
}

/// A session over somebody's model.
template <Config C, class B>
class ModelSession final : public Session {
 public:
  ModelSession(Model<C, B>& model, int limit, const Machine& machine)
      : limit_(limit), machine_(machine), model_(model) {}

  void attach([[maybe_unused]] const PeftAdapter& adapter) override {
    if constexpr (C.quant.kind == QuantKind::none) {
      throw Error("an adapter is attached to the quantized model", ErrorKind::usage);
    } else {
      check_adapter(adapter, model_.resolved_config());
      auto& weights = model_.weights();
      const Shape& shape = model_.resolved_config().shape;
      weights.for_each_target([&](int layer, Proj proj) {
        std::vector<float> a = floats_of(adapter.source(), lora_name(layer, proj, 'A'));
        std::vector<float> b = floats_of(adapter.source(), lora_name(layer, proj, 'B'));
        int rank = rank_of(adapter, layer, proj);
        const float alpha = scale_of(adapter, layer, proj) * static_cast<float>(rank);
        if (a.empty()) {  // not adapted: a product with zeros
          rank = 1;
          a.assign(static_cast<std::size_t>(cols_of(shape, proj)), 0.0F);
          b.assign(static_cast<std::size_t>(rows_of(shape, proj)), 0.0F);
        }
        weights.load_adapter(model_.backend(), layer, proj, rank, alpha, false, a, b);
      });
      model_.use_adapters(true);
    }
  }

  void use_adapters(bool on) override { model_.use_adapters(on && C.quant.kind != QuantKind::none); }

  std::vector<Generated> generate(std::span<const std::vector<std::int32_t>> prompts, const GenerateOptions& options,
                                  const OnToken& on_token) override {
    std::size_t longest = 1;
    for (const auto& prompt : prompts) longest = std::max(longest, prompt.size());
    check_length("a prompt", longest + 1);
    const std::int64_t wanted = static_cast<std::int64_t>(longest) + options.max_new_tokens;
    const int length = static_cast<int>(std::min<std::int64_t>(wanted, limit_));
    Generator<C, B> generator(model_, room(prompts.size(), length, false));
    return generator.generate(prompts, options, on_token);
  }

  std::vector<std::vector<double>> score(std::span<const Continuations> questions) override {
    std::size_t longest = 1;
    for (const Continuations& one : questions) {
      for (const auto& candidate : one.candidates) {
        longest = std::max(longest, one.prompt.size() + candidate.size());
      }
    }
    check_length("a prompt with its answer", longest);
    return scorer(questions.size(), longest).score(questions);
  }

  void read(std::span<const std::vector<std::int32_t>> texts, const OnPrediction& use) override {
    std::size_t longest = 1;
    for (const auto& text : texts) longest = std::max(longest, text.size());
    check_length("a text", longest);
    scorer(texts.size(), longest).read(texts, use);
  }

 private:
  void check_length(const char* what, std::size_t tokens) const {
    if (tokens > static_cast<std::size_t>(limit_)) {
      throw Error(concat(what, " of ", tokens, " tokens; the model's context holds ", limit_));
    }
  }
  [[nodiscard]] Scorer<C, B> scorer(std::size_t count, std::size_t longest) {
    return Scorer<C, B>(model_, room(count, static_cast<int>(longest), true));
  }

  /// Room for 32 sequences side by side, or for as many as the GPU has free.
  [[nodiscard]] DecodeRoom room(std::size_t asked, int length, bool all_logits) {
    DecodeRoom room{.sequences = static_cast<int>(std::clamp<std::size_t>(asked, 1, most_side_by_side)),
                    .length = length,
                    .step_tokens = decode_step_tokens,
                    .all_logits = all_logits};
#ifdef QLORA_CUDA
    if constexpr (on_gpu<B>) {
      const cuda::DeviceInfo info = cuda::device_info(model_.backend().context());
      const std::int64_t own = info.allocated + info.workspace + gpu_storage.context;
      std::int64_t free = info.total - info.driver_used;
      if (machine_.memory_cap > 0) free = std::min(free, machine_.memory_cap - own);
      free -= gpu_reserve;
      while (room.sequences > 1 && decode_bytes(model_.resolved_config(), room, gpu_storage) > free) --room.sequences;
    }
#endif
    return room;
  }

  int limit_;
  Machine machine_;
  Model<C, B>& model_;
};

/// A session with a model of its own.
template <Config C, class B>
class CompiledSession final : public Session {
 public:
  CompiledSession(const hf::ModelDir& model, const ModelOptions& options, const Machine& machine)
      : model_(model.source(), options, make_backend<B>(machine)), session_(model_, model.max_positions, machine) {
    model_.use_adapters(false);
  }

  void attach(const PeftAdapter& adapter) override { session_.attach(adapter); }
  void use_adapters(bool on) override { session_.use_adapters(on); }
  std::vector<Generated> generate(std::span<const std::vector<std::int32_t>> prompts, const GenerateOptions& options,
                                  const OnToken& on_token) override {
    return session_.generate(prompts, options, on_token);
  }
  std::vector<std::vector<double>> score(std::span<const Continuations> questions) override {
    return session_.score(questions);
  }
  void read(std::span<const std::vector<std::int32_t>> texts, const OnPrediction& use) override {
    session_.read(texts, use);
  }

 private:
  Model<C, B> model_;
  ModelSession<C, B> session_;
};

/// Options with the recomputation that is asked for, or that fits what the backend's card has free beside the probes.
/// Probes that do not fit side by side are planned for in smaller groups, down to one by one.
template <Config C, class B>
TrainOptions with_recompute(TrainOptions options, RecomputeChoice choice, [[maybe_unused]] DecodeRoom probes,
                            [[maybe_unused]] const Machine& machine, [[maybe_unused]] const B& backend) {
  const bool automatic = choice == RecomputeChoice::automatic;
  if (!automatic) {
    options.recompute = choice == RecomputeChoice::none    ? Recompute::none
                        : choice == RecomputeChoice::cheap ? Recompute::cheap
                                                           : Recompute::block;
  }
#ifdef QLORA_CUDA
  if constexpr (on_gpu<B>) {
    if (!automatic && probes.sequences == 0) return options;  // the arenas will say whether it fits
    if (automatic) options.recompute = Recompute::block;      // the most, as long as it is asked whether anything fits
    const ModelOptions opened = training_model<C, B>(options);
    const Config config = resolved(C, opened.shape, opened.lora);
    Run run = run_of(options, options.model.keep_dequantized);
    run.probing = probes;
    const std::int64_t budget = gpu_budget(backend, machine);
    const auto needed = [&] { return memory_plan(config, run, gpu_storage).total(); };
    while (run.probing.sequences > 1 && needed() > budget) run.probing.sequences /= 2;
    if (automatic) {
      run = choose_recompute(config, run, budget);
    } else if (needed() > budget) {
      qlora::detail::refuse_run(run, needed(), budget);
    }
    options.recompute = run.recompute;
    options.recompute_layers = run.recompute_layers;
  }
#endif
  return options;
}

template <Config C, class B>
class CompiledTraining final : public Training {
 public:
  CompiledTraining(const hf::ModelDir& model, const TrainOptions& options, B backend, const Machine& machine)
      : trainer_(model.source(), options, std::move(backend)),
        session_(trainer_.model(), model.max_positions, machine) {}

  StepReport step(const Windows& windows) override { return trainer_.step(windows); }
  [[nodiscard]] int steps_done() const override { return trainer_.core().steps_done(); }

  void save(const std::filesystem::path& root, const Json& state, int keep) override {
    std::vector<std::vector<float>> values;
    std::vector<NamedTensor> tensors;
    values.reserve(3);
    trainer_.core().for_each_state([&](const std::string& name, const float* data, std::int64_t count) {
      std::span<const float> host(data, static_cast<std::size_t>(count));
      if constexpr (on_gpu<B>) {
        std::vector<float>& copy = values.emplace_back(host.size());
        trainer_.model().backend().download(data, copy);
        host = copy;
      }
      tensors.push_back({name, {count}, host});
    });
#ifdef QLORA_CUDA
    // Which algorithms were measured to be fast decides the order of sums: a resumed run must use the same.
    if constexpr (on_gpu<B>) {
      make_directories(root);
      write_file_atomically(algorithms_in(root), cuda::algorithms(trainer_.model().backend().context()));
    }
#endif
    save_checkpoint(root, steps_done(), tensors, state, keep);
  }

  void restore(const Checkpoint& checkpoint) override {
    trainer_.core().for_each_state([&](const std::string& name, float* data, std::int64_t count) {
      const TensorRef tensor = checkpoint.tensors.at(name);
      if (tensor.dtype != DType::f32 || tensor.size() != count) {
        throw Error(checkpoint.path.string() + ": '" + name + "' is not of this model and rank cap");
      }
      std::vector<float> values(static_cast<std::size_t>(count));
      std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
      trainer_.model().backend().upload(values, data);
    });
#ifdef QLORA_CUDA
    if constexpr (on_gpu<B>) {
      const std::filesystem::path file = algorithms_in(checkpoint.path.parent_path());
      if (std::filesystem::exists(file)) {
        cuda::load_algorithms(trainer_.model().backend().context(), read_text(file, std::size_t{16} << 20));
      }
    }
#endif
    trainer_.core().set_steps_done(static_cast<int>(checkpoint.step));
  }

  void write(const std::filesystem::path& dir, [[maybe_unused]] PeftConfig config,
             [[maybe_unused]] const hf::ModelDir& base) override {
    if constexpr (C.trainable == Trainable::all) {
      hf::ModelWriter writer(dir, base, {.tokenizer_from = base.path});
      trainer_.model().weights().for_each_trained(
          [&](const std::string& name, std::int64_t rows, std::int64_t cols, std::int64_t offset) {
            writer.write(name, {trainer_.model().weights().trained() + offset, static_cast<std::size_t>(rows * cols)});
          });
      writer.finish();
    } else {
      config.targets = trainer_.model().resolved_config().lora.targets;
      qlora::write_adapter(dir, trainer_.model(), config);
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
  [[nodiscard]] static std::filesystem::path algorithms_in(const std::filesystem::path& root) {
    return root / "algorithms.txt";
  }

  mutable Trainer<C, B> trainer_;  // its accessors are not const
  ModelSession<C, B> session_;
};

template <Config C, class B>
class CompiledVariant final : public Variant {
 public:
  [[nodiscard]] const Config& config() const override { return config_; }

  [[nodiscard]] Device device() const override { return on_gpu<B> ? Device::cuda : Device::cpu; }

  [[nodiscard]] std::unique_ptr<Session> open(const hf::ModelDir& model, Base base, const Lora& adapters,
                                              const Machine& machine) const override {
    if constexpr (C.trainable == Trainable::all) {
      throw Error("this variant trains", ErrorKind::usage);  // choose_variant gives another for a session
    } else {
      ModelOptions options = model_options<B>(model, machine);
      if (base == Base::full) {
        // Adapters are never attached: the least rank cap whose rows are aligned, so that all variants of a shape share
        // this code.
        constexpr Config plain = C.with(unquantized).with(Lora{.rank = B::rank_step, .targets = Proj::q});
        return std::make_unique<CompiledSession<plain, B>>(model, options, machine);
      }
      options.lora = {.rank = (std::max(adapters.rank, 1) + B::rank_step - 1) / B::rank_step * B::rank_step,
                      .targets = adapters.targets};
      return std::make_unique<CompiledSession<C, B>>(model, options, machine);
    }
  }

  [[nodiscard]] std::unique_ptr<Training> train(const hf::ModelDir& model, TrainOptions options,
                                                RecomputeChoice recompute, const DecodeRoom& probes,
                                                const Machine& machine) const override {
    B backend = make_backend<B>(machine);
    options.model = model_options<B>(model, machine);
    options = with_recompute<C, B>(options, recompute, probes, machine, backend);
    return std::make_unique<CompiledTraining<C, B>>(model, options, std::move(backend), machine);
  }

 private:
  Config config_ = C;
};

/// Puts a config on the list before main begins.
template <Config C, class B = Cpu<>>
requires ValidConfig<C>
struct Registered {
  Registered() { variants().push_back(std::make_unique<CompiledVariant<C, B>>()); }
};

}  // namespace qlora::program
