// qlora/net/aws_signature.hpp — AWS Signature Version 4 of a request at a time that is given.
// libcurl could sign, but with the time of this machine alone: told another, 7.88 sends the header x-amz-date twice.
// tests/net/s3_test.cpp compares with botocore.
#pragma once

#include <algorithm>
#include <cstddef>
#include <ctime>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/sha256.hpp"

namespace qlora {
inline namespace v0 {
namespace net {

/// Who signs, and for what.
struct AwsSigner {
  std::string region;   ///< "eu-west-1"
  std::string service;  ///< "s3", "sts"
  std::string key_id;   ///< the access key's public part
  std::string secret;   ///< and its other
};

/// "20260131T120000Z", as the header x-amz-date has it.
[[nodiscard]] inline std::string amz_date(std::time_t now) {
  std::tm parts{};
  ::gmtime_r(&now, &parts);
  char text[32];
  return {text, std::strftime(text, sizeof text, "%Y%m%dT%H%M%SZ", &parts)};
}

/// "Authorization: ..." of a request. `method` is in capitals, `url` as canonical_url() writes it; `headers` are "name:
/// value" lines with names in lower case, x-amz-date ("20260131T120000Z") and x-amz-content-sha256 among them, all of
/// which are signed. The host is taken from `url` where they do not have it.
[[nodiscard]] inline std::string aws_authorization(std::string_view method, std::string_view url,
                                                   const std::vector<std::string>& headers, const AwsSigner& signer) {
  const std::size_t host = url.find("://") + 3;
  const std::size_t path = std::min(url.find('/', host), url.size());
  const std::size_t query = std::min(url.find('?', path), url.size());
  std::vector<std::pair<std::string, std::string>> lines;
  for (const std::string& line : headers) {
    const std::size_t colon = line.find(':');
    QLORA_EXPECTS(colon != std::string::npos, "a header without a colon");
    std::string_view value = std::string_view(line).substr(colon + 1);
    value.remove_prefix(std::min(value.find_first_not_of(' '), value.size()));
    lines.emplace_back(line.substr(0, colon), value);
  }
  const auto find = [&](std::string_view name) {
    return std::find_if(lines.begin(), lines.end(), [&](const auto& line) { return line.first == name; });
  };
  if (find("host") == lines.end()) lines.emplace_back("host", url.substr(host, path - host));
  const auto date_line = find("x-amz-date");
  const auto hash_line = find("x-amz-content-sha256");
  QLORA_EXPECTS(date_line != lines.end() && hash_line != lines.end(), "a signature needs a date and a hash");
  const std::string date = date_line->second;
  const std::string hash = hash_line->second;
  std::sort(lines.begin(), lines.end());

  std::string names;
  std::string canonical = concat(method, "\n", path == url.size() ? "/" : url.substr(path, query - path), "\n",
                                 url.substr(std::min(query + 1, url.size())), "\n");
  for (const auto& [name, value] : lines) {
    canonical += concat(name, ":", value, "\n");
    names += (names.empty() ? "" : ";") + name;
  }
  canonical += concat("\n", names, "\n", hash);
  const std::string day = date.substr(0, 8);
  const std::string credential = concat(day, "/", signer.region, "/", signer.service, "/aws4_request");
  const std::string text =
      concat("AWS4-HMAC-SHA256\n", date, "\n", credential, "\n", sha256(std::string_view(canonical)));
  std::string key = hmac_sha256("AWS4" + signer.secret, day);
  for (const std::string_view part :
       {std::string_view(signer.region), std::string_view(signer.service), std::string_view("aws4_request")})
    key = hmac_sha256(key, part);
  return concat("Authorization: AWS4-HMAC-SHA256 Credential=", signer.key_id, "/", credential,
                ", SignedHeaders=", names, ", Signature=", Sha256::hex_of(hmac_sha256(key, text)));
}

}  // namespace net
}  // namespace v0
}  // namespace qlora
