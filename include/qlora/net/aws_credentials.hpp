// qlora/net/aws_credentials.hpp — who signs requests to AWS: credentials from where its SDKs look, in their order.
// Order      environment; web identity (STS); profile, by a role that another one may take (STS) or by its keys;
//            container; instance metadata (IMDSv2)
// What may not change: no message and no log holds a secret or a token; a container's token goes to loopback, to the
// addresses that AWS gives containers, or over TLS alone.
#pragma once

#include <algorithm>
#include <chrono>
#include <ctime>
#include <functional>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "qlora/error.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/json.hpp"
#include "qlora/io/sha256.hpp"
#include "qlora/net/aws_profile.hpp"
#include "qlora/net/aws_signature.hpp"
#include "qlora/net/exchange.hpp"
#include "qlora/net/percent.hpp"
#include "qlora/net/s3_address.hpp"
#include "qlora/net/shown.hpp"
#include "qlora/net/xml.hpp"

namespace qlora {
inline namespace v0 {
namespace net {

/// A key, and how long it is good.
struct AwsCredentials {
  /// Of the wall clock.
  using Time = std::chrono::system_clock::time_point;
  std::string key_id;                ///< its public part
  std::string secret;                ///< never shown
  std::string token;                 ///< of a session; empty: the key is no passing one
  std::string source;                ///< where it was found, for messages
  std::optional<Time> expires = {};  ///< after that it is refused; nothing: it stays good
};

namespace detail {

/// "2026-01-31T12:00:00Z", with or without a fraction of a second; nothing for another text.
[[nodiscard]] inline std::optional<AwsCredentials::Time> time_of(const std::string& text) {
  std::tm parts{};
  const char* end = ::strptime(text.c_str(), "%Y-%m-%dT%H:%M:%S", &parts);
  if (end == nullptr) return std::nullopt;
  return std::chrono::system_clock::from_time_t(::timegm(&parts));
}

/// A request for credentials: at a metadata service, which is on this machine or beside it, so that no proxy is asked
/// and a short time is enough.
[[nodiscard]] inline ExchangeAnswer ask_beside(const Exchange& request, const std::function<bool()>& stop) {
  HttpOptions options;
  options.also_allow = [](const sockaddr*, std::size_t) { return true; };  // and allow_private stays false: no proxy
  options.connect_timeout = std::chrono::milliseconds(1000);               // botocore's metadata_service_timeout
  options.low_speed_seconds = 5;
  options.stop = stop;
  return Connection(options).exchange(request);
}

/// The JSON of a container's or an instance's credentials.
[[nodiscard]] inline AwsCredentials credentials_in(const std::string& body, const std::string& source) {
  const Json json = parse_json(body, source);
  if (!json.is_object()) throw Error(source + ": the answer is no JSON object");
  AwsCredentials found{.key_id = json_string(json, "AccessKeyId", source),
                       .secret = json_string(json, "SecretAccessKey", source),
                       .token = json_string_or(json, "Token", source, ""),
                       .source = source,
                       .expires = time_of(json_string_or(json, "Expiration", source, ""))};
  if (found.key_id.empty() || found.secret.empty()) throw Error(source + ": an empty key");
  return found;
}

/// Whether a container's token may go to this address without TLS.
[[nodiscard]] inline bool is_beside(std::string_view url) {
  const std::size_t start = url.find("://") + 3;
  std::string_view host = url.substr(start, url.find_first_of("/?#", start) - start);
  if (host.find('@') != std::string_view::npos) return false;
  host = host.starts_with('[') ? host.substr(1, host.find(']') - 1) : host.substr(0, host.find(':'));
  return host == "localhost" || host == "127.0.0.1" || host == "::1" || host == "169.254.170.2" ||
         host == "169.254.170.23" || host == "fd00:ec2::23";
}

}  // namespace detail

/// Finds credentials when they are first asked for, and anew before they expire. Any number of threads may ask.
class AwsCredentialChain {
 public:
  /// `place` must outlive this; `stop` ends requests with ErrorKind::interrupted, and may be empty.
  explicit AwsCredentialChain(const AwsPlace& place, std::function<bool()> stop = {})
      : place_(&place), stop_(std::move(stop)) {}

  /// The credentials. Throws Error (input) that says where was looked, or what is wrong with what was found there.
  [[nodiscard]] AwsCredentials get() {
    const std::lock_guard lock(mutex_);
    const auto soon = std::chrono::system_clock::now() + std::chrono::minutes(5);
    if (!found_ || (found_->expires && *found_->expires < soon)) found_ = find();
    return *found_;
  }
  /// Looks anew, unless another thread has since `used` was found. Whether there are others now.
  [[nodiscard]] bool renew(const AwsCredentials& used) {
    const std::lock_guard lock(mutex_);
    if (found_ && found_->key_id == used.key_id && found_->token == used.token) found_ = find();
    return found_->key_id != used.key_id || found_->token != used.token;
  }

 private:
  static constexpr const char* cure =
      "`eval $(aws configure export-credentials --format env)` puts such credentials into the environment";

  [[nodiscard]] AwsCredentials find() const {
    if (auto found = from_environment()) return *std::move(found);
    if (auto found = from_web_identity()) return *std::move(found);
    if (auto found = from_role()) return *std::move(found);
    if (auto found = from_profile()) return *std::move(found);
    if (auto found = from_container()) return *std::move(found);
    if (auto found = from_instance()) return *std::move(found);
    throw Error(
        "no credentials for S3: neither AWS_ACCESS_KEY_ID, a web identity, a profile of ~/.aws/credentials, a "
        "container's credentials nor an instance's role is there; `aws configure` writes a profile");
  }

  [[nodiscard]] static std::optional<AwsCredentials> from_environment() {
    const std::string key = detail::environment("AWS_ACCESS_KEY_ID");
    if (key.empty()) return std::nullopt;
    const std::string secret = detail::environment("AWS_SECRET_ACCESS_KEY");
    if (secret.empty()) throw Error("AWS_ACCESS_KEY_ID is set, and AWS_SECRET_ACCESS_KEY is not");
    return AwsCredentials{.key_id = key,
                          .secret = secret,
                          .token = detail::environment("AWS_SESSION_TOKEN"),
                          .source = "the environment (AWS_ACCESS_KEY_ID)"};
  }

  [[nodiscard]] std::optional<AwsCredentials> from_web_identity() const {
    using detail::environment;
    const auto setting = [&](const char* variable, const char* key) {
      return detail::first_of(environment(variable), detail::value_of(place_->settings, key));
    };
    const std::string file = setting("AWS_WEB_IDENTITY_TOKEN_FILE", "web_identity_token_file");
    if (file.empty()) return std::nullopt;
    const std::string role = setting("AWS_ROLE_ARN", "role_arn");
    if (role.empty()) throw Error("AWS_WEB_IDENTITY_TOKEN_FILE is set, and AWS_ROLE_ARN is not");
    const std::string source = "a web identity (AWS_WEB_IDENTITY_TOKEN_FILE) as " + role;
    const std::string name = setting("AWS_ROLE_SESSION_NAME", "role_session_name");
    return session("AssumeRoleWithWebIdentity",
                   {{"RoleArn", role},
                    {"RoleSessionName", name.empty() ? "qlora" : name},
                    {"WebIdentityToken", detail::without_blanks(read_text(file, std::size_t{1} << 20))}},
                   source, nullptr);
  }

  /// A role that the keys of another profile may take.
  [[nodiscard]] std::optional<AwsCredentials> from_role() const {
    const auto setting = [&](const char* key) { return detail::value_of(place_->settings, key); };
    const std::string role = setting("role_arn"), from = setting("source_profile");
    if (role.empty() || from.empty()) return std::nullopt;
    const std::string source = concat("the profile '", place_->profile, "' of ~/.aws as ", role);
    if (!setting("mfa_serial").empty())
      throw Error(concat(source, ": mfa_serial is asked for at a terminal, which is not done here; ", cure));
    const AwsCredentials keys{.key_id = detail::value_of(place_->source, "aws_access_key_id"),
                              .secret = detail::value_of(place_->source, "aws_secret_access_key"),
                              .token = detail::value_of(place_->source, "aws_session_token"),
                              .source = source};
    if (keys.key_id.empty() || keys.secret.empty())
      throw Error(concat(source, ": its source_profile '", from, "' has no keys; ", cure));
    const std::string name = setting("role_session_name");
    QueryParts parts{{"RoleArn", role}, {"RoleSessionName", name.empty() ? "qlora" : name}};
    for (const auto& [key, parameter] :
         {std::pair("external_id", "ExternalId"), std::pair("duration_seconds", "DurationSeconds")})
      if (!setting(key).empty()) parts.emplace_back(parameter, setting(key));
    return session("AssumeRole", std::move(parts), source, &keys);
  }

  /// What STS gives for an action; signed where there are `keys`.
  [[nodiscard]] AwsCredentials session(const std::string& action, QueryParts parts, const std::string& source,
                                       const AwsCredentials* keys) const {
    const std::string base = place_->sts_endpoint.empty() ? concat("https://sts.", place_->region, ".amazonaws.com",
                                                                   place_->region.starts_with("cn-") ? ".cn" : "")
                                                          : place_->sts_endpoint;
    parts.emplace_back("Action", action);
    parts.emplace_back("Version", "2011-06-15");
    const std::string form = canonical_url({}, {}, parts).substr(1);
    HttpOptions options;
    options.allow_private = true;  // an endpoint of one's own network
    options.stop = stop_;
    Exchange request;
    request.url = base + "/";
    request.method = "POST";
    request.headers = {"content-type: application/x-www-form-urlencoded"};
    request.ca_file = place_->ca_file;
    request.body = std::as_bytes(std::span(form));
    if (keys != nullptr) {
      request.headers.push_back("x-amz-content-sha256: " + sha256(std::string_view(form)));
      request.headers.push_back("x-amz-date: " + amz_date(std::time(nullptr)));
      if (!keys->token.empty()) request.headers.push_back("x-amz-security-token: " + keys->token);
      request.headers.push_back(
          aws_authorization("POST", request.url, request.headers, {place_->region, "sts", keys->key_id, keys->secret}));
    }
    const ExchangeAnswer answer = Connection(options).exchange(request);
    if (answer.status == 0) throw Error(concat(source, ": ", base, ": ", answer.failure), ErrorKind::network);
    const XmlElement root = parse_xml(answer.body, source);
    if (answer.status != 200) {
      const XmlElement* errors = root.find("Errors");  // of some stores, a list
      const XmlElement* error = (errors == nullptr ? root : *errors).find("Error");
      throw Error(concat(source, ": refused by ", base, " with status ", answer.status, ": ",
                         ::qlora::detail::excerpt(error == nullptr ? std::string("?") : error->text_of("Code"))));
    }
    const XmlElement* result = root.find(action + "Result");
    const XmlElement* found = result == nullptr ? nullptr : result->find("Credentials");
    if (found == nullptr || found->text_of("AccessKeyId").empty())
      throw Error(concat(source, ": the answer of ", base, " holds no credentials"));
    return AwsCredentials{.key_id = found->text_of("AccessKeyId"),
                          .secret = found->text_of("SecretAccessKey"),
                          .token = found->text_of("SessionToken"),
                          .source = source,
                          .expires = detail::time_of(found->text_of("Expiration"))};
  }

  [[nodiscard]] std::optional<AwsCredentials> from_profile() const {
    for (const AwsSettings* settings : {&place_->credentials, &place_->settings}) {
      const std::string key = detail::value_of(*settings, "aws_access_key_id");
      if (key.empty()) continue;
      const std::string source = "the profile '" + place_->profile + "' of ~/.aws";
      const std::string secret = detail::value_of(*settings, "aws_secret_access_key");
      if (secret.empty()) throw Error(source + " has aws_access_key_id and no aws_secret_access_key");
      return AwsCredentials{
          .key_id = key, .secret = secret, .token = detail::value_of(*settings, "aws_session_token"), .source = source};
    }
    for (const char* other : {"role_arn", "credential_process", "sso_session", "sso_start_url"}) {
      if (!place_->settings.contains(other)) continue;
      throw Error(concat("the profile '", place_->profile, "' of ~/.aws has its credentials by ", other,
                         ", which is not read here; ", cure));
    }
    return std::nullopt;
  }

  [[nodiscard]] std::optional<AwsCredentials> from_container() const {
    const std::string relative = detail::environment("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
    const std::string full = detail::environment("AWS_CONTAINER_CREDENTIALS_FULL_URI");
    if (relative.empty() && full.empty()) return std::nullopt;
    const std::string source =
        concat("the container (AWS_CONTAINER_CREDENTIALS_", relative.empty() ? "FULL_URI)" : "RELATIVE_URI)");
    Exchange request;
    request.url = relative.empty() ? full : "http://169.254.170.2" + relative;
    if (!request.url.starts_with("https://") && !detail::is_beside(request.url))
      throw Error(source + ": neither https: nor an address that AWS gives containers");
    std::string token = detail::environment("AWS_CONTAINER_AUTHORIZATION_TOKEN");
    const std::string file = detail::environment("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE");
    if (!file.empty()) token = detail::without_blanks(read_text(file, std::size_t{1} << 16));
    if (token.find_first_of("\r\n") != std::string::npos) throw Error(source + ": a token with a line break");
    if (!token.empty()) request.headers.push_back("Authorization: " + token);
    const ExchangeAnswer answer = detail::ask_beside(request, stop_);
    if (answer.status != 200)
      throw Error(concat(source, ": ", answer.status == 0 ? answer.failure : concat("status ", answer.status)));
    return detail::credentials_in(answer.body, source);
  }

  [[nodiscard]] std::optional<AwsCredentials> from_instance() const {
    if (detail::low(detail::environment("AWS_EC2_METADATA_DISABLED")) == "true") return std::nullopt;
    std::string base = detail::environment("AWS_EC2_METADATA_SERVICE_ENDPOINT");
    if (base.empty()) base = "http://169.254.169.254";
    while (base.ends_with('/')) base.pop_back();
    const std::string source = "the instance's role (metadata)";
    Exchange request;
    request.url = base + "/latest/api/token";
    request.method = "PUT";
    request.headers = {"X-aws-ec2-metadata-token-ttl-seconds: 21600"};
    const ExchangeAnswer token = detail::ask_beside(request, stop_);
    if (token.status != 200) return std::nullopt;  // no instance of EC2
    const std::string roles = base + "/latest/meta-data/iam/security-credentials/";
    request = {};
    request.headers = {"X-aws-ec2-metadata-token: " + detail::without_blanks(token.body)};
    request.url = roles;
    const ExchangeAnswer role = detail::ask_beside(request, stop_);
    if (role.status != 200) return std::nullopt;  // an instance without a role
    request.url = roles + percent_encoded(detail::without_blanks(role.body.substr(0, role.body.find('\n'))), {});
    const ExchangeAnswer answer = detail::ask_beside(request, stop_);
    if (answer.status != 200) throw Error(concat(source, ": status ", answer.status));
    return detail::credentials_in(answer.body, source);
  }

  const AwsPlace* place_;
  std::function<bool()> stop_;
  std::mutex mutex_;
  std::optional<AwsCredentials> found_;
};

}  // namespace net
}  // namespace v0
}  // namespace qlora
