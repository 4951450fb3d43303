// qlora/run/model_files.hpp — what is read of a model directory beside its weights.
#pragma once

#include <filesystem>
#include <string>
#include <utility>

#include "qlora/io/checksum.hpp"
#include "qlora/io/hf_model.hpp"
#include "qlora/run/progress.hpp"
#include "qlora/text/chat_directory.hpp"
#include "qlora/text/chat_template.hpp"
#include "qlora/text/tokenizer.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// What sessions read of a model directory, beside its weights. Any number of threads may read it at once.
struct ModelFiles {
  hf::ModelDir model;   ///< config and weights
  Tokenizer tokenizer;  ///< of that model
  ChatTemplate chat;    ///< how that model's conversations are written
};

/// Opens what lies in a directory; config first, so that what is no model is called so. `form`: the name of a form of
/// conversations; empty: the model's own. Throws Error as hf::ModelDir::open, Tokenizer::load and chat_template_of do.
[[nodiscard]] inline ModelFiles open_files(const std::filesystem::path& dir, Verify verify = Verify::checksums,
                                           const std::string& form = {}) {
  hf::ModelDir model = hf::ModelDir::open(dir, verify);
  Tokenizer tokenizer = Tokenizer::load(tokenizer_file(dir));
  ChatTemplate chat = chat_template_of(dir, tokenizer, form);
  return {std::move(model), std::move(tokenizer), std::move(chat)};
}

/// Tells of what is odd in a model's files and harmless.
inline void say_note(const hf::ModelDir& model, Progress& progress) {
  if (!model.note().empty()) progress.say(model.note());
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
