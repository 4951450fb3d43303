// qlora/run/remote_copies.hpp — copies what a run in S3 has written so far, in the background, so that a machine that
// vanishes loses what came after the last copy alone.
// Snapshot   at each call of saved(), while nothing is written: tensors, which are replaced whole and never changed, by
//            hard links, the rest by copies. One is uploaded at a time; of those that wait the newest is kept.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <mutex>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "qlora/error.hpp"
#include "qlora/io/directory.hpp"
#include "qlora/net/aws_profile.hpp"
#include "qlora/net/s3.hpp"
#include "qlora/net/s3_address.hpp"
#include "qlora/run/remote_changes.hpp"
#include "qlora/run/remote_path.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// Used by one thread; another one uploads.
class RemoteCopies {
 public:
  /// Of a folder that remote_output() made with `keep`.
  explicit RemoteCopies(RemoteOutput output) : output_(std::move(output)) {
    std::error_code ignored;
    std::filesystem::remove_all(snapshots(), ignored);  // of a process that was killed
    thread_ = std::thread([this] { work(); });
  }
  RemoteCopies(const RemoteCopies&) = delete;
  RemoteCopies& operator=(const RemoteCopies&) = delete;
  /// Gives up the upload that goes on, for publish() to send the rest.
  ~RemoteCopies() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_one();
    thread_.join();
    std::error_code ignored;
    std::filesystem::remove_all(snapshots(), ignored);
  }

  /// What lies in the folder now can be gone on with: has it uploaded. Returns why the last upload failed, once, or why
  /// there is no snapshot; empty: nothing failed. A run is not to end for it.
  [[nodiscard]] std::string saved() {
    std::error_code ignored;
    const std::filesystem::path folder = snapshots() / std::to_string(++count_);
    try {
      std::optional<Snapshot> passed = snapshot(folder);
      std::string failure;
      {
        const std::lock_guard lock(mutex_);
        std::swap(waiting_, passed);
        std::swap(failure, failure_);
      }
      wake_.notify_one();
      if (passed) std::filesystem::remove_all(passed->folder, ignored);
      return failure;
    } catch (const std::exception& error) {
      std::filesystem::remove_all(folder, ignored);
      return why_not(error);
    }
  }

 private:
  struct Snapshot {
    std::filesystem::path folder;
    detail::RunFiles files;
  };
  [[nodiscard]] Snapshot snapshot(const std::filesystem::path& folder) const {
    namespace fs = std::filesystem;
    detail::RunFiles files = detail::run_files(output_.staged);
    for (auto& [name, file] : files) {
      const fs::path copy = folder / name;
      make_directories(copy.parent_path());
      std::error_code failed = std::make_error_code(std::errc::not_supported);
      if (copy.extension() == ".safetensors") fs::create_hard_link(file.path, copy, failed);
      if (failed) fs::copy_file(file.path, copy);
      file.path = copy;
    }
    return {folder, std::move(files)};
  }
  [[nodiscard]] std::string why_not(const std::exception& error) const {
    return concat("what the run saved was not copied to ", output_.address,
                  ", and is tried again at its next save: ", error.what());
  }
  [[nodiscard]] std::filesystem::path snapshots() const { return output_.staged.parent_path() / "snapshots"; }

  void work() {
    for (;;) {
      std::optional<Snapshot> taken;
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [this] { return stop_ || waiting_; });
        if (stop_) return;
        std::swap(taken, waiting_);
      }
      std::string failure;
      try {
        net::S3Options options;
        options.stop = [this] { return stop_.load(); };
        net::S3 s3(net::aws_place(), options);
        detail::send_changes(s3, taken->files, net::s3_address(output_.address), detail::sent_record(output_.staged),
                             [](std::int64_t, std::int64_t) {});
      } catch (const std::exception& error) {
        failure = why_not(error);
      }
      std::error_code ignored;
      std::filesystem::remove_all(taken->folder, ignored);
      const std::lock_guard lock(mutex_);
      if (!stop_) failure_ = std::move(failure);
    }
  }

  RemoteOutput output_;
  int count_ = 0;
  std::mutex mutex_;  // of what follows
  std::condition_variable wake_;
  std::optional<Snapshot> waiting_;
  std::string failure_;
  std::atomic<bool> stop_ = false;
  std::thread thread_;  // behind what it uses
};

}  // namespace run
}  // namespace v0
}  // namespace qlora
