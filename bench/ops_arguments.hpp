// bench/ops_arguments.hpp — arguments of the ops at LLaMA-2 7B, 13B and 70B: groups, batches, random NF4 matrices.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "ops_measure.hpp"
#include "qlora/configs/llama2.hpp"
#include "qlora/gpu_storage.hpp"
#include "qlora/nf4.hpp"

namespace qlora::bench {

inline constexpr int rank = 64;
inline constexpr int seq = 2048;

struct Model {
  std::string name;
  Shape shape;
  int tokens;
};
inline const std::vector<Model>& models() {
  static const std::vector<Model> list{
      {"7b", llama2_7b.shape, 4096}, {"13b", llama2_13b.shape, 4096}, {"70b", llama2_70b.shape, 2048}};
  return list;
}
struct Group {
  std::string name;
  int in;
  std::vector<int> rows;  ///< of its parts
  bool residual;
  [[nodiscard]] int outputs() const {
    int sum = 0;
    for (const int n : rows) sum += n;
    return sum;
  }
  [[nodiscard]] int adapters() const { return static_cast<int>(rows.size()) * rank; }
  [[nodiscard]] int width() const { return in + adapters(); }
};
inline std::vector<Group> groups_of(const Shape& s) {
  const auto part = [&](Proj proj) { return rows_of(s, proj); };
  return {{"qkv", cols_of(s, Proj::q), {part(Proj::q), part(Proj::k), part(Proj::v)}, false},
          {"o", cols_of(s, Proj::o), {part(Proj::o)}, true},
          {"gate_up", cols_of(s, Proj::gate), {part(Proj::gate), part(Proj::up)}, false},
          {"down", cols_of(s, Proj::down), {part(Proj::down)}, true}};
}
inline DropoutSite dropout_site() {
  DropoutSite site = dropout_rate(0.1F);
  site.seed = 1;
  return site;
}
inline double nf4_bytes(double elements) { return elements * (0.5 + (1.0 + 4.0 / 256) / 64); }
inline std::string sizes(int rows, int cols) { return std::to_string(rows) + "x" + std::to_string(cols); }

inline Nf4View nf4_matrix(Gpu& g, std::int64_t elements) {
  const Nf4Layout layout = Nf4Layout::of(elements, Quant{});
  Nf4View w;
  w.codes = g.bytes(layout.code_bytes);
  w.absmax8 = g.bytes(layout.blocks);
  w.nested = g.positives(layout.nested);
  w.offset = 1.0F;
  w.state = DType::f16;
  return w;
}

/// A linear group with adapters, and its workspaces.
struct Linear {
  cuda::GroupArgs args;
  std::vector<cuda::Part> parts;
  std::vector<cuda::PartGradient> gradients;

  /// `dora`: with lengths of rows that are trained.
  Linear(Gpu& g, const Group& group, int tokens, bool dora = false) {
    const std::int64_t in = group.in;
    args.in = group.in;
    args.rank = rank;
    args.adapted = static_cast<int>(group.rows.size());
    args.dropout = dropout_site();
    args.weight_scratch = g.normals(std::int64_t{group.outputs()} * group.width());
    args.adapter_scratch = g.normals(group.adapters() * in);
    if (tokens > 0) args.input_scratch = g.normals(tokens * in);
    if (dora) {
      WorkspaceNeeds needs{.rank = rank, .tokens = tokens, .dora = true};
      needs.groups[0] = {.in = group.in,
                         .out = group.outputs(),
                         .tallest = *std::max_element(group.rows.begin(), group.rows.end()),
                         .adapters = group.adapters()};
      args.output_scratch = g.normals(gpu_workspace_bytes(needs).output / 2);
    }
    const float* a = g.float_normals(group.adapters() * in);
    const float* b = g.float_normals(std::int64_t{group.outputs()} * rank);
    float* ga = tokens > 0 ? g.float_normals(group.adapters() * in) : nullptr;
    float* gb = tokens > 0 ? g.float_normals(std::int64_t{group.outputs()} * rank) : nullptr;
    for (const int n : group.rows) {
      cuda::Part part;
      part.weight.rows = n;
      part.weight.nf4 = nf4_matrix(g, n * in);
      part.a = a;
      part.b = b;
      part.scale = 0.25F;
      gradients.push_back({ga, gb, nullptr});
      if (dora) {
        part.row_factors = g.positives(n);
        part.inverse_lengths = g.positives(n);
        gradients.back().magnitude = g.positives(n);
      }
      parts.push_back(part);
      a += rank * in;
      b += n * rank;
      if (tokens == 0) continue;
      ga += rank * in;
      gb += n * rank;
    }
  }
};

/// Two windows of 2048 tokens; with documents, cut into pieces of 32 to 992.
struct Batch {
  std::vector<Segment> segments;
  TokenBatch tokens;
  double squares = 0.0;  ///< sum of squared lengths

  explicit Batch(bool documents, int windows = 2) {
    std::mt19937 random(1);
    for (int window = 0; window < windows; ++window) {
      const int end = (window + 1) * seq;
      for (int at = window * seq; at < end;) {
        const int wanted = documents ? 32 + static_cast<int>(random() % 961U) : seq;
        const int last = end - at - wanted < 16 ? end : at + wanted;
        segments.push_back({at, last});
        squares += double(last - at) * (last - at);
        at = last;
      }
    }
    tokens.tokens = windows * seq;
  }
  /// Its arrays in device memory. The spans point into this object.
  [[nodiscard]] TokenBatch on(Gpu& g, int vocab = 1) const {
    std::vector<std::int32_t> positions, ends, ids;
    std::mt19937 random(2);
    TokenBatch batch = tokens;
    for (const Segment& piece : segments) {
      for (int t = piece.first; t < piece.last; ++t) {
        positions.push_back(t - piece.first);
        ends.push_back(piece.last);
        ids.push_back(static_cast<std::int32_t>(random() % static_cast<unsigned>(vocab)));
      }
      batch.longest = std::max(batch.longest, piece.last - piece.first);
    }
    batch.positions = g.uploaded(positions);
    batch.ends = g.uploaded(ends);
    batch.ids = g.uploaded(ids);
    batch.targets = batch.ids;
    batch.labelled_count = batch.tokens;
    batch.segments = segments;
    return batch;
  }
};

}  // namespace qlora::bench
