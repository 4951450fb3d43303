// SHA-256 against the vectors of FIPS 180-4 and against the sha256sum program.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/io/sha256.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <random>
#include <string>

using namespace qlora;

TEST_CASE("published vectors") {
  CHECK(sha256("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(sha256("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK(sha256(std::string(1'000'000, 'a')) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST_CASE("pieces of any size give the hash of the whole, and sha256sum agrees") {
  std::mt19937 random(5);
  const std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("sha256_test-" + std::to_string(::getpid()));
  for (const std::size_t size : {1U, 54U, 55U, 56U, 57U, 63U, 64U, 65U, 119U, 120U, 128U, 1000U, 70001U}) {
    std::string text(size, '\0');
    for (char& c : text) c = static_cast<char>(random());
    Sha256 hash;
    for (std::size_t at = 0; at < size;) {
      const std::size_t step = std::min<std::size_t>(size - at, random() % 100);
      hash.update(std::string_view(text).substr(at, step));
      at += step;
    }
    write_file_atomically(path, text);
    std::string digest(64, '\0');
    std::FILE* program = ::popen(("sha256sum " + path.string()).c_str(), "r");
    REQUIRE(program != nullptr);
    CHECK(std::fread(digest.data(), 1, 64, program) == 64);
    ::pclose(program);
    CHECK(hash.hex() == digest);
    CHECK(sha256_file(path) == digest);
  }
  std::filesystem::remove(path);
}
