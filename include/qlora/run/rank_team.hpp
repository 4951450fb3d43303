// qlora/run/rank_team.hpp — one of the processes that share a training run, and what it agrees on with the others: what
// rank 0 did or could not do, what anyone was asked, which checkpoint there is. A process alone is a team of one, whose
// calls cost nothing.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "qlora/comm.hpp"
#include "qlora/dist/launch.hpp"
#include "qlora/dist/peers.hpp"
#include "qlora/error.hpp"
#include "qlora/io/checkpoint.hpp"
#include "qlora/run/progress.hpp"

namespace qlora {
inline namespace v0 {
namespace run {
namespace detail {

class RankTeam {
 public:
  /// `progress` says whether this process was asked to stop, and outlives this.
  RankTeam(const dist::Launch& launch, const Progress& progress) : launch_(launch), progress_(progress) {}
  RankTeam(const RankTeam&) = delete;
  RankTeam& operator=(const RankTeam&) = delete;

  /// All have come; null: there is one. From now on the Comm asks this object, which must outlive its use.
  void begin(Comm* comm) {
    comm_ = comm;
    if (comm == nullptr) return;
    peers_.emplace(*comm, [this] { return progress_.stop_requested(); });
    comm->set_watch([this](double seconds) { (*peers_)(seconds); });
  }
  /// For a message: ", 2 processes".
  [[nodiscard]] std::string about() const {
    return comm_ == nullptr ? std::string() : concat(", ", comm_->size(), " processes");
  }
  /// The watch of a Comm that is being made. Throws Error (resource) when the others do not come.
  void watch_joining(double seconds) const {
    const bool stopped = seconds > after_signal && progress_.stop_requested();
    if (!stopped && seconds < first_patience) return;
    throw Error(concat("rank ", launch_.rank, " of ", launch_.size, " has waited for the others for ",
                       static_cast<int>(seconds), " s", stopped ? ", and was told to stop" : "",
                       "; did all of them start, and can they reach one another?"),
                ErrorKind::resource);
  }
  /// Until end_step() a rank that does not answer is given up, after several times what the last step took.
  void begin_step(int step) {
    if (!peers_) return;
    peers_->set_doing(concat(" in step ", step));
    peers_->set_patience(patience_);
  }
  /// Measuring and saving between steps is done by rank 0 alone, and has no time limit.
  void end_step(int step, double seconds) {
    if (!peers_) return;
    peers_->set_doing(concat(" after step ", step));
    peers_->set_patience(std::numeric_limits<double>::infinity());
    patience_ = std::max(least_patience, 5.0 * seconds);
  }

  /// Runs `call` on rank 0, the others wait. What it throws, all throw.
  template <class Call>
  void on_first(Call&& call) {
    if (comm_ == nullptr) return call();
    spread(comm_->rank() == 0 ? failure_of(call) : std::string());
  }
  /// Runs `call` on all ranks at the same time. What it throws on rank 0, after it has sent what the others wait for,
  /// all throw.
  template <class Call>
  void on_all(Call&& call) {
    if (comm_ == nullptr) return call();
    spread(failure_of(call));
  }
  /// Whether it is so on any rank.
  [[nodiscard]] bool any(bool here) {
    if (comm_ == nullptr) return here;
    const std::vector<char> all = comm_->gather(static_cast<char>(here));
    return std::any_of(all.begin(), all.end(), [](char flag) { return flag != 0; });
  }
  /// Rank 0's text.
  [[nodiscard]] std::string broadcast(std::string text) {
    return comm_ == nullptr ? std::move(text) : comm_->broadcast(std::move(text));
  }
  /// What look(root) finds in a folder of checkpoints: rank 0 looks, the others open what it has found.
  template <class Look>
  [[nodiscard]] CheckpointSearch search(const std::filesystem::path& root, Look&& look) {
    CheckpointSearch found;
    on_first([&] { found = look(root); });
    if (comm_ == nullptr) return found;
    const std::string step = comm_->broadcast(found.checkpoint ? std::to_string(found.checkpoint->step) : "");
    if (comm_->rank() != 0 && !step.empty()) {
      const auto number = std::strtoll(step.c_str(), nullptr, 10);
      found.checkpoint = load_checkpoint(qlora::detail::checkpoint_path(root, number));
    }
    // Rank 0 refuses a folder in which nothing can be read, and so do the others.
    const std::string why = comm_->broadcast(found.skipped.empty() ? "" : found.skipped.front());
    if (comm_->rank() != 0 && !why.empty()) found.skipped.push_back(why);
    return found;
  }

 private:
  static constexpr double first_patience = 600.0;  ///< seconds: hosts read the model, the first step picks algorithms
  static constexpr double least_patience = 25.0;   ///< one that hangs ends the others within 30 s
  static constexpr double after_signal = 10.0;

  /// Empty: none; else a digit, the kind of the error, and its message.
  template <class Call>
  [[nodiscard]] std::string failure_of(Call&& call) {
    try {
      call();
    } catch (const Error& error) {
      if (comm_->rank() != 0) throw;
      return std::to_string(static_cast<int>(error.kind())) + error.what();
    }
    return {};
  }
  void spread(const std::string& failure) {
    const std::string told = comm_->broadcast(failure);
    if (!told.empty()) throw Error(told.substr(1), static_cast<ErrorKind>(told[0] - '0'));
  }

  dist::Launch launch_;
  const Progress& progress_;
  Comm* comm_ = nullptr;
  std::optional<dist::Peers> peers_;
  double patience_ = first_patience;
};

}  // namespace detail
}  // namespace run
}  // namespace v0
}  // namespace qlora
