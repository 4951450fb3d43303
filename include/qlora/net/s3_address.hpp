// qlora/net/s3_address.hpp — "s3://bucket/key", and addresses in the one spelling that is signed: path and query are
// encoded and sorted (tests/net/s3_test.cpp).
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/net/percent.hpp"

namespace qlora {
inline namespace v0 {
namespace net {

/// An object, or all objects that begin with a key.
struct S3Address {
  std::string bucket;  ///< 3 to 255 of a-z A-Z 0-9 . _ -
  std::string key;     ///< without a slash at its front; empty: the bucket itself

  /// "s3://bucket/key".
  [[nodiscard]] std::string text() const { return concat("s3://", bucket, "/", key); }
  /// The object NAME below this one, as a file in a folder.
  [[nodiscard]] S3Address operator/(std::string_view name) const {
    return {bucket, concat(key, key.empty() || key.ends_with('/') ? "" : "/", name)};
  }
};

/// Whether a text is meant as an address of S3, whatever follows "s3://".
[[nodiscard]] inline bool is_s3_address(std::string_view text) { return text.starts_with("s3://"); }

/// What a text that begins with "s3://" names. Throws Error (usage) for a bucket or a key that there cannot be.
[[nodiscard]] inline S3Address s3_address(std::string_view text) {
  const auto refuse = [&](std::string_view why) {
    throw Error(concat("'", text, "': ", why, "; an address is s3://BUCKET/KEY"), ErrorKind::usage);
  };
  if (!is_s3_address(text)) refuse("is no address of S3");
  const std::string_view rest = text.substr(5);
  const std::string_view bucket = rest.substr(0, rest.find('/'));
  const bool good = bucket.size() >= 3 && bucket.size() <= 255 && bucket.front() != '.' && bucket.back() != '.' &&
                    bucket.find("..") == std::string_view::npos &&
                    std::all_of(bucket.begin(), bucket.end(), [](char c) {
                      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
                             c == '-' || c == '_';
                    });
  if (bucket.starts_with("arn:")) refuse("an access point by its ARN is not known here; give its alias");
  if (!good) refuse("that is no bucket's name");
  S3Address address{std::string(bucket), std::string(rest.substr(std::min(bucket.size() + 1, rest.size())))};
  if (address.key.size() > 1024) refuse("a key has at most 1024 bytes");
  if (address.key.find('\0') != std::string::npos) refuse("a key holds no NUL");
  return address;
}

/// Names and values of a query, not encoded.
using QueryParts = std::vector<std::pair<std::string, std::string>>;

/// A whole address: `base` ("https://host:port"), a path that begins with "/", and a query. Path and query are encoded,
/// the query is sorted by its encoded names, and a name without a value gets its "=".
[[nodiscard]] inline std::string canonical_url(std::string_view base, std::string_view path, const QueryParts& query) {
  std::string url = concat(base, percent_encoded(path, "/"));
  QueryParts parts;
  for (const auto& [name, value] : query) parts.emplace_back(percent_encoded(name, {}), percent_encoded(value, {}));
  std::sort(parts.begin(), parts.end());
  char mark = '?';
  for (const auto& [name, value] : parts) {
    url += concat(mark, name, "=", value);
    mark = '&';
  }
  return url;
}

}  // namespace net
}  // namespace v0
}  // namespace qlora
