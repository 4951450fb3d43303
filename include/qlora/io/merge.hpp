// qlora/io/merge.hpp — a model directory with a PEFT adapter inside its weights, W + s B A, for programs that
// know no adapters. Works on the files, tensor by tensor, so that it needs neither a compiled shape nor room for the
// model.
// With DoRA each row of that is then as long as the adapter says, on lanes of the host.
// Of a model in NF4 the matrices are what its codes mean, as the adapter saw them in training.
// What may not change: the directory appears whole and durable or not at all, and its bytes depend neither on the
// number of threads nor on their timing: each tensor is one thread's.
// Speed: as many tensors are in hand as there are lanes, so that reading, computing and writing overlap; a weight file
// is made durable while the next ones are written.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "qlora/cpu/merge.hpp"
#include "qlora/error.hpp"
#include "qlora/io/bnb.hpp"
#include "qlora/io/hf_model.hpp"
#include "qlora/io/hf_writer.hpp"
#include "qlora/io/peft.hpp"
#include "qlora/merging.hpp"
#include "qlora/tensor.hpp"

namespace qlora {
inline namespace v0 {

/// How a merged model is written.
struct MergeOptions {
  std::uint64_t max_shard_bytes = 2'000'000'000;  ///< a tensor larger than this gets a file of its own
  std::filesystem::path tokenizer_from;           ///< directory whose tokenizer files are copied; empty: none
  std::map<std::string, std::string> files{};     ///< texts of further files by their names
  /// Called with 0 when the target is ready and after each tensor with how many are done, by one thread at a time,
  /// whichever it is; false: stop.
  std::function<bool(std::int64_t)> on_tensor;
  bool replace = false;          ///< take the place of a directory that holds a model alone
  std::optional<DType> dtype{};  ///< of the merged weights: f16, bf16 or f32; nothing: the model's own, of f64 f32
  bool any_base = false;         ///< take an adapter that was trained on other weights; see expect_base_checksum
};

/// What a merge wrote, and how long it took.
struct MergeReport {
  std::int64_t tensors = 0;  ///< tensors that were written
  std::int64_t changed = 0;  ///< those that have an adapter
  double written_s = 0.0;    ///< until the system had taken the last weight
  double durable_s = 0.0;    ///< from there until the directory was durable and had its name
};

/// The lanes of a merge, one for each thread.
using MergeLanes = std::vector<std::unique_ptr<MergeLane>>;

/// Lanes beyond this many wait for memory, the bus and the disk more than they work.
inline constexpr unsigned most_merge_threads = 24;

/// Lanes on the CPU; 0: one per core.
[[nodiscard]] inline MergeLanes host_merge_lanes(unsigned threads = 0) {
  MergeLanes lanes(threads > 0 ? threads : std::max(1U, std::thread::hardware_concurrency()));
  for (auto& lane : lanes) lane = std::make_unique<HostMergeLane>();
  return lanes;
}

namespace detail {

/// The adapter of a tensor with the floats that it is made of.
struct OwnedAdapter {
  MergeAdapter adapter;
  std::vector<float> a;
  std::vector<float> b;
  std::vector<float> magnitude;
};

inline void all_floats(const TensorRef& tensor, std::vector<float>& values) {
  values.resize(static_cast<std::size_t>(tensor.size()));
  read_floats(tensor, 0, values);
}

/// The adapter of "model.layers.3.mlp.up_proj.weight"; rank 0 where there is none.
inline void adapter_of(const PeftAdapter& peft, const Shape& shape, const hf::NamedShape& tensor, OwnedAdapter& out) {
  out.adapter = {.cols = static_cast<int>(tensor.shape.back()), .rank = 0, .scale = 0.0F, .a = {}, .b = {}};
  out.magnitude.clear();
  const std::string& name = tensor.name;
  if (!name.ends_with(".weight")) return;
  const auto place = lora_place("base_model.model." + name.substr(0, name.size() - 6) + "lora_A.weight");
  if (!place) return;
  const TensorSource source = peft.source();
  const auto a = source(lora_name(place->layer, place->proj, 'A'));
  const auto b = source(lora_name(place->layer, place->proj, 'B'));
  if (!a || !b) return;
  const int rows = rows_of(shape, place->proj);
  const int cols = cols_of(shape, place->proj);
  if (a->shape[1] != cols || b->shape[0] != rows) {
    throw Error(concat(peft.path.string(), ": the adapter of ", name, " is ", b->shape[0], " x ", a->shape[1],
                       ", the weight ", rows, " x ", cols, "; it was trained on another model"));
  }
  all_floats(*a, out.a);
  all_floats(*b, out.b);
  if (peft.dora) {
    all_floats(source(lora_name(place->layer, place->proj, 'M')).value(), out.magnitude);
    if (out.magnitude.size() != static_cast<std::size_t>(rows)) {
      throw Error(concat(peft.path.string(), ": ", name, " has ", rows, " rows, and the adapter ", out.magnitude.size(),
                         " magnitudes; it was trained on another model"));
    }
  }
  for (const auto& [matrix, values] :
       {std::pair('A', &out.a), std::pair('B', &out.b), std::pair('M', &out.magnitude)}) {
    if (std::all_of(values->begin(), values->end(), [](float value) { return std::isfinite(value); })) continue;
    throw Error(
        concat(peft.path.string(), ": ", lora_name(place->layer, place->proj, matrix), " holds a NaN or an infinity"));
  }
  out.adapter.rank = rank_of(peft, place->layer, place->proj);
  out.adapter.scale = scale_of(peft, place->layer, place->proj);
  out.adapter.a = out.a;
  out.adapter.b = out.b;
  out.adapter.magnitude = out.magnitude;
}

/// One merge: tensors are handed out in turn, a thread for each lane takes the next.
class Merge {
 public:
  Merge(const hf::ModelDir& model, const PeftAdapter& adapter, const std::filesystem::path& out,
        const MergeOptions& options, std::size_t lanes)
      : adapter_(adapter),
        model_(model),
        shape_(model.shape),
        source_(model.source(0)),
        options_(options),
        dtype_(merged_type(model, options)),
        writer_(out, with_type(model, dtype_),
                {.max_shard_bytes = options.max_shard_bytes,
                 .tokenizer_from = options.tokenizer_from,
                 .files = options.files,
                 .replace = options.replace}),
        tensors_(writer_.tensors_for(lanes)),
        left_(writer_.files()) {
    for (const hf::NamedShape& tensor : tensors_) left_[writer_.file_of(tensor.name)].fetch_add(1);
  }

  MergeReport run(MergeLanes& lanes) {
    const auto started = std::chrono::steady_clock::now();
    tell();
    std::vector<std::thread> threads;
    threads.reserve(lanes.size());
    try {
      for (std::size_t i = 1; i < std::min(lanes.size(), tensors_.size()); ++i) {
        threads.emplace_back([this, &lane = *lanes[i]] { work(lane); });
      }
    } catch (const std::system_error&) {
      // a system that gives no more threads: those there are take all tensors
    }
    work(*lanes[0]);
    for (std::thread& thread : threads) thread.join();
    if (failure_) std::rethrow_exception(failure_);
    const auto written = std::chrono::steady_clock::now();
    for (std::future<void>& file : durable_) file.get();
    if (!options_.any_base) expect_base_checksum(adapter_, model_.checksum());  // all of it has been read
    writer_.finish();
    const auto seconds = [](auto span) { return std::chrono::duration<double>(span).count(); };
    return {.tensors = done_,
            .changed = changed_,
            .written_s = seconds(written - started),
            .durable_s = seconds(std::chrono::steady_clock::now() - written)};
  }

 private:
  [[nodiscard]] static DType merged_type(const hf::ModelDir& model, const MergeOptions& options) {
    return options.dtype.value_or(model.dtype == DType::f64 ? DType::f32 : model.dtype);
  }
  [[nodiscard]] static hf::ModelConfig with_type(hf::ModelConfig config, DType dtype) {
    config.dtype = dtype;
    return config;
  }

  void work(MergeLane& lane) noexcept {
    try {
      OwnedAdapter adapter;
      while (!stop_.load()) {
        const std::size_t next = next_.fetch_add(1);
        if (next >= tensors_.size()) return;
        adapter_of(adapter_, shape_, tensors_[next], adapter);
        adapter.adapter.to = dtype_;
        merge_tensor(lane, tensors_[next], adapter.adapter);
        count(tensors_[next], adapter.adapter.rank > 0 || adapter_.whole(tensors_[next].name).has_value());
      }
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
      stop_.store(true);
    }
  }

  void merge_tensor(MergeLane& lane, const hf::NamedShape& tensor, const MergeAdapter& adapter) {
    const std::optional<TensorRef> own = adapter_.whole(tensor.name);
    if (own) expect_shape(tensor, *own);
    const std::optional<TensorRef> plain = own ? own : source_(tensor.name);
    const std::optional<Nf4Ref> nf4 = plain ? std::nullopt : source_.nf4(tensor.name);
    QLORA_EXPECTS(plain || nf4, "the model has no tensor ", tensor.name);
    const std::int64_t cols = adapter.cols;
    const auto width = plain ? static_cast<std::int64_t>(size_of(plain->dtype)) : 0;
    const int rows = static_cast<int>(tensor.shape.size() > 1 ? tensor.shape[0] : 1);
    const int at_once = static_cast<int>(std::max<std::int64_t>(1, merge_piece / cols));
    std::vector<float> dequantized;
    lane.begin(adapter);
    for (int first = 0; first < rows && !stop_.load(); first += at_once) {
      const int here = std::min(at_once, rows - first);
      std::span<const std::byte> piece;
      if (plain) {
        piece = plain->bytes.subspan(static_cast<std::size_t>(first * cols * width),
                                     static_cast<std::size_t>(here * cols * width));
        expect_pages(piece);
      } else {
        dequantized.resize(static_cast<std::size_t>(here * cols));
        bnb::dequantize(*nf4, first * cols, dequantized);
        piece = std::as_bytes(std::span(dequantized));
      }
      const DType from = plain ? plain->dtype : DType::f32;
      const std::span<const std::byte> merged = lane.merge(from, piece, first, here);
      if (merged.empty()) refuse(tensor.name, adapter, from, piece, first, here);
      writer_.write_bytes(tensor.name, merged, static_cast<std::uint64_t>(first * cols) * size_of(dtype_));
    }
  }

  /// A table of another vocabulary would need another tokenizer as well.
  void expect_shape(const hf::NamedShape& tensor, const TensorRef& own) const {
    if (own.shape == tensor.shape) return;
    throw Error(concat(adapter_.path.string(), ": its ", tensor.name, " (modules_to_save) has shape ",
                       shape_text(own.shape), ", that of the model ", shape_text(tensor.shape),
                       "; it was trained with another vocabulary"));
  }
  /// Says which value does not fit.
  [[noreturn]] void refuse(const std::string& name, const MergeAdapter& adapter, DType dtype,
                           std::span<const std::byte> piece, int first, int rows) const {
    std::vector<float> values;
    cpu::merged_floats(adapter, dtype, piece, first, rows, values);
    const auto fits = [&](float value) { return std::isfinite(rounded_to(dtype_, value)); };
    const auto found = std::find_if_not(values.begin(), values.end(), fits);  // a GPU may round otherwise at the edge
    const std::string value = found == values.end() ? "a value" : concat("the value ", *found);
    const bool broken = found != values.end() && !std::isfinite(*found);
    throw Error(concat(value, " in tensor '", excerpt(name), "' is not finite in ", ::qlora::name_of(dtype_),
                       broken ? "; the model or the adapter is damaged"
                              : "; merge to a type with more range: --dtype bf16 or --dtype f32"));
  }

  /// A tensor is done; the last one of a file has it made durable, by a thread of its own that waits for the disk.
  void count(const hf::NamedShape& tensor, bool changed) {
    const std::size_t file = writer_.file_of(tensor.name);
    const bool complete = left_[file].fetch_sub(1) == 1;
    const std::lock_guard lock(mutex_);
    if (failure_ || stop_.load()) return;
    if (complete) make_durable(file);
    changed_ += changed ? 1 : 0;
    ++done_;
    tell();
  }
  void make_durable(std::size_t file) {
    try {
      durable_.push_back(std::async(std::launch::async, [this, file] { writer_.finish_file(file); }));
    } catch (const std::system_error&) {
      // no more threads: the writer's end does it
    }
  }
  void tell() const {
    if (options_.on_tensor && !options_.on_tensor(done_)) {
      throw Error("interrupted while merging; nothing was written", ErrorKind::interrupted);
    }
  }

  const PeftAdapter& adapter_;
  const hf::ModelDir& model_;
  Shape shape_;
  TensorSource source_;
  const MergeOptions& options_;
  DType dtype_;  // of what is written
  hf::ModelWriter writer_;
  std::vector<hf::NamedShape> tensors_;
  std::vector<std::atomic<int>> left_;  // tensors of each file that are not yet written
  std::atomic<std::size_t> next_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;  // of what follows
  std::exception_ptr failure_;
  std::int64_t done_ = 0;
  std::int64_t changed_ = 0;
  std::vector<std::future<void>> durable_;  // behind the writer: they end before it does
};

}  // namespace detail

/// Writes the merged model, one thread for each lane. Throws Error, with nothing left behind, when the adapter belongs
/// to another model, a value does not fit the type that is written, or the disk is full.
inline MergeReport merge_model(const hf::ModelDir& model, const PeftAdapter& adapter, const std::filesystem::path& out,
                               MergeLanes& lanes, const MergeOptions& options = {}) {
  QLORA_EXPECTS(!lanes.empty(), "merging needs a lane");
  for (const auto& lane : lanes) {
    QLORA_EXPECTS(!adapter.dora || dynamic_cast<const HostMergeLane*>(lane.get()) != nullptr,
                  "an adapter with DoRA is merged on lanes of the host");
  }
  if ((adapter.embedding || adapter.head) && model.shape.tied_embeddings) {
    throw Error(concat(adapter.path.string(), " has an embedding table or a head of its own (modules_to_save), and in ",
                       model.path.string(),
                       " both are one tensor (tie_word_embeddings), which could not say it; merge "
                       "it with peft's merge_and_unload()"));
  }
  if (adapter.layers > model.shape.layers) {
    throw Error(concat(adapter.path.string(), " has ", adapter.layers, " layers, the model ", model.shape.layers,
                       "; it was trained on another model"));
  }
  return detail::Merge(model, adapter, out, options, lanes.size()).run(lanes);
}

}  // namespace v0
}  // namespace qlora
