// s3_test.cpp — what S3 needs before a store is asked: addresses, signatures (beside botocore's), profiles, credentials
// and XML. The store itself: s3_store_test.cpp.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "qlora/io/json.hpp"
#include "qlora/io/sha256.hpp"
#include "qlora/net/aws_credentials.hpp"
#include "qlora/net/aws_profile.hpp"
#include "qlora/net/aws_signature.hpp"
#include "qlora/net/exchange.hpp"
#include "qlora/net/percent.hpp"
#include "qlora/net/s3_address.hpp"
#include "qlora/net/s3_bytes.hpp"
#include "qlora/net/s3_transfer.hpp"
#include "qlora/net/xml.hpp"
#include "support/environment.hpp"
#include "support/refusal.hpp"
#include "support/scratch.hpp"
#include "support/web_server.hpp"

namespace net = qlora::net;
using test::Environment;
using test::refusal;
using test::Scratch;

namespace {

const std::string& metadata() {
  static const Server server("tests/net/aws_metadata.py");
  static const std::string base = "http://127.0.0.1:" + server.port;
  return base;
}

using Variables = std::vector<std::pair<std::string, std::string>>;

Variables with(Variables all, const Variables& more) {
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

}  // namespace

TEST_CASE("addresses") {
  const net::S3Address whole = net::s3_address("s3://bucket/a/b c/é");
  CHECK(whole.bucket == "bucket");
  CHECK(whole.key == "a/b c/é");
  CHECK(whole.text() == "s3://bucket/a/b c/é");
  CHECK((whole / "x").key == "a/b c/é/x");
  CHECK((net::s3_address("s3://bucket") / "x").text() == "s3://bucket/x");
  CHECK((net::s3_address("s3://bucket/a/") / "x").key == "a/x");
  CHECK(!net::is_s3_address("s3:/bucket/key"));
  for (const char* bad : {"s3://", "s3:///key", "s3://ab/key", "s3://a b/key", "s3://a..b/key", "s3://.abc/key",
                          "s3://arn:aws:s3:eu-west-1:1:accesspoint/x/key", "https://bucket/key"})
    CHECK(refusal([&] { (void)net::s3_address(bad); }).find(bad) != std::string::npos);
  CHECK(!refusal([&] { (void)net::s3_address("s3://bucket/" + std::string(1025, 'k')); }).empty());
}

TEST_CASE("a request has the signature that botocore gives it, and is sent as it was signed") {
  const qlora::Json page = qlora::read_json_object(QLORA_SOURCE_DIR "/tests/data/s3_signatures.json");
  net::HttpOptions options = own();
  net::Connection connection(options);
  CHECK(page["requests"].size() == 26);
  for (const qlora::Json& request : page["requests"]) {
    CAPTURE(request["name"].get<std::string>());
    net::QueryParts query;
    for (const qlora::Json& part : request["query"]) query.emplace_back(part[0], part[1]);
    const std::string method = request["method"];
    net::Exchange exchange;
    exchange.url = net::canonical_url(metadata(), request["path"].get<std::string>(), query);
    exchange.head = method == "HEAD";
    if (method != "HEAD" && method != "GET") exchange.method = method;
    for (const qlora::Json& line : request["headers"]) exchange.headers.push_back(line);
    exchange.headers.push_back("host: " + page["host"].get<std::string>());
    exchange.headers.push_back("x-amz-content-sha256: " + request["sha256"].get<std::string>());
    exchange.headers.push_back("x-amz-date: " + page["date"].get<std::string>());
    exchange.as_is = true;
    const std::string wanted = request["authorization"];
    exchange.headers.push_back(net::aws_authorization(method, exchange.url, exchange.headers,
                                                      {"us-east-1", "s3", page["key"], page["secret"]}));
    CHECK(exchange.headers.back() == "Authorization: " + wanted);
    const net::ExchangeAnswer answer = connection.exchange(exchange);
    CHECK(has(method == "HEAD" ? answer.header("x-authorization") : answer.body, wanted));
    const std::string line = qlora::concat(method, " ", exchange.url.substr(metadata().size()), "\n");
    if (method != "HEAD") CHECK(answer.body.starts_with(line));
  }
}

TEST_CASE("percent-encoding goes both ways") {
  CHECK(net::percent_encoded("a b/é~", "/") == "a%20b/%C3%A9~");
  CHECK(net::percent_decoded("a%20b/%C3%A9~") == "a b/é~");
  CHECK(net::percent_decoded("100%") == "100%");
  CHECK(net::percent_decoded("%4") == "%4");
  CHECK(net::percent_decoded("%zz+%41") == "%zz+A");
}

TEST_CASE("base64 and MD5") {  // RFC 4648, 10; RFC 1321, A.5
  CHECK(qlora::base64("") == "");
  CHECK(qlora::base64("f") == "Zg==");
  CHECK(qlora::base64("fo") == "Zm8=");
  CHECK(qlora::base64("foobar") == "Zm9vYmFy");
  CHECK(qlora::Md5().hex() == "d41d8cd98f00b204e9800998ecf8427e");
  CHECK(qlora::Md5().update("message digest").hex() == "f96b697d7cb7938d525a2f31aaf161d0");
}

TEST_CASE("XML") {
  const net::XmlElement root = net::parse_xml(
      "<?xml version=\"1.0\"?><r xmlns='http://x/'><Key>a &amp; &#233;<![CDATA[<b>]]></Key><Empty/><P><Q>1</Q></P></r>",
      "test");
  CHECK(root.name == "r");
  CHECK(root.text_of("Key") == "a & é<b>");
  CHECK(root.find("Empty") != nullptr);
  CHECK(root.text_of("Empty").empty());
  CHECK(root.find("P")->text_of("Q") == "1");
  CHECK(root.find("Q") == nullptr);
  for (const char* bad : {"", "no", "<a>", "<a></b>", "{}", "<!DOCTYPE html><p>page"})
    CHECK(has(refusal([&] { (void)net::parse_xml(bad, "here"); }), "here: the answer is no XML"));
  std::string deep;
  for (int i = 0; i < 100'000; ++i) deep += "<a>";
  CHECK(!refusal([&] { (void)net::parse_xml(deep, "here"); }).empty());
  // Entities of a document are not put in, whatever they would grow to, and no file is read.
  const net::XmlElement odd = net::parse_xml(
      "<!DOCTYPE r [<!ENTITY a 'aaaa'><!ENTITY f SYSTEM 'file:///etc/passwd'>]><r><K>&a;&f;</K></r>", "test");
  CHECK(odd.text_of("K").empty());
}

TEST_CASE("profiles") {
  const Scratch scratch;
  scratch.write("config",
                "# a comment\n[default]\nregion = eu-central-1 ; another\n[profile two]\nRegion=eu-west-3\ns3 =\n"
                "  addressing_style = virtual\nendpoint_url = http://store:9000/\n[services all]\ns3 = \n"
                "  endpoint_url = https://service.example\n[profile three]\nservices = all\n");
  scratch.write("credentials", "[two]\naws_access_key_id = AKIATWO\naws_secret_access_key = se/cret+two\n");
  const Variables files = with(test::without_aws((scratch / "").string()),
                               {{"AWS_CONFIG_FILE", (scratch / "config").string()},
                                {"AWS_SHARED_CREDENTIALS_FILE", (scratch / "credentials").string()}});
  {
    const Environment environment(files);
    const net::AwsPlace place = net::aws_place();
    CHECK(place.profile == "default");
    CHECK(place.region == "eu-central-1");
    CHECK(place.s3_endpoint.empty());
    CHECK(!place.path_style);
    net::AwsCredentialChain chain(place);
    CHECK(has(refusal([&] { (void)chain.get(); }), "no credentials for S3"));
  }
  {
    const Environment environment(with(files, {{"AWS_PROFILE", "two"}}));
    const net::AwsPlace place = net::aws_place();
    CHECK(place.region == "eu-west-3");
    CHECK(place.s3_endpoint == "http://store:9000");
    CHECK(!place.path_style);
    net::AwsCredentialChain chain(place);
    CHECK(chain.get().key_id == "AKIATWO");
    CHECK(chain.get().secret == "se/cret+two");
    CHECK(chain.get().source == "the profile 'two' of ~/.aws");
  }
  {
    const Environment environment(with(files, {{"AWS_PROFILE", "three"}, {"AWS_REGION", "us-west-2"}}));
    CHECK(net::aws_place().s3_endpoint == "https://service.example");
    CHECK(net::aws_place().path_style);
    CHECK(net::aws_place().region == "us-west-2");
    const Environment other(Variables{{"AWS_ENDPOINT_URL", "http://a"}, {"AWS_ENDPOINT_URL_S3", "http://b"}});
    CHECK(net::aws_place().s3_endpoint == "http://b");
    CHECK(net::aws_place().sts_endpoint == "http://a");
    const Environment wrong(Variables{{"AWS_ENDPOINT_URL_S3", "store:9000"}});
    CHECK(has(refusal([] { (void)net::aws_place(); }), "AWS_ENDPOINT_URL_S3"));
  }
  {
    const Environment environment(with(files, {{"AWS_PROFILE", "four"}}));
    CHECK(has(refusal([] { (void)net::aws_place(); }), "AWS_PROFILE is 'four', and neither"));
  }
  scratch.write("credentials", "[two]\naws_secret_access_key hidden\n");
  const Environment environment(files);
  const std::string said = refusal([] { (void)net::aws_place(); });
  CHECK(has(said, "credentials:2: neither"));
  CHECK(!has(said, "hidden"));
}

TEST_CASE("credentials are looked for in the order of the SDKs") {
  const Scratch scratch;
  std::filesystem::create_directory(scratch / ".aws");
  scratch.write(".aws/credentials", "[default]\naws_access_key_id = AKIAFILE\naws_secret_access_key = filesecret\n");
  const auto found = [](const Variables& more) {
    const Environment environment(more);
    const net::AwsPlace place = net::aws_place();
    return net::AwsCredentialChain(place).get();
  };
  const Variables none = test::without_aws((scratch / "nowhere").string());
  const Variables file = test::without_aws((scratch / "").string());
  const Variables container{{"AWS_CONTAINER_CREDENTIALS_FULL_URI", metadata() + "/container"},
                            {"AWS_CONTAINER_AUTHORIZATION_TOKEN", "container-token"}};
  const Variables instance{{"AWS_EC2_METADATA_DISABLED", ""}, {"AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata()}};
  const Variables environment{{"AWS_ACCESS_KEY_ID", "AKIAENV"}, {"AWS_SECRET_ACCESS_KEY", "s"}};
  CHECK(found(with(with(with(file, container), instance), environment)).key_id == "AKIAENV");
  CHECK(found(with(with(file, container), instance)).key_id == "AKIAFILE");
  const net::AwsCredentials passing = found(with(with(none, container), instance));
  CHECK(passing.key_id == "ASIAPASSING");
  CHECK(passing.token == "passing-token");
  CHECK(has(passing.source, "the container"));
  CHECK(passing.expires.has_value());
  CHECK(has(found(with(none, instance)).source, "the instance's role"));

  const auto refused = [&](const Variables& more) { return refusal([&] { (void)found(with(none, more)); }); };
  CHECK(has(refused({{"AWS_ACCESS_KEY_ID", "AKIAENV"}}), "AWS_SECRET_ACCESS_KEY is not"));
  CHECK(has(refused({{"AWS_CONTAINER_CREDENTIALS_FULL_URI", metadata() + "/container"}}), "status 401"));
  // Neither TLS nor an address that AWS gives containers: nothing is sent.
  for (const char* far : {"http://example.org/x", "http://127.0.0.1@example.org/x", "http://169.254.169.254/x"})
    CHECK(has(refused({{"AWS_CONTAINER_CREDENTIALS_FULL_URI", far}}), "neither https:"));
}

TEST_CASE("credentials that end are asked for again") {
  const Scratch scratch;
  const Environment environment(with(test::without_aws((scratch / "").string()),
                                     {{"AWS_CONTAINER_CREDENTIALS_FULL_URI", metadata() + "/expired"}}));
  const net::AwsPlace place = net::aws_place();
  net::AwsCredentialChain chain(place);
  const std::string first = chain.get().token;
  CHECK(chain.get().token != first);
}

TEST_CASE("pieces are asked for in ranges of 8 MiB, near ones together, and come where they belong") {
  std::vector<std::byte> bytes(std::size_t{20} << 20);
  std::vector<std::byte> small(7), near(100), far(3);
  const std::vector<qlora::BytePiece> pieces{
      {(25 << 20) + 65'535, near}, {1000, bytes}, {25 << 20, small}, {30 << 20, far}};
  const auto ranges = net::detail::ranges_of(pieces);
  REQUIRE(ranges.size() == 5);
  const std::uint64_t begins[] = {1000, 1000 + (8 << 20), 1000 + (16 << 20), 25 << 20, 30 << 20};
  const std::uint64_t ends[] = {begins[1], begins[2], 1000 + (20 << 20), (25 << 20) + 65'635, (30 << 20) + 3};
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    CHECK(ranges[i].begin == begins[i]);
    CHECK(ranges[i].end == ends[i]);
    net::detail::S3Scatter scatter(ranges[i]);
    for (std::uint64_t at = ranges[i].begin; at < ranges[i].end; at += 1000) {  // as bytes come, in pieces of their own
      std::string answer;
      for (std::uint64_t b = at; b < std::min(at + 1000, ranges[i].end); ++b) answer += static_cast<char>(b * 7 / 5);
      scatter.take(answer);
    }
  }
  for (const qlora::BytePiece& piece : pieces) {
    bool same = true;
    for (std::size_t i = 0; i < piece.into.size(); ++i)
      same = same && piece.into[i] == static_cast<std::byte>((piece.offset + i) * 7 / 5);
    CHECK(same);
  }
}

TEST_CASE("parts are as large as their number allows") {
  net::S3Options options;
  constexpr std::int64_t mib = 1 << 20;
  CHECK(net::part_bytes_of(1, options) == 16 * mib);
  CHECK(net::part_bytes_of(std::int64_t{100'000} * mib, options) == 16 * mib);
  const std::int64_t large = std::int64_t{5} << 40;  // the most that an object has
  CHECK(net::part_bytes_of(large, options) % mib == 0);
  CHECK((large + net::part_bytes_of(large, options) - 1) / net::part_bytes_of(large, options) <= 10'000);
  options.part_bytes = 1;
  CHECK(net::part_bytes_of(1, options) == 5 * mib);
}
