// qlora/io/sha256.hpp — SHA-256 of texts, bytes and files, to know that what is read is what was written.
// Source: FIPS 180-4. Checked by tests/io/sha256_test.cpp against its vectors and against the sha256sum program.
// Speed: the processor's own instructions where it has them (measured six
// times as fast), else plain code; chosen at run time.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "qlora/io/file.hpp"

namespace qlora {
inline namespace v0 {

namespace detail {

inline constexpr std::array<std::uint32_t, 64> sha256_constants{
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

inline void sha256_block(std::array<std::uint32_t, 8>& state, const std::byte* block) {
  std::array<std::uint32_t, 64> w;
  for (std::size_t t = 0; t < 16; ++t) {
    std::uint32_t word = 0;
    for (std::size_t i = 0; i < 4; ++i) word = (word << 8) | std::to_integer<std::uint32_t>(block[4 * t + i]);
    w[t] = word;
  }
  for (std::size_t t = 16; t < 64; ++t) {
    const std::uint32_t s0 = std::rotr(w[t - 15], 7) ^ std::rotr(w[t - 15], 18) ^ (w[t - 15] >> 3);
    const std::uint32_t s1 = std::rotr(w[t - 2], 17) ^ std::rotr(w[t - 2], 19) ^ (w[t - 2] >> 10);
    w[t] = w[t - 16] + s0 + w[t - 7] + s1;
  }
  auto [a, b, c, d, e, f, g, h] = state;
  for (std::size_t t = 0; t < 64; ++t) {
    const std::uint32_t big1 = std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25);
    const std::uint32_t t1 = h + big1 + ((e & f) ^ (~e & g)) + sha256_constants[t] + w[t];
    const std::uint32_t big0 = std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22);
    const std::uint32_t t2 = big0 + ((a & b) ^ (a & c) ^ (b & c));
    h = g, g = f, f = e, e = d + t1;
    d = c, c = b, b = a, a = t1 + t2;
  }
  const std::array<std::uint32_t, 8> round{a, b, c, d, e, f, g, h};
  for (std::size_t i = 0; i < 8; ++i) state[i] += round[i];
}

#if defined(__x86_64__)
/// SHA, and the shuffles of SSSE3 and SSE4.1 that go with it: CPUID leaf 7 EBX bit 29, leaf 1 ECX bits 9 and 19.
[[nodiscard]] inline bool has_sha_instructions() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & (1U << 9)) == 0 || (c & (1U << 19)) == 0) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b & (1U << 29)) != 0;
}

/// The instructions keep the state as (a,b,e,f) and (c,d,g,h), do two rounds each, and make four words of the schedule
/// in a pair.
[[gnu::target("sha,ssse3,sse4.1")]] inline void sha256_blocks_fast(std::array<std::uint32_t, 8>& state,
                                                                   const std::byte* data, std::size_t blocks) {
#if defined(__AVX__)
  // These instructions take a hundred times as long while the upper halves of the registers hold something, and g++
  // clears them after use at -O2 and above only.
  _mm256_zeroupper();
#endif
  const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
  auto* words = reinterpret_cast<__m128i*>(state.data());
  const __m128i cdab = _mm_shuffle_epi32(_mm_loadu_si128(words), 0xB1);
  const __m128i efgh = _mm_shuffle_epi32(_mm_loadu_si128(words + 1), 0x1B);
  __m128i abef = _mm_alignr_epi8(cdab, efgh, 8);
  __m128i cdgh = _mm_blend_epi16(efgh, cdab, 0xF0);
  for (; blocks > 0; --blocks, data += 64) {
    const __m128i abef_before = abef;
    const __m128i cdgh_before = cdgh;
    __m128i w[4];
#pragma GCC unroll 16
    for (std::size_t i = 0; i < 16; ++i) {  // rounds 4 i to 4 i + 3
      if (i < 4) {
        w[i] = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data) + i), big_endian);
      } else {
        const __m128i older = _mm_sha256msg1_epu32(w[i % 4], w[(i + 1) % 4]);
        const __m128i middle = _mm_alignr_epi8(w[(i + 3) % 4], w[(i + 2) % 4], 4);
        w[i % 4] = _mm_sha256msg2_epu32(_mm_add_epi32(older, middle), w[(i + 3) % 4]);
      }
      const __m128i k = _mm_loadu_si128(reinterpret_cast<const __m128i*>(sha256_constants.data()) + i);
      const __m128i sum = _mm_add_epi32(w[i % 4], k);
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0E));
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  const __m128i feba = _mm_shuffle_epi32(abef, 0x1B);
  const __m128i dchg = _mm_shuffle_epi32(cdgh, 0xB1);
  _mm_storeu_si128(words, _mm_blend_epi16(feba, dchg, 0xF0));
  _mm_storeu_si128(words + 1, _mm_alignr_epi8(dchg, feba, 8));
}
#endif

inline void sha256_blocks(std::array<std::uint32_t, 8>& state, const std::byte* data, std::size_t blocks) {
#if defined(__x86_64__)
  static const bool fast = has_sha_instructions();
  if (fast) return sha256_blocks_fast(state, data, blocks);
#endif
  for (; blocks > 0; --blocks, data += 64) sha256_block(state, data);
}

}  // namespace detail

/// A running hash: update() any number of times, then hex() once.
class Sha256 {
 public:
  /// Adds these bytes to what is hashed.
  Sha256& update(std::span<const std::byte> bytes) {
    total_ += bytes.size();
    while (!bytes.empty()) {
      if (used_ == 0 && bytes.size() >= block_.size()) {  // whole blocks straight from the source
        const std::size_t blocks = bytes.size() / block_.size();
        detail::sha256_blocks(state_, bytes.data(), blocks);
        bytes = bytes.subspan(blocks * block_.size());
        continue;
      }
      const std::size_t take = std::min(block_.size() - used_, bytes.size());
      std::memcpy(block_.data() + used_, bytes.data(), take);
      used_ += take;
      bytes = bytes.subspan(take);
      if (used_ == block_.size()) {
        detail::sha256_blocks(state_, block_.data(), 1);
        used_ = 0;
      }
    }
    return *this;
  }
  /// Adds the bytes of a text to what is hashed.
  Sha256& update(std::string_view text) { return update(std::as_bytes(std::span(text))); }

  /// The digest as 64 lower-case hexadecimal digits. Ends the hash.
  [[nodiscard]] std::string hex() {
    const std::uint64_t bits = total_ * 8;
    constexpr std::array<std::byte, 64> padding{std::byte{0x80}};
    update(std::span(padding).first(1 + (119 - used_) % 64));  // up to 8 bytes before the end of a block
    std::array<std::byte, 8> length{};
    for (unsigned i = 0; i < 8; ++i) length[i] = static_cast<std::byte>(bits >> (56 - 8 * i));
    update(length);
    constexpr std::string_view digits = "0123456789abcdef";
    std::string text;
    for (const std::uint32_t word : state_) {
      for (int shift = 28; shift >= 0; shift -= 4) text += digits[(word >> shift) & 15U];
    }
    return text;
  }

 private:
  std::array<std::uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<std::byte, 64> block_{};
  std::size_t used_ = 0;
  std::uint64_t total_ = 0;
};

/// SHA-256 of these bytes, as 64 lower-case hexadecimal digits.
[[nodiscard]] inline std::string sha256(std::span<const std::byte> bytes) { return Sha256().update(bytes).hex(); }
/// SHA-256 of the bytes of a text, as 64 lower-case hexadecimal digits.
[[nodiscard]] inline std::string sha256(std::string_view text) { return Sha256().update(text).hex(); }
/// SHA-256 of a file's bytes, as above. Throws Error when the file cannot be read.
[[nodiscard]] inline std::string sha256_file(const std::filesystem::path& path) {
  return sha256(MappedFile(path).bytes());
}

}  // namespace v0
}  // namespace qlora
