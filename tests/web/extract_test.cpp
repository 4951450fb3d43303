// Main text against texts written by hand, the article's text against bs4's own, and hostile pages.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/web/extract.hpp"

#include <doctest/doctest.h>
#include <sys/resource.h>

#include <fstream>
#include <iterator>
#include <random>

#include "qlora/web/article_compat.hpp"
#include "qlora/web/repeats.hpp"

namespace web = qlora::web;

namespace {

std::string read(const std::string& name) {
  std::ifstream file(QLORA_SOURCE_DIR "/tests/web/pages/" + name, std::ios::binary);
  REQUIRE_MESSAGE(file.good(), name);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string page(const std::string& name) { return web::decode_page(read(name + ".html"), "text/html").text; }

long peak_kib() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

std::string repeat(const std::string& text, std::size_t times) {
  std::string out;
  for (std::size_t i = 0; i < times; ++i) out += text;
  return out;
}

/// Both readers end with text or with an Error; anything else fails the test.
void survive(const std::string& html) {
  try {
    const auto found = web::extract(html);
    CHECK(qlora::find_invalid_utf8(found.text) == std::string::npos);
  } catch (const qlora::Error&) {
  }
  try {
    (void)web::article_compat_text(html);
  } catch (const qlora::Error&) {
  }
}

const char* const names[] = {"article", "product", "latin", "bare", "form", "broken"};

}  // namespace

TEST_CASE("main text is what a reader would call it") {
  for (const std::string name : names) {
    std::string expected = read(name + ".txt");
    expected.pop_back();
    INFO(name);
    CHECK(web::extract(page(name)).text == expected);
  }
}

TEST_CASE("titles") {
  CHECK(web::extract(page("article")).title == "Harbour bridge reopens | Northport Gazette");
  CHECK(web::extract(page("latin")).title == "M\xC3\xBCller\xE2\x80\x99s Caf\xC3\xA9");
  CHECK(web::extract("<meta property='og:title' content='Open  graph'><h1>Head</h1><p>x").title == "Open graph");
  CHECK(web::extract("<svg><title>icon</title></svg><h1>Head</h1><p>x").title == "Head");
  CHECK(web::extract("just text").title.empty());
}

TEST_CASE("a page with nothing to read is refused, one with only a menu gives the menu") {
  CHECK_THROWS_AS((void)web::extract("<script>x</script><p> </p>"), qlora::Error);
  CHECK_THROWS_AS((void)web::extract(""), qlora::Error);
  CHECK(web::extract("<nav><a href=x>One</a></nav>").text == "One");
}

TEST_CASE("script, style and hidden text never come through") {
  for (const char* html :
       {"<p>ok</p><script>secret</script>", "<p>ok</p><style>secret</style>", "<p>ok</p><p hidden>secret</p>",
        "<p>ok</p><div aria-hidden=true>secret</div>", "<p>ok</p><p style='DISPLAY : none'>secret</p>",
        "<p>ok</p><template>secret</template>", "<p>ok</p><noscript>secret</noscript>", "<p>ok</p><!-- secret -->",
        "<p>ok</p><script>secret", "<p>ok</p><ScRiPt type=x>a</b>secret</sCrIpT >", "<p>ok</p><button>secret</button>"})
    CHECK_MESSAGE(web::extract(html).text == "ok", html);
}

TEST_CASE("lines that most pages of a site share are removed") {
  std::vector<qlora::Document> site;
  for (const char* n : {"1", "2", "3"})
    site.push_back(
        qlora::make_document(std::string("https://example.org/") + n, n, std::string("Call us today\nFact ") + n));
  site.push_back(qlora::make_document("https://other.org/1", "", "Call us today\nOther"));
  CHECK(web::remove_shared_lines(site) == 3);
  CHECK(site[0].text == "Fact 1");
  CHECK(site[0] == qlora::make_document("https://example.org/1", "1", "Fact 1"));
  CHECK(site[3].text == "Call us today\nOther");
  std::vector<qlora::Document> same(3, qlora::make_document("https://example.org/1", "", "All alike"));
  CHECK(web::remove_shared_lines(same) == 0);
  CHECK(same[2].text == "All alike");
}

TEST_CASE("lines that pages share inside of their texts stay: code, rows, refrains") {
  std::vector<qlora::Document> site;
  std::vector<std::vector<bool>> content;
  for (const char* n : {"one", "two", "three"}) {
    const std::string name = n;
    const web::Extracted page =
        web::extract("<p>Our songs</p><p>The page of " + name + " has this to say.</p><pre>#include &lt;a&gt;\nint " +
                     name + "() {\n}</pre><p>So sing " + name + ".</p><p>And sing along.</p><p>But " + name +
                     " went.</p><p>And sing along.</p><table><tr><td>Colour<td>black</table><p>Call us</p>");
    site.push_back(qlora::make_document("https://example.org/" + name, "", page.text));
    content.push_back(page.content);
  }
  CHECK(web::remove_shared_lines(site, content) == 6);
  CHECK(site[1].text ==
        "The page of two has this to say.\n#include <a>\nint two() {\n}\nSo sing two.\nAnd sing along.\n"
        "But two went.\nAnd sing along.\nColour: black");
}

TEST_CASE("pages that differ in next to nothing are one, in scripts without spaces too") {
  std::mt19937 random(3);
  std::string english;
  std::string chinese;  // 300 characters, no two alike; and Thai
  std::string thai;
  for (int i = 0; i < 300; ++i) {
    english += "word" + std::to_string(i) + " ";
    chinese += {'\xE5', static_cast<char>(0x80 + i / 64), static_cast<char>(0x80 + i % 64)};
    thai += {'\xE0', '\xB8', static_cast<char>(0x81 + random() % 57)};
  }
  for (const std::string& text : {english, chinese, thai}) {
    CAPTURE(text.substr(0, 30));
    web::Duplicates known;
    CHECK(known.find_or_add(text, 0) == web::Duplicates::none);
    std::string other = text;
    other.replace(150, 3, "\xE4\xB8\x80");  // one word in 300, or less
    CHECK(known.find_or_add(other, 1) == 0);
    std::string half = text.substr(0, 450) + repeat("\xE4\xB8\x80\xE4\xB8\x81 ", 100);
    CHECK(known.find_or_add(half, 2) == web::Duplicates::none);
  }
}

TEST_CASE("the article's text equals that of bs4, byte for byte") {
  for (const std::string name : {"article", "product", "latin", "bare", "form", "broken", "odd", "cut"}) {
    INFO(name);
    CHECK(web::article_compat_text(page(name)) == read(name + ".bs4"));
  }
  CHECK_THROWS_AS((void)web::article_compat_text("<![nonsense x]>"), qlora::Error);  // bs4 raises here too
}

TEST_CASE("hostile pages end in bounded memory, with their text or a clear refusal") {
  const long before = peak_kib();
  const std::pair<const char*, std::string> pages[] = {
      {"ordinary", repeat("<p>Some ordinary paragraph of text.</p>\n", 20000)},
      {"deep div", repeat("<div>", 200000) + "deep text" + repeat("</div>", 200000)},
      {"deep fonts", repeat("<p><font a>", 20000) + "deep text"},
      {"deep tables", repeat("<table><tr><td>", 50000) + "deep text"},
      {"deep lists", repeat("<ul><li>", 100000) + "deep text"},
      {"spans kept open", repeat("<span><div></span></div>", 50000) + "deep text"},
      {"forms around ends", repeat("<form><div></form>", 50000) + "deep text"},
      {"attributes", "<p>deep text<p " + repeat("a1=b ", 60000) + ">x"},
      {"names",
       [] {
         std::string s = "<p>deep text<p ";
         for (int i = 0; i < 60000; ++i) s += "a" + std::to_string(i) + "=b ";
         return s + ">x";
       }()},
      {"text node", "<p>deep text" + std::string(7 << 20, 'x')},
      {"data image", "<p>deep text<img src=\"data:" + std::string(2 << 20, 'A') + "\">end"},
      {"open quotes", "<p>deep text" + repeat("<a b=\"", 300000)},
      {"open comments", "<p>deep text" + repeat("<!--", 500000)},
      {"open scripts", "<p>deep text" + repeat("<script", 200000)},
      {"closers", "<p>deep text" + repeat("</x>", 500000)},
      {"stray closers", repeat("<b>", 50000) + "deep text" + repeat("</i>", 50000)},
      {"ampersands", "<p>deep text" + repeat("&", 2000000)},
      {"references", "<p>deep text" + repeat("&#", 1000000)},
      {"brackets", "<p>deep text" + repeat("<![CDATA[", 200000)},
      {"less-thans", "<p>deep text" + repeat("<", 2000000)}};
  for (const auto& [name, html] : pages) {
    INFO(name);
    survive(html);
  }
  for (const char* name : {"deep div", "deep fonts", "deep tables", "deep lists", "spans kept open",
                           "forms around ends", "attributes", "text node", "data image", "closers", "open comments"})
    for (const auto& [key, html] : pages)
      if (std::string_view(key) == name)
        CHECK_MESSAGE(web::extract(html, {.max_cpu_seconds = 1e6}).text.find("deep text") != std::string::npos, name);
#ifndef __SANITIZE_ADDRESS__  // its shadow and quarantine are not the library's memory
  CHECK(peak_kib() - before < 400 * 1024);
#else
  CHECK(peak_kib() - before < 4096 * 1024);
#endif
  CHECK_THROWS_AS((void)web::extract(std::string((8 << 20) + 1, 'x')), qlora::Error);
  CHECK_THROWS_AS((void)web::extract(pages[0].second, {.max_cpu_seconds = 0}), qlora::Error);
}

TEST_CASE("a page is read as browsers read it") {
  const auto text = [](const char* html) { return web::extract(html).text; };
  CHECK(text("<html><body><p>One</p></body></html><div><p>Two</p></div>") == "One\nTwo");
  CHECK(text("<body><p>One</p></body></html><!DOCTYPE html><html><head><title>x</title></head><body><p>Two") ==
        "One\nTwo");
  CHECK(text("<article><p>Inside.</p></article></body></html> loose <b>text</b><table><tr><td>a<td>b</table>") ==
        "Inside.\nloose text\na: b");
  CHECK(text("<main><p>Inside.</p></main></html><nav><a href=x>Home</a></nav><!-- 0.3 s -->") == "Inside.");
  const std::string story = "The old mill at the river was sold on Monday to a family from the next valley. ";
  CHECK(text(("<main><p>" + story + story + story + "</main></html><p>Sold, too: the weir.").c_str())
            .ends_with("valley.\nSold, too: the weir."));
  // An <html> that ends in the middle, of a part that the page includes, does not end the page.
  CHECK(text(("<html><p>Menu</html><html><article><p>" + story + "<p>" + story + "</article><div>Share").c_str()) ==
        story.substr(0, story.size() - 1) + "\n" + story.substr(0, story.size() - 1));
  CHECK(text("<p>One<xmp><b>x</b></xmp><plaintext>rest <i>of</i> &amp; it") ==
        "One\n<b>x</b>\nrest <i>of</i> &amp; it");
  CHECK(text("<p>One<x-card><template shadowrootmode=open><p>Two</template></x-card><template><p>Three</template>") ==
        "One\nTwo");
  CHECK(text("<p>&copy 1 &notit; &ampx; &#x80;") == "\xC2\xA9 1 \xC2\xACit; &x; \xE2\x82\xAC");
  CHECK(text("<table><tr><td>a<td>b<tr><td>c<td>d<td>e</table>") == "a: b\nc | d | e");
  CHECK(text("<title>never closed<body><p>One") == "One");
  CHECK(text("<p>One <!-- not closed > Two") == "One Two");
  CHECK(web::find_entity("eacute") == "\xC3\xA9");
  CHECK(web::find_entity("semi") == ";");
  CHECK(web::find_entity("notit").empty());
}

TEST_CASE("code, tables, formulas and repetition keep their form") {
  const auto text = [](const std::string& html) { return web::extract(html).text; };
  CHECK(text("<pre>if (a) {\n  b();\n\n}</pre>") == "if (a) {\n  b();\n\n}");
  CHECK(text("<p>Code:<table><tr><td class=gutter><pre>1\n2</pre><td><pre>for x in y:\n    f(x)</pre></table>") ==
        "Code:\nfor x in y:\n    f(x)");
  CHECK(text("<table><tr><th>Item<th>Price<th>Stock<tr><td rowspan=2>Pot<td>9<td><tr><td>10<td>2</table>") ==
        "Item | Price | Stock\nPot | 9\nPot | 10 | 2");
  CHECK(text("<table><tr><td>Address<td>Mill Lane 1<br>Leeds<tr><td>Phone<td>12</table>") ==
        "Address: Mill Lane 1; Leeds\nPhone: 12");
  CHECK(text("<p>10<sup>23</sup>, x<sub>i</sub>, H<sub>2</sub>O, 1<sup>st</sup>") == "10^23, x_i, H2O, 1st");
  CHECK(text("<p>It is <math><mfrac><mn>1</mn><mn>2</mn></mfrac><mi>k</mi><msup><mi>x</mi><mn>2</mn></msup></math>.") ==
        "It is 1/2 k x^2.");
  CHECK(text("<p>So <math alttext='F = k x'><mi>F</mi></math>.") == "So F = k x.");
  CHECK(text("<h2><button>Why does it flicker?</button></h2><p>Turn it up.") == "Why does it flicker?\nTurn it up.");
  CHECK(text("<p>Row, row.</p><p>Row, row.</p>") == "Row, row.\nRow, row.");
  CHECK(text("<ol start=5><li>five<li value=9>nine</ol>") == "5. five\n9. nine");
  CHECK(text("<ol reversed><li>x<li>y<li value=9>z<li>a</ol><ol reversed start=3><li>b<li>c</ol>") ==
        "4. x\n3. y\n9. z\n8. a\n3. b\n2. c");
  const std::string code = "def f(x):\n    return x";
  for (const char* table :
       {"<tr><td class=blob-num data-line-number=1><td class='blob-code'>def f(x):<tr><td class=blob-num><td "
        "class=blob-code>    return x",
        "<tr><td class=no><pre>1</pre><td><pre>def f(x):</pre><tr><td class=no><pre>2</pre><td><pre>    return x</pre>",
        "<tr><td class=gutter><div class=line>1</div><div class=line>2</div><td class=code><div><div class=line>"
        "<code>def f(x):</code></div><div><code>&nbsp;&nbsp;&nbsp;&nbsp;</code><code>return x</code></div></div>",
        "<tr><td><pre class=line-numbers><span class=lineno>1</span>def f(x):\n<span class=lineno>2</span>    return "
        "x</pre>"})
    CHECK_MESSAGE(text("<p>So:<table>" + std::string(table) + "</table>") == "So:\n" + code, table);
  CHECK(text("<table><tr><td class=gutter>&nbsp;<td class=code>DE<td>Germany\n with a\n line</table>") ==
        " | DE | Germany with a line");
  CHECK(text("<p>Press <button>Save</button> to go on.<dl><dt><button>What is it?</button><dd>A lamp.</dl>") ==
        "Press Save to go on.\nWhat is it?: A lamp.");
  CHECK(text("<h3 role=button>Is it loud?</h3><div role=region hidden><p>No.</div>") == "Is it loud?\nNo.");
  // What opens at a click is text, what shows that it does is not.
  CHECK(text("<p>Q?<div class=accordion-body style='display:none'>A.</div><div id=faq-2 hidden><p>B.</div>"
             "<span class=expand-icon aria-hidden=true>+</span><div style='display:none'>C.</div>") == "Q?\nA.\nB.");
}

TEST_CASE("roles, attributes and styles count as elements do") {
  const auto text = [](const std::string& html) { return web::extract(html).text; };
  CHECK(text("<p>Ages:<div role=table><div role=row><span role=columnheader>Name</span><span role=columnheader>Age"
             "</span></div><div role=row><span role=cell>Ann</span><span role=cell>7</span></div></div>") ==
        "Ages:\nName: Age\nAnn: 7");
  CHECK(text("<p>So:<div style='white-space: pre'>a\n  b</div>") == "So:\na\n  b");
  CHECK(text("<p style='white-space: pre-wrap'>a\n  b") == "a b");
  CHECK(text("<table><tr><td rowspan=0>Pot<td>9<tr><td>10</table><table><tr><td>x<td>y</table>") ==
        "Pot: 9\nPot: 10\nx: y");
  CHECK(text("<p>e<sup>x+y</sup>, x<sub>n-1</sub>, 10<sup>-3</sup>, 2<sup>1</sup>/<sub>2</sub>, <sup>3</sup>&frasl;"
             "<sub>4</sub>, SO<sub>4</sub><sup>2-</sup>") ==
        "e^(x+y), x_(n-1), 10^-3, 2 1/2, 3\xE2\x81\x84"
        "4, SO4^2-");
  CHECK(text("<p>So <script type='math/tex'>a<b</script> and<script>if (a<b) c();</script>.") == "So a<b and .");
  // What a button or a link of the text opens; menus, and what nothing opens, stay hidden.
  CHECK(text("<p>Q:</p><button aria-expanded=false aria-controls='x y'>Is it loud?</button><div id=y hidden>No.</div>"
             "<button aria-haspopup=true aria-expanded=false aria-controls=z>Share</button><div id=z hidden>Mail</div>"
             "<div id=w hidden>Never</div>") == "Q:\nIs it loud?\nNo.");
  CHECK(text("<p>Q:</p><a data-toggle=collapse href='#c'>Is it loud?</a><div id=c class=collapse>No.</div>") ==
        "Q:\nIs it loud?\nNo.");
}

TEST_CASE("what surrounds an article goes, in any of the usual forms") {
  const std::string story =
      "<p>The old mill at the river was sold on Monday to a family from the next valley.</p>"
      "<p>They want to bake bread there again, as the last miller did for forty years.</p>"
      "<p>The council has agreed, and the wheel is to turn again before the summer.</p>";
  const std::string expected =
      "The old mill at the river was sold on Monday to a family from the next valley.\n"
      "They want to bake bread there again, as the last miller did for forty years.\n"
      "The council has agreed, and the wheel is to turn again before the summer.";
  for (const char* around :
       {"<div>@</div><div class=comments><p>I bought my flour there as a child, it was very good flour "
        "indeed.</p></div>",
        "<div>@</div><div id=kommentare><p>I bought my flour there as a child, it was very good flour "
        "indeed.</p></div>",
        "<nav><ul><li><a href=a>News</a><li><a href=b>Sports</a></ul></nav><article>@</article>",
        "<article><div class=byline>By A. Miller, May 3</div>@<div class=share-buttons>Share</div></article>",
        "<article>@<figure><img><figcaption>The mill in 1910. Photograph: town archive</figcaption></figure></article>",
        "<main>@<h3>Related articles</h3><ul><li><a href=a>A bridge is closed</a><li><a href=b>A tower</a></ul></main>",
        "<p>Advertisement</p>@<p>Lesen Sie auch:</p><p><a href=x>Die neue M\xC3\xBChle</a></p>",
        "<div class=post-content>@</div><div><p>We use cookies; accept all of them to go on reading.</p></div>",
        "<article>@<h3>More of this</h3><div><script>draw()</script></div></article>",
        "<article>@<p>Topics of the text</p><ul><li><a href=a>Mills</a><li><a href=b>Bread</a></ul></article>",
        "<article>@<p>\xC2\xA9 2024 The Valley Post. No part of it may be printed without permission.</p></article>",
        "<form><div class=with-sidebar>@</div></form>", "<div class='hentry tag-comments'>@</div>"}) {
    std::string html = around;
    html.replace(html.find('@'), 1, story);
    CHECK_MESSAGE(web::extract(html).text == expected, around);
  }
}

TEST_CASE("posts of a forum and a wiki's sections are kept, what stands beside them goes") {
  const std::string question = "My engine stalls at idle once it is warm, and new plugs made no difference to that.";
  const std::string answer = "Look at the idle control valve. Mine was full of soot, and needed nothing but a cleaner.";
  const auto post = [](const std::string& text) {
    return "<div class=post><dl class=postprofile><dt><a>bob</a></dt><dd>Posts: 412</dd></dl><div class=inner><div>" +
           text + "</div><div class=signature>There is no replacement for displacement.</div></div></div>";
  };
  CHECK(web::extract("<body>" + post(question) + post(answer) +
                     "<div class='stat-block online-list'><p>Users browsing this forum: 3 guests.</p></div>")
            .text == question + "\n" + answer);
  const auto rated = [](const std::string& text) {
    return "<div class=answer><div class=votecell><div class=js-vote-count>42</div></div><div class=text>" + text +
           "</div><div class=user-info><div>answered May 3</div><span>12.3k</span></div></div>";
  };
  CHECK(web::extract("<body>" + rated(question) + rated(answer)).text == question + "\n" + answer);
  // A page of comments alone: these are its text, and the rest of it is not.
  CHECK(web::extract("<body><table class=comment-tree><tr><td><span class=byline>bob, 3 hours ago</span><div>" +
                     question + "</div><tr><td><div>" + answer +
                     "</div></table><p class=footer>Guidelines and other things.</p>")
            .text == question + "\n" + answer);
  CHECK(web::extract("<body><h2><span class=mw-headline>Course</span><span class=mw-editsection>[<a>edit</a>]</span>"
                     "</h2><p>" +
                     question + "</p><div class=thumbcaption>The river at Dresden</div><p>" + answer +
                     "</p><h2>References</h2><div class=reflist><ol><li>Jakubec, Ivan. Rivers. 2001.</li></ol></div>")
            .text == "Course\n" + question + "\n" + answer);
}

TEST_CASE("lines that sites of other languages put into a text go, and sentences that only mention them stay") {
  const std::string first = "The committee spent most of the spring arguing about the width of the new bridge.";
  const std::string last = "A second survey is due before the end of the year; until then the bridge stays open.";
  const auto between = [&](const std::string& line) {
    return web::extract("<article><p>" + first + "</p><p>" + line + "</p><p>" + last + "</p></article>").text;
  };
  for (const char* line :
       {"Материалы по теме", "Нашли опечатку? Выделите текст и нажмите Ctrl+Enter", "Подпишитесь на наш канал",
        "责任编辑:李四", "（责任编辑:李四）", "延伸阅读:旧桥的历史", "اقرأ أيضا: تاريخ الجسر", "あわせて読みたい",
        "무단전재 및 재배포 금지", "Διαβάστε επίσης: η γέφυρα", "Xem thêm: cây cầu cũ",
        "Still have questions? Contact us!", "Copyright 2026 The Daily", "Copyright ⓒ 2026", "ⓒ 2026"}) {
    CAPTURE(line);
    CHECK(between(line) == first + "\n" + last);
  }
  for (const std::string line : {"Он сказал: материалы по теме есть в архиве.", "编辑部的责任编辑说,旧桥将继续开放。",
                                 "Copyright is what the two towns argued about in court."}) {
    CHECK(between(line) == first + "\n" + line + "\n" + last);
  }
}

TEST_CASE("the lead between a headline and the text stays, whatever its element") {
  const std::string lead =
      "A family from the next valley has bought the old mill, and wants to bake bread in it again.";
  const std::string text =
      "The old mill at the river was sold on Monday. Nobody had ground flour there for forty years.\n"
      "The council has agreed to the plans, and the wheel is to turn again before the next summer.";
  std::string story = "<p>" + text + "</p>";
  story.replace(story.find('\n'), 1, "</p><p>");
  const std::string bio =
      "<div class=author><p>Jane Roe writes about the valley. She was born in it, and stayed.</p></div>";
  for (const char* element : {"<p>@</p>", "<h2>@</h2>", "<div class=teaser>@</div>"}) {
    CAPTURE(element);
    std::string html = element;
    html.replace(html.find('@'), 1, lead);
    html = "<header><h1>The mill</h1></header><section>" + html + bio + "</section><div class=article-body>" + story +
           "</div>";
    CHECK(web::extract(html).text == lead + "\n" + text);
  }
}

TEST_CASE("a page that asks for a login is none where that is what it has to say") {
  const std::string form = "<form><label>Name</label><input name=u><input type=password><button>Log in</button></form>";
  const auto reason = [&](const std::string& body) { return web::extract("<body>" + body + form).no_article; };
  CHECK(reason("<h1>Welcome</h1><p>Please log in with your name and your password to read this page.</p>") ==
        "it asks for a login");
  CHECK(reason("<div class=modal><p>Log in</p></div><article><h1>The mill</h1><p>The old mill at the river was sold on "
               "Monday to a family from the next valley, who want to bake bread there again.</p><p>The council has "
               "agreed to the plans of the family, and the wheel is to turn again before the summer.</p></article>") ==
        "");
}

TEST_CASE("every truncation and many damaged copies of the fixtures are survived") {
  std::mt19937 random(7);
  for (const std::string name : {"article", "product", "latin", "form", "broken", "odd", "cut"}) {
    const std::string whole = read(name + ".html");
    for (std::size_t n = 0; n < whole.size(); n += 11) survive(web::decode_page(whole.substr(0, n), "").text);
    for (int copy = 0; copy < 60; ++copy) {
      std::string damaged = whole;
      for (int flip = 0; flip < 1 + copy % 20; ++flip) {
        char& c = damaged[random() % damaged.size()];
        c = static_cast<char>(static_cast<unsigned char>(c) ^ (1U << random() % 8));
      }
      survive(web::decode_page(damaged, "").text);
    }
  }
}
