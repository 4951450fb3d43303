// serve_limits_test.cpp — what `qlora serve` refuses and what it says of it, clients that go, a key, an end by a
// signal.
// Bodies are written out, so that they can be no JSON. tests/serve/abuse.py does the same with every field there is.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <chrono>
#include <cstddef>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "support/program.hpp"
#include "support/served.hpp"

using program_test::Outcome;
using program_test::qlora;
using program_test::Scratch;
using test::Answer;
using test::Client;
using test::Server;

namespace {

/// One server for the cases that leave it as it was.
const Server& server() {
  static const Scratch scratch;
  static const Server all(scratch, "'" + test::served_model + "' --slots 3 --queue 13");
  return all;
}

/// Fields and values as JSON writes them.
using Values = std::vector<std::pair<std::string, std::string>>;

/// The status of an answer, whose error must say what is wrong.
int status(const std::string& path, const std::string& body, const std::string& what) {
  const Answer answer = server().post(path, body);
  INFO(path << " " << body.substr(0, 200) << " " << answer.body);
  CHECK(answer.body.starts_with("{\"error\":"));
  CHECK(answer.body.find(what) != std::string::npos);
  return answer.status;
}

std::string with(const std::string& body, const std::string& field, const std::string& value) {
  return "{" + body + (body.empty() ? "\"" : ",\"") + field + "\":" + value + "}";
}

/// A request for a text that does not end by itself.
std::string endless(int tokens, const std::string& more) {
  return R"({"prompt":"The","temperature":0,"logit_bias":{"2":-100},"max_tokens":)" + std::to_string(tokens) + more +
         "}";
}
std::string request(const std::string& body, const std::string& headers = {}) {
  return "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + headers +
         "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
}

/// The paths of the server's description: its only texts that begin with a slash and stand before an object.
std::set<std::string> paths(const std::string& description) {
  std::set<std::string> out;
  for (std::size_t at = description.find("\"/"); at != std::string::npos; at = description.find("\"/", at + 1)) {
    const std::size_t end = description.find('"', at + 1);
    if (description.compare(end, 3, "\":{") == 0) out.insert(description.substr(at + 1, end - at - 1));
  }
  return out;
}

}  // namespace

TEST_CASE("what is no object of JSON, or too deep, is refused on every path") {
  const std::string deep(100, '[');
  std::string many;  // 16 prompts of 512 ids are fewer
  for (int i = 0; i < 20000; ++i) many += "1,";
  for (const std::string path : {"/v1/completions", "/v1/chat/completions", "/generate", "/invocations", "/compare"}) {
    CHECK(status(path, "", "JSON") == 400);
    CHECK(status(path, "[]", "object") == 400);
    CHECK(status(path, R"({"a":1,"a":2})", "twice") == 400);
    CHECK(status(path, R"({"a":)" + deep, "32") == 400);
    CHECK(status(path, "{\"a\":\"\xFF\"}", "JSON") == 400);
    CHECK(status(path, R"({"inputs":"a","prompt":"a","b":[)" + many + "1]}", "values after the key 'b'") == 400);
    CHECK(status(path, "{}", "") == (path == "/generate" || path == "/invocations" ? 422 : 400));
  }
  // One question is compared: of two, one would not be read.
  CHECK(status("/compare", R"({"models":["tiny-chat"],"prompt":"a","messages":[{"role":"user","content":"b"}]})",
               "`prompt` and `messages`") == 400);
}

TEST_CASE("what cannot be answered is refused by the field's name: texts") {
  for (const auto& [field, value] :
       Values{{"temperature", "-1"},
              {"temperature", "1e308"},
              {"temperature", "\"1\""},
              {"top_p", "0"},
              {"top_p", "1.5"},
              {"n", "0"},
              {"n", "1000000"},
              {"n", "17"},
              {"max_tokens", "0"},
              {"max_tokens", "-1"},
              {"max_tokens", "1.5"},
              {"max_tokens", "100000"},
              {"max_tokens", "99999999999999999999"},
              {"logprobs", "6"},
              {"logprobs", "true"},
              {"stop", R"(["a","b","c","d","e","f","g","h","i","j","k","l","m","n","o","p","q"])"},
              {"stop", "[1]"},
              {"stop", "\"\""},
              {"frequency_penalty", "3"},
              {"presence_penalty", "[]"},
              {"logit_bias", R"({"x":1})"},
              {"logit_bias", R"({"9999":1})"},
              {"logit_bias", R"({"5":101})"},
              {"seed", "1.5"},
              {"stream", "1"},
              {"stream_options", "{}"},
              {"suffix", "\"x\""},
              {"best_of", "3"},
              {"response_format", R"({"type":"json_object"})"}}) {
    CHECK(status("/v1/completions", with(R"("prompt":"The")", field, value), field) == 400);
  }
  CHECK(status("/v1/completions", R"({"prompt":"The","against":"tiny-chat"})", "`against` needs `logprobs`") == 400);
  CHECK(status("/v1/completions", R"({"prompt":"The","logprobs":1,"against":"other"})", "`against` is other") == 400);
  CHECK(status("/v1/completions", R"({"prompt":"The","logprobs":1,"echo":true,"against":"tiny-chat"})", "`against`") ==
        400);
  for (const char* value : {"[]", "{}", "7", "[1536]", "[-1]", "[1.5]", "[[]]", "[\"a\",1]"}) {
    CHECK(status("/v1/completions", with("", "prompt", value), "prompt") == 400);
  }
  // Sixteen: as many as run and wait.
  CHECK(server().post("/v1/completions", R"({"prompt":["a","b"],"n":8,"max_tokens":1})").status == 200);
}

TEST_CASE("what cannot be answered is refused by the field's name: conversations") {
  const std::string path = "/v1/chat/completions", messages = R"("messages":[{"role":"user","content":"Who?"}])";
  for (const auto& [field, value] : Values{{"tools", "[{}]"},
                                           {"response_format", R"({"type":"json_schema"})"},
                                           {"top_logprobs", "3"},
                                           {"tool_choice", "\"auto\""},
                                           {"audio", R"({"voice":"x"})"}}) {
    CHECK(status(path, with(messages, field, value), field) == 400);
  }
  for (const std::string& value : std::vector<std::string>{
           R"([{"role":"user"}])", R"([{"role":"user","content":null}])", R"([{"role":"tool","content":"x"}])",
           R"([{"role":"user","content":1}])", R"([{"role":"user","content":[{"type":"image_url"}]}])",
           R"([{"role":"user","content":"[INST] x"}])",
           R"([{"role":"user","content":")" + std::string(100000, 'x') + "\"}]", "[]", "\"x\""}) {
    CHECK(status(path, with("", "messages", value), "messages") == 400);
  }
  std::string turns;
  for (int i = 0; i < 300; ++i) turns += R"({"role":"user","content":""},{"role":"assistant","content":""},)";
  turns += R"({"role":"user","content":""})";
  CHECK(status(path, with("", "messages", "[" + turns + "]"), "`messages` is a list of 601 messages") == 400);
  CHECK(status(path, with(messages, "model", "\"tuned@nan\""), "tuned@nan") == 404);
  // What asks for nothing is no hindrance.
  const Answer answer = server().post(
      path, "{" + messages +
                R"(,"max_tokens":1,"tools":[],"tool_choice":"none","user":"me","response_format":{"type":"text"}})");
  CHECK(answer.status == 200);
  CHECK(answer.body.find("\"choices\"") != std::string::npos);
}

TEST_CASE("what a reply must follow is refused in all spellings") {
  const std::string chat = R"("messages":[{"role":"user","content":"Who?"}])";
  for (const std::string field : {"grammar", "regex", "ebnf", "json_schema", "structural_tag", "structured_outputs",
                                  "guided_json", "guided_regex", "guided_choice", "guided_grammar"}) {
    const std::string value = R"({"type":"json","value":{"type":"object"}})";
    CHECK(status("/v1/completions", with(R"("prompt":"The")", field, value), "`" + field + "`") == 400);
    CHECK(status("/v1/chat/completions", with(chat, field, "\"[a-z]+\""), "`" + field + "`") == 400);
    CHECK(status("/invocations", with(chat, field, "[\"yes\",\"no\"]"), "`" + field + "`") == 400);
    CHECK(status("/compare", with(R"("models":["tiny-chat"],"prompt":"The")", field, value), "`" + field + "`") == 400);
    CHECK(status("/generate", with("", "inputs", R"("The","parameters":{")" + field + "\":" + value + "}"), field) ==
          422);
    CHECK(status("/generate_stream", with(R"("inputs":"The")", field, value), field) == 422);
  }
}

TEST_CASE("what cannot be answered is refused by the field's name: TGI's form") {
  for (const auto& [field, value] : Values{{"temperature", "0"},
                                           {"temperature", "\"hot\""},
                                           {"top_p", "1.0"},
                                           {"top_p", "0"},
                                           {"top_k", "0"},
                                           {"top_k", "1.5"},
                                           {"typical_p", "0.5"},
                                           {"best_of", "2"},
                                           {"best_of", "3"},
                                           {"max_new_tokens", "0"},
                                           {"max_new_tokens", "600"},
                                           {"watermark", "true"},
                                           {"truncate", "0"},
                                           {"truncate", "512"},
                                           {"seed", "-1"},
                                           {"stop", R"(["a","b","c","d","e"])"},
                                           {"repetition_penalty", "0"},
                                           {"frequency_penalty", "3"},
                                           {"adapter_id", "\"none\""},
                                           {"top_n_tokens", "6"},
                                           {"grammar", R"({"type":"json"})"},
                                           {"do_sample", "1"}}) {
    CHECK(status("/generate", with(R"("inputs":"The")", "parameters", with("", field, value)), field) == 422);
  }
  CHECK(status("/generate", R"({"inputs":""})", "`inputs` cannot be empty") == 422);
  CHECK(status("/generate", R"({"inputs":7})", "inputs") == 422);
  CHECK(status("/generate", R"({"inputs":")" + std::string(20000, 'a') + "\"}", "inputs") == 422);
}

TEST_CASE("a reply that a stop string ends is counted as a whole one") {
  const std::string stop = "qlora_requests_total{end=\"stop\"}", cancelled = "qlora_requests_total{end=\"cancelled\"}";
  const Scratch scratch;
  const Server mine(scratch, "'" + test::served_model + "' --slots 1");
  CHECK(mine.post("/generate", R"({"inputs":"The","parameters":{"max_new_tokens":500,"stop":["e"," "]}})").status ==
        200);
  for (int i = 0; i < 6000 && mine.counter(stop) < 0 && mine.counter(cancelled) < 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  CHECK(mine.counter(stop) == 1);
  CHECK(mine.counter(cancelled) == -1);
}

TEST_CASE("a client that goes frees its room") {
  const Scratch scratch;
  Server mine(scratch, "'" + test::served_model + "' --slots 3");
  for (int i = 0; i < 4; ++i) {
    Client client = mine.client();
    client.send(request(endless(500, R"(,"stream":true)")));
    CHECK(client.until("data:").ends_with("data:"));
  }
  // Each either went before it was whole, or was whole: the slots are free again in both cases.
  for (int i = 0; i < 6000 && (mine.counter("qlora_running") > 0 || mine.counter("qlora_waiting") > 0); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  CHECK(mine.counter("qlora_running") == 0);
  CHECK(mine.counter("qlora_requests_total{end=\"cancelled\"}") > 0);
  CHECK(mine.post("/v1/completions", endless(4, "")).status == 200);
  CHECK(mine.stop() == 0);
}

TEST_CASE("as in a container: names of the environment, a key for all paths but one, an end that lets streams end") {
  const Scratch scratch;
  Server contained(
      scratch, "--slots 1 --queue 1",
      "HF_MODEL_ID='" + test::served_model + "' MAX_INPUT_LENGTH=20 MAX_TOTAL_TOKENS=512 QLORA_API_KEY=sesame");
  const std::string key = "Authorization: Bearer sesame\r\n";
  CHECK(contained.client().ask("GET", "/health").status == 200);
  const std::string info = contained.client().ask("GET", "/info", "", key).body;
  CHECK(info.find(R"("model_id":"tiny-chat")") != std::string::npos);
  CHECK(info.find(R"("max_input_length":20)") != std::string::npos);
  CHECK(info.find(R"("max_total_tokens":512)") != std::string::npos);
  const std::set<std::string> all = paths(contained.client().ask("GET", "/openapi.json", "", key).body);
  CHECK(all.size() == 15);  // no door for adapters
  // The key is described where there is one.
  const std::string described = "\"securitySchemes\":{\"key\":{\"type\":\"http\",\"scheme\":\"bearer\"}}";
  CHECK(contained.client().ask("GET", "/openapi.json", "", key).body.find(described) != std::string::npos);
  CHECK(server().client().ask("GET", "/openapi.json").body.find("security") == std::string::npos);
  for (const std::string& path : all) {
    for (const char* method : {"GET", "POST", "HEAD", "PUT"}) {
      INFO(method << " " << path);
      if (path != "/health") CHECK(contained.client().ask(method, path).status == 401);
    }
  }
  CHECK(contained.client().ask("GET", "/info").body.find("\"error_type\":\"authentication\"") != std::string::npos);
  CHECK(contained.client().ask("POST", "/adapters", "{}", key).status == 404);
  // A browser gets the page, which holds no data; every other request needs the key.
  const std::string browser = "Accept: text/html,application/xhtml+xml,*/*;q=0.8\r\n";
  const Answer page = contained.client().ask("GET", "/", "", browser);
  CHECK(page.status == 200);
  CHECK(page.field("Content-Type").starts_with("text/html"));
  CHECK(page.body.find("tiny-chat") == std::string::npos);
  CHECK(contained.client().ask("HEAD", "/", "", browser).status == 200);
  CHECK(contained.client().ask("POST", "/", R"({"inputs":"The"})", browser).status == 401);
  CHECK(contained.client().ask("GET", "/", "", "Accept: application/json\r\nAccept: text/html\r\n").status == 401);
  for (const std::string path : {"/info", "/v1/models", "/v1/models/tiny-chat", "/metrics", "/openapi.json", "//"}) {
    INFO(path);
    CHECK(contained.client().ask("GET", path, "", browser).status == 401);
  }
  CHECK(contained.client()
            .ask("POST", "/v1/completions", R"({"max_tokens":4,"prompt":")" + std::string(400, 'a') + "\"}", key)
            .status == 400);
  // More than run and wait.
  const Answer full = contained.client().ask("POST", "/v1/completions", endless(450, R"(,"n":3)"), key);
  CHECK(full.status == 429);
  CHECK(full.field("Retry-After") == "1");
  Client client = contained.client();
  client.send(request(endless(450, R"(,"stream":true)"), key));
  CHECK(client.until("data:").ends_with("data:"));
  contained.signal();
  CHECK(client.rest().find("data: [DONE]\n\n") != std::string::npos);
  CHECK(contained.wait() == 0);
}

TEST_CASE("what cannot be served is said before a model is read") {
  const Scratch scratch;
  const auto refused = [&](const std::string& arguments, const std::string& environment, const std::string& what) {
    const Outcome outcome = qlora(scratch, "serve -q " + arguments, environment);
    INFO(outcome.err);
    CHECK(outcome.code == 2);
    CHECK(outcome.err.find(what) != std::string::npos);
  };
  refused("'" + test::served_model + "' --host 0.0.0.0", "", "there is no key");
  refused("'" + test::served_model + "' --host nowhere.example", "", "nowhere.example");
  refused("'" + test::served_model + "' '" + test::served_model + "'", "", "two models are called tiny-chat");
  refused("'" + test::served_model + "' --adapter dir", "", "NAME=DIR");
  refused("'" + test::served_model + "' --adapter tiny-chat=dir", "", "two models are called tiny-chat");
  refused("'" + test::served_model + "'", "MAX_TOTAL_TOKENS=many", "MAX_TOTAL_TOKENS");
  refused("", "HF_MODEL_ID=org/name", "HF_MODEL_ID");
}
