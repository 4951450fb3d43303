// The thread pool: every tile exactly once, however many threads and tiles, over and over; and what happens when the
// system has no more threads.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/cpu/threads.hpp"

#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <string>

using namespace qlora;

TEST_CASE("every tile runs once, by a worker that exists") {
  for (const int threads : {1, 2, 3, 8}) {
    cpu::ThreadPool pool(threads);
    REQUIRE(pool.size() == threads);
    bool right = true;
    for (int round = 0; round < 300; ++round) {
      const int tiles = round % 40;
      std::vector<std::atomic<int>> runs(static_cast<std::size_t>(tiles));
      std::atomic<bool> known_workers = true;
      pool.for_tiles(tiles, [&](int tile, int worker) {
        ++runs[static_cast<std::size_t>(tile)];
        if (worker < 0 || worker >= threads) known_workers = false;
      });
      for (const auto& count : runs) right &= count == 1;
      right &= known_workers;
    }
    CHECK(right);
  }
}

TEST_CASE("what tiles wrote is there when for_tiles returns") {
  cpu::ThreadPool pool(4);
  std::vector<int> values(10'000, 0);
  for (int round = 1; round <= 100; ++round) {
    cpu::for_ranges(pool, 10'000, 77, [&](std::int64_t first, std::int64_t last, int) {
      for (std::int64_t i = first; i < last; ++i) values[static_cast<std::size_t>(i)] += round;
    });
  }
  bool right = true;
  for (const int value : values) right &= value == 5050;
  CHECK(right);
}

TEST_CASE("ranges cover everything, the last one shorter") {
  cpu::ThreadPool pool(1);
  std::vector<std::int64_t> ends;
  cpu::for_ranges(pool, 10, 4, [&](std::int64_t first, std::int64_t last, int) {
    ends.push_back(first);
    ends.push_back(last);
  });
  CHECK(ends == std::vector<std::int64_t>{0, 4, 4, 8, 8, 10});
  cpu::for_ranges(pool, 0, 4, [&](std::int64_t, std::int64_t, int) { ends.clear(); });
  CHECK(ends.size() == 6);
}

TEST_CASE("thread counts that cannot be meant") {
  CHECK_THROWS_AS(cpu::ThreadPool(-1), Error);
  CHECK_THROWS_AS(cpu::ThreadPool(100'000), Error);
}

TEST_CASE("no more threads to be had: an error, and those that had started are gone") {
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    // Room for some stacks of 8 MB, by far not for 1024 of them.
    long pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    const rlimit stacks{8U << 20, 8U << 20};
    const auto limit = static_cast<rlim_t>(pages) * 4096 + (200U << 20);
    const rlimit memory{limit, limit};
    if (::setrlimit(RLIMIT_STACK, &stacks) != 0 || ::setrlimit(RLIMIT_AS, &memory) != 0) ::_exit(3);
    try {
      const cpu::ThreadPool pool(1024);
    } catch (const Error& error) {
      ::_exit(error.kind() == ErrorKind::resource ? 0 : 2);
    }
    ::_exit(1);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}
