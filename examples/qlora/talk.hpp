// talk.hpp — a model that answers one question after another; text appears as it comes.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "qlora/run/options.hpp"
#include "qlora/text/message.hpp"
#include "verb.hpp"

namespace qlora {
inline namespace v0 {
namespace run {
class Engine;
}  // namespace run
}  // namespace v0
}  // namespace qlora

namespace qlora::program {

struct TalkModel {
  std::filesystem::path model;
  std::filesystem::path adapter;  ///< may be empty
  run::Base weights;
  run::DeviceRequest device;
  bool any_base = false;
  run::ChatChoice chat;
};

/// Of all answers.
struct Speed {
  int tokens = 0;
  int timed = 0;       ///< tokens with one before them in their answer
  double seconds = 0;  ///< that these took
};

/// Implemented in steps.cpp.
class Talker {
 public:
  /// Tells `progress` of what is odd in the model's files. Throws Error as run::Engine does.
  Talker(const TalkModel& how, run::Progress& progress);
  Talker(const Talker&) = delete;
  Talker& operator=(const Talker&) = delete;
  ~Talker();

  /// Throws Error (input) for a model that has no chat form, and for a system prompt, alone in `history`, that contains
  /// one of chat_tags() or leaves no room for a question.
  void check_chat(const std::vector<Message>& history) const;
  /// What no turn may contain.
  [[nodiscard]] std::vector<std::string> chat_tags() const;
  /// Removes the oldest turns of `history`, never its system prompt, until the question and room for an answer fit the
  /// model's context, and returns how many. Throws Error (input) for a question that cannot be asked, because it is too
  /// long or contains one of chat_tags(); `history` then stays as it is.
  [[nodiscard]] int make_room(const std::string& question, std::vector<Message>& history,
                              const run::Sampling& sampling) const;

  /// Whether the adapter answers from now on, and how strongly. Throws Error (input) where there is none.
  void use(bool adapter, float scale);

  /// Asks one question and writes the answer while it comes; characters are written whole.
  [[nodiscard]] Continuation continued(const std::string& text, const run::Sampling& sampling, Context& context);
  [[nodiscard]] Turn answered(const std::string& question, const std::vector<Message>& history,
                              const run::Sampling& sampling, Context& context);
  /// Says how many tokens all answers had and how fast they came, the time up to the first one of each not counted.
  void say_speed(const Context& context) const;

 private:
  std::unique_ptr<run::Engine> engine_;
  bool has_adapter_ = false;
  Speed speed_;
};

}  // namespace qlora::program
