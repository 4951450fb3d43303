// A completion model has not learned to take turns.
// expect: no matching function for call to .qlora::v0::Generator<.*chat
#include <string>
#include <vector>

#include "case.hpp"
#include "qlora/llama2.hpp"

struct Tokenizer {
  std::int32_t bos() const { return 1; }
  std::int32_t eos() const { return 2; }
  int vocab_size() const { return 64; }
  std::string decode(const std::vector<std::int32_t>&) const { return {}; }
};
std::vector<std::int32_t> chat_tokens(const Tokenizer&, const std::vector<std::string>&) { return {1}; }

constexpr qlora::Config config = sound.with(right ? qlora::Form::chat : qlora::Form::completion);
std::string ask(qlora::Generator<config, qlora::Cpu<float>>& generator) {
  return generator.chat(Tokenizer{}, std::vector<std::string>{"Hello"});
}
