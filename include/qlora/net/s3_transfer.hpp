// qlora/net/s3_transfer.hpp — files to objects and objects to files, in parts, by several connections at once.
// Upload     up to one part in one request, else a multipart upload, whose parts are aborted when it fails; each part
//            states its SHA-256, signed, which the store compares
// Download   by ranges, of one version (If-Match); a file gets its name when its bytes have the hash that the store
//            states: SHA-256, or the MD5 that its tag is; of several parts the hash of their hashes
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/sha256.hpp"
#include "qlora/net/s3.hpp"
#include "qlora/net/s3_objects.hpp"

namespace qlora {
inline namespace v0 {
namespace net {

/// Called now and then, by the thread that started a transfer, with the bytes that are done. It may throw to end it.
using S3Progress = std::function<void(std::int64_t)>;

/// The bytes of a part of an object of this size: the options', or more where 10,000 parts, which is the most that S3
/// takes, would not do. A multiple of 1 MiB.
[[nodiscard]] inline std::int64_t part_bytes_of(std::int64_t size, const S3Options& options) {
  constexpr std::int64_t mib = std::int64_t{1} << 20;
  const std::int64_t least = (size / 10'000 + mib) / mib * mib;
  return std::max(std::max(options.part_bytes, 5 * mib), least);
}

/// A file and the object that it is, or is to be.
struct S3File {
  std::filesystem::path path;  ///< of the file
  S3Object object;             ///< for an upload only its address counts
  bool fresh = false;          ///< for an upload in one request: as put_object()
};

namespace detail {

/// Does `work` for each number below `count`, by several threads with a connection each. The first error ends it, is
/// thrown when all threads have come to an end, and goes before one of `tick`, which is called meanwhile.
inline void in_parallel(S3& s3, std::size_t count, const std::function<void(Connection&, std::size_t)>& work,
                        const std::function<void()>& tick) {
  std::atomic<std::size_t> next = 0;
  std::atomic<bool> stop = false;
  std::atomic<int> running = 0;
  std::mutex mutex;
  std::exception_ptr error;
  const auto keep = [&] {
    const std::lock_guard lock(mutex);
    if (!error) error = std::current_exception();
    stop = true;
  };
  std::vector<std::thread> threads;
  const std::size_t wanted = std::min(count, static_cast<std::size_t>(std::max(1, s3.options().connections)));
  for (std::size_t i = 0; i < wanted; ++i) {
    ++running;
    threads.emplace_back([&] {
      try {
        Connection connection = s3.connect();
        for (std::size_t n = next++; n < count && !stop; n = next++) work(connection, n);
      } catch (...) {
        keep();
      }
      --running;
    });
  }
  while (running > 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    try {
      if (!stop) tick();
    } catch (...) {
      keep();
    }
  }
  for (std::thread& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
}

/// The pieces of files that are transferred in pieces.
struct S3Piece {
  std::size_t file;
  std::int64_t number;  // of the piece in its file
  std::int64_t begin;
  std::int64_t end;
};

/// How a download is compared with what the store states.
struct S3Hash {
  std::string stated;  // without the "-N" of several parts; empty: nothing that can be compared
  bool md5 = false;
  bool in_parts = false;  // the hash of the hashes of parts

  explicit S3Hash(const S3Object& object) {
    const bool sha = !object.sha256.empty();
    if (!sha && !object.md5) return;
    stated = sha ? object.sha256 : object.etag;
    md5 = !sha;
    const std::int64_t parts = object.parts();  // the SHA-256 of such an object as a whole is not known to stores
    in_parts = parts > 1 || stated.find('-') != std::string::npos;
    stated.resize(std::min(stated.find('-'), stated.size()));
    const bool fits = object.part_bytes > 0 && (object.size + object.part_bytes - 1) / object.part_bytes == parts;
    if (parts > 1 && !fits) stated.clear();  // parts of sizes that are not known
  }
  [[nodiscard]] Sha256 running() const { return md5 ? Sha256(Md5()) : Sha256(); }
  /// A hash as the store writes it.
  [[nodiscard]] std::string text(const std::string& bytes) const { return md5 ? Sha256::hex_of(bytes) : base64(bytes); }
};

/// A file on its way from the store.
class S3Incoming {
 public:
  S3Incoming(const S3File& file, const S3Options& options)
      : file_(&file), hash_(file.object), temporary_(temporary_beside(file.path)) {
    const S3Object& object = file.object;
    piece_bytes_ = hash_.in_parts && object.part_bytes > 0 ? object.part_bytes : part_bytes_of(object.size, options);
    data_ = FileDescriptor::open("cannot create", temporary_, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0666);
    const std::int64_t pieces = (object.size + piece_bytes_ - 1) / piece_bytes_;
    sums_.resize(static_cast<std::size_t>(pieces));
    left_ = pieces;
  }
  S3Incoming(const S3Incoming&) = delete;
  ~S3Incoming() {
    if (!finished_) ::unlink(temporary_.c_str());
  }

  void add_pieces(std::size_t index, std::vector<S3Piece>& pieces) const {
    const std::int64_t size = file_->object.size;
    for (std::int64_t begin = 0, n = 0; begin < size; begin += piece_bytes_, ++n)
      pieces.push_back({index, n, begin, std::min(begin + piece_bytes_, size)});
  }

  void fetch(S3& s3, Connection& connection, const S3Piece& piece, std::atomic<std::int64_t>& done) {
    Sha256 running = hash_.running();
    std::int64_t at = piece.begin;
    const bool summed = !hash_.stated.empty() && (hash_.in_parts || sums_.size() == 1);
    S3Request request{.address = file_->object.address,
                      .begin = piece.begin,
                      .end = piece.end,
                      .whole = piece.end - piece.begin == file_->object.size};
    if (!file_->object.etag.empty()) request.headers = {concat("if-match: \"", file_->object.etag, "\"")};
    request.receive = [&](std::string_view bytes) {
      const auto raw = std::as_bytes(std::span(bytes));
      write_all(data_, temporary_, static_cast<std::uint64_t>(at), raw);
      if (summed) running.update(raw);
      at += static_cast<std::int64_t>(bytes.size());
      done += static_cast<std::int64_t>(bytes.size());
    };
    (void)s3.request(connection, request);
    if (summed) sums_[static_cast<std::size_t>(piece.number)] = running.bytes();
    if (--left_ == 0) finish();
  }

  /// Compares the bytes and gives the file its name. Called once all pieces are there, or there are none.
  void finish() {
    if (!hash_.stated.empty() && sum() != hash_.stated)
      throw Error(concat(file_->object.address.text(), ": came with other bytes than its ",
                         hash_.md5 ? "MD5" : "SHA-256", " says; nothing of it was kept. Start again"),
                  ErrorKind::network);
    if (::rename(temporary_.c_str(), file_->path.c_str()) != 0) throw_errno("cannot rename to", file_->path, errno);
    finished_ = true;
  }

 private:
  [[nodiscard]] std::string sum() const {
    if (hash_.in_parts) {
      Sha256 all = hash_.running();
      for (const std::string& part : sums_) all.update(part);
      return hash_.text(all.bytes());
    }
    if (sums_.size() == 1) return hash_.text(sums_[0]);
    return hash_.text(hash_.running().update(MappedFile(temporary_).bytes()).bytes());
  }

  const S3File* file_;
  S3Hash hash_;
  std::filesystem::path temporary_;
  FileDescriptor data_;
  std::int64_t piece_bytes_ = 0;
  std::vector<std::string> sums_;  // of the pieces, where they count
  std::atomic<std::int64_t> left_ = 0;
  bool finished_ = false;
};

/// A file on its way to the store.
class S3Outgoing {
 public:
  S3Outgoing(S3& s3, const S3File& file)
      : s3_(&s3),
        file_(&file),
        bytes_(file.path),
        size_(static_cast<std::int64_t>(bytes_.bytes().size())),
        piece_bytes_(part_bytes_of(size_, s3.options())) {
    pieces_ = std::max<std::int64_t>((size_ + piece_bytes_ - 1) / piece_bytes_, 1);
    left_ = pieces_;
    parts_.resize(static_cast<std::size_t>(pieces_));
  }
  S3Outgoing(const S3Outgoing&) = delete;
  ~S3Outgoing() {
    if (!upload_.id.empty()) (void)abort_upload(*s3_, upload_);
  }

  [[nodiscard]] std::int64_t size() const { return size_; }
  void add_pieces(std::size_t index, std::vector<S3Piece>& pieces) const {
    for (std::int64_t n = 0; n < pieces_; ++n)
      pieces.push_back({index, n, n * piece_bytes_, std::min((n + 1) * piece_bytes_, size_)});
  }

  void send(Connection& connection, const S3Piece& piece, std::atomic<std::int64_t>& done) {
    const auto bytes = bytes_.bytes().subspan(static_cast<std::size_t>(piece.begin),
                                              static_cast<std::size_t>(piece.end - piece.begin));
    if (pieces_ == 1) {
      put_object(*s3_, connection, file_->object.address, bytes, file_->fresh);
    } else {
      begin(connection);
      send_part(connection, piece, bytes);
      if (--left_ == 0) complete(connection);
    }
    done += piece.end - piece.begin;
  }

 private:
  struct Part {
    std::string etag;
    std::string sha256;  // base64, where the store knows it
  };

  void begin(Connection& connection) {
    const std::lock_guard lock(mutex_);
    if (!upload_.id.empty()) return;
    const S3Address& address = file_->object.address;
    const ExchangeAnswer answer = s3_->request(
        connection, {.method = "POST",
                     .address = address,
                     .query = {{"uploads", ""}},
                     .headers = {"content-type: application/octet-stream", "x-amz-checksum-algorithm: SHA256",
                                 "x-amz-checksum-type: COMPOSITE", concat(part_bytes_header, ": ", piece_bytes_)}});
    const std::string id = parse_xml(answer.body, address.text()).text_of("UploadId");
    if (id.empty()) throw Error(address.text() + ": the store begins no upload in parts", ErrorKind::network);
    upload_ = {address, id};
  }

  void send_part(Connection& connection, const S3Piece& piece, std::span<const std::byte> bytes) {
    const std::string hash = Sha256().update(bytes).bytes();
    const ExchangeAnswer answer =
        s3_->request(connection, {.method = "PUT",
                                  .address = upload_.address,
                                  .query = {{"partNumber", std::to_string(piece.number + 1)}, {"uploadId", upload_.id}},
                                  .headers = checksum_headers(hash),
                                  .body = bytes,
                                  .body_sha256 = Sha256::hex_of(hash)});
    expect_same_sum(answer, base64(hash), upload_.address);
    parts_[static_cast<std::size_t>(piece.number)] = {without_quotes(answer.header("etag")),
                                                      answer.header("x-amz-checksum-sha256")};
  }

  void complete(Connection& connection) {
    std::string body = "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">";
    Sha256 all;
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      const Part& part = parts_[i];
      if (part.etag.find_first_of("<&>") != std::string::npos)
        throw Error(upload_.address.text() + ": the store gives a part a tag that is none", ErrorKind::network);
      body +=
          concat("<Part><PartNumber>", i + 1, "</PartNumber><ETag>\"", part.etag, "\"</ETag>",
                 part.sha256.empty() ? "" : concat("<ChecksumSHA256>", part.sha256, "</ChecksumSHA256>"), "</Part>");
    }
    body += "</CompleteMultipartUpload>";
    // Joining large objects takes minutes, in which the store sends a blank now and then.
    const ExchangeAnswer answer = s3_->request(connection, {.method = "POST",
                                                            .address = upload_.address,
                                                            .query = {{"uploadId", upload_.id}},
                                                            .headers = {"content-type: application/xml"},
                                                            .body = std::as_bytes(std::span(body)),
                                                            .accepted = "NoSuchUpload",
                                                            .low_speed_seconds = 600});
    if (error_code(answer, upload_.address.text()) == "NoSuchUpload") {  // an earlier try was heard, its answer lost
      const auto object = head_object(*s3_, connection, upload_.address);
      if (!object || object->size != size_)
        throw Error(upload_.address.text() + ": the upload was ended by somebody else; start again",
                    ErrorKind::network);
    }
    upload_.id.clear();
  }

  S3* s3_;
  const S3File* file_;
  MappedFile bytes_;
  std::int64_t size_;
  std::int64_t piece_bytes_;
  std::int64_t pieces_ = 1;
  std::atomic<std::int64_t> left_ = 0;
  std::vector<Part> parts_;
  std::mutex mutex_;  // of what follows, until it is there
  S3Upload upload_;
};

}  // namespace detail

/// Downloads objects, each to a file that appears under its name whole, and which the caller makes durable where it
/// needs to be. Folders must be there. Throws Error: as
/// S3::request does; (network) for bytes that do not have the hash that the store states; (resource) for want of disk.
inline void download(S3& s3, const std::vector<S3File>& files, const S3Progress& progress = {}) {
  std::vector<std::unique_ptr<detail::S3Incoming>> incoming;
  std::vector<detail::S3Piece> pieces;
  for (const S3File& file : files) {
    incoming.push_back(std::make_unique<detail::S3Incoming>(file, s3.options()));
    incoming.back()->add_pieces(incoming.size() - 1, pieces);
    if (file.object.size == 0) incoming.back()->finish();
  }
  std::atomic<std::int64_t> done = 0;
  detail::in_parallel(
      s3, pieces.size(),
      [&](Connection& connection, std::size_t n) { incoming[pieces[n].file]->fetch(s3, connection, pieces[n], done); },
      [&] {
        if (progress) progress(done);
      });
}

/// Uploads files, each to an object that appears whole. Uploads of the same keys that earlier processes left unended
/// are aborted first; when this fails, its own are. Throws Error as S3::request does.
inline void upload(S3& s3, const std::vector<S3File>& files, const S3Progress& progress = {}) {
  std::vector<std::unique_ptr<detail::S3Outgoing>> outgoing;
  std::vector<detail::S3Piece> pieces;
  Connection connection = s3.connect();
  for (const S3File& file : files) {
    outgoing.push_back(std::make_unique<detail::S3Outgoing>(s3, file));
    const std::size_t before = pieces.size();
    outgoing.back()->add_pieces(outgoing.size() - 1, pieces);
    if (pieces.size() - before == 1) continue;
    for (const S3Upload& old : list_uploads(s3, connection, file.object.address))
      if (old.address.key == file.object.address.key) (void)abort_upload(s3, old);
  }
  std::atomic<std::int64_t> done = 0;
  detail::in_parallel(
      s3, pieces.size(), [&](Connection& own, std::size_t n) { outgoing[pieces[n].file]->send(own, pieces[n], done); },
      [&] {
        if (progress) progress(done);
      });
}

}  // namespace net
}  // namespace v0
}  // namespace qlora
