// tests/ops/dora.hpp — cases of linear groups whose rows have lengths (DoRA): those of an adapter that is held beside a
// base, those that are trained, and how they are measured.
#pragma once

#include "linear.hpp"

namespace ops {

/// Lengths of the rows of W + s B A, and magnitudes that begin as them or are there.
template <class B>
void measure_rows(Harness<B>& harness, const LinearCase& c) {
  using Param = typename B::Param;
  LinearSetup<B> setup = draw_group(harness, c);
  for (const int adapted : c.adapted) {
    const auto p = static_cast<std::size_t>(adapted);
    for (const bool begins : {true, false}) {
      const std::string number = " " + std::to_string(p) + (begins ? ", begun" : ", there");
      const auto magnitude = harness.template drawn<Param>("m" + number, 1, c.rows[p], c.rows[p], 1.0F, 81 + p);
      const auto inverse = harness.template poisoned<Param>("1 / L" + number, 1, c.rows[p], c.rows[p]);
      const auto factors = harness.template poisoned<Param>("f" + number, 1, c.rows[p], c.rows[p]);
      harness.b.measure_rows(setup.group, setup.parts[p], {magnitude.data, begins, inverse.data, factors.data});
      if (begins) harness.collect(magnitude);
      if (!begins) harness.unchanged(magnitude);
      harness.collect(inverse);
      harness.collect(factors);
    }
  }
  for (const auto* list : {&setup.a, &setup.b}) {
    for (const Buffer<Param>& buffer : *list) harness.unchanged(buffer);
  }
}

/// Groups whose rows have lengths (DoRA): held beside a base by kernels for few tokens, several and many, and trained.
template <class B>
[[nodiscard]] Cases<B> dora_cases() {
  std::vector<LinearCase> list;
  Cases<B> others;
  for (const LinearCase& group : std::vector<LinearCase>{
           {.rows = {128, 64, 64}, .adapted = {0, 1, 2}, .in = 128, .rank = 8},
           {.rows = {192, 64, 48}, .adapted = {0, 2}, .in = 192, .rank = 16},
           {.rows = {264}, .adapted = {0}, .in = 704, .rank = 64, .residual = true},
           {.rows = {704, 704}, .adapted = {0, 1}, .in = 64, .rank = 200, .residual = true},
           {.rows = {256, 256}, .adapted = {1}, .in = 256, .rank = 24},
       }) {
    for (const int tokens : {1, 4, 21, 37, 130}) {
      for (const bool resident : {false, true}) {
        LinearCase c = group;
        c.tokens = tokens;
        c.resident = resident;
        c.double_quant = tokens != 4;
        c.state = tokens == 130 ? qlora::DType::f16 : qlora::DType::bf16;
        c.lengths = Lengths::held;
        list.push_back(c);
        c.lengths = Lengths::trained;
        c.decodes = tokens % 2 == 0 && resident;
        list.push_back(c);
        if (c.decodes) continue;
        c.dropout = 0.1F;
        c.needs_input = tokens != 37;
        list.push_back(c);
        if (tokens == 37)
          others.push_back({"rows of " + c.name(), [c](Harness<B>& harness) { measure_rows(harness, c); }});
      }
    }
  }
  for (LinearCase c : std::vector<LinearCase>{
           {.rows = {256, 128, 128}, .adapted = {0, 1, 2}, .in = 512, .rank = 16, .tokens = 5},
           {.rows = {704, 704}, .adapted = {1}, .in = 1280, .rank = 24, .tokens = 29, .residual = true},
           {.rows = {192, 64, 64}, .adapted = {0, 2}, .in = 192, .rank = 16, .tokens = 20},
           {.rows = {256, 256}, .adapted = {0, 1}, .in = 256, .rank = 8, .tokens = 200, .residual = true},
       }) {
    c.lengths = Lengths::trained;
    c.decodes = true;
    others.push_back({"mixed " + c.name(), [c](Harness<B>& harness) { linear_mixed(harness, c); }});
  }
  Cases<B> cases = cases_of<B>(list);
  cases.insert(cases.end(), others.begin(), others.end());
  return cases;
}

}  // namespace ops
