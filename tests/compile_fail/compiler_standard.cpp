// The language version is too old.
// expect: qlora is written in C..20
// flags: -std=c++17
#include <qlora/config.hpp>
