// The golden hd128 model on the GPU: logits of bitsandbytes, greedy decoding, cached against whole; and a model whose
// head size no kernel serves.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include "ops/generation.hpp"
#include "qlora/cuda.hpp"

using namespace generation;

TEST_CASE("logits are near those of bitsandbytes in bf16") { check_logits(Cuda()); }
TEST_CASE("greedy decoding writes the golden tokens") { check_greedy(Cuda()); }
TEST_CASE("cached decoding in pieces gives the logits of the whole network") { check_cached(Cuda()); }
TEST_CASE("sequences with different adapters share a pass") { check_mixed(Cuda(), 1e-2); }
TEST_CASE("one order of sums: the bits of a sequence alone") { check_one_order(Cuda()); }
TEST_CASE("a repeated step has the bits of the step by itself") { check_repeated(Cuda()); }

TEST_CASE("head sizes without kernels are refused with a clear error") {
  const golden::Model golden_model("gqa");  // heads of 16
  Model<golden::gqa, Cuda> model(golden_model.directory.source(), {}, Cuda());
  Network<code_of(golden::gqa), Cuda> pass(model.context(), {.batch = 2, .seq = 64, .dropout = false});
  const std::vector<std::int32_t> ids = golden_model.ints("input_ids");
  BatchBuilder builder(ids.size());
  std::string message;
  try {
    pass.forward(builder.build({64, ids, ids, {}}));
  } catch (const Error& error) {
    message = error.what();
  }
  CAPTURE(message);
  CHECK(message.find("16") != std::string::npos);
}
