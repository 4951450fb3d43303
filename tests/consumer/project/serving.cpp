// An HTTP server in a user's program: it listens, answers a client, and ends.
#include <qlora/serve/http_server.hpp>

#include <chrono>
#include <memory>

#include <boost/asio/buffer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/address_v4.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>
#include <boost/system/error_code.hpp>
#include <string>

namespace asio = boost::asio;

int main() {
  const auto server = qlora::serve::open_http_server(
      {.port = 0}, [](const std::shared_ptr<qlora::serve::Exchange>& exchange) { exchange->reply({.body = "hello"}); });
  asio::io_context context;
  asio::ip::tcp::socket socket(context);
  socket.connect({asio::ip::address_v4::loopback(), static_cast<unsigned short>(server->port())});
  asio::write(socket, asio::buffer(std::string("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")));
  std::string answer;
  boost::system::error_code end;
  asio::read(socket, asio::dynamic_buffer(answer), end);
  server->stop(std::chrono::seconds(1));
  return answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nhello") ? 0 : 1;
}
