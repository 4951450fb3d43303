// serve_threads_test.cpp — for the thread sanitizer: the server, its routes, the service and the scheduler over real
// sockets, with clients of many threads that ask, cut their streams off, and load adapters meanwhile. The weights are
// random and few, the tokenizer is that of the repository's chat model.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "qlora/cpu.hpp"
#include "qlora/generate/scheduler.hpp"
#include "qlora/model/context.hpp"
#include "qlora/serve/http_server.hpp"
#include "qlora/serve/routes.hpp"
#include "qlora/serve/service.hpp"
#include "support/http_client.hpp"
#include "support/served_files.hpp"
#include "support/small_model.hpp"

using namespace qlora;
using namespace qlora::serve;
using namespace std::chrono_literals;
using test::Answer;
using test::Client;

namespace {

using B = Cpu<float>;
//                                   vocab dim layers heads kv head ffn
constexpr Config net{.shape = /* */ {1536, 48, 2, 6, 2, 8, 80}, .lora = {.rank = 4, .targets = Proj::q | Proj::v}};
constexpr DecodeLimits room{.sequences = 3, .length = 96, .step_tokens = 32, .all_logits = true};

/// Keeps threads of the server until it is opened.
class Gate {
 public:
  void pass() {
    std::unique_lock lock(mutex_);
    ++inside_;
    changed_.notify_all();
    changed_.wait_for(lock, 60s, [&] { return open_; });
    --inside_;
  }
  /// Whether so many are kept, within a minute.
  bool keeps(int threads) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, 60s, [&] { return inside_ == threads; });
  }
  void open(bool now) {
    const std::lock_guard lock(mutex_);
    open_ = now;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int inside_ = 0;
  bool open_ = false;
};

/// What a test puts between the service and the scheduler.
using Wrap = std::function<std::unique_ptr<BatchSession>(std::unique_ptr<BatchSession>)>;

/// As serve.hpp puts it together, without a device and a directory of weights.
struct Served {
  Model<net, B> model{small_model::weights(net.shape, 2), {}, B(2)};
  std::mutex adapters;
  Metrics metrics;
  std::unique_ptr<HttpServer> server;  // outlives the exchanges of those below
  Service service;
  ServedModel served{test::served_files(),
                     std::make_shared<Names>("base", std::vector<std::string>()),
                     {.input = 95, .total = 96},
                     service,
                     metrics};
  ServedModels models{{&served}};
  Routes routes{models, "1", [] { return 0; }, false, door()};
  Gate gate;  // what asks for /gate waits for

  explicit Served(const Wrap& wrap = [](std::unique_ptr<BatchSession> session) { return session; })
      : service(wrap(std::make_unique<Scheduler<code_of(net), B>>(model.make_context(), room)), 40, metrics) {
    HttpOptions options{.port = 0, .threads = 3};
    options.answered = [this](std::string_view path, int status) { metrics.answered(routes.name_of(path), status); };
    server = open_http_server(options, [this](const std::shared_ptr<Exchange>& exchange) {
      if (exchange->request().path == "/gate") gate.pass();
      routes(exchange);
    });
  }
  ~Served() { end(); }
  void end() {
    server->stop(0ms);
    service.stop();
  }
  AdapterDoor door() {
    return {.attach =
                [this](const std::string&, const std::string& name, const std::filesystem::path& seed) {
                  const std::lock_guard lock(adapters);
                  auto set = std::make_shared<AdapterSet<B>>(model.weights().layout());
                  small_model::load_random_adapters(*set, model.backend(), net.shape, 4, 16.0F,
                                                    std::stoul(seed.string()));
                  model.attach(name, set);
                  served.names().set(name, true);
                },
            .detach =
                [this](const std::string& name) {
                  const std::lock_guard lock(adapters);
                  served.names().set(name, false);
                  model.detach(name);
                }};
  }
  [[nodiscard]] Answer ask(const std::string& path, const std::string& body) const {
    return Client(server->port()).ask(body.empty() ? "GET" : "POST", path, body);
  }
  /// Whether nothing runs any more, within a minute.
  [[nodiscard]] bool at_rest() const {
    const auto busy = [&] { return service.load().running + service.load().waiting + service.queued() > 0; };
    for (int i = 0; i < 6000 && busy(); ++i) std::this_thread::sleep_for(10ms);
    return !busy();
  }
};

std::string completion(const std::string& prompt, int tokens, const std::string& more = {}) {
  return R"({"prompt":")" + prompt + R"(","temperature":0,"logit_bias":{"2":-100},"max_tokens":)" +
         std::to_string(tokens) + more + "}";
}
/// The text of an answer, as it stands in JSON.
std::string text_of(const Answer& answer) {
  const std::size_t begin = answer.body.find("\"text\":");
  return answer.body.substr(begin, answer.body.find(",\"logprobs\"", begin) - begin);
}
std::string request(const std::string& body) {
  return "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + std::to_string(body.size()) +
         "\r\n\r\n" + body;
}

}  // namespace

TEST_CASE("clients of many threads ask, leave and load adapters, and get what each gets alone") {
  Served all;
  const std::vector<std::string> prompts{"The", "A lamp", "Oakhurst is"};
  std::vector<std::string> alone;
  for (const std::string& prompt : prompts) alone.push_back(text_of(all.ask("/v1/completions", completion(prompt, 9))));
  std::mutex mutex;
  std::string wrong;
  const auto expect = [&](bool good, const std::string& what) {
    const std::lock_guard lock(mutex);
    if (!good) wrong += what + "\n";
  };
  const auto one = [&](std::size_t who, std::size_t turn) {
    const std::size_t which = (who + turn) % prompts.size();
    const std::string mine = "mine" + std::to_string(who);
    Client client(all.server->port());
    switch ((3 * who + turn) % 7) {
      case 0:
        expect(text_of(client.ask("POST", "/v1/completions", completion(prompts[which], 9))) == alone[which], "a text");
        return;
      case 1: {  // cut off in the middle
        client.send(request(completion(prompts[which], 90, R"(,"stream":true)")));
        expect(client.until("data:").ends_with("data:"), "the beginning of a stream");
        return;
      }
      case 2:  // gone before the answer
        client.send(request(completion(prompts[which], 90)));
        return;
      case 3: {
        const Answer answer = client.ask("POST", "/v1/completions", completion(prompts[which], 9, R"(,"stream":true)"));
        expect(answer.body.ends_with("data: [DONE]\n\n"), "the end of a stream");
        return;
      }
      case 4: {
        const std::string loads = R"({"name":")" + mine + R"(","path":")" + std::to_string(turn) + "\"}";
        expect(client.ask("POST", "/adapters", loads).status == 200, "an adapter");
        const std::string body = R"({"models":["base",")" + mine + R"(@0.5"],"prompt":"The","max_tokens":5})";
        expect(client.ask("POST", "/compare", body).body.find("\"done\"") != std::string::npos, "a comparison");
        expect(client.ask("POST", "/adapters/unload", loads).status == 200, "an adapter's end");
        return;
      }
      case 5:
        expect(client.ask("GET", "/metrics").status == 200 && client.ask("GET", "/v1/models").status == 200, "lists");
        return;
      default: {
        const std::string stops =
            R"({"inputs":"The","parameters":{"max_new_tokens":20,"stop":["a","e"],"details":true}})";
        expect(client.ask("POST", "/generate", stops).status == 200, "a text with stop strings");
        expect(client.ask("POST", "/generate", "{}").status == 422, "a refusal");
        return;
      }
    }
  };
  std::vector<std::thread> clients;
  for (std::size_t who = 0; who < 6; ++who) {
    clients.emplace_back([&, who] {
      for (std::size_t turn = 0; turn < 14; ++turn) one(who, turn);
    });
  }
  for (std::thread& client : clients) client.join();
  CHECK_MESSAGE(wrong.empty(), wrong);
  CHECK(all.at_rest());
  CHECK(text_of(all.ask("/v1/completions", completion(prompts[0], 9))) == alone[0]);
}

TEST_CASE("a stop lets streams end while clients come and go") {
  Served all;
  std::vector<Client> streams;
  for (int i = 0; i < 3; ++i) {
    streams.emplace_back(all.server->port());
    streams.back().send(request(completion("The", 60, R"(,"stream":true)")));
    CHECK(streams.back().until("data:").ends_with("data:"));
  }
  std::thread others([port = all.server->port()] {
    try {
      for (;;) (void)Client(port).ask("GET", "/metrics");
    } catch (const std::exception&) {  // it listens no more
    }
  });
  std::thread stopper([&] { all.server->stop(60s); });
  for (Client& stream : streams) CHECK(stream.rest().find("data: [DONE]\n\n") != std::string::npos);
  others.join();
  stopper.join();
  CHECK(all.server->connections() == 0);
}

TEST_CASE("a stop that does not wait ends what runs") {
  Served all;
  std::vector<Client> streams;
  for (int i = 0; i < 4; ++i) {
    streams.emplace_back(all.server->port());
    streams.back().send(request(completion("The", 90, R"(,"stream":true)")));
  }
  CHECK(streams.front().until("data:").ends_with("data:"));
  all.end();
  for (Client& stream : streams) (void)stream.rest();
}

TEST_CASE("a cancelled request gets no token more than the one that is being made") {
  Served all;
  std::mutex mutex;
  std::condition_variable changed;
  int updates = 0;
  bool cancelled = false;
  Request wanted = all.served.request({1, 5, 6}, false, {});
  wanted.stop_ids = {};
  const auto group = all.service.submit({wanted}, [&](const Update& update) {
    std::unique_lock lock(mutex);
    CHECK(update.error.empty());
    ++updates;
    changed.notify_all();
    if (updates == 3) changed.wait_for(lock, 60s, [&] { return cancelled; });  // the third token is being handed on
  });
  REQUIRE(group.has_value());
  {
    std::unique_lock lock(mutex);
    REQUIRE(changed.wait_for(lock, 60s, [&] { return updates == 3; }));
    all.service.cancel(*group);
    cancelled = true;
    changed.notify_all();
  }
  CHECK(all.at_rest());
  CHECK(all.service.load().cached_tokens == 0);
  const std::lock_guard lock(mutex);
  CHECK(updates == 3);
}

TEST_CASE("clients cut off in mid-stream get no token once the server's kernel knows") {
  // In the step of its third token a client says that it has gone, and its end arrives, while all threads of the server
  // are kept: only the thread that draws can know. What is drawn in a later step is one token too many.
  struct Counting final : BatchSession {
    std::unique_ptr<BatchSession> session;
    std::mutex mutex;  // of leave
    std::function<void()> leave;
    int drawn = 0;  // since the client began to ask
    int late = 0;   // after it had gone

    [[nodiscard]] int context() const override { return session->context(); }
    [[nodiscard]] Ticket submit(Request request) override {
      drawn = 0;
      return session->submit(std::move(request));
    }
    void cancel(Ticket ticket) override { session->cancel(ticket); }
    [[nodiscard]] SchedulerLoad load() const override { return session->load(); }
    bool step(const std::function<void(const Progressed&)>& sink) override {
      return session->step([&](const Progressed& news) {
        drawn += static_cast<int>(news.tokens.size());
        if (drawn > 3) ++late;
        if (drawn == 3) {
          const std::lock_guard lock(mutex);
          leave();
        }
        sink(news);
      });
    }
  };
  Counting* counting = nullptr;
  Served all([&](std::unique_ptr<BatchSession> session) {
    auto made = std::make_unique<Counting>();
    made->session = std::move(session);
    counting = made.get();
    return made;
  });
  std::vector<Client> keepers;
  for (int i = 0; i < 3; ++i) keepers.emplace_back(all.server->port());
  for (int i = 0; i < 100; ++i) {
    Client client(all.server->port());
    std::atomic<bool> left{false};
    {
      const std::lock_guard lock(counting->mutex);
      counting->leave = [&] {
        for (Client& keeper : keepers) keeper.send("GET /gate HTTP/1.1\r\nHost: localhost\r\n\r\n");
        CHECK(all.gate.keeps(3));
        client.finish();
        left = true;
      };
    }
    client.send(request(completion("The", 90, R"(,"stream":true)")));
    const auto over = [&] { return left && all.service.load().running == 0; };
    for (int wait = 0; wait < 60000 && !over(); ++wait) std::this_thread::sleep_for(1ms);
    REQUIRE(over());
    all.gate.open(true);
    for (Client& keeper : keepers) CHECK(keeper.answer().status == 404);
    all.gate.open(false);
  }
  CHECK(counting->late == 0);
  CHECK(all.metrics.text({}, 0, 0).find("qlora_requests_total{end=\"cancelled\"} 100\n") != std::string::npos);
}
