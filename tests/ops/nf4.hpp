// tests/ops/nf4.hpp — NF4 on any backend against what bitsandbytes computed on a GPU: every stored byte and every
// dequantized bit of the golden inputs, in both forms. Blocks of zeros are not compared (golden/README.md says why).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "ops/harness.hpp"
#include "support/golden.hpp"

namespace nf4_cases {

using namespace qlora;

inline constexpr Quant once{.double_quant = false};
inline constexpr Quant twice{};

inline const SafetensorsFile& file() {
  static const SafetensorsFile opened(golden::folder() / "nf4.safetensors");
  return opened;
}
inline std::vector<std::string> cases() {
  std::vector<std::string> found;
  for (const std::string& name : file().names()) {
    if (name.ends_with(".input")) found.push_back(name.substr(0, name.size() - 6));
  }
  return found;
}
inline std::vector<std::uint8_t> bytes(const std::string& name) {
  const auto raw = file().at(name).bytes;
  std::vector<std::uint8_t> values(raw.size());
  std::memcpy(values.data(), raw.data(), raw.size());
  return values;
}
inline std::vector<std::uint32_t> bits(const std::vector<float>& values) {
  std::vector<std::uint32_t> out(values.size());
  std::memcpy(out.data(), values.data(), values.size() * sizeof(float));
  return out;
}

/// Everything that quantization stores, in host memory, and what comes back.
struct Quantized {
  bool finite = true;
  std::vector<std::uint8_t> codes, absmax8;
  std::vector<float> absmax, nested, values;
  float offset = 0.0F;
};

/// A backend whose memory the host cannot read has an overload beside its tests.
template <class S, Rounding R, class T>
std::vector<T> fetch(ops::Harness<Cpu<S, R>>&, const T* from, std::int64_t count) {
  return {from, from + count};
}

/// Quantizes and dequantizes. Bytes behind codes, scales and values must stay zero.
template <class B>
Quantized quantize(B& backend, const TensorRef& tensor, const Quant& quant) {
  ops::Harness<B> harness(backend);
  const Nf4Layout sizes = Nf4Layout::of(tensor.size(), quant);
  constexpr std::int64_t room = 256;
  Quantized q;
  Nf4Target to{.codes = harness.template raw<std::uint8_t>(sizes.code_bytes + room)};
  if (quant.double_quant) {
    to.absmax8 = harness.template raw<std::uint8_t>(sizes.blocks + room);
    to.nested = harness.template raw<float>(sizes.nested + room);
    to.offset = &q.offset;
  } else {
    to.absmax = harness.template raw<float>(sizes.blocks + room);
  }
  q.finite = backend.quantize(tensor, quant, to);
  q.codes = fetch(harness, to.codes, sizes.code_bytes + room);
  Nf4View view{.codes = to.codes, .offset = q.offset, .state = tensor.dtype};
  if (quant.double_quant) {
    q.absmax8 = fetch(harness, to.absmax8, sizes.blocks + room);
    q.nested = fetch(harness, to.nested, sizes.nested + room);
    view.absmax8 = to.absmax8;
    view.nested = to.nested;
  } else {
    q.absmax = fetch(harness, to.absmax, sizes.blocks + room);
    view.absmax = to.absmax;
  }
  const auto behind_is_zero = [&](auto& all) {
    if (all.empty()) return;
    CHECK(std::all_of(all.end() - room, all.end(), [](auto value) { return value == 0; }));
    all.resize(all.size() - room);
  };
  behind_is_zero(q.codes);
  behind_is_zero(q.absmax8);
  behind_is_zero(q.nested);
  behind_is_zero(q.absmax);
  if (q.finite) {
    float* out = harness.template raw<float>(tensor.size() + room);
    backend.dequantize(view, tensor.size(), quant, out);
    q.values = fetch(harness, out, tensor.size() + room);
    behind_is_zero(q.values);
  }
  backend.finish_loading();
  return q;
}

/// How many elements differ, outside blocks of zeros. `per_block` elements of both belong to one block.
template <class T>
int differences(const std::vector<T>& ours, const std::vector<T>& expected, const std::vector<float>& absmax,
                std::size_t per_block) {
  if (ours.size() != expected.size()) return -1;
  int count = 0;
  for (std::size_t i = 0; i < ours.size(); ++i) {
    if (absmax[i / per_block] != 0.0F && ours[i] != expected[i]) ++count;
  }
  return count;
}

/// Stored bytes arrive in backend memory as they are, from and to any address, and nothing beside them is written.
template <class B>
void check_placed(B& backend, const std::string& name) {
  ops::Harness<B> harness(backend);
  const auto stored = file().at(name).bytes;
  std::vector<std::uint8_t> expected = bytes(name);
  expected.insert(expected.begin(), 3, std::uint8_t{0});
  expected.insert(expected.end(), 256, std::uint8_t{0});
  auto* memory = harness.template raw<std::uint8_t>(static_cast<std::int64_t>(expected.size()));
  backend.place_bytes(stored, memory + 3);
  CHECK(fetch(harness, memory, static_cast<std::int64_t>(expected.size())) == expected);
}

template <class B>
void check_golden(B& backend) {
  CHECK(cases().size() >= 10);
  for (const std::string& name : cases()) {
    CAPTURE(name);
    const TensorRef input = file().at(name + ".input");
    const std::vector<float> absmax = golden::floats(file(), name + ".absmax");

    const Quantized plain = quantize(backend, input, once);
    CHECK(plain.finite);
    CHECK(bits(plain.absmax) == bits(absmax));
    CHECK(differences(plain.codes, bytes(name + ".packed"), absmax, 32) == 0);
    CHECK(differences(bits(plain.values), bits(golden::floats(file(), name + ".dequant")), absmax, 64) == 0);

    check_placed(backend, name + ".packed");
    check_placed(backend, name + ".dq.absmax_u8");
    const Quantized nested = quantize(backend, input, twice);
    CHECK(differences(nested.codes, bytes(name + ".dq.packed"), absmax, 32) == 0);
    CHECK(nested.absmax8 == bytes(name + ".dq.absmax_u8"));
    CHECK(bits({nested.offset}) == bits(golden::floats(file(), name + ".dq.offset")));
    CHECK(bits(nested.nested) == bits(golden::floats(file(), name + ".dq.nested_absmax")));
    CHECK(differences(bits(nested.values), bits(golden::floats(file(), name + ".dq.dequant")), absmax, 64) == 0);
  }
}

}  // namespace nf4_cases
