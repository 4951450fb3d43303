// examples/02_finetune.cpp — trains an adapter on a packed data set, then answers a prompt with it. A run that
// was interrupted resumes from its newest checkpoint.
//   02_finetune MODEL_DIR DATA_DIR OUT_DIR PROMPT
#include <iostream>
#include <qlora/configs/any.hpp>
#include <qlora/run/compiled.hpp>
#include <qlora/run/console_progress.hpp>
#include <qlora/run/engine.hpp>
#include <qlora/run/train.hpp>

static const qlora::run::RegisteredCode<qlora::any_model> any_model_code;

int main(int argc, char** argv) try {
  if (argc != 5) throw qlora::Error("usage: 02_finetune MODEL_DIR DATA_DIR OUT_DIR PROMPT", qlora::ErrorKind::usage);
  qlora::run::ConsoleProgress progress(std::cerr, qlora::run::style_for(2));
  qlora::run::TrainRequest request{.model = argv[1], .data = argv[2], .out = argv[3]};
  request.options = {.rank = 16, .lr = 1e-3, .epochs = 3, .checkpoint_every = 10};
  request.device.memory_cap = {20'000'000'000};  // bytes of GPU memory, where one is used
  const qlora::run::TrainResult result = qlora::run::train(request, progress);
  qlora::run::Engine engine(argv[1], {.adapters = {{"tuned", result.trained}}});
  engine.use("tuned");
  std::cout << engine.ask({{.chat = true, .prompt = argv[4], .history = {}}}, {.max_new_tokens = 40})[0].text << '\n';
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
