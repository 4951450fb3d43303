// A build without optimisation is slow, and the compiler says so.
// note: some 70 times slower
// flags: -O0
#include <qlora/llama2.hpp>
