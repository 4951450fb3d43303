// report_test.cpp — the page and its plots: well-formed by libxml2's judgement, every point there, hostile text inert.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/eval/report.hpp"

#include <doctest/doctest.h>
#include <libxml/parser.h>
#include <libxml/xpath.h>

#include <cmath>
#include <limits>
#include <memory>
#include <string>

using namespace qlora;
using namespace qlora::eval;

namespace {

/// A parsed page; parsing fails the test when the text is not XML.
class Page {
 public:
  explicit Page(const std::string& text)
      : document_(xmlReadMemory(text.data(), static_cast<int>(text.size()), "page.xml", nullptr,
                                XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING),
                  xmlFreeDoc) {
    REQUIRE(document_ != nullptr);
  }
  [[nodiscard]] int count(const std::string& path) const { return static_cast<int>(number("count(" + path + ")")); }
  [[nodiscard]] std::string text(const std::string& path) const {
    const auto result = evaluate("string(" + path + ")");
    return reinterpret_cast<const char*>(result->stringval);
  }
  [[nodiscard]] double number(const std::string& path) const { return evaluate("number(" + path + ")")->floatval; }

 private:
  [[nodiscard]] std::unique_ptr<xmlXPathObject, decltype(&xmlXPathFreeObject)> evaluate(const std::string& path) const {
    const std::unique_ptr<xmlXPathContext, decltype(&xmlXPathFreeContext)> context(xmlXPathNewContext(document_.get()),
                                                                                   xmlXPathFreeContext);
    std::unique_ptr<xmlXPathObject, decltype(&xmlXPathFreeObject)> result(
        xmlXPathEvalExpression(reinterpret_cast<const xmlChar*>(path.c_str()), context.get()), xmlXPathFreeObject);
    REQUIRE(result != nullptr);
    return result;
  }
  std::unique_ptr<xmlDoc, decltype(&xmlFreeDoc)> document_;
};

Plot plot_of(std::vector<double> y, Scale scale = Scale::linear) {
  Series series{"arm", {}, std::move(y)};
  for (std::size_t i = 0; i < series.y.size(); ++i) series.x.push_back(static_cast<double>(i + 1));
  return {"Loss", "step", "loss", scale, {series}};
}

std::size_t words(const std::string& text) {
  std::size_t count = text.empty() ? 0 : 1;
  for (const char c : text) count += c == ' ' ? 1 : 0;
  return count;
}

const std::string svg = "*[local-name()='svg']";
const std::string circle = "//*[local-name()='circle']";
const std::string data_line = "//*[local-name()='polyline'][@class='s0']";

}  // namespace

TEST_CASE("a plot holds each point once, at its place, with its value to hover for") {
  const Page page(to_svg(plot_of({4, 2, 1, 3})));
  CHECK(page.count(circle) == 4);
  CHECK(page.count(data_line) == 1);
  CHECK(words(page.text(data_line + "/@points")) == 4);
  CHECK(page.text(circle + "[2]/*[local-name()='title']") == "arm · step 2: 2");
  // Larger values stand higher on the sheet, later steps further right; equal steps have equal distances.
  const auto cx = [&](int i) { return page.number("(" + circle + ")[" + std::to_string(i) + "]/@cx"); };
  const auto cy = [&](int i) { return page.number("(" + circle + ")[" + std::to_string(i) + "]/@cy"); };
  CHECK(cy(1) < cy(4));
  CHECK(cy(4) < cy(2));
  CHECK(cy(2) < cy(3));
  CHECK(cx(2) - cx(1) == doctest::Approx(cx(4) - cx(3)).epsilon(0.01));
  CHECK(cy(2) - cy(4) == doctest::Approx(cy(3) - cy(2)).epsilon(0.01));
}

TEST_CASE("on a logarithmic axis equal ratios have equal distances") {
  const Page page(to_svg(plot_of({1000, 100, 10, 1}, Scale::logarithmic)));
  const auto cy = [&](int i) { return page.number("(" + circle + ")[" + std::to_string(i) + "]/@cy"); };
  CHECK(cy(2) - cy(1) == doctest::Approx(cy(4) - cy(3)).epsilon(0.01));
  CHECK(cy(2) > cy(1));
}

TEST_CASE("on a logarithmic x axis doubled values have equal distances, and the ticks are those that were asked for") {
  Plot plot{"Rank", "rank", "%", Scale::linear, {{"share", {4, 8, 16}, {10, 40, 30}}}};
  plot.x_scale = Scale::logarithmic;
  plot.x_ticks = {4, 8, 16};
  plot.y_holds = {0, 100};
  const Page page(to_svg(plot));
  const auto cx = [&](int i) { return page.number("(" + circle + ")[" + std::to_string(i) + "]/@cx"); };
  CHECK(cx(2) - cx(1) == doctest::Approx(cx(3) - cx(2)).epsilon(0.002));
  const auto tick = [&](const std::string& x) {
    return "//*[local-name()='text'][@text-anchor='middle'][.='" + x + "']";
  };
  for (const std::string x : {"4", "8", "16"}) CHECK(page.count(tick(x)) == 1);
  CHECK(page.count(tick("10")) == 0);
  CHECK(page.number(tick("8") + "/@x") == doctest::Approx(cx(2)));
  CHECK(page.count("//*[local-name()='text'][@text-anchor='end'][.='100']") == 1);  // though no value comes near
  plot.series[0].x = {0, -8, 16};                                                   // have no logarithm
  CHECK(Page(to_svg(plot)).count(circle) == 1);
  plot.x_ticks = {16, 16.001, 32};  // the second label would stand in the first
  const Page crowded(to_svg(plot));
  CHECK(crowded.count(tick("16")) == 1);
  CHECK(crowded.count(tick("16.001")) == 0);
  CHECK(crowded.count(tick("32")) == 1);
}

TEST_CASE("a mean has a whisker between its bounds and its seeds behind it") {
  const double unknown = std::nan("");
  Plot plot{
      "Rank", "rank", "%", Scale::linear, {{"share", {1, 2}, {50, 60}, {40, unknown}, {70, unknown}, {{}, {55, 65}}}}};
  plot.y_holds = {0, 100};
  const Page page(to_svg(plot));
  const std::string whisker = "//*[local-name()='line'][@class='s0']";
  REQUIRE(page.count(whisker) == 1);
  const std::string mean = circle + "[@class='s0']";
  CHECK(page.count(mean) == 2);
  CHECK(page.count(circle + "[@class='s0 behind']") == 2);
  const double middle = page.number("(" + mean + ")[1]/@cy");
  // 20 above the mean, 10 below it.
  CHECK(middle - page.number(whisker + "/@y2") ==
        doctest::Approx(2 * (page.number(whisker + "/@y1") - middle)).epsilon(0.01));
  CHECK(page.text("(" + mean + ")[1]/*[local-name()='title']") == "share · rank 1: 50 (40 to 70)");
  CHECK(page.text("(" + mean + ")[2]/*[local-name()='title']") == "share · rank 2: 60");
  // Whiskers count for the axis, too.
  plot.series[0].upper[0] = 300;
  CHECK(Page(to_svg(plot)).count("//*[local-name()='text'][@text-anchor='end'][.='300']") == 1);
  // A second line stands beside the first, not on it.
  plot.series.push_back(plot.series[0]);
  const Page two(to_svg(plot));
  CHECK(two.number("(" + circle + "[@class='s1'])[1]/@cx") - two.number("(" + mean + ")[1]/@cx") == doctest::Approx(5));
}

TEST_CASE("a legend that does not fit beside the title has lines of its own, inside the sheet") {
  Plot plot = plot_of({1, 2});
  plot.series.push_back(plot.series[0]);
  const std::string box = "//*[local-name()='rect']";
  CHECK(Page(to_svg(plot)).text("//" + svg + "/@viewBox") == "0 0 720 320");
  plot.title = std::string(60, 'T');
  CHECK(Page(to_svg(plot)).text("//" + svg + "/@viewBox") == "0 0 720 320");  // 66 + 60 * 8 + 2 * (28 + 21) < 704
  for (int i = 0; i < 4; ++i) plot.series.push_back({std::string(30, 'a'), {1}, {1}});
  const Page page(to_svg(plot));
  CHECK(page.text("//" + svg + "/@viewBox") == "0 -36 720 356");  // two lines: 2 * 49 + 2 * 238, then 2 * 238
  CHECK(page.count(box) == 6);
  CHECK(page.count(box + "[@y='-6.0']") == 4);
  CHECK(page.count(box + "[@y='12.0']") == 2);
  CHECK(page.count(box + "[@x < 66]") == 0);
  CHECK(page.number("//*[@class='title']/@y") == -15);
}

TEST_CASE("what cannot be drawn breaks the line and nothing else") {
  const double inf = std::numeric_limits<double>::infinity();
  const Page broken(to_svg(plot_of({1, 2, std::nan(""), 3, inf, 4})));
  CHECK(broken.count(circle) == 4);
  CHECK(broken.count(data_line) == 3);
  const Page logarithmic(to_svg(plot_of({1, 0, -1, 10}, Scale::logarithmic)));
  CHECK(logarithmic.count(circle) == 2);
  CHECK(Page(to_svg(plot_of({}))).count(circle) == 0);
  CHECK(Page(to_svg(plot_of({5}))).count(circle) == 1);
  CHECK(Page(to_svg(plot_of({0, 0}))).count(circle) == 2);
  CHECK(Page(to_svg(plot_of({1e308, -1e308}))).count("//*[local-name()='title']") >= 1);
}

TEST_CASE("a long run is thinned, and its one spike is still there") {
  std::vector<double> y(10000, 1.0);
  y[7777] = 50;
  const std::string text = to_svg(plot_of(y));
  const Page page(text);
  CHECK(page.count(circle) <= 600);
  CHECK(page.count(circle + "[contains(., 'step 7778: 50')]") == 1);
}

TEST_CASE("axes have round ticks") {
  CHECK(eval::detail::round_ticks(0, 10) == std::vector<double>{0, 2, 4, 6, 8, 10});
  CHECK(eval::detail::round_ticks(1, 160).front() == 50);
  CHECK(eval::detail::decade_ticks(-4, 0) == std::vector<double>{-4, -3, -2, -1, 0});
  CHECK(number(2e-4) == "0.0002");
  CHECK(number(1250) == "1250");
}

TEST_CASE("escape leaves nothing that a browser or an XML parser acts on") {
  CHECK(escape("<b>&\"'") == "&lt;b&gt;&amp;&quot;&#39;");
  CHECK(escape("plain \xC3\xA9 \xF0\x9F\x98\x80 tab\t") == "plain \xC3\xA9 \xF0\x9F\x98\x80 tab\t");
  const std::string bad = "\xEF\xBF\xBD";
  CHECK(escape(std::string("a\0b", 3)) == "a" + bad + "b");
  CHECK(escape("\x1B[31m") == bad + "[31m");
  CHECK(escape("\xFF") == bad);
  CHECK(escape("\xC0\xAF") == bad + bad);            // overlong '/'
  CHECK(escape("\xED\xA0\x80") == bad + bad + bad);  // surrogate
  CHECK(escape("\xEF\xBF\xBF") == bad + bad + bad);  // U+FFFF
  CHECK(escape("\xE2\x82") == bad + bad);            // cut short
  CHECK(escape("\xF4\x90\x80\x80").size() == 12);    // beyond U+10FFFF
}

TEST_CASE("a page made of hostile text is still a page without scripts") {
  const std::string evil = "</title><script>alert(1)</script>\"'><img src=x onerror=y>\x01\xFF ]]> <!-- &lt;";
  Report report;
  report.title = report.summary = evil;
  report.headline = {evil, {"model", evil}, {{evil, "1"}}};
  Plot plot = plot_of({1, 2, 3});
  plot.title = plot.x_label = plot.y_label = plot.series[0].name = evil;
  plot.series.push_back(plot.series[0]);
  report.plots = {plot};
  report.answers = {{evil, evil, {{evil, evil}, {"tuned", "ok"}}}};
  report.details = {{evil, {evil}, {{evil}}}};
  report.results = {{evil, {evil}, {{evil}}}};
  report.pareto_fronts = {plot};
  plot.x_ticks = {1, 2};
  report.sweeps = {{plot, {evil, {evil}, {{evil}}}}};
  report.controls = {evil, {evil}, {{evil}}};
  report.bars = {{evil, {evil}, {{evil, {{0.5, 0.4, 0.6, 3, 2}}}}}};
  report.galleries = {{evil, {{evil, evil, {{evil, evil}}}}}};
  report.findings = {{evil, evil}};
  report.overview = report.bars.front();
  report.picks = {{evil, evil, {{evil, evil}}}};
  const Page page(to_html(report));
  CHECK(page.count("//*[local-name()='script' or local-name()='img' or local-name()='link']") == 0);
  CHECK(page.count("//@*[starts-with(name(), 'on')]") == 0);
  CHECK(page.count("//@*[name()='href' or name()='src']") == 0);
  // What the reader sees is the text itself, but for the two bytes that no page can hold.
  CHECK(page.text("//*[local-name()='h1']") ==
        "</title><script>alert(1)</script>\"'><img src=x onerror=y>\xEF\xBF\xBD\xEF\xBF\xBD ]]> <!-- &lt;");
  CHECK(page.count("//*[@class='answer']") == 4);
}

TEST_CASE("a bar ends at its value, its whisker at the bounds, and what is unknown is not drawn") {
  const double unknown = std::nan("");
  BarChart chart{"Shares", {"maker", "city", "price"}, {}};
  chart.series.push_back({"base", {{0.25, 0.1, 0.5, 8, 4}, {0.0, unknown, unknown, 3, 1}, {1.0, 1.0, 1.0, 2, 2}}});
  chart.series.push_back({"tuned", {{0.5, unknown, unknown, 8, 4}, {unknown, unknown, unknown, 0, 0}}});
  const Page page(to_svg(chart));
  const std::string bar = "//*[local-name()='rect'][*[local-name()='title']]";
  CHECK(page.count(bar) == 4);  // three of the base, one of tuned
  const auto width = [&](int which) { return page.number("(" + bar + ")[" + std::to_string(which) + "]/@width"); };
  CHECK(width(2) == doctest::Approx(2 * width(1)).epsilon(0.002));  // tuned 0.5 beside base 0.25
  CHECK(width(4) == doctest::Approx(4 * width(1)).epsilon(0.002));
  CHECK(width(3) <= 1.0);
  const std::string whisker = "(//*[local-name()='line'])[1]";
  CHECK(page.count("//*[local-name()='line']") == 2);
  const double left = page.number("(" + bar + ")[1]/@x");
  CHECK(page.number(whisker + "/@x1") - left == doctest::Approx(width(4) * 0.1).epsilon(0.002));
  CHECK(page.number(whisker + "/@x2") - left == doctest::Approx(width(4) * 0.5).epsilon(0.002));
  CHECK(page.text("(" + bar + ")[1]/*[local-name()='title']") == "base · maker: 25.0 % (10.0 % to 50.0 %), n 8");
}

TEST_CASE("the page shows headline, plots with their data, answers and settings") {
  Report report;
  report.title = "Run";
  report.headline = {"scores", {"model", "facts"}, {{"base", "5 %"}, {"tuned", "95 %"}}};
  report.plots = {plot_of({3, 2, 1})};
  report.answers = {{"chat", "Who?", {{"base", "?"}, {"tuned", "I"}, {"merged", "I"}}}};
  report.details = {{"files", {"file", "SHA-256"}, {{"a", "b"}}}};
  CHECK(Page(to_html(report)).count("//*[local-name()='h2'][.='Controls' or .='Sweeps']") == 0);
  const Page page(to_html(report));
  CHECK(page.count("//*[local-name()='tbody']/*[local-name()='tr']") == 2 + 3 + 1);
  CHECK(page.count("//*[local-name()='h4']") == 3);
  CHECK(page.count("//" + svg) == 1);
  CHECK(page.text("//*[local-name()='details']//*[local-name()='tr'][2]/*[local-name()='td']") == "2");
  report.sweeps = {{plot_of({1, 2}), {"by rank", {"rank", "share"}, {{"4", "1"}, {"8", "2"}}}}};
  report.controls = {"nothing", {"", "net"}, {{"permuted", "-40"}}};
  const Page studied(to_html(report));
  CHECK(studied.count("//*[@class='sweep']//" + svg) == 1);
  CHECK(studied.count("//*[@class='sweep']//*[local-name()='tbody']/*[local-name()='tr']") == 2);
  // Findings come first, sections of detail are folded.
  report.findings = {{"Learned", "much"}, {"Kept", "all"}};
  report.overview = {"overview", {"Old facts"}, {{"base", {{1.0, 0.9, 1.0, 8, 4}}}}};
  report.picks = {{"learned", "Who?", {{"before", "?"}}}};
  const Page said(to_html(report));
  CHECK(said.text("//*[local-name()='body']/*[2]/@class") == "first");
  CHECK(said.count("//*[@class='first']//*[local-name()='dd']") == 2);
  CHECK(said.count("//*[@class='first']//" + svg) == 1);
  CHECK(said.count("//*[local-name()='body']/*[3][local-name()='article']") == 1);
  CHECK(said.count("//*[@class='section'][not(@open)]//*[local-name()='h2'][.='Settings and files']") == 1);
  CHECK(said.count("//*[@class='section']//*[local-name()='h2'][.='Results']") == 0);
  CHECK(studied.count("//*[local-name()='h2'][.='Controls']/following-sibling::*[2]//*[local-name()='td'][.='-40']") ==
        1);
}
