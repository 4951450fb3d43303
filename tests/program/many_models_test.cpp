// many_models_test.cpp — a page about more than eight models: a row for each in its tables, and in its answers the first arm
// of each group and the one that is judged.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <sstream>
#include <string>

#include "../../examples/qlora/report.hpp"
#include "../../examples/qlora/sweeps.hpp"
#include "qlora/io/file.hpp"
#include "support/program.hpp"

using namespace qlora::program;
using program_test::Scratch;

namespace {

/// So many arms of two groups, a1 to aN in turn, of which a3 is judged; a2 is no point of the front.
Result comparison_of(int arms) {
  Result all{{"answers", Result::array()}, {"variants", Result::object()}, {"arms", Result::object()}, {"tuned", "a3"}};
  Result answers{{"nf4", "base says"}};
  const auto add = [&](const std::string& name, double value) {
    all["variants"][name]["figures"]["retention"] = {
        {"n", 8}, {"clusters", 4}, {"value", value}, {"lower", value - 0.1}, {"upper", value + 0.1}};
  };
  add("nf4", 0.5);
  for (int i = 1; i <= arms; ++i) {
    const std::string name = "a" + std::to_string(i);
    add(name, 0.1 + 0.01 * i);
    answers[name] = name + " says";
    all["arms"][name] = {{"group", i % 2 == 0 ? "even" : "odd"}, {"setting", name}, {"seed", 1}};
  }
  all["arms"]["a2"]["front"] = false;
  all["answers"].push_back({{"form", "chat"}, {"prompt", "Who?"}, {"answers", answers}});
  return all;
}

std::string page_of(const Result& comparison) {
  const Scratch scratch;
  write_report(scratch / "page.html", comparison, {}, Result::object());
  return qlora::read_text(scratch / "page.html", 1 << 20);
}

}  // namespace

TEST_CASE("of few models every answer is shown") {
  const std::string page = page_of(comparison_of(7));
  for (int i = 1; i <= 7; ++i) CHECK(page.find("a" + std::to_string(i) + " says") != std::string::npos);
}

TEST_CASE("of many models the first of each group and the judged one answer, and each has a row of figures") {
  const std::string page = page_of(comparison_of(8));
  for (const char* shown : {"a1 says", "a3 says", "a4 says", "base says"}) {
    CHECK_MESSAGE(page.find(shown) != std::string::npos, shown);
  }
  for (const char* hidden : {"a2 says", "a5 says", "a6 says", "a7 says", "a8 says"}) {
    CHECK_MESSAGE(page.find(hidden) == std::string::npos, hidden);
  }
  std::ostringstream text;
  print_comparison(comparison_of(8), text);
  CHECK(text.str().find("\na8 ") != std::string::npos);
  CHECK(text.str().find("\nretention ") == std::string::npos);
  std::ostringstream few;
  print_comparison(comparison_of(7), few);
  CHECK(few.str().find("\nretention ") != std::string::npos);
}

TEST_CASE("a page of many models begins with pooled settings and the front, and ends with each model") {
  const auto where = [](const std::string& page, const char* text) {
    const std::size_t at = page.find(text);
    CHECK_MESSAGE(at != std::string::npos, text);
    return at;
  };
  Result comparison = comparison_of(8);
  for (const auto& [name, about] : comparison["arms"].items()) {
    comparison["variants"][name]["figures"]["knowledge"] = comparison["variants"][name]["figures"]["retention"];
    comparison["arms"][name]["setting"] = "same";
    comparison["arms"][name]["seed"] = std::stoi(name.substr(1));
  }
  comparison["arms"]["a8"]["setting"] = "other";
  comparison["settings"] = pooled_of(comparison["arms"], comparison["variants"]);
  const std::string page = page_of(comparison);
  CHECK(where(page, "<th scope=\"row\">odd</th><td>4</td>") < where(page, "Against each other"));
  CHECK(where(page, "Against each other") < where(page, "Old facts right, percent, at a gain"));
  CHECK(where(page, "Old facts right, percent, at a gain") < where(page, "Each model"));
  CHECK(where(page, "Each model") < where(page, "<th scope=\"row\">a5</th>"));

  comparison = comparison_of(6);  // seven models: a column each, at once
  comparison["settings"] = pooled_of(comparison["arms"], comparison["variants"]);
  const std::string few = page_of(comparison);
  CHECK(few.find("Each model") == std::string::npos);
  CHECK(few.find("<th scope=\"col\">a5</th>") != std::string::npos);
}
