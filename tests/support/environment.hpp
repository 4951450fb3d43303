// environment.hpp — variables of the environment for the time of a scope.
#pragma once

#include <cstdlib>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace test {

/// Sets variables, and restores what they were. An empty value removes one.
class Environment {
 public:
  explicit Environment(const std::vector<std::pair<std::string, std::string>>& variables) {
    for (const auto& [name, value] : variables) {
      const char* before = std::getenv(name.c_str());
      before_.emplace_back(name, before == nullptr ? std::nullopt : std::optional<std::string>(before));
      set(name, value.empty() ? std::nullopt : std::optional(value));
    }
  }
  Environment(const Environment&) = delete;
  ~Environment() {
    for (auto at = before_.rbegin(); at != before_.rend(); ++at) set(at->first, at->second);
  }

 private:
  static void set(const std::string& name, const std::optional<std::string>& value) {
    if (value)
      ::setenv(name.c_str(), value->c_str(), 1);
    else
      ::unsetenv(name.c_str());
  }
  std::vector<std::pair<std::string, std::optional<std::string>>> before_;
};

/// No variable of the AWS tools, no profile, and no instance's metadata; HOME is `home`.
inline std::vector<std::pair<std::string, std::string>> without_aws(const std::string& home) {
  std::vector<std::pair<std::string, std::string>> all{{"HOME", home}, {"AWS_EC2_METADATA_DISABLED", "true"}};
  for (const char* name : {"AWS_ACCESS_KEY_ID",
                           "AWS_SECRET_ACCESS_KEY",
                           "AWS_SESSION_TOKEN",
                           "AWS_PROFILE",
                           "AWS_DEFAULT_PROFILE",
                           "AWS_REGION",
                           "AWS_DEFAULT_REGION",
                           "AWS_ENDPOINT_URL",
                           "AWS_ENDPOINT_URL_S3",
                           "AWS_ENDPOINT_URL_STS",
                           "AWS_CONFIG_FILE",
                           "AWS_SHARED_CREDENTIALS_FILE",
                           "AWS_WEB_IDENTITY_TOKEN_FILE",
                           "AWS_ROLE_ARN",
                           "AWS_ROLE_SESSION_NAME",
                           "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
                           "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                           "AWS_CONTAINER_AUTHORIZATION_TOKEN",
                           "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
                           "AWS_CA_BUNDLE",
                           "AWS_EC2_METADATA_SERVICE_ENDPOINT",
                           "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"})
    all.emplace_back(name, "");
  return all;
}

}  // namespace test
