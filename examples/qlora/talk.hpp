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
};

/// Implemented in steps.cpp.
class Talker {
 public:
  /// Throws Error as run::Engine does.
  explicit Talker(const TalkModel& how);
  Talker(const Talker&) = delete;
  Talker& operator=(const Talker&) = delete;
  ~Talker();

  /// Asks one question and writes the answer while it comes; characters are written whole.
  [[nodiscard]] Continuation continued(const std::string& text, const run::Sampling& sampling, Context& context);
  [[nodiscard]] Turn answered(const std::string& question, const std::vector<Message>& history,
                              const run::Sampling& sampling, Context& context);

 private:
  std::unique_ptr<run::Engine> engine_;
};

}  // namespace qlora::program
