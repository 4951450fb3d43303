// The context: what it says of the card, and bytes that go there and come back.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "qlora/cuda/launch.hpp"
#include "qlora/error.hpp"

using namespace qlora;

namespace {
struct Destroy {
  void operator()(cuda::Context* context) const { cuda::destroy_context(context); }
};
using Owned = std::unique_ptr<cuda::Context, Destroy>;
}  // namespace

TEST_CASE("a context describes its card") {
  const Owned context(cuda::create_context({}));
  const cuda::DeviceInfo info = cuda::device_info(*context);
  CHECK_FALSE(info.name.empty());
  CHECK(info.sm_count > 0);
  CHECK(info.compute_capability >= 80);
  CHECK(info.total > std::int64_t{1} << 30);
  CHECK(info.driver_used > 0);
  CHECK(info.driver_used <= info.total);
  CHECK(info.allocated == 0);
}

TEST_CASE("memory is zeroed, counted, and holds what was copied") {
  const Owned context(cuda::create_context({}));
  constexpr std::int64_t bytes = 1'000'003;
  std::byte* memory = cuda::allocate(*context, bytes);
  REQUIRE(memory != nullptr);
  CHECK(cuda::device_info(*context).allocated >= bytes);

  std::vector<std::uint8_t> there(bytes), back(bytes, 1);
  cuda::download(*context, memory, bytes, back.data());
  CHECK(back == std::vector<std::uint8_t>(bytes, 0));
  for (std::size_t i = 0; i < there.size(); ++i) there[i] = static_cast<std::uint8_t>(i * 31 + i / 256);
  cuda::upload(*context, there.data(), bytes, memory);
  cuda::download(*context, memory, bytes, back.data());
  CHECK(back == there);

  cuda::release(*context, memory, bytes);
  CHECK(cuda::device_info(*context).allocated == 0);
}

TEST_CASE("what does not fit the card is refused before it is tried") {
  const Owned context(cuda::create_context({}));
  CHECK_THROWS_AS((void)cuda::allocate(*context, cuda::device_info(*context).total * 2), Error);
}
