// s3_store.hpp — a real store of S3 for tests, and the faults of the proxy before it: tests/net/s3_store.py.
#pragma once

#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "qlora/net/aws_profile.hpp"
#include "qlora/net/exchange.hpp"
#include "qlora/net/s3.hpp"
#include "qlora/net/s3_objects.hpp"
#include "support/environment.hpp"
#include "support/scratch.hpp"
#include "support/web_server.hpp"

namespace test {

/// One store for all cases of a test. Where its packages are not here, the test ends and CTest counts it as skipped.
struct Store {
  Server server{"tests/net/s3_store.py"};
  std::string port, key, secret, role;

  Store() {
    if (server.port.starts_with("none:")) {
      std::printf("skipped: no store of S3 (%s); pip install 'moto[server]', and QLORA_S3_PYTHON names its python\n",
                  server.port.c_str());
      std::fflush(stdout);
      std::_Exit(77);
    }
    std::istringstream(server.port) >> port >> key >> secret >> role;
  }
  [[nodiscard]] std::string endpoint() const { return "http://127.0.0.1:" + port; }
  /// What the environment says to somebody who may use it.
  [[nodiscard]] std::vector<std::pair<std::string, std::string>> environment(const std::string& home) const {
    auto all = without_aws(home);
    for (const auto& [name, value] : {std::pair<std::string, std::string>{"AWS_ACCESS_KEY_ID", key},
                                      {"AWS_SECRET_ACCESS_KEY", secret},
                                      {"AWS_ENDPOINT_URL_S3", endpoint()}})
      all.emplace_back(name, value);
    return all;
  }
  /// Tells the proxy what goes wrong from now on: a JSON list.
  void faults(const std::string& rules) const {
    qlora::net::Connection connection(own());
    qlora::net::Exchange request;
    request.url = endpoint() + "/faults";
    request.method = "POST";
    request.body = std::as_bytes(std::span(rules));
    REQUIRE(connection.exchange(request).status == 200);
  }
  /// The requests since then, one a line.
  [[nodiscard]] std::string log() const {
    qlora::net::Exchange request;
    request.url = endpoint() + "/log";
    return qlora::net::Connection(own()).exchange(request).body;
  }
};

inline const Store& store() {
  static const Store one;
  return one;
}

/// A bucket of the store, for the library and, by the environment, for the program.
struct InBucket {
  Scratch scratch;
  Environment environment{store().environment((scratch / "").string())};
  Environment cache{{{"XDG_CACHE_HOME", (scratch / "cache").string()}, {"AWS_REGION", "us-east-1"}}};
  qlora::net::S3 s3{qlora::net::aws_place()};
  qlora::net::Connection connection = s3.connect();
  qlora::net::S3Address bucket;

  explicit InBucket(const std::string& name) : bucket(qlora::net::s3_address("s3://" + name)) {
    store().faults("[]");
    (void)s3.request(connection, {.method = "PUT", .address = bucket});
  }
  /// The keys that begin so, each with a blank behind it.
  [[nodiscard]] std::string names(const std::string& prefix) {
    std::string all;
    for (const auto& object : qlora::net::list_objects(s3, connection, bucket / prefix))
      all += object.address.key + " ";
    return all;
  }
};

}  // namespace test
