// s3_copy.cpp — copies a file to an object, or an object to a file: what tests/cloud/s3.py compares with `aws s3 cp`.
#include <cstdio>
#include <string>

#include "qlora/error.hpp"
#include "qlora/net/aws_profile.hpp"
#include "qlora/net/s3.hpp"
#include "qlora/net/s3_objects.hpp"
#include "qlora/net/s3_transfer.hpp"

int main(int argc, char** argv) {
  namespace net = qlora::net;
  try {
    if (argc != 3) throw qlora::Error("s3_copy FROM TO, one of which is s3://BUCKET/KEY", qlora::ErrorKind::usage);
    const std::string from = argv[1];
    const std::string to = argv[2];
    net::S3 s3(net::aws_place());
    if (net::is_s3_address(to)) {
      net::upload(s3, {{from, {.address = net::s3_address(to), .etag = {}}}});
      return 0;
    }
    net::Connection connection = s3.connect();
    const auto object = net::head_object(s3, connection, net::s3_address(from));
    if (!object) throw qlora::Error(from + ": there is no such object");
    net::download(s3, {{to, *object}});
    return 0;
  } catch (const qlora::Error& error) {
    std::fprintf(stderr, "s3_copy: %s\n", error.what());
    return static_cast<int>(error.kind());
  }
}
