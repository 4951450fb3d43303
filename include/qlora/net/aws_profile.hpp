// qlora/net/aws_profile.hpp — the environment and the files of the AWS tools: which profile, region and endpoint.
// Files       ~/.aws/credentials ([NAME]) and ~/.aws/config ([profile NAME], [default]), or those that variables name:
//             AWS_SHARED_CREDENTIALS_FILE, AWS_CONFIG_FILE; AWS_PROFILE or AWS_DEFAULT_PROFILE chooses
// Order       a variable goes before the profile, and the file of credentials before that of the configuration
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>

#include "qlora/error.hpp"
#include "qlora/io/file.hpp"

namespace qlora {
inline namespace v0 {
namespace net {

/// Keys and values of a profile; a key inside another ("s3 =" and indented lines) is called "s3.addressing_style".
using AwsSettings = std::map<std::string, std::string>;

/// What is asked for of a profile and of the environment.
struct AwsPlace {
  std::string profile;       ///< its name; "default" where none is chosen
  bool chosen = false;       ///< whether a variable names the profile
  AwsSettings credentials;   ///< of the profile in the file of credentials
  AwsSettings settings;      ///< of the profile in the file of the configuration
  AwsSettings source;        ///< of the profile that its source_profile names, of both files
  std::string region;        ///< "eu-west-1"; "us-east-1" where nothing says it
  std::string s3_endpoint;   ///< "http://host:port", without a slash at its end; empty: Amazon's
  std::string sts_endpoint;  ///< the same of the service that gives credentials
  bool path_style = false;   ///< the bucket is the first part of the path, and not of the host's name
  std::string ca_file;       ///< certificates to trust; empty: the system's
};

namespace detail {

[[nodiscard]] inline std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string() : std::string(value);
}

[[nodiscard]] inline std::string without_blanks(std::string_view text) {
  constexpr std::string_view blank = " \t\r\n";
  text.remove_prefix(std::min(text.find_first_not_of(blank), text.size()));
  return std::string(text.substr(0, text.find_last_not_of(blank) + 1));
}

/// Without a comment: '#' or ';' behind a blank.
[[nodiscard]] inline std::string_view without_comment(std::string_view line) {
  for (std::size_t i = 1; i < line.size(); ++i)
    if ((line[i] == '#' || line[i] == ';') && (line[i - 1] == ' ' || line[i - 1] == '\t')) return line.substr(0, i);
  return line;
}

/// The first of these that is not empty.
template <class... Texts>
[[nodiscard]] std::string first_of(const Texts&... texts) {
  std::string found;
  ((found = found.empty() ? std::string(texts) : found), ...);
  return found;
}

[[nodiscard]] inline std::string value_of(const AwsSettings& settings, const std::string& key) {
  const auto found = settings.find(key);
  return found == settings.end() ? std::string() : found->second;
}

}  // namespace detail

/// The sections of a file of profiles, by their names between the brackets. A file that is not there has none. Throws
/// Error, with file and line, for a line that is no section, no setting and no comment; no message holds a value.
[[nodiscard]] inline std::map<std::string, AwsSettings> read_aws_profiles(const std::filesystem::path& path) {
  std::map<std::string, AwsSettings> sections;
  std::error_code absent;
  if (!std::filesystem::is_regular_file(path, absent)) return sections;
  const std::string text = read_text(path, std::size_t{1} << 20);
  AwsSettings* section = nullptr;
  std::string outer;  // the key whose value may be indented settings
  std::size_t number = 0;
  for (std::string_view rest = text; !rest.empty();) {
    const std::size_t end = std::min(rest.find('\n'), rest.size() - 1);
    const std::string_view line = rest.substr(0, end + 1);
    rest.remove_prefix(end + 1);
    ++number;
    const std::string plain = detail::without_blanks(line);
    if (plain.empty() || plain[0] == '#' || plain[0] == ';') continue;
    const auto refuse = [&](std::string_view why) { throw Error(concat(path.string(), ":", number, ": ", why)); };
    const bool indented = line[0] == ' ' || line[0] == '\t';
    if (plain[0] == '[' && !indented) {
      const std::size_t close = plain.find(']');
      if (close == std::string::npos) refuse("a section without its ']'");
      section = &sections[detail::without_blanks(std::string_view(plain).substr(1, close - 1))];
      outer.clear();
      continue;
    }
    if (section == nullptr) refuse("a setting before the first [section]");
    const std::size_t equals = plain.find('=');
    if (equals == std::string::npos) {
      if (indented && !outer.empty()) continue;  // a value of several lines, none of which is read here
      refuse("neither a [section] nor NAME = VALUE");
    }
    std::string key = detail::without_blanks(std::string_view(plain).substr(0, equals));
    std::transform(key.begin(), key.end(), key.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
    if (indented && !outer.empty())
      key = outer + "." + key;
    else
      outer = key;
    (*section)[key] = detail::without_blanks(detail::without_comment(std::string_view(plain).substr(equals + 1)));
  }
  return sections;
}

/// What the environment and its files say. Throws Error: (input) for a file that cannot be read, or a profile that a
/// variable names and no file has; (usage) for an endpoint that is no http: or https: address.
[[nodiscard]] inline AwsPlace aws_place() {
  using detail::environment;
  using detail::first_of;
  using detail::value_of;
  const std::filesystem::path home = std::filesystem::path(environment("HOME")) / ".aws";
  const std::filesystem::path credentials =
      first_of(environment("AWS_SHARED_CREDENTIALS_FILE"), (home / "credentials").string());
  const std::filesystem::path config = first_of(environment("AWS_CONFIG_FILE"), (home / "config").string());
  AwsPlace place;
  place.profile = first_of(environment("AWS_PROFILE"), environment("AWS_DEFAULT_PROFILE"));
  place.chosen = !place.profile.empty();
  if (!place.chosen) place.profile = "default";
  auto keys = read_aws_profiles(credentials);
  auto settings = read_aws_profiles(config);
  const bool plain = settings.contains(place.profile) && place.profile == "default";
  const std::string section = plain ? place.profile : "profile " + place.profile;
  if (place.chosen && !keys.contains(place.profile) && !settings.contains(section))
    throw Error(concat("AWS_PROFILE is '", place.profile, "', and neither ", credentials.string(), " nor ",
                       config.string(), " has that profile"));
  place.credentials = keys[place.profile];
  place.settings = settings[section];
  const AwsSettings& own = place.settings;
  if (const std::string source = value_of(own, "source_profile"); !source.empty()) {
    place.source = keys[source];
    const AwsSettings more = settings[source == "default" && settings.contains(source) ? source : "profile " + source];
    place.source.insert(more.begin(), more.end());
  }
  place.region = first_of(environment("AWS_REGION"), environment("AWS_DEFAULT_REGION"), value_of(own, "region"));
  if (place.region.empty()) place.region = "us-east-1";
  const AwsSettings services = settings["services " + value_of(own, "services")];
  std::string ignored =
      first_of(environment("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"), value_of(own, "ignore_configured_endpoint_urls"));
  if (ignored != "true") {
    const std::string all = environment("AWS_ENDPOINT_URL");
    const std::string written = value_of(own, "endpoint_url");
    place.s3_endpoint =
        first_of(environment("AWS_ENDPOINT_URL_S3"), all, value_of(services, "s3.endpoint_url"), written);
    place.sts_endpoint =
        first_of(environment("AWS_ENDPOINT_URL_STS"), all, value_of(services, "sts.endpoint_url"), written);
  }
  for (std::string* endpoint : {&place.s3_endpoint, &place.sts_endpoint}) {
    while (endpoint->ends_with('/')) endpoint->pop_back();
    if (!endpoint->empty() && !endpoint->starts_with("https://") && !endpoint->starts_with("http://"))
      throw Error("AWS_ENDPOINT_URL_S3 and AWS_ENDPOINT_URL must begin with https:// or http://", ErrorKind::usage);
  }
  const std::string style = value_of(own, "s3.addressing_style");
  place.path_style = style == "path" || (style != "virtual" && !place.s3_endpoint.empty());
  place.ca_file = first_of(environment("AWS_CA_BUNDLE"), value_of(own, "ca_bundle"));
  return place;
}

}  // namespace net
}  // namespace v0
}  // namespace qlora
