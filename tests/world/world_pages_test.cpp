// world_pages_test.cpp — the small world's HTML pages: the extractor takes out of each layout all that the page says,
// which the study's probes read in the corpus's order.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <sstream>
#include <string>

#include "../../examples/world/pages.hpp"
#include "../../examples/world/study.hpp"
#include "qlora/web/extract.hpp"

TEST_CASE("the main text of a page has each line of what it says") {
  const world::World world(world::default_seed);
  const world::Study study(world, world::default_seed);
  for (const auto* products : {&study.fresh, &study.twin}) {
    const auto pages = world::announcements(*products, world::default_seed);
    CHECK(pages.size() == 35);
    for (const world::Announcement& page : pages) {
      const std::string text = qlora::web::extract(page.html).text;
      std::istringstream lines(world::text_of(page.page));
      for (std::string line; std::getline(lines, line);) {
        CHECK_MESSAGE(text.find(line) != std::string::npos, page.file << ": " << line);
      }
    }
  }
}
