// qlora/run/remote_steps.hpp — the code of run/remote.hpp.
#pragma once

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/byte_source.hpp"
#include "qlora/io/checkpoint.hpp"
#include "qlora/io/directory.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/json.hpp"
#include "qlora/io/lock.hpp"
#include "qlora/io/sha256.hpp"
#include "qlora/net/aws_profile.hpp"
#include "qlora/net/s3.hpp"
#include "qlora/net/s3_address.hpp"
#include "qlora/net/s3_bytes.hpp"
#include "qlora/net/s3_objects.hpp"
#include "qlora/net/s3_transfer.hpp"
#include "qlora/run/remote.hpp"
#include "qlora/run/remote_changes.hpp"
#include "qlora/run/remote_objects.hpp"

namespace qlora {
inline namespace v0 {
namespace run {
namespace detail {

/// The store, asked by functions that report progress.
struct RemoteStore {
  explicit RemoteStore(Progress& progress) : s3(net::aws_place(), options(progress)), connection(s3.connect()) {}
  static net::S3Options options(Progress& progress) {
    net::S3Options options;
    options.stop = [&progress] { return progress.stop_requested(); };
    return options;
  }
  net::S3 s3;
  net::Connection connection;
};

/// The folder of an address below `kind` in the cache.
[[nodiscard]] inline std::filesystem::path remote_folder(const char* kind, const net::S3Address& address) {
  namespace fs = std::filesystem;
  const std::string caches = net::detail::environment("XDG_CACHE_HOME");
  const std::string home = net::detail::environment("HOME");
  if (caches.empty() && home.empty())
    throw Error("no place for copies of objects; set XDG_CACHE_HOME to a folder", ErrorKind::usage);
  const fs::path cache = caches.empty() ? fs::path(home) / ".cache" : fs::path(caches);
  return cache / "qlora" / kind / sha256(concat(net::aws_place().s3_endpoint, "\n", address.text())).substr(0, 32);
}

/// The last part of a key, as the name of a file or folder.
[[nodiscard]] inline std::string remote_name(const net::S3Address& address) {
  std::string key = address.key;
  while (key.ends_with('/')) key.pop_back();
  const std::string name = key.substr(key.rfind('/') + 1);
  return name.empty() || name == "." || name == ".." || name.size() > 200 ? "object" : name;
}

/// Throws Error (input) for weights or windows whose manifest is not there yet.
inline void refuse_half_written(const RemoteObjects& objects, const net::S3Address& address) {
  const auto top = [](const std::string& name) { return name.find('/') == std::string::npos; };
  const bool tensors = std::any_of(objects.begin(), objects.end(), [&](const auto& object) {
    return top(object.first) && object.first.ends_with(".safetensors");
  });
  const bool manifest = std::any_of(objects.begin(), objects.end(),
                                    [&](const auto& object) { return top(object.first) && is_manifest(object.first); });
  if (!tensors || manifest) return;
  throw Error(address.text() +
              ": is half written: it holds tensors and none of config.json, adapter_config.json and manifest.json, "
              "which are written last; write it again");
}

/// Takes those objects out whose bytes are read where they lie: weights.
[[nodiscard]] inline RemoteObjects without_copies(RemoteObjects& objects, const net::S3Address& address) {
  constexpr std::int64_t large = std::int64_t{64} << 20;
  const bool model = objects.contains("config.json") && !objects.contains("adapter_config.json");
  RemoteObjects weights;
  for (auto at = objects.begin(); at != objects.end();) {
    const auto here = at++;
    const std::string& name = here->first;
    const bool tensors = (name.empty() ? address.key : name).ends_with(".safetensors");
    if (name.empty() ? tensors : model && (tensors || here->second.size > large)) weights.insert(objects.extract(here));
  }
  return weights;
}

/// Lets files stand in for objects.
inline void stand_in_for(const RemoteObjects& objects, const std::filesystem::path& place,
                         const net::S3Address& address, Progress& progress) {
  namespace fs = std::filesystem;
  if (objects.empty()) return;
  const auto connections =
      std::make_shared<net::S3Connections>(std::make_shared<net::S3>(net::aws_place(), RemoteStore::options(progress)));
  std::int64_t bytes = 0;
  for (const auto& [name, object] : objects) {
    const fs::path path = name.empty() ? place : place / name;
    const std::string text = stand_in_text(concat(object.address.text(), ", ", object.size, " bytes, ", object.etag));
    std::error_code code;
    const bool known = fs::file_size(path, code) == text.size() && read_text(path, text.size()) == text;
    make_directories(path.parent_path());
    if (!known) write_file_atomically(path, text);
    stand_in(path, [connections, lies = object] { return std::make_shared<net::S3Bytes>(connections, lies); });
    bytes += object.size;
  }
  progress.say(concat(address.text(), ": ", objects.size(), objects.size() == 1 ? " file of " : " files of ",
                      "weights, ", bytes, " bytes, are read from the store while they are used"));
}

/// Downloads objects to files below a folder (the file itself for the name ""), and reports it as one task.
inline void bring_objects(RemoteStore& store, const RemoteObjects& objects, const std::filesystem::path& folder,
                          const net::S3Address& address, Progress& progress) {
  std::vector<net::S3File> files;
  std::int64_t bytes = 0;
  for (const auto& [name, object] : objects) {
    const std::filesystem::path path = name.empty() ? folder : folder / name;
    make_directories(path.parent_path());
    files.push_back({path, object});
    bytes += object.size;
  }
  expect_free_space(folder.parent_path(), static_cast<std::uint64_t>(bytes));
  progress.say(concat(address.text(), ": ", files.size(), files.size() == 1 ? " file, " : " files, ", bytes,
                      " bytes come to ", folder.string()));
  net::detail::in_parallel(
      store.s3, files.size(),
      [&](net::Connection& connection, std::size_t n) {
        net::S3File& file = files[n];
        auto whole = net::head_object(store.s3, connection, file.object.address);  // with the hashes
        if (!whole || whole->etag != file.object.etag)
          throw Error(file.object.address.text() + ": was replaced while it was read; start again", ErrorKind::network);
        file.object = *std::move(whole);
      },
      [] {});
  progress.begin("download", bytes, "bytes");
  net::download(store.s3, files, [&](std::int64_t done) { progress.update(done); });
  progress.end();
}

/// Brings a folder to what there is below an address; `record` is its etags.json. Files of other names are removed.
inline void bring_copy(RemoteStore& store, RemoteObjects objects, const std::filesystem::path& place,
                       const std::filesystem::path& record, const net::S3Address& address, Progress& progress) {
  namespace fs = std::filesystem;
  std::map<std::string, std::string> tags = recorded_tags(record);
  const auto path_of = [&](const std::string& name) { return name.empty() ? place : place / name; };
  const bool single = objects.size() == 1 && objects.begin()->first.empty();
  std::error_code code;
  if (fs::exists(place, code) && fs::is_directory(place, code) == single) fs::remove_all(place);
  const RemoteObjects weights = without_copies(objects, address);
  RemoteObjects missing;
  for (const auto& [name, object] : objects) {
    const fs::path path = path_of(name);
    const bool same = tags[name] == object.etag && !object.etag.empty() && fs::is_regular_file(path, code) &&
                      fs::file_size(path, code) == static_cast<std::uintmax_t>(object.size);
    if (!same) missing.emplace(name, object);
  }
  if (!single && fs::is_directory(place, code)) {
    for (const auto& entry : fs::recursive_directory_iterator(place))
      if (const std::string name = entry.path().lexically_relative(place).generic_string();
          !entry.is_directory() && !objects.contains(name) && !weights.contains(name))
        fs::remove(entry.path());
  }
  stand_in_for(weights, place, address, progress);
  if (missing.empty()) return;
  fs::remove(record, code);  // until all is there, so that a partial copy is never taken for a whole one
  bring_objects(store, missing, place, address, progress);
  for (const auto& [name, object] : missing) {  // what the record says holds after a loss of power, too
    const fs::path path = path_of(name);
    sync_file(FileDescriptor::open("cannot open", path, O_RDONLY), path);
    sync_directory(path.parent_path());
  }
  Json written = Json::object();
  for (const auto& [name, object] : objects) written[name] = object.etag;
  write_file_atomically(record, written.dump());
}

/// A lock that other processes hold for as long as they download the same.
[[nodiscard]] inline std::unique_ptr<RunLock> waited_lock(const std::filesystem::path& path, Progress& progress) {
  for (bool said = false;; said = true) {
    try {
      return std::make_unique<RunLock>(path);
    } catch (const Error& error) {
      if (!said) progress.say(error.what());
    }
    for (int i = 0; i < 10; ++i) {
      if (progress.stop_requested()) throw Error("interrupted; start again", ErrorKind::interrupted);
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }
}

/// Puts a file, or the files below a folder, in the place of what there is at an address: its manifests go first, and
/// new ones come last.
inline void send_all(RemoteStore& store, const std::filesystem::path& staged, const net::S3Address& to,
                     Progress& progress) {
  namespace fs = std::filesystem;
  const bool folder = fs::is_directory(staged);
  const RunFiles all = folder ? run_files(staged) : RunFiles{{"", {staged, {}}}};
  std::array<std::vector<net::S3File>, 2> files;  // manifests are the second
  std::int64_t bytes = 0;
  for (const auto& [name, file] : all) {
    net::S3File sending{.path = file.path, .object = {}, .fresh = is_manifest(name)};
    sending.object.address = folder ? to / name : to;
    files[is_manifest(name) ? 1 : 0].push_back(std::move(sending));
    bytes += static_cast<std::int64_t>(fs::file_size(file.path));
  }
  std::vector<net::S3Address> stale;  // of what was there before
  const RemoteObjects before = folder ? objects_below(store.s3, store.connection, to) : RemoteObjects();
  for (const auto& [name, object] : before) {
    if (is_manifest(name) && name != "manifest.json")  // of a data set, which may be replaced
      throw Error(concat(object.address.text(), ": somebody else has written it meanwhile"));
  }
  for (const auto& [name, object] : before) {
    if (is_manifest(name)) net::delete_object(store.s3, store.connection, object.address);
    if (!name.empty() && !all.contains(name) && !is_manifest(name)) stale.push_back(object.address);
  }
  progress.begin("upload", bytes, "bytes");
  std::int64_t done = 0;
  for (const std::vector<net::S3File>& group : files) {
    std::int64_t last = 0;
    net::upload(store.s3, group, [&](std::int64_t sent) { progress.update(done + (last = sent)); });
    done += last;
  }
  progress.end();
  for (const net::S3Address& address : stale) net::delete_object(store.s3, store.connection, address);
}

/// Whether the store has a checkpoint, or a result, that is newer than what a run that was killed left here: another
/// machine has gone on.
[[nodiscard]] inline bool is_behind(const std::filesystem::path& staged, const RemoteObjects& objects) {
  std::error_code absent;
  if (!std::filesystem::is_directory(staged, absent)) return false;
  return std::any_of(objects.begin(), objects.end(), [&](const auto& object) {
    const std::filesystem::path folder = std::filesystem::path(object.first).parent_path();
    if (!is_manifest(object.first) || std::filesystem::exists(staged / object.first)) return false;
    const auto step = qlora::detail::step_of(folder.filename().string());
    const std::vector<std::int64_t> ours = qlora::detail::checkpoint_steps(staged / folder.parent_path());
    return !step || ours.empty() || ours.front() < *step;
  });
}

}  // namespace detail

QLORA_STEP std::filesystem::path local_copy(const std::filesystem::path& named, Progress& progress) {
  if (!is_remote(named)) return named;
  const net::S3Address address = net::s3_address(named.native());
  detail::RemoteStore store(progress);
  const auto objects = detail::objects_below(store.s3, store.connection, address);
  if (objects.empty()) throw Error(address.text() + ": nothing is there; the store is " + store.s3.endpoint());
  detail::refuse_half_written(objects, address);
  const std::filesystem::path folder = detail::remote_folder("s3", address);
  make_directories(folder);
  const std::unique_ptr<RunLock> lock = detail::waited_lock(folder / "lock", progress);
  const std::filesystem::path place = folder / "copy" / detail::remote_name(address);
  detail::bring_copy(store, objects, place, folder / "etags.json", address, progress);
  return place;
}

QLORA_STEP RemoteOutput remote_output(const std::string& address, bool file, bool keep, Progress& progress) {
  namespace fs = std::filesystem;
  const net::S3Address to = net::s3_address(address);
  if (to.key.empty() || (file && to.key.ends_with('/')))
    throw Error(address + ": give the object or prefix that is written a name", ErrorKind::usage);
  detail::RemoteStore store(progress);
  const auto objects = file ? detail::RemoteObjects() : detail::objects_below(store.s3, store.connection, to);
  // The bucket is there and may be asked, which is to be known before the work.
  if (file) (void)net::list_objects(store.s3, store.connection, to, 1);
  const bool data_set = objects.contains("manifest.json");
  for (const auto& [name, object] : objects) {
    const bool of_data = name == "manifest.json" || (name.starts_with("tokens-") && name.ends_with(".safetensors"));
    if (keep || (data_set && of_data)) continue;
    throw Error(concat(address, ": exists and holds ", name.empty() ? "an object" : name,
                       "; choose another prefix or delete it first"),
                ErrorKind::usage);
  }
  RemoteOutput output{
      .address = address, .staged = detail::remote_folder("s3-out", to) / detail::remote_name(to), .keep = keep};
  const fs::path locks = detail::remote_folder("s3", to);
  make_directories(locks);  // ranks on one host do this at the same time
  const std::unique_ptr<RunLock> lock = keep ? detail::waited_lock(locks / "out.lock", progress) : nullptr;
  if (!keep || detail::is_behind(output.staged, objects)) fs::remove_all(output.staged.parent_path());
  make_directories(output.staged.parent_path());
  if (keep && !fs::exists(output.staged) && !objects.empty()) {
    detail::bring_objects(store, objects, output.staged, to, progress);
    detail::record_sent(detail::sent_record(output.staged), detail::run_files(output.staged), objects);
  }
  return output;
}

QLORA_STEP void publish(const RemoteOutput& output, Progress& progress) {
  namespace fs = std::filesystem;
  const net::S3Address to = net::s3_address(output.address);
  if (!fs::exists(output.staged)) return;
  try {
    detail::RemoteStore store(progress);
    if (output.keep) {
      bool begun = false;
      detail::send_changes(store.s3, detail::run_files(output.staged), to, detail::sent_record(output.staged),
                           [&](std::int64_t sent, std::int64_t total) {
                             if (!std::exchange(begun, true)) progress.begin("upload", total, "bytes");
                             progress.update(sent);
                           });
      if (begun) progress.end();
    } else {
      detail::send_all(store, output.staged, to, progress);
    }
  } catch (const Error& error) {
    throw Error(concat(error.what(), "; what was to be written there lies whole in ", output.staged.string()),
                error.kind());
  }
  fs::remove_all(output.staged.parent_path());
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
