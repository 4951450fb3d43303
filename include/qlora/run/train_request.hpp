// qlora/run/train_request.hpp — what a training run takes and returns; see run/train.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "qlora/dist/launch.hpp"
#include "qlora/run/device.hpp"
#include "qlora/run/options.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

struct StepRecord;

/// A training to be run, or resumed.
struct TrainRequest {
  std::filesystem::path model{};  ///< model directory
  std::filesystem::path data{};   ///< packed data set
  std::filesystem::path out{};    ///< directory of checkpoints, records and what was trained
  Training options{};             ///< method, schedule and batches
  LoopProbes loop{};              ///< probes that are measured in the loop
  DeviceRequest device{};         ///< where to train
  bool restart = false;           ///< remove the checkpoints that are there and begin anew
  dist::Launch launch{};          ///< which of how many processes this is; each is given the same request
  ChatChoice chat{};              ///< the form in which probes are asked, if not the model's own
  /// Called on rank 0 with each step of this start once its record is written (training_log.hpp); empty: nobody asks.
  std::function<void(const StepRecord&)> on_step{};
};

/// How a training ended.
struct TrainResult {
  int steps = 0;                  ///< done when the run ended
  int stopped_at = 0;             ///< the step at which the guard ended the run; 0: it did not
  int resumed_after = 0;          ///< the step of the checkpoint that this start continued from; 0: none
  std::size_t windows = 0;        ///< of the data set
  double first_loss = 0;          ///< nats per labelled token
  double last_loss = 0;           ///< of the step that the run ended at, which need not be the last that was made
  double tok_per_s = 0;           ///< of this start, measurements and checkpoints included
  Method method = Method::qlora;  ///< what was trained
  /// of the adapters, padding up to a rank cap not counted, or of the whole model
  std::int64_t trained_parameters = 0;
  Device device = Device::cpu;    ///< where it ran
  std::string about;              ///< the device and the recomputation in words
  std::int64_t memory_bytes = 0;  ///< arenas, and on a GPU the libraries' workspaces
  std::filesystem::path trained;  ///< directory of the adapter, or of the model
};

}  // namespace run
}  // namespace v0
}  // namespace qlora
