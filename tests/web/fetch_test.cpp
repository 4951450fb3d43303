// Fetching pages, from a real server on the loopback interface (tests/net/server.py) and from files.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/web/fetch.hpp"

#include <doctest/doctest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "qlora/web/pages.hpp"
#include "support/web_server.hpp"

namespace web = qlora::web;

namespace {

bool disk_fails = false;

}  // namespace

/// Stands before the C library's.
extern "C" ssize_t read(int file, void* bytes, size_t size) {
  if (disk_fails) {
    errno = EIO;
    return -1;
  }
  return ::syscall(SYS_read, file, bytes, size);
}

namespace {

std::string refusal(const std::string& source, const web::FetchOptions& options) {
  try {
    (void)web::fetch_page(source, options);
  } catch (const qlora::Error& e) {
    return e.what();
  }
  return "accepted";
}

}  // namespace

TEST_CASE("a page arrives with its provenance") {
  const web::Page page = web::fetch_page(url("/plain"), own());
  CHECK(page.body == plain_body);
  CHECK(page.content_type == "text/html");
  CHECK(page.charset == "UTF-8");
  CHECK(page.url == url("/plain"));
  CHECK(page.fetched_at.size() == 20);
  CHECK(page.fetched_at.back() == 'Z');
  CHECK(has(web::fetch_page(url("/agent"), own()).body, "qlora/"));
}

TEST_CASE("addresses of unknown kinds are refused") {
  for (const char* direct : {"gopher://example.org/", "ftp://example.org/", "scp://example.org/x"})
    CHECK(has(refusal(direct, own()), "unknown kind"));
}

TEST_CASE("a disk that fails ends the batch: its pages are not merely left out") {
  const std::filesystem::path file =
      std::filesystem::temp_directory_path() / qlora::concat("fetch_test-", ::getpid(), ".html");
  qlora::write_file_atomically(file, "<p>The lamp is made of brass.</p>");
  const std::vector<std::string> sources{file.string()};
  CHECK(web::load_documents(sources, {}).documents.size() == 1);
  disk_fails = true;
  try {
    (void)web::load_documents(sources, {});
    disk_fails = false;
    FAIL("went on");
  } catch (const qlora::Error& e) {
    disk_fails = false;
    CHECK(e.kind() == qlora::ErrorKind::resource);
    CHECK(has(e.what(), "cannot read " + file.string()));
  }
  std::filesystem::remove(file);
}

TEST_CASE("a request to stop ends the batch") {
  web::FetchOptions options = own();
  options.stop = [] { return true; };
  const std::vector<std::string> sources{url("/slow")};
  try {
    (void)web::fetch_pages(sources, options);
    FAIL("went on");
  } catch (const qlora::Error& e) {
    CHECK(e.kind() == qlora::ErrorKind::interrupted);
  }
}

TEST_CASE("bytes become UTF-8 whatever the label says") {
  CHECK(web::fetch_page(url("/latin1"), own()).body ==
        "<p>Stra\xC3\x9F"
        "e, caf\xC3\xA9</p>");
  CHECK(web::fetch_page(url("/sjis"), own()).body == "<p>\xE6\x97\xA5\xE6\x9C\xAC</p>");
  CHECK(has(web::fetch_page(url("/metacharset"), own()).body, "\xD0\x9C\xD0\xB8\xD1\x80"));
  using namespace std::string_view_literals;
  CHECK(web::decode_page("\xFF\xFEh\0i\0"sv, "text/html").text == "hi");
  CHECK(web::decode_page("\xFE\xFF\x20\xAC"sv, "").text == "\xE2\x82\xAC");
  CHECK(web::decode_page("\x93q\x94 \x80", "").text == "\xE2\x80\x9Cq\xE2\x80\x9D \xE2\x82\xAC");
  CHECK(web::decode_page("\xEF\xBB\xBFx", "text/html; charset=\"utf-8\"").text == "x");
  CHECK(web::decode_page("a\0b"sv, "").text == "ab");
  CHECK(web::decode_page("x", "text/html; charset=../../etc//IGNORE").encoding == "UTF-8");
  std::string all;
  for (int i = 0; i < 256; ++i) all += std::string(3, static_cast<char>(i));
  for (const char* name :
       {"utf-8", "latin1", "shift_jis", "gb18030", "big5", "euc-kr", "iso-2022-jp", "utf-16be", "koi8-r", "euc-jp",
        "macintosh", "windows-1255", "windows-874", "iso-8859-16", "ibm866", "none-such"}) {
    const web::Decoded d = web::decode_page(all, std::string("text/html; charset=") + name);
    CHECK(!d.text.empty());
    CHECK(qlora::find_invalid_utf8(d.text) == std::string::npos);
  }
}

TEST_CASE("labels of the Encoding Standard are known, in a header and in a page") {
  // Label, text as UTF-8, and the bytes that Python's codecs make of it.
  const std::array<std::array<std::string, 3>, 22> cases{{
      {"x-sjis", "\347\267\221\350\214\266", "\227\316\222\203"},
      {"ms932", "\347\267\221\350\214\266", "\227\316\222\203"},
      {"csshiftjis", "\347\267\221\350\214\266", "\227\316\222\203"},
      {"x-euc-jp", "\347\267\221\350\214\266", "\316\320\303\343"},
      {"chinese", "\347\273\277\350\214\266", "\302\314\262\350"},
      {"x-gbk", "\347\273\277\350\214\266", "\302\314\262\350"},
      {"cn-big5", "\347\266\240\350\214\266", "\272\361\257\371"},
      {"korean", "\353\205\271\354\260\250", "\263\354\302\367"},
      {"cyrillic", "\321\207\320\260\320\271", "\347\320\331"},
      {"koi", "\321\207\320\260\320\271", "\336\301\312"},
      {"koi8-ru", "\321\207\320\260\320\271", "\336\301\312"},
      {"866", "\321\207\320\260\320\271", "\347\240\251"},
      {"x-mac-cyrillic", "\321\207\320\260\320\271", "\367\340\351"},
      {"x-cp1251", "\321\207\320\260\320\271", "\367\340\351"},
      {"l2", "wod\304\205", "wod\261"},
      {"x-cp1250", "wod\304\205", "wod\271"},
      {"l5", "\303\247ay", "\347ay"},
      {"csisolatingreek", "\317\204\317\203\316\254\316\271", "\364\363\334\351"},
      {"logical", "\327\252\327\224", "\372\344"},
      {"ecma-114", "\330\264\330\247\331\212", "\324\307\352"},
      {"tis-620", "\340\270\212\340\270\262", "\252\322"},
      {"cp819", "th\303\251", "th\351"},
  }};
  for (const auto& [label, text, bytes] : cases) {
    INFO(label);
    CHECK(web::decode_page("<p>" + bytes, "text/html; charset=" + label).text == "<p>" + text);
    const std::string meta = "<META CONTENT='text/html;charset=" + label + "' HTTP-EQUIV=content-type>";
    CHECK(web::decode_page(meta + bytes, "").text == meta + text);
  }
}

TEST_CASE("of several labels the first of mark, header, meta and XML declaration counts") {
  const std::string tea = "\xF7\xE0\xE9";  // windows-1251
  const std::string read = "\xD1\x87\xD0\xB0\xD0\xB9";
  const auto ends = [&](const std::string& page, const std::string& type) {
    return web::decode_page(page, type).text.ends_with(read);
  };
  CHECK(ends("\xEF\xBB\xBF" + read, "text/html; charset=windows-1251"));
  CHECK(ends("<meta charset=koi8-r>" + tea, "text/html; charset=windows-1251"));
  CHECK(ends("<!-- <meta charset=koi8-r> --><meta charset=windows-1251>" + tea, ""));
  CHECK(ends("<script>'<meta charset=koi8-r>'</script><meta charset=windows-1251>" + tea, ""));
  CHECK(ends("<style>" + std::string(9000, 'x') + "</style><meta charset=windows-1251>" + tea, ""));
  CHECK(ends("<?xml version='1.0' encoding='windows-1251'?><html>" + tea, "application/xhtml+xml"));
  CHECK(ends("<html lang=ru><p>" + tea, ""));
  CHECK(ends("<body><meta charset=windows-1251>" + tea, ""));  // as browsers do
  CHECK(ends(read, "text/html; charset=utf-16"));              // no zero byte: not UTF-16
  // Servers say ISO-8859-1 of any page. A header counts unless the text would hardly be one, by Python's codecs.
  const std::string latin1 = "text/html; charset=ISO-8859-1";
  const std::array<std::array<std::string, 3>, 7> contradicting{{
      {"windows-1251", "\xC7\xE5\xEB\xB8\xED\xFB\xE9 \xF7\xE0\xE9", "Зелёный чай"},
      {"koi8-r", "\xFA\xC5\xCC\xA3\xCE\xD9\xCA \xDE\xC1\xCA", "Зелёный чай"},
      {"ibm866", "\x87\xA5\xAB\xF1\xAD\xEB\xA9 \xE7\xA0\xA9", "Зелёный чай"},
      {"windows-1253", "\xF4\xF3\xDC\xE9 \xF0\xF1\xDC\xF3\xE9\xED\xEF", "τσάι πράσινο"},
      {"gbk", "\xC2\xCC\xB2\xE8\xD3\xC3\xC8\xC8\xCB\xAE", "绿茶用热水"},
      {"iso-8859-2", "wod\xB1 za\xBF\xF3\xB3\xE6 g\xEA\xB6l\xB1 ja\xBC\xF1 \xB3\xB1k\xB1 mi\xB6kom ma\xB3y",
       "wodą zażółć gęślą jaźń łąką miśkom mały"},
      {"iso-8859-1", "F\xFCnf K\xE4se, s\xFC\xDFlich \x84w\xFCrzig\x93 \x96 25 m\xB2",
       "Fünf Käse, süßlich „würzig“ – 25 m²"},
  }};
  for (const auto& [label, bytes, text] : contradicting) {
    const std::string meta = "<meta charset=" + label + ">";
    INFO(label);
    CHECK(web::decode_page(meta + bytes, latin1).text == meta + text);
  }
  const std::string french =
      "<meta charset=windows-1251>\xAB\xA0\xC0 No\xEBl, l\x92\xE9t\xE9 o\xF9 l\x92on f\xEAte\xA0\xBB";
  CHECK(web::decode_page(french, latin1).text.ends_with("«\u00A0À Noël, l’été où l’on fête\u00A0»"));
  CHECK(web::decode_page("<html lang=ru><p>\xC7\xE5\xEB\xE5\xED\xFB\xE9", latin1).text.ends_with("Зеленый"));
  const web::Decoded odd = web::decode_page("<meta charset=klingon>" + read, "");
  CHECK(odd.unknown_label == "klingon");
  CHECK(odd.text.ends_with(read));
}

TEST_CASE("labels in odd places, and none, are read as browsers do or better") {
  const std::string russian =
      "\xD1\xF2\xF0\xEE\xE8\xF2\xE5\xEB\xFC\xF1\xF2\xE2\xEE \xEC\xEE\xF1\xF2\xE0";  // windows-1251
  const std::string read = "Строительство моста";
  for (const std::string page :
       {"<title>x</title><body><meta charset=windows-1251><p>@", "<meta charset=utf8mb4><meta charset=cp1251><p>@",
        "<body><div><meta http-equiv=Content-Type content='text/html; charset=windows-1251'></div>@",
        "<meta charset=''><textarea><meta charset=utf-8></textarea><p><meta charset=x-cp1251>@"}) {
    CAPTURE(page);
    std::string bytes = page;
    bytes.replace(bytes.find('@'), 1, russian);
    CHECK(web::decode_page(bytes, "").text.ends_with(read));
  }
  CHECK(web::decode_page("<meta charset=utf8mb4><meta charset=cp1251>", "").unknown_label.empty());
  CHECK(web::decode_page("<meta charset=utf8mb4><p>" + read, "").unknown_label == "utf8mb4");
  // UTF-16 without a mark.
  std::string little;
  std::string big;
  for (const char c : std::string("<!doctype html><p>a")) {
    little += {c, '\0'};
    big += {'\0', c};
  }
  CHECK(web::decode_page(little, "").text == "<!doctype html><p>a");
  CHECK(web::decode_page(big, "text/html; charset=utf-16").text == "<!doctype html><p>a");
  CHECK(web::binary_format(little).empty());
  CHECK(web::binary_format(big).empty());
  CHECK(web::binary_format(std::string("<\0\1\0\0\0", 6)) == "binary data");
  // UTF-8 that was cut, or holds a byte of another encoding.
  CHECK(web::decode_page("<p>" + read + "\xD0", "").text.ends_with(read + "\xEF\xBF\xBD"));
  CHECK(web::decode_page("<p>\x96 " + read, "").encoding == "UTF-8");
  CHECK(web::decode_page("<html lang=ru><p>" + russian, "").text.ends_with(read));
}

TEST_CASE("what is not text is refused by name") {
  CHECK(has(refusal(url("/png"), own()), "PNG image"));
  CHECK(has(refusal(url("/pdf"), own()), "application/pdf"));
  CHECK(has(refusal(url("/nul"), own()), "binary data"));
  CHECK(has(refusal(url("/empty"), own()), "empty"));
  CHECK(web::fetch_page(url("/untyped"), own()).content_type == "text/html");
}

TEST_CASE("local files and file: addresses") {
  const auto folder = std::filesystem::temp_directory_path() / ("qlora_fetch_" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "a page.html") << plain_body;
  std::ofstream(folder / "n.txt") << "note";
  CHECK(web::fetch_page((folder / "a page.html").string()).body == plain_body);
  CHECK(web::fetch_page("file://" + folder.string() + "/a%20page.html").content_type == "text/html");
  CHECK(web::fetch_page((folder / "n.txt").string()).content_type == "text/plain");
  CHECK(has(refusal("file://example.org/etc/passwd", {}), "another host"));
  CHECK(has(refusal((folder / "none.html").string(), {}), "no such file"));
  CHECK(has(refusal(folder.string(), {}), "no such file"));
  std::ofstream(folder / "p.html") << "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n";
  CHECK(has(refusal((folder / "p.html").string(), {}), "is a Git LFS pointer"));
  std::filesystem::remove_all(folder);
}

TEST_CASE("one bad page never fails the batch") {
  const std::vector<std::string> sources{url("/plain"), url("/missing"), "ftp://x.org/",
                                         url("/bomb"),  "http://",       url("/gzip")};
  std::size_t seen = 0;
  const auto results =
      web::fetch_pages(sources, own(), [&](const web::FetchResult& r) { CHECK(r.source == sources[seen++]); });
  REQUIRE(results.size() == 6);
  CHECK(seen == 6);
  for (const std::size_t good : {0U, 5U}) CHECK(results[good].page.has_value());
  for (const std::size_t bad : {1U, 2U, 3U, 4U}) {
    CHECK(!results[bad].page.has_value());
    CHECK(!results[bad].error.empty());
  }
}

TEST_CASE("sources of every kind become documents; the bad ones become reasons") {
  const auto folder = std::filesystem::temp_directory_path() / ("qlora_load_" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "n.md") << "# Note";
  std::ofstream(folder / "d.jsonl") << "{\"text\":\"one\"}\n{\"text\":\"two\"}\n";
  std::ofstream(folder / "bad.jsonl") << "{\n";
  std::vector<std::string> sources{url("/plain"), url("/missing"), (folder / "n.md").string(),
                                   (folder / "d.jsonl").string(), (folder / "bad.jsonl").string()};
  for (const char* n : {"1", "2", "3"}) {
    std::ofstream(folder / (std::string(n) + ".html")) << "<p>Call us today.</p><p>Fact " << n << ".</p>";
    sources.push_back((folder / (std::string(n) + ".html")).string());
  }
  web::LoadOptions options;
  options.fetch = own();
  std::vector<std::string> told;
  const web::LoadResult loaded =
      web::load_documents(sources, options, [&](const std::string& s, const std::string&) { told.push_back(s); });
  CHECK(told == sources);
  REQUIRE(loaded.documents.size() == 7);
  CHECK(loaded.documents[0].text == "Plain page.");
  CHECK(loaded.documents[0].title == "Caf\xC3\xA9");
  CHECK(loaded.documents[0].source == url("/plain"));
  CHECK(loaded.documents[0].sha256 == qlora::sha256("Plain page."));
  CHECK(loaded.documents[1].text == "# Note");
  CHECK(loaded.documents[3].text == "two");
  CHECK(loaded.documents[6].text == "Fact 3.");
  CHECK(loaded.shared_lines == 3);
  REQUIRE(loaded.failures.size() == 2);
  CHECK(has(loaded.failures[0].error, "404"));
  CHECK(has(loaded.failures[1].error, "bad.jsonl:1"));
  options.form = web::TextForm::article;
  const web::LoadResult plain = web::load_documents(std::span(sources).first(1), options);
  CHECK(plain.documents.at(0).text == "Caf\xC3\xA9Plain page.");
  std::filesystem::remove_all(folder);
}

TEST_CASE("pages that are no article are left out with the reason, unless all are asked for") {
  const std::array<std::array<const char*, 2>, 4> cases{
      {{"/forward", "forwards"}, {"/json", "JSON"}, {"/robots_only", "robots"}, {"/script_only", "JavaScript"}}};
  std::vector<std::string> sources{url("/plain")};
  for (const auto& sample : cases) sources.push_back(url(sample[0]));
  web::LoadOptions options;
  options.fetch = own();
  const web::LoadResult loaded = web::load_documents(sources, options);
  CHECK(loaded.documents.size() == 1);
  REQUIRE(loaded.failures.size() == cases.size());
  for (std::size_t i = 0; i < cases.size(); ++i) {
    CHECK(has(loaded.failures[i].error, "no article: "));
    CHECK(has(loaded.failures[i].error, cases[i][1]));
  }
  options.all_pages = true;
  CHECK(web::load_documents(std::span(sources).first(4), options).documents.size() == 4);
}

TEST_CASE("an address, and a text, counts once") {
  const auto folder = std::filesystem::temp_directory_path() / ("qlora_twice_" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  std::string words;
  for (int i = 0; i < 400; ++i) words += "word" + std::to_string(i) + " and ";
  std::ofstream(folder / "a.html") << "<p>" << words << "seen 1 time.";
  std::ofstream(folder / "b.html") << "<p>" << words << "seen 2 times.";
  std::ofstream(folder / "c.html") << "<p>" << words.substr(0, words.size() / 2) << "half.";
  std::vector<std::string> sources{url("/plain"),
                                   url("/plain#part"),
                                   url("/gzip"),
                                   (folder / "a.html").string(),
                                   (folder / "b.html").string(),
                                   (folder / "c.html").string()};
  web::LoadOptions options;
  options.fetch = own();
  const web::LoadResult loaded = web::load_documents(sources, options);
  REQUIRE(loaded.documents.size() == 3);
  CHECK(loaded.documents[0].source == url("/plain"));
  CHECK(loaded.documents[1].source == (folder / "a.html").string());
  CHECK(loaded.documents[2].source == (folder / "c.html").string());
  REQUIRE(loaded.duplicates.size() == 3);
  CHECK(loaded.duplicates[0].error == "named twice");
  CHECK(loaded.duplicates[1].error == "the text of " + url("/plain"));
  CHECK(loaded.duplicates[2].error == "the text of " + (folder / "a.html").string());
  options.all_pages = true;
  CHECK(web::load_documents(sources, options).documents.size() == 6);
  std::filesystem::remove_all(folder);
}
