// qlora/compiler.hpp — what the library needs of the compiler, so that a wrong one gets one error and not hundreds.
// g++ 12 and 13 and clang 16 and 19 are tested; g++ 11 and clang 15 are the first that compile the door.
#pragma once

#if defined(_MSC_VER) && !defined(__clang__)
#error "qlora is written for g++ and clang"
#elif defined(__clang__) && !defined(__apple_build_version__) && __clang_major__ < 15
#error "qlora needs clang 15 or newer"
#elif !defined(__clang__) && defined(__GNUC__) && __GNUC__ < 11
#error "qlora needs g++ 11 or newer"
#elif __cplusplus < 202002L
#error "qlora is written in C++20: compile with -std=c++20 or later"
#endif

// Losses and gradients are tested for NaN, and the same seed gives the same bits: both need IEEE arithmetic.
#if defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__
#error "qlora cannot be compiled with -ffast-math or -ffinite-math-only, which remove its checks for NaN"
#endif
