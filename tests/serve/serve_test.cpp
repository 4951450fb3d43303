// serve_test.cpp — `qlora serve` with the repository's chat model, asked over sockets. What it should answer is taken
// from `qlora generate` and `qlora chat`, which do not use the scheduler. QLORA_PROGRAM is the built program.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>

#include <array>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "support/http_client.hpp"
#include "support/program.hpp"

using nlohmann::json;
using program_test::Outcome;
using program_test::qlora;
using program_test::Scratch;
using test::Answer;
using test::Client;

namespace {

const std::string model_dir = std::string(QLORA_SOURCE_DIR) + "/examples/models/tiny-chat";

/// The program at work. `arguments`: as a shell reads them.
class Server {
 public:
  Server(const Scratch& scratch, const std::string& arguments, const std::string& environment = {}) {
    std::array<int, 2> pipe{};
    REQUIRE(::pipe2(pipe.data(), O_CLOEXEC) == 0);
    const std::string line = environment + " exec '" QLORA_PROGRAM "' serve -q --port 0 --threads 1 " + arguments +
                             " 2>'" + (scratch / "serve.err").string() + "'";
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, pipe[1], STDOUT_FILENO);
    std::string shell = "sh", option = "-c", text = line;
    std::array<char*, 4> words{shell.data(), option.data(), text.data(), nullptr};
    REQUIRE(posix_spawn(&process_, "/bin/sh", &actions, nullptr, words.data(), environ) == 0);
    posix_spawn_file_actions_destroy(&actions);
    ::close(pipe[1]);
    std::string said;
    char byte = 0;
    while (said.find('\n') == std::string::npos && ::read(pipe[0], &byte, 1) == 1) said += byte;
    ::close(pipe[0]);
    INFO(test::contents(scratch / "serve.err"));
    REQUIRE(said.starts_with("listening on http://"));
    port_ = std::atoi(said.substr(said.rfind(':') + 1).c_str());
  }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;
  ~Server() {
    if (process_ > 0) (void)stop();
  }

  [[nodiscard]] Client client() const { return Client(port_); }
  [[nodiscard]] Answer post(const std::string& path, const std::string& body) const {
    return client().ask("POST", path, body);
  }
  /// The answer's JSON; it must be a success.
  [[nodiscard]] json ask(const std::string& path, const json& body) const {
    const Answer answer = post(path, body.dump());
    INFO(answer.body);
    REQUIRE(answer.status == 200);
    return json::parse(answer.body);
  }
  [[nodiscard]] json get(const std::string& path) const { return json::parse(client().ask("GET", path).body); }
  [[nodiscard]] std::string text(const json& body) const {
    return ask("/v1/completions", body)["choices"][0]["text"].get<std::string>();
  }
  /// The value of a counter; -1 where it is not there.
  [[nodiscard]] double counter(const std::string& name) const {
    const std::string all = client().ask("GET", "/metrics").body;
    const std::size_t at = all.find("\n" + name + " ");
    return at == std::string::npos ? -1.0 : std::strtod(all.c_str() + at + 1 + name.size(), nullptr);
  }
  void signal() const { ::kill(process_, SIGTERM); }
  /// Its exit code; -1 where it cannot be had. Nothing is checked here: the last server ends behind all cases.
  int wait() {
    int status = 0;
    if (::waitpid(std::exchange(process_, 0), &status, 0) <= 0) return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  int stop() {
    signal();
    return wait();
  }

 private:
  pid_t process_ = 0;
  int port_ = 0;
};

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

/// An adapter of rank 2 on every o_proj and down_proj, strong enough to change what is said.
void write_adapter(const std::filesystem::path& dir, unsigned seed) {
  std::filesystem::create_directories(dir);
  std::mt19937 random(seed);
  json header = json::object();
  std::string data;
  const auto add = [&](const std::string& name, int rows, int columns) {
    const std::size_t begin = data.size();
    for (int i = 0; i < rows * columns; ++i) {
      const float value = (static_cast<float>(random() % 2001U) - 1000.0F) * 2e-4F;
      std::array<char, sizeof value> bytes{};
      std::memcpy(bytes.data(), &value, sizeof value);
      data.append(bytes.data(), bytes.size());
    }
    header[name] = {{"dtype", "F32"}, {"shape", {rows, columns}}, {"data_offsets", {begin, data.size()}}};
  };
  for (int layer = 0; layer < 4; ++layer) {
    for (const auto& [module, in] : {std::pair("self_attn.o_proj", 256), std::pair("mlp.down_proj", 704)}) {
      const std::string name = "base_model.model.model.layers." + std::to_string(layer) + "." + module;
      add(name + ".lora_A.weight", 2, in);
      add(name + ".lora_B.weight", 256, 2);
    }
  }
  header["__metadata__"] = {{"format", "pt"}};
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const std::uint64_t size = text.size();
  std::ofstream file(dir / "adapter_model.safetensors", std::ios::binary);
  file.write(reinterpret_cast<const char*>(&size), sizeof size);
  file << text << data;
  std::ofstream(dir / "adapter_config.json")
      << json{{"peft_type", "LORA"}, {"r", 2}, {"lora_alpha", 4}, {"target_modules", {"o_proj", "down_proj"}}}.dump();
}

/// What `qlora generate` continues a prompt with.
std::string continued(const Scratch& scratch, const std::string& prompt, int tokens, const std::string& more = {}) {
  const Outcome outcome = qlora(scratch, "generate -q --threads 1 '" + model_dir + "' -p '" + prompt +
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
    server = std::make_unique<Server>(scratch, "'" + model_dir + "' --slots 3 --queue 13 --admin --adapter tuned='" +
                                                   (scratch / "tuned").string() + "'");
  }
};

/// One server for the cases that leave it as it was.
const World& world() {
  static const World all;
  return all;
}
const Server& server() { return *world().server; }

}  // namespace

TEST_CASE("texts are those of `qlora generate`, in every form") {
  const std::string prompt = "The company behind";
  const std::string wanted = continued(world().scratch, prompt, 24);
  const json answer = server().ask("/v1/completions", greedy(prompt, 24));
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
  const json tgi = server().ask("/generate", {{"inputs", prompt}, {"parameters", parameters}});
  CHECK(tgi["generated_text"] == wanted);
  std::string joined;
  for (const json& token : tgi["details"]["tokens"]) {
    if (!token["special"].get<bool>()) joined += token["text"].get<std::string>();
  }
  CHECK(joined == wanted);
  CHECK(tgi["details"]["tokens"].size() == tgi["details"]["generated_tokens"]);
  // The begin mark is the server's: a prompt that spells it is the same.
  CHECK(server().ask("/generate", {{"inputs", "<s>" + prompt}, {"parameters", parameters}})["generated_text"] ==
        wanted);
  const json invoked = server().ask("/invocations", {{"inputs", prompt}, {"parameters", parameters}});
  CHECK(invoked[0]["generated_text"] == prompt + wanted);
  CHECK(server().ask("/invocations", greedy(prompt, 24))["choices"][0]["text"] == wanted);
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
      qlora(scratch, "chat -q --threads 1 '" + model_dir + "' -p 'Who are you?' --temperature 0 --json '" +
                         (scratch / "chat.json").string() + "'");
  REQUIRE(outcome.code == 0);
  const std::string wanted = json::parse(test::contents(scratch / "chat.json"))["turns"][0]["assistant"];
  json body{{"model", "tiny-chat"},
            {"messages", {{{"role", "user"}, {"content", "Who are you?"}}}},
            {"temperature", 0},
            {"logprobs", true},
            {"top_logprobs", 2}};
  const json answer = server().ask("/v1/chat/completions", body);
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
  const json stopped = server().ask("/v1/chat/completions", body)["choices"][0];
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
  CHECK(server().text(greedy(prompt, 16, "tuned")) == tuned);
  CHECK(server().text(greedy(prompt, 16, "tuned@1")) == tuned);
  CHECK(server().text(greedy(prompt, 16, "tuned@0")) == base);
  CHECK(server().text(greedy(prompt, 16)) == base);
  CHECK(server().ask("/generate",
                     {{"inputs", prompt},
                      {"parameters", {{"max_new_tokens", 16}, {"adapter_id", "tuned"}}}})["generated_text"] == tuned);
  const json models = server().get("/v1/models")["data"];
  REQUIRE(models.size() == 2);
  CHECK(models[1]["id"] == "tuned");
  CHECK(models[1]["parent"] == "tiny-chat");
  // Loaded while others are asked, and unloaded.
  write_adapter(world().scratch / "second", 2);
  CHECK(server().post("/v1/completions", greedy(prompt, 4, "second").dump()).status == 404);
  (void)server().ask("/adapters", {{"name", "second"}, {"path", (world().scratch / "second").string()}});
  CHECK(server().text(greedy(prompt, 16, "second")) ==
        continued(world().scratch, prompt, 16, "--adapter '" + (world().scratch / "second").string() + "'"));
  CHECK(server().post("/adapters", R"({"name":"bad","path":"/nowhere"})").status == 400);
  CHECK(server().post("/adapters", R"({"name":"tiny-chat","path":"/nowhere"})").status == 400);
  (void)server().ask("/adapters/unload", {{"name", "second"}});
  CHECK(server().post("/adapters/unload", R"({"name":"second"})").status == 404);
  CHECK(server().post("/v1/completions", greedy(prompt, 4, "second").dump()).status == 404);
}

TEST_CASE("variants are compared side by side") {
  const std::string prompt = "The company behind";
  const auto ids = [&](const char* adapter) {
    json parameters{{"max_new_tokens", 12}, {"details", true}};
    if (adapter != nullptr) parameters["adapter_id"] = adapter;
    std::vector<int> out;
    const json answer = server().ask("/generate", {{"inputs", prompt}, {"parameters", parameters}});
    for (const json& token : answer["details"]["tokens"]) {
      if (!token["logprob"].is_null()) out.push_back(token["id"]);  // the end
    }
    return out;
  };
  const std::vector<std::vector<int>> wanted{ids(nullptr), ids("tuned")};
  std::size_t parted = 0;
  while (parted < wanted[0].size() && parted < wanted[1].size() && wanted[0][parted] == wanted[1][parted]) ++parted;
  const Answer answer = server().post(
      "/compare",
      json{{"models", {"tiny-chat", "tuned"}}, {"prompt", prompt}, {"max_tokens", 12}, {"temperature", 0}}.dump());
  std::vector<std::vector<int>> got(2);
  json last;
  for (const std::string& part : events(answer.body)) {
    last = json::parse(part);
    if (last["event"] == "token") got[last["model"].get<std::size_t>()].push_back(last["id"]);
    if (last["event"] == "parted") CHECK(last["index"] == parted);
  }
  CHECK(got == wanted);
  CHECK(last == json{{"event", "done"}, {"parted", parted}});
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
  const json first = server().ask("/v1/completions", body)["choices"];
  REQUIRE(first.size() == 4);
  CHECK(first[0]["text"] != first[1]["text"]);
  CHECK(server().ask("/v1/completions", body)["choices"] == first);
  body = {{"prompt", "The company"}, {"max_tokens", 0}, {"echo", true}, {"logprobs", 1}};
  const json echoed = server().ask("/v1/completions", body)["choices"][0];
  CHECK(echoed["text"] == "The company");
  CHECK(echoed["logprobs"]["tokens"].size() == 3);  // the begin mark is one
  CHECK(echoed["logprobs"]["token_logprobs"][0].is_null());
  const json prefill = server().ask(
      "/generate", {{"inputs", "The company"},
                    {"parameters", {{"max_new_tokens", 1}, {"decoder_input_details", true}}}})["details"]["prefill"];
  REQUIRE(prefill.size() == 3);
  CHECK(prefill[2]["logprob"] == echoed["logprobs"]["token_logprobs"][2]);
  // A bias that forbids the likeliest token.
  body = greedy("The company", 1);
  body["logprobs"] = 2;
  const int id = server().ask(
      "/generate", {{"inputs", "The company"},
                    {"parameters", {{"max_new_tokens", 1}, {"details", true}}}})["details"]["tokens"][0]["id"];
  const std::string likeliest = server().text(body);
  body["logit_bias"] = {{std::to_string(id), -100}};
  CHECK(server().text(body) != likeliest);
}

TEST_CASE("what cannot be answered is refused by the field's name") {
  const auto check = [&](const std::string& path, const std::string& body, int status, const std::string& name) {
    INFO(path << " " << body.substr(0, 200));
    const Answer answer = server().post(path, body);
    CHECK(answer.status == status);
    CHECK_MESSAGE(answer.body.find(name) != std::string::npos, answer.body);
    CHECK(json::parse(answer.body).contains("error"));
  };
  const std::string deep(100, '[');
  for (const std::string path : {"/v1/completions", "/v1/chat/completions", "/generate", "/invocations", "/compare"}) {
    check(path, "", 400, "JSON");
    check(path, "[]", 400, "object");
    check(path, R"({"a":1,"a":2})", 400, "twice");
    check(path, R"({"a":)" + deep, 400, "32");
    check(path, "{\"a\":\"\xFF\"}", 400, "JSON");
    check(path, "{}", path == "/generate" || path == "/invocations" ? 422 : 400, "");
  }
  const auto with = [](json body, const std::string& field, const std::string& value) {
    std::string text = body.dump();
    return "{\"" + field + "\":" + value + (body.empty() ? "" : ",") + text.substr(1);
  };
  const json prompt{{"prompt", "The"}};
  const std::vector<std::pair<std::string, std::string>> bad{{"temperature", "-1"},
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
                                                             {"stop", "[\"a\",\"b\",\"c\",\"d\",\"e\"]"},
                                                             {"stop", "[1]"},
                                                             {"stop", "\"\""},
                                                             {"frequency_penalty", "3"},
                                                             {"presence_penalty", "[]"},
                                                             {"logit_bias", "{\"x\":1}"},
                                                             {"logit_bias", "{\"9999\":1}"},
                                                             {"logit_bias", "{\"5\":101}"},
                                                             {"seed", "1.5"},
                                                             {"stream", "1"},
                                                             {"stream_options", "{}"},
                                                             {"suffix", "\"x\""},
                                                             {"best_of", "3"},
                                                             {"response_format", "{\"type\":\"json_object\"}"}};
  for (const auto& [field, value] : bad) check("/v1/completions", with(prompt, field, value), 400, field);
  for (const char* value : {"[]", "{}", "7", "[1536]", "[-1]", "[1.5]", "[[]]", "[\"a\",1]"}) {
    check("/v1/completions", with(json::object(), "prompt", value), 400, "prompt");
  }
}

TEST_CASE("what cannot be answered, in conversations and in TGI's form") {
  const auto status = [&](const std::string& path, const json& body, const std::string& name) {
    const Answer answer = server().post(path, body.dump());
    INFO(answer.body);
    CHECK(answer.body.find(name) != std::string::npos);
    return answer.status;
  };
  const json ask{{"role", "user"}, {"content", "Who?"}};
  for (const auto& [field, value] :
       std::vector<std::pair<std::string, json>>{{"tools", json::array({json::object()})},
                                                 {"response_format", {{"type", "json_schema"}}},
                                                 {"top_logprobs", 3},
                                                 {"tool_choice", "auto"},
                                                 {"audio", {{"voice", "x"}}}}) {
    CHECK(status("/v1/chat/completions", {{"messages", {ask}}, {field, value}}, field) == 400);
  }
  for (const json& messages : std::vector<json>{{{{"role", "user"}}, {{"role", "user"}}},
                                                {{{"role", "tool"}, {"content", "x"}}},
                                                {{{"role", "user"}, {"content", 1}}},
                                                {{{"role", "user"}, {"content", {{{"type", "image_url"}}}}}},
                                                {{{"role", "user"}, {"content", "[INST] x"}}},
                                                {{{"role", "user"}, {"content", std::string(100000, 'x')}}},
                                                json::array(),
                                                "x"}) {
    CHECK(status("/v1/chat/completions", {{"messages", messages}}, "messages") == 400);
  }
  CHECK(status("/v1/chat/completions", {{"messages", {ask}}, {"model", "tuned@nan"}}, "tuned@nan") == 404);
  // What asks for nothing is no hindrance.
  CHECK(status("/v1/chat/completions",
               {{"messages", {ask}},
                {"max_tokens", 1},
                {"tools", json::array()},
                {"tool_choice", "none"},
                {"user", "me"},
                {"response_format", {{"type", "text"}}}},
               "choices") == 200);
  for (const auto& [field, value] : std::vector<std::pair<std::string, json>>{{"temperature", 0},
                                                                              {"temperature", "hot"},
                                                                              {"top_p", 1.0},
                                                                              {"top_p", 0},
                                                                              {"top_k", 0},
                                                                              {"top_k", 1.5},
                                                                              {"typical_p", 0.5},
                                                                              {"best_of", 2},
                                                                              {"best_of", 3},
                                                                              {"max_new_tokens", 0},
                                                                              {"max_new_tokens", 600},
                                                                              {"watermark", true},
                                                                              {"truncate", 0},
                                                                              {"truncate", 512},
                                                                              {"seed", -1},
                                                                              {"stop", {"a", "b", "c", "d", "e"}},
                                                                              {"repetition_penalty", 0},
                                                                              {"frequency_penalty", 3},
                                                                              {"adapter_id", "none"},
                                                                              {"top_n_tokens", 6},
                                                                              {"grammar", {{"type", "json"}}},
                                                                              {"do_sample", 1}}) {
    INFO(field);
    CHECK(status("/generate", {{"inputs", "The"}, {"parameters", {{field, value}}}}, field) == 422);
  }
  CHECK(status("/generate", {{"inputs", ""}}, "`inputs` cannot be empty") == 422);
  CHECK(status("/generate", {{"inputs", 7}}, "inputs") == 422);
  CHECK(status("/generate", {{"inputs", std::string(20000, 'a')}}, "inputs") == 422);
  const Answer overloaded =
      server().post("/v1/completions", json{{"prompt", {"a", "b"}}, {"n", 8}, {"max_tokens", 1}}.dump());
  CHECK(overloaded.status == 200);  // sixteen: as many as run and wait
  Answer full = server().post("/v1/chat/completions", "");
  CHECK(full.status == 400);
}

TEST_CASE("any value in any field is answered or refused, and the server lives") {
  std::mt19937 random(3);
  const std::vector<std::string> values{"null",
                                        "true",
                                        "0",
                                        "1",
                                        "-1",
                                        "1.5",
                                        "1e308",
                                        "-1e308",
                                        "2",
                                        "1e-40",
                                        "\"\"",
                                        "\"x\"",
                                        "[]",
                                        "[1]",
                                        "[[]]",
                                        "{}",
                                        "16",
                                        "513",
                                        "[\"a\"]",
                                        "{\"a\":1}",
                                        "2147483648",
                                        "-9223372036854775808",
                                        "18446744073709551615",
                                        "\"\\u0000\"",
                                        "[null]",
                                        "{\"5\":1e9}",
                                        "\"<s></s>\""};
  const std::vector<std::string> fields{"model",
                                        "temperature",
                                        "top_p",
                                        "top_k",
                                        "min_p",
                                        "n",
                                        "stop",
                                        "seed",
                                        "stream",
                                        "stream_options",
                                        "logit_bias",
                                        "frequency_penalty",
                                        "presence_penalty",
                                        "repetition_penalty",
                                        "logprobs",
                                        "top_logprobs",
                                        "echo",
                                        "best_of",
                                        "suffix",
                                        "tools",
                                        "response_format",
                                        "messages",
                                        "prompt",
                                        "inputs",
                                        "parameters",
                                        "models",
                                        "max_tokens"};
  const std::vector<std::string> inner{"temperature",
                                       "top_p",
                                       "top_k",
                                       "best_of",
                                       "seed",
                                       "stop",
                                       "truncate",
                                       "details",
                                       "decoder_input_details",
                                       "top_n_tokens",
                                       "return_full_text",
                                       "do_sample",
                                       "repetition_penalty",
                                       "adapter_id",
                                       "typical_p"};
  const auto some = [&](const std::vector<std::string>& all) { return all[random() % all.size()]; };
  const std::vector<std::pair<std::string, std::string>> forms{
      {"/v1/completions", R"("prompt":"The","max_tokens":2)"},
      {"/v1/chat/completions", R"("messages":[{"role":"user","content":"Who?"}],"max_tokens":2)"},
      {"/compare", R"("models":["tiny-chat"],"prompt":"The","max_tokens":2)"}};
  Client client = server().client();
  int answered = 0;
  for (int i = 0; i < 600; ++i) {
    std::string path = "/generate", body;
    if (i % 4 == 3) {
      body = R"({"inputs":"The","parameters":{"max_new_tokens":2,")" + some(inner) + "\":" + some(values) + "}}";
    } else {
      const auto& [route, known] = forms[static_cast<std::size_t>(i % 4)];
      std::string field = some(fields);
      while (known.find("\"" + field + "\"") != std::string::npos) field = some(fields);
      path = route;
      body = "{" + known + ",\"" + field + "\":" + some(values) + "}";
    }
    const Answer answer = client.ask("POST", path, body);
    INFO(path << " " << body << " " << answer.body);
    CHECK(answer.whole);
    const bool expected = answer.status == 200 || answer.status == 400 || answer.status == 404 || answer.status == 422;
    CHECK(expected);
    if (answer.field("Connection") == "close") break;
    answered += answer.status == 200 ? 1 : 0;
  }
  CHECK(answered > 100);
}

TEST_CASE("a client that goes frees its room") {
  const double before = std::max(0.0, server().counter("qlora_requests_total{end=\"cancelled\"}"));
  json body = greedy("The", 500);
  body["stream"] = true;
  body["logit_bias"] = {{"2", -100}};  // it does not end by itself
  for (int i = 0; i < 4; ++i) {
    Client client = server().client();
    const std::string text = body.dump();
    client.send("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + std::to_string(text.size()) +
                "\r\n\r\n" + text);
    CHECK(client.until("data:").ends_with("data:"));
  }
  // Each either went before it was whole, or was whole: the slots are free again in both cases.
  for (int i = 0; i < 6000 && (server().counter("qlora_running") > 0 || server().counter("qlora_waiting") > 0); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  CHECK(server().counter("qlora_running") == 0);
  CHECK(server().counter("qlora_requests_total{end=\"cancelled\"}") > before);
  CHECK(server().text(greedy("The", 4)) != "");
}

TEST_CASE("the description names the paths that there are, and no others") {
  const json paths = server().get("/openapi.json")["paths"];
  CHECK(paths.size() == 15);
  for (const auto& [path, methods] : paths.items()) {
    for (const auto& [method, description] : methods.items()) {
      INFO(method << " " << path);
      const Answer answer = server().client().ask(method == "get" ? "GET" : "POST", path, method == "get" ? "" : "{}");
      CHECK(answer.status != 404);
      CHECK(answer.status != 405);
      CHECK(description["responses"].contains(std::to_string(answer.status)));
    }
  }
  CHECK(server().client().ask("GET", "/../etc/passwd").status == 404);
  CHECK(server().client().ask("DELETE", "/health").status == 405);
  const Answer page = server().client().ask("GET", "/", "", "Accept: text/html,*/*\r\n");
  CHECK(page.field("Content-Type").starts_with("text/html"));
  CHECK(page.field("Content-Security-Policy").starts_with("default-src 'none'"));
}

TEST_CASE("as in a container: names of the environment, a key for all paths but one, an end that lets streams end") {
  const Scratch scratch;
  Server contained(scratch, "--slots 1 --queue 1",
                   "HF_MODEL_ID='" + model_dir + "' MAX_INPUT_LENGTH=20 MAX_TOTAL_TOKENS=512 QLORA_API_KEY=sesame");
  const std::string key = "Authorization: Bearer sesame\r\n";
  CHECK(contained.client().ask("GET", "/health").status == 200);
  const json info = json::parse(contained.client().ask("GET", "/info", "", key).body);
  CHECK(info["model_id"] == "tiny-chat");
  CHECK(info["max_input_length"] == 20);
  CHECK(info["max_total_tokens"] == 512);
  const json paths = json::parse(contained.client().ask("GET", "/openapi.json", "", key).body)["paths"];
  CHECK(paths.size() == 13);  // no door for adapters
  for (const auto& [path, methods] : paths.items()) {
    for (const char* method : {"GET", "POST", "HEAD", "PUT"}) {
      INFO(method << " " << path);
      if (path != "/health") CHECK(contained.client().ask(method, path).status == 401);
    }
  }
  CHECK(contained.client().ask("POST", "/adapters", "{}", key).status == 404);
  json body = greedy("The", 450);
  body["logit_bias"] = {{"2", -100}};
  CHECK(contained.client()
            .ask("POST", "/v1/completions", json{{"prompt", std::string(400, 'a')}, {"max_tokens", 4}}.dump(), key)
            .status == 400);
  body["n"] = 3;  // more than run and wait
  const Answer full = contained.client().ask("POST", "/v1/completions", body.dump(), key);
  CHECK(full.status == 429);
  CHECK(full.field("Retry-After") == "1");
  body["n"] = 1;
  body["stream"] = true;
  Client client = contained.client();
  const std::string text = body.dump();
  client.send("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + key +
              "Content-Length: " + std::to_string(text.size()) + "\r\n\r\n" + text);
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
  refused("'" + model_dir + "' --host 0.0.0.0", "", "there is no key");
  refused("'" + model_dir + "' --host nowhere.example", "", "nowhere.example");
  refused("'" + model_dir + "' '" + model_dir + "'", "", "one base is served");
  refused("'" + model_dir + "' --adapter dir", "", "NAME=DIR");
  refused("'" + model_dir + "' --adapter tiny-chat=dir", "", "two models are called tiny-chat");
  refused("'" + model_dir + "'", "MAX_TOTAL_TOKENS=many", "MAX_TOTAL_TOKENS");
  refused("", "HF_MODEL_ID=org/name", "HF_MODEL_ID");
}
