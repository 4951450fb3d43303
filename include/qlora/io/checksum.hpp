// qlora/io/checksum.hpp — XXH3 of 128 bits, against accidental changes on disk or in memory; it protects against no
// attacker. The command `xxhsum -H2` computes the same.
#pragma once

#include <xxhash.h>
#if defined(__x86_64__) && __has_include(<xxh_x86dispatch.h>)
#include <xxh_x86dispatch.h>  // the same functions by the widest vectors of the processor: 8.4 GB/s instead of 7.0
#endif

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "qlora/error.hpp"

namespace qlora {
inline namespace v0 {

/// Whether what is read is compared with the checksums that were written with it.
enum class Verify : std::uint8_t {
  checksums,  ///< where there are any
  nothing     ///< the disk is trusted
};

/// XXH3 of 128 bits.
struct Checksum {
  std::uint64_t high = 0;  ///< the first 16 digits
  std::uint64_t low = 0;   ///< the last 16 digits

  friend bool operator==(const Checksum&, const Checksum&) = default;

  /// 32 lower-case hexadecimal digits, as xxhsum prints them.
  [[nodiscard]] std::string hex() const {
    constexpr std::string_view digits = "0123456789abcdef";
    std::string text;
    for (const std::uint64_t word : {high, low}) {
      for (int shift = 60; shift >= 0; shift -= 4) text += digits[(word >> shift) & 15U];
    }
    return text;
  }
  /// Reads what hex() returns; nothing for any other text.
  [[nodiscard]] static std::optional<Checksum> parse(std::string_view text) {
    if (text.size() != 32) return std::nullopt;
    Checksum sum;
    for (std::size_t i = 0; i < text.size(); ++i) {
      const char c = text[i];
      const bool letter = c >= 'a' && c <= 'f';
      if (!letter && (c < '0' || c > '9')) return std::nullopt;
      std::uint64_t& word = i < 16 ? sum.high : sum.low;
      word = (word << 4) | static_cast<std::uint64_t>(letter ? c - 'a' + 10 : c - '0');
    }
    return sum;
  }
};

/// The checksum of bytes that come in pieces. Used by one thread at a time.
class RunningChecksum {
 public:
  RunningChecksum() : state_(XXH3_createState()) {
    if (state_ == nullptr || XXH3_128bits_reset(state_.get()) != XXH_OK) throw std::bad_alloc();
  }
  /// Adds the next bytes.
  RunningChecksum& update(std::span<const std::byte> bytes) {
    QLORA_EXPECTS(XXH3_128bits_update(state_.get(), bytes.data(), bytes.size()) == XXH_OK, "a checksum failed");
    return *this;
  }
  /// Of all bytes so far.
  [[nodiscard]] Checksum value() const {
    const XXH128_hash_t hash = XXH3_128bits_digest(state_.get());
    return {hash.high64, hash.low64};
  }

 private:
  struct Free {
    void operator()(XXH3_state_t* state) const { (void)XXH3_freeState(state); }
  };
  std::unique_ptr<XXH3_state_t, Free> state_;
};

/// The checksum of these bytes.
[[nodiscard]] inline Checksum checksum(std::span<const std::byte> bytes) {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return {hash.high64, hash.low64};
}

}  // namespace v0
}  // namespace qlora
