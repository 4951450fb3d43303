// merge.cpp — `qlora merge`: a model of 16-bit weights with the adapter inside, W + scale B A, for programs that know no
// adapters. Works row by row on the files, so that it needs neither a compiled shape nor the whole model in memory.
#include <algorithm>
#include <filesystem>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "interrupt.hpp"
#include "options.hpp"
#include "qlora/error.hpp"
#include "qlora/io/hf.hpp"
#include "qlora/io/hf_model.hpp"
#include "qlora/io/hf_writer.hpp"
#include "qlora/io/peft.hpp"
#include "steps.hpp"
#include "verb.hpp"

namespace qlora::program {
namespace {

namespace fs = std::filesystem;

std::vector<float> all_floats(const TensorRef& tensor) {
  std::vector<float> values(static_cast<std::size_t>(tensor.size()));
  read_floats(tensor, 0, values);
  return values;
}

/// The adapter of one projection: A (r, in), B (out, r) and what their product is multiplied by.
struct Delta {
  std::size_t rank = 0;
  float scale = 0;
  std::vector<float> a;
  std::vector<float> b;
};

/// Layer and projection of "model.layers.3.mlp.up_proj.weight", and the adapter that belongs there; rank 0 for none.
Delta delta_for(const PeftAdapter& adapter, const Shape& shape, const std::string& name) {
  Delta delta;
  for (int layer = 0; layer < adapter.layers; ++layer) {
    const std::string prefix = qlora::detail::concat("model.layers.", layer, ".");
    if (!name.starts_with(prefix)) continue;
    for (const Proj one : all_projections) {
      if (name != prefix + std::string(name_of(one)) + ".weight") continue;
      const TensorSource source = adapter.source();
      const auto a = source(lora_name(layer, one, 'A'));
      const auto b = source(lora_name(layer, one, 'B'));
      if (!a || !b) return delta;
      delta.rank = static_cast<std::size_t>(rank_of(adapter, layer, one));
      delta.scale = scale_of(adapter, layer, one);
      if (a->shape[1] != cols_of(shape, one) || b->shape[0] != rows_of(shape, one)) {
        throw Error(qlora::detail::concat(adapter.path.string(), ": the adapter of ", name, " is ", b->shape[0], " x ",
                                          a->shape[1], ", the weight ", rows_of(shape, one), " x ", cols_of(shape, one),
                                          "; it was trained on another model"));
      }
      delta.a = all_floats(*a);
      delta.b = all_floats(*b);
    }
  }
  return delta;
}

/// Rows [first, first + rows.size() / in) of W + scale B A; the sum over the rank in float, in order.
void add_delta(const Delta& delta, std::size_t first, std::size_t in, std::vector<float>& rows) {
  std::vector<float> sum(in);
  for (std::size_t r = 0; r < rows.size() / in; ++r) {
    std::fill(sum.begin(), sum.end(), 0.0F);
    for (std::size_t k = 0; k < delta.rank; ++k) {
      const float factor = delta.b[(first + r) * delta.rank + k];
      const float* a = delta.a.data() + k * in;
      for (std::size_t c = 0; c < in; ++c) sum[c] += factor * a[c];
    }
    for (std::size_t c = 0; c < in; ++c) rows[r * in + c] += delta.scale * sum[c];
  }
}

void write_tensor(hf::ModelWriter& writer, const hf::NamedShape& tensor, const TensorRef& from, const Delta& delta) {
  constexpr std::size_t piece = 1U << 20;  // elements at once: some megabytes whatever the model
  const auto in = static_cast<std::size_t>(tensor.shape.back());
  const auto rows = static_cast<std::size_t>(from.size()) / in;
  const std::size_t at_once = std::max<std::size_t>(1, piece / in);
  std::vector<float> values;
  for (std::size_t row = 0; row < rows; row += at_once) {
    values.resize(std::min(at_once, rows - row) * in);
    read_floats(from, static_cast<std::int64_t>(row * in), values);
    if (delta.rank > 0) add_delta(delta, row, in, values);
    writer.write(tensor.name, values, row * in);
  }
}

}  // namespace

Result run_merge(const MergeStep& step, Progress& progress) {
  const hf::ModelDir model = hf::ModelDir::open(step.model);
  const PeftAdapter adapter = PeftAdapter::open(step.adapter);
  if (adapter.layers > model.shape.layers) {
    throw Error(qlora::detail::concat(step.adapter.string(), " has ", adapter.layers, " layers, the model ",
                                      model.shape.layers, "; it was trained on another model"));
  }
  hf::ModelConfig config = model;
  config.dtype = DType::f16;
  hf::ModelWriter writer(
      step.out, config,
      {.max_shard_bytes = static_cast<std::uint64_t>(step.shard_bytes), .tokenizer_from = step.model});
  const std::vector<hf::NamedShape> tensors = writer.tensors();
  const TensorSource source = model.source();
  progress.begin("merge", static_cast<std::int64_t>(tensors.size()), "tensors");
  std::int64_t done = 0;
  std::int64_t merged = 0;
  for (const hf::NamedShape& tensor : tensors) {
    if (interrupted()) throw Error("interrupted while merging; nothing was written", ErrorKind::interrupted);
    const Delta delta = delta_for(adapter, model.shape, tensor.name);
    merged += delta.rank > 0 ? 1 : 0;
    write_tensor(writer, tensor, source(tensor.name).value(), delta);
    progress.update(++done);
  }
  writer.finish();
  const hf::ModelDir written = hf::ModelDir::open(step.out);  // what was written must open as a model again
  progress.end(std::to_string(merged) + " weights changed");
  return {{"tensors", done},
          {"changed", merged},
          {"parameters", parameters(written.shape)},
          {"dtype", name_of(written.dtype)},
          {"path", step.out.string()}};
}

void add_merge(OptionSet app, Invocation& call) {
  OptionSet verb = add_verb(app, call, "merge", "Write a 16-bit model with the adapter inside");
  auto step = std::make_shared<MergeStep>();
  verb.add("-m,--model", step->model, "Model directory that the adapter was trained on").required().type_name("DIR");
  verb.add("-a,--adapter", step->adapter, "Adapter directory").required().type_name("DIR");
  verb.add("-o,--out", step->out, "Directory of the merged model").required().type_name("DIR");
  verb.add("--shard-bytes", step->shard_bytes, "Size of one weight file at most")
      .range(std::int64_t{1} << 20, std::int64_t{1000000000000});
  verb.on_call([&call, step] {
    call.action = [step](Context& context) {
      const Result result = run_merge(*step, context.progress);
      context.out << result["changed"] << " of " << result["tensors"] << " tensors changed, model in "
                  << result["path"].get<std::string>() << '\n';
      return result;
    };
  });
}

}  // namespace qlora::program
