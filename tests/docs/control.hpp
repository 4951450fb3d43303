// tests/docs/control.hpp — a header with known gaps: what the reference takes from it, and what it misses.
//   name     with <markup>
#pragma once

namespace qlora {
inline namespace v0 {

struct Bare {
  int none = 0;
};

/// A group of options.
struct Options {
  int most = 0;
  bool known = false;  ///< said here
  int unnamed = 0;
  friend bool operator==(const Options&, const Options&) = default;
};

namespace run {
template <>
struct Table<Options> {
  static constexpr auto options = std::to_array<Option<Options>>({
      {.name = "most",
       .member = &Options::most,
       .help = "Size limit of one "
               "\"page\"",
       .range = {1024, 1e9},
       .unit = "bytes"},
  });
};
}  // namespace run

int bare(int number);

namespace detail {
int internal(int number);
}

/// Documented.
int full(int number);

}  // namespace v0
}  // namespace qlora
