// qlora/run/hub_download.hpp — files of a model into the blobs of the cache: in pieces, by several connections at once.
// On the way  blobs/ETAG.qlora-part has the bytes, ETAG.qlora-pieces the numbers of the pieces that are there, so that
//             the next call goes on; no other program uses these names
// At the end  the bytes are compared with ETAG, made durable, and get their name; a hash that does not match deletes
//             them and starts once more
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/directory.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/sha256.hpp"
#include "qlora/run/hub_cache.hpp"
#include "qlora/run/hub_client.hpp"
#include "qlora/run/progress.hpp"

namespace qlora {
inline namespace v0 {
namespace run {
namespace detail {

/// Whether a file has the contents that a tag names.
[[nodiscard]] inline bool has_contents(const std::filesystem::path& path, const HubFile& file) {
  const MappedFile mapped(path);
  if (static_cast<std::int64_t>(mapped.bytes().size()) != file.size) return false;
  return (file.etag.size() == 64 ? sha256(mapped.bytes()) : git_blob_name(mapped.bytes())) == file.etag;
}

/// A file on its way.
class PartialFile {
 public:
  PartialFile(const HubFile& file, const std::filesystem::path& blobs, std::int64_t piece_bytes)
      : file_(file),
        blob_(blobs / file.etag),
        part_(blobs / (file.etag + ".qlora-part")),
        record_(blobs / (file.etag + ".qlora-pieces")),
        piece_bytes_(piece_bytes) {
    open();
  }

  [[nodiscard]] const HubFile& file() const { return file_; }
  [[nodiscard]] std::size_t pieces() const { return here_.size(); }
  [[nodiscard]] bool has(std::size_t piece) const { return here_[piece]; }
  [[nodiscard]] std::int64_t begin(std::size_t piece) const { return static_cast<std::int64_t>(piece) * piece_bytes_; }
  [[nodiscard]] std::int64_t end(std::size_t piece) const { return std::min(begin(piece) + piece_bytes_, file_.size); }
  [[nodiscard]] std::int64_t missing() const {
    std::int64_t bytes = 0;
    for (std::size_t i = 0; i < here_.size(); ++i) bytes += here_[i] ? 0 : end(i) - begin(i);
    return bytes;
  }
  /// From now on the file comes as a whole: its server knows no ranges.
  void take_whole() {
    piece_bytes_ = std::max<std::int64_t>(file_.size, 1);
    discard();
  }
  /// Deletes what is there.
  void discard() {
    std::error_code absent;
    std::filesystem::remove(part_, absent);
    std::filesystem::remove(record_, absent);
    open();
  }

  void write(std::int64_t at, std::string_view bytes) const {
    write_all(data_, part_, static_cast<std::uint64_t>(at), std::as_bytes(std::span(bytes)));
  }
  /// Notes that a piece is there; called by any thread. Whether it was the last one.
  bool complete(std::size_t piece) {
    const std::lock_guard lock(mutex_);
    const std::string line = std::to_string(piece) + "\n";
    write_all(pieces_, record_, recorded_, std::as_bytes(std::span(line)));
    recorded_ += line.size();
    here_[piece] = true;
    return std::find(here_.begin(), here_.end(), false) == here_.end();
  }
  /// Gives a complete file its name, if it has the contents that it should have; else deletes it.
  [[nodiscard]] bool finish() {
    sync_file(data_, part_);
    if (!has_contents(part_, file_)) {
      discard();
      return false;
    }
    if (::rename(part_.c_str(), blob_.c_str()) != 0) throw_errno("cannot rename to", blob_, errno);
    std::error_code absent;
    std::filesystem::remove(record_, absent);
    sync_directory(blob_.parent_path());
    return true;
  }

 private:
  void open() {
    here_.assign(static_cast<std::size_t>((file_.size + piece_bytes_ - 1) / piece_bytes_), false);
    const std::string head = concat(file_.size, " ", piece_bytes_, "\n");
    std::error_code absent;
    const bool there = std::filesystem::is_regular_file(part_, absent) &&
                       static_cast<std::int64_t>(std::filesystem::file_size(part_, absent)) == file_.size &&
                       std::filesystem::is_regular_file(record_, absent);
    std::string record = there ? read_text(record_, std::size_t{16} << 20) : std::string();
    if (!record.starts_with(head)) {
      std::filesystem::remove(part_, absent);
      record = head;
    }
    record.resize(record.rfind('\n') + 1);  // a line that was cut off is none
    std::istringstream lines(record.substr(head.size()));
    for (std::size_t piece = 0; lines >> piece;) {
      if (piece < here_.size()) here_[piece] = true;
    }
    data_ = FileDescriptor::open("cannot create", part_, O_RDWR | O_CREAT | O_NOFOLLOW, 0666);
    pieces_ = FileDescriptor::open("cannot create", record_, O_RDWR | O_CREAT | O_NOFOLLOW | O_TRUNC, 0666);
    if (::ftruncate(data_.get(), file_.size) != 0) throw_errno("cannot resize", part_, errno);
    write_all(pieces_, record_, 0, std::as_bytes(std::span(record)));
    recorded_ = record.size();
  }

  HubFile file_;
  std::filesystem::path blob_;
  std::filesystem::path part_;
  std::filesystem::path record_;
  std::int64_t piece_bytes_;
  FileDescriptor data_;
  FileDescriptor pieces_;
  std::vector<bool> here_;  // by piece
  std::uint64_t recorded_ = 0;
  std::mutex mutex_;
};

/// Downloads files, each of which is not in the cache.
class Downloader {
 public:
  Downloader(const HubPlace& place, const HubModel& model, std::string commit, Progress& progress)
      : place_(place), model_(model), commit_(std::move(commit)), progress_(progress) {}

  void run(const std::vector<HubFile>& files, const std::filesystem::path& blobs) {
    std::int64_t all = 0;
    std::int64_t missing = 0;
    for (const HubFile& file : files) {
      files_.push_back(std::make_unique<PartialFile>(file, blobs, place_.transfer.piece_bytes));
      all += file.size;
      missing += files_.back()->missing();
    }
    expect_free_space(blobs, static_cast<std::uint64_t>(missing));
    progress_.begin("pull", all, "bytes", all - missing);
    done_ = all - missing;
    whole_.assign(files_.size(), false);
    damaged_.assign(files_.size(), 0);
    finished_.assign(files_.size(), false);
    for (int round = 0; round < 4 && !all_finished(); ++round) {
      work_.clear();
      next_ = 0;
      for (std::size_t f = 0; f < files_.size(); ++f) {
        if (finished_[f]) continue;
        if (whole_[f] && files_[f]->pieces() > 1) {
          done_ -= files_[f]->file().size - files_[f]->missing();
          files_[f]->take_whole();
        }
        if (files_[f]->missing() == 0) finish(f);  // an earlier run ended before its rename, or it is empty
        for (std::size_t p = 0; !finished_[f] && p < files_[f]->pieces(); ++p)
          if (!files_[f]->has(p)) work_.push_back({f, p});
      }
      work();
    }
    if (!all_finished()) throw Error(model_.name + ": the server gives no whole files", ErrorKind::network);
    progress_.update(all);
    progress_.end();
  }
  /// Bytes that came over the network.
  [[nodiscard]] std::int64_t received() const { return received_; }

 private:
  struct Piece {
    std::size_t file;
    std::size_t piece;
  };

  [[nodiscard]] bool all_finished() const {  // between rounds
    return std::find(finished_.begin(), finished_.end(), false) == finished_.end();
  }

  void work() {
    std::vector<std::thread> threads;
    std::atomic<int> running = 0;
    const int wanted = std::max(1, std::min(place_.transfer.connections, static_cast<int>(work_.size())));
    for (int i = 0; i < wanted && !work_.empty(); ++i) {
      ++running;
      threads.emplace_back([&] {
        try {
          HubClient client(place_, model_, stop_);
          for (std::size_t w = next_++; w < work_.size() && !stop_; w = next_++) fetch(client, work_[w]);
        } catch (...) {
          const std::lock_guard lock(mutex_);
          if (!error_) error_ = std::current_exception();
          stop_ = true;
        }
        --running;
      });
    }
    bool asked = false;
    while (running > 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      progress_.update(done_);
      asked = asked || progress_.stop_requested();
      if (asked) stop_ = true;
    }
    for (std::thread& thread : threads) thread.join();
    if (asked)
      throw Error(concat("interrupted while downloading ", model_.name, "; the same command goes on where it ended"),
                  ErrorKind::interrupted);
    if (error_) std::rethrow_exception(error_);
  }

  void fetch(HubClient& client, const Piece& work) {
    PartialFile& file = *files_[work.file];
    const std::int64_t begin = file.begin(work.piece);
    const std::int64_t end = file.end(work.piece);
    const bool single = file.pieces() == 1;
    std::int64_t at = begin;
    std::int64_t furthest = begin;
    int tries = 0;
    for (int requests = 1; at < end; ++requests) {
      const bool whole = is_whole(work.file);
      if (whole && !single) return;  // the next round takes it whole
      if (whole) done_ -= std::exchange(at, begin) - begin;
      const Got got = request(client, work, at, end, single && at == begin);
      if (stop_) return;
      at += got.bytes;
      if (at == end) break;
      if (got.ignores_range) set_whole(work.file);
      tries = at > furthest && requests < 200 ? 0 : tries + 1;
      furthest = std::max(furthest, at);
      if (tries >= place_.transfer.tries)
        throw Error(concat(model_.name, ": ", file.file().name, ", byte ", at, ": ", got.why, " (", tries,
                           " tries); the same command goes on where it ended"),
                    ErrorKind::network);
      if (!got.ignores_range) client.wait(tries, got.retry_after);
    }
    if (file.complete(work.piece)) finish(work.file);
  }

  struct Got {
    std::int64_t bytes = 0;
    bool ignores_range = false;
    std::string why;
    std::string retry_after;
  };
  /// One request for [at,end) of a file, or for all of it.
  Got request(HubClient& client, const Piece& work, std::int64_t at, std::int64_t end, bool all) {
    const PartialFile& file = *files_[work.file];
    const std::string range = all ? std::string() : concat(at, "-", end - 1);
    Got got;
    std::exception_ptr error;  // none may pass through libcurl
    const auto take = [&](const net::ExchangeAnswer& head, std::string_view bytes) {
      const auto size = static_cast<std::int64_t>(bytes.size());
      const std::string part = all ? std::string() : concat("bytes ", range, "/", file.file().size);
      if (!all && head.status == 200) {
        got.ignores_range = true;
        got.why = "it gives no ranges";
      } else if (head.header("content-range") != part) {
        got.why = concat("its Content-Range is '", excerpt(head.header("content-range")), "'");
      } else if (size > end - at - got.bytes) {
        got.why = "it sends more bytes than the file has";
      }
      if (!got.why.empty() || stop_) return false;
      try {
        file.write(at + got.bytes, bytes);
      } catch (...) {
        error = std::current_exception();
        return false;
      }
      got.bytes += size;
      done_ += size;
      received_ += size;
      return true;
    };
    const net::ExchangeAnswer answer = client.get(commit_, file.file().name, range, take);
    if (error) std::rethrow_exception(error);
    if (got.why.empty()) got.why = answer.failure.empty() ? "it ends before the file does" : answer.failure;
    got.retry_after = answer.header("retry-after");
    return got;
  }
  [[nodiscard]] bool is_whole(std::size_t file) {
    const std::lock_guard lock(mutex_);
    return whole_[file];
  }
  void set_whole(std::size_t file) {
    const std::lock_guard lock(mutex_);
    whole_[file] = true;
  }

  /// Called by the thread that brought the last piece.
  void finish(std::size_t index) {
    PartialFile& file = *files_[index];
    const bool good = file.finish();
    const std::lock_guard lock(mutex_);
    if (good) {
      finished_[index] = true;
      return;
    }
    done_ -= file.file().size;
    if (++damaged_[index] < 2) return;
    throw Error(concat(model_.name, ": ", file.file().name, " came twice with other bytes than the hash ",
                       file.file().etag, " says; nothing of it was kept. Try again, or another HF_ENDPOINT"),
                ErrorKind::network);
  }

  const HubPlace& place_;
  const HubModel& model_;
  std::string commit_;
  Progress& progress_;
  std::vector<std::unique_ptr<PartialFile>> files_;
  std::vector<Piece> work_;
  std::atomic<std::size_t> next_ = 0;
  std::atomic<bool> stop_ = false;
  std::atomic<std::int64_t> done_ = 0;
  std::atomic<std::int64_t> received_ = 0;
  std::mutex mutex_;            // of what follows
  std::exception_ptr error_;    // of the first thread that failed
  std::vector<bool> whole_;     // files whose server knows no ranges
  std::vector<bool> finished_;  // files with their name
  std::vector<int> damaged_;    // hashes that did not match
};

}  // namespace detail
}  // namespace run
}  // namespace v0
}  // namespace qlora
