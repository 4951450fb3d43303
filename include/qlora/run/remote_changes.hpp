// qlora/run/remote_changes.hpp — what a run that goes on has in a folder and at an address: only what differs is sent,
// while the run works as well as at its end.
// Order      what is new, but for manifests; then manifests; then what is no more there goes, its manifest first. So at
//            any moment the store has a checkpoint that is whole, once it has had one.
// Record     sent.json beside the folder: size, time and inode of each file that was sent, and the ETag it has there
#pragma once

#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/json.hpp"
#include "qlora/net/s3.hpp"
#include "qlora/net/s3_address.hpp"
#include "qlora/net/s3_objects.hpp"
#include "qlora/net/s3_transfer.hpp"
#include "qlora/run/remote_objects.hpp"

namespace qlora {
inline namespace v0 {
namespace run {
namespace detail {

/// A file of a run: where its bytes are, and what changes when it does.
struct RunFile {
  std::filesystem::path path;
  std::string identity;
};
/// By their names in the run's folder.
using RunFiles = std::map<std::string, RunFile>;

/// The files below a folder that belong to a run's result: no locks, and nothing that is still written.
[[nodiscard]] inline RunFiles run_files(const std::filesystem::path& folder) {
  RunFiles files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    const std::filesystem::path& path = entry.path();
    const std::string name = path.lexically_relative(folder).generic_string();
    const bool passing = is_temporary_name(path.filename().string()) || path.extension() == ".lock" ||
                         name.find("/.tmp-") != std::string::npos;
    if (passing || !entry.is_regular_file()) continue;
    struct stat status {};
    if (::stat(path.c_str(), &status) != 0) throw_errno("cannot read", path, errno);
    files[name] = {path,
                   concat(status.st_size, ' ', status.st_mtim.tv_sec, '.', status.st_mtim.tv_nsec, ' ', status.st_ino)};
  }
  return files;
}

[[nodiscard]] inline std::string folder_of(const std::string& name) { return name.substr(0, name.rfind('/') + 1); }

/// "checkpoints/checkpoint-8/": what is there and not here was removed here, or an upload of it was cut short.
[[nodiscard]] inline bool is_checkpoint_folder(const std::string& folder) {
  return folder.find("checkpoints/checkpoint-") != std::string::npos;
}

/// Where send_changes() keeps its record of a run's folder.
[[nodiscard]] inline std::filesystem::path sent_record(const std::filesystem::path& folder) {
  return folder.parent_path() / "sent.json";
}

/// Writes down that the address has these files.
inline void record_sent(const std::filesystem::path& record, const RunFiles& files, const RemoteObjects& objects) {
  Json sent = Json::object();
  for (const auto& [name, file] : files) {
    const auto object = objects.find(name);
    if (object != objects.end()) sent[name] = concat(file.identity, ' ', object->second.etag);
  }
  write_file_atomically(record, sent.dump());
}

/// Brings an address to what `files` are. `sent` counts bytes of `total`. Throws Error as upload() does.
inline void send_changes(net::S3& s3, const RunFiles& files, const net::S3Address& to,
                         const std::filesystem::path& record,
                         const std::function<void(std::int64_t sent, std::int64_t total)>& tell) {
  net::Connection connection = s3.connect();
  const RemoteObjects there = objects_below(s3, connection, to);
  const std::map<std::string, std::string> known = recorded_tags(record);
  std::set<std::string> changed, broken;  // `broken`: folders whose manifest there would vouch for other files
  for (const auto& [name, file] : files) {
    const auto object = there.find(name);
    const auto before = known.find(name);
    const bool same = object != there.end() && before != known.end() &&
                      before->second == concat(file.identity, ' ', object->second.etag);
    if (same) continue;
    changed.insert(name);
    if (!is_manifest(name)) broken.insert(folder_of(name));
  }
  std::array<std::vector<net::S3File>, 2> groups;  // manifests are the second
  std::int64_t total = 0;
  for (const auto& [name, file] : files) {
    const bool manifest = is_manifest(name);
    if (!changed.contains(name) && !(manifest && broken.contains(folder_of(name)))) continue;
    if (manifest && there.contains(name)) net::delete_object(s3, connection, to / name);
    net::S3File sending{.path = file.path, .object = {}, .fresh = manifest};
    sending.object.address = to / name;
    total += static_cast<std::int64_t>(std::filesystem::file_size(file.path));
    groups[manifest ? 1 : 0].push_back(std::move(sending));
  }
  std::int64_t before = 0;
  for (const std::vector<net::S3File>& group : groups) {
    std::int64_t last = 0;
    net::upload(s3, group, [&](std::int64_t done) { tell(before + (last = done), total); });
    before += last;
  }
  std::array<std::vector<net::S3Address>, 2> gone;  // manifests are the first
  for (const auto& [name, object] : there) {
    const bool ours = known.contains(name) || is_checkpoint_folder(folder_of(name));
    if (ours && !files.contains(name)) gone[is_manifest(name) ? 0 : 1].push_back(object.address);
  }
  for (const auto& addresses : gone)
    for (const net::S3Address& address : addresses) net::delete_object(s3, connection, address);
  record_sent(record, files, objects_below(s3, connection, to));
}

}  // namespace detail
}  // namespace run
}  // namespace v0
}  // namespace qlora
