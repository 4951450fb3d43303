// What a Comm promises, of its MPI form; run by mpirun with 2 and 4 processes. Every rank knows what the others send.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <array>
#include <limits>
#include <vector>

#include "qlora/dist/mpi.hpp"
#include "qlora/dist/peers.hpp"

using namespace qlora;
using namespace qlora::dist;

namespace {

Comm& world() {
  static const std::unique_ptr<MpiComm> comm = MpiComm::open(launch_of(process_environment));
  return *comm;
}
float value(int rank, std::int64_t i) { return static_cast<float>(rank) * 1000.0F + static_cast<float>(i); }

}  // namespace

TEST_CASE("every rank has a number of its own") {
  Comm& comm = world();
  REQUIRE(comm.size() >= 2);
  const std::vector<int> ranks = comm.gather(comm.rank());
  for (int rank = 0; rank < comm.size(); ++rank) CHECK(ranks[static_cast<std::size_t>(rank)] == rank);
  CHECK(comm.broadcast(comm.rank() == 0 ? "from the first" : "unused, and longer than that") == "from the first");
  CHECK(comm.broadcast("").empty());
  comm.barrier();
}

TEST_CASE("pieces of any size arrive where they belong") {
  Comm& comm = world();
  // Rank r sends 1000 r + peer numbers to each peer, some of them none.
  std::vector<std::vector<float>> sent;
  std::vector<std::vector<float>> received;
  const auto count = [](int from, int to) { return from == 1 && to == 0 ? 0 : 1000 * from + to; };
  for (int peer = 0; peer < comm.size(); ++peer) {
    sent.emplace_back(static_cast<std::size_t>(count(comm.rank(), peer)), static_cast<float>(comm.rank()));
    received.emplace_back(static_cast<std::size_t>(count(peer, comm.rank())), -1.0F);
  }
  std::vector<Piece> pieces;
  for (int peer = comm.size() - 1; peer >= 0; --peer) {
    const auto at = static_cast<std::size_t>(peer);
    if (peer != comm.rank()) {
      pieces.push_back({peer, std::as_bytes(std::span(sent[at])), std::as_writable_bytes(std::span(received[at]))});
    }
  }
  comm.exchange(pieces);
  comm.wait();
  for (int peer = 0; peer < comm.size(); ++peer) {
    if (peer == comm.rank()) continue;
    for (const float number : received[static_cast<std::size_t>(peer)]) CHECK(number == static_cast<float>(peer));
  }
}

TEST_CASE("shards become the whole, also where ranks have fewer numbers or none") {
  Comm& comm = world();
  for (const std::int64_t count : {0, 1, 7, 16, 17, 1000, 100'003}) {
    for (const std::int64_t unit : {1, 16}) {
      CAPTURE(count);
      CAPTURE(unit);
      const Shards shards{count, comm.size(), unit};
      REQUIRE(shards.first(0) == 0);
      REQUIRE(shards.first(comm.size()) == count);
      std::vector<float> whole(static_cast<std::size_t>(count), -1.0F);
      for (std::int64_t i = shards.first(comm.rank()); i < shards.first(comm.rank() + 1); ++i) {
        whole[static_cast<std::size_t>(i)] = value(comm.rank(), i);
      }
      all_gather(comm, whole.data(), shards);
      comm.wait();
      for (int rank = 0; rank < comm.size(); ++rank) {
        CHECK(shards.size(rank) <= shards.largest());
        CHECK((shards.first(rank) % unit == 0 || shards.first(rank) == count));
        for (std::int64_t i = shards.first(rank); i < shards.first(rank + 1); ++i) {
          REQUIRE(whole[static_cast<std::size_t>(i)] == value(rank, i));
        }
      }
    }
  }
}

TEST_CASE("a rank that does not answer is given up, and named") {
  Comm& comm = world();
  bool stop = false;
  Peers peers(comm, [&] { return stop; });
  CHECK(peers.on_this_host() == comm.size());
  peers.set_doing(" in step 7");
  comm.set_watch([&](double seconds) { peers(seconds); });
  // Rank 0 comes to the meeting only after all others have given it up. A message that was given up may still arrive.
  static std::array<std::byte, 1> mine;
  static std::vector<std::byte> all(static_cast<std::size_t>(comm.size()));
  static std::array<std::byte, 1> told;
  if (comm.rank() == 0) {
    for (int peer = 1; peer < comm.size(); ++peer) {
      const Piece piece{peer, {}, told};
      comm.exchange({piece});
    }
    comm.gather_bytes(mine.data(), mine.size(), all.data());
  } else {
    peers.set_patience(0.3);
    try {
      comm.gather_bytes(mine.data(), mine.size(), all.data());
      FAIL_CHECK("waited");
    } catch (const Error& error) {
      CHECK(error.kind() == ErrorKind::resource);
      CHECK(std::string(error.what()).find("in step 7") != std::string::npos);
      CHECK(std::string(error.what()).find(concat("rank ", comm.rank(), " (process ")) == 0);
    }
    peers.set_patience(std::numeric_limits<double>::infinity());
    const Piece piece{0, mine, {}};
    comm.exchange({piece});
  }
  comm.set_watch({});
  comm.barrier();
}
