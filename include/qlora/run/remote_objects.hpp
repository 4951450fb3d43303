// qlora/run/remote_objects.hpp — the objects of a prefix by the names that they have as files of a folder, and the
// files that make a folder visible.
#pragma once

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "qlora/io/json.hpp"
#include "qlora/net/exchange.hpp"
#include "qlora/net/s3.hpp"
#include "qlora/net/s3_address.hpp"
#include "qlora/net/s3_objects.hpp"

namespace qlora {
inline namespace v0 {
namespace run {
namespace detail {

/// Objects that make the others of their prefix visible.
inline constexpr std::array<std::string_view, 4> manifest_names{"config.json", "adapter_config.json", "manifest.json",
                                                                "MANIFEST.json"};  // of a checkpoint

[[nodiscard]] inline bool is_manifest(const std::string& name) {
  const std::string last = name.substr(name.rfind('/') + 1);  // npos + 1 is 0
  return std::find(manifest_names.begin(), manifest_names.end(), last) != manifest_names.end();
}

/// Whether a name below a prefix can be one below a folder.
[[nodiscard]] inline bool is_file_name(const std::string& name) {
  const std::filesystem::path path = name;
  const bool plain = !name.empty() && !name.ends_with('/') && path.is_relative() && name == path.lexically_normal();
  return plain && *path.begin() != ".." && name.find('\0') == std::string::npos;
}

/// Objects of a prefix by their names in it.
using RemoteObjects = std::map<std::string, net::S3Object>;

/// Objects below a prefix; the name of a single object is empty.
[[nodiscard]] inline RemoteObjects objects_below(net::S3& s3, net::Connection& connection,
                                                 const net::S3Address& address) {
  const net::S3Address prefix = address / "";
  RemoteObjects objects;
  for (net::S3Object& object : net::list_objects(s3, connection, prefix)) {
    const std::string name = object.address.key.substr(prefix.key.size());
    if (is_file_name(name)) objects.emplace(name, std::move(object));
  }
  if (!objects.empty() || address.key.empty() || address.key.ends_with('/')) return objects;
  if (auto object = net::head_object(s3, connection, address)) objects.emplace("", *std::move(object));
  return objects;
}

/// What a record, a JSON object, says of the files of a copy.
[[nodiscard]] inline std::map<std::string, std::string> recorded_tags(const std::filesystem::path& record) {
  std::map<std::string, std::string> tags;
  std::error_code absent;
  if (!std::filesystem::is_regular_file(record, absent)) return tags;
  const Json json = read_json_object(record);
  for (const auto& [name, tag] : json.items())
    if (tag.is_string()) tags[name] = tag.get<std::string>();
  return tags;
}

}  // namespace detail
}  // namespace run
}  // namespace v0
}  // namespace qlora
