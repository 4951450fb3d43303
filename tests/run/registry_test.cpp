// registry_test.cpp — which compiled code serves a model, and what a program says that lacks it. The code here compiles
// nothing: a stand-in has a config and a device, and is never opened.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/run/registry.hpp"

#include <doctest/doctest.h>

#include <functional>
#include <string>

#include "qlora/configs/any.hpp"
#include "qlora/configs/tiny.hpp"

using namespace qlora;
using namespace qlora::run;

namespace {

class StandIn final : public ModelCode {
 public:
  StandIn(const Config& config, Device device, bool present = true)
      : config_(config), device_(device), present_(present) {}
  [[nodiscard]] const Config& config() const override { return config_; }
  [[nodiscard]] Device device() const override { return device_; }
  [[nodiscard]] bool usable(std::string& why) const override {
    if (!present_) why = "the driver is not there";
    return present_;
  }
  [[nodiscard]] std::unique_ptr<LoadedModel> open(const hf::ModelDir&, BaseWeights, const Lora&,
                                                  const DeviceOptions&) const override {
    return nullptr;
  }
  [[nodiscard]] std::unique_ptr<TrainingSession> train(const hf::ModelDir&, TrainOptions, Recomputation,
                                                       const DecodeLimits&, const DeviceOptions&) const override {
    return nullptr;
  }

 private:
  Config config_;
  Device device_;
  bool present_;
};

/// A registry of its own for each test.
struct Registry {
  Registry() { registered_code().clear(); }
  Registry(const Registry&) = delete;
  Registry& operator=(const Registry&) = delete;
  ~Registry() { registered_code().clear(); }
  const ModelCode* add(const Config& config, Device device, bool present = true) {
    registered_code().push_back(std::make_unique<StandIn>(config, device, present));
    return registered_code().back().get();
  }
};

struct Refusal {
  std::string text;
  ErrorKind kind = ErrorKind::input;
};
Refusal refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return {error.what(), error.kind()};
  }
  return {};
}
bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

const Shape other{64, 32, 2, 4, 4, 8, 48};
constexpr Lora r8{.rank = 8, .targets = Proj::all};

}  // namespace

TEST_CASE_FIXTURE(Registry,
                  "a static config serves its own shape, the least rank cap that is enough; a dynamic one all else") {
  const ModelCode* r64 = add(tiny.with(Lora{.rank = 64}), Device::cpu);
  const ModelCode* r16 = add(tiny.with(Lora{.rank = 16}), Device::cpu);
  const ModelCode* qv = add(tiny.with(Lora{.rank = 8, .targets = Proj::q | Proj::v}), Device::cpu);
  const ModelCode* any = add(any_model, Device::cpu);
  CHECK(select_code(tiny.shape, {.rank = 8, .targets = Proj::q}, {}).code == qv);
  CHECK(select_code(tiny.shape, r8, {}).code == r16);  // qv does not adapt the other five
  CHECK(select_code(tiny.shape, {.rank = 17}, {}).code == r64);
  CHECK(select_code(tiny.shape, {.rank = 65}, {}).code == any);
  CHECK(select_code(other, r8, {}).code == any);
}

TEST_CASE_FIXTURE(Registry, "training takes code with just the targets that get adapters") {
  const ModelCode* all = add(tiny.with(Lora{.rank = 8}), Device::cpu);
  const Lora query{.rank = 8, .targets = Proj::q};
  CHECK(select_code(tiny.shape, query, {}).code == all);
  CHECK(refusal([&] { (void)select_code(tiny.shape, query, {}, Method::qlora); }).kind == ErrorKind::usage);
  CHECK(select_code(tiny.shape, r8, {}, Method::qlora).code == all);
  const ModelCode* any = add(any_model, Device::cpu);
  CHECK(select_code(tiny.shape, query, {}, Method::qlora).code == any);
  CHECK(select_code(tiny.shape, r8, {}, Method::qlora).code == all);
}

TEST_CASE_FIXTURE(Registry, "the device: a GPU if one is usable, the CPU if not; what is asked for or a refusal") {
  const ModelCode* cpu = add(any_model, Device::cpu);
  const ModelCode* cuda = add(any_model, Device::cuda);
  CHECK(select_code(other, r8, {}).code == cuda);
  CHECK(select_code(other, r8, {.use = DeviceUse::cpu}).code == cpu);
  const Selection selected = select_code(other, r8, {.memory_cap = {5'000'000'000}, .fast = true, .threads = 3});
  CHECK(selected.device.device == Device::cuda);
  CHECK(selected.device.memory_cap == 5'000'000'000);
  CHECK(selected.device.fast);
  CHECK(!selected.device.keep_dequantized);
  const Refusal both = refusal([] { (void)select_code(other, r8, {.use = DeviceUse::cpu, .fast = true}); });
  CHECK(both.kind == ErrorKind::usage);
  CHECK(contains(both.text, "--fast"));
  registered_code().clear();
  cpu = add(any_model, Device::cpu);
  add(any_model, Device::cuda, false);
  CHECK(select_code(other, r8, {.threads = 3}).code == cpu);
  CHECK(select_code(other, r8, {.threads = 3}).device.threads == 3);
  const Refusal absent = refusal([] { (void)select_code(other, r8, {.use = DeviceUse::cuda}); });
  CHECK(absent.kind == ErrorKind::resource);
  CHECK(contains(absent.text, "the driver is not there"));
}

TEST_CASE_FIXTURE(Registry, "every weight is trained by code for that, on the CPU") {
  add(any_model, Device::cpu);
  add(any_model, Device::cuda);
  const Refusal lacks = refusal([] { (void)select_code(other, r8, {}, Method::full); });
  CHECK(lacks.kind == ErrorKind::usage);
  CHECK(contains(lacks.text,
                 "\n  qlora_register(TARGET qlora::any_model_all_weights HEADER qlora/configs/any.hpp "
                 "BACKENDS cpu)"));
  const ModelCode* all = add(any_model_all_weights, Device::cpu);
  CHECK(select_code(other, r8, {}, Method::full).code == all);
  CHECK(select_code(other, r8, {.use = DeviceUse::cpu}).code != all);
  CHECK(refusal([] { (void)select_code(other, r8, {.use = DeviceUse::cuda}, Method::full); }).kind == ErrorKind::usage);
}

TEST_CASE_FIXTURE(Registry, "without adapters any code for the shape answers") {
  const ModelCode* v = add(tiny.with(Lora{.rank = 4, .targets = Proj::v}), Device::cpu);
  CHECK(select_code(tiny.shape, no_adapters, {}).code == v);
}

TEST_CASE_FIXTURE(Registry, "code that is missing is refused with the lines that build it") {
  add(tiny.with(Lora{.rank = 16}), Device::cpu);
  const Refusal rank = refusal([] { (void)select_code(tiny.shape, {.rank = 17}, {}); });
  CHECK(rank.kind == ErrorKind::usage);
  CHECK(contains(rank.text, "rank 17"));
  CHECK(contains(rank.text, "\n  qlora_register(TARGET qlora::any_model HEADER qlora/configs/any.hpp BACKENDS cpu)"));
  const Refusal gpu = refusal([] { (void)select_code(tiny.shape, r8, {.use = DeviceUse::cuda}); });
  CHECK(gpu.kind == ErrorKind::resource);
  CHECK(contains(gpu.text, "built without CUDA"));
  CHECK(contains(gpu.text, "--device cpu"));
}

TEST_CASE("GPU memory: what this process may use, from its own bytes, what the driver has left, and a cap") {
  constexpr std::int64_t gb = 1'000'000'000;
  constexpr GpuMemory open = gpu_memory(2 * gb, 10 * gb, 0);
  CHECK(open.limit == 12 * gb - gpu_reserve);
  CHECK(open.free() == 10 * gb - gpu_reserve);
  CHECK(gpu_memory(2 * gb, 10 * gb, 5 * gb).free() == 3 * gb - gpu_reserve);
  CHECK(gpu_memory(2 * gb, 10 * gb, 50 * gb).free() == 10 * gb - gpu_reserve);
}
