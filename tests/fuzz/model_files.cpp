// model_files.cpp — damaged and hostile files of a tokenizer and a chat template; model_files.sh builds and runs it.
//   model_files N SEED FOLDER
// For each kind of file N mutations of good ones are read as the program reads them, each in a process of its own, and
// what is taken is used on texts and conversations. A crash, a sanitizer's report, an exception that is no Error, ids
// outside of the vocabulary, more than 20 s or more than 1 GiB are failures, whose files stay in FOLDER.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/io/json.hpp"
#include "qlora/text/chat_directory.hpp"
#include "qlora/text/prompt.hpp"
#include "qlora/text/tokenizer.hpp"
#include "qlora/text/tokenizer_directory.hpp"
#include "qlora/text/utf8.hpp"

namespace {

namespace fs = std::filesystem;
using namespace qlora;

constexpr int most_seconds = 20;                  // of CPU
constexpr long most_kib = 1L << 20;               // of memory, the sanitizers' included
constexpr int taken = 0, refused = 3, wrong = 4;  // what a process says with its exit code

std::string read_bytes(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}
void write_bytes(const fs::path& path, std::string_view bytes) { std::ofstream(path, std::ios::binary) << bytes; }

// --- mutations ----------------------------------------------------------------------------------------------------

using Random = std::mt19937_64;

std::size_t below(Random& random, std::size_t n) { return n == 0 ? 0 : random() % n; }

/// 1 in most cases, at most 3.
std::size_t few(Random& random) { return below(random, 3) != 0 ? 1 : 1 + below(random, 3); }

/// Bytes are changed, lost, repeated, cut off, or taken from another good file.
std::string damaged(std::string bytes, const std::string& other, std::string_view alphabet, Random& random) {
  for (std::size_t times = few(random); times > 0 && !bytes.empty(); --times) {
    const std::size_t at = below(random, bytes.size()), length = 1 + below(random, 40);
    switch (below(random, 7)) {
      case 0:
        bytes[at] = static_cast<char>(random());
        break;
      case 1:
        bytes[at] = static_cast<char>(bytes[at] ^ 1 << below(random, 8));
        break;
      case 2:
        bytes.erase(at, length);
        break;
      case 3:
        bytes.insert(at, bytes.substr(below(random, bytes.size()), length));
        break;
      case 4:
        if (!other.empty()) bytes.insert(at, other.substr(below(random, other.size()), 4 * length));
        break;
      case 5:
        bytes[at] = alphabet[below(random, alphabet.size())];
        break;
      default:
        if (below(random, 4) == 0) bytes.resize(at);
    }
  }
  return bytes;
}

/// All values of a document.
void collect(Json& value, std::vector<Json*>& out) {
  out.push_back(&value);
  if (value.is_structured()) {
    for (Json& part : value) collect(part, out);
  }
}
Json hostile_value(Random& random, const std::vector<Json*>& all) {
  static const std::vector<std::string> texts{"",
                                              " ",
                                              "\xE2\x96\x81",
                                              "<s>",
                                              "{{ 'x' * 99999999 }}",
                                              std::string(1, '\0'),
                                              "\xF0\x9F\x99\x82",
                                              "0",
                                              "(a+)+$",
                                              "(.*)*x",
                                              "[^\\r\\n]*",
                                              "\\p{L}+|",
                                              "(?=a)*",
                                              "<|im_start|>",
                                              "99999999999",
                                              "Sequence",
                                              "ByteLevel",
                                              "Replace",
                                              "Metaspace",
                                              "Split",
                                              "NFKC",
                                              "NFD",
                                              "Lowercase",
                                              "Strip"};
  switch (below(random, 10)) {
    case 0:
      return nullptr;
    case 1:
      return below(random, 2) == 0;
    case 2:
      return static_cast<std::int64_t>(random());
    case 3:
      return std::vector<std::int64_t>{0, -1, 1, 1'000'000, 2'097'151, 2'147'483'647}[below(random, 6)];
    case 4:
      return 1e300;
    case 5:
      return std::string(1U << below(random, 18), 'a');
    case 6:
      return below(random, 2) == 0 ? Json::array() : Json::object();
    case 7:
      return texts[below(random, texts.size())];
    default:
      return *all[below(random, all.size())];  // of another place
  }
}
/// Some values of a JSON document become others.
std::string rewritten(const std::string& bytes, Random& random) {
  Json file = Json::parse(bytes);
  for (std::size_t times = few(random); times > 0; --times) {
    std::vector<Json*> all;
    collect(file, all);
    // Most values are pieces and merges: half of the time one near the root.
    std::vector<Json*> near;
    for (Json& part : file) {
      near.push_back(&part);
      if (part.is_structured()) {
        for (Json& inner : part) {
          near.push_back(&inner);
          if (inner.is_structured() && inner.size() < 40) collect(inner, near);
        }
      }
    }
    std::vector<Json*>& from = below(random, 2) == 0 && !near.empty() ? near : all;
    Json* target = from[below(random, from.size())];
    Json value = hostile_value(random, all);
    if (target->is_object() && !target->empty() && below(random, 3) == 0) {
      target->erase(std::next(target->begin(), static_cast<std::ptrdiff_t>(below(random, target->size()))));
    } else if (target->is_array() && target->size() < 100 && below(random, 3) == 0) {
      target->push_back(target->empty() ? value : (*target)[below(random, target->size())]);
    } else {
      *target = std::move(value);
    }
  }
  return file.dump(-1, ' ', false, Json::error_handler_t::replace);
}
/// Statements and expressions of a chat template, some that ask for much.
std::string with_fragment(std::string text, Random& random) {
  static const std::vector<std::string> fragments{"{% for a in range(99999) %}",
                                                  "{% endfor %}",
                                                  "{% if messages %}",
                                                  "{% endif %}",
                                                  "{% set x = 'a' * 9999999 %}",
                                                  "{{ x ~ x ~ x }}",
                                                  "{% set ns = namespace(a=[]) %}",
                                                  "{% set ns.a = ns.a + [messages] %}",
                                                  "{% set ns.a = [ns.a, ns.a] %}",
                                                  "{{ ns.a | tojson }}",
                                                  "{% macro f(a) %}{{ f(a) }}{% endmacro %}",
                                                  "{{ f(1) }}",
                                                  "{{ messages | tojson }}",
                                                  "{{ (range(99999) | list)[::-1] | join(',') }}",
                                                  "{{ strftime_now('%9999d') }}",
                                                  "{{ messages[-1]['content'].split('') }}",
                                                  "{{ ('a' * 99999).replace('a', 'b' * 9999) }}",
                                                  "{{ -9223372036854775808 // -1 }}",
                                                  "{{ 9223372036854775807 * 2 }}",
                                                  "{{ messages[9223372036854775807] }}",
                                                  "{{ 'abc'[-9223372036854775808:9223372036854775807:-1] }}",
                                                  "{{ range(0, 9, -9223372036854775808) }}",
                                                  "{{ ((((((((((1))))))))))",
                                                  "{% raw %}",
                                                  "{#",
                                                  "{%- generation -%}",
                                                  "\xFF\xFE",
                                                  "{{ '\\x",
                                                  "{% break %}",
                                                  "{{ {'a': {'a': {'a': messages}}} }}"};
  for (std::size_t times = few(random); times > 0; --times)
    text.insert(below(random, text.size() + 1), fragments[below(random, fragments.size())]);
  return text;
}

// --- use ----------------------------------------------------------------------------------------------------------

std::string long_text() {
  std::string out;
  for (int i = 0; i < 200; ++i)
    out +=
        " The boat\tn\xC3\xA9"
        "e\xCC\x81\xCC\xA3 12345\n\n   \xE4\xBD\xA0\xE5\xA5\xBD\xF0\x9F\x99\x82 "
        "<s></s><|end|>aaaaaaaaaaaaaaaaaaaaaaaaaaa" +
        std::to_string(i);
  return out;
}

void require(bool holds, const char* what) {
  if (!holds) throw std::logic_error(what);
}

void use(const Tokenizer& tokenizer) {
  static const std::vector<std::string> texts{
      "",         "x", "Hello  world\n", std::string("\0\xFF\xC3", 3), std::string(3000, ' '), std::string(3000, 'a'),
      long_text()};
  for (const std::string& text : texts) {
    const std::vector<std::int32_t> ids = tokenizer.encode(text);
    for (const std::int32_t id : ids) {
      require(id >= 0 && id < tokenizer.vocab_size(), "an id outside of the vocabulary");
      require(!tokenizer.is_control(id), "a mark in a text");
    }
    require(is_utf8(tokenizer.decode(ids)), "a decoded text that is not UTF-8");
    if (!is_utf8(text)) continue;
    const MarkedIds marked = tokenizer.encode_marked({.text = text, .content = {}, .replies = {}});
    require(marked.ids.size() == marked.begins.size(), "an id without a place");
    for (const std::size_t begin : marked.begins) require(begin <= text.size(), "a place outside of the text");
  }
  require(tokenizer.eos() < tokenizer.vocab_size() && tokenizer.bos() < tokenizer.vocab_size(),
          "a mark without a piece");
}

/// Reads a directory as the program does. The files of a tokenizer need not have a chat template that can be used.
void read_directory(const fs::path& dir, bool chats) {
  (void)tokenizer_files_beside(dir);
  const Tokenizer tokenizer = Tokenizer::load(tokenizer_file(dir));
  use(tokenizer);
  try {
    const ChatTemplate chat = chat_template_of(dir, tokenizer);
    (void)chat.stops();
    const std::vector<Message> messages{
        {"user", "Who?\n" + std::string(2000, 'e')}, {"assistant", " He. "}, {"user", "Why? \xC3\xA9"}};
    (void)chat_tokens(tokenizer, chat, messages);
    (void)chat_document(tokenizer, chat, std::span(messages).first(2));
  } catch (const Error&) {
    if (chats) throw;
  }
}

// --- the campaign -------------------------------------------------------------------------------------------------

struct Kind {
  std::string name;
  std::vector<std::map<std::string, std::string>> good;  ///< directories: files by name
  bool chats = false;                                    ///< a good one is a chat template, which may refuse
  std::string mutated;                                   ///< name of the file that is changed
  std::function<std::string(const std::string&, const std::string&, Random&)> mutate;
};

struct Tally {
  int taken = 0, refused = 0, failed = 0;
  double slowest_s = 0;
  long most_kib = 0;
};

int in_process(const fs::path& dir, bool chats) {
  try {
    read_directory(dir, chats);
    return taken;
  } catch (const Error&) {
    return refused;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return wrong;
  }
}

double seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
}

Tally run(const Kind& kind, int mutations, std::uint64_t seed, const fs::path& folder) {
  Random random(seed);
  Tally tally;
  const fs::path dir = folder / "now";
  for (int i = -static_cast<int>(kind.good.size()); i < mutations; ++i) {
    // First the good ones themselves, which must be taken.
    auto files = kind.good[i < 0 ? static_cast<std::size_t>(-i - 1) : below(random, kind.good.size())];
    std::string& bytes = files[kind.mutated];
    const std::string& other = kind.good[below(random, kind.good.size())].at(kind.mutated);
    if (i >= 0) bytes = kind.mutate(bytes, other, random);
    fs::remove_all(dir);
    fs::create_directories(dir);
    for (const auto& [name, content] : files) write_bytes(dir / name, content);
    const pid_t child = fork();
    if (child == 0) {
      const rlimit limit{most_seconds, most_seconds + 1};
      setrlimit(RLIMIT_CPU, &limit);
      _exit(in_process(dir, kind.chats));
    }
    int status = 0;
    rusage usage{};
    if (child < 0 || wait4(child, &status, 0, &usage) != child) {
      std::perror("no process");
      std::exit(2);
    }
    const double cpu = seconds(usage.ru_utime) + seconds(usage.ru_stime);
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    const bool good = (code == taken || (code == refused && (i >= 0 || kind.chats))) && usage.ru_maxrss < most_kib;
    if (i >= 0) {
      tally.slowest_s = std::max(tally.slowest_s, cpu);
      tally.most_kib = std::max(tally.most_kib, usage.ru_maxrss);
      ++(!good ? tally.failed : code == taken ? tally.taken : tally.refused);
    } else if (!good) {
      ++tally.failed;
    }
    if (!good) {
      const fs::path kept = folder / (kind.name + "-" + std::to_string(i));
      fs::remove_all(kept);
      fs::rename(dir, kept);
      std::printf("%s: code %d, %.1f s, %ld MiB\n", kept.c_str(), code, cpu, usage.ru_maxrss / 1024);
    }
  }
  fs::remove_all(dir);
  return tally;
}

std::vector<Kind> kinds() {
  const fs::path data = fs::path(QLORA_SOURCE_DIR) / "tests/data";
  const Json tokenizers = Json::parse(read_bytes(data / "tokenizers.json")),
             chats = Json::parse(read_bytes(data / "chats.json"));
  const Json conversions = Json::parse(read_bytes(data / "conversions.json"));
  const std::string model = read_bytes(data / "small_tokenizer.model");
  std::vector<Kind> all(5);
  all[0].name = "tokenizer.json with byte fallback";
  all[1].name = "tokenizer.json of bytes";
  for (const auto& [name, kind] : tokenizers.items()) {
    const bool fallback = kind.at("file").at("model").value("byte_fallback", false);
    all[fallback ? 0 : 1].good.push_back(
        {{"tokenizer.json", kind.at("file").dump()},
         {"tokenizer_config.json",
          Json{{"eos_token", kind.at("eos")}, {"chat_template", chats.at("forms")[0].at("template")}}.dump()}});
  }
  const auto json = [](const std::string& bytes, const std::string& other, Random& random) {
    return below(random, 4) == 0 ? damaged(bytes, other, "0123456789[]{}\",:\\", random) : rewritten(bytes, random);
  };
  all[2].name = "tokenizer.model";
  all[2].good.push_back({{"tokenizer.model", model}, {"tokenizer_config.json", "{}"}});
  all[3].name = "tokenizer_config.json";
  all[4].name = "chat_template.jinja";
  all[4].chats = true;
  for (const auto& [name, value] : conversions.items()) {
    if (!value.at("files").contains("tokenizer_config.json")) continue;
    Json config = value.at("files").at("tokenizer_config.json");
    if (!config.contains("eos_token")) config["eos_token"] = "</s>";
    config["chat_template"] = chats.at("forms")[all[3].good.size() % chats.at("forms").size()].at("template");
    all[3].good.push_back({{"tokenizer.model", model}, {"tokenizer_config.json", config.dump()}});
  }
  for (const char* list : {"forms", "templates"}) {
    for (const Json& chat : chats.at(list)) {
      all[4].good.push_back({{"tokenizer.json", tokenizers.at("llama3").at("file").dump()},
                             {"tokenizer_config.json", R"({"eos_token": "<|end|>", "bos_token": "<|begin|>"})"},
                             {"chat_template.jinja", chat.at("template").get<std::string>()}});
    }
  }
  for (Kind& kind : all) {
    kind.mutated = kind.name.substr(0, kind.name.find(' '));
    kind.mutate = json;
  }
  all[2].mutate = [](const std::string& bytes, const std::string& other, Random& random) {
    return damaged(bytes, other, std::string_view("\0\x01\x02\x08\x0A\x12\x7F\x80\xFF", 9), random);
  };
  all[4].mutate = [](const std::string& bytes, const std::string& other, Random& random) {
    return below(random, 2) == 0 ? damaged(bytes, other, "{%}'\"|.()[]~+-:*#\\", random) : with_fragment(bytes, random);
  };
  return all;
}

}  // namespace

int main(int count, char** values) {
  if (count != 4) return std::fputs("usage: model_files N SEED FOLDER\n", stderr), 2;
  const int mutations = std::stoi(values[1]);
  const std::uint64_t seed = std::stoull(values[2]);
  int failed = 0;
  for (const Kind& kind : kinds()) {
    const Tally tally = run(kind, mutations, seed, values[3]);
    std::printf("%-34s %d mutations: %d taken, %d refused, %d failures; at most %.1f s, %ld MiB\n", kind.name.c_str(),
                mutations, tally.taken, tally.refused, tally.failed, tally.slowest_s, tally.most_kib / 1024);
    std::fflush(stdout);
    failed += tally.failed;
  }
  return failed == 0 ? 0 : 1;
}
