// Without IEEE arithmetic a NaN is not seen.
// expect: removes? its checks for NaN
// flags: -ffast-math
#include <qlora/compiler.hpp>
