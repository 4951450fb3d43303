// The compiler is too old.
// expect: qlora needs (g.. 11|clang 15) or newer
// flags: -U__GNUC__ -D__GNUC__=10 -U__clang_major__ -D__clang_major__=14
#include <qlora/compiler.hpp>
