// Strict JSON: what two readers could read differently is refused, and every message names file and key.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/io/json.hpp"

#include <doctest/doctest.h>

#include <random>
#include <string>

using namespace qlora;

namespace {
std::string verdict(const std::string& text) {
  try {
    (void)parse_json(text, "f.json");
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}
}  // namespace

TEST_CASE("well-formed text is read") {
  const Json value = parse_json(R"( {"a": [1, -2, 3.5e2, "\u00e9\ud83d\ude00"], "b": {"a": null}} )", "f.json");
  CHECK(value["a"][1] == -2);
  CHECK(value["a"][2] == 350.0);
  CHECK(value["a"][3] == "\xc3\xa9\xf0\x9f\x98\x80");
  CHECK(value["b"]["a"].is_null());
}

TEST_CASE("what is refused, and why") {
  const std::pair<std::string, const char*> cases[] = {
      {R"({"a":1,"a":2})", "the key 'a' stands twice"},
      {R"({"x":{"a":1,"\u0061":2}})", "the key 'a' stands twice"},
      {std::string(65, '[') + std::string(65, ']'), "deeper than 64"},
      {std::string(1'000'000, '['), "deeper than 64"},
      {std::string("{}\0{}", 5), "NUL"},
      {"\xEF\xBB\xBF{}", "byte order mark"},
      {"{} {}", "not valid JSON"},
      {"", "not valid JSON"},
      {"{\"a\":\"\xff\"}", "not valid JSON"},
      {"{\"a\":\"\xc0\xaf\"}", "not valid JSON"},
      {R"({"a":"\ud800"})", "not valid JSON"},
      {"{\"a\":\"\n\"}", "not valid JSON"},
      {R"({"a":01})", "not valid JSON"},
      {R"({"a":NaN})", "not valid JSON"},
      {R"({"a":1e999})", "not valid JSON"},
      {R"({"a":1,})", "not valid JSON"},
      {R"({a:1})", "not valid JSON"},
      {"{} // x", "not valid JSON"},
  };
  for (const auto& [text, reason] : cases) {
    const std::string said = verdict(text);
    CHECK_MESSAGE(said.starts_with("f.json: "), said);
    CHECK_MESSAGE(said.find(reason) != std::string::npos, said);
    CHECK(said.size() < 600);
    CHECK(said.find('\n') == std::string::npos);
  }
  CHECK(verdict(std::string(64, '[') + std::string(64, ']')).empty());
  CHECK(verdict(R"({"a":{"b":1},"b":{"b":1}})").empty());
}

TEST_CASE("a message says behind which key the text is no JSON") {
  for (const std::string value : {"NaN", "1e400", "01", "tru", "'x'", R"("\ud800")", ""}) {
    INFO(value);
    CHECK(verdict(R"({"a":1,"hot":)" + value + "}").find("after the key 'hot'") != std::string::npos);
  }
  CHECK(verdict("NaN").find("after the key") == std::string::npos);
  CHECK(verdict(R"({"hot":)" + std::string(100, '[')).find("levels after the key 'hot'") != std::string::npos);
}

TEST_CASE("a text has at most so many values, of any kind") {
  const std::string text = R"({"a":[1,-2,3.5,true,null,"x",{}],"b":0})";  // an object, a list, and eight in them
  CHECK(parse_json(text, "f", 8, 10).size() == 2);
  CHECK_THROWS_WITH_AS((void)parse_json(text, "f", 8, 9), "f: has more than 9 values after the key 'b'", Error);
  CHECK_THROWS_WITH_AS((void)parse_json(text, "f", 8, 2), "f: has more than 2 values after the key 'a'", Error);
}

TEST_CASE("getters name file and key, and bound numbers") {
  const Json o = parse_json(R"({"n":7,"big":18446744073709551615,"f":1.5,"i":1.0,"s":"x","b":true,"z":null})", "f");
  CHECK(json_int(o, "n", "f", 0, 7) == 7);
  CHECK(json_int_or(o, "z", "f", 0, 7, 3) == 3);
  CHECK(json_int_or(o, "absent", "f", 0, 7, 3) == 3);
  CHECK(json_number(o, "n", "f", 0, 10) == 7.0);
  CHECK(json_number_or(o, "f", "f", 0, 10, 0) == 1.5);
  CHECK(json_string(o, "s", "f") == "x");
  CHECK(json_bool_or(o, "b", "f", false));
  CHECK_THROWS_WITH_AS((void)json_int(o, "n", "f", 0, 6), "f: 'n' must be an integer from 0 to 6, not 7", Error);
  CHECK_THROWS_AS((void)json_int(o, "big", "f", INT64_MIN, INT64_MAX), Error);
  CHECK_THROWS_AS((void)json_int(o, "i", "f", 0, 7), Error);
  CHECK_THROWS_AS((void)json_int(o, "s", "f", 0, 7), Error);
  CHECK_THROWS_AS((void)json_int(o, "b", "f", 0, 7), Error);
  CHECK_THROWS_WITH_AS((void)json_int(o, "z", "f", 0, 7), "f: the key 'z' is missing", Error);
  CHECK_THROWS_AS((void)json_number(o, "f", "f", 2, 10), Error);
  CHECK_THROWS_AS((void)json_string(o, "n", "f"), Error);
  CHECK_THROWS_AS((void)json_bool_or(o, "n", "f", false), Error);
  CHECK_THROWS_AS((void)json_text(Json("\xff")), Error);
  CHECK(Json(shortest_decimal(1e-5F)).dump() == "1e-05");
  CHECK(Json(shortest_decimal(0.1F)).dump() == "0.1");
  CHECK(Json(shortest_decimal(10000.0F)).dump() == "10000.0");
}

TEST_CASE("cut at every length and 2,000 flipped bits: a value or a message") {
  const std::string text =
      R"({"metadata":{"total_size":123},"weight_map":{"a.weight":"m-1.safetensors","b":[1,2.5,true]}})";
  for (std::size_t length = 0; length < text.size(); ++length) CHECK_FALSE(verdict(text.substr(0, length)).empty());
  std::mt19937 random(7);
  for (int i = 0; i < 2000; ++i) {
    std::string bytes = text;
    const std::size_t at = random() % bytes.size();
    bytes[at] = static_cast<char>(bytes[at] ^ (1 << (random() % 8)));
    const std::string said = verdict(bytes);
    CHECK((said.empty() || said.starts_with("f.json: ")));
  }
}
