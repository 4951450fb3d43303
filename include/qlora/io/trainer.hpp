// qlora/io/trainer.hpp — the files of a Trainer: its state as a checkpoint, so that a run which resumes gives the bits
// of one that was not interrupted, and all of its trained weights as a model. Adapters: write_adapter in
// io/adapter.hpp.
//   restore_trainer(trainer, "run/checkpoints");  // goes on where a run before it stopped; a fresh one begins
//   while (trainer.core().steps_done() < steps) {
//     trainer.step(windows);
//     save_trainer(trainer, "run/checkpoints");
//   }
#pragma once

#include <concepts>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "qlora/io/checkpoint.hpp"
#include "qlora/io/hf_writer.hpp"
#include "qlora/train/trainer.hpp"

namespace qlora {
inline namespace v0 {
namespace detail {

[[nodiscard]] inline std::filesystem::path algorithms_in(const std::filesystem::path& root) {
  return root / "algorithms.txt";
}

}  // namespace detail

/// Saves parameters and moments under root/checkpoint-STEP, as save_checkpoint does with `state` and `keep`. Of several
/// ranks all call this, and rank 0 writes: the checkpoint has the bytes of one process's.
template <Config C, class B>
void save_trainer(Trainer<C, B>& trainer, const std::filesystem::path& root, const Json& state = Json::object(),
                  int keep = 2) {
  std::vector<std::vector<float>> copies;  // of what is not in host memory
  std::vector<NamedTensor> tensors;
  trainer.core().for_each_state([&](const std::string& name, const float* data, std::int64_t count) {
    if (trainer.core().rank() != 0) return;
    std::span<const float> host(data, static_cast<std::size_t>(count));
    if (B::space != Space::host || trainer.core().ranks() > 1) {
      std::vector<float>& copy = copies.emplace_back(host.size());
      trainer.model().backend().download(data, copy);
      host = copy;
    }
    tensors.push_back({name, {count}, host});
  });
  if (trainer.core().rank() != 0) return;
  if constexpr (detail::ChoosesAlgorithms<B>) {
    make_directories(root);
    write_file_atomically(detail::algorithms_in(root), trainer.model().backend().algorithms());
  }
  save_checkpoint(root, trainer.core().steps_done(), tensors, state, keep);
}

/// Has a trainer use the algorithms that a run saved with its checkpoints under `root`, if there are any: then it
/// computes the bits of that run. Before its first step.
template <Config C, class B>
void load_algorithms([[maybe_unused]] Trainer<C, B>& trainer, [[maybe_unused]] const std::filesystem::path& root) {
  if constexpr (detail::ChoosesAlgorithms<B>) {
    const std::filesystem::path file = detail::algorithms_in(root);
    if (!std::filesystem::exists(file)) return;
    trainer.model().backend().load_algorithms(read_text(file, std::size_t{16} << 20));
  }
}

/// Puts a trainer into the state of a checkpoint, which may be of another number of ranks. Throws Error when it is of
/// another shape or rank cap.
template <Config C, class B>
void restore_trainer(Trainer<C, B>& trainer, const CheckpointTensors& checkpoint) {
  const auto entry = trainer.context().enter_training();
  trainer.core().for_each_part([&](const std::string& name, float* data, std::int64_t first, std::int64_t count,
                                   std::int64_t all, std::int64_t /*numbers*/) {
    const TensorRef tensor = checkpoint.tensors.at(name);
    if (tensor.dtype != DType::f32 || tensor.size() != all) {
      throw Error(checkpoint.path.string() + ": '" + name + "' is not of this model and rank cap");
    }
    std::vector<float> values(static_cast<std::size_t>(count));
    std::memcpy(values.data(), tensor.bytes.data() + first * 4, values.size() * 4);
    trainer.model().backend().upload(values, data);
  });
  load_algorithms(trainer, checkpoint.path.parent_path());
  trainer.core().set_steps_done(static_cast<int>(checkpoint.step));
  trainer.model().weights().own().rows_changed();
  trainer.core().measure_rows(entry);
}

/// Puts a trainer into the state of the newest checkpoint of `root` that verifies; false when there is none. Throws
/// Error when none of those that are there verifies, or when it is of another shape or rank.
template <Config C, class B>
bool restore_trainer(Trainer<C, B>& trainer, const std::filesystem::path& root) {
  const CheckpointSearch found = load_latest_checkpoint(root);
  if (!found.checkpoint && !found.skipped.empty()) {
    throw Error(concat("no checkpoint in ", root.string(), " can be read: ", found.skipped.front()));
  }
  if (found.checkpoint) restore_trainer(trainer, *found.checkpoint);
  return found.checkpoint.has_value();
}

/// Writes all weights of a model that was trained whole, on a backend in host memory, and finishes the writer.
template <Config C, class B>
requires(C.trainable == Trainable::all && B::space == Space::host) void write_trained(hf::ModelWriter& writer,
                                                                                      Trainer<C, B>& trainer) {
  const auto& weights = trainer.model().weights();
  weights.for_each_trained([&](const std::string& name, std::int64_t rows, std::int64_t cols, std::int64_t offset) {
    writer.write(name, {weights.trained() + offset, static_cast<std::size_t>(rows * cols)});
  });
  writer.finish();
}

}  // namespace v0
}  // namespace qlora
