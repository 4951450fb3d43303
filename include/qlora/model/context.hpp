// qlora/model/context.hpp — where one thread computes with a model: a backend of its own (on the CPU a thread pool, on
// a GPU a stream with handles and workspaces) and the adapters in use with their scale. Weights are shared and do not
// change, so that many contexts on one model run side by side.
//   qlora::Context mine = model.new_context();   mine.use("legal", 0.5F);
//   qlora::Generator<config, B> generator(mine);
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/model/weights.hpp"

namespace qlora {
inline namespace v0 {

template <Code K, class B>
class UsingAdapters;

/// Used by one thread at a time; a call that comes while another is running throws Error (usage). Generators and
/// scorers refer to it: it does not move.
template <Code K, class B>
class Context {
 public:
  /// Which adapters the calls of a context apply.
  class Adapters {
   public:
    /// The model's own; its base while these are not set.
    Adapters() = default;

   private:
    friend class Context;
    bool base_ = false;
    std::shared_ptr<const AdapterSet<B>> named_;  ///< null: the own
    float scale_ = 1.0F;
  };
  class Entry;

  /// On weights that `backend` can read: it loaded them, or was forked from the backend that did.
  Context(std::shared_ptr<const Weights<K, B>> weights, B backend)
      : weights_(std::move(weights)), backend_(std::move(backend)) {}
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  /// The weights that it shares with other contexts.
  [[nodiscard]] const Weights<K, B>& weights() const { return *weights_; }
  /// Its own backend.
  [[nodiscard]] B& backend() { return backend_; }
  /// The same, to look at.
  [[nodiscard]] const B& backend() const { return backend_; }

  /// The adapters of a name from now on, `scale` times as strong as they were trained; they stay when the name is
  /// detached. Throws Error (usage) for an unknown name, or a scale that is not finite.
  void use(std::string_view name, float scale = 1.0F) { (void)exchange(choice(name, scale)); }
  /// The model's own adapters, as a new context does. Throws Error (usage) for a scale that is not finite.
  void use_own(float scale = 1.0F) { (void)exchange(own_choice(scale)); }
  /// No adapters: the base, to the bit.
  void use_base() { (void)exchange(base()); }
  /// Takes a choice and gives the one before it; see UsingAdapters.
  Adapters exchange(Adapters next) {
    const Busy busy(*this);
    return std::exchange(adapters_, std::move(next));
  }
  /// What use() chooses, for exchange(). Throws Error as use() does.
  [[nodiscard]] Adapters choice(std::string_view name, float scale = 1.0F) const {
    Adapters next = own_choice(scale);
    next.named_ = weights_->named(name);
    return next;
  }
  /// What use_own() chooses.
  [[nodiscard]] static Adapters own_choice(float scale = 1.0F) {
    detail::expect_option(std::isfinite(scale), "the scale of adapters", scale, "finite");
    Adapters next;
    next.scale_ = scale;
    return next;
  }
  /// What use_base() chooses.
  [[nodiscard]] static Adapters base() {
    Adapters none;
    none.base_ = true;
    return none;
  }

  /// Whether calls apply the own adapters as they were trained; of a model that trains every weight always.
  [[nodiscard]] bool uses_own() const {
    return Weights<K, B>::full || (!adapters_.base_ && adapters_.named_ == nullptr && adapters_.scale_ == 1.0F);
  }
  /// What a pass through the network applies now.
  [[nodiscard]] AppliedAdapters<B> applied() const { return applied(adapters_); }

  /// What a pass would apply with such a choice.
  [[nodiscard]] AppliedAdapters<B> applied(const Adapters& choice) const {
    const AdapterSet<B>* set = chosen(choice);
    return {set != nullptr && set->is_set() ? set : nullptr, choice.scale_};
  }

  /// What keys and values depend on beside tokens: a cache is good while this is the same.
  struct Version {
    bool base = false;                           ///< no adapters are applied
    std::weak_ptr<const AdapterSet<B>> named{};  ///< empty: the own ones are
    float scale = 1.0F;                          ///< how strongly
    std::uint64_t writes = 0;                    ///< of what is applied, counted
    /// Whether nothing has changed.
    friend bool operator==(const Version& a, const Version& b) {
      const bool same_set = !a.named.owner_before(b.named) && !b.named.owner_before(a.named);
      return a.base == b.base && same_set && a.scale == b.scale && a.writes == b.writes;
    }
  };
  /// That of now, to be asked within a call.
  [[nodiscard]] Version version() const { return version(adapters_); }
  /// That of a choice.
  [[nodiscard]] Version version(const Adapters& choice) const {
    const AccessGate* read = gate(choice);
    return {choice.base_, choice.named_, choice.scale_, read != nullptr ? read->writes() : 0};
  }

  /// Held during a call that reads weights and adapters. Throws Error (usage) when another call is running here, or
  /// when the adapters in use are being written.
  [[nodiscard]] Entry enter() { return Entry(*this, false); }
  /// Held during a call in which rows of a pass have adapters of their own, these.
  [[nodiscard]] Entry enter(std::span<const Adapters* const> choices) { return Entry(*this, choices); }
  /// Held while the own adapters, or all weights, are trained.
  [[nodiscard]] Entry enter_training() { return Entry(*this, true); }

 private:
  friend class UsingAdapters<K, B>;
  /// The flag that a call is running.
  class Busy {
   public:
    explicit Busy(Context& context) : flag_(context.busy_) {
      if (flag_.test_and_set(std::memory_order_acquire)) {
        throw Error(
            "this context is busy with another call: one thread at a time uses it, and no call is made from a "
            "callback; make a context for each thread with Model::new_context()",
            ErrorKind::usage);
      }
    }
    Busy(const Busy&) = delete;
    Busy& operator=(const Busy&) = delete;
    ~Busy() { flag_.clear(std::memory_order_release); }

   private:
    std::atomic_flag& flag_;
  };

  [[nodiscard]] const AdapterSet<B>* chosen(const Adapters& choice) const {
    if (choice.base_ || Weights<K, B>::full) return nullptr;
    return choice.named_ != nullptr ? choice.named_.get() : &weights_->own();
  }
  /// Null: nothing that can change is read.
  [[nodiscard]] AccessGate* gate(const Adapters& choice) const {
    if constexpr (Weights<K, B>::full) return &weights_->own_gate();
    const AdapterSet<B>* set = chosen(choice);
    return set != nullptr ? &set->gate() : nullptr;
  }

  std::shared_ptr<const Weights<K, B>> weights_;
  B backend_;
  Adapters adapters_;
  std::atomic_flag busy_;

 public:
  /// One call of one thread.
  class Entry {
   public:
    Entry(const Entry&) = delete;
    Entry& operator=(const Entry&) = delete;

   private:
    friend class Context;
    Entry(Context& context, bool trains) : busy_(context) {
      if (trains) {
        writing_.emplace(context.weights_->own_gate());
      } else {
        read(context, context.adapters_);
      }
      context.backend_.bind();
    }
    Entry(Context& context, std::span<const Adapters* const> choices) : busy_(context) {
      for (const Adapters* choice : choices) read(context, *choice);
      context.backend_.bind();
    }
    void read(const Context& context, const Adapters& choice) {
      if (AccessGate* gate = context.gate(choice)) reading_.emplace_back(*gate);
    }

    Busy busy_;
    std::vector<Reading> reading_;
    std::optional<Writing> writing_;
  };
};

/// Other adapters in a context for as long as this lives; then those from before. Of one thread, as the context.
template <Code K, class B>
class UsingAdapters {
 public:
  /// Takes the choice now.
  UsingAdapters(Context<K, B>& context, typename Context<K, B>::Adapters adapters)
      : context_(context), before_(context.exchange(std::move(adapters))) {}
  UsingAdapters(const UsingAdapters&) = delete;
  UsingAdapters& operator=(const UsingAdapters&) = delete;
  ~UsingAdapters() { context_.adapters_ = std::move(before_); }

 private:
  Context<K, B>& context_;
  typename Context<K, B>::Adapters before_;
};

/// The base model, to the bit, for as long as this lives: AdaptersOff off(trainer.context());
template <Code K, class B>
class AdaptersOff {
 public:
  /// From now on.
  explicit AdaptersOff(Context<K, B>& context) : using_(context, Context<K, B>::base()) {}

 private:
  UsingAdapters<K, B> using_;
};

}  // namespace v0
}  // namespace qlora
