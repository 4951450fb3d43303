// Files: whole or not at all, also when writing fails or the process is killed; locks that name their holder.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/io/file.hpp"

#include <doctest/doctest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <filesystem>
#include <string>

#include "qlora/io/directory.hpp"
#include "qlora/io/lock.hpp"
#include "support/kill_point.hpp"

using namespace qlora;
namespace fs = std::filesystem;

namespace {

struct Scratch {
  fs::path path = fs::temp_directory_path() / ("file_test-" + std::to_string(::getpid()));
  Scratch() { fs::create_directories(path); }
  ~Scratch() { fs::remove_all(path); }
} const scratch;

template <class Action>
std::pair<std::string, ErrorKind> failure(Action action) {
  try {
    action();
  } catch (const Error& error) {
    return {error.what(), error.kind()};
  }
  return {"", ErrorKind::usage};
}
std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

TEST_CASE("what is written is read, mapped or as text") {
  const fs::path path = scratch.path / "a";
  write_file_atomically(path, "hello\n");
  CHECK(read_text(path, 6) == "hello\n");
  MappedFile first(path);
  write_file_atomically(path, "new");  // a reader keeps the old contents
  MappedFile moved = std::move(first);
  CHECK(text_of(moved.bytes()) == "hello\n");
  CHECK(first.bytes().empty());  // NOLINT(bugprone-use-after-move): the moved-from state is what is tested
  CHECK(text_of(MappedFile(path).bytes()) == "new");
  write_file_atomically(path, "");
  CHECK(MappedFile(path).bytes().empty());
  CHECK(read_text(path, 0).empty());
  CHECK(std::distance(fs::directory_iterator(scratch.path), fs::directory_iterator()) == 1);
}

TEST_CASE("messages carry the path and the system's words") {
  const fs::path path = scratch.path / "long";
  write_file_atomically(path, "12345");
  CHECK(failure([&] { (void)read_text(path, 4); }).first.find("5 bytes") != std::string::npos);
  CHECK(failure([&] { (void)MappedFile(scratch.path / "none"); }).first.find("none: No such file") !=
        std::string::npos);
  CHECK(failure([&] { (void)MappedFile(scratch.path); }).first.find("not a regular file") != std::string::npos);
  CHECK(failure([&] { (void)read_text("/dev/zero", 9); }).first.find("not a regular file") != std::string::npos);
  const fs::path pipe = scratch.path / "pipe";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  CHECK(failure([&] { (void)MappedFile(pipe); }).first.find("not a regular file") !=
        std::string::npos);  // does not hang
  CHECK(failure([&] { write_file_atomically(scratch.path / "no/such/place", "x"); }).first.find("No such file") !=
        std::string::npos);
  const FileDescriptor full = FileDescriptor::open("open", "/dev/full", O_WRONLY);
  const auto [said, kind] = failure([&] { write_all(full, "/dev/full", 0, std::as_bytes(std::span("x", 1))); });
  CHECK(said.find("No space left") != std::string::npos);
  CHECK(kind == ErrorKind::resource);
}

TEST_CASE("a write that fails leaves the old file and no other") {
  const fs::path here = scratch.path / "limited";
  fs::create_directories(here);
  write_file_atomically(here / "f", "old");
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {  // files may grow to 1000 bytes here
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{1000, 1000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const auto [said, kind] = failure([&] { write_file_atomically(here / "f", std::string(5000, 'x')); });
    ::_exit(said.find("File too large") != std::string::npos && kind == ErrorKind::resource ? 0 : 1);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  CHECK(read_text(here / "f", 100) == "old");
  CHECK(std::distance(fs::directory_iterator(here), fs::directory_iterator()) == 1);
}

TEST_CASE("a device or a pipe is not replaced by a file") {
  const fs::path pipe = fs::temp_directory_path() / ("qlora_file_test_pipe_" + std::to_string(getpid()));
  REQUIRE(mkfifo(pipe.c_str(), 0600) == 0);
  CHECK_THROWS_AS(write_file_atomically(pipe, "text"), Error);
  CHECK(fs::is_fifo(pipe));
  fs::remove(pipe);
}

TEST_CASE("killed while writing: the file is one of those that were written, never a part") {
  const fs::path path = scratch.path / "killed";
  write_file_atomically(path, std::string(200'000, 'a'));
  int olds = 0;
  int news = 0;
  for (bool going = true; going;) {
    const char next = static_cast<char>('b' + olds + news);
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      kill_point::calls_left = olds + news;
      write_file_atomically(path, std::string(200'000, next));
      ::_exit(0);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    going = WIFSIGNALED(status);
    const std::string text = read_text(path, 1 << 20);
    REQUIRE(text.size() == 200'000);
    CHECK(text.find_first_not_of(text[0]) == std::string::npos);
    if (going) ++(text[0] == next ? news : olds);
  }
  CHECK(olds == 3);  // in the middle of the bytes, before they are durable, before the name
  CHECK(news == 1);  // before the name is durable
}

TEST_CASE("a bit that changes between memory and disk is found before the file has its name") {
  const fs::path here = scratch.path / "flipped";
  fs::create_directories(here);
  write_file_atomically(here / "f", "old");
  for (std::size_t bit = 0; bit < 8 * 1003; bit += 61) {
    std::string text(1003, '\0');
    for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 7 % 251);
    kill_point::writes_left = 0;
    kill_point::flipped_bit = bit;
    const auto [said, kind] = failure([&] { write_file_atomically(here / "f", text); });
    kill_point::writes_left = -1;
    CHECK(said.find("read back") != std::string::npos);
    CHECK(kind == ErrorKind::resource);
  }
  CHECK(read_text(here / "f", 100) == "old");
  CHECK(std::distance(fs::directory_iterator(here), fs::directory_iterator()) == 1);
  write_file_atomically(here / "f", "new");
  CHECK(read_text(here / "f", 100) == "new");
}

TEST_CASE("a symbolic link is written through, also one to nothing yet") {
  const fs::path here = scratch.path / "links";
  fs::create_directories(here / "far");
  fs::create_symlink("far/file", here / "link");
  for (const char* text : {"one", "two"}) {
    write_file_atomically(here / "link", text);
    CHECK(fs::is_symlink(here / "link"));
    CHECK(read_text(here / "far/file", 10) == text);
  }
  CHECK(std::distance(fs::directory_iterator(here / "far"), fs::directory_iterator()) == 1);
  // A folder likewise: the link stays, and what it leads to is made or replaced as a whole.
  fs::create_symlink("far/folder", here / "to_folder");
  for (const char* text : {"one", "two"}) {
    AtomicDirectory directory(here / "to_folder", {"file"});
    write_file_atomically(directory.temporary() / "file", text);
    directory.commit();
    CHECK(fs::is_symlink(here / "to_folder"));
    CHECK(read_text(here / "far/folder/file", 10) == text);
  }
  CHECK(std::distance(fs::directory_iterator(here / "far"), fs::directory_iterator()) == 2);
}

TEST_CASE("what killed writers left goes with the next; what is being written stays, and has one writer") {
  const fs::path here = scratch.path / "stale";
  fs::create_directories(here / "below");
  const auto left = [&](const fs::path& path, const char* of) {  // by a process that was killed
    const pid_t child = ::fork();
    if (child == 0) {
      if (std::string_view(of) == "directory") {
        AtomicDirectory directory(path);
        write_file_atomically(directory.temporary() / "weights", std::string(1000, 'w'));
        ::_exit(0);
      }
      AtomicFile file(path);
      ::_exit(0);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
  };
  const auto count = [](const fs::path& folder) {
    return std::distance(fs::directory_iterator(folder), fs::directory_iterator());
  };
  left(here / "f", "file");
  left(here / "d", "directory");
  left(here / "below/d", "directory");
  CHECK(count(here) == 3);
  write_file_atomically(here / "f", "new");
  CHECK(count(here) == 3);  // f for what was left of it
  {
    AtomicDirectory directory(here / "d");
    const auto [said, kind] = failure([&] { AtomicDirectory second(here / "d"); });
    CHECK(said.find("is being written by another process") != std::string::npos);
    CHECK(kind == ErrorKind::resource);
    remove_stale_temporaries(here);
    CHECK(fs::exists(directory.temporary()));
    CHECK(count(here / "below") == 0);
    directory.commit();
  }
  CHECK(count(here) == 3);  // below, d, f
  CHECK(is_temporary_name(".model.safetensors.tmp-12-3"));
  for (const char* name : {".tmp-1-2", "a.tmp-1-2", ".a.tmp-1", ".a.tmp-1-", ".a.tmp--2", ".a.tmp-1-2-3", ".a.tmp-x-2"})
    CHECK_FALSE(is_temporary_name(name));
}

TEST_CASE("a temporary name left by a dead process of the same number is not in the way") {
  const fs::path path = scratch.path / "again";
  const std::string next = temporary_beside(path).string();
  const std::size_t digits = next.rfind('-') + 1;
  const int number = std::stoi(next.substr(digits));
  for (int i = 1; i <= 3; ++i) fs::create_directory(next.substr(0, digits) + std::to_string(number + i));
  write_file_atomically(path, "new");
  CHECK(read_text(path, 10) == "new");
}

TEST_CASE("a directory appears whole, replaces only what it may, and else leaves nothing") {
  const fs::path here = scratch.path / "directories";
  const fs::path target = here / "out";
  { AtomicDirectory unfinished(target); }
  CHECK(fs::is_empty(here));
  const auto write = [&](const char* text) {
    AtomicDirectory directory(target.string() + "/", {"file"});
    write_file_atomically(directory.temporary() / "file", text);
    directory.commit();
  };
  write("one");
  CHECK(read_text(target / "file", 10) == "one");
  write("two");
  CHECK(read_text(target / "file", 10) == "two");
  CHECK(std::distance(fs::directory_iterator(here), fs::directory_iterator()) == 1);
  write_file_atomically(target / "other", "mine");
  CHECK(failure([&] { write("three"); }).first.find("holds other") != std::string::npos);
  CHECK(read_text(target / "file", 10) == "two");
  CHECK(failure([&] { AtomicDirectory directory(target / "file"); }).first.find("not a directory") !=
        std::string::npos);
  CHECK(failure([&] { expect_free_space(here, UINT64_MAX); }).second == ErrorKind::resource);
}

TEST_CASE("the second holder of a lock is told who the first is; a killed holder blocks nobody") {
  const fs::path path = scratch.path / "run.lock";
  {
    const RunLock lock(path);
    const auto [said, kind] = failure([&] { RunLock second(path); });
    CHECK(said.find("process " + std::to_string(::getpid()) + " on ") != std::string::npos);
    CHECK(kind == ErrorKind::resource);
  }
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    const RunLock lock(path);
    (void)!::write(ends[1], "x", 1);
    ::pause();
    ::_exit(0);
  }
  char ready = 0;
  REQUIRE(::read(ends[0], &ready, 1) == 1);
  CHECK(failure([&] { RunLock second(path); }).first.find("process " + std::to_string(child)) != std::string::npos);
  ::kill(child, SIGKILL);
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(failure([&] { RunLock second(path); }).first.empty());
}
