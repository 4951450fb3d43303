// option_text.hpp — tables of options for readers: as a commented job file, and as the page docs/options.md.
#pragma once

#include <iosfwd>
#include <string>
#include <string_view>

#include "qlora/run/option.hpp"

namespace qlora::program {

/// Every key with its default and meaning, as a commented job file.
void print_job_keys(std::ostream& out);
/// docs/options.md.
void print_options_page(std::ostream& out);

}  // namespace qlora::program
