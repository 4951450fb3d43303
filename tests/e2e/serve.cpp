// serve.cpp — a web server on the loopback for the end-to-end tests: serves the files of a folder, one request after
// the other. /missing answers 404, /moved redirects to /, /binary sends what is no text, /broken closes the connection.
//   serve FOLDER     prints its port and serves until it is ended
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>

namespace {

namespace fs = std::filesystem;

std::string response(const std::string& status, const std::string& type, const std::string& body,
                     const std::string& more = {}) {
  return "HTTP/1.1 " + status + "\r\nContent-Type: " + type + "\r\nContent-Length: " + std::to_string(body.size()) +
         "\r\nConnection: close\r\n" + more + "\r\n" + body;
}

std::string answer(const fs::path& folder, const std::string& target) {
  if (target == "/moved") return response("302 Found", "text/html", "", "Location: /index.html\r\n");
  if (target == "/binary") return response("200 OK", "image/png", "\x89PNG\r\n\x1a\n");
  if (target == "/broken") return {};
  const fs::path file = folder / target.substr(1);
  if (target.find("..") != std::string::npos || !fs::is_regular_file(file)) {
    return response("404 Not Found", "text/html", "<p>nothing here</p>");
  }
  std::ifstream in(file, std::ios::binary);
  std::ostringstream body;
  body << in.rdbuf();
  return response("200 OK", "text/html; charset=utf-8", body.str());
}

void send_all(int client, const std::string& text) {
  for (std::size_t sent = 0; sent < text.size();) {
    const ssize_t n = ::send(client, text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
    if (n <= 0) return;
    sent += static_cast<std::size_t>(n);
  }
}

void serve(int client, const fs::path& folder) {
  std::string request;
  char buffer[4096];
  while (request.find("\r\n\r\n") == std::string::npos && request.size() < 65536) {
    const ssize_t n = ::recv(client, buffer, sizeof buffer, 0);
    if (n <= 0) return;
    request.append(buffer, static_cast<std::size_t>(n));
  }
  std::istringstream words(request);
  std::string method;
  std::string target;
  words >> method >> target;
  if (method == "GET" && target.starts_with("/")) send_all(client, answer(folder, target));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const int listener = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  if (listener < 0 || ::bind(listener, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      ::listen(listener, 16) != 0 || ::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    std::cerr << "serve: no loopback socket\n";
    return 1;
  }
  std::cout << ntohs(address.sin_port) << std::endl;
  while (true) {
    const int client = ::accept(listener, nullptr, nullptr);
    if (client < 0) continue;
    serve(client, argv[1]);
    ::close(client);
  }
}
