// s3_store_test.cpp — objects of a real store that checks signatures, through a proxy that goes wrong: what is under a
// name in the end is whole and right, and no request is tried more than six times.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "qlora/net/aws_profile.hpp"
#include "qlora/net/s3.hpp"
#include "qlora/net/s3_objects.hpp"
#include "qlora/net/s3_transfer.hpp"
#include "support/environment.hpp"
#include "support/refusal.hpp"
#include "support/s3_store.hpp"
#include "support/scratch.hpp"

namespace fs = std::filesystem;
namespace net = qlora::net;
using test::contents;
using test::Environment;
using test::refusal;
using test::Scratch;
using test::store;

namespace {

constexpr std::int64_t mib = 1 << 20;

/// The store with short waits and small parts.
struct Fixture {
  Scratch scratch;
  Environment environment{store().environment((scratch / "").string())};
  std::unique_ptr<net::S3> s3 = make();
  net::Connection connection = s3->connect();
  net::S3Address bucket = net::s3_address("s3://bucket-1/");

  Fixture() {
    store().faults("[]");
    (void)s3->request(connection, {.method = "PUT", .address = bucket});
  }
  static std::unique_ptr<net::S3> make() {
    net::S3Options options;
    options.part_bytes = 5 * mib;
    options.backoff = std::chrono::milliseconds(1);
    options.connections = 4;
    options.low_speed_seconds = 3600;
    return std::make_unique<net::S3>(net::aws_place(), options);
  }
  fs::path file(const std::string& name, std::int64_t bytes) const {
    std::string text(static_cast<std::size_t>(bytes), '\0');
    std::mt19937 random(static_cast<unsigned>(bytes));
    for (char& c : text) c = static_cast<char>(random());
    return scratch.write(name, text);
  }
  void put(const std::string& name, const fs::path& from) {
    net::upload(*s3, {{from, {.address = bucket / name, .etag = {}}}});
  }
  /// Downloads an object and compares it with a file.
  void check_same(const std::string& name, const fs::path& as) {
    const auto object = net::head_object(*s3, connection, bucket / name);
    REQUIRE(object.has_value());
    const fs::path here = scratch / "here";
    net::download(*s3, {{here, *object}});
    CHECK(contents(here) == contents(as));
    fs::remove(here);
  }
  [[nodiscard]] std::size_t uploads() { return net::list_uploads(*s3, connection, bucket).size(); }
};

std::ptrdiff_t lines_with(const std::string& text, const std::string& part) {
  std::ptrdiff_t count = 0;
  for (std::size_t at = text.find(part); at != text.npos; at = text.find(part, at + 1)) ++count;
  return count;
}

}  // namespace

TEST_CASE_FIXTURE(Fixture, "objects of all sizes come back as they were") {
  for (const std::int64_t size : {std::int64_t{0}, std::int64_t{1}, 5 * mib, 5 * mib + 1, 17 * mib + 3}) {
    CAPTURE(size);
    const fs::path from = file("from", size);
    put("sizes/object", from);
    check_same("sizes/object", from);
  }
  CHECK(uploads() == 0);
  const auto object = net::head_object(*s3, connection, bucket / "sizes/object");
  REQUIRE(object.has_value());
  CHECK(object->size == 17 * mib + 3);
  CHECK(object->part_bytes == 5 * mib);
  CHECK(!object->sha256.empty());  // stated by the store, and compared
}

TEST_CASE_FIXTURE(Fixture, "odd keys are signed, listed and deleted") {
  const std::vector<std::string> keys{"odd/a b+c=d%41.txt", "odd/a//b", "odd/modèle/🦙", "odd/x&y<z>'\"",
                                      "odd/~-._"};
  for (const std::string& key : keys) net::put_object(*s3, connection, bucket / key, {});
  std::vector<std::string> listed;
  for (const auto& object : net::list_objects(*s3, connection, bucket / "odd/")) listed.push_back(object.address.key);
  std::vector<std::string> sorted = keys;
  std::sort(sorted.begin(), sorted.end());
  std::sort(listed.begin(), listed.end());
  CHECK(listed == sorted);
  for (const std::string& key : keys) net::delete_object(*s3, connection, bucket / key);
  CHECK(net::list_objects(*s3, connection, bucket / "odd/").empty());
  CHECK(!net::head_object(*s3, connection, bucket / "odd/~-._").has_value());
}

TEST_CASE_FIXTURE(Fixture, "a list has many pages") {
  for (int i = 0; i < 1'003; ++i) net::put_object(*s3, connection, bucket / qlora::concat("pages/", i), {});
  CHECK(net::list_objects(*s3, connection, bucket / "pages/").size() == 1'003);
  CHECK(net::list_objects(*s3, connection, bucket / "pages/", 1).size() == 1);
}

TEST_CASE_FIXTURE(Fixture, "faults that pass are outlived") {
  const fs::path from = file("from", 12 * mib);
  for (const char* fault : {"500", "503", "429", "slowdown", "timeout", "reset", "lost"}) {
    CAPTURE(fault);
    store().faults(qlora::concat(R"([{"method":"PUT","match":"partNumber=2","do":")", fault, R"(","times":5},)",
                                 R"({"method":"POST","match":"uploads=","do":")", fault, R"(","times":2},)",
                                 R"({"method":"POST","match":"uploadId=","do":")", fault, R"(","times":1}])"));
    put("faults/object", from);
    CHECK(lines_with(store().log(), "partNumber=2") == 6);
    store().faults("[]");
    check_same("faults/object", from);
  }
  for (const char* fault : {"500", "503", "slowdown", "cut", "lost"}) {
    CAPTURE(fault);
    store().faults(qlora::concat(R"([{"method":"GET","do":")", fault, R"(","times":5}])"));
    check_same("faults/object", from);
  }
  // An upload whose start was heard twice has one too many: the next upload of the key removes it.
  store().faults("[]");
  put("faults/object", from);
  CHECK(uploads() == 0);
}

TEST_CASE_FIXTURE(Fixture, "faults that stay end the transfer and leave nothing") {
  const fs::path from = file("from", 12 * mib);
  put("stay/object", from);
  const fs::path other = file("other", 11 * mib);
  for (const char* fault : {"503", "reset"}) {
    CAPTURE(fault);
    store().faults(qlora::concat(R"([{"method":"PUT","match":"partNumber=3","do":")", fault, R"(","times":1000}])"));
    const std::string said = refusal([&] { put("stay/object", other); });
    CHECK(has(said, "s3://bucket-1/stay/object: "));
    CHECK(has(said, "(6 tries)"));
    CHECK(lines_with(store().log(), "partNumber=3") == 6);
    store().faults("[]");
    CHECK(uploads() == 0);
    check_same("stay/object", from);  // the one before
  }
  const auto object = net::head_object(*s3, connection, bucket / "stay/object");
  for (const char* fault : {"503", "corrupt"}) {
    CAPTURE(fault);
    store().faults(qlora::concat(R"([{"method":"GET","do":")", fault, R"(","times":1000}])"));
    const std::string said = refusal([&] { net::download(*s3, {{scratch / "here", *object}}); });
    CHECK(has(said, fault == std::string("corrupt") ? "came with other bytes than its SHA-256 says" : "(6 tries)"));
    CHECK(!fs::exists(scratch / "here"));
    CHECK(std::distance(fs::directory_iterator(scratch / ""), {}) == 2);  // no temporary file
  }
}

TEST_CASE_FIXTURE(Fixture, "an object that is replaced while it is read is not mixed") {
  put("moving/object", file("from", 12 * mib));
  const auto object = net::head_object(*s3, connection, bucket / "moving/object");
  put("moving/object", file("other", 12 * mib + 1));
  CHECK(has(refusal([&] { net::download(*s3, {{scratch / "here", *object}}); }), "was replaced while it was read"));
}

TEST_CASE_FIXTURE(Fixture, "uploads that a killed process left are aborted by the next") {
  const auto answer =
      s3->request(connection, {.method = "POST", .address = bucket / "left/object", .query = {{"uploads", ""}}});
  CHECK(answer.status == 200);
  CHECK(uploads() == 1);
  put("left/object", file("from", 6 * mib));
  CHECK(uploads() == 0);
}

TEST_CASE_FIXTURE(Fixture, "a clock that is 20 minutes off is corrected") {
  for (const int seconds : {1'200, -1'200}) {
    store().faults(qlora::concat(R"([{"do":"skew","seconds":)", seconds, "}]"));
    const auto late = make();
    net::put_object(*late, connection, bucket / "clock", {});
    CHECK(lines_with(store().log(), " 403") == 1);
    CHECK(net::head_object(*late, connection, bucket / "clock").has_value());
    CHECK(lines_with(store().log(), " 403") == 1);  // not once a request
  }
}

TEST_CASE_FIXTURE(Fixture, "wrong keys are refused, and say where they come from but not what they are") {
  for (const auto& [key, secret] : {std::pair(store().key, std::string("wrong/secret")),
                                    std::pair(std::string("AKIAIOSFODNN7EXAMPLE"), store().secret)}) {
    const Environment wrong({{"AWS_ACCESS_KEY_ID", key}, {"AWS_SECRET_ACCESS_KEY", secret}});
    const auto other = make();
    try {
      net::put_object(*other, connection, bucket / "key", {});
      FAIL("it was taken");
    } catch (const qlora::Error& error) {
      const std::string said = error.what();
      CHECK(error.kind() == qlora::ErrorKind::input);
      CHECK(has(said, "does not take the credentials of the environment (AWS_ACCESS_KEY_ID)"));
      CHECK(!has(said, secret));
      CHECK(!has(said, key));
    }
  }
}

TEST_CASE_FIXTURE(Fixture, "what is not there is named") {
  const auto said = [&](const std::string& address) {
    return refusal([&] { (void)s3->request(connection, {.address = net::s3_address(address)}); });
  };
  CHECK(has(said("s3://bucket-1/nothing"), "s3://bucket-1/nothing: there is no such object"));
  CHECK(has(said("s3://no-bucket/nothing"), "there is no bucket 'no-bucket'; the store is http://127.0.0.1"));
  CHECK(has(refusal([&] { (void)net::head_object(*s3, connection, net::s3_address("s3://no-bucket/nothing")); }),
            "there is no bucket 'no-bucket'"));
}

TEST_CASE_FIXTURE(Fixture, "of two writers of a fresh object one is refused, and one whose answer was lost is not") {
  const auto put = [&](const std::string& text) {
    net::put_object(*s3, connection, bucket / "fresh", std::as_bytes(std::span(text)), true);
  };
  store().faults(R"([{"method":"PUT","match":"/fresh","do":"lost"}])");
  CHECK_NOTHROW(put("first"));
  CHECK(has(refusal([&] { put("second"); }), "/fresh: somebody else has written it meanwhile"));
  CHECK(net::head_object(*s3, connection, bucket / "fresh")->size == 5);
  net::delete_object(*s3, connection, bucket / "fresh");
}

TEST_CASE_FIXTURE(Fixture, "a web identity becomes a session") {
  scratch.write("token", "eyJhbGciOiJub25lIn0.e30.\n");
  const Environment web({{"AWS_ACCESS_KEY_ID", ""},
                         {"AWS_SECRET_ACCESS_KEY", ""},
                         {"AWS_ENDPOINT_URL_STS", store().endpoint()},
                         {"AWS_WEB_IDENTITY_TOKEN_FILE", (scratch / "token").string()},
                         {"AWS_ROLE_ARN", store().role}});
  const net::AwsPlace place = net::aws_place();
  const net::AwsCredentials found = net::AwsCredentialChain(place).get();
  CHECK(found.key_id.starts_with("ASIA"));
  CHECK(!found.token.empty());
  CHECK(found.expires.has_value());
}

TEST_CASE_FIXTURE(Fixture, "a profile's role is taken with the keys of another profile, by a request that is signed") {
  const auto config = [&](const std::string& more) {
    scratch.write("config", "[profile reader]\nrole_arn = " + store().role + "\nsource_profile = writer\n" + more);
  };
  scratch.write("credentials",
                "[writer]\naws_access_key_id = " + store().key + "\naws_secret_access_key = " + store().secret + "\n");
  const Environment role({{"AWS_ACCESS_KEY_ID", ""},
                          {"AWS_SECRET_ACCESS_KEY", ""},
                          {"AWS_PROFILE", "reader"},
                          {"AWS_CONFIG_FILE", (scratch / "config").string()},
                          {"AWS_SHARED_CREDENTIALS_FILE", (scratch / "credentials").string()},
                          {"AWS_ENDPOINT_URL_STS", store().endpoint()}});
  const auto found = [] {
    const net::AwsPlace place = net::aws_place();
    return net::AwsCredentialChain(place).get();
  };
  config("external_id = 42\nduration_seconds = 900\n");
  CHECK(found().key_id.starts_with("ASIA"));
  CHECK(!found().token.empty());
  CHECK(found().expires.has_value());
  CHECK(has(found().source, "the profile 'reader' of ~/.aws as " + store().role));

  config("mfa_serial = arn:aws:iam::1:mfa/x\n");
  CHECK(has(refusal([&] { (void)found(); }), "mfa_serial is asked for at a terminal"));
  config("");
  scratch.write("credentials", "[writer]\naws_access_key_id = " + store().key + "\naws_secret_access_key = wrong\n");
  const std::string refused = refusal([&] { (void)found(); });
  CHECK(has(refused, "with status 403: SignatureDoesNotMatch"));
  CHECK(!has(refused, "wrong"));
  scratch.write("credentials", "[another]\n");
  CHECK(has(refusal([&] { (void)found(); }), "its source_profile 'writer' has no keys"));
}

TEST_CASE_FIXTURE(Fixture, "a request to stop ends a transfer, and nothing stays") {
  net::S3Options options = s3->options();
  std::atomic<bool> stop = false;
  options.stop = [&] { return stop.load(); };
  net::S3 stoppable(net::aws_place(), options);
  const fs::path from = file("from", 23 * mib);
  const auto halfway = [&](std::int64_t done) { stop = done > 5 * mib; };
  try {
    net::upload(stoppable, {{from, {.address = bucket / "stopped", .etag = {}}}}, [&](std::int64_t done) {
      halfway(done);
      if (stop) throw qlora::Error("stopped", qlora::ErrorKind::interrupted);
    });
    FAIL("it went on");
  } catch (const qlora::Error& error) {
    CHECK(error.kind() == qlora::ErrorKind::interrupted);
  }
  CHECK(uploads() == 0);
  CHECK(!net::head_object(*s3, connection, bucket / "stopped").has_value());
}
