// qlora/run/serving_options.hpp — options of a program that answers over HTTP; see options.hpp.
#pragma once

#include <array>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "qlora/run/option.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// How a model is served over HTTP.
struct Serving {
  std::string host = "127.0.0.1";
  int port = 8080;
  int slots = 8;
  Bytes kv_memory{};
  int context = 0;
  int queue = 128;
  std::filesystem::path key_file;
  std::vector<std::filesystem::path> probes;
  bool admin = false;
  int timeout = 10;
};

template <>
struct Table<Serving> {
  static constexpr std::string_view title = "Serving";
  static constexpr std::string_view section = "";
  static constexpr std::string_view verbs = "serve";
  static constexpr auto options = std::to_array<Option<Serving>>({
      {.name = "host",
       .member = &Serving::host,
       .help = "Address to listen on; one that other machines reach needs a key"},
      {.name = "port", .member = &Serving::port, .help = "Port to listen on; 0: any that is free", .range = {0, 65535}},
      {.name = "slots",
       .member = &Serving::slots,
       .help = "Requests that run at once; fewer where memory is short",
       .range = {1, 1024},
       .unit = "requests"},
      {.name = "kv_memory",
       .member = &Serving::kv_memory,
       .help = "Keys and values of all requests to a model take at most so much, as 8GiB: fewer run at once if they "
               "do not fit; without it what weights leave"},
      {.name = "context",
       .member = &Serving::context,
       .help = "Tokens that prompt and reply have together at most; 0: MAX_TOTAL_TOKENS, else what the model reads",
       .range = {0, 1 << 24},
       .unit = "tokens"},
      {.name = "queue",
       .member = &Serving::queue,
       .help = "Requests that wait for a slot; further ones are refused",
       .range = {0, 100000},
       .unit = "requests"},
      {.name = "key_file",
       .member = &Serving::key_file,
       .help = "File whose first line is the key that clients show; without it the environment variable QLORA_API_KEY"},
      {.name = "probes",
       .member = &Serving::probes,
       .help = "Files of questions with known answers, which the page puts to the variants"},
      {.name = "admin",
       .member = &Serving::admin,
       .help = "Let clients load adapters from this machine's folders, and unload them"},
      {.name = "timeout",
       .member = &Serving::timeout,
       .help = "Time that a client has for the header of a request; three times that for its body",
       .range = {1, 3600},
       .unit = "seconds"},
  });
};
static_assert(well_formed<Serving>());

}  // namespace run
}  // namespace v0
}  // namespace qlora
