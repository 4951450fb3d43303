// qlora/cuda.hpp — the CUDA backend: the ops of backend.hpp on one GPU. Plain C++: it takes typed views and passes
// run-time sizes to the launchers of cuda/launch.hpp. Kernels are in cuda/*.cuh under the name of the op. Activations
// and products are bf16 with fp32 sums; adapters, gradients, moments and statistics are fp32; frozen weights are NF4.
// A program links qlora::cuda for the launchers, or is compiled by nvcc and includes qlora/cuda.cuh instead.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <utility>

#include "qlora/backend.hpp"
#include "qlora/cuda/launch.hpp"
#include "qlora/gpu_storage.hpp"
#include "qlora/nf4.hpp"

namespace qlora {
inline namespace v0 {

/// A value is one stream, and copies of it the same one: used by one thread at a time. Contexts of one model each have
/// a fork().
class Cuda {
 public:
  using Act = bf16;                              ///< activations, embedding, head, dense weights
  using Param = float;                           ///< adapters, gradients, moments, norm weights, statistics
  static constexpr Space space = Space::device;  ///< pointers that it takes and gives are the card's
  static constexpr bool wide_groups = true;      ///< a group is one product: [X | XA] [W | s B]^T
  static constexpr int rank_step = 8;            ///< 16-byte loads of adapter rows
  /// 16-byte loads of rows; halves of heads turn in 16-byte loads; attention/common.cuh and decode/decode.cuh. NF4
  /// blocks need not divide a row: matrices are dequantized flat.
  static constexpr ShapeLimits shape_limits{
      .width_step = 8, .head_dim_step = 16, .largest_head_dim = 256, .trained_head_dims = {32, 64, 128}};
  /// Matrix that an op writes.
  template <int Cols>
  using View = Mat<bf16, Cols, Space::device>;
  /// Matrix that an op reads.
  template <int Cols>
  using ConstView = Mat<const bf16, Cols, Space::device>;

  /// One block of device memory, handed out once from front to back; gives it back when it dies.
  class Arena {
   public:
    /// That many bytes, zeroed. Throws Error (resource) beyond the memory cap or what is free.
    Arena(std::shared_ptr<cuda::Context> context, std::int64_t bytes)
        : context_(std::move(context)), size_(std::max<std::int64_t>(arena_bytes(bytes), arena_alignment)) {
      memory_ = cuda::allocate(*context_, size_);
    }
    /// Takes the memory over; `other` is then empty.
    Arena(Arena&& other) noexcept
        : context_(std::move(other.context_)),
          memory_(std::exchange(other.memory_, nullptr)),
          size_(other.size_),
          used_(other.used_) {}
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    Arena& operator=(Arena&&) = delete;
    ~Arena() {
      if (memory_ != nullptr) cuda::release(*context_, memory_, size_);
    }

    /// The next `count` elements, zeroed.
    template <class T>
    [[nodiscard]] T* take(std::int64_t count) {
      const std::int64_t bytes = arena_bytes(count * static_cast<std::int64_t>(sizeof(T)));
      QLORA_EXPECTS(count >= 0 && used_ + bytes <= size_, "the arena has ", size_, " bytes, ", used_,
                    " are taken, the memory plan forgot ", bytes);
      std::byte* here = memory_ + used_;
      used_ += bytes;
      return reinterpret_cast<T*>(here);
    }
    /// Bytes in all.
    [[nodiscard]] std::int64_t size() const { return size_; }
    /// Bytes that take() has handed out.
    [[nodiscard]] std::int64_t used() const { return used_; }

   private:
    std::shared_ptr<cuda::Context> context_;
    std::byte* memory_ = nullptr;
    std::int64_t size_ = 0;
    std::int64_t used_ = 0;
  };

  /// Throws Error (resource) when there is no usable GPU.
  explicit Cuda(const cuda::ContextOptions& options = {}) : Cuda(cuda::create_context(options)) {}

  /// What launchers take: stream, handles, staging memory.
  [[nodiscard]] cuda::Context& context() const { return *context_; }
  /// The algorithms chosen so far, as text; a process that loads them computes the same bits.
  [[nodiscard]] std::string algorithms() const { return cuda::algorithms(*context_); }
  /// Takes over what algorithms() gave. Throws Error (input), naming the line, for text of another form.
  void load_algorithms(const std::string& text) { cuda::load_algorithms(*context_, text); }
  /// Joins processes with a card each, this one as `rank` of `size`; `id` is what cuda::nccl_id() gave one of them.
  [[nodiscard]] std::unique_ptr<Comm> join(int rank, int size, const std::string& id, Comm::Watch watch) const {
    return cuda::nccl_comm(context_, rank, size, id, std::move(watch));
  }
  /// See gpu_storage.hpp.
  static constexpr auto workspace_bytes = &gpu_workspace_bytes;
  /// Cuts `memory`, of workspace_bytes(needs).total(), into pieces.
  [[nodiscard]] static Workspace<bf16, float> carve(const WorkspaceNeeds& needs, std::byte* memory) {
    return carve_workspace<bf16, float>(workspace_bytes(needs), needs, memory);
  }
  /// 0: workspaces do not depend on a number of threads.
  [[nodiscard]] int workers() const { return 0; }
  /// Another stream of this card with handles and workspaces of its own: 48 MiB of the card and 16 MiB of pinned
  /// memory. The cap, the count of allocated bytes and the chosen algorithms are shared, so that the bits are the same.
  [[nodiscard]] Cuda fork() const { return Cuda(cuda::fork_context(*context_)); }
  /// Makes the card the calling thread's; before any other call in a thread.
  void bind() { cuda::use_device(*context_); }
  /// A new arena of that many bytes, zeroed. Throws Error (resource) where there is no memory.
  [[nodiscard]] Arena arena(std::int64_t bytes) { return {context_, bytes}; }
  /// Which kernels the next linear layers and heads may use.
  void order(RowOrder order) { cuda::set_order(*context_, order); }
  /// Place of the next ops, for a report of what is not finite.
  void at(int layer, Site site) { cuda::set_place(*context_, place_code(layer, site)); }

  /// A tensor into backend memory, rounded to bf16. False when a value is not finite.
  bool place(const TensorRef& tensor, bool /*stored*/, bf16* to) {
    return cuda::load(*context_, tensor.bytes.data(), tensor.dtype, tensor.size(), to);
  }
  /// The same, in float.
  bool place(const TensorRef& tensor, bool /*stored*/, float* to) {
    return cuda::load(*context_, tensor.bytes.data(), tensor.dtype, tensor.size(), to);
  }
  /// A tensor as NF4. False when a value is not finite.
  bool quantize(const TensorRef& tensor, const Quant& quant, const Nf4Target& to) {
    return cuda::load_nf4(*context_, tensor.bytes.data(), tensor.dtype, tensor.size(), quant, to);
  }
  /// Bytes as they are.
  void place_bytes(std::span<const std::byte> from, void* to) {
    cuda::upload(*context_, from.data(), static_cast<std::int64_t>(from.size()), to);
  }
  /// Waits until all weights are placed, and gives the memory of loading back.
  void finish_loading() { cuda::finish_loading(*context_); }
  /// A whole matrix in float, rounded as its dtype was before quantization.
  void dequantize(const Nf4View& w, std::int64_t elements, const Quant& quant, float* out) {
    cuda::dequantize_float(*context_, w, elements, quant, out);
  }
  /// A matrix (rows, cols) in bf16 as products read it, its rows `stride` apart.
  void dequantize_rows(const Nf4View& w, int rows, int cols, const Quant& quant, bf16* out, int stride) {
    cuda::dequantize(*context_, w, rows, cols, quant, {out, stride});
  }

  /// `from` into backend memory; done when it returns.
  void upload(std::span<const float> from, float* to) {
    cuda::upload(*context_, from.data(), static_cast<std::int64_t>(from.size_bytes()), to);
  }
  /// Backend memory into `to`, after all ops before it.
  void download(const float* from, std::span<float> to) const {
    cuda::download(*context_, from, static_cast<std::int64_t>(to.size_bytes()), to.data());
  }
  /// The same of bf16, widened.
  void download(const bf16* from, std::span<float> to) const {
    std::vector<bf16> stored(to.size());
    cuda::download(*context_, from, static_cast<std::int64_t>(stored.size() * sizeof(bf16)), stored.data());
    std::transform(stored.begin(), stored.end(), to.begin(), [](bf16 value) { return static_cast<float>(value); });
  }
  /// The same of ids.
  void download(const std::int32_t* from, std::span<std::int32_t> to) const {
    cuda::download(*context_, from, static_cast<std::int64_t>(to.size_bytes()), to.data());
  }
  /// Sets `count` numbers to 0.
  void zero(float* data, std::int64_t count) {
    cuda::zero(*context_, data, count * static_cast<std::int64_t>(sizeof(float)));
  }
  /// `to` = `from`, `count` numbers.
  void copy(std::int64_t count, const float* from, float* to) {
    cuda::copy(*context_, from, count * static_cast<std::int64_t>(sizeof(float)), to);
  }
  /// Sets loss, norm and fault to their start.
  void zero(StepScalars* scalars) {
    cuda::take_fault(*context_, scalars);  // what an earlier, abandoned step left behind
    cuda::zero(*context_, scalars, sizeof(StepScalars));
  }
  /// Loss, norm and fault as the ops so far left them; waits for them.
  [[nodiscard]] StepScalars read(const StepScalars* scalars) const {
    StepScalars host;
    cuda::download(*context_, scalars, sizeof host, &host);
    return host;
  }
  /// Host arrays where the ops can read them, in a ring of staging memory: valid for the ops of this step.
  [[nodiscard]] TokenBatch stage(const TokenBatch& host) {
    TokenBatch here = host;
    const auto copy = [&](const std::int32_t* from, int count) {
      return from == nullptr ? nullptr : stage(std::span<const std::int32_t>(from, static_cast<std::size_t>(count)));
    };
    here.ids = copy(host.ids, host.tokens);
    here.positions = copy(host.positions, host.tokens);
    here.ends = copy(host.ends, host.tokens);
    here.targets = copy(host.targets, host.tokens);
    here.labelled = copy(host.labelled, host.labelled_count);
    return here;
  }
  /// One array, likewise; null for an empty one.
  [[nodiscard]] const std::int32_t* stage(std::span<const std::int32_t> host) {
    if (host.empty()) return nullptr;
    return static_cast<const std::int32_t*>(
        cuda::stage(*context_, host.data(), static_cast<std::int64_t>(host.size_bytes())));
  }

  /// What ids are drawn by, likewise.
  [[nodiscard]] const DrawRow* stage(std::span<const DrawRow> host) {
    return static_cast<const DrawRow*>(
        cuda::stage(*context_, host.data(), static_cast<std::int64_t>(host.size_bytes())));
  }

  /// x (T,D) = the rows `ids` (T) of table (V,D).
  template <int D>
  void embed(const std::int32_t* ids, std::type_identity_t<ConstView<D>> table, View<D> x) {
    cuda::embed(*context_, x.rows, x.cols(), ids, table.data, rows(x));
  }
  /// y = x r w with r = 1 / sqrt(mean(x^2) + eps); x y (T,D), w (D); r is kept in inv_rms (T).
  template <int D>
  void rmsnorm(float eps, std::type_identity_t<ConstView<D>> x, const float* w, View<D> y, float* inv_rms) {
    cuda::rmsnorm(*context_, y.rows, y.cols(), eps, rows(x), w, rows(y), inv_rms);
  }
  /// gx (T,D) = [gx +] the gradient by x, added where `accumulate`. Throws Error when gw is given: norm weights are
  /// frozen here.
  template <int D>
  void rmsnorm_backward(std::type_identity_t<ConstView<D>> gy, std::type_identity_t<ConstView<D>> x,
                        const float* inv_rms, const float* w, bool accumulate, View<D> gx, float* gw) {
    QLORA_EXPECTS(gw == nullptr, "norm weights are frozen on the GPU");
    cuda::rmsnorm_backward(*context_, gx.rows, gx.cols(), rows(gy), rows(x), inv_rms, w, accumulate, rows(gx));
  }
  /// y (T,N) = [residual +] [X | XA] [W | s B]^T, all parts side by side. Writes XA = dropped X A^T behind X in x.
  template <int Wide, int Out>
  void linear(const LinearGroup<bf16>& group, std::span<const LinearPart<bf16, float>> parts, View<Wide> x,
              std::type_identity_t<ConstView<Out>> residual, View<Out> y) {
    cuda::linear_forward(*context_, group, parts, x.rows, rows(x), residual.data, y.data);
  }
  /// The same with the adapters of each row's range; the parts have none.
  template <int Wide, int Out>
  void linear_mixed(const LinearGroup<bf16>& group, std::span<const LinearPart<bf16, float>> parts,
                    std::span<const RowAdapters<float>> ranges, View<Wide> x,
                    std::type_identity_t<ConstView<Out>> residual, View<Out> y) {
    cuda::linear_forward_mixed(*context_, group, parts, ranges, x.rows, rows(x), residual.data, y.data);
  }
  /// The columns XA of x alone, for a backward pass that did not keep them.
  template <int Wide>
  void adapter_input(const LinearGroup<bf16>& group, std::span<const LinearPart<bf16, float>> parts, View<Wide> x) {
    cuda::adapter_input(*context_, group, parts, x.rows, rows(x));
  }
  /// Gradients of `linear`: gx = [gX | gXA], gX only where `needs_input`; `gradients` += those of A, B and magnitudes.
  template <int Out, int Wide>
  void linear_backward(const LinearGroup<bf16>& group, std::span<const LinearPart<bf16, float>> parts,
                       std::span<const LinearGradient<float>> gradients, ConstView<Out> gy,
                       std::type_identity_t<ConstView<Wide>> x, bool needs_input, View<Wide> gx) {
    cuda::linear_backward(*context_, group, parts, gradients, x.rows, gy.data, rows(x), needs_input, rows(gx));
  }
  /// Lengths of the rows of W + s B A of a part with trained DoRA. Works in the group's scratch.
  void measure_rows(const LinearGroup<bf16>& group, const LinearPart<bf16, float>& part,
                    const RowLengths<float>& lengths) {
    cuda::measure_rows(*context_, group, part, lengths);
  }
  /// cosine sine (positions, E/2) of position * frequencies (E/2), times `attention`.
  void rope_table(int positions, std::span<const float> frequencies, float attention, float* cosine, float* sine) {
    cuda::rope_table(*context_, positions, frequencies, attention, cosine, sine);
  }
  /// y (T,N) += bias (N), which is not trained.
  template <int Width>
  void add_bias(const float* bias, View<Width> y) {
    cuda::add_bias(*context_, y.rows, y.cols(), bias, y.data);
  }
  /// Turns queries and keys of qkv (T,(H+2K)E) in place; direction 1, or -1 in the backward pass. position (T).
  template <int Width>
  void rope(const AttentionShape& heads, const float* cosine, const float* sine, const std::int32_t* position,
            int direction, View<Width> qkv) {
    cuda::rope(*context_, qkv.rows, heads, cosine, sine, position, direction, qkv.data);
  }
  /// o (T,HE) = causal attention inside the document pieces of `batch`; lse (H,T) is the log of each softmax's sum.
  template <int Width, int Out>
  void attention(const AttentionShape& heads, const TokenBatch& batch, ConstView<Width> qkv, View<Out> o, float* lse,
                 std::byte* scratch, std::int64_t scratch_bytes) {
    cuda::attention(*context_, heads, batch, qkv.data, rows(o), lse, scratch, scratch_bytes);
  }
  /// gqkv (T,(H+2K)E) = the gradient of `attention` by qkv, from what that call read and wrote.
  template <int Out, int Width>
  void attention_backward(const AttentionShape& heads, const TokenBatch& batch, ConstView<Out> go, ConstView<Width> qkv,
                          std::type_identity_t<ConstView<Out>> o, const float* lse, View<Width> gqkv,
                          std::byte* scratch, std::int64_t scratch_bytes) {
    cuda::attention_backward(*context_, heads, batch, rows(go), qkv.data, rows(o), lse, gqkv.data, scratch,
                             scratch_bytes);
  }
  /// Turns queries and keys of new tokens, puts keys and values into the caches of their sequences, and o (T,HE) =
  /// attention of each token over its sequence's cache up to itself.
  template <int Width, int Out>
  void attention_cached(const AttentionShape& heads, const float* cosine, const float* sine,
                        const std::int32_t* position, std::span<const CachedSequence<bf16>> sequences, View<Width> qkv,
                        View<Out> o, std::byte* /*scratch*/, std::int64_t /*bytes*/) {
    cuda::attention_cached(*context_, heads, cosine, sine, position, qkv.rows, sequences, qkv.data, rows(o));
  }
  /// The launches of repeated steps, each recorded once.
  class Recordings {
   private:
    friend Cuda;
    struct Entry {
      int tokens = 0;
      int splits = 0;
      int among = 0;
      const void* adapters = nullptr;
      std::vector<Repetition::Range> ranges{};
      std::vector<float> scales{};
      std::shared_ptr<cuda::Recording> recording{};  ///< null: run once, not yet recorded
    };
    /// Steps of several numbers of sequences and lengths, with and without adapters; beyond it the oldest is recorded
    /// again.
    static constexpr std::size_t most = 32;
    std::vector<Entry> entries_;
  };
  /// Runs the body at the first call of its kind, since libraries choose algorithms then; records its launches at the
  /// second and repeats them from then on, as one CUDA graph. Host arrays are staged to `staged`.
  template <class Body>
  void repeat(Recordings& recordings, const Repetition& what, std::span<std::byte> staged, const Body& body) {
    if (!cuda::may_record(*context_)) return body();
    auto& entries = recordings.entries_;
    const int splits = cuda::key_splits(what.longest);
    const auto found = std::find_if(entries.begin(), entries.end(), [&](const auto& entry) {
      return entry.tokens == what.tokens && entry.splits == splits && entry.among == what.among &&
             entry.adapters == what.adapters && std::ranges::equal(entry.ranges, what.ranges) &&
             std::equal(entry.scales.begin(), entry.scales.end(), what.scales.begin(), what.scales.end());
    });
    if (found == entries.end()) {
      if (entries.size() == Recordings::most) entries.erase(entries.begin());
      entries.push_back({.tokens = what.tokens,
                         .splits = splits,
                         .among = what.among,
                         .adapters = what.adapters,
                         .ranges = {what.ranges.begin(), what.ranges.end()},
                         .scales = {what.scales.begin(), what.scales.end()}});
      return body();
    }
    if (found->recording == nullptr) {
      cuda::begin_recording(*context_, staged);
      try {
        body();
      } catch (...) {
        cuda::abandon_recording(*context_);
        throw;
      }
      found->recording.reset(cuda::end_recording(*context_), [](cuda::Recording* r) { cuda::destroy_recording(r); });
    }
    cuda::replay(*context_, *found->recording);
  }
  /// y (T,F) = silu(gate) up; gate_up (T,2F) has the gate in the first F columns.
  template <int F>
  void swiglu(ConstView<columns_product(2, F)> gate_up, View<F> y) {
    cuda::swiglu(*context_, y.rows, y.cols(), gate_up.data, rows(y));
  }
  /// ggate_up (T,2F) = the gradient of `swiglu`.
  template <int F>
  void swiglu_backward(ConstView<F> gy, ConstView<columns_product(2, F)> gate_up,
                       View<columns_product(2, F)> ggate_up) {
    cuda::swiglu_backward(*context_, gy.rows, gy.cols(), rows(gy), gate_up.data, ggate_up.data);
  }
  /// losses (T) = nats of labelled rows, 0 elsewhere; gx (T,D) = scale times the gradient by x. Null gx: losses only.
  /// Throws Error when ghead is given: the head (V,D) is frozen here.
  template <int D>
  void cross_entropy(const TokenBatch& batch, ConstView<D> x, const bf16* head, int vocab, double scale,
                     const LossScratch<bf16, float>& scratch, float* losses, bf16* gx, float* ghead) {
    QLORA_EXPECTS(ghead == nullptr, "the head is frozen on the GPU");
    cuda::cross_entropy(*context_, x.cols(), vocab, batch, x.data, head, static_cast<float>(scale), scratch, losses,
                        gx);
  }
  /// logits (T,V) = x (T,D) head (V,D)^T
  template <int D>
  void project(ConstView<D> x, const bf16* head, int vocab, float* logits) {
    cuda::project(*context_, x.rows, x.cols(), vocab, rows(x), head, logits);
  }
  /// ids (T): the place of the largest of the first `among` logits of each row (T,V); of equal ones the first.
  void pick(int tokens, int vocab, int among, const float* logits, std::int32_t* ids) {
    cuda::pick(*context_, tokens, vocab, among, logits, ids);
  }
  /// ids (T), drawn from logits (T,V) as rows (T) say; draw.cuh has the numbers.
  void draw(int tokens, int vocab, const float* logits, const DrawRow* rows, std::int32_t* ids) {
    cuda::draw(*context_, tokens, vocab, logits, rows, ids);
  }
  /// scalars->loss += sum of losses, in a fixed order, in double.
  void add_losses(int tokens, const float* losses, StepScalars* scalars) {
    cuda::add_losses(*context_, tokens, losses, scalars);
  }
  /// scalars->grad_norm, and scalars->clip = min(1, max_norm / (norm + 1e-6)), 1 when max_norm is 0; also takes the
  /// fault that the ops of the step have met.
  void gradient_norm(std::int64_t count, const float* g, double* partial, float max_norm, StepScalars* scalars) {
    norm_tiles(count, g, partial);
    norm_total(count, partial, max_norm, scalars);
  }
  /// partial (norm_partials(count)) = sums of squares of g (count), tile by tile.
  void norm_tiles(std::int64_t count, const float* g, double* partial) {
    cuda::norm_tiles(*context_, count, g, partial);
  }
  /// The result of gradient_norm from the sums of all tiles of `count` numbers; takes the fault as well.
  void norm_total(std::int64_t count, const double* partial, float max_norm, StepScalars* scalars) {
    cuda::take_fault(*context_, scalars);
    cuda::norm_total(*context_, count, partial, max_norm, scalars);
  }
  /// to (count) += from (count).
  void add(std::int64_t count, const float* from, float* to) { cuda::add(*context_, count, from, to); }
  /// One update of p (count) by g times scalars->clip, with the moments m and v (count) each. Does nothing when loss or
  /// norm is not finite.
  void adamw(std::int64_t count, const AdamW& rule, const StepScalars* scalars, const float* g, float* p, float* m,
             float* v) {
    cuda::adamw(*context_, count, rule, scalars, g, p, m, v);
  }
  /// The same with moments in 8 bits.
  void adamw8bit(std::int64_t count, const AdamW& rule, const StepScalars* scalars, const float* g, float* p,
                 const Moments8bit& m, const Moments8bit& v) {
    cuda::adamw8bit(*context_, count, rule, scalars, g, p, m, v);
  }

 private:
  explicit Cuda(cuda::Context* context) : context_(context, [](cuda::Context* c) { cuda::destroy_context(c); }) {}

  template <class T, int Cols>
  [[nodiscard]] static cuda::Rows<T> rows(const Mat<T, Cols, Space::device>& m) {
    return {m.data, m.stride};
  }

  std::shared_ptr<cuda::Context> context_;
};

static_assert(Backend<Cuda>);
// The sizes in plans for a GPU are those that this backend's arenas are made from.
static_assert([] {
  Storage planned = gpu_storage;
  planned.context = planned.library = 0;
  return planned == storage_of<Cuda>(0);
}());

}  // namespace v0
}  // namespace qlora
