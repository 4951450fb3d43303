// qlora/net/s3_bytes.hpp — an object as bytes that are read by their offsets, by several connections at once, without a
// file. Of one version alone (If-Match): an object that is replaced meanwhile is an error. A connection that breaks
// goes on at its byte, as for all of net/s3.hpp.
// Requests   pieces are cut at 8 MiB; neighbours with less than 64 KiB between them are one request
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <future>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/byte_source.hpp"
#include "qlora/net/exchange.hpp"
#include "qlora/net/s3.hpp"
#include "qlora/net/s3_objects.hpp"

namespace qlora {
inline namespace v0 {
namespace net {

/// Connections to a store that all who read from it share. Any number of threads may use it.
class S3Connections {
 public:
  /// `most` of them at a time: as many as the options of the store say.
  explicit S3Connections(std::shared_ptr<S3> store)
      : store_(std::move(store)), left_(std::max(1, store_->options().connections)) {}

  /// Lends one to `use` when there is one. It is kept for the next unless `use` throws.
  template <class Use>
  void with(const Use& use) {
    std::unique_ptr<Connection> connection = take();
    const auto back = [this](std::unique_ptr<Connection> own) {
      const std::lock_guard lock(mutex_);
      if (own) idle_.push_back(std::move(own));
      ++left_;
      free_.notify_one();
    };
    try {
      if (!connection) connection = std::make_unique<Connection>(store_->connect());
      use(*store_, *connection);
    } catch (...) {
      back(nullptr);
      throw;
    }
    back(std::move(connection));
  }
  /// How many there may be.
  [[nodiscard]] int most() const { return std::max(1, store_->options().connections); }

 private:
  /// Null where none is idle and one more may be made.
  [[nodiscard]] std::unique_ptr<Connection> take() {
    std::unique_lock lock(mutex_);
    free_.wait(lock, [this] { return left_ > 0; });
    --left_;
    if (idle_.empty()) return nullptr;
    std::unique_ptr<Connection> one = std::move(idle_.back());
    idle_.pop_back();
    return one;
  }

  std::shared_ptr<S3> store_;
  std::mutex mutex_;  // of what follows
  std::condition_variable free_;
  int left_;
  std::vector<std::unique_ptr<Connection>> idle_;
};

namespace detail {

/// Bytes that come in one answer, and the pieces of them that are wanted, in their order.
struct S3Range {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  std::vector<BytePiece> pieces{};
};

/// Pieces, which do not overlap, as ranges in their order.
[[nodiscard]] inline std::vector<S3Range> ranges_of(std::span<const BytePiece> pieces) {
  constexpr std::size_t most = std::size_t{8} << 20;
  constexpr std::uint64_t gap = std::uint64_t{64} << 10;  // fewer bytes than come in the time of a request
  std::vector<BytePiece> cut;
  for (const BytePiece& piece : pieces) {
    for (std::size_t at = 0; at < piece.into.size(); at += most)
      cut.push_back({piece.offset + at, piece.into.subspan(at, std::min(most, piece.into.size() - at))});
  }
  std::sort(cut.begin(), cut.end(), [](const BytePiece& a, const BytePiece& b) { return a.offset < b.offset; });
  std::vector<S3Range> ranges;
  for (const BytePiece& piece : cut) {
    const std::uint64_t end = piece.offset + piece.into.size();
    const bool joined = !ranges.empty() && piece.offset < ranges.back().end + gap && end - ranges.back().begin <= most;
    if (!joined) ranges.push_back({.begin = piece.offset, .end = end});
    ranges.back().end = end;
    ranges.back().pieces.push_back(piece);
  }
  return ranges;
}

/// Puts the bytes of an answer where they belong.
class S3Scatter {
 public:
  explicit S3Scatter(const S3Range& range) : range_(range), at_(range.begin) {}
  void take(std::string_view bytes) {
    while (!bytes.empty() && next_ < range_.pieces.size()) {
      const BytePiece& piece = range_.pieces[next_];
      if (at_ < piece.offset) {  // a gap
        const auto passed = std::min<std::uint64_t>(piece.offset - at_, bytes.size());
        bytes.remove_prefix(static_cast<std::size_t>(passed));
        at_ += passed;
        continue;
      }
      const auto done = static_cast<std::size_t>(at_ - piece.offset);
      const std::size_t size = std::min(piece.into.size() - done, bytes.size());
      std::memcpy(piece.into.data() + done, bytes.data(), size);
      bytes.remove_prefix(size);
      at_ += size;
      if (done + size == piece.into.size()) ++next_;
    }
  }

 private:
  const S3Range& range_;
  std::uint64_t at_;
  std::size_t next_ = 0;  // of the pieces
};

}  // namespace detail

/// An object of a store.
class S3Bytes final : public ByteSource {
 public:
  /// `object` as head_object or list_objects gave it: it says size and version.
  S3Bytes(std::shared_ptr<S3Connections> connections, S3Object object)
      : connections_(std::move(connections)), object_(std::move(object)) {}
  [[nodiscard]] std::string name() const override { return object_.address.text(); }
  [[nodiscard]] std::uint64_t size() const override { return static_cast<std::uint64_t>(object_.size); }
  /// Throws Error as S3::request does, and (network) where the object is another one by now.
  void read(std::span<const BytePiece> pieces) const override {
    const std::vector<detail::S3Range> ranges = detail::ranges_of(pieces);
    std::atomic<std::size_t> next = 0;
    std::atomic<bool> stop = false;
    const auto work = [&] {
      for (std::size_t n = next++; n < ranges.size() && !stop; n = next++) {
        try {
          connections_->with([&](S3& store, Connection& connection) { fetch(store, connection, ranges[n]); });
        } catch (...) {
          stop = true;
          throw;
        }
      }
    };
    std::vector<std::future<void>> others;  // wait for their threads when they go
    for (std::size_t i = 1; i < std::min(ranges.size(), static_cast<std::size_t>(connections_->most())); ++i)
      others.push_back(std::async(std::launch::async | std::launch::deferred, work));
    work();
    for (std::future<void>& other : others) other.get();
  }

 private:
  void fetch(S3& store, Connection& connection, const detail::S3Range& range) const {
    detail::S3Scatter scatter(range);
    S3Request request{.address = object_.address,
                      .begin = static_cast<std::int64_t>(range.begin),
                      .end = static_cast<std::int64_t>(range.end)};
    if (!object_.etag.empty()) request.headers = {concat("if-match: \"", object_.etag, "\"")};
    request.receive = [&](std::string_view bytes) { scatter.take(bytes); };
    (void)store.request(connection, request);
  }

  std::shared_ptr<S3Connections> connections_;
  S3Object object_;
};

}  // namespace net
}  // namespace v0
}  // namespace qlora
