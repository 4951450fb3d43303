// bench/decode/main.cpp — measures decoding and prints it as one line of JSON.
//   decode_speed MODEL [--batch N] [--prompt N] [--tokens N] [--runs N] [--adapters N] [--base] [--sample]
//     [--one-order] [--profile]
// Prints the median rate of the runs in tokens per second of wall time, the least and the largest, and a checksum of
// some ids. Sequences have the N sets of adapters in turn; with --base every other sequence has none.
// --one-order: with the order of sums that a server keeps.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string_view>

#include "../numbers.hpp"
#include "measure.hpp"

namespace {

using namespace qlora;

[[noreturn]] void usage(std::string_view what) {
  std::cerr << "decode_speed: " << what << "; see the head of bench/decode/main.cpp\n";
  std::exit(2);
}

struct Arguments {
  std::string model;
  bench::DecodeSettings settings;
};

Arguments parse(int argc, char** argv) {
  Arguments all;
  bench::DecodeSettings& s = all.settings;
  for (int at = 1; at < argc; ++at) {
    const std::string_view option = argv[at];
    const auto number = [&](int& target, int low, int high) {
      if (at + 1 >= argc) usage(std::string(option) + " needs a value");
      target = bench::number_of<int>(option, argv[++at], low, high);
    };
    if (option == "--batch") {
      number(s.batch, 1, 512);
    } else if (option == "--prompt") {
      number(s.prompt, 1, 1 << 20);
    } else if (option == "--tokens") {
      number(s.tokens, 2, 1 << 20);
    } else if (option == "--runs") {
      number(s.runs, 1, 1000);
    } else if (option == "--adapters") {
      number(s.adapters, 0, 64);
    } else if (option == "--base") {
      s.base = true;
    } else if (option == "--sample") {
      s.sample = true;
    } else if (option == "--one-order") {
      s.one_order = true;
    } else if (option == "--profile") {
      s.profile = true;
    } else if (all.model.empty() && !option.starts_with("-")) {
      all.model = option;
    } else {
      usage("what is " + std::string(option) + "?");
    }
  }
  return all;
}

void print(const Arguments& all, bench::DecodeFigures& f) {
  const bench::DecodeSettings& s = all.settings;
  std::sort(f.tokens_per_s.begin(), f.tokens_per_s.end());
  const double median = f.tokens_per_s[f.tokens_per_s.size() / 2];
  std::uint32_t sum = 1;
  for (const std::int32_t id : f.last) sum = sum * 31 + static_cast<std::uint32_t>(id);
  std::printf(
      "{\"model\": \"%s\", \"decoding\": true, \"device\": \"%s\", \"batch\": %d, \"prompt\": %d, \"tokens\": %d, "
      "\"adapters\": %d, \"base_too\": %s, \"sampled\": %s, \"one_order\": %s, \"runs\": %d, \"weights\": \"random\", "
      "\"tokens_per_s\": %.1f, \"least\": %.1f, \"most\": %.1f, \"base_gb\": %.3f, \"tb_per_s\": %.3f, "
      "\"load_s\": %.2f, \"ids\": %u",
      all.model.c_str(), f.device.c_str(), s.batch, s.prompt, s.tokens, s.adapters, s.base ? "true" : "false",
      s.sample ? "true" : "false", s.one_order ? "true" : "false", s.runs, median, f.tokens_per_s.front(),
      f.tokens_per_s.back(), f.base_gb, f.base_gb * median / s.batch / 1e3, f.load_s, static_cast<unsigned>(sum));
  if (!f.phases.empty()) {
    std::printf(", \"phases_ms\": {");
    for (std::size_t i = 0; i < f.phases.size(); ++i) {
      std::printf("%s\"%s\": %.3f", i == 0 ? "" : ", ", f.phases[i].first.c_str(), f.phases[i].second);
    }
    std::printf("}");
  }
  std::printf("}\n");
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Arguments all = parse(argc, argv);
    bench::DecodeFigures figures;
    if (all.model == "7b") {
      figures = bench::decode_7b(all.settings);
    } else if (all.model == "13b") {
      figures = bench::decode_13b(all.settings);
    } else if (all.model == "70b") {
      figures = bench::decode_70b(all.settings);
    } else {
      usage("the model is 7b, 13b or 70b");
    }
    print(all, figures);
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::usage) usage(error.what());
    std::cerr << "decode_speed: " << error.what() << "\n";
    return 4;
  }
  return 0;
}
