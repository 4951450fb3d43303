// qlora/cuda/optimizer/adamw_step.cuh — AdamW update of one element, shared by the kernels with float and with 8-bit
// moments.
// Reference  cpu/adamw.hpp
#pragma once

#include <cmath>

#include "qlora/cuda/arch/primitives.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

/// The parts of a rule that do not depend on the element.
struct AdamWStep {
  float beta1, beta2;
  float rest1, rest2;  ///< 1 - beta
  float keep;          ///< 1 - lr decay
  float step_size;     ///< lr / (1 - beta1^t)
  float root_bias2;    ///< 1 / sqrt(1 - beta2^t)
  float eps;

  static AdamWStep of(const AdamW& rule) {
    const auto lr = static_cast<double>(rule.lr);
    const double bias1 = 1.0 - std::pow(static_cast<double>(rule.beta1), rule.step);
    const double bias2 = 1.0 - std::pow(static_cast<double>(rule.beta2), rule.step);
    return {.beta1 = rule.beta1,
            .beta2 = rule.beta2,
            .rest1 = 1.0F - rule.beta1,
            .rest2 = 1.0F - rule.beta2,
            .keep = static_cast<float>(1.0 - lr * static_cast<double>(rule.weight_decay)),
            .step_size = static_cast<float>(lr / bias1),
            .root_bias2 = static_cast<float>(1.0 / std::sqrt(bias2)),
            .eps = rule.eps};
  }
};

/// Whether loss, norm and all activations of the step were finite; otherwise the update changes nothing.
__device__ __forceinline__ bool sound(const StepScalars& scalars) {
  return scalars.fault == 0 && isfinite(scalars.loss) && isfinite(scalars.grad_norm);
}

/// One element; grad1 = clip (1-b1), grad2 = clip^2 (1-b2).
__device__ __forceinline__ void update(const AdamWStep& step, float grad1, float grad2, float g, float& p, float& m,
                                       float& v) {
  m = m * step.beta1 + g * grad1;
  v = v * step.beta2 + g * g * grad2;
  p = p * step.keep - m * step.step_size / (sqrtf(v) * step.root_bias2 + step.eps);
}

inline void expect_on_16(const void* data, const char* name) {
  QLORA_EXPECTS(reinterpret_cast<std::uintptr_t>(data) % 16 == 0, name, " must start on 16 bytes");
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace qlora
