// qlora/serve/service.hpp — the thread that owns a BatchSession, and the bounded way to it: many threads hand requests
// in and take them back, one runs them.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/generate/request.hpp"
#include "qlora/serve/metrics.hpp"

namespace qlora {
inline namespace v0 {
namespace serve {

/// What happened to a request of a group.
struct Update {
  std::size_t which = 0;              ///< its place in the group
  Progressed progressed{};            ///< of no meaning where it failed
  std::string error{};                ///< why it failed and is over; empty: it did not
  ErrorKind kind = ErrorKind::input;  ///< of the error
};

/// Gets the updates of a group, on the service's thread: it hands them on and does not keep that thread.
using OnUpdate = std::function<void(Update)>;

/// Whether nobody waits for a group any more. Asked on the service's thread before each step.
using HasLeft = std::function<bool()>;

/// Requests that were handed in together. Never 0, and never used twice.
using GroupId = std::uint64_t;

/// Runs requests. Members may be called by any thread.
class Service {
 public:
  /// Requests that run and wait at once are at most the session's slots and `most_waiting`.
  Service(std::unique_ptr<BatchSession> session, int most_waiting, Metrics& metrics)
      : session_(std::move(session)),
        context_(session_->context()),
        load_(session_->load()),
        most_(static_cast<std::size_t>(load_.slots + most_waiting)),
        metrics_(metrics),
        thread_([this] { run(); }) {}
  Service(const Service&) = delete;
  Service& operator=(const Service&) = delete;
  ~Service() { stop(); }

  /// Tokens that prompt and reply have together at most.
  [[nodiscard]] int context() const { return context_; }
  /// Requests that may run and wait at once.
  [[nodiscard]] std::size_t most() const { return most_; }

  /// Takes all of these, or, when there is no room for them, none and gives nothing back. No token is drawn once
  /// `has_left` says so, even if cancel() comes later, from a thread that waits for a core.
  [[nodiscard]] std::optional<GroupId> submit(std::vector<Request> requests, OnUpdate on_update,
                                              HasLeft has_left = {}) {
    const std::lock_guard lock(mutex_);
    if (stopping_ || !failure_.empty() || accepted_ + requests.size() > most_) {
      metrics_.refused();
      return std::nullopt;
    }
    accepted_ += requests.size();
    const GroupId id = ++groups_;
    auto client = std::make_shared<const Client>(Client{std::move(on_update), std::move(has_left)});
    for (std::size_t i = 0; i < requests.size(); ++i) {
      arrivals_.push_back({id, i, std::move(requests[i]), client, Clock::now()});
    }
    changed_.notify_one();
    return id;
  }
  /// Ends one request of a group, whose reply is whole by a stop string, or all of them, whose client has gone. An
  /// update of the step that is under way may still come.
  void cancel(GroupId group, std::optional<std::size_t> which = std::nullopt) {
    const std::lock_guard lock(mutex_);
    cancels_.push_back({group, which});
    changed_.notify_one();
  }

  /// What runs and waits.
  [[nodiscard]] SchedulerLoad load() const {
    const std::lock_guard lock(mutex_);
    return load_;
  }
  /// Requests that were taken and that load() does not know yet.
  [[nodiscard]] int queued() const {
    const std::lock_guard lock(mutex_);
    return std::max(0, static_cast<int>(accepted_) - load_.running - load_.waiting);
  }
  /// Why the session can no longer run; empty: it can.
  [[nodiscard]] std::string failure() const {
    const std::lock_guard lock(mutex_);
    return failure_;
  }
  /// Ends all requests and the thread. Updates do not come any more when this returns.
  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
      changed_.notify_one();
    }
    if (thread_.joinable()) thread_.join();
  }

 private:
  using Clock = std::chrono::steady_clock;
  /// Whoever waits for a group.
  struct Client {
    OnUpdate on_update;
    HasLeft has_left;
  };
  struct Arrival {
    GroupId group = 0;
    std::size_t which = 0;
    Request request{};
    std::shared_ptr<const Client> client{};
    Clock::time_point came{};
  };
  struct Cancel {
    GroupId group = 0;
    std::optional<std::size_t> which{};
  };
  struct Running {
    GroupId group = 0;
    std::size_t which = 0;
    std::int64_t prompt = 0;
    std::shared_ptr<const Client> client{};
    Clock::time_point came{};
    std::optional<Clock::time_point> last{};  ///< when its newest token came
  };
  using RunningMap = std::unordered_map<Ticket, Running>;

  void run() {
    bool more = false;
    for (;;) {
      std::deque<Arrival> arrivals;
      std::vector<Cancel> cancels;
      // Before cancels are taken: who leaves with a reply that a stop string has ended is counted by that cancel.
      const std::vector<Ticket> left = those_who_left();
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return more || stopping_ || !arrivals_.empty() || !cancels_.empty(); });
        if (stopping_) break;
        arrivals.swap(arrivals_);
        cancels.swap(cancels_);
      }
      for (Arrival& arrival : arrivals) {
        if (is_cancelled(arrival, cancels)) {
          leave(1);
        } else {
          admit(std::move(arrival));
        }
      }
      for (const Cancel& cancel : cancels) end(cancel);
      for (const Ticket ticket : left) end_for_nobody(ticket);
      try {
        more = !running_.empty() && session_->step([this](const Progressed& news) { pass_on(news); });
      } catch (const std::exception& error) {
        fail(error);
        more = false;
      }
      const std::lock_guard lock(mutex_);
      load_ = session_->load();
    }
    for (const auto& [ticket, running] : running_) session_->cancel(ticket);
    running_.clear();
    const std::lock_guard lock(mutex_);
    arrivals_.clear();
  }

  [[nodiscard]] static bool is_cancelled(const Arrival& arrival, const std::vector<Cancel>& cancels) {
    for (const Cancel& cancel : cancels) {
      if (cancel.group == arrival.group && (!cancel.which || *cancel.which == arrival.which)) return true;
    }
    return false;
  }
  void admit(Arrival arrival) {
    const auto prompt = static_cast<std::int64_t>(arrival.request.prompt.size());
    Update refused{.which = arrival.which};
    try {
      if (failed_) throw Error(failure(), ErrorKind::resource);
      const Ticket ticket = session_->submit(std::move(arrival.request));
      running_.emplace(ticket, Running{arrival.group, arrival.which, prompt, arrival.client, arrival.came, {}});
      return;
    } catch (const Error& error) {
      refused.error = error.what();
      refused.kind = error.kind();
    } catch (const std::exception& error) {
      refused.error = error.what();
      refused.kind = ErrorKind::resource;
    }
    leave(1);
    metrics_.ended("failed", 0.0);
    arrival.client->on_update(std::move(refused));
  }
  void end(const Cancel& cancel) {
    for (auto i = running_.begin(); i != running_.end();) {
      const Running& running = i->second;
      if (running.group != cancel.group || (cancel.which && *cancel.which != running.which)) {
        ++i;
        continue;
      }
      session_->cancel(i->first);
      metrics_.ended(cancel.which ? "stop" : "cancelled", since(running.came));
      i = running_.erase(i);
      leave(1);
    }
  }
  /// Replies whose client has left in the middle. Those that wait for their first token are left to cancel(): they may
  /// be many, and each look costs a call of the kernel.
  [[nodiscard]] std::vector<Ticket> those_who_left() const {
    std::vector<Ticket> out;
    for (const auto& [ticket, running] : running_) {
      if (running.last && running.client->has_left && running.client->has_left()) out.push_back(ticket);
    }
    return out;
  }
  void end_for_nobody(Ticket ticket) {
    const auto found = running_.find(ticket);
    if (found == running_.end()) return;
    const Running running = std::move(found->second);
    running_.erase(found);
    session_->cancel(ticket);
    metrics_.ended("cancelled", since(running.came));
    leave(1);
    // For a client that has closed its sending side only, and still reads.
    running.client->on_update({.which = running.which, .error = "the client has gone", .kind = ErrorKind::interrupted});
  }
  void pass_on(const Progressed& news) {
    const auto found = running_.find(news.ticket);
    if (found == running_.end()) return;
    Running& running = found->second;
    const bool first = !running.last.has_value();
    if (first) metrics_.began(running.prompt, news.prompt_cached, since(running.came));
    metrics_.drew(static_cast<std::int64_t>(news.tokens.size()), first ? 0.0 : since(*running.last), first);
    running.last = Clock::now();
    const std::shared_ptr<const Client> client = running.client;
    const std::size_t which = running.which;
    if (news.finish != Finish::running) {
      metrics_.ended(news.finish == Finish::stop ? "stop" : "length", since(running.came));
      running_.erase(found);
      leave(1);
    }
    client->on_update({.which = which, .progressed = news});
  }
  /// A step that fails leaves the session in no known state: nothing runs on it any more.
  void fail(const std::exception& error) {
    const auto* own = dynamic_cast<const Error*>(&error);
    RunningMap all = std::exchange(running_, {});
    failed_ = true;
    {
      const std::lock_guard lock(mutex_);
      failure_ = error.what();
      accepted_ = 0;
    }
    for (auto& [ticket, running] : all) {
      session_->cancel(ticket);
      metrics_.ended("failed", since(running.came));
      running.client->on_update(
          {.which = running.which, .error = error.what(), .kind = own == nullptr ? ErrorKind::resource : own->kind()});
    }
  }
  void leave(std::size_t count) {
    const std::lock_guard lock(mutex_);
    accepted_ -= std::min(accepted_, count);
  }
  [[nodiscard]] static double since(Clock::time_point then) {
    return std::chrono::duration<double>(Clock::now() - then).count();
  }

  std::unique_ptr<BatchSession> session_;  // of the thread
  RunningMap running_;                     // of the thread
  bool failed_ = false;                    // of the thread: a step has failed
  int context_;
  mutable std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  std::deque<Arrival> arrivals_;
  std::vector<Cancel> cancels_;
  SchedulerLoad load_;
  std::size_t most_;
  std::size_t accepted_ = 0;
  GroupId groups_ = 0;
  std::string failure_;
  bool stopping_ = false;
  Metrics& metrics_;
  std::thread thread_;  // last: it uses the others
};

}  // namespace serve
}  // namespace v0
}  // namespace qlora
