// serve_test.cpp — what `qlora serve` answers, asked over sockets. What it should answer is taken from `qlora generate`
// and `qlora chat`, which do not use the scheduler.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "support/program.hpp"
#include "support/served.hpp"
#include "support/written_adapter.hpp"

using nlohmann::json;
using program_test::Outcome;
using program_test::qlora;
using program_test::Scratch;
using test::Answer;
using test::Server;
using test::write_adapter;

namespace {

/// Events of a stream, without "data:".
std::vector<std::string> events(const std::string& body) {
  std::vector<std::string> out;
  for (std::size_t at = 0; at < body.size();) {
    const std::size_t end = body.find("\n\n", at);
    REQUIRE(end != std::string::npos);
    REQUIRE(body.compare(at, 5, "data:") == 0);
    const std::size_t begin = body.find_first_not_of(' ', at + 5);
    out.push_back(body.substr(begin, end - begin));
    at = end + 2;
  }
  return out;
}

/// What `qlora generate` continues a prompt with.
std::string continued(const Scratch& scratch, const std::string& prompt, int tokens, const std::string& more = {}) {
  const Outcome outcome = qlora(scratch, "generate -q --threads 1 '" + test::served_model + "' -p '" + prompt +
                                             "' --temperature 0 --max-new-tokens " + std::to_string(tokens) +
                                             " --json '" + (scratch / "text.json").string() + "' " + more);
  REQUIRE(outcome.code == 0);
  return json::parse(test::contents(scratch / "text.json"))["text"].get<std::string>();
}

json greedy(const std::string& prompt, int tokens, const std::string& model = "tiny-chat") {
  return {{"model", model}, {"prompt", prompt}, {"max_tokens", tokens}, {"temperature", 0}};
}

struct World {
  Scratch scratch;
  std::unique_ptr<Server> server;

  World() {
    write_adapter(scratch / "tuned", 1);
    const std::string reply = continued(scratch, "The company behind", 2);
    const std::string answer = reply.substr(reply.find_first_not_of(' '));
    std::ofstream(scratch / "probes.jsonl")
        << json{{"kind", "retention"}, {"form", "completion"}, {"prompt", "The company behind"}, {"answer", "Nothing"}}
        << "\n"
        << json{{"kind", "text"}, {"text", "A page."}, {"domain", "held_out"}} << "\n"
        << json{{"kind", "knowledge"},
                {"form", "completion"},
                {"prompt", "The company behind"},
                {"answer", answer.substr(0, answer.find(' '))},
                {"twin", "Nothing"}}
        << "\n"
        << json{{"kind", "behaviour"}, {"form", "chat"}, {"prompt", "Hello!"}, {"expect", "stops"}} << "\n";
    server = std::make_unique<Server>(
        scratch, "'" + test::served_model + "' --slots 8 --kv-memory 7MiB --queue 13 --admin --probes '" +
                     (scratch / "probes.jsonl").string() + "' --adapter tuned='" + (scratch / "tuned").string() + "'");
    CHECK(server->counter("qlora_slots") == 3);  // of 512 tokens, each of 4 KiB
  }
};

/// One server for the cases that leave it as it was.
const World& world() {
  static const World all;
  return all;
}
const Server& server() { return *world().server; }

/// The answer's JSON; it must be a success.
json ask(const std::string& path, const json& body) {
  const Answer answer = server().post(path, body.dump());
  INFO(answer.body);
  REQUIRE(answer.status == 200);
  return json::parse(answer.body);
}
json get(const std::string& path) { return json::parse(server().client().ask("GET", path).body); }
std::string completed(const json& body) {
  return ask("/v1/completions", body)["choices"][0]["text"].get<std::string>();
}

}  // namespace

TEST_CASE("texts are those of `qlora generate`, in every form") {
  const std::string prompt = "The company behind";
  const std::string wanted = continued(world().scratch, prompt, 24);
  const json answer = ask("/v1/completions", greedy(prompt, 24));
  CHECK(answer["choices"][0]["text"] == wanted);
  CHECK(answer["object"] == "text_completion");
  CHECK(answer["model"] == "tiny-chat");
  CHECK(answer["usage"]["completion_tokens"].get<int>() <= 24);
  CHECK(answer["usage"]["total_tokens"].get<int>() ==
        answer["usage"]["prompt_tokens"].get<int>() + answer["usage"]["completion_tokens"].get<int>());
  json body = greedy(prompt, 24);
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}};
  std::vector<std::string> parts = events(server().post("/v1/completions", body.dump()).body);
  REQUIRE(parts.size() > 3);
  CHECK(parts.back() == "[DONE]");
  parts.pop_back();
  CHECK(json::parse(parts.back())["usage"] == [&] {
    json usage = answer["usage"];
    usage["prompt_tokens_details"] = json::parse(parts.back())["usage"]["prompt_tokens_details"];
    return usage;
  }());
  parts.pop_back();
  std::string text;
  for (const std::string& part : parts) text += json::parse(part)["choices"][0]["text"].get<std::string>();
  CHECK(text == wanted);
  CHECK(json::parse(parts.back())["choices"][0]["finish_reason"] == answer["choices"][0]["finish_reason"]);

  const json parameters{{"max_new_tokens", 24}, {"details", true}};
  const json tgi = ask("/generate", {{"inputs", prompt}, {"parameters", parameters}});
  CHECK(tgi["generated_text"] == wanted);
  std::string joined;
  for (const json& token : tgi["details"]["tokens"]) {
    if (!token["special"].get<bool>()) joined += token["text"].get<std::string>();
  }
  CHECK(joined == wanted);
  CHECK(tgi["details"]["tokens"].size() == tgi["details"]["generated_tokens"]);
  // The begin mark is the server's: a prompt that spells it is the same.
  CHECK(ask("/generate", {{"inputs", "<s>" + prompt}, {"parameters", parameters}})["generated_text"] == wanted);
  const json invoked = ask("/invocations", {{"inputs", prompt}, {"parameters", parameters}});
  CHECK(invoked[0]["generated_text"] == prompt + wanted);
  CHECK(ask("/invocations", greedy(prompt, 24))["choices"][0]["text"] == wanted);
  const std::vector<std::string> stream =
      events(server().post("/generate_stream", json{{"inputs", prompt}, {"parameters", parameters}}.dump()).body);
  for (std::size_t i = 0; i < stream.size(); ++i) {
    const json event = json::parse(stream[i]);
    CHECK(event["index"] == i + 1);
    CHECK(event["generated_text"].is_null() == (i + 1 < stream.size()));
  }
  CHECK(json::parse(stream.back())["generated_text"] == wanted);
  CHECK(json::parse(stream.back())["details"]["generated_tokens"] == stream.size());
}

TEST_CASE("conversations are those of `qlora chat`") {
  const Scratch& scratch = world().scratch;
  const Outcome outcome =
      qlora(scratch, "chat -q --threads 1 '" + test::served_model + "' -p 'Who are you?' --temperature 0 --json '" +
                         (scratch / "chat.json").string() + "'");
  REQUIRE(outcome.code == 0);
  const std::string wanted = json::parse(test::contents(scratch / "chat.json"))["turns"][0]["assistant"];
  json body{{"model", "tiny-chat"},
            {"messages", {{{"role", "user"}, {"content", "Who are you?"}}}},
            {"temperature", 0},
            {"logprobs", true},
            {"top_logprobs", 2}};
  const json answer = ask("/v1/chat/completions", body);
  CHECK(answer["object"] == "chat.completion");
  CHECK(answer["choices"][0]["message"]["role"] == "assistant");
  CHECK(answer["choices"][0]["message"]["content"] == wanted);
  CHECK(answer["choices"][0]["finish_reason"] == "stop");
  for (const json& token : answer["choices"][0]["logprobs"]["content"]) {
    CHECK(token["logprob"].get<double>() <= 0.0);
    CHECK(token["top_logprobs"].size() == 2);
    CHECK(token["top_logprobs"][0]["token"] == token["token"]);  // greedy: the likeliest
  }
  body["stream"] = true;
  body["messages"][0]["content"] = {{{"type", "text"}, {"text", "Who are "}}, {{"type", "text"}, {"text", "you?"}}};
  std::string text;
  const std::vector<std::string> parts = events(server().post("/v1/chat/completions", body.dump()).body);
  for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
    const json choice = json::parse(parts[i])["choices"][0];
    if (i == 0) CHECK(choice["delta"]["role"] == "assistant");
    text += choice["delta"].value("content", "");
    CHECK(choice["finish_reason"].is_null() == (i + 2 < parts.size()));
  }
  CHECK(text == wanted);
  // A stop string is where the text ends, and its tokens are not in the list.
  body["stream"] = false;
  body["stop"] = wanted.substr(8, 3);
  const json stopped = ask("/v1/chat/completions", body)["choices"][0];
  CHECK(stopped["message"]["content"] == wanted.substr(0, wanted.find(wanted.substr(8, 3))));
  CHECK(stopped["finish_reason"] == "stop");
  CHECK(stopped["logprobs"]["content"].size() < answer["choices"][0]["logprobs"]["content"].size());
}

TEST_CASE("an adapter answers by its name, as strongly as is asked") {
  const std::string prompt = "The company behind";
  const std::string base = continued(world().scratch, prompt, 16);
  const std::string tuned =
      continued(world().scratch, prompt, 16, "--adapter '" + (world().scratch / "tuned").string() + "'");
  REQUIRE(base != tuned);
  CHECK(completed(greedy(prompt, 16, "tuned")) == tuned);
  CHECK(completed(greedy(prompt, 16, "tuned@1")) == tuned);
  CHECK(completed(greedy(prompt, 16, "tuned@0")) == base);
  CHECK(completed(greedy(prompt, 16)) == base);
  CHECK(ask("/generate", {{"inputs", prompt},
                          {"parameters", {{"max_new_tokens", 16}, {"adapter_id", "tuned"}}}})["generated_text"] ==
        tuned);
  const json models = get("/v1/models")["data"];
  REQUIRE(models.size() == 2);
  CHECK(models[1]["id"] == "tuned");
  CHECK(models[1]["parent"] == "tiny-chat");
  // Loaded while others are asked, and unloaded.
  write_adapter(world().scratch / "second", 2);
  CHECK(server().post("/v1/completions", greedy(prompt, 4, "second").dump()).status == 404);
  (void)ask("/adapters", {{"name", "second"}, {"path", (world().scratch / "second").string()}});
  const auto described = [] {
    return server().client().ask("GET", "/openapi.json").body.find("\"second\"") != std::string::npos;
  };
  CHECK(described());
  CHECK(completed(greedy(prompt, 16, "second")) ==
        continued(world().scratch, prompt, 16, "--adapter '" + (world().scratch / "second").string() + "'"));
  CHECK(server().post("/adapters", R"({"name":"bad","path":"/nowhere"})").status == 400);
  CHECK(server().post("/adapters", R"({"name":"tiny-chat","path":"/nowhere"})").status == 400);
  const Answer nul = server().post("/adapters", R"({"name":"bad","path":"\u0000tuned"})");
  CHECK(nul.status == 400);
  CHECK(json::parse(nul.body)["error"]["message"].get<std::string>().starts_with("`path` must be"));
  (void)ask("/adapters/unload", {{"name", "second"}});
  CHECK(!described());
  CHECK(server().post("/adapters/unload", R"({"name":"second"})").status == 404);
  CHECK(server().post("/v1/completions", greedy(prompt, 4, "second").dump()).status == 404);
}

TEST_CASE("variants are compared side by side") {
  const std::string prompt = "The company behind";
  const auto ids = [&](const char* adapter) {
    json parameters{{"max_new_tokens", 12}, {"details", true}};
    if (adapter != nullptr) parameters["adapter_id"] = adapter;
    std::vector<int> out;
    const json answer = ask("/generate", {{"inputs", prompt}, {"parameters", parameters}});
    for (const json& token : answer["details"]["tokens"]) {
      if (!token["logprob"].is_null()) out.push_back(token["id"]);  // the end
    }
    return out;
  };
  const std::vector<std::vector<int>> wanted{ids(nullptr), ids("tuned")};
  std::size_t parted = 0;
  while (parted < wanted[0].size() && parted < wanted[1].size() && wanted[0][parted] == wanted[1][parted]) ++parted;
  const json compared{{"models", {"tiny-chat", "tuned"}}, {"prompt", prompt}, {"max_tokens", 12}, {"temperature", 0}};
  const Answer answer = server().post("/compare", compared.dump());
  std::vector<std::vector<int>> got(2);
  std::vector<double> kl;
  json last;
  for (const std::string& part : events(answer.body)) {
    last = json::parse(part);
    if (last["event"] == "token") {
      got[last["model"].get<std::size_t>()].push_back(last["id"]);
      CHECK(last["kl"].is_null() == (last["model"] == 0));
      if (last["model"] == 1) kl.push_back(last["kl"]);
    }
    if (last["event"] == "parted") CHECK(last["index"] == parted);
  }
  CHECK(got == wanted);
  CHECK(last == json{{"event", "done"}, {"parted", parted}});
  // How far the tuned model is from its base at each of its tokens; scheduler_test computes it from whole passes. It is
  // the same in the other forms, nothing from itself at the strength of 0, and nowhere unless it is asked for.
  json body = greedy(prompt, 12, "tuned");
  body["logprobs"] = 0;
  const auto near = [&](const json& values, const std::vector<double>& expected) {
    REQUIRE(values.size() == expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      CHECK(values[i].get<double>() == doctest::Approx(expected[i]).epsilon(1e-3).scale(0.01));
    }
  };
  CHECK(*std::max_element(kl.begin(), kl.end()) > 0.01);
  CHECK(!ask("/v1/completions", body)["choices"][0]["logprobs"].contains("kl"));
  body["against"] = "tiny-chat";
  near(ask("/v1/completions", body)["choices"][0]["logprobs"]["kl"], kl);
  body["against"] = "tuned@0";
  near(ask("/v1/completions", body)["choices"][0]["logprobs"]["kl"], kl);
  body["against"] = "tuned";
  near(ask("/v1/completions", body)["choices"][0]["logprobs"]["kl"], std::vector<double>(kl.size(), 0.0));
  json chat{{"model", "tuned"},
            {"messages", {{{"role", "user"}, {"content", "Who?"}}}},
            {"max_tokens", 4},
            {"logprobs", true},
            {"against", "tiny-chat"}};
  for (const json& token : ask("/v1/chat/completions", chat)["choices"][0]["logprobs"]["content"]) {
    CHECK(token["kl"].get<double>() >= 0.0);
  }
  json without = compared;
  without["kl"] = false;
  CHECK(server().post("/compare", without.dump()).body.find("\"kl\":null") != std::string::npos);
}

TEST_CASE("probes are asked and judged as in a study") {
  const json listed = get("/probes")["data"];
  REQUIRE(listed.size() == 3);  // a text is no question
  CHECK(listed[0] == json{{"probe", 0},
                          {"kind", "retention"},
                          {"form", "completion"},
                          {"prompt", "The company behind"},
                          {"history", json::array()},
                          {"expects", {"Nothing"}}});
  CHECK(listed[2]["expects"].empty());
  const std::string reply = continued(world().scratch, "The company behind", 40);
  const json first = ask("/probes", {{"probe", 0}});
  CHECK(first["model"] == "tiny-chat");
  CHECK(reply.starts_with(first["text"].get<std::string>()));
  CHECK(first["text"].get<std::string>().size() > 2);
  CHECK(first["right"] == false);
  // Its own first words are the answer.
  const json second = ask("/probes", {{"probe", 1}, {"model", "tiny-chat"}});
  CHECK(second["text"] == first["text"]);
  CHECK(second["right"] == true);
  CHECK(second["twin"] == false);
  const json tuned = ask("/probes", {{"probe", 1}, {"model", "tuned"}});
  CHECK(tuned["text"] != second["text"]);
  CHECK(ask("/probes", {{"probe", 2}})["text"].get<std::string>().size() < 400);
  for (const char* bad : {R"({})", R"({"probe":3})", R"({"probe":-1})", R"({"probe":"0"})", R"({"probe":0.5})"}) {
    const Answer answer = server().post("/probes", bad);
    CHECK(answer.status == 400);
    CHECK(json::parse(answer.body)["error"]["param"] == "probe");
  }
  CHECK(server().post("/probes", R"({"probe":0,"model":"nobody"})").status == 404);
}

TEST_CASE("many at once get what each gets alone") {
  std::vector<std::string> prompts, wanted;
  for (const char* word : {"The", "A lamp", "Oakhurst is", "Who", "The company", "In the year"}) {
    for (const char* model : {"tiny-chat", "tuned"}) {
      prompts.push_back(greedy(word, 20, model).dump());
      wanted.push_back(json::parse(server().post("/v1/completions", prompts.back()).body)["choices"][0]["text"]);
    }
  }
  std::vector<std::string> got(prompts.size());
  std::vector<std::thread> clients;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    clients.emplace_back([&, i] {
      const Answer answer = server().post("/v1/completions", prompts[i]);
      got[i] = answer.status == 200 ? json::parse(answer.body)["choices"][0]["text"].get<std::string>() : answer.body;
    });
  }
  for (std::thread& client : clients) client.join();
  CHECK(got == wanted);
}

TEST_CASE("several choices, seeds, and log-probabilities of the prompt") {
  json body{{"prompt", {"The", "A lamp"}}, {"max_tokens", 6}, {"temperature", 1}, {"n", 2}, {"seed", 7}};
  const json first = ask("/v1/completions", body)["choices"];
  REQUIRE(first.size() == 4);
  CHECK(first[0]["text"] != first[1]["text"]);
  CHECK(ask("/v1/completions", body)["choices"] == first);
  body = {{"prompt", "The company"}, {"max_tokens", 0}, {"echo", true}, {"logprobs", 1}};
  const json echoed = ask("/v1/completions", body)["choices"][0];
  CHECK(echoed["text"] == "The company");
  CHECK(echoed["logprobs"]["tokens"].size() == 3);  // the begin mark is one
  CHECK(echoed["logprobs"]["token_logprobs"][0].is_null());
  const json prefill = ask(
      "/generate", {{"inputs", "The company"},
                    {"parameters", {{"max_new_tokens", 1}, {"decoder_input_details", true}}}})["details"]["prefill"];
  REQUIRE(prefill.size() == 3);
  CHECK(prefill[2]["logprob"] == echoed["logprobs"]["token_logprobs"][2]);
  // A bias that forbids the likeliest token.
  body = greedy("The company", 1);
  body["logprobs"] = 2;
  const int id =
      ask("/generate", {{"inputs", "The company"},
                        {"parameters", {{"max_new_tokens", 1}, {"details", true}}}})["details"]["tokens"][0]["id"];
  const std::string likeliest = completed(body);
  body["logit_bias"] = {{std::to_string(id), -100}};
  CHECK(completed(body) != likeliest);
}

TEST_CASE("the description names the paths that there are, and no others") {
  const json paths = get("/openapi.json")["paths"];
  CHECK(paths.size() == 17);
  for (const auto& [path, methods] : paths.items()) {
    for (const auto& [method, description] : methods.items()) {
      INFO(method << " " << path);
      const std::string place = path == "/v1/models/{model}" ? "/v1/models/tuned" : path;
      const Answer answer = server().client().ask(method == "get" ? "GET" : "POST", place, method == "get" ? "" : "{}");
      CHECK(answer.status != 404);
      CHECK(answer.status != 405);
      CHECK(description["responses"].contains(std::to_string(answer.status)));
    }
  }
  CHECK(server().client().ask("GET", "/../etc/passwd").status == 404);
  const Answer wrong = server().client().ask("DELETE", "/");
  CHECK(wrong.status == 405);
  CHECK(wrong.field("Allow") == "GET, HEAD, POST");  // RFC 9110, 15.5.6
  const Answer page = server().client().ask("GET", "/", "", "Accept: text/html,*/*\r\n");
  CHECK(page.field("Content-Type").starts_with("text/html"));
  CHECK(page.field("Content-Security-Policy").starts_with("default-src 'none'"));
  CHECK(page.field("Vary") == "Accept");
}

TEST_CASE("a model by its name, and names that stand for none") {
  const auto model = [](const std::string& name) { return server().client().ask("GET", "/v1/models/" + name); };
  CHECK(json::parse(model("tiny-chat").body)["parent"].is_null());
  CHECK(json::parse(model("tuned").body) == get("/v1/models")["data"][1]);
  CHECK(json::parse(model("tuned%400.5").body)["id"] == "tuned@0.5");
  CHECK(json::parse(model("tuned%400.5").body)["parent"] == "tiny-chat");
  for (const std::string name : {"nobody", "tuned%40much", "tuned/", "%74%75%6e%6", "no%2Fbody"}) {
    INFO(name);
    CHECK(model(name).status == 404);
    CHECK(json::parse(model(name).body)["error"]["code"] == "model_not_found");
  }
  // text-generation and huggingface_hub send these where their user names no model.
  for (const std::string name : {"tgi", "dummy"}) {
    CHECK(completed(greedy("The company behind", 8, name)) == completed(greedy("The company behind", 8)));
  }
}

TEST_CASE("the token that ends a reply has the log-probability that it has behind the reply") {
  const std::string prompt = "[INST] Who are you? [/INST]";
  const json details = ask(
      "/generate",
      {{"inputs", prompt},
       {"parameters",
        {{"max_new_tokens", 60}, {"details", true}, {"decoder_input_details", true}, {"top_n_tokens", 1}}}})["details"];
  REQUIRE(details["finish_reason"] == "eos_token");
  CHECK(details["top_tokens"].size() == details["tokens"].size());
  json ids = json::array();
  for (const char* part : {"prefill", "tokens"}) {
    for (const json& token : details[part]) ids.push_back(token["id"]);
  }
  CHECK(ids.back() == 2);
  const json echoed =
      ask("/v1/completions", {{"prompt", ids}, {"max_tokens", 0}, {"echo", true}, {"logprobs", 0}})["choices"][0];
  CHECK(std::fabs(echoed["logprobs"]["token_logprobs"].back().get<double>() -
                  details["tokens"].back()["logprob"].get<double>()) < 1e-4);
}

TEST_CASE("the token itself is among its alternatives, however unlikely") {
  json body = greedy("The company behind", 24);
  body["temperature"] = 2;
  body["logprobs"] = 2;
  body["seed"] = 1;
  const json drawn = ask("/v1/completions", body)["choices"][0]["logprobs"];
  int others = 0;
  for (std::size_t i = 0; i < drawn["tokens"].size(); ++i) {
    const json& top = drawn["top_logprobs"][i];
    CHECK(top.at(drawn["tokens"][i].get<std::string>()) == drawn["token_logprobs"][i]);
    CHECK(top.size() <= 3);
    others += top.size() == 3 ? 1 : 0;
  }
  CHECK(others > 0);
}

TEST_CASE("numbers as JSON writes them: whole ones with a point, and such that no float holds") {
  json body = greedy("The company behind", 8);
  const std::string likeliest = completed(body);
  body["max_tokens"] = 8.0;
  CHECK(completed(body) == likeliest);
  // The smallest set of tokens, and a temperature without chance, are the likeliest token.
  for (const json& numbers : std::vector<json>{{{"temperature", 1}, {"top_p", 1e-300}}, {{"temperature", 1e-300}}}) {
    body.update(numbers);
    CHECK(completed(body) == likeliest);
    body["temperature"] = 0;
    body.erase("top_p");
  }
  body["repetition_penalty"] = 1e-300;
  CHECK(!completed(body).empty());
  const json tgi = ask("/generate", {{"inputs", "The company behind"},
                                     {"parameters", {{"max_new_tokens", 8}, {"top_p", 1e-300}, {"top_k", 1.0}}}});
  CHECK(tgi["generated_text"] == likeliest);
  // Characters are counted, not bytes.
  std::string accents;
  for (int i = 0; i < 1000; ++i) accents += "\xc3\xa9";
  body["stop"] = accents;
  CHECK(!completed(body).empty());
  body["stop"] = {"Question:", "\n\n", "###", "User:", likeliest.substr(4, 3)};  // the last of more than OpenAI takes
  body.erase("repetition_penalty");
  CHECK(completed(body) == likeliest.substr(0, likeliest.find(likeliest.substr(4, 3))));
}
