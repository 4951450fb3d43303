// qlora/cuda/launch.hpp — the operations of the CUDA backend as plain functions: the interface between g++ and nvcc.
// Network code is compiled by g++ and calls kernels through these declarations; nvcc compiles each .cuh of the folders
// below once, with its kernels and the definitions of its launchers. Arguments are run-time ints and the structs of
// ops.hpp. A launcher checks shapes (Error), enqueues on the context's stream and returns. None waits or allocates
// unless its comment says so. Pointers are device memory, strides count elements. Letters as in ops.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "qlora/comm.hpp"
#include "qlora/ops.hpp"

// Launchers are inline in a program that compiles the kernels itself (qlora/cuda.cuh), and ordinary functions in the
// library qlora::cuda, which defines this macro as empty.
#ifndef QLORA_CUDA_LAUNCHER
#define QLORA_CUDA_LAUNCHER inline
#endif

namespace qlora {
inline namespace v0 {
class MergeLane;  // merging.hpp
namespace cuda {

/// Rows of a matrix that may be part of wider rows.
template <class T>
struct Rows {
  T* data = nullptr;
  int stride = 0;
};

class Context;

// --- context/: one GPU, its stream, library handles and workspaces ---------------------------------------------------

/// Options of a context.
struct ContextOptions {
  int device = 0;
  /// Bytes that the whole process may use on the card, including the driver's context; 0: no limit.
  std::int64_t memory_cap = 0;
  /// Largest workspace of cuDNN's attention, which splits its work to fit; the smallest size without loss of speed on
  /// an H200.
  std::int64_t attention_workspace = std::int64_t{256} << 20;
  bool fast = false;      ///< allows algorithms whose order of summation varies from run to run
  bool use_cudnn = true;  ///< fused attention of cuDNN where it was built in and is faster
};
/// The card and its memory use. `driver_used` is what the driver counts for all processes on the card.
struct DeviceInfo {
  std::string name;
  int sm_count = 0;
  int compute_capability = 0;  ///< 90 for sm_90
  std::int64_t total = 0;
  std::int64_t driver_used = 0;
  std::int64_t allocated = 0;  ///< arenas, of this context and its forks
  std::int64_t workspace = 0;  ///< workspaces of libraries and staging rings, of the same
};
/// Number of usable devices; `why` gives the reason when there is none.
int device_count(std::string* why = nullptr);
struct Card {
  std::string name;
  int compute_capability = 0;  ///< 90 for sm_90
};
/// A device below device_count(), which is not opened. Throws Error (resource) when the driver refuses.
Card card_at(int device);
Context* create_context(const ContextOptions& options);
/// A context of the same card for another thread, with a stream, handles and workspaces of its own; cap, counts and
/// chosen algorithms are shared. `context` may be in use by its thread meanwhile.
Context* fork_context(const Context& context);
/// Makes the context's card the current one of the calling thread.
void use_device(const Context& context);
void destroy_context(Context* context);
DeviceInfo device_info(const Context& context);
/// Allocates zeroed device memory. Throws Error (resource) with the sizes when it does not fit the card or the cap.
/// Waits.
std::byte* allocate(Context& context, std::int64_t bytes);
void release(Context& context, std::byte* memory, std::int64_t bytes);
/// Copies host memory to the device through pinned buffers, with several threads when it is large. Waits.
void upload(Context& context, const void* from, std::int64_t bytes, void* to);
/// Waits for all earlier work, then copies.
void download(Context& context, const void* from, std::int64_t bytes, void* to);
void zero(Context& context, void* data, std::int64_t bytes);
/// From device memory to other device memory.
void copy(Context& context, const void* from, std::int64_t bytes, void* to);
/// Waits for the stream.
void synchronize(Context& context);
/// A copy of small host data in device memory, valid until ring_bytes more have been staged. Waits only when the ring
/// is full.
const void* stage(Context& context, const void* from, std::int64_t bytes);
/// Launches of a stretch of calls, with the host arrays that they staged. Kept by its context, which outlives it.
class Recording;
/// Whether launches may be recorded and replayed: not while set_profile measures them.
bool may_record(const Context& context);
/// The following launches and `stage` calls are recorded and not executed; they must not wait or allocate. Host arrays
/// get room in `staged`, device memory of the caller's that outlives the recording and that others may share. Waits,
/// and pins as much host memory.
void begin_recording(Context& context, std::span<std::byte> staged);
Recording* end_recording(Context& context);
/// Drops what was recorded since begin_recording.
void abandon_recording(Context& context);
/// Launches all that was recorded, with what the staged host arrays hold now. Waits for earlier work.
void replay(Context& context, Recording& recording);
void destroy_recording(Recording* recording);
/// Names the place in the network of the following launches. The first kernel that finds a NaN or an infinity writes
/// its place into the fault word on the device. 0 is no place.
void set_place(Context& context, std::uint32_t place);
/// Which kernels the following linear layers and heads may use.
void set_order(Context& context, RowOrder order);
/// Milliseconds per phase since the last call, measured with events; empty unless `profile` was set to true. Waits.
void set_profile(Context& context, bool on);
std::vector<std::pair<std::string, double>> take_profile(Context& context);

// --- rowwise/embed.cuh -----------------------------------------------------------------------------------------------

/// x_t = table[ids_t].
void embed(Context& context, int tokens, int dim, const std::int32_t* ids, const bf16* table, Rows<bf16> x);
/// to_{index_i} = from_i for `count` rows of D, both (..., D); indices are distinct.
void scatter_rows(Context& context, int count, int dim, const std::int32_t* index, const bf16* from, bf16* to);

// --- rowwise/norm.cuh ------------------------------------------------------------------------------------------------

/// y = x * inv_rms * w, inv_rms = 1 / sqrt(mean x^2 + eps).
void rmsnorm(Context& context, int tokens, int dim, float eps, Rows<const bf16> x, const float* w, Rows<bf16> y,
             float* inv_rms);
/// gx = [gx +] gy w r - x sum(gy w x) r^3 / D.
void rmsnorm_backward(Context& context, int tokens, int dim, Rows<const bf16> gy, Rows<const bf16> x,
                      const float* inv_rms, const float* w, bool accumulate, Rows<bf16> gx);

// --- rowwise/swiglu.cuh ----------------------------------------------------------------------------------------------

/// gate_up (T,2F) -> y (T,F) = silu(gate) up.
void swiglu(Context& context, int tokens, int ffn, const bf16* gate_up, Rows<bf16> y);
/// gate_up and gy -> ggate_up (T,2F), in one pass; ggate_up may be gate_up.
void swiglu_backward(Context& context, int tokens, int ffn, Rows<const bf16> gy, const bf16* gate_up, bf16* ggate_up);

// --- linear/dropout.cuh ----------------------------------------------------------------------------------------------

/// out (T,cols) = mask o x / keep.
void dropout(Context& context, int tokens, int cols, const DropoutSite& site, Rows<const bf16> x, bf16* out);
/// gx += mask o p / keep, p (T,cols).
void add_dropped(Context& context, int tokens, int cols, const DropoutSite& site, const bf16* p, Rows<bf16> gx);

// --- linear/lora_a_*.cuh: products with A, fused with dropout --------------------------------------------------------
// width (K) is a multiple of 64, adapters (XA) of 8; rows begin at multiples of 16 bytes. a (XA,K) is the stacked A.

/// xa (T,XA) = (mask o x / keep) a^T, x (T,K). xa may be columns after x in the same rows. Partial sums use the
/// context's workspace.
void dropped_adapter_input(Context& context, int tokens, int width, int adapters, const DropoutSite& site,
                           Rows<const bf16> x, const bf16* a, Rows<bf16> xa);
/// ga (XA,K) += gxa^T (mask o x / keep), gxa (T,XA), x (T,K). Partial sums use the context's workspace.
void dropped_gradient_a(Context& context, int tokens, int width, int adapters, const DropoutSite& site,
                        Rows<const bf16> gxa, Rows<const bf16> x, float* ga);
/// gx (T,K) += mask o (gxa a) / keep, gxa (T,XA). gxa may be columns after gx in the same rows.
void add_dropped_product(Context& context, int tokens, int width, int adapters, const DropoutSite& site,
                         Rows<const bf16> gxa, const bf16* a, Rows<bf16> gx);

// --- nf4/quantize.cuh ------------------------------------------------------------------------------------------------

/// Quantizes `elements` values of dtype f32, f16 or bf16 to the same bits as cpu/nf4.hpp. to.absmax is workspace when
/// absmax8 is set. Sets *to.offset (host memory); returns false when a value is not finite. Waits.
bool quantize(Context& context, const void* w, DType dtype, std::int64_t elements, const Quant& quant,
              const Nf4Target& to);

// --- weights/load.cuh ------------------------------------------------------------------------------------------------

/// Copies a tensor from host memory to bf16, float or NF4 on the device, through pinned buffers, with the conversion on
/// the device (to.absmax is not needed with double quantization). False when a value is not finite. Device memory for
/// the tensor in its stored type is allocated at first use and kept until finish_loading. Waits.
bool load(Context& context, const std::byte* from, DType dtype, std::int64_t elements, bf16* to);
bool load(Context& context, const std::byte* from, DType dtype, std::int64_t elements, float* to);
bool load_nf4(Context& context, const std::byte* from, DType dtype, std::int64_t elements, const Quant& quant,
              const Nf4Target& to);
/// Frees the buffers of loading, including the pinned buffers of large copies; the next large copy allocates them
/// again.
void finish_loading(Context& context);

// --- nf4/nf4.cuh -----------------------------------------------------------------------------------------------------

/// A matrix (rows, cols) to bf16; rows of `out` are out.stride apart. cols is a multiple of 8; blocks may cross rows.
void dequantize(Context& context, const Nf4View& w, int rows, int cols, const Quant& quant, Rows<bf16> out);
/// Dequantizes a whole matrix to float, rounded as w.state says: the values of bitsandbytes.
void dequantize_float(Context& context, const Nf4View& w, std::int64_t elements, const Quant& quant, float* out);

using Part = LinearPart<bf16, float>;
using PartGradient = LinearGradient<float>;
using GroupArgs = LinearGroup<bf16>;
/// Prepares the operands of a group's products in one launch. group.weight_scratch (sum N, K | XA) = [W | s B]: NF4
/// weights in bf16, and s B of the n-th adapted part in the n-th R of the XA columns, zeros elsewhere in them; with all
/// adapters off (all `a` null) rows are K wide. With stacked_a, group.adapter_scratch (XA, K) = the stacked A. A dense
/// weight must already be inside a wide matrix; only its XA columns are written. `weights` false: frozen weights are
/// skipped. With `slots`, s B goes there (sum N, XA), whatever holds the weights.
void prepare_group(Context& context, const GroupArgs& group, std::span<const Part> parts, bool weights, bool stacked_a,
                   Rows<bf16> slots = {});

// --- linear/fp8.cuh --------------------------------------------------------------------------------------------------

/// out (rows,cols) = x in e4m3, times its row's entry of `scales` (rows). cols and x.stride are multiples of 8.
void quantize_rows_fp8(Context& context, int rows, int cols, Rows<const bf16> x, std::uint8_t* out, float* scales);
/// out = the weights of a group in e4m3, (sum N, K) or transposed (K, sum N), all with one scale, which fills `scales`,
/// one for each row of out.
void dequantize_group_fp8(Context& context, const GroupArgs& group, std::span<const Part> parts, bool transposed,
                          std::uint8_t* out, float* scales);

// --- linear/gemm.cuh -------------------------------------------------------------------------------------------------

/// C (m,n) = alpha op(A) op(B) + [source], row-major, bf16 operands, fp32 accumulation.
///   nt: A (m,k) B (n,k)^T      nn: A (m,k) B (k,n)      tn: A (k,m)^T B (k,n)
///   nt_fp8: nt of operands in e4m3, with a scale for each row of both; on Hopper and newer cards
enum class Product : std::uint8_t { nt, nn, tn, nt_fp8 };
struct Matmul {
  Product product = Product::nt;
  int m = 0, n = 0, k = 0;
  Rows<const bf16> a{}, b{};
  float alpha = 1.0F;
  const void* source = nullptr;  ///< added to the product; type and stride of C; may be C; null: nothing
  void* c = nullptr;
  int c_stride = 0;
  bool c_float = false;  ///< C is float, otherwise bf16
  int batch = 1;         ///< number of products, at fixed distances in elements:
  std::int64_t a_step = 0, b_step = 0, c_step = 0;
  const float* a_scales = nullptr;  ///< (m), of nt_fp8, whose a and b point to bytes and have strides in bytes
  const float* b_scales = nullptr;  ///< (n)
};
/// The first call with a new shape measures cuBLASLt's algorithms and keeps the fastest: that call waits, and if it
/// adds to C (source == c) it allocates a temporary copy of C. Token counts (m, or k in tn) that are equal after
/// rounding up to three significant bits share an algorithm.
void matmul(Context& context, const Matmul& product);
/// The chosen algorithms as text, one line per shape; a run that loads them repeats the bits of the run that saved
/// them.
std::string algorithms(const Context& context);
void load_algorithms(Context& context, const std::string& text);

// --- linear/linear.cuh: a group of linear layers, see cpu/linear.hpp for the mathematics -----------------------------

/// x (T, K | XA) -> its XA columns, and y (T, sum N) = [residual +] X W^T + s XA B^T. `residual` may be null.
void linear_forward(Context& context, const GroupArgs& group, std::span<const Part> parts, int tokens, Rows<bf16> x,
                    const bf16* residual, bf16* y);
/// The same with the adapters of each row's range, up to most_row_adapters in all; the parts have none.
void linear_forward_mixed(Context& context, const GroupArgs& group, std::span<const Part> parts,
                          std::span<const RowAdapters<float>> ranges, int tokens, Rows<bf16> x, const bf16* residual,
                          bf16* y);
/// The XA columns of x only.
void adapter_input(Context& context, const GroupArgs& group, std::span<const Part> parts, int tokens, Rows<bf16> x);
/// gy (T, sum N), x as forward left it -> gx (T, K | gXA), gradients +=. Without needs_input only gXA is computed.
void linear_backward(Context& context, const GroupArgs& group, std::span<const Part> parts,
                     std::span<const PartGradient> gradients, int tokens, const bf16* gy, Rows<const bf16> x,
                     bool needs_input, Rows<bf16> gx);

// --- linear/dora.cuh: the same of groups whose adapters have row factors, see cpu/dora.hpp ---------------------------

/// linear_forward; trained adapters of a decoder have no output_scratch.
void dora_forward(Context& context, const GroupArgs& group, std::span<const Part> parts, int tokens, Rows<bf16> x,
                  const bf16* residual, bf16* y);
/// linear_forward_mixed of ranges of which some have row factors.
void dora_forward_mixed(Context& context, const GroupArgs& group, std::span<const Part> parts,
                        std::span<const RowAdapters<float>> ranges, int tokens, Rows<bf16> x, const bf16* residual,
                        bf16* y);
/// linear_backward of trained adapters; gradients of magnitudes += too. Works in output_scratch.
void dora_backward(Context& context, const GroupArgs& group, std::span<const Part> parts,
                   std::span<const PartGradient> gradients, int tokens, const bf16* gy, Rows<const bf16> x,
                   bool needs_input, Rows<bf16> gx);
/// Lengths of the rows of W + s B A of one part. Works in output_scratch.
void measure_rows(Context& context, const GroupArgs& group, const Part& part, const RowLengths<float>& lengths);

// --- rowwise/bias.cuh ------------------------------------------------------------------------------------------------

/// y (rows, columns) += bias (columns).
void add_bias(Context& context, int rows, int columns, const float* bias, bf16* y);

// --- rowwise/rope.cuh ------------------------------------------------------------------------------------------------

/// Fills cos and sin (positions, E/2) exactly as cpu/rope.hpp does. Waits.
void rope_table(Context& context, int positions, std::span<const float> frequencies, float attention, float* cosine,
                float* sine);
void rope(Context& context, int tokens, const AttentionShape& shape, const float* cosine, const float* sine,
          const std::int32_t* position, int direction, bf16* qkv);

// --- attention/forward.cuh, attention/backward.cuh: without cuDNN ----------------------------------------------------

/// Bytes of scratch that own_attention_backward needs; own_attention needs none.
std::int64_t own_attention_scratch(const AttentionShape& shape, int tokens);
/// As `attention`, for head dims 32, 64 and 128, without cuDNN. Rows of o are a multiple of 8 apart.
void own_attention(Context& context, const AttentionShape& shape, const TokenBatch& batch, const bf16* qkv,
                   Rows<bf16> o, float* lse, void* scratch, std::int64_t scratch_bytes);
/// As `attention_backward`; gqkv must not alias qkv. o and lse may come from either implementation.
void own_attention_backward(Context& context, const AttentionShape& shape, const TokenBatch& batch, Rows<const bf16> go,
                            const bf16* qkv, Rows<const bf16> o, const float* lse, bf16* gqkv, void* scratch,
                            std::int64_t scratch_bytes);
/// Whether own_attention_backward is faster for a shape on this card than the cuDNN kernels that the options allow:
/// true where Hopper kernels exist and sums must not depend on timing.
bool prefers_own_backward(const Context& context, const AttentionShape& shape);

// --- attention/attention.cuh: cuDNN where it supports a shape, otherwise without it ----------------------------------

/// qkv (T,(H+2K)E), rotated -> o (T,HE), lse (H,T). Key j is seen by query t when t - positions[t] <= j <= t.
/// lse is the natural logarithm of the sum of exp of scaled scores.
void attention(Context& context, const AttentionShape& shape, const TokenBatch& batch, const bf16* qkv, Rows<bf16> o,
               float* lse, void* scratch, std::int64_t scratch_bytes);
/// gqkv (T,(H+2K)E), every element written.
void attention_backward(Context& context, const AttentionShape& shape, const TokenBatch& batch, Rows<const bf16> go,
                        const bf16* qkv, Rows<const bf16> o, const float* lse, bf16* gqkv, void* scratch,
                        std::int64_t scratch_bytes);

// --- attention/cudnn.hpp: fused attention of cuDNN, where it was built in --------------------------------------------

/// The same with cuDNN; false: declined, and nothing was written. A new shape builds its plan, which waits and may
/// allocate.
bool fused_attention(Context& context, const AttentionShape& shape, const TokenBatch& batch, const bf16* qkv,
                     Rows<bf16> o, float* lse);
bool fused_attention_backward(Context& context, const AttentionShape& shape, const TokenBatch& batch,
                              Rows<const bf16> go, const bf16* qkv, Rows<const bf16> o, const float* lse, bf16* gqkv);
/// Bytes of device memory that cuDNN uses as workspace.
std::int64_t fused_workspace(const Context& context);

// --- decode/decode.cuh -----------------------------------------------------------------------------------------------

/// Keys per thread block in attention_cached: with 32 heads and 1100 keys, each of 132 multiprocessors has a block.
inline constexpr int split_keys = 256;
/// Thread blocks that share the keys of one sequence, for the longest of a call: a power of 2, so that calls of similar
/// lengths are launched alike.
[[nodiscard]] constexpr int key_splits(int longest) {
  int splits = 1;
  while (splits * split_keys < longest) splits *= 2;
  return splits;
}
/// Of new tokens (T): turns the queries and keys of qkv by `position`, puts keys and values into the caches, and
/// attends: query i of a sequence sees its first length - added + i + 1 keys. A token's position is its place in the
/// sequence. qkv is used up.
void attention_cached(Context& context, const AttentionShape& shape, const float* cosine, const float* sine,
                      const std::int32_t* position, int tokens, std::span<const CachedSequence<bf16>> sequences,
                      bf16* qkv, Rows<bf16> o);

// --- loss/loss.cuh ---------------------------------------------------------------------------------------------------

/// x (T,D), head (V,D) -> losses (T), 0 for tokens without a target; gx (T,D) = scale d(sum of losses)/dx unless null.
void cross_entropy(Context& context, int dim, int vocab, const TokenBatch& batch, const bf16* x, const bf16* head,
                   float scale, const LossScratch<bf16, float>& scratch, float* losses, bf16* gx);
/// logits (T,V) float = x (T,D) head^T.
void project(Context& context, int tokens, int dim, int vocab, Rows<const bf16> x, const bf16* head, float* logits);
/// scalars->loss += sum of losses, in a fixed order.
void add_losses(Context& context, int tokens, const float* losses, StepScalars* scalars);

// --- loss/pick.cuh ---------------------------------------------------------------------------------------------------

/// ids (T) = the column of the largest of the first `among` of V logits (T,V), the lowest among equals.
void pick(Context& context, int tokens, int vocab, int among, const float* logits, std::int32_t* ids);

// --- loss/draw.cuh ---------------------------------------------------------------------------------------------------

/// ids (T), drawn from logits (T,V) as rows (T) say.
void draw(Context& context, int tokens, int vocab, const float* logits, const DrawRow* rows, std::int32_t* ids);

// --- optimizer/adamw.cuh ---------------------------------------------------------------------------------------------

/// partial (norm_partials(count)) = sums of norm_tile squares of g, in double and in a fixed order.
void norm_tiles(Context& context, std::int64_t count, const float* g, double* partial);
/// scalars->grad_norm = the root of all partial sums of `count` numbers, scalars->clip = min(1, max_norm / (norm +
/// 1e-6)) (1 when max_norm is 0), both computed in double and in a fixed order.
void norm_total(Context& context, std::int64_t count, const double* partial, float max_norm, StepScalars* scalars);
/// to (count) += from (count).
void add(Context& context, std::int64_t count, const float* from, float* to);
/// AdamW with the clip factor of `scalars`; does nothing when the loss, the norm or any reported value was not finite.
void adamw(Context& context, std::int64_t count, const AdamW& rule, const StepScalars* scalars, const float* g,
           float* p, float* m, float* v);
/// Copies the context's fault word to scalars->fault and clears it.
void take_fault(Context& context, StepScalars* scalars);

// --- optimizer/adamw8bit.cuh -----------------------------------------------------------------------------------------

/// adamw with moments in 8 bits: bitsandbytes' block-wise state.
void adamw8bit(Context& context, std::int64_t count, const AdamW& rule, const StepScalars* scalars, const float* g,
               float* p, const Moments8bit& m, const Moments8bit& v);

// --- comm/nccl.hpp ---------------------------------------------------------------------------------------------------

/// The bytes by which ranks find each other. With NCCL_COMM_ID=host:port in the environment every rank makes the same;
/// without, one makes them and gives them to the others. Throws Error (resource) in a library built without NCCL.
std::string nccl_id();
/// This rank's end of a communicator on the context's card and stream; waits until all ranks are there. `watch` as in
/// Comm. Throws Error (resource) as nccl_id() does, and when the ranks do not meet.
std::unique_ptr<Comm> nccl_comm(std::shared_ptr<Context> context, int rank, int size, const std::string& id,
                                Comm::Watch watch);

// --- weights/merge.cuh -----------------------------------------------------------------------------------------------

/// A lane that merges on the GPU, for one thread at a time: 16 MiB of pinned and of device memory, the adapter of one
/// matrix, and its own stream. The context must outlive it.
std::unique_ptr<MergeLane> merge_lane(Context& context);

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
