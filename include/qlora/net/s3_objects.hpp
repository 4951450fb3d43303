// qlora/net/s3_objects.hpp — objects of a store: what there is, one by one and by their first letters, and small ones
// whole. Large ones come and go in parts: net/s3_transfer.hpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/sha256.hpp"
#include "qlora/net/exchange.hpp"
#include "qlora/net/percent.hpp"
#include "qlora/net/s3.hpp"
#include "qlora/net/s3_address.hpp"
#include "qlora/net/xml.hpp"

namespace qlora {
inline namespace v0 {
namespace net {

namespace detail {

/// The N of "...-N"; 1 without it.
[[nodiscard]] inline std::int64_t parts_of(std::string_view hash) {
  const std::size_t dash = hash.rfind('-');
  if (dash == std::string_view::npos) return 1;
  const std::string_view digits = hash.substr(dash + 1);
  const bool good = !digits.empty() && digits.size() <= 5 && digits.find_first_not_of("0123456789") == digits.npos;
  return good ? std::stoll(std::string(digits)) : 1;
}

}  // namespace detail

/// An object. A hash of an object of N parts is the hash of their hashes, and ends in "-N".
struct S3Object {
  S3Address address;            ///< whole
  std::int64_t size = 0;        ///< bytes
  std::string etag;             ///< without quotes; changes with the contents
  std::string sha256{};         ///< in base64, where the store states it; empty: it does not, or was not asked
  bool md5 = false;             ///< whether `etag` is an MD5
  std::int64_t part_bytes = 0;  ///< of its first part, where there are several and the store says so; else 0

  /// Parts that it was uploaded in. Some stores leave the "-N" out of the SHA-256.
  [[nodiscard]] std::int64_t parts() const {
    return detail::parts_of(sha256.find('-') != std::string::npos ? sha256 : etag);
  }
};

/// An upload in parts that was begun and not ended.
struct S3Upload {
  S3Address address;  ///< of the object that it would become
  std::string id;     ///< of the upload
};

/// Of an object that was uploaded in parts here: the bytes of each part but the last.
inline constexpr std::string_view part_bytes_header = "x-amz-meta-qlora-part-bytes";

namespace detail {

[[nodiscard]] inline std::int64_t s3_size(const std::string& text, const std::string& where) {
  const bool good = !text.empty() && text.size() <= 15 && text.find_first_not_of("0123456789") == std::string::npos;
  if (!good) throw Error(where + ": the store states no size", ErrorKind::network);
  return std::stoll(text);
}

[[nodiscard]] inline std::string without_quotes(std::string text) {
  std::erase(text, '"');
  return text;
}

/// Whether a tag has the form of an MD5, "-N" behind it or not.
[[nodiscard]] inline bool has_form_of_md5(std::string_view tag) {
  const std::string_view hash = tag.substr(0, tag.find('-'));
  return hash.size() == 32 && hash.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

/// Pages of a list, until the last: `next` reads one and gives the query of the one behind it, empty for none.
template <class Next>
void for_each_page(S3& s3, Connection& connection, const S3Address& bucket, QueryParts query, const Next& next) {
  for (int pages = 0; !query.empty(); ++pages) {
    if (pages == 100'000) throw Error(bucket.text() + ": a list without an end", ErrorKind::network);
    const ExchangeAnswer answer =
        s3.request(connection, {.method = "GET", .address = {bucket.bucket, {}}, .query = query});
    query = next(parse_xml(answer.body, bucket.text()));
  }
}

/// A key as a list has it, encoded where the list says so.
[[nodiscard]] inline std::string listed_key(const XmlElement& root, const XmlElement& entry) {
  const std::string key = entry.text_of("Key");
  return root.text_of("EncodingType") == "url" ? percent_decoded(key) : key;
}

}  // namespace detail

/// An object with all that the store states of it; nothing where there is none. Throws Error as S3::request does, and
/// (input) where there is no such bucket.
[[nodiscard]] inline std::optional<S3Object> head_object(S3& s3, Connection& connection, const S3Address& address) {
  const S3Request request{.method = "HEAD", .address = address, .headers = {"x-amz-checksum-mode: ENABLED"}};
  const ExchangeAnswer answer = s3.request(connection, request);
  if (answer.status == 404) {  // an answer to HEAD has no body that says of what
    (void)s3.request(connection, {.address = {address.bucket, {}}, .query = {{"list-type", "2"}, {"max-keys", "1"}}});
    return std::nullopt;
  }
  S3Object object{.address = address,
                  .size = detail::s3_size(answer.header("content-length"), address.text()),
                  .etag = detail::without_quotes(answer.header("etag")),
                  .sha256 = answer.header("x-amz-checksum-sha256")};
  const std::string encryption = answer.header("x-amz-server-side-encryption");
  const bool own_key = !answer.header("x-amz-server-side-encryption-customer-algorithm").empty();
  object.md5 = detail::has_form_of_md5(object.etag) && (encryption.empty() || encryption == "AES256") && !own_key;
  if (object.parts() > 1) {
    S3Request first = request;
    first.query = {{"partNumber", "1"}};
    const ExchangeAnswer part = s3.request(connection, first);
    const std::int64_t bytes = detail::s3_size(part.header("content-length"), address.text());
    const std::string own = answer.header(std::string(part_bytes_header));  // for stores that know no parts later on
    object.part_bytes = bytes < object.size ? bytes : own.empty() ? 0 : detail::s3_size(own, address.text());
  }
  return object;
}

/// All objects whose keys begin with that of `prefix`, in the order of their keys; `most` of them at most, 0: all.
/// Throws Error as S3::request does.
[[nodiscard]] inline std::vector<S3Object> list_objects(S3& s3, Connection& connection, const S3Address& prefix,
                                                        std::size_t most = 0) {
  std::vector<S3Object> objects;
  const QueryParts query{{"list-type", "2"}, {"prefix", prefix.key}, {"encoding-type", "url"}};
  detail::for_each_page(s3, connection, prefix, query, [&](const XmlElement& root) {
    for (const XmlElement& entry : root.children) {
      if (entry.name != "Contents") continue;
      objects.push_back({.address = {prefix.bucket, detail::listed_key(root, entry)},
                         .size = detail::s3_size(entry.text_of("Size"), prefix.text()),
                         .etag = detail::without_quotes(entry.text_of("ETag"))});
    }
    const std::string token = root.text_of("NextContinuationToken");
    QueryParts more;
    if (root.text_of("IsTruncated") == "true" && !token.empty() && (most == 0 || objects.size() < most)) {
      more = query;
      more.emplace_back("continuation-token", token);
    }
    return more;
  });
  if (most > 0 && objects.size() > most) objects.resize(most);
  return objects;
}

/// Uploads in parts that were begun and not ended, of keys that begin with that of `prefix`. Throws Error as
/// S3::request does.
[[nodiscard]] inline std::vector<S3Upload> list_uploads(S3& s3, Connection& connection, const S3Address& prefix) {
  std::vector<S3Upload> uploads;
  const QueryParts query{{"uploads", ""}, {"prefix", prefix.key}, {"encoding-type", "url"}};
  detail::for_each_page(s3, connection, prefix, query, [&](const XmlElement& root) {
    for (const XmlElement& entry : root.children) {
      if (entry.name == "Upload")
        uploads.push_back({{prefix.bucket, detail::listed_key(root, entry)}, entry.text_of("UploadId")});
    }
    QueryParts more;
    if (root.text_of("IsTruncated") == "true" && !root.text_of("NextKeyMarker").empty()) {
      more = query;
      const std::string key = root.text_of("NextKeyMarker");
      more.emplace_back("key-marker", root.text_of("EncodingType") == "url" ? percent_decoded(key) : key);
      more.emplace_back("upload-id-marker", root.text_of("NextUploadIdMarker"));
    }
    return more;
  });
  return uploads;
}

/// Ends an upload and frees what it took, though asked to stop. Whether the store said so.
inline bool abort_upload(S3& s3, const S3Upload& upload) noexcept {
  return s3.try_once({.method = "DELETE", .address = upload.address, .query = {{"uploadId", upload.id}}});
}

/// Deletes an object; one that is not there is no error. Throws Error as S3::request does.
inline void delete_object(S3& s3, Connection& connection, const S3Address& address) {
  (void)s3.request(connection, {.method = "DELETE", .address = address});
}

/// Throws Error (network) where an answer states another hash of what was sent than it has.
inline void expect_same_sum(const ExchangeAnswer& answer, const std::string& sum, const S3Address& address) {
  const std::string stated = answer.header("x-amz-checksum-sha256");
  if (stated.empty() || stated == sum) return;
  throw Error(address.text() + ": the store has other bytes than were sent: its SHA-256 differs; start again",
              ErrorKind::network);
}

/// The headers that state what is sent, by its SHA-256, which are 32 bytes.
[[nodiscard]] inline std::vector<std::string> checksum_headers(std::string_view hash) {
  return {"content-type: application/octet-stream", "x-amz-sdk-checksum-algorithm: SHA256",
          "x-amz-checksum-sha256: " + base64(hash)};
}

/// Writes an object in one request, with its SHA-256, which the store compares. With `fresh` none of that key may be
/// there: of two writers one is refused (If-None-Match; stores that do not know it write all the same). Throws Error as
/// S3::request does, and (input) for an object that somebody else has written.
inline void put_object(S3& s3, Connection& connection, const S3Address& address, std::span<const std::byte> bytes,
                       bool fresh = false) {
  const std::string hash = Sha256().update(bytes).bytes();
  S3Request request{.method = "PUT",
                    .address = address,
                    .headers = checksum_headers(hash),
                    .body = bytes,
                    .body_sha256 = Sha256::hex_of(hash)};
  const std::vector<std::string> plain = request.headers;
  if (fresh) {
    request.headers.emplace_back("if-none-match: *");
    request.accepted = "PreconditionFailed ConditionalRequestConflict NotImplemented";
  }
  ExchangeAnswer answer = s3.request(connection, request);
  const std::string code = answer.status < 300 ? std::string() : detail::error_code(answer, address.text());
  if (code == "NotImplemented") {
    request.headers = plain;
    answer = s3.request(connection, request);
  } else if (!code.empty()) {  // an earlier try may have been heard and its answer lost
    const auto there = head_object(s3, connection, address);
    if (there && there->size == static_cast<std::int64_t>(bytes.size()) && there->sha256 == base64(hash)) return;
    throw Error(address.text() + ": somebody else has written it meanwhile");
  }
  expect_same_sum(answer, base64(hash), address);
}

}  // namespace net
}  // namespace v0
}  // namespace qlora
