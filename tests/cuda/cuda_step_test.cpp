// Whole steps on the GPU: loss and gradients near the float CPU's, 50 losses, the same bits whatever is made again and
// in every run, and steps that are refused when something is not finite.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <limits>

#include "ops/steps.hpp"
#include "qlora/cuda.hpp"

using namespace steps;

namespace {

/// Plants a NaN, runs a step that must fail, and mends what was planted. Returns the message.
template <class AnyRun, class T>
std::string poisoned_step(AnyRun& run, T* where) {
  auto& backend = run.trainer.model().backend();
  std::vector<float> good(8);
  backend.download(where, good);
  const auto write = [&](const std::vector<float>& values) {
    if constexpr (std::is_same_v<T, float>) {
      backend.upload(values, where);
    } else {
      (void)backend.place({DType::f32, {8}, std::as_bytes(std::span<const float>(values))}, true, where);
      backend.finish_loading();
    }
  };
  std::vector<float> bad = good;
  bad[3] = std::numeric_limits<float>::quiet_NaN();
  write(bad);
  std::string message = "no error";
  try {
    run.step();
  } catch (const Error& error) {
    message = error.what();
  }
  write(good);
  return message;
}

/// One of the sites is named, and the layer (-1: none is).
bool names(const std::string& message, std::initializer_list<std::pair<Site, int>> places) {
  return std::any_of(places.begin(), places.end(), [&](const auto& place) {
    std::string text = "first met in " + std::string(name_of(place.first));
    text += place.second >= 0 ? " of layer " + std::to_string(place.second) + ";" : std::string(";");
    return message.find(text) != std::string::npos;
  });
}

}  // namespace

TEST_CASE("heads of 128: the first step") { check_first_step<hd128>(Cuda()); }
TEST_CASE("heads of 32: the first step") { check_first_step<chat>(Cuda()); }
TEST_CASE("long: heads of 128, 50 losses") { check_losses<hd128>(Cuda()); }
TEST_CASE("long: heads of 32, 50 losses") { check_losses<chat>(Cuda()); }
TEST_CASE("long: recompute policies, resident weights, micro-batches") {
  check_policies<hd128, Cuda>([] { return Cuda(); });
  check_policies<chat, Cuda>([] { return Cuda(); });
}
TEST_CASE("fp8 products") {
  check_fp8<hd128, Cuda>([] { return Cuda(); });
  check_fp8<chat, Cuda>([] { return Cuda(); });
}
TEST_CASE("fp8 products with channels of 100 times the size of the others") {
  check_fp8_outliers<chat, Cuda>([] { return Cuda(); });
  check_fp8_outliers<hd128, Cuda>([] { return Cuda(); });
}
TEST_CASE("the same bits every run") {
  check_repeats<chat, Cuda>([] { return Cuda(); });
}

TEST_CASE("a step that is not finite names its place and changes nothing") {
  using enum Site;
  steps::Run<chat, Cuda> run{Cuda()};
  steps::Run<chat, Cuda> undisturbed{Cuda()};
  run.step();
  undisturbed.step();
  const auto before = run.state();
  auto& weights = run.trainer.model().weights();
  const auto check = [&](const std::string& what, auto* where, std::initializer_list<std::pair<Site, int>> places) {
    const std::string message = poisoned_step(run, where);
    INFO(what, ": ", message);
    CHECK(message.find("step 2") != std::string::npos);
    CHECK(names(message, places));
    CHECK(run.state() == before);
    CHECK(run.trainer.core().steps_done() == 1);
  };
  // Products do not look at what they read: the op behind them does.
  for (const int layer : {0, 2}) {
    const Site behind = layer == 2 ? final_norm : input_norm;
    const int next = layer == 2 ? -1 : layer + 1;
    float* trained = weights.trained();
    const TrainedLayout& at = weights.layout();
    for (const Proj proj : {Proj::q, Proj::k, Proj::v}) {
      check(std::string(name_of(proj)), trained + at.b(layer, proj),
            {{attention, layer}, {post_attention_norm, layer}});
    }
    check("A of q", trained + at.a(layer, Proj::q), {{attention, layer}, {post_attention_norm, layer}});
    check("o", trained + at.b(layer, Proj::o), {{post_attention_norm, layer}});
    check("gate", trained + at.b(layer, Proj::gate), {{feed_forward, layer}});
    check("up", trained + at.b(layer, Proj::up), {{feed_forward, layer}});
    check("down", trained + at.b(layer, Proj::down), {{behind, next}});
    check("first norm", const_cast<float*>(weights.norm(layer, NormBefore::attention)),
          {{input_norm, layer}, {attention, layer}});
    check("second norm", const_cast<float*>(weights.norm(layer, NormBefore::feed_forward)),
          {{post_attention_norm, layer}, {feed_forward, layer}});
  }
  check("final norm", const_cast<float*>(weights.final_norm()), {{final_norm, -1}, {loss, -1}});
  check("head", const_cast<bf16*>(weights.head()), {{loss, -1}});
  const std::int32_t first = data<chat>().ids[0];
  check("embedding", const_cast<bf16*>(weights.embedding()) + std::int64_t{first} * chat.shape.dim, {{input_norm, 0}});
  CHECK(run.step().loss == undisturbed.step().loss);
  CHECK(run.state() == undisturbed.state());
}
