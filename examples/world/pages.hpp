// examples/world/pages.hpp — the new products' pages as HTML, and the probes and replay that go with them.
// Pages and probes come from one World value, so that they cannot disagree.
#pragma once

#include <cctype>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "layouts.hpp"
#include "world.hpp"

namespace world {

// --- HTML -------------------------------------------------------------------------------------------------------

inline std::string lower_case(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

inline std::string sheet_html(const Page& page, Layout::Sheet sheet) {
  std::string out = sheet == Layout::Sheet::list ? "<ul>\n" : "<table>\n";
  for (const Page::Pair& row : page.specs) {
    switch (sheet) {
      case Layout::Sheet::table:
        out += "<tr><th>" + row.first + "</th><td>" + row.second + "</td></tr>\n";
        break;
      case Layout::Sheet::plain_table:
        out += "<tr><td>" + row.first + "</td><td>" + row.second + "</td></tr>\n";
        break;
      case Layout::Sheet::list:
        out += "<li>" + row.first + ": " + row.second + "</li>\n";
        break;
    }
  }
  return out + (sheet == Layout::Sheet::list ? "</ul>\n" : "</table>\n");
}

/// The page in one of the layouts. The world's words need no escaping: letters, digits and plain punctuation.
inline std::string html_of(const Page& page, const Product& product, const Layout& layout) {
  std::string paragraphs, questions, quotes;
  for (const std::string& paragraph : page.paragraphs) paragraphs += "<p>" + paragraph + "</p>\n";
  for (const Page::Pair& asked : page.questions) {
    questions += "<p><strong>" + asked.first + "</strong> " + asked.second + "</p>\n";
  }
  for (const std::string& sentence : page.quotes) quotes += (quotes.empty() ? "" : " ") + sentence;
  const std::vector<std::pair<std::string_view, std::string>> marks{{"@TITLE@", page.title},
                                                                    {"@NAME@", product.name},
                                                                    {"@SLUG@", lower_case(product.name)},
                                                                    {"@PARAGRAPHS@", paragraphs},
                                                                    {"@SPEC_HEADING@", page.spec_heading},
                                                                    {"@SPECS@", sheet_html(page, layout.sheet)},
                                                                    {"@QUESTION_HEADING@", page.question_heading},
                                                                    {"@QUESTIONS@", questions},
                                                                    {"@QUOTE_OPENING@", page.quote_opening},
                                                                    {"@QUOTES@", quotes}};
  std::string out(layout.html);
  for (const auto& [mark, text] : marks) {
    for (std::size_t at = out.find(mark); at != std::string::npos; at = out.find(mark, at + text.size())) {
      out.replace(at, mark.size(), text);
    }
  }
  return out;
}

/// A new product's page: what it says and the file that says it.
struct Announcement {
  std::string file;  ///< "shop-veldor.html"
  Page page;
  std::string html;
};

/// One page per new product, and in each further round another one, of another site. Half of a product's facts are said
/// in the completion probe's own words, half never are. The wording depends on seed, round and a product's place, not
/// on its values: a twin world's pages differ in values alone.
inline std::vector<Announcement> announcements(const std::vector<Product>& products, std::uint64_t seed,
                                               std::size_t round = 0) {
  Random random = stream(seed + 1000 * round, Stream::pages);
  std::vector<Announcement> out;
  for (std::size_t p = 0; p < products.size(); ++p) {
    std::vector<bool> probe_facts;
    for (std::size_t a = 0; a < attribute_count; ++a) probe_facts.push_back((p + a) % 2 == 0);
    const Product& product = products[p];
    const Layout& layout = layouts[(p + 2 * round) % layouts.size()];
    Page page = full_page(random, product, probe_facts);
    std::string html = html_of(page, product, layout);
    out.push_back(
        {std::string(layout.site) + '-' + lower_case(product.name) + ".html", std::move(page), std::move(html)});
  }
  return out;
}

// --- probes -----------------------------------------------------------------------------------------------------

/// One question to a model. A fact is right if the greedy continuation begins with `answer` at a word boundary; a
/// chat_form probe has no answer: the reply must not be empty, and must stop.
struct Probe {
  std::string kind;    ///< knowledge, retention, chat_form
  std::string form;    ///< completion, chat
  std::string prompt;  ///< text to continue, or the user's message
  std::string answer;
  Chat history;           ///< earlier turns, oldest first
  std::string product;    ///< empty for chat_form
  std::string attribute;  ///< empty for chat_form
};

/// The completion probe: the attribute's first sentence up to its value, without the space before it.
inline std::string completion_prompt(const Product& product, std::size_t a) {
  const std::string_view form = attributes[a].sentences[0];
  std::string prompt = fill(form.substr(0, form.find("{v}")), product.name);
  prompt.pop_back();
  return prompt;
}

/// Every fact of every new product, once to be continued and once to be answered.
inline std::vector<Probe> knowledge_probes(const World& world, Random& random) {
  std::vector<Probe> probes;
  for (const char* form : {"completion", "chat"}) {
    const bool chat = std::string_view(form) == "chat";
    for (const Product& product : world.fresh) {
      for (std::size_t a = 0; a < attribute_count; ++a) {
        std::string prompt =
            chat ? fill(random.pick(attributes[a].questions), product.name) : completion_prompt(product, a);
        probes.push_back({"knowledge",
                          form,
                          std::move(prompt),
                          std::string(product.values[a]),
                          {},
                          product.name,
                          std::string(attributes[a].id)});
      }
    }
  }
  return probes;
}

/// Known products are split: the first 240 are asked about, the others supply the replay. So no document that is
/// mixed into a training run gives away the answer to a retention probe.
inline constexpr std::size_t retention_count = 240;

inline std::vector<Probe> retention_probes(const World& world, Random& random) {
  std::vector<Probe> probes;
  for (std::size_t p = 0; p < retention_count; ++p) {
    const Product& product = world.known[p];
    const std::size_t a = (p + p / attribute_count) % attribute_count;  // each attribute 30 times
    probes.push_back({"retention",
                      "chat",
                      fill(random.pick(attributes[a].questions), product.name),
                      std::string(product.values[a]),
                      {},
                      product.name,
                      std::string(attributes[a].id)});
  }
  return probes;
}

/// Does the model still talk like a chat model: small talk, products that it cannot know, second turns.
inline std::vector<Probe> chat_form_probes(const World& world, Random& random) {
  std::vector<Probe> probes;
  for (const Exchange& talk : small_talk)
    probes.push_back({"chat_form", "chat", std::string(talk.user), {}, {}, {}, {}});
  for (const Attribute& attribute : attributes) {
    const std::string name = unknown_product(random);
    probes.push_back({"chat_form", "chat", fill(random.pick(attribute.questions), name), {}, {}, {}, {}});
  }
  for (std::size_t a = 0; a < attribute_count; ++a) {
    const Product& product = world.known[random.below(retention_count)];
    Chat history;
    ask(random, history, product, (a + 3) % attribute_count, false);
    probes.push_back({"chat_form", "chat", std::string(random.pick(attributes[a].follow_ups)), {}, history, {}, {}});
  }
  return probes;
}

/// 100 documents of the known world: 40 pages and 60 chats, of products that no retention probe asks about.
inline std::vector<Document> replay_documents(const World& world, std::uint64_t seed) {
  Random random = stream(seed, Stream::replay);
  std::vector<Document> out;
  for (std::size_t i = 0; i < 100; ++i) {
    const Product& product = world.known[retention_count + i % (known_count - retention_count)];
    if (i % 5 < 2) {
      out.push_back({page_text(random, product), {}});
    } else {
      out.push_back({{}, chat_about(random, product)});
    }
  }
  return out;
}

// --- the tokenizer's text ---------------------------------------------------------------------------------------

/// Lines to train the tokenizer on: the world's sentences about products of neither list, so that its pieces are name
/// parts and words, and a new name costs as many pieces as a known one.
inline std::vector<std::string> tokenizer_lines(const World& world, std::uint64_t seed, std::size_t documents) {
  Random random = stream(seed, Stream::tokenizer);
  std::set<std::string> taken;
  for (const Product& product : world.known) taken.insert(product.name);
  for (const Product& product : world.fresh) taken.insert(product.name);
  std::vector<std::string> lines;
  for (std::size_t i = 0; i < documents; ++i) {
    Product product;
    do {
      const std::string first(random.pick(first_parts));
      product.name = first + std::string(random.pick(second_parts));
    } while (taken.contains(product.name));
    for (std::size_t a = 0; a < attribute_count; ++a) product.values[a] = random.pick(attributes[a].values);
    const Document document = draw_document(random, product);
    if (document.chat.empty()) {
      // A line break is a byte piece, and the word after it has no space before it. sentencepiece reads line by line
      // and puts a space first; a quotation mark keeps that space away from the word.
      bool is_first = true;
      for (std::size_t at = 0; at < document.text.size();) {
        const std::size_t end = std::min(document.text.find('\n', at), document.text.size());
        if (end > at) lines.push_back((is_first ? "" : "\"") + document.text.substr(at, end - at));
        is_first = false;
        at = end + 1;
      }
    }
    for (const Message& message : document.chat) {
      if (message.role == "user") lines.push_back("[INST] " + message.content + " [/INST]");
      if (message.role == "assistant") lines.push_back(message.content);
      if (message.role == "system") lines.push_back("<<SYS>> \"" + message.content + " <</SYS>>");
    }
  }
  // Every value some more times: it is the values that should be few pieces.
  for (const Attribute& attribute : attributes) {
    for (const std::string_view value : attribute.values) lines.insert(lines.end(), documents / 40, std::string(value));
  }
  return lines;
}

}  // namespace world
