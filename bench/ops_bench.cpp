// bench/ops_bench.cpp — every op of the CUDA backend at the shapes of LLaMA-2 7B, 13B and 70B, as a share of its
// bound.
//   names      op/model/what, for --benchmark_filter: dequantize/13b, matmul_nt, attention.*own; bounds are
//              ceiling/...
//   time       median of 20 batches of launches, each batch long enough for the clock and waited for once
//   counters   TB_per_s, TFLOP_per_s of what the op has to move and to compute (below); percent_of_bound: the time that
//              this takes at the ceilings / the median; spread_percent: (9th decile - 1st) / median. The label is the
//              bound
//   ceilings   measured in the same process before the first row: device copy of 1 GiB (read + write; the better of the
//              driver's and embed's), and one second of a bf16 product 4096 x 13824 x 5120 (the power limit sets it)
//   data       random everywhere; copies of a small op's buffers take turns, so that no L2 cache holds them
// Tokens 4096 (70B: 2048; attention always 2 x 2048), rank 64, dropout 0.1. Bytes are inputs read once and outputs
// written once; FLOP of linear groups are those of X W^T, X A^T and XA B^T without the zeros beside B; attention is
// counted causal.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ops_arguments.hpp"
#include "ops_measure.hpp"
#include "qlora/error.hpp"

namespace {

using namespace qlora;
using namespace qlora::bench;

using Table = std::vector<Op>;

void nf4_ops(const Model& model, Table& table) {
  const Shape& s = model.shape;
  std::vector<std::pair<std::string, Proj>> matrices{{"q", Proj::q}, {"gate", Proj::gate}, {"down", Proj::down}};
  if (s.kv_heads != s.heads) matrices.insert(matrices.begin() + 1, {"k", Proj::k});
  for (const auto& [what, proj] : matrices) {
    const int rows = rows_of(s, proj);
    const int cols = cols_of(s, proj);
    const double count = double(rows) * cols;
    const std::string name = "/" + model.name + "/" + what + "_" + sizes(rows, cols);
    table.push_back({"dequantize" + name, nf4_bytes(count) + 2 * count, 0.0, [=](Gpu& g) -> Launch {
                       const Nf4View w = nf4_matrix(g, std::int64_t{rows} * cols);
                       bf16* const out = g.normals(std::int64_t{rows} * cols);
                       return [=](cuda::Context& c) { cuda::dequantize(c, w, rows, cols, Quant{}, {out, cols}); };
                     }});
    if (proj != Proj::gate) continue;
    table.push_back({"quantize" + name, nf4_bytes(count) + 2 * count, 0.0, [=](Gpu& g) -> Launch {
                       const std::int64_t n = std::int64_t{rows} * cols;
                       const Nf4Layout layout = Nf4Layout::of(n, Quant{});
                       const bf16* const w = g.normals(n);
                       Nf4Target to{g.bytes(layout.code_bytes), g.positives(layout.blocks), g.bytes(layout.blocks),
                                    g.positives(layout.nested), nullptr};
                       return [=](cuda::Context& c) mutable {
                         float offset = 0.0F;
                         to.offset = &offset;
                         QLORA_EXPECTS(cuda::quantize(c, w, DType::bf16, n, Quant{}, to), "a weight is not finite");
                       };
                     }});
  }
  for (const Group& group : groups_of(s)) {
    const double n = group.outputs();
    const double count = n * group.in;
    const double adapters = group.adapters();
    const double moved = nf4_bytes(count) + 2 * count + 4 * n * rank + 2 * n * adapters + 6 * adapters * group.in;
    table.push_back({"prepare_group/" + model.name + "/" + group.name, moved, 0.0, [=](Gpu& g) -> Launch {
                       const Linear linear(g, group, 0);
                       return [=](cuda::Context& c) { cuda::prepare_group(c, linear.args, linear.parts, true, true); };
                     }});
    for (const bool transposed : {false, true}) {
      const std::string name = transposed ? "dequantize_fp8_transposed/" : "dequantize_fp8/";
      table.push_back({name + model.name + "/" + group.name, nf4_bytes(count) + count, 0.0, [=](Gpu& g) -> Launch {
                         const Linear linear(g, group, 0);
                         std::uint8_t* const out = g.bytes(static_cast<std::int64_t>(count));
                         float* const scales = g.positives(std::max(group.in, group.outputs()));
                         return [=](cuda::Context& c) {
                           cuda::dequantize_group_fp8(c, linear.args, linear.parts, transposed, out, scales);
                         };
                       }});
    }
    for (const auto& [what, cols] : {std::pair{"x", group.in}, {"gy", group.outputs()}}) {
      const std::int64_t elements = std::int64_t{model.tokens} * cols;
      table.push_back({"quantize_rows_fp8/" + model.name + "/" + group.name + "_" + what,
                       3.0 * static_cast<double>(elements), 0.0, [=, cols = cols](Gpu& g) -> Launch {
                         const bf16* const x = g.normals(elements);
                         std::uint8_t* const out = g.bytes(elements);
                         float* const scales = g.positives(model.tokens);
                         return [=](cuda::Context& c) {
                           cuda::quantize_rows_fp8(c, model.tokens, cols, {x, cols}, out, scales);
                         };
                       }});
    }
  }
}

void linear_ops(const Model& model, Table& table) {
  const int tokens = model.tokens;
  for (const Group& group : groups_of(model.shape)) {
    const std::string name = "/" + model.name + "/" + group.name;
    const int n = group.outputs();
    const int k = group.in;
    const int xa = group.adapters();
    const int width = group.width();
    const double base = 2.0 * tokens * k * n;
    const double a_side = 2.0 * tokens * k * xa;
    const double b_side = 2.0 * tokens * rank * n;
    using enum cuda::Product;
    table.push_back(product("matmul_nt" + name, nt, tokens, n, width));
    table.push_back(product("matmul_nn" + name, nn, tokens, width, n));
    table.push_back(product("lora_xa" + name, nt, tokens, xa, k));
    table.push_back(product("lora_ga" + name, tn, xa, k, tokens, true));
    table.push_back(product("lora_gx" + name, nn, tokens, k, xa));
    const double x_bytes = 2.0 * tokens * k;
    DropoutSite site = dropout_rate(0.1F);
    site.seed = 42;
    table.push_back(
        {"dropped_xa" + name, x_bytes, a_side, [=](Gpu& g) -> Launch {
           const cuda::Rows<bf16> x{g.normals(std::int64_t{tokens} * width), width};
           const bf16* const a = g.normals(std::int64_t{xa} * k);
           return [=](cuda::Context& c) {
             cuda::dropped_adapter_input(c, tokens, k, xa, site, {x.data, x.stride}, a, {x.data + k, x.stride});
           };
         }});
    table.push_back(
        {"dropped_ga" + name, x_bytes, a_side, [=](Gpu& g) -> Launch {
           const cuda::Rows<bf16> x{g.normals(std::int64_t{tokens} * width), width};
           const cuda::Rows<bf16> gx{g.normals(std::int64_t{tokens} * width), width};
           float* const ga = g.positives(std::int64_t{xa} * k);
           return [=](cuda::Context& c) {
             cuda::dropped_gradient_a(c, tokens, k, xa, site, {gx.data + k, gx.stride}, {x.data, x.stride}, ga);
           };
         }});
    table.push_back({"dropped_gx" + name, 2.0 * x_bytes, a_side, [=](Gpu& g) -> Launch {
                       const cuda::Rows<bf16> gx{g.normals(std::int64_t{tokens} * width), width};
                       const bf16* const a = g.normals(std::int64_t{xa} * k);
                       return [=](cuda::Context& c) {
                         cuda::add_dropped_product(c, tokens, k, xa, site, {gx.data + k, gx.stride}, a, gx);
                       };
                     }});
    const bool equal =
        std::all_of(group.rows.begin(), group.rows.end(), [&](int value) { return value == group.rows[0]; });
    const int together = equal ? static_cast<int>(group.rows.size()) : 1;  // of unequal parts the largest alone
    table.push_back(product("lora_gb" + name, tn, group.rows[0], rank, tokens, true, together));
    for (const bool dora : {false, true}) {  // with dropout each product with W is there for X' too
      const std::string op = dora ? "dora" : "linear";
      const double forward = (dora ? 2.0 : 1.0) * base + a_side + b_side;
      const double backward = (dora ? 3.0 : 1.0) * base + 2 * (a_side + b_side) + (dora ? b_side : 0.0);
      table.push_back({op + "_forward" + name, 0.0, forward, [=](Gpu& g) -> Launch {
                         const Linear linear(g, group, tokens, dora);
                         const cuda::Rows<bf16> x{g.normals(std::int64_t{tokens} * width), width};
                         const bf16* const residual = group.residual ? g.normals(std::int64_t{tokens} * n) : nullptr;
                         bf16* const y = g.normals(std::int64_t{tokens} * n);
                         return [=](cuda::Context& c) {
                           cuda::linear_forward(c, linear.args, linear.parts, tokens, x, residual, y);
                         };
                       }});
      table.push_back({op + "_backward" + name, 0.0, backward, [=](Gpu& g) -> Launch {
                         const Linear linear(g, group, tokens, dora);
                         const cuda::Rows<const bf16> x{g.normals(std::int64_t{tokens} * width), width};
                         const cuda::Rows<bf16> gx{g.normals(std::int64_t{tokens} * width), width};
                         const bf16* const gy = g.normals(std::int64_t{tokens} * n);
                         return [=](cuda::Context& c) {
                           cuda::linear_backward(c, linear.args, linear.parts, linear.gradients, tokens, gy, x, true,
                                                 gx);
                         };
                       }});
    }
    table.push_back(
        {"measure_rows" + name, 0.0, 2.0 * k * group.rows[0] * rank, [=](Gpu& g) -> Launch {
           const Linear linear(g, group, tokens, true);
           float* const lengths = g.positives(3 * std::int64_t{n});
           return [=](cuda::Context& c) {
             cuda::measure_rows(c, linear.args, linear.parts[0], {lengths, false, lengths + n, lengths + 2 * n});
           };
         }});
  }
}

void elementwise_ops(const Model& model, Table& table) {
  const Shape& s = model.shape;
  const int tokens = model.tokens;
  const int dim = s.dim;
  const int ffn = s.ffn;
  const std::int64_t size = std::int64_t{tokens} * dim;
  const std::int64_t hidden = std::int64_t{tokens} * ffn;
  const auto add = [&](const std::string& op, double bytes, std::function<Launch(Gpu&)> make) {
    table.push_back({op + "/" + model.name, bytes, 0.0, std::move(make)});
  };
  add("rmsnorm", 4.0 * double(size), [=](Gpu& g) -> Launch {
    const cuda::Rows<const bf16> x{g.normals(size), dim};
    const cuda::Rows<bf16> y{g.normals(size), dim};
    const float* const w = g.positives(dim);
    float* const inv_rms = g.positives(tokens);
    return [=](cuda::Context& c) { cuda::rmsnorm(c, tokens, dim, 1e-5F, x, w, y, inv_rms); };
  });
  add("rmsnorm_backward", 8.0 * double(size), [=](Gpu& g) -> Launch {
    const cuda::Rows<const bf16> gy{g.normals(size), dim};
    const cuda::Rows<const bf16> x{g.normals(size), dim};
    const cuda::Rows<bf16> gx{g.normals(size), dim};
    const float* const w = g.positives(dim);
    const float* const inv_rms = g.positives(tokens);
    return [=](cuda::Context& c) { cuda::rmsnorm_backward(c, tokens, dim, gy, x, inv_rms, w, true, gx); };
  });
  const AttentionShape heads{s.heads, s.kv_heads, s.head_dim};
  add("rope", 4.0 * tokens * (s.heads + s.kv_heads) * s.head_dim, [=](Gpu& g) -> Launch {
    float* const cosine = g.positives(seq * heads.head_dim / 2);
    float* const sine = g.positives(seq * heads.head_dim / 2);
    const std::vector<float> frequencies = rope_frequencies(10000.0, {}, heads.head_dim);
    cuda::rope_table(*g.context, seq, std::span(frequencies), 1.0F, cosine, sine);
    const std::int32_t* const positions = Batch(false, tokens / seq).on(g).positions;
    bf16* const qkv = g.normals(std::int64_t{tokens} * heads.width());
    return [=](cuda::Context& c) { cuda::rope(c, tokens, heads, cosine, sine, positions, 1, qkv); };
  });
  add("swiglu", 6.0 * double(hidden), [=](Gpu& g) -> Launch {
    const bf16* const gate_up = g.normals(2 * hidden);
    bf16* const y = g.normals(hidden);
    return [=](cuda::Context& c) { cuda::swiglu(c, tokens, ffn, gate_up, {y, ffn}); };
  });
  add("swiglu_backward", 10.0 * double(hidden), [=](Gpu& g) -> Launch {
    const bf16* const gate_up = g.normals(2 * hidden);
    const bf16* const gy = g.normals(hidden);
    bf16* const out = g.normals(2 * hidden);
    return [=](cuda::Context& c) { cuda::swiglu_backward(c, tokens, ffn, {gy, ffn}, gate_up, out); };
  });
  add("dropout", 4.0 * double(size), [=](Gpu& g) -> Launch {
    const bf16* const x = g.normals(size);
    bf16* const out = g.normals(size);
    return [=](cuda::Context& c) { cuda::dropout(c, tokens, dim, dropout_site(), {x, dim}, out); };
  });
  add("add_dropped", 6.0 * double(size), [=](Gpu& g) -> Launch {
    const bf16* const p = g.normals(size);
    bf16* const gx = g.normals(size);
    return [=](cuda::Context& c) { cuda::add_dropped(c, tokens, dim, dropout_site(), p, {gx, dim}); };
  });
  add("embed", 4.0 * double(size), [=, vocab = s.vocab](Gpu& g) -> Launch {
    const std::int32_t* const ids = Batch(false, tokens / seq).on(g, vocab).ids;
    const bf16* const words = g.normals(std::int64_t{vocab} * dim);
    bf16* const x = g.normals(size);
    return [=](cuda::Context& c) { cuda::embed(c, tokens, dim, ids, words, {x, dim}); };
  });
}

[[noreturn]] void declined() { throw Error("cuDNN is not built in, or declines this"); }

enum class Kernels { own, fused };

/// Forward and backward of one kind of kernels over one kind of batch.
void attention_pair(const Model& model, Kernels kernels, bool documents, Table& table) {
  const Shape& s = model.shape;
  const AttentionShape heads{s.heads, s.kv_heads, s.head_dim};
  const int width = heads.heads * heads.head_dim;
  const auto plan = std::make_shared<const Batch>(documents);
  const int tokens = plan->tokens.tokens;
  const bool fused = kernels == Kernels::fused;
  const std::string name = "/" + model.name + (fused ? "/fused" : "/own") + (documents ? "_documents" : "");
  const double flop = 2.0 * plan->squares * width;
  const double moved = 2.0 * tokens * (heads.width() + width);
  table.push_back({"attention" + name, moved, flop, [=](Gpu& g) -> Launch {
                     const TokenBatch batch = plan->on(g);
                     const bf16* const qkv = g.normals(std::int64_t{tokens} * heads.width());
                     const cuda::Rows<bf16> o{g.normals(std::int64_t{tokens} * width), width};
                     float* const lse = g.positives(std::int64_t{tokens} * heads.heads);
                     return [=, keep = plan](cuda::Context& c) {
                       if (!fused) return cuda::own_attention(c, heads, batch, qkv, o, lse, nullptr, 0);
                       if (!cuda::fused_attention(c, heads, batch, qkv, o, lse)) declined();
                     };
                   }});
  const auto backward = [=](Gpu& g) -> Launch {
    const TokenBatch batch = plan->on(g);
    const bf16* const qkv = g.normals(std::int64_t{tokens} * heads.width());
    const cuda::Rows<bf16> o{g.normals(std::int64_t{tokens} * width), width};
    const cuda::Rows<const bf16> go{g.normals(std::int64_t{tokens} * width), width};
    float* const lse = g.positives(std::int64_t{tokens} * heads.heads);
    bf16* const gqkv = g.normals(std::int64_t{tokens} * heads.width());
    const std::int64_t bytes = cuda::own_attention_scratch(heads, tokens);
    std::uint8_t* const scratch = g.bytes(bytes);
    cuda::own_attention(*g.context, heads, batch, qkv, o, lse, nullptr, 0);
    cuda::synchronize(*g.context);
    return [=, keep = plan](cuda::Context& c) {
      const cuda::Rows<const bf16> out{o.data, o.stride};
      if (!fused) {
        return cuda::own_attention_backward(c, heads, batch, go, qkv, out, lse, gqkv, scratch, bytes);
      }
      if (!cuda::fused_attention_backward(c, heads, batch, go, qkv, out, lse, gqkv)) declined();
    };
  };
  const double backward_moved = 2.0 * tokens * (2.0 * heads.width() + 2.0 * width);
  table.push_back({"attention_backward" + name, backward_moved, 2.5 * flop, backward});
  if (fused) table.push_back({"attention_backward" + name + "_fast", backward_moved, 2.5 * flop, backward, true});
}

void attention_ops(const Model& model, Table& table) {
  for (const Kernels kernels : {Kernels::own, Kernels::fused}) {
    for (const bool documents : {false, true}) attention_pair(model, kernels, documents, table);
  }
  const Shape& s = model.shape;
  const AttentionShape heads{s.heads, s.kv_heads, s.head_dim};
  const int kv_width = 2 * s.kv_heads * s.head_dim;
  table.push_back({"attention_cached/" + model.name + "/decode_2048", 2.0 * seq * kv_width, 0.0, [=](Gpu& g) -> Launch {
                     bf16* const kv = g.normals(std::int64_t{seq} * kv_width);
                     bf16* const qkv = g.normals(heads.width());
                     float* const cosine = g.positives(seq * heads.head_dim / 2);
                     float* const sine = g.positives(seq * heads.head_dim / 2);
                     const std::vector<float> frequencies = rope_frequencies(10000.0, {}, heads.head_dim);
                     cuda::rope_table(*g.context, seq, std::span(frequencies), 1.0F, cosine, sine);
                     const std::int32_t* const last = Batch(false, 1).on(g).positions + (seq - 1);
                     const int width = heads.heads * heads.head_dim;
                     bf16* const o = g.normals(width);
                     return [=](cuda::Context& c) {
                       const CachedSequence<bf16> sequence{kv, seq, 0, 1};
                       cuda::attention_cached(c, heads, cosine, sine, last, 1, {&sequence, 1}, qkv, {o, width});
                     };
                   }});
}

void loss_ops(const Model& model, Table& table) {
  const int dim = model.shape.dim;
  const int vocab = model.shape.vocab;
  const int tokens = model.tokens;
  constexpr int chunk = 1024;
  table.push_back({"cross_entropy/" + model.name, 0.0, 4.0 * tokens * vocab * dim, [=](Gpu& g) -> Launch {
                     const auto plan = std::make_shared<const Batch>(false, tokens / seq);
                     const TokenBatch batch = plan->on(g, vocab);
                     const bf16* const x = g.normals(std::int64_t{tokens} * dim);
                     const bf16* const head = g.normals(std::int64_t{vocab} * dim);
                     LossScratch<bf16, float> scratch;
                     scratch.chunk = chunk;
                     scratch.rows = g.normals(std::int64_t{chunk} * dim);
                     scratch.grads = g.normals(std::int64_t{chunk} * dim);
                     scratch.logits = g.float_normals(std::int64_t{chunk} * vocab);
                     scratch.logit_grads = g.normals(std::int64_t{chunk} * vocab);
                     float* const losses = g.positives(tokens);
                     bf16* const gx = g.normals(std::int64_t{tokens} * dim);
                     return [=, keep = plan](cuda::Context& c) {
                       cuda::cross_entropy(c, dim, vocab, batch, x, head, 1.0F, scratch, losses, gx);
                     };
                   }});
  for (const int rows : {1, 16}) {
    const double moved = 2.0 * vocab * dim + rows * (2.0 * dim + 4.0 * vocab);
    const std::string name = "project/" + model.name + "/" + std::to_string(rows);
    table.push_back({name, moved, 2.0 * rows * vocab * dim, [=](Gpu& g) -> Launch {
                       const bf16* const x = g.normals(std::int64_t{rows} * dim);
                       const bf16* const head = g.normals(std::int64_t{vocab} * dim);
                       float* const logits = g.positives(std::int64_t{rows} * vocab);
                       return [=](cuda::Context& c) { cuda::project(c, rows, dim, vocab, {x, dim}, head, logits); };
                     }});
  }
}

/// The optimizer over the adapters of 13B.
void optimizer_ops(Table& table) {
  constexpr std::int64_t count = adapter_parameters(llama2_13b.shape, {.rank = rank});
  const auto add = [&](const std::string& op, double per_parameter, std::function<Launch(Gpu&)> make) {
    table.push_back({op + "/13b", per_parameter * double(count), 0.0, std::move(make)});
  };
  add("gradient_norm", 4.0, [](Gpu& g) -> Launch {
    const float* const grad = g.float_normals(count);
    double* const partial = g.uploaded(std::vector<double>(static_cast<std::size_t>(norm_partials(count))));
    StepScalars* const scalars = g.uploaded(std::vector<StepScalars>(1));
    return [=](cuda::Context& c) {
      cuda::norm_tiles(c, count, grad, partial);
      cuda::norm_total(c, count, partial, 1.0F, scalars);
    };
  });
  add("adamw", 28.0, [](Gpu& g) -> Launch {
    const float* const grad = g.float_normals(count);
    float* const p = g.float_normals(count);
    float* const m = g.float_normals(count);
    float* const v = g.positives(count);
    const StepScalars* const scalars = g.uploaded(std::vector<StepScalars>(1));
    return [=](cuda::Context& c) { cuda::adamw(c, count, {.lr = 1e-4F, .step = 100}, scalars, grad, p, m, v); };
  });
}

void report(benchmark::State& state, const Op& op, const Timing& time, double bound_s) {
  for (auto _ : state) state.SetIterationTime(time.median);
  if (op.bytes > 0.0) state.counters["TB_per_s"] = op.bytes / time.median * 1e-12;
  if (op.flop > 0.0) state.counters["TFLOP_per_s"] = op.flop / time.median * 1e-12;
  if (bound_s > 0.0) state.counters["percent_of_bound"] = 100.0 * bound_s / time.median;
  state.counters["spread_percent"] = 100.0 * time.spread;
}
void run_op(benchmark::State& state, const Op& op) {
  try {
    const Ceilings& limit = ceilings();
    const double bytes_s = op.bytes / limit.bytes_per_s;
    const double flop_s = op.flop / limit.flop_per_s;
    const bool computes = flop_s > bytes_s;
    state.SetLabel(computes ? "flop" : "bytes");
    const Timing time = computes ? measure(op, 0.005, 0.05) : measure(op, 0.002, 0.0);
    report(state, op, time, std::max(bytes_s, flop_s));
  } catch (const std::exception& error) {
    state.SkipWithError(error.what());
  }
}

}  // namespace

int main(int argc, char** argv) {
  Table table;
  for (const auto& ops : {nf4_ops, linear_ops, elementwise_ops, attention_ops, loss_ops}) {
    for (const Model& model : models()) ops(model, table);
  }
  optimizer_ops(table);
  const auto add = [](const std::string& name, auto body) {
    benchmark::RegisterBenchmark(name.c_str(), body)->Iterations(1)->UseManualTime()->Unit(benchmark::kMicrosecond);
  };
  const auto add_ceiling = [&](const Op& op, Timing Ceilings::*time) {
    add(op.name, [op, time](benchmark::State& state) {
      try {
        report(state, op, ceilings().*time, 0.0);
      } catch (const std::exception& error) {
        state.SkipWithError(error.what());
      }
    });
  };
  add_ceiling(copy_by_driver(), &Ceilings::driver);
  add_ceiling(copy_by_embed(), &Ceilings::embed);
  add_ceiling(ceiling_product(), &Ceilings::product);
  for (const Op& op : table) add(op.name, [&op](benchmark::State& state) { run_op(state, op); });
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  device.reset();
  return 0;
}
