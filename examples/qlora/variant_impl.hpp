// variant_impl.hpp — compiles a config for the program: three lines in a .cpp beside this file are all it takes,
//   #include "variant_impl.hpp"
//   static constexpr qlora::Config mine{.shape = {...}, .lora = {.rank = 64}};
//   static const qlora::program::Registered<mine> registered;
// Everything expensive to compile is included here and nowhere else in the program.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "qlora/llama2.hpp"
#include "variant.hpp"

namespace qlora::program {

inline ModelOptions model_options(const hf::ModelDir& model) {
  return {.rope_theta = model.rope_theta,
          .norm_eps = model.norm_eps,
          .keep_dequantized = parameters(model.shape) <= dense_limit};
}

/// A tensor of an adapter as floats.
inline std::vector<float> floats_of(const TensorSource& source, const std::string& name) {
  const auto tensor = source(name);
  if (!tensor) return {};
  std::vector<float> values(static_cast<std::size_t>(tensor->size()));
  read_floats(*tensor, 0, values);
  return values;
}

template <Config C>
class CompiledSession final : public Session {
 public:
  CompiledSession(const hf::ModelDir& model, int threads)
      : limit_(model.max_positions), model_(model.source(), model_options(model), Cpu<>(threads)) {
    model_.use_adapters(false);
  }

  void attach(const PeftAdapter& adapter) override {
    if constexpr (C.quant.kind == QuantKind::none) {
      throw Error("an adapter is attached to the quantized model", ErrorKind::usage);
    } else {
      QLORA_EXPECTS(adapter.layers <= C.shape.layers, adapter.path.string(), " has ", adapter.layers,
                    " layers, the model ", C.shape.layers);
      auto& weights = model_.weights();
      weights.for_each_target([&](int layer, Proj one) {
        std::vector<float> a = floats_of(adapter.source(), lora_name(layer, one, 'A'));
        std::vector<float> b = floats_of(adapter.source(), lora_name(layer, one, 'B'));
        int rank = rank_of(adapter, layer, one);
        const float alpha = scale_of(adapter, layer, one) * static_cast<float>(rank);
        if (a.empty()) {  // not adapted: a product with zeros
          rank = 1;
          a.assign(static_cast<std::size_t>(cols_of(C.shape, one)), 0.0F);
          b.assign(static_cast<std::size_t>(rows_of(C.shape, one)), 0.0F);
        }
        weights.load_adapter(model_.backend(), layer, one, rank, alpha, false, a, b);
      });
      model_.use_adapters(true);
    }
  }

  void use_adapters(bool on) override { model_.use_adapters(on && C.quant.kind != QuantKind::none); }

  std::vector<Generated> generate(std::span<const std::vector<std::int32_t>> prompts, const GenerateOptions& options,
                                  const OnToken& on_token) override {
    std::size_t longest = 1;
    for (const auto& prompt : prompts) longest = std::max(longest, prompt.size());
    if (longest >= static_cast<std::size_t>(limit_)) {
      throw Error(qlora::detail::concat("a prompt of ", longest, " tokens; the model's context holds ", limit_));
    }
    const std::int64_t wanted = static_cast<std::int64_t>(longest) + options.max_new_tokens;
    const int slots = static_cast<int>(std::clamp<std::size_t>(prompts.size(), 1, 32));
    Generator<C, Cpu<>> generator(
        model_,
        {.sequences = slots, .length = static_cast<int>(std::min<std::int64_t>(wanted, limit_)), .step_tokens = 512});
    return generator.generate(prompts, options, on_token);
  }

 private:
  int limit_;
  Model<C, Cpu<>> model_;
};

template <Config C>
class CompiledTraining final : public Training {
 public:
  CompiledTraining(const hf::ModelDir& model, const TrainOptions& options, int threads)
      : trainer_(model.source(), options, Cpu<>(threads)) {}

  StepReport step(const Windows& windows) override { return trainer_.step(windows); }
  [[nodiscard]] int steps_done() const override { return const_cast<Trainer<C, Cpu<>>&>(trainer_).core().steps_done(); }

  void save(const std::filesystem::path& root, const Json& state, int keep) override {
    std::vector<NamedTensor> tensors;
    trainer_.core().for_each_state([&](const std::string& name, const float* data, std::int64_t count) {
      tensors.push_back({name, {count}, {data, static_cast<std::size_t>(count)}});
    });
    save_checkpoint(root, steps_done(), tensors, state, keep);
  }

  void restore(const Checkpoint& checkpoint) override {
    trainer_.core().for_each_state([&](const std::string& name, float* data, std::int64_t count) {
      const TensorRef tensor = checkpoint.tensors.at(name);
      if (tensor.dtype != DType::f32 || tensor.size() != count) {
        throw Error(checkpoint.path.string() + ": '" + name + "' is not of this model and rank cap");
      }
      std::memcpy(data, tensor.bytes.data(), tensor.bytes.size());
    });
    trainer_.core().set_steps_done(static_cast<int>(checkpoint.step));
  }

  void write_adapter(const std::filesystem::path& dir, const PeftConfig& config) override {
    struct Matrix {
      std::string name;
      std::vector<std::int64_t> shape;
      std::vector<float> data;
    };
    std::vector<Matrix> matrices;
    auto& model = trainer_.model();
    model.weights().for_each_target([&](int layer, Proj one) {
      Matrix a{lora_name(layer, one, 'A'), {}, {}};
      Matrix b{lora_name(layer, one, 'B'), {}, {}};
      model.weights().save_adapter(model.backend(), layer, one, a.data, b.data);
      const std::int64_t rank = model.weights().adapter(layer, one).rank;
      a.shape = {rank, cols_of(C.shape, one)};
      b.shape = {rows_of(C.shape, one), rank};
      matrices.push_back(std::move(a));
      matrices.push_back(std::move(b));
    });
    std::vector<PeftTensor> tensors;
    for (const Matrix& one : matrices) tensors.push_back({one.name, one.shape, one.data});
    write_peft(dir, config, tensors);
  }

 private:
  Trainer<C, Cpu<>> trainer_;
};

template <Config C>
class CompiledVariant final : public Variant {
 public:
  [[nodiscard]] const Config& config() const override { return config_; }

  [[nodiscard]] std::unique_ptr<Session> open(const hf::ModelDir& model, Base base, int threads) const override {
    // Without adapters the rank cap changes nothing: the least one, so that all variants of a shape share this code.
    constexpr Config plain = C.with(unquantized).with(Lora{.rank = 1, .targets = Proj::q});
    if (base == Base::full) return std::make_unique<CompiledSession<plain>>(model, threads);
    return std::make_unique<CompiledSession<C>>(model, threads);
  }

  [[nodiscard]] std::unique_ptr<Training> train(const hf::ModelDir& model, TrainOptions options,
                                                int threads) const override {
    options.model = model_options(model);
    return std::make_unique<CompiledTraining<C>>(model, options, threads);
  }

 private:
  Config config_ = C;
};

/// Puts a config on the list before main begins.
template <Config C>
requires ValidConfig<C>
struct Registered {
  Registered() { variants().push_back(std::make_unique<CompiledVariant<C>>()); }
};

}  // namespace qlora::program
