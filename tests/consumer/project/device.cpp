// Asks the compiled CUDA backend for a device; there need not be one, but then it says why.
#include <iostream>

#include "qlora/cuda/launch.hpp"

int main() {
  std::string why;
  const int count = qlora::cuda::device_count(&why);
  std::cout << count << " devices " << why << '\n';
  return count > 0 || !why.empty() ? 0 : 1;
}
