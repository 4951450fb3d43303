// Documents: what is read, what is refused and with which line number, and that writing is whole or not at all.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/text/document.hpp"
#include "qlora/text/utf8.hpp"

#include <doctest/doctest.h>
#include <unistd.h>

namespace {

struct Folder {
  std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("qlora_document_" + std::to_string(::getpid()));
  Folder() { std::filesystem::create_directories(path); }
  ~Folder() { std::filesystem::remove_all(path); }
  std::filesystem::path file(const std::string& name, const std::string& bytes) const {
    std::ofstream(path / name, std::ios::binary) << bytes;
    return path / name;
  }
};

std::string refusal(const std::filesystem::path& path) {
  try {
    (void)qlora::read_documents(path);
  } catch (const qlora::Error& e) {
    return e.what();
  }
  return "accepted";
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("a source keeps no credentials, whatever wrote the line") {
  const Folder folder;
  const auto documents = qlora::read_documents(
      folder.file("pages.jsonl", R"({"source": "https://me:secret@example.org/a?token=abc&page=2", "text": "x"})"
                                 "\n"
                                 R"({"source": "notes@home/a?token=abc", "text": "no address"})"));
  REQUIRE(documents.size() == 2);
  CHECK(documents[0].source == "https://example.org/a?token=...&page=2");
  CHECK(documents[1].source == "notes@home/a?token=abc");
}

TEST_CASE("SHA-256 gives the FIPS 180-4 example values") {
  CHECK(qlora::sha256("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(qlora::sha256("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(qlora::sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK(qlora::sha256(std::string(1000000, 'a')) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST_CASE("well-formed UTF-8 is told from the rest as in Unicode table 3-7") {
  CHECK(qlora::find_invalid_utf8("a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80") == std::string_view::npos);
  for (const char* bad : {"\x80", "\xC0\xAF", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x8F\xBF\xBF",
                          "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xE2\x82", "\xFF"})
    CHECK(qlora::find_invalid_utf8(bad) == 0);
  CHECK(qlora::find_invalid_utf8("ab\xC3(") == 2);
}

TEST_CASE("JSON Lines go round, chats and texts, and hashes are those of the text") {
  const Folder folder;
  std::vector<qlora::Document> documents{qlora::make_document("https://example.org/a", "A \"title\"",
                                                              "Zwei\nZeilen \xE2\x82\xAC", "2026-01-02T03:04:05Z")};
  documents.push_back({"chat", "", "", "", "", {{"user", "Hi"}, {"assistant", "Hello"}}});
  qlora::write_documents(folder.path / "d.jsonl", documents);
  const auto again = qlora::read_documents(folder.path / "d.jsonl");
  REQUIRE(again.size() == 2);
  CHECK(again[0] == documents[0]);
  CHECK(again[1].messages == documents[1].messages);
  // python3: hashlib.sha256(b'[{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello"}]').hexdigest()
  CHECK(again[1].sha256 == "184a355aee0241e4024b8ad255384f6c552e7573e0024ec35506d25d39305163");
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path), {}) == 1);
}

TEST_CASE("unknown keys, empty lines, CRLF and a byte order mark are tolerated; a stale hash is not kept") {
  const Folder folder;
  const auto d = qlora::read_documents(folder.file("d.jsonl",
                                                   "\xEF\xBB\xBF{\"text\":\"abc\",\"sha256\":\"00\",\"x\":[1]}\r\n\n"
                                                   "  \n{\"text\":\"\\u20ac\",\"source\":\"s\"}"));
  REQUIRE(d.size() == 2);
  CHECK(d[0].sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(has(d[0].source, "d.jsonl:1"));
  CHECK(d[1].text == "\xE2\x82\xAC");
}

TEST_CASE("chat data in the usual schemas is a chat; others are refused with their keys") {
  const Folder folder;
  const auto read = [&](const std::string& line) { return qlora::read_documents(folder.file("s.jsonl", line)).at(0); };
  const auto turns = [&](const std::string& line) {
    std::string all;
    for (const qlora::Message& message : read(line).messages) all += message.role + "=" + message.content + ";";
    return all;
  };
  CHECK(turns(R"({"conversations":[{"from":"system","value":"s"},{"from":"human","value":"q"},)"
              R"({"from":"gpt","value":"a"}]})") == "system=s;user=q;assistant=a;");
  CHECK(turns(R"({"conversations":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]})") ==
        "user=q;assistant=a;");
  CHECK(turns(R"({"instruction":"Say hi","input":"","output":"hi"})") == "user=Say hi;assistant=hi;");
  CHECK(turns(R"({"instruction":"Add","input":"1 2","output":"3","system":"s"})") ==
        "system=s;user=Add\n\n1 2;assistant=3;");
  CHECK(turns(R"({"prompt":"q","completion":"a"})") == "user=q;assistant=a;");
  CHECK(turns(R"({"prompt":"q","response":"a"})") == "user=q;assistant=a;");
  CHECK(turns(R"({"prompt":[{"role":"user","content":"q"}],"completion":[{"role":"assistant","content":"a"}]})") ==
        "user=q;assistant=a;");
  CHECK(turns(R"({"messages":[{"role":"user","content":[{"type":"text","text":"q"},{"type":"text","text":"r"}]}]})") ==
        "user=qr;");
  // A table of several schemas has null for the columns of the others.
  CHECK(turns(R"({"text":null,"messages":null,"prompt":"q","completion":null,"response":"a"})") ==
        "user=q;assistant=a;");
  CHECK(read(R"({"text":"t","messages":null})").text == "t");
  // The same chat has the same hash, whatever schema it came in.
  CHECK(read(R"({"prompt":"q","completion":"a"})").sha256 ==
        read(R"({"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]})").sha256);
  const auto refused = [&](const std::string& line) { return refusal(folder.file("s.jsonl", line)); };
  CHECK(has(refused(R"({"prompt":"x","chosen":"a","rejected":"b"})"), "s.jsonl:1: neither \"text\" nor \"messages\""));
  CHECK(has(refused(R"({"prompt":"x","chosen":"a","rejected":"b"})"),
            "its keys are \"chosen\", \"prompt\", \"rejected\""));
  CHECK(has(refused(R"({"Text":"one"})"), "its keys are \"Text\""));
  CHECK(has(refused(R"({"prompt":"q","completion":"a","response":"b"})"), "both \"prompt\" with"));
  CHECK(has(refused(R"({"prompt":"q","completion":["a"]})"), "\"completion\" is not a string"));
  CHECK(has(refused(R"({"conversations":[{"from":"human","text":"q"}]})"), "\"from\" and \"value\""));
  CHECK(has(refused(R"({"conversations":[{"from":"human","text":"q"}]})"), "its keys are \"from\", \"text\""));
  CHECK(
      has(refused(R"({"messages":[{"role":"user","content":[{"type":"image","url":"x"}]}]})"), "all of them strings"));
}

TEST_CASE("a bad line is refused with its number and reason") {
  const Folder folder;
  for (const char* name : {"p.jsonl", "p.txt", "p.md"}) {
    const auto pointer = folder.file(name, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n");
    CHECK(has(refusal(pointer), "is a Git LFS pointer"));
  }
  const std::pair<std::string, std::string> cases[] = {
      {"{\"text\":\"a\"", "not valid JSON"},
      {"[]", "not a JSON object"},
      {"{\"text\":1}", "not a string"},
      {"{\"text\":null}", "not a string"},
      {"{\"title\":\"t\"}", "neither"},
      {"{\"text\":\"a\",\"messages\":[]}", "both"},
      {"{\"text\":\"a\",\"text\":\"b\"}", "given twice"},
      {"{\"messages\":[]}", "not a list"},
      {"{\"messages\":[{\"role\":\"user\"}]}", "content"},
      {"{\"text\":\"\xFF\"}", "not valid UTF-8"},
      {"{\"text\":\"\\ud800\"}", "not valid JSON"},
      {"{\"text\":\"a\"} x", "not valid JSON"},
      {"{\"x\":" + std::string(100000, '[') + std::string(100000, ']') + ",\"text\":\"a\"}", "nested"},
  };
  for (const auto& [line, reason] : cases) {
    const std::string message = refusal(folder.file("bad.jsonl", "{\"text\":\"good\"}\n\n" + line + "\n"));
    INFO(message);
    CHECK(has(message, "bad.jsonl:3"));
    CHECK(has(message, reason));
  }
}

TEST_CASE("every truncation of a good file is read in part or refused, never worse") {
  const Folder folder;
  const std::string good =
      "{\"text\":\"caf\xC3\xA9\",\"title\":\"t\"}\n{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}";
  for (std::size_t n = 0; n < good.size(); ++n) {
    const std::string message = refusal(folder.file("t.jsonl", good.substr(0, n)));
    const bool whole_lines = n == 0 || n == good.find('\n') || n == good.find('\n') + 1;
    CHECK((message == "accepted") == whole_lines);
  }
}

TEST_CASE(".txt and .md are one document; other names and missing files are refused") {
  const Folder folder;
  const auto d = qlora::read_documents(folder.file("note.md", "# Title\r\n\r\nbody\r\n"));
  REQUIRE(d.size() == 1);
  CHECK(d[0].text == "# Title\n\nbody");
  CHECK(d[0].title == "note");
  CHECK(has(refusal(folder.file("l.txt", "caf\xE9")), "UTF-8"));
  CHECK(has(refusal(folder.file("a.csv", "a")), "not a .jsonl"));
  CHECK(has(refusal(folder.path / "none.txt"), "cannot open"));
}

TEST_CASE("a failed write leaves the old file and no rubbish") {
  const Folder folder;
  const auto path = folder.file("d.jsonl", "old");
  const std::vector<qlora::Document> bad{{"s", "", "\xFF", "", "", {}}};
  CHECK_THROWS_AS(qlora::write_documents(path, bad), qlora::Error);
  CHECK(std::filesystem::file_size(path) == 3);
  CHECK_THROWS_AS(qlora::write_documents(folder.path / "no" / "d.jsonl", {}), qlora::Error);
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path), {}) == 1);
}
