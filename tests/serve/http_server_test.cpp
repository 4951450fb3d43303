// http_server_test.cpp — the HTTP server over real sockets: limits, deadlines, keys, answers in parts, clients that go.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/serve/http_server.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "support/http_client.hpp"
#include "support/refusal.hpp"

using namespace std::chrono_literals;
using qlora::serve::Exchange;
using qlora::serve::HttpOptions;
using qlora::serve::HttpReply;
using qlora::serve::HttpRequest;
using qlora::serve::HttpServer;
using test::Answer;
using test::Client;

namespace {

/// Waits until something has happened in another thread; a minute is for a machine that is busy.
class Happened {
 public:
  void now() {
    const std::lock_guard lock(mutex_);
    ++count_;
    changed_.notify_all();
  }
  bool wait(int times = 1) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, 60s, [&] { return count_ >= times; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int count_ = 0;
};

/// Echoes what it is asked, in parts where the path says so, and keeps exchanges of /wait.
struct Echo {
  std::mutex mutex;
  std::vector<std::shared_ptr<Exchange>> kept;
  Happened waiting, lost, slow, hurry;

  void operator()(const std::shared_ptr<Exchange>& exchange) {
    const HttpRequest& request = exchange->request();
    if (request.path == "/echo") {
      exchange->reply({200, "text/plain", request.method + " " + request.query + " " + request.body, {}});
    } else if (request.path == "/parts") {
      exchange->begin({200, "text/event-stream", "first;", {}});
      exchange->write("second;");
      exchange->write("");
      exchange->write("third;");
      exchange->end();
      exchange->write("too late");
    } else if (request.path == "/wait" || request.path == "/stream") {
      exchange->on_gone([this] { lost.now(); });
      if (request.path == "/stream") exchange->begin({200, "text/event-stream", "begin;", {}});
      const std::lock_guard lock(mutex);
      kept.push_back(exchange);
      waiting.now();
    } else if (request.path == "/slow") {  // a body that takes its thread until others say so
      slow.now();
      (void)hurry.wait();
      exchange->reply({200, "text/plain", request.body, {}});
    } else if (request.path == "/throws") {
      throw std::runtime_error("the handler threw");
    } else if (request.path == "/throws-later" || request.path == "/throws-in-parts") {
      exchange->on_gone([this] { lost.now(); });
      if (request.path == "/throws-in-parts") exchange->begin({200, "text/event-stream", "begin;", {}});
      exchange->post([exchange] { throw std::runtime_error("thrown for " + exchange->request().path); });
    }  // else nobody answers
  }
  std::shared_ptr<Exchange> take() {
    const std::lock_guard lock(mutex);
    const std::shared_ptr<Exchange> last = kept.back();
    kept.pop_back();
    return last;
  }
  void forget() {
    std::vector<std::shared_ptr<Exchange>> all;
    const std::lock_guard lock(mutex);
    all.swap(kept);
  }
};

struct Running {
  Echo echo;
  std::unique_ptr<HttpServer> server;

  explicit Running(HttpOptions options = {}) {
    options.port = 0;
    server = qlora::serve::open_http_server(options, [this](const std::shared_ptr<Exchange>& e) { echo(e); });
  }
  ~Running() {
    if (server != nullptr) server->stop(0s);  // no request comes any more
    echo.forget();                            // exchanges do not outlive their server
  }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;
  [[nodiscard]] int port() const { return server->port(); }
};

/// Whether the server has no connection left within a minute.
bool all_closed(const HttpServer& server) {
  for (int i = 0; i < 6000 && server.connections() > 0; ++i) std::this_thread::sleep_for(10ms);
  return server.connections() == 0;
}

}  // namespace

TEST_CASE("requests on one connection, one after another and sent ahead") {
  const Running running;
  Client client(running.port());
  CHECK(client.ask("POST", "/echo?q=1", "hello").body == "POST q=1 hello");
  CHECK(client.ask("GET", "/echo").body == "GET  ");
  const Answer head = client.ask("HEAD", "/echo");
  CHECK(head.status == 200);
  CHECK(head.field("Content-Length") == "5");
  const std::string ahead =
      "GET /parts HTTP/1.1\r\nHost: localhost\r\n\r\nGET /echo?2 HTTP/1.1\r\nHost: localhost\r\n\r\n";
  client.send(ahead);
  CHECK(client.answer().body == "first;second;third;");
  CHECK(client.answer().body == "GET 2 ");
  client.send(
      "POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n");
  CHECK(client.answer().body == "POST  abcd");
  client.send("POST /echo HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
  CHECK(client.until("\r\n\r\n").starts_with("HTTP/1.1 100 "));
  client.send("xyz");
  CHECK(client.answer().body == "POST  xyz");
  CHECK(client.ask("GET", "/throws").status == 500);
  CHECK(client.ask("GET", "/nobody").status == 500);
  CHECK(client.ask("GET", "/echo", "", "Connection: close\r\n").field("Connection") == "close");
  CHECK(client.rest().empty());
}

TEST_CASE("an old client gets the parts up to the end of the connection") {
  const Running running;
  Client client(running.port());
  client.send("GET /parts HTTP/1.0\r\n\r\n");
  const Answer answer = client.answer();
  CHECK(answer.body == "first;second;third;");
  CHECK(answer.field("Connection") == "close");
}

TEST_CASE("what is too large or no HTTP is refused and not kept") {
  const Running running;
  const auto first_line = [&](const std::string& bytes) {
    Client client(running.port());
    client.send(bytes);
    return client.answer();
  };
  const std::string post = "POST /echo HTTP/1.1\r\nHost: localhost\r\n";
  const std::string chunked = post + "Transfer-Encoding: chunked\r\n\r\n";
  CHECK(first_line("GET /echo HTTP/1.1\r\nX: " + std::string(20000, 'x') + "\r\n\r\n").status == 431);
  CHECK(first_line(post + "Content-Length: 2097153\r\n\r\n").status == 413);
  CHECK(first_line(post + "Content-Length: 99999999999999999999999\r\n\r\n").status == 400);
  CHECK(first_line(post + "Content-Length: -1\r\n\r\n").status == 400);
  CHECK(first_line(chunked + "-2\r\nab\r\n").status == 400);
  CHECK(first_line(chunked + "fffffffffffffffff\r\nab\r\n").status == 400);
  CHECK(first_line(chunked + "200001\r\nab").status == 413);
  CHECK(first_line(post + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").status == 400);
  CHECK(first_line("hello\r\n\r\n").status == 400);
  CHECK(first_line("GET /echo HTTP/7.3\r\n\r\n").status == 400);
  {
    Client flood(running.port());  // 64 MB of one header: the server leaves long before
    const std::string part(65536, 'h');
    bool open = flood.send("GET / HTTP/1.1\r\nX: ");
    for (int i = 0; i < 1000 && open; ++i) open = flood.send(part);
    CHECK(!open);
  }
  CHECK(all_closed(*running.server));
}

TEST_CASE("a key opens every path but the open ones") {
  HttpOptions options{.key = "secret", .open_paths = {"/echo"}, .open_pages = {"/parts"}};
  const Running running(options);
  const auto ask = [&](const std::string& path, const std::string& headers) {
    return Client(running.port()).ask("GET", path, "", headers);
  };
  CHECK(ask("/echo", "").status == 200);
  for (const std::string path : {"/parts", "/echo/", "/echo/../parts", "//echo", "/nothing"}) {
    INFO(path);
    for (const std::string headers : {"", "Authorization: secret\r\n", "Authorization: Bearer secre\r\n",
                                      "Authorization: Bearer secrets\r\n", "Authorization: Bearer \r\n"}) {
      const Answer answer = ask(path, headers);
      CHECK(answer.status == 401);
      CHECK(answer.field("WWW-Authenticate") == "Bearer");
    }
  }
  CHECK(ask("/parts", "Authorization: Bearer secret\r\n").status == 200);
  // A page is for browsers.
  CHECK(ask("/parts", "Accept: text/html\r\n").status == 200);
  CHECK(ask("/parts", "Accept: */*\r\n").status == 401);
  CHECK(ask("/nothing", "Accept: text/html\r\n").status == 401);
  CHECK(Client(running.port()).ask("POST", "/parts", "{}", "Accept: text/html\r\n").status == 401);
  // An empty name is not the same as no key where one is needed.
  CHECK(ask("/parts", "authorization: bearer secret\r\n").status == 200);
}

TEST_CASE("without a key other machines and pages of other sites are kept out") {
  for (const std::string host : {"0.0.0.0", "::", "example.org", "127.0.0.1.5"}) {
    INFO(host);
    CHECK(!test::refusal([&] { (void)qlora::serve::open_http_server({.host = host, .port = 0}, {}); }).empty());
  }
  const Running running;
  const auto status = [&](const std::string& headers) {
    Client client(running.port());
    client.send("GET /echo HTTP/1.1\r\n" + headers + "\r\n");
    return client.answer().status;
  };
  CHECK(status("Host: localhost:8080\r\n") == 200);
  CHECK(status("Host: 127.0.0.1:1\r\n") == 200);
  CHECK(status("Host: [::1]:80\r\n") == 200);
  CHECK(status("Host: evil.example\r\n") == 403);  // a name that was made to point here
  CHECK(status("Host: localhost.evil.example\r\n") == 403);
  CHECK(status("Host: 127.evil.example\r\n") == 403);
  CHECK(status("Host: 127.0.0.1.evil.example\r\n") == 403);
  CHECK(status("Host: 127.1\r\n") == 403);
  CHECK(status("Host: 127.255.255.254:80\r\n") == 200);
  CHECK(status("Host: LOCALHOST\r\n") == 200);
  CHECK(status("Host: localhost\r\nOrigin: https://evil.example\r\n") == 403);
  CHECK(status("Host: localhost\r\nOrigin: null\r\n") == 403);
  CHECK(status("Host: localhost\r\nOrigin: http://127.evil.example\r\n") == 403);
  CHECK(status("Host: localhost\r\nOrigin: http://localhost:3000\r\n") == 200);
}

TEST_CASE("who is slow is left, and does not keep others waiting") {
  HttpOptions options;
  options.limits.header_time = 300ms;
  options.limits.body_time = 300ms;
  options.limits.idle_time = 300ms;
  const Running running(options);
  std::vector<Client> slow;
  for (int i = 0; i < 200; ++i) {
    slow.emplace_back(running.port());
    if (i % 4 == 1) slow.back().send("GET /echo HT");
    if (i % 4 == 2) slow.back().send("POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nab");
    if (i % 4 == 3) (void)slow.back().ask("GET", "/echo");  // and then idle
  }
  CHECK(Client(running.port()).ask("GET", "/echo").status == 200);
  for (Client& client : slow) CHECK(client.rest().empty());
  CHECK(all_closed(*running.server));
}

TEST_CASE("connections beyond the limit take the place of those that wait, and always reach the open paths") {
  HttpOptions options;
  options.limits.connections = 2;
  options.open_paths = {"/echo"};
  Running running(options);
  Client first(running.port());
  CHECK(first.ask("GET", "/echo").status == 200);
  Client second(running.port());
  CHECK(second.ask("GET", "/echo").status == 200);
  Client third(running.port());
  CHECK(third.ask("GET", "/echo").status == 200);
  CHECK(first.rest().empty());  // it has waited longest
  for (Client* client : {&second, &third}) client->send("GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n");
  REQUIRE(running.echo.waiting.wait(2));
  // Both are being answered: others get no more than the open paths, however many there are.
  std::vector<Client> silent;
  for (int i = 0; i < 40; ++i) {
    silent.emplace_back(running.port());
    silent.back().send("GET /ec");
  }
  const Answer refused = Client(running.port()).ask("GET", "/parts");
  CHECK(refused.status == 503);
  CHECK(refused.field("Connection") == "close");
  CHECK(Client(running.port()).ask("GET", "/echo").status == 200);
  CHECK(silent.front().rest().empty());
  CHECK(running.server->connections() <= 2 + 32);
  for (int i = 0; i < 2; ++i) {
    const std::shared_ptr<Exchange> exchange = running.echo.take();
    exchange->post([exchange] { exchange->reply({200, "text/plain", "whole", {}}); });
  }
  for (Client* client : {&second, &third}) CHECK(client->answer().body == "whole");
}

TEST_CASE("bodies have so much memory together") {
  HttpOptions options;
  options.limits.bodies_bytes = 100000;
  const Running running(options);
  const auto head = [](int size) {
    return "POST /echo HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: " + std::to_string(size) +
           "\r\n\r\n";
  };
  const std::string large(60000, 'x'), small(9000, 'x');
  for (const bool goes : {true, false}) {
    INFO(goes);
    Client first(running.port());
    first.send(head(60000));
    CHECK(first.until("\r\n\r\n").starts_with("HTTP/1.1 100 "));
    for (const std::string length : {"Content-Length: 60000\r\n", "Transfer-Encoding: chunked\r\n"}) {
      Client second(running.port());
      second.send("POST /echo HTTP/1.1\r\nHost: localhost\r\n" + length + "\r\n");
      CHECK(second.answer().status == 503);
    }
    CHECK(Client(running.port()).ask("POST", "/echo", small).status == 200);
    if (goes) {
      first.hang_up();
      CHECK(all_closed(*running.server));
    } else {
      first.send(large);
      CHECK(first.answer().body == "POST  " + large);
      CHECK(first.ask("POST", "/echo", large).body == "POST  " + large);  // the same room again
      first.hang_up();
      CHECK(all_closed(*running.server));
      CHECK(Client(running.port()).ask("POST", "/echo", large).status == 200);
    }
  }
}

TEST_CASE("bodies that take long leave a thread to the others") {
  Running running({.threads = 3});
  std::vector<Client> clients;
  for (int i = 0; i < 6; ++i) {
    clients.emplace_back(running.port());
    clients.back().send("POST /slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n" + std::to_string(i));
  }
  REQUIRE(running.echo.slow.wait(2));
  CHECK(Client(running.port()).ask("GET", "/echo").status == 200);
  clients[5].hang_up();  // one of those that wait, or of those that run
  CHECK(Client(running.port()).ask("GET", "/echo").status == 200);
  running.echo.hurry.now();
  for (int i = 0; i < 5; ++i) CHECK(clients[static_cast<std::size_t>(i)].answer().body == std::to_string(i));
  CHECK(Client(running.port()).ask("POST", "/echo", "x").status == 200);
  for (Client& client : clients) client.hang_up();
  CHECK(all_closed(*running.server));
}

TEST_CASE("a client that goes is noticed, before its answer and in it") {
  Running running;
  for (const std::string path : {"/wait", "/stream"}) {
    INFO(path);
    Client client(running.port());
    client.send("GET " + path + " HTTP/1.1\r\nHost: localhost\r\n\r\n");
    if (path == "/stream") CHECK(client.until("begin;").ends_with("begin;"));
    REQUIRE(running.echo.waiting.wait(path == "/wait" ? 1 : 2));
    const std::shared_ptr<Exchange> exchange = running.echo.take();
    CHECK(!exchange->client_left());
    client.finish();
    CHECK(exchange->client_left());
    client.hang_up();
    REQUIRE(running.echo.lost.wait(path == "/wait" ? 1 : 2));
    CHECK(exchange->client_left());
    Happened looked;
    std::atomic<bool> open{true};
    exchange->post([&] {
      open = exchange->open();
      exchange->write("to nobody");
      exchange->end();
      looked.now();
    });
    REQUIRE(looked.wait());
    CHECK(!open);
  }
  CHECK(all_closed(*running.server));
}

TEST_CASE("a client that does not read its answer is taken for gone") {
  HttpOptions options;
  options.limits.waiting_bytes = 1 << 16;
  Running running(options);
  Client client(running.port());
  client.send("GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n");
  REQUIRE(running.echo.waiting.wait());
  const std::shared_ptr<Exchange> exchange = running.echo.take();
  std::atomic<bool> open{true};
  const std::string part(1 << 16, 'p');
  for (int i = 0; i < 4000 && open; ++i) {  // 262 MB: no socket holds that
    Happened written;
    exchange->post([&] {
      exchange->write(part);
      open = exchange->open();
      written.now();
    });
    REQUIRE(written.wait());
  }
  CHECK(!open);
  CHECK(running.echo.lost.wait());
}

TEST_CASE("what throws after the handler ends its own request alone") {
  Running running;
  Client client(running.port()), other(running.port());
  other.send("GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n");
  CHECK(other.until("begin;").ends_with("begin;"));
  const Answer answer = client.ask("GET", "/throws-later");
  CHECK(answer.status == 500);
  CHECK(answer.body == "thrown for /throws-later\n");
  CHECK(running.echo.lost.wait(1));
  CHECK(client.ask("GET", "/echo").status == 200);  // the connection goes on
  client.send("GET /throws-in-parts HTTP/1.1\r\nHost: localhost\r\n\r\n");
  CHECK(client.rest().find("\r\n0\r\n") == std::string::npos);  // it ends, and the answer does not
  CHECK(running.echo.lost.wait(2));
  std::shared_ptr<Exchange> exchange = running.echo.take();
  exchange->post([exchange] { exchange->end(); });
  exchange.reset();
  CHECK(other.until("0\r\n\r\n").ends_with("\r\n0\r\n\r\n"));
}

TEST_CASE("a stop lets answers end, and takes nothing new") {
  Running running;
  Client client(running.port()), idle(running.port());
  CHECK(idle.ask("GET", "/echo").status == 200);
  client.send("GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n");
  CHECK(client.until("begin;").ends_with("begin;"));
  REQUIRE(running.echo.waiting.wait());
  std::thread stopper([&] { running.server->stop(60s); });
  CHECK(idle.rest().empty());  // closed at once
  std::shared_ptr<Exchange> exchange = running.echo.take();
  exchange->post([exchange] {
    exchange->write("end;");
    exchange->end();
  });
  exchange.reset();
  CHECK(client.rest().find("end;") != std::string::npos);
  stopper.join();
  CHECK(running.server->connections() == 0);
}

TEST_CASE("a stop does not wait for ever") {
  Running running;
  Client client(running.port());
  client.send("GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n");
  REQUIRE(running.echo.waiting.wait());
  running.server->stop(50ms);
  CHECK(running.echo.lost.wait());
  CHECK(client.rest().empty());
  running.echo.kept.clear();  // no exchange outlives its server
}
