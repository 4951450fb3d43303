// qlora/cuda/attention/cudnn_plan.hpp — cuDNN's fused causal attention: graphs and built plans.
// Math       forward: O = softmax(Q K^T / sqrt(E)) V, keys not after the query; lse = ln(sum(exp(scaled scores)))
//            backward: gQ gK gV from gO, Q, K, V, O and lse, probabilities made again
// Shapes     q o go gq (B,Hs,S,E) · k v gk gv (B,Ks,S,E) · stats (B,Hs,S,1), all strided views of (T, ...) buffers:
//            window b starts b S rows on, or, ragged, at the rows that the offset tables name
// Split      one launch takes `windows` of B and `kv_heads` of K (with their query heads), as many as fit the workspace
//            of the deterministic backward pass, B H S^2 of bf16; the library splits further
// Numbers    bf16 in and out, fp32 inside. The forward pass is deterministic; the backward pass is deterministic on
//            request: it then stores all of dS instead of adding to gQ with atomics
// Needs      cudnn_frontend.h; g++ compiles it once
#pragma once

#include <cudnn.h>
#ifndef CUDNN_FRONTEND_SKIP_JSON_LIB
#define CUDNN_FRONTEND_SKIP_JSON_LIB  // text output of graphs: unused, and half of the compile time
#endif
#include <cudnn_frontend.h>

#include <cmath>
#include <cstdint>
#include <exception>
#include <memory>
#include <vector>

#include "qlora/error.hpp"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace fused {

/// Everything that a plan depends on.
struct Problem {
  bool backward = false;
  bool deterministic = false;
  bool ragged = false;
  int tokens = 0;
  int windows = 0;  ///< B; ragged: rounded up to a power of two, the rest is empty
  int seq = 0;      ///< S; ragged: the longest, rounded up to 128
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int o_stride = 0;
  int go_stride = 0;
  friend constexpr bool operator==(const Problem&, const Problem&) = default;
  [[nodiscard]] constexpr int width() const { return (heads + 2 * kv_heads) * head_dim; }
};

/// The part of a problem that one launch takes.
struct Slice {
  int windows = 0;
  int kv_heads = 0;
};
/// Largest divisor of `whole` below `now`; 0 when there is none.
[[nodiscard]] constexpr int smaller_divisor(int whole, int now) {
  for (int d = now - 1; d > 0; --d) {
    if (whole % d == 0) return d;
  }
  return 0;
}
/// The next smaller slice: first fewer windows, then fewer heads of a single window. windows 0: there is none.
/// Statistics of one launch must be dense, so heads cannot be split over several windows.
[[nodiscard]] constexpr Slice shrink(const Problem& problem, Slice slice) {
  if (problem.ragged) return {};
  if (const int windows = smaller_divisor(problem.windows, slice.windows); windows > 0) {
    return {windows, slice.kv_heads};
  }
  if (const int kv_heads = smaller_divisor(problem.kv_heads, slice.kv_heads); kv_heads > 0) {
    return {slice.windows, kv_heads};
  }
  return {};
}
/// Bytes of dS that a deterministic backward launch stores.
[[nodiscard]] constexpr std::int64_t kept_scores(const Problem& problem, Slice slice) {
  if (!problem.backward || !problem.deterministic) return 0;
  const std::int64_t group = problem.heads / problem.kv_heads;
  return std::int64_t{2} * slice.windows * slice.kv_heads * group * problem.seq * problem.seq;
}
/// The slice to try first; windows 0: even the smallest does not fit `limit`.
[[nodiscard]] constexpr Slice first_slice(const Problem& problem, std::int64_t limit) {
  Slice slice{problem.windows, problem.kv_heads};
  while (slice.windows > 0 && kept_scores(problem, slice) > limit) slice = shrink(problem, slice);
  return slice;
}

/// Tensor ids of the graphs; the offset table of tensor t has id t + offsets_of.
enum Tensor : std::int64_t { q = 1, k, v, o, stats, go, gq, gk, gv, q_lengths, kv_lengths, offsets_of = 32 };

/// A built plan, or none.
struct Plan {
  Problem problem{};
  Slice slice{};
  std::shared_ptr<cudnn_frontend::graph::Graph> graph;  ///< null: declined
  std::int64_t workspace = 0;
  std::uint64_t used = 0;  ///< time of the last use
};

using Graph = cudnn_frontend::graph::Graph;
using Attribute = std::shared_ptr<cudnn_frontend::graph::Tensor_attributes>;

/// Sets the strides of a tensor in a (T, stride) buffer, dense in E; for ragged batches also its table of first
/// elements (B+1).
inline void place(Graph& graph, const Problem& problem, const Attribute& tensor, Tensor name, int windows, int heads,
                  std::int64_t stride) {
  const std::int64_t e = problem.head_dim;
  tensor->set_uid(name)
      .set_dim({windows, heads, problem.seq, e})
      .set_stride({problem.seq * stride, e, stride, 1})
      .set_data_type(cudnn_frontend::DataType_t::BFLOAT16);
  if (problem.ragged) {
    tensor->set_ragged_offset(graph.tensor(cudnn_frontend::graph::Tensor_attributes()
                                               .set_uid(name + offsets_of)
                                               .set_dim({windows + 1, 1, 1, 1})
                                               .set_stride({1, 1, 1, 1})
                                               .set_data_type(cudnn_frontend::DataType_t::INT32)));
  }
}
/// lse (H,T) as (B,Hs,S,1). Before 9.26 cuDNN's backward pass reads dense statistics only: those of several windows are
/// copied to (B,H,S) first.
inline void place_stats(Graph& graph, const Problem& problem, const Attribute& tensor, int windows, int heads) {
  const std::int64_t seq = problem.seq;
  tensor->set_uid(stats).set_dim({windows, heads, seq, 1}).set_data_type(cudnn_frontend::DataType_t::FLOAT);
  if (problem.ragged) {
    tensor->set_stride({std::int64_t{heads} * problem.tokens, problem.tokens, 1, 1});
    tensor->set_ragged_offset(graph.tensor(cudnn_frontend::graph::Tensor_attributes()
                                               .set_uid(stats + offsets_of)
                                               .set_dim({windows + 1, 1, 1, 1})
                                               .set_stride({1, 1, 1, 1})
                                               .set_data_type(cudnn_frontend::DataType_t::INT32)));
  } else if (problem.backward || windows == 1) {
    tensor->set_stride({heads * seq, problem.backward ? seq : problem.tokens, 1, 1});
  } else {
    tensor->set_stride({seq, problem.tokens, 1, 1});
  }
}
[[nodiscard]] inline Attribute lengths(Graph& graph, Tensor name, int windows) {
  return graph.tensor(cudnn_frontend::graph::Tensor_attributes()
                          .set_uid(name)
                          .set_dim({windows, 1, 1, 1})
                          .set_stride({1, 1, 1, 1})
                          .set_data_type(cudnn_frontend::DataType_t::INT32));
}

/// The graph of one launch, before validation.
[[nodiscard]] inline std::shared_ptr<Graph> describe(const Problem& problem, Slice slice) {
  namespace fe = cudnn_frontend;
  auto graph = std::make_shared<Graph>();
  graph->set_io_data_type(fe::DataType_t::BFLOAT16)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);
  const int heads = slice.kv_heads * (problem.heads / problem.kv_heads);
  const float scale = 1.0F / std::sqrt(static_cast<float>(problem.head_dim));
  const auto input = [&](Tensor name, int count, std::int64_t stride) {
    Attribute tensor = graph->tensor(fe::graph::Tensor_attributes{});
    place(*graph, problem, tensor, name, slice.windows, count, stride);
    return tensor;
  };
  const auto output = [&](const Attribute& tensor, Tensor name, int count, std::int64_t stride) {
    tensor->set_output(true);
    place(*graph, problem, tensor, name, slice.windows, count, stride);
  };
  const Attribute query = input(q, heads, problem.width());
  const Attribute key = input(k, slice.kv_heads, problem.width());
  const Attribute value = input(v, slice.kv_heads, problem.width());
  if (!problem.backward) {
    auto how = fe::graph::SDPA_attributes().set_name("attention").set_generate_stats(true).set_attn_scale(scale);
    how.set_causal_mask(true);
    if (problem.ragged) {
      how.set_padding_mask(true)
          .set_seq_len_q(lengths(*graph, q_lengths, slice.windows))
          .set_seq_len_kv(lengths(*graph, kv_lengths, slice.windows));
    }
    const auto [result, sums] = graph->sdpa(query, key, value, how);
    output(result, o, heads, problem.o_stride);
    sums->set_output(true);
    place_stats(*graph, problem, sums, slice.windows, heads);
    return graph;
  }
  const Attribute result = input(o, heads, problem.o_stride);
  const Attribute gradient = input(go, heads, problem.go_stride);
  const Attribute sums = graph->tensor(fe::graph::Tensor_attributes{});
  place_stats(*graph, problem, sums, slice.windows, heads);
  auto how = fe::graph::SDPA_backward_attributes().set_name("attention_backward").set_attn_scale(scale);
  how.set_causal_mask(true).set_deterministic_algorithm(problem.deterministic);
  if (problem.ragged) {
    how.set_padding_mask(true)
        .set_seq_len_q(lengths(*graph, q_lengths, slice.windows))
        .set_seq_len_kv(lengths(*graph, kv_lengths, slice.windows));
    // Sums gQ by token instead of by padded window. With fewer kv heads, cuDNN would lay out gK and gV of every query
    // head with the stride of qkv rows, which takes more memory than the padding.
    if (problem.heads == problem.kv_heads) {
      how.set_max_total_seq_len_q(problem.tokens).set_max_total_seq_len_kv(problem.tokens);
    }
  }
  const auto [query_gradient, key_gradient, value_gradient] =
      graph->sdpa_backward(query, key, value, result, gradient, sums, how);
  output(query_gradient, gq, heads, problem.width());
  output(key_gradient, gk, slice.kv_heads, problem.width());
  output(value_gradient, gv, slice.kv_heads, problem.width());
  return graph;
}

/// Builds the largest launch whose workspace stays within `limit` bytes. Takes 0.1 s to several seconds.
[[nodiscard]] inline Plan build(cudnnHandle_t handle, const Problem& problem, std::int64_t limit) {
  Plan plan;
  plan.problem = problem;
  plan.slice = first_slice(problem, limit);
  try {
    while (plan.slice.windows > 0) {
      const auto graph = describe(problem, plan.slice);
      auto status = graph->build(handle, {cudnn_frontend::HeurMode_t::A});
      if (status.is_bad()) return plan;
      plan.workspace = graph->get_workspace_size();
      if (plan.workspace <= limit) {
        plan.graph = graph;
        return plan;
      }
      plan.slice = shrink(problem, plan.slice);
    }
  } catch (const std::exception&) {  // cuDNN reports "not supported": this library's kernels are used
  }
  return plan;
}

}  // namespace fused
}  // namespace cuda
}  // namespace v0
}  // namespace qlora
