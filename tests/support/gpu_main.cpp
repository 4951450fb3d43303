// tests/support/gpu_main.cpp — doctest's own code and the main() of the tests that need a GPU. Without a usable one
// they are skipped, which CTest counts: exit status 77, or 1 where QLORA_REQUIRE_GPU is set, so that a machine that has
// a GPU cannot pass by skipping.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdlib>
#include <iostream>
#include <string>

#include "qlora/cuda/launch.hpp"

int main(int argc, char** argv) {
  std::string why;
  if (qlora::cuda::device_count(&why) == 0) {
    std::cout << "skipped: " << why << '\n';
    return std::getenv("QLORA_REQUIRE_GPU") == nullptr ? 77 : 1;
  }
  return doctest::Context(argc, argv).run();
}
