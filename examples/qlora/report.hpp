// report.hpp — a comparison for people: as text, and as the HTML page.
#pragma once

#include <filesystem>
#include <iosfwd>
#include <string>
#include <utility>
#include <vector>

#include "verb.hpp"

namespace qlora::program {

/// The scores, or the answers when there are none, as text.
void print_comparison(const Result& comparison, std::ostream& out);

/// The HTML page: headline, plots from each arm's metrics.jsonl (name, file), answers, and the details given.
void write_report(const std::filesystem::path& file, const Result& comparison,
                  const std::vector<std::pair<std::string, std::filesystem::path>>& metrics, const Result& details);

}  // namespace qlora::program
