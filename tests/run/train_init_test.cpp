// train_init_test.cpp — a run whose adapters begin with what quantization lost (--init loftq), with DoRA and without:
// it begins so once, goes on from its checkpoint with the bits of a run that was not interrupted, and is refused for a
// model in 4 bits. The code that trains is the program's, for models of any shape.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <filesystem>
#include <string>

#include "qlora/run/pack.hpp"
#include "qlora/run/train.hpp"
#include "support/refusal.hpp"
#include "support/scratch.hpp"

using namespace qlora;

namespace {

const std::filesystem::path source = QLORA_SOURCE_DIR;

/// Keeps what is begun and said, and asks to stop after the first step where it is told to.
class Witness final : public run::Progress {
 public:
  explicit Witness(bool stops) : stops_(stops) {}
  void begin(std::string_view task, std::int64_t total, std::string_view unit, std::int64_t /*done*/) override {
    task_ = task;
    seen += concat(task, ' ', total, ' ', unit, '\n');
  }
  void update(std::int64_t /*done*/, std::int64_t /*tokens*/, std::string_view /*note*/) override {
    if (task_ == "train") stepped_ = true;
  }
  void end(std::string_view summary) override { seen.append(summary).append("\n"); }
  [[nodiscard]] bool stop_requested() const override { return stops_ && stepped_; }

  std::string seen;

 private:
  bool stops_;
  bool stepped_ = false;
  std::string task_;
};

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("a run begins with the residual once, and resumes with the bits of one that was not interrupted") {
  const test::Scratch scratch;
  run::PackRequest packing;
  std::string text;
  for (int i = 0; i < 30; ++i) text += concat("The Vorzana number ", i, " costs ", 7 * i, " dollars and is red. ");
  packing.documents = {scratch.write("page.txt", text)};
  packing.model = source / "examples/models/tiny-chat";
  packing.out = scratch / "data";
  packing.packing.seq = 64;
  Witness quiet(false);
  (void)run::pack(packing, quiet);

  run::TrainRequest request;
  request.model = packing.model;
  request.data = packing.out;
  request.options.rank = 4;
  request.options.targets = Proj::q | Proj::v;
  request.options.alpha = 8;
  request.options.init = run::AdapterInit::loftq;
  request.options.epochs = 1;
  request.options.batch = 2;
  request.device.use = run::DeviceUse::cpu;
  request.device.threads = 2;
  const auto adapter = [&](const std::string& out) {
    return test::contents(scratch / out / "adapter" / "adapter_model.safetensors");
  };
  for (const bool dora : {true, false}) {
    CAPTURE(dora);
    const std::string mark = dora ? "-dora" : "";
    request.options.dora = dora;
    request.out = scratch / ("whole" + mark);
    Witness whole(false);
    const run::TrainResult result = run::train(request, whole);
    CHECK(result.steps > 1);
    CHECK(contains(whole.seen, "init 8 matrices\nadapters give back "));
    CHECK(PeftAdapter::open(request.out / "adapter").dora == dora);

    request.out = scratch / ("parts" + mark);
    Witness first(true);
    CHECK(contains(test::refusal([&] { (void)run::train(request, first); }), "step 1 of"));
    CHECK(contains(first.seen, "init 8 matrices\n"));
    Witness second(false);
    CHECK(run::train(request, second).resumed_after == 1);
    CHECK_FALSE(contains(second.seen, "init"));
    CHECK(adapter("parts" + mark) == adapter("whole" + mark));
  }
  CHECK(adapter("whole").size() < adapter("whole-dora").size());
  request.options.dora = true;  // another run than that without
  CHECK(contains(test::refusal([&] { (void)run::train(request, quiet); }), "other settings"));
  request.options.dora = false;

  // Another beginning is another run.
  request.options.init = run::AdapterInit::kaiming;
  CHECK(contains(test::refusal([&] { (void)run::train(request, quiet); }), "other settings"));

  request.options.init = run::AdapterInit::loftq;
  request.out = scratch / "refused";
  request.model = source / "tests/golden/gqa/model-bnb-4bit";
  const std::string refused = test::refusal([&] { (void)run::train(request, quiet); });
  CHECK(contains(refused, "is stored in 4 bits (quantization_config), and --init loftq begins with"));
}
