// options_test.cpp — every option of every table: its range, its choices, its words on the command line.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "qlora/run/options.hpp"
#include "qlora/run/settings.hpp"

namespace {

using namespace qlora::run;

/// Calls use(option, defaults) for each option of each group.
template <class Use>
void for_each_option(const Use& use) {
  for_each_group([&]<class S>() {
    for (const Option<S>& option : Table<S>::options) {
      CAPTURE(Table<S>::title);
      CAPTURE(option.name);
      use(option, S{});
    }
  });
}

const double not_a_number = std::numeric_limits<double>::quiet_NaN();
const double infinity = std::numeric_limits<double>::infinity();

/// Whether the value is taken, and if not, whether that leaves everything as it was and says what is wanted.
template <class S>
bool takes(const Option<S>& option, const Value& value) {
  S target{};
  const Value before = value_of(option, target);
  const std::string wrong = assign(option, target, value);
  if (wrong.empty()) return true;
  CHECK(value_of(option, target) == before);
  CHECK((wrong.starts_with("must be ") || wrong.starts_with("cannot be ")));
  return false;
}

}  // namespace

TEST_CASE("a default can be given as a value") {
  int options = 0;
  for_each_option([&](const auto& option, const auto& defaults) {
    CHECK(takes(option, value_of(option, defaults)));
    ++options;
  });
  CHECK(options > 20);
}

TEST_CASE("both ends of a range belong to it, what lies beyond does not, and neither does NaN") {
  int numbers = 0;
  for_each_option([&](const auto& option, const auto&) {
    const auto [low, high] = option.range;
    if (option.kind() == Kind::integer) {
      CHECK(takes(option, static_cast<std::int64_t>(low)));
      CHECK(takes(option, static_cast<std::int64_t>(high)));
      CHECK_FALSE(takes(option, static_cast<std::int64_t>(low) - 1));
      CHECK_FALSE(takes(option, static_cast<std::int64_t>(high) + 1));
      CHECK_FALSE(takes(option, std::numeric_limits<std::int64_t>::min()));
      CHECK_FALSE(takes(option, std::numeric_limits<std::int64_t>::max()));
      CHECK_FALSE(takes(option, low + 0.5));
    } else if (option.kind() == Kind::number) {
      CHECK(takes(option, low));
      CHECK(takes(option, high));
      CHECK_FALSE(takes(option, std::nextafter(low, -infinity)));
      CHECK_FALSE(takes(option, std::nextafter(high, infinity)));
      CHECK(takes(option, static_cast<std::int64_t>(high)));  // a whole number is a number
    } else {
      return;
    }
    for (const double outside : {not_a_number, -not_a_number, infinity, -infinity}) CHECK_FALSE(takes(option, outside));
    for (const char* word : {"nan", "NaN", "-nan", "nan(1)", "inf", "-inf", "", "1x", "0x10", "1,5", "1e999"}) {
      CAPTURE(word);
      const auto value = parse_value(option.kind(), word);
      CHECK((!value || !takes(option, *value)));
    }
    ++numbers;
  });
  CHECK(numbers > 10);
}

TEST_CASE("a range says where it ends") {
  CHECK(text_of(Range{1, 1e9}) == " from 1 to 1000000000");
  CHECK(text_of(Range{1e-6, 0.99}) == " from 1e-06 to 0.99");
  CHECK(text_of(Range{.low = 0}) == " of at least 0");
  CHECK(text_of(Range{.high = 2.5}) == " of at most 2.5");
  CHECK(text_of(Range{}).empty());
  static_assert(!Range{}.contains(std::numeric_limits<double>::quiet_NaN()));
  static_assert(!Range{0, 1}.contains(std::numeric_limits<double>::quiet_NaN()));
}

TEST_CASE("each name of a choice means one value, and other words are refused") {
  int choices = 0;
  for_each_option([&](const auto& option, const auto& defaults) {
    if (option.kind() != Kind::choice) return;
    ++choices;
    std::set<std::string_view> names;
    auto target = defaults;
    for (const std::string_view name : option.choices()) {
      CHECK(names.insert(name).second);
      CHECK(assign(option, target, std::string(name)).empty());
      CHECK(std::get<std::string>(value_of(option, target)) == name);
    }
    for (const std::string wrong : {"", "no such word", "Qlora"}) CHECK_FALSE(takes(option, wrong));
    CHECK_FALSE(takes(option, std::int64_t{0}));
  });
  CHECK(choices >= 3);
  CHECK(name_of(Method::full) == "full");
  CHECK(name_of(qlora::Schedule::constant) == "constant");
  CHECK(name_of(Recomputation::block) == "block");
}

TEST_CASE("a value of another type is refused") {
  const std::vector<std::pair<Value, std::set<Kind>>> values{
      {true, {Kind::flag}},
      {std::int64_t{1 << 20}, {Kind::integer, Kind::number}},
      {0.5, {Kind::number}},
      {std::string("24GB"), {Kind::text, Kind::path, Kind::size, Kind::choice}},
      {std::vector<std::string>{"a"}, {Kind::texts, Kind::paths}}};
  for_each_option([&](const auto& option, const auto&) {
    for (const auto& [value, kinds] : values) {
      if (!kinds.contains(option.kind())) CHECK_FALSE(takes(option, value));
    }
  });
}

TEST_CASE("words of the command line become values") {
  CHECK(parse_value(Kind::integer, "42") == Value(std::int64_t{42}));
  CHECK(parse_value(Kind::integer, "+42") == Value(std::int64_t{42}));
  CHECK(parse_value(Kind::integer, "-1") == Value(std::int64_t{-1}));
  CHECK_FALSE(parse_value(Kind::integer, "4.0"));
  CHECK_FALSE(parse_value(Kind::integer, "99999999999999999999"));
  CHECK(parse_value(Kind::number, "2e-4") == Value(2e-4));
  CHECK(parse_value(Kind::number, "7") == Value(7.0));
  CHECK_FALSE(parse_value(Kind::number, "much"));
  CHECK(parse_value(Kind::flag, "false") == Value(false));
  CHECK_FALSE(parse_value(Kind::flag, "yes"));
  CHECK(parse_value(Kind::text, "") == Value(std::string()));
  CHECK(parse_value(Kind::paths, "a b") == Value(std::vector<std::string>{"a b"}));
}

TEST_CASE("sizes have a unit, or are bytes in full") {
  CHECK(parse_bytes("24GB")->count == 24'000'000'000);
  CHECK(parse_bytes("24 GB")->count == 24'000'000'000);
  CHECK(parse_bytes("8GiB")->count == 8'589'934'592);
  CHECK(parse_bytes("1.5GiB")->count == 1'610'612'736);
  CHECK(parse_bytes("16MiB")->count == 16 << 20);
  CHECK(parse_bytes("1048576")->count == 1 << 20);
  CHECK(parse_bytes("")->count == 0);
  for (const char* wrong :
       {"24", "1048575", "much", "-24GB", "0GB", "nan", "nanGB", "infGB", "24gb", "24 G", "1e30GB"}) {
    CAPTURE(wrong);
    CHECK_FALSE(parse_bytes(wrong));
  }
  for (const char* size : {"", "24GB", "8GiB", "512MiB", "1500MB", "1048577"}) {
    CHECK(text_of(*parse_bytes(size)) == size);
  }
}

TEST_CASE("names on the command line have dashes") {
  CHECK(line_name(Option<Training>{.name = "weight_decay", .member = &Training::weight_decay, .help = "H"}) ==
        "--weight-decay");
}

namespace {

/// What trainer_options fills, by the names of qlora::TrainOptions.
struct Filled {
  struct Group {
    std::string part;
    float lr_scale = 1;
    friend bool operator==(const Group&, const Group&) = default;
  };
  int rank = 0;
  qlora::Proj targets = qlora::Proj::none;
  float alpha = 0, dropout = 0, lr = 0, weight_decay = 0, max_grad_norm = 0;
  bool rank_stabilized = false, adamw8bit = false, dora = false;
  qlora::Products products = qlora::Products::bf16;
  qlora::Schedule schedule = qlora::Schedule::linear;
  int warmup_steps = 0, total_steps = 0, batch = 0, seq = 0;
  std::uint64_t seed = 0;
  std::vector<Group> groups{};
  friend bool operator==(const Filled&, const Filled&) = default;
};

}  // namespace

TEST_CASE("every training option that results depend on reaches the trainer, or counts its steps") {
  const Filled before = trainer_options<Filled>(Training{}, 100, 8);
  CHECK(before.total_steps == 100);
  CHECK(before.seq == 8);
  const std::set<std::string_view> of_the_loop{"epochs", "accumulate", "init"};  // begun by the run itself
  for (const Option<Training>& option : Table<Training>::options) {
    CAPTURE(option.name);
    Training other;
    Value changed = value_of(option, other);
    if (auto* flag = std::get_if<bool>(&changed)) *flag = !*flag;
    if (auto* whole = std::get_if<std::int64_t>(&changed)) ++*whole;
    if (auto* number = std::get_if<double>(&changed)) *number += 0.25;
    if (auto* text = std::get_if<std::string>(&changed))
      *text = option.choices().empty() ? "q,v" : option.choices().back();
    REQUIRE(assign(option, other, changed).empty());
    const bool reaches = option.fingerprint && !of_the_loop.contains(option.name);
    CHECK((trainer_options<Filled>(other, 100, 8) != before) == reaches);
  }
  CHECK(before.groups.empty());
  Training plus;
  plus.lora_plus_ratio = 16;
  CHECK(trainer_options<Filled>(plus, 100, 8).groups == std::vector<Filled::Group>{{"lora_B", 16.0F}});
  plus.dora = true;  // peft gives vectors the rate of B, too
  CHECK(trainer_options<Filled>(plus, 100, 8).groups ==
        std::vector<Filled::Group>{{"lora_B", 16.0F}, {"lora_magnitude", 16.0F}});
  Training fraction;
  fraction.warmup = 0.03;
  CHECK(trainer_options<Filled>(fraction, 110, 8).warmup_steps == 4);  // of 3.3 steps all belong to it
  fraction.warmup = 7;
  CHECK(trainer_options<Filled>(fraction, 110, 8).warmup_steps == 7);
}

TEST_CASE("targets are names in any order, written in one order") {
  Training training;
  const auto& options = Table<Training>::options;
  const auto& targets =
      *std::find_if(options.begin(), options.end(), [](const auto& option) { return option.name == "targets"; });
  CHECK(value_of(targets, training) == Value("all"));
  REQUIRE(assign(targets, training, Value("v,q")).empty());
  CHECK(training.targets == (qlora::Proj::q | qlora::Proj::v));
  CHECK(value_of(targets, training) == Value("q,v"));
  REQUIRE(assign(targets, training, Value("q,k,v,o,gate,up,down")).empty());
  CHECK(value_of(targets, training) == Value("all"));
  for (const char* wrong : {"", "none", "q,", ",q", "q v", "q,w", "Q", "all,q"}) {
    CAPTURE(wrong);
    CHECK(assign(targets, training, Value(wrong)).starts_with("must be \"all\", or names of q"));
    CHECK(training.targets == qlora::Proj::all);
  }
  CHECK_FALSE(assign(targets, training, Value(true)).empty());
  training.method = Method::full;
  CHECK(trainer_options<Filled>(training, 100, 8).targets == qlora::Proj::none);
}

TEST_CASE("a fingerprint has an option that is newer than records only where it is not the default") {
  const auto has_targets = [](const Settings& settings) {
    return std::any_of(settings.begin(), settings.end(),
                       [](const auto& setting) { return setting.first == "targets"; });
  };
  Training training;
  CHECK_FALSE(has_targets(settings_of(training, Which::fingerprint)));
  CHECK(has_targets(settings_of(training, Which::all)));
  std::string names;
  for (const auto& [name, value] : settings_of(training, Which::fingerprint)) names += name + ' ';
  CHECK(names ==
        "method lr schedule warmup epochs batch accumulate weight_decay max_grad_norm seed rank alpha rslora dropout "
        "moments8 ");
  training.targets = qlora::Proj::q;
  CHECK(has_targets(settings_of(training, Which::fingerprint)));
}
