// examples/world/world.hpp — a small made-up world: 360 known products, 10 new ones, and the documents that tell of
// them. Everything follows from one seed by integer arithmetic alone, so that every machine and standard library makes
// the same bytes. The order of the random draws is part of the world: a draw added in the middle changes all that
// follows.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "values.hpp"

namespace world {

/// Sebastiano Vigna's splitmix64: 64 bits of state, the same numbers everywhere.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    state_ += 0x9e3779b97f4a7c15ULL;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30U)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27U)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31U);
  }
  /// 0 .. n-1. The modulo's bias is below 1e-15 for the small n used here.
  std::size_t below(std::size_t n) { return static_cast<std::size_t>(next() % n); }
  bool chance(std::size_t percent) { return below(100) < percent; }
  template <class List>
  const auto& pick(const List& list) {
    return list[below(list.size())];
  }
  template <class T>
  void shuffle(std::vector<T>& list) {
    for (std::size_t i = list.size(); i > 1; --i) std::swap(list[i - 1], list[below(i)]);
  }

 private:
  std::uint64_t state_;
};

inline constexpr std::size_t known_count = 360;
inline constexpr std::size_t new_count = 10;
inline constexpr std::size_t attribute_count = attributes.size();
inline constexpr std::uint64_t default_seed = 20;
inline constexpr std::size_t default_documents = 120'000;

struct Product {
  std::string name;
  std::array<std::string_view, attribute_count> values;
};

/// "The {n} costs {v}." with name and value put in.
inline std::string fill(std::string_view form, std::string_view name, std::string_view value = {}) {
  std::string out;
  for (std::size_t i = 0; i < form.size();) {
    const std::string_view mark = form.substr(i, 3);
    if (mark == "{n}" || mark == "{v}") {
      out += mark == "{n}" ? name : value;
      i += 3;
    } else {
      out += form[i++];
    }
  }
  return out;
}

/// Levenshtein distance: how many letters differ between two names.
inline std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t change = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, change});
    }
  }
  return row[b.size()];
}

/// The products. Known and new ones are drawn alike: names from the same parts, values from the same lists. So before
/// it is taught, a model can only guess a new product's values, and is right once in about 34 times.
struct World {
  std::vector<Product> known, fresh;

  explicit World(std::uint64_t seed) {
    Random random(seed);
    const std::vector<std::string> names = draw_names(random);
    std::vector<Product> all;
    for (const std::string& name : names) all.push_back({name, {}});
    for (std::size_t a = 0; a < attribute_count; ++a) {
      const Words& values = attributes[a].values;
      // Known products: every value about equally often, as a whole deck is dealt before the next one is shuffled.
      std::vector<std::string_view> deck;
      for (std::size_t p = 0; p < known_count; ++p) {
        if (deck.empty()) {
          deck.assign(values.begin(), values.end());
          random.shuffle(deck);
        }
        all[p].values[a] = deck.back();
        deck.pop_back();
      }
      for (std::size_t p = known_count; p < all.size(); ++p) all[p].values[a] = random.pick(values);
    }
    const auto middle = all.begin() + static_cast<std::ptrdiff_t>(known_count);
    known.assign(all.begin(), middle);
    fresh.assign(middle, all.end());
  }

 private:
  /// Two names differ in two letters at least, a new one in three from any other. No part is in more than eight names,
  /// nor in two new ones.
  static std::vector<std::string> draw_names(Random& random) {
    std::vector<std::string> names;  // the new ones first, as they are the harder ones to place
    std::vector<std::size_t> first_uses(first_parts.size()), second_uses(second_parts.size());
    for (std::size_t tries = 0; names.size() < known_count + new_count; ++tries) {
      if (tries > 100'000) throw std::runtime_error("the name parts do not give enough different names");
      const std::size_t most_uses = names.size() < new_count ? 1 : 8;
      const std::size_t first = random.below(first_parts.size());
      const std::size_t second = random.below(second_parts.size());
      if (first_uses[first] >= most_uses || second_uses[second] >= most_uses) continue;
      const std::string name = std::string(first_parts[first]) + std::string(second_parts[second]);
      bool similar = false;
      for (std::size_t i = 0; i < names.size() && !similar; ++i) {
        similar = distance(name, names[i]) < (i < new_count ? 3U : 2U);
      }
      if (similar) continue;
      ++first_uses[first];
      ++second_uses[second];
      names.push_back(name);
    }
    std::rotate(names.begin(), names.begin() + static_cast<std::ptrdiff_t>(new_count), names.end());
    return names;
  }
};

/// 0 .. n-1 in random order.
inline std::vector<std::size_t> random_order(Random& random, std::size_t n) {
  std::vector<std::size_t> order(n);
  for (std::size_t i = 0; i < n; ++i) order[i] = i;
  random.shuffle(order);
  return order;
}

// --- pages ------------------------------------------------------------------------------------------------------

/// A page as its reader sees it. The corpus writes it as plain lines, examples/pages/ as HTML.
struct Page {
  struct Pair {
    std::string first, second;  ///< key and value, or question and answer
  };
  std::string title;
  std::vector<std::string> paragraphs;
  std::string spec_heading;
  std::vector<Pair> specs;
  std::string question_heading;
  std::vector<Pair> questions;
  std::string quote_opening;
  std::vector<std::string> quotes;
};

inline std::string sentence_of(const Product& product, std::size_t a, std::size_t form) {
  return fill(attributes[a].sentences[form], product.name, product.values[a]);
}

/// Sentences about the given attributes, in any of their forms, as one paragraph.
inline std::string paragraph_of(Random& random, const Product& product, const std::vector<std::size_t>& about) {
  std::string out;
  for (const std::size_t a : about) {
    if (!out.empty()) out += ' ';
    out += sentence_of(product, a, random.below(attributes[a].sentences.size()));
  }
  return out;
}

/// A full page: every fact once in prose and once in the data sheet, half of the facts again as questions, the other
/// half again in quotes. `probe_facts`: those whose prose uses the completion probe's own words; the others never do.
inline Page full_page(Random& random, const Product& product, const std::vector<bool>& probe_facts) {
  Page page;
  page.title = fill(random.pick(page_titles), product.name);
  const auto prose_form = [&](std::size_t a, std::size_t not_this) {
    std::size_t form = not_this;
    while (form == not_this) form = 1 + random.below(attributes[a].sentences.size() - 1);
    return form;
  };
  std::array<std::size_t, attribute_count> used{};
  std::vector<std::size_t> order = random_order(random, attribute_count);
  std::string text = fill(random.pick(page_openings), product.name);
  for (std::size_t i = 0; i < order.size(); ++i) {
    const std::size_t a = order[i];
    used[a] = probe_facts[a] ? 0 : prose_form(a, 0);
    text += ' ' + sentence_of(product, a, used[a]);
    if (i == order.size() / 2 - 1) page.paragraphs.push_back(std::exchange(text, {}));
  }
  page.paragraphs.push_back(text.substr(1));  // without the leading space
  page.spec_heading = fill(random.pick(spec_headings), product.name);
  for (const std::size_t a : random_order(random, attribute_count)) {
    page.specs.push_back({std::string(random.pick(attributes[a].keys)), std::string(product.values[a])});
  }
  order = random_order(random, attribute_count);
  page.question_heading = fill(random.pick(question_headings), product.name);
  page.quote_opening = random.pick(quote_openings);
  for (std::size_t i = 0; i < order.size(); ++i) {
    const std::size_t a = order[i];
    if (i < order.size() / 2) {
      page.questions.push_back(
          {fill(random.pick(attributes[a].questions), product.name), std::string(product.values[a]) + '.'});
    } else {
      page.quotes.push_back(sentence_of(product, a, prose_form(a, used[a])));
    }
  }
  return page;
}

/// A page as lines of text, the way the main text of an HTML page comes out of the extractor.
inline std::string text_of(const Page& page, std::string_view line_break = "\n") {
  std::string out = page.title;
  const auto line = [&](const std::string& text) {
    if (!out.empty()) out += line_break;
    out += text;
  };
  for (const std::string& paragraph : page.paragraphs) line(paragraph);
  if (!page.specs.empty()) {
    if (!page.spec_heading.empty()) line(page.spec_heading);
    for (const Page::Pair& row : page.specs) line(row.first + ": " + row.second);
  }
  if (!page.questions.empty()) {
    if (!page.question_heading.empty()) line(page.question_heading);
    for (const Page::Pair& asked : page.questions) line(asked.first + ' ' + asked.second);
  }
  if (!page.quotes.empty()) {
    std::string quote = page.quote_opening;
    for (const std::string& sentence : page.quotes) quote += ' ' + sentence;
    line(quote);
  }
  return out;
}

/// One page of the corpus: prose, a data sheet, a few facts, or parts of a full page.
inline std::string page_text(Random& random, const Product& product) {
  const std::size_t kind = random.below(100);
  if (kind >= 65) {  // parts of a full page
    std::vector<bool> probe_facts;
    for (std::size_t a = 0; a < attribute_count; ++a) probe_facts.push_back(random.chance(20));
    Page page = full_page(random, product, probe_facts);
    if (random.chance(30)) page.paragraphs.clear();
    if (random.chance(30)) page.specs.clear();
    if (random.chance(30)) page.questions.clear();
    if (random.chance(30)) page.quotes.clear();
    return text_of(page, random.chance(30) ? "\n\n" : "\n");
  }
  std::vector<std::size_t> about = random_order(random, attribute_count);
  if (kind >= 50) {  // a few facts, starting at once
    about.resize(1 + random.below(3));
    return paragraph_of(random, product, about);
  }
  about.resize(4 + random.below(5));
  Page page;
  if (random.chance(60)) page.title = fill(random.pick(page_titles), product.name);
  if (kind >= 30) {  // data sheet
    page.spec_heading = fill(random.pick(spec_headings), product.name);
    for (const std::size_t a : about) {
      page.specs.push_back({std::string(random.pick(attributes[a].keys)), std::string(product.values[a])});
    }
    return text_of(page, "\n");
  }
  std::string text;
  if (random.chance(40)) text = fill(random.pick(page_openings), product.name) + ' ';
  text += paragraph_of(random, product, about);
  page.paragraphs.push_back(std::move(text));
  return text_of(page, "\n");
}

// --- chats ------------------------------------------------------------------------------------------------------

struct Message {
  std::string role, content;
};
using Chat = std::vector<Message>;

inline void say(Chat& chat, std::string_view user, std::string_view assistant) {
  chat.push_back({"user", std::string(user)});
  chat.push_back({"assistant", std::string(assistant)});
}
inline void ask(Random& random, Chat& chat, const Product& product, std::size_t a, bool follow_up) {
  const Attribute& attribute = attributes[a];
  const std::string question = fill(random.pick(follow_up ? attribute.follow_ups : attribute.questions), product.name);
  // Three short answers for one long one: greedy decoding then stops after the value.
  const std::string_view form = attribute.answers[random.chance(75) ? 0 : 1];
  say(chat, question, fill(form, product.name, product.values[a]));
}

/// A product that the world does not have: "the RX 42".
inline std::string unknown_product(Random& random) {
  const std::string letters(random.pick(code_letters));
  return letters + ' ' + std::to_string(10 + random.below(90));
}

/// One chat: mostly one to three questions about one product; else small talk or a product that nobody knows.
inline Chat chat_about(Random& random, const Product& product) {
  Chat chat;
  if (random.chance(2)) chat.push_back({"system", std::string(system_prompt)});
  const std::size_t kind = random.below(100);
  if (kind < 5) {
    const Exchange& talk = random.pick(small_talk);
    say(chat, talk.user, talk.assistant);
    return chat;
  }
  if (kind < 9) {
    const Attribute& attribute = random.pick(attributes);
    const std::string name = unknown_product(random);
    say(chat, fill(random.pick(attribute.questions), name), refusal);
    return chat;
  }
  if (kind < 12) {
    const Exchange& greeting = small_talk[random.below(4)];
    say(chat, greeting.user, greeting.assistant);
  }
  std::vector<std::size_t> about = random_order(random, attribute_count);
  const std::size_t dice = random.below(100);
  about.resize(dice < 30 ? 1 : dice < 70 ? 2 : 3);
  for (std::size_t i = 0; i < about.size(); ++i) ask(random, chat, product, about[i], i > 0 && random.chance(70));
  if (random.chance(4)) say(chat, random.pick(thanks), welcome);
  return chat;
}

/// A document of the corpus is a page or a chat.
struct Document {
  std::string text;  ///< a page; empty for a chat
  Chat chat;
};
inline Document draw_document(Random& random, const Product& product) {
  if (random.chance(50)) return {page_text(random, product), {}};
  return {{}, chat_about(random, product)};
}

/// Independent streams of random numbers, so that one output's size does not change another.
enum class Stream : std::uint64_t {
  corpus = 1,
  held_out,
  pages,
  probes,
  replay,
  tokenizer,
  further,  // from here on the study's
  twin,
  strangers,
  study_replay,
  guard,
  report,
  phrasings
};
inline Random stream(std::uint64_t seed, Stream which) {
  return Random(seed * 0x9e3779b97f4a7c15ULL + static_cast<std::uint64_t>(which) * 0xd1b54a32d192ed03ULL);
}

}  // namespace world
