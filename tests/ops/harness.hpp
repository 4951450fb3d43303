// tests/ops/harness.hpp — what the op cases are made of: guarded buffers on any backend, and how outcomes are compared.
// A case runs one op (or a few) on a backend and hands back what was written, as floats. The same list of cases runs on
// Cpu<float> (the reference), on the CPU that rounds to bfloat16 (the yardstick) and on whatever is tested. Inputs are
// values that bfloat16 holds, so that all start from the same numbers. Around every buffer and in the gaps between
// strided rows stand sentinels, and outputs hold poison before the op runs.
// Rule: error(tested) <= 2 error(yardstick) + slack, relative to the reference, by Frobenius norm, for each output.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "qlora/cpu.hpp"
#include "qlora/nf4.hpp"

namespace ops {

using Reference = qlora::Cpu<float>;
using Yardstick = qlora::Cpu<float, qlora::Rounding::bf16>;

inline constexpr float sentinel = -12288.0F;  // bfloat16 holds all three
inline constexpr float poison = 0x1p100F;     // an op that reads or keeps it cannot come near the reference
inline constexpr int guard = 64;              // elements before and behind a buffer

/// Statistics and sums in fp32: another order of a few thousand additions.
inline constexpr double fp32_slack = 1e-6;
/// fp32 results of tensor cores, which cut off products before they are added instead of rounding sums.
inline constexpr double product_slack = 2e-5;

struct Output {
  std::string name;
  std::vector<float> values;
  bool exact = false;  ///< must have the reference's bits
  double slack = fp32_slack;
};
struct Outcome {
  std::vector<Output> outputs;
  std::vector<std::string> damage;  ///< what was written that is not the op's
};

/// Values with deviation near `scale`, rounded to bfloat16; the same for every backend. Sums of four uniform numbers of
/// a xorshift generator: cheap, since the widest cases draw 10^8 of them.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ULL + 1) {}
  [[nodiscard]] std::uint64_t bits() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_ * 0x2545F4914F6CDD1DULL;
  }
  [[nodiscard]] int below(int bound) { return static_cast<int>((bits() >> 33) % static_cast<std::uint64_t>(bound)); }
  [[nodiscard]] float value(float scale) {
    const std::uint64_t word = bits();
    int sum = 0;
    for (int i = 0; i < 4; ++i) sum += static_cast<int>((word >> (16 * i)) & 0xFFFFU);
    // the sum of four numbers uniform in [0, 65536) has mean 131072 and deviation 65536 / sqrt(3)
    return qlora::rounded_to(qlora::DType::bf16, scale * (static_cast<float>(sum) - 131072.0F) / 37837.2F);
  }
  [[nodiscard]] std::vector<float> values(std::int64_t count, float scale) {
    std::vector<float> all(static_cast<std::size_t>(count));
    for (float& element : all) element = value(scale);
    return all;
  }

 private:
  std::uint64_t state_;
};

/// A matrix in backend memory, and the floats that were put there, guards and gaps included.
template <class T>
struct Buffer {
  std::string name;
  T* data = nullptr;
  int rows = 0;
  int cols = 0;
  int stride = 0;
  std::vector<float> image;
};

template <class B>
class Harness {
 public:
  using Act = typename B::Act;
  using Param = typename B::Param;

  explicit Harness(B& backend) : b(backend) {}

  /// Rows of `values`, `stride` apart, between sentinels.
  template <class T>
  [[nodiscard]] Buffer<T> filled(std::string name, int rows, int cols, int stride, const std::vector<float>& values) {
    Buffer<T> buffer{std::move(name), nullptr, rows, cols, stride, {}};
    const auto body = static_cast<std::size_t>(rows) * static_cast<std::size_t>(stride);
    buffer.image.assign(body + 2 * guard, sentinel);
    for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r) {
      std::copy_n(values.begin() + static_cast<std::ptrdiff_t>(r * static_cast<std::size_t>(cols)), cols,
                  buffer.image.begin() + static_cast<std::ptrdiff_t>(guard + r * static_cast<std::size_t>(stride)));
    }
    buffer.data = raw<T>(static_cast<std::int64_t>(buffer.image.size())) + guard;
    put(buffer);
    return buffer;
  }
  template <class T>
  [[nodiscard]] Buffer<T> drawn(std::string name, int rows, int cols, int stride, float scale, std::uint64_t seed) {
    return filled<T>(std::move(name), rows, cols, stride, Random(seed).values(std::int64_t{rows} * cols, scale));
  }
  template <class T>
  [[nodiscard]] Buffer<T> poisoned(std::string name, int rows, int cols, int stride) {
    return filled<T>(std::move(name), rows, cols, stride,
                     std::vector<float>(static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols), poison));
  }
  /// As it was before the op.
  template <class T>
  void put(const Buffer<T>& buffer) {
    if constexpr (std::is_same_v<T, float>) {
      b.upload(buffer.image, buffer.data - guard);
    } else {
      const qlora::TensorRef tensor{qlora::DType::f32,
                                    {static_cast<std::int64_t>(buffer.image.size())},
                                    std::as_bytes(std::span<const float>(buffer.image))};
      if (!b.place(tensor, true, buffer.data - guard)) outcome.damage.push_back(buffer.name + " was not placed");
    }
  }
  /// Memory without guards, zeroed.
  template <class T>
  [[nodiscard]] T* raw(std::int64_t count) {
    arenas_.push_back(b.arena(qlora::arena_bytes(count * static_cast<std::int64_t>(sizeof(T)))));
    return arenas_.back().template take<T>(count);
  }
  [[nodiscard]] std::uint8_t* bytes(const std::vector<std::uint8_t>& host) {
    std::vector<float> padded((host.size() + 3) / 4);
    std::memcpy(padded.data(), host.data(), host.size());
    float* there = raw<float>(static_cast<std::int64_t>(padded.size()));
    if constexpr (B::space == qlora::Space::host) {
      std::memcpy(there, padded.data(), host.size());
    } else {
      b.upload(padded, there);
    }
    return reinterpret_cast<std::uint8_t*>(there);
  }

  /// Columns [first, last) of all rows are an output; nothing else of the buffer may have changed.
  template <class T>
  void collect(const Buffer<T>& buffer, std::string name, int first, int last, bool exact = false,
               double slack = fp32_slack) {
    std::vector<float> now(buffer.image.size());
    b.download(buffer.data - guard, now);
    Output output{std::move(name), {}, exact, slack};
    output.values.reserve(static_cast<std::size_t>(buffer.rows) * static_cast<std::size_t>(last - first));
    std::size_t changed = 0;
    std::size_t left = 0;
    for (std::size_t i = 0; i < now.size(); ++i) {
      const auto at = static_cast<std::int64_t>(i) - guard;
      const bool inside = at >= 0 && at < std::int64_t{buffer.rows} * buffer.stride && at % buffer.stride >= first &&
                          at % buffer.stride < last;
      if (inside) {
        output.values.push_back(now[i]);
        left += now[i] == poison ? 1 : 0;
      } else {
        changed += std::memcmp(&now[i], &buffer.image[i], sizeof(float)) != 0 ? 1 : 0;
      }
    }
    if (changed > 0) {
      outcome.damage.push_back(std::to_string(changed) + " elements of " + buffer.name + " that are not the op's");
    }
    if (left > 0) outcome.damage.push_back(std::to_string(left) + " elements of " + output.name + " not written");
    if (last > first) outcome.outputs.push_back(std::move(output));
  }
  template <class T>
  void collect(const Buffer<T>& buffer, bool exact = false, double slack = fp32_slack) {
    collect(buffer, buffer.name, 0, buffer.cols, exact, slack);
  }
  /// An input: nothing of it may have changed.
  template <class... T>
  void unchanged(const Buffer<T>&... buffers) {
    (collect(buffers, buffers.name, 0, 0), ...);
  }
  void number(std::string name, double value, double slack = fp32_slack) {
    outcome.outputs.push_back({std::move(name), {static_cast<float>(value)}, false, slack});
  }
  void expect(bool condition, const std::string& what) {
    if (!condition) outcome.damage.push_back(what);
  }

  B& b;
  Outcome outcome;

 private:
  std::vector<typename B::Arena> arenas_;
};

template <class B>
struct Case {
  std::string name;
  std::function<void(Harness<B>&)> run;
};
template <class B>
using Cases = std::vector<Case<B>>;

/// ||ours - reference|| / ||reference||, the difference itself where the reference is zero; infinite if not finite.
[[nodiscard]] inline double error_of(const std::vector<float>& ours, const std::vector<float>& reference) {
  if (ours.size() != reference.size()) return INFINITY;
  double difference = 0.0;
  double norm = 0.0;
  for (std::size_t i = 0; i < ours.size(); ++i) {
    const double d = static_cast<double>(ours[i]) - static_cast<double>(reference[i]);
    difference += d * d;
    norm += static_cast<double>(reference[i]) * static_cast<double>(reference[i]);
  }
  const double result = std::sqrt(norm > 0.0 ? difference / norm : difference);
  return std::isfinite(result) ? result : INFINITY;
}

template <class B>
[[nodiscard]] Outcome outcome_of(B& backend, const Case<B>& sample) {
  Harness<B> harness(backend);
  sample.run(harness);
  return std::move(harness.outcome);
}

/// Checks a tested backend's outcome against the reference, with the yardstick's error as the measure. Returns the
/// largest error.
inline double check_outcome(const Outcome& reference, const Outcome& yardstick, const Outcome& tested) {
  for (const std::string& what : tested.damage) FAIL_CHECK(what);
  REQUIRE(tested.outputs.size() == reference.outputs.size());
  REQUIRE(yardstick.outputs.size() == reference.outputs.size());
  double largest = 0.0;
  for (std::size_t i = 0; i < reference.outputs.size(); ++i) {
    const Output& expected = reference.outputs[i];
    const Output& ours = tested.outputs[i];
    INFO("output ", ours.name);
    CHECK(ours.name == expected.name);
    const double error = error_of(ours.values, expected.values);
    if (expected.exact) {
      CHECK(ours.values == expected.values);
    } else {
      CHECK(error <= 2.0 * error_of(yardstick.outputs[i].values, expected.values) + expected.slack);
    }
    largest = std::max(largest, error);
  }
  return largest;
}

/// Runs the same list of cases on all three backends.
template <class B>
void check_cases(const Cases<Reference>& reference, const Cases<Yardstick>& yardstick, const Cases<B>& tested,
                 B& backend) {
  Reference exact;
  Yardstick rounded;
  REQUIRE(reference.size() == tested.size());
  for (std::size_t i = 0; i < tested.size(); ++i) {
    INFO("case ", tested[i].name);
    check_outcome(outcome_of(exact, reference[i]), outcome_of(rounded, yardstick[i]), outcome_of(backend, tested[i]));
  }
}

/// Every case twice: the same bits.
template <class B>
void check_repeats(const Cases<B>& cases, B& backend) {
  for (const Case<B>& sample : cases) {
    INFO("case ", sample.name);
    const Outcome first = outcome_of(backend, sample);
    const Outcome second = outcome_of(backend, sample);
    REQUIRE(first.outputs.size() == second.outputs.size());
    for (std::size_t i = 0; i < first.outputs.size(); ++i) {
      CHECK(first.outputs[i].values == second.outputs[i].values);
    }
  }
}

/// The cases themselves, on the CPU: nothing is damaged, the yardstick rounds, and not by more than `bound`.
inline void check_yardstick(const Cases<Reference>& reference, const Cases<Yardstick>& yardstick, double bound) {
  Reference exact;
  Yardstick rounded;
  double largest = 0.0;
  for (std::size_t i = 0; i < reference.size(); ++i) {
    INFO("case ", reference[i].name);
    const Outcome expected = outcome_of(exact, reference[i]);
    for (const std::string& what : expected.damage) FAIL_CHECK(what);
    const Outcome ours = outcome_of(rounded, yardstick[i]);
    const double error = check_outcome(expected, ours, ours);
    CHECK(error < bound);
    largest = std::max(largest, error);
  }
  CHECK(largest > 1e-4);
}

}  // namespace ops
