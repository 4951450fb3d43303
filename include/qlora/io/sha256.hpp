// qlora/io/sha256.hpp — SHA-256 of texts, bytes and files, to know that what is read is what was written.
// The hash itself is OpenSSL's. Checked by tests/io/sha256_test.cpp against the vectors of FIPS 180-4 and against the
// sha256sum program.
#pragma once

#include <openssl/evp.h>
#include <openssl/hmac.h>

#include <array>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "qlora/error.hpp"
#include "qlora/io/file.hpp"

namespace qlora {
inline namespace v0 {

/// A running hash: update() any number of times, then hex() once. Each may throw Error (resource): memory is out, or a
/// configuration of OpenSSL leaves it without SHA-256. Used by one thread at a time.
class Sha256 {
 public:
  Sha256() : Sha256(EVP_sha256()) {}
  /// Adds these bytes to what is hashed.
  Sha256& update(std::span<const std::byte> bytes) {
    expect(EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size()) == 1);
    return *this;
  }
  /// Adds the bytes of a text to what is hashed.
  Sha256& update(std::string_view text) { return update(std::as_bytes(std::span(text))); }

  /// The digest in lower-case hexadecimal digits, 64 of them. Ends the hash.
  [[nodiscard]] std::string hex() { return hex_of(bytes()); }
  /// The digest itself, 32 bytes. Ends the hash.
  [[nodiscard]] std::string bytes() {
    std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
    unsigned size = 0;
    expect(EVP_DigestFinal_ex(context_.get(), digest.data(), &size) == 1 && size > 0);
    return {reinterpret_cast<const char*>(digest.data()), size};
  }
  /// Bytes as lower-case hexadecimal digits.
  [[nodiscard]] static std::string hex_of(std::string_view bytes) {
    constexpr std::string_view digits = "0123456789abcdef";
    std::string text;
    for (const char c : bytes) {
      const auto byte = static_cast<unsigned char>(c);
      text += digits[byte >> 4U];
      text += digits[byte & 15U];
    }
    return text;
  }

 protected:
  /// A hash of another kind, which lives as long as the program.
  explicit Sha256(const EVP_MD* kind) : context_(EVP_MD_CTX_new()) {
    expect(context_ != nullptr && EVP_DigestInit_ex(context_.get(), kind, nullptr) == 1);
  }

 private:
  struct Free {
    void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
  };
  static void expect(bool done) {
    if (!done) throw Error("OpenSSL computes no SHA: no memory, or its configuration", ErrorKind::resource);
  }
  std::unique_ptr<EVP_MD_CTX, Free> context_;
};

/// SHA-256 of these bytes, as 64 lower-case hexadecimal digits.
[[nodiscard]] inline std::string sha256(std::span<const std::byte> bytes) { return Sha256().update(bytes).hex(); }
/// SHA-256 of the bytes of a text, as 64 lower-case hexadecimal digits.
[[nodiscard]] inline std::string sha256(std::string_view text) { return Sha256().update(text).hex(); }
/// SHA-1, which names things and protects nothing: git calls a file by it.
class Sha1 : public Sha256 {
 public:
  Sha1() : Sha256(EVP_sha1()) {}
};
/// MD5, by which stores of objects tell a damaged file, and which protects nothing.
class Md5 : public Sha256 {
 public:
  Md5() : Sha256(EVP_md5()) {}
};
/// HMAC (RFC 2104) of a text with SHA-256, 32 bytes. Throws Error (resource) as Sha256 does.
[[nodiscard]] inline std::string hmac_sha256(std::string_view key, std::string_view text) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned size = 0;
  const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
  if (::HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()), bytes, text.size(), digest.data(), &size) ==
      nullptr)
    throw Error("OpenSSL computes no HMAC: no memory, or its configuration", ErrorKind::resource);
  return {reinterpret_cast<const char*>(digest.data()), size};
}
/// Bytes in base64 (RFC 4648, 4), with its padding.
[[nodiscard]] inline std::string base64(std::string_view bytes) {
  std::string text((bytes.size() + 2) / 3 * 4 + 1, '\0');  // OpenSSL writes a zero behind it
  const int size =
      EVP_EncodeBlock(reinterpret_cast<unsigned char*>(text.data()),
                      reinterpret_cast<const unsigned char*>(bytes.data()), static_cast<int>(bytes.size()));
  text.resize(static_cast<std::size_t>(size));
  return text;
}
/// What git calls a file of these bytes (`git hash-object`), as 40 lower-case hexadecimal digits.
[[nodiscard]] inline std::string git_blob_name(std::span<const std::byte> bytes) {
  Sha1 hash;
  hash.update(concat("blob ", bytes.size()));
  return hash.update(std::string_view("\0", 1)).update(bytes).hex();
}
/// SHA-256 of a file's bytes, as above. Throws Error when the file cannot be read.
[[nodiscard]] inline std::string sha256_file(const std::filesystem::path& path) {
  return sha256(MappedFile(path).bytes());
}

}  // namespace v0
}  // namespace qlora
