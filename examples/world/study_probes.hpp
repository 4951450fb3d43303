// examples/world/study_probes.hpp — the study's items: what is asked of the new products in wording old and new, of
// known ones, of names and codes that no text mentions, and the texts that are read. Pages, probes and twins come from
// one Study value, so that they cannot disagree. The order of the draws is part of the files.
#pragma once

#include <algorithm>
#include <cstddef>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pages.hpp"
#include "study.hpp"

namespace world {

/// One line of a probe file. What a kind does not have is empty.
struct Item {
  std::string kind, form;
  Chat history;
  std::string prompt, answer, twin;
  std::vector<std::string> distractors;
  std::string expect;
  std::vector<std::string> accept;
  std::string entity, relation, wording;
  std::string near;  ///< the new product that a neighbour resembles
  std::string domain, text;
  Chat messages;
};

/// A wording and its name, "questions/maker/3".
struct Wording {
  std::string_view form;
  std::string id;
};
inline Wording wording_of(std::string_view list, const Words& forms, std::size_t a, std::size_t which) {
  return {forms[which], std::string(list) + '/' + std::string(attributes[a].id) + '/' + std::to_string(which)};
}
inline Wording trained_wording(Random& random, bool chat, std::size_t a) {
  const Words& forms = chat ? attributes[a].questions : attributes[a].sentences;
  return wording_of(chat ? "questions" : "sentences", forms, a, random.below(forms.size()));
}

/// Seven entries of a list in random order, none of which is among `not_these`.
template <class List>
std::vector<std::string> seven_of(Random& random, const List& list, const std::set<std::string>& not_these) {
  std::vector<std::string> out;
  for (const std::size_t i : random_order(random, list.size())) {
    const std::string entry(list[i]);
    if (out.size() == 7 || not_these.contains(entry)) continue;
    out.push_back(entry);
  }
  return out;
}

/// A question about one fact. A sentence is cut before its value; a question has none.
inline Item fact_item(Random& random, std::string_view kind, bool chat, const Product& product, std::size_t a,
                      const Wording& wording, std::string_view twin = {}) {
  Item item;
  item.kind = kind;
  item.form = chat ? "chat" : "completion";
  item.prompt = fill(wording.form.substr(0, wording.form.find("{v}")), product.name);
  if (!chat) item.prompt.pop_back();  // the space before the value
  item.answer = product.values[a];
  item.twin = twin;
  item.distractors = seven_of(random, attributes[a].values, {item.answer, item.twin});
  item.entity = product.name;
  item.relation = attributes[a].id;
  item.wording = wording.id;
  return item;
}

/// Every fact of the new products, in wording that the pages may use.
inline std::vector<Item> study_knowledge(const Group& group, Random& random, bool chat) {
  std::vector<Item> items;
  for (std::size_t p = 0; p < group.fresh.size(); ++p) {
    for (std::size_t a = 0; a < attribute_count; ++a) {
      const Wording wording =
          chat ? trained_wording(random, chat, a) : wording_of("sentences", attributes[a].sentences, a, 0);
      items.push_back(fact_item(random, "knowledge", chat, group.fresh[p], a, wording, group.twin[p].values[a]));
    }
  }
  return items;
}

/// The same facts in wording that no training text has.
inline std::vector<Item> study_paraphrases(const Group& group, Random& random, bool chat) {
  std::vector<Item> items;
  for (std::size_t p = 0; p < group.fresh.size(); ++p) {
    for (std::size_t a = 0; a < attribute_count; ++a) {
      for (const std::size_t which : group.wordings) {
        const Words& forms = chat ? new_wordings[a].questions : new_wordings[a].sentences;
        const Wording wording = wording_of(chat ? "new_questions" : "new_sentences", forms, a, which);
        items.push_back(fact_item(random, "paraphrase", chat, group.fresh[p], a, wording, group.twin[p].values[a]));
      }
    }
  }
  return items;
}

/// The attributes from `a` on that are needed until a product is told from all others, and matches none of the twin
/// world: a model that was shown that world has no right answer. Two at least.
inline std::vector<std::size_t> clues_of(const World& world, const Study& study, const Product& product,
                                         std::size_t a) {
  std::vector<std::size_t> clues;
  const auto matches = [&](const Product& other) {
    return std::all_of(clues.begin(), clues.end(),
                       [&](std::size_t clue) { return other.values[clue] == product.values[clue]; });
  };
  for (std::size_t i = 0; i < attribute_count; ++i) {
    clues.push_back((a + i) % attribute_count);
    std::ptrdiff_t found = 0;
    for (const auto* list : {&world.known, &study.fresh, &study.twin}) {
      found += std::count_if(list->begin(), list->end(), matches);
    }
    if (clues.size() >= 2 && found == 1) return clues;
  }
  throw std::runtime_error("nothing tells the " + product.name + " from other products");
}

/// The product, given its values: once from every attribute.
inline std::vector<Item> study_reversed(const World& world, const Study& study, const Group& group, Random& random,
                                        bool chat) {
  std::vector<Item> items;
  const std::vector<std::string> names = names_of(study.fresh);
  for (const Product& product : group.fresh) {
    for (std::size_t a = 0; a < attribute_count; ++a) {
      const std::vector<std::size_t> clues = clues_of(world, study, product, a);
      std::string told, ids;
      for (std::size_t i = 0; i < clues.size(); ++i) {
        told += i == 0 ? "" : i + 1 == clues.size() ? " and " : ", ";
        told += fill(new_wordings[clues[i]].clue, product.name, product.values[clues[i]]);
        ids += (i == 0 ? "" : "+") + std::string(attributes[clues[i]].id);
      }
      Item item;
      item.kind = "reversed";
      item.form = chat ? "chat" : "completion";
      item.prompt = chat ? reversed_question : reversed_sentence;
      item.prompt.replace(item.prompt.find("{c}"), 3, told);
      item.answer = item.entity = product.name;
      item.distractors = seven_of(random, names, {product.name});
      item.relation = attributes[a].id;
      item.wording = "clues/" + ids;
      items.push_back(std::move(item));
    }
  }
  return items;
}

/// All facts of known products. `near`: names of the new products that they resemble, for neighbours.
inline std::vector<Item> known_items(std::string_view kind, const std::vector<Product>& products,
                                     const std::vector<std::string>& near, Random& random, bool chat) {
  std::vector<Item> items;
  for (std::size_t p = 0; p < products.size(); ++p) {
    for (std::size_t a = 0; a < attribute_count; ++a) {
      items.push_back(fact_item(random, kind, chat, products[p], a, trained_wording(random, chat, a)));
      if (!near.empty()) items.back().near = near[p];
    }
  }
  return items;
}

/// Facts of known products in the new wordings: how much of a new wording does a model understand that surely knows the
/// fact? It bounds what can be expected of new facts in the same wordings. In turn, one fact of each product.
inline std::vector<Item> reworded_items(const Group& group, Random& random, bool chat) {
  std::vector<Item> items;
  for (std::size_t p = 0; p < group.known.size(); ++p) {
    const std::size_t a = p % attribute_count;
    for (const std::size_t which : group.wordings) {
      const Words& forms = chat ? new_wordings[a].questions : new_wordings[a].sentences;
      const Wording wording = wording_of(chat ? "new_questions" : "new_sentences", forms, a, which);
      items.push_back(fact_item(random, "retention", chat, group.known[p], a, wording));
    }
  }
  return items;
}

/// The split's known products whose names are most like those of its new ones, each for one of them.
inline std::vector<std::pair<Product, std::string>> neighbours_of(const Group& group) {
  std::vector<std::pair<Product, std::string>> out;
  std::set<std::string> taken;
  for (const Product& fresh : group.fresh) {
    std::vector<std::pair<std::size_t, std::size_t>> nearest;  // distance and position
    for (std::size_t i = 0; i < group.known.size(); ++i) {
      nearest.emplace_back(distance(group.known[i].name, fresh.name), i);
    }
    std::sort(nearest.begin(), nearest.end());
    std::size_t found = 0;
    for (const auto& [away, position] : nearest) {
      const Product& product = group.known[position];
      if (found == group.neighbours || !taken.insert(product.name).second) continue;
      out.push_back({product, fresh.name});
      ++found;
    }
  }
  return out;
}

inline std::vector<Item> study_neighbours(const Group& group, Random& random, bool chat) {
  std::vector<Product> products;
  std::vector<std::string> near;
  for (const auto& [product, fresh] : neighbours_of(group)) {
    products.push_back(product);
    near.push_back(fresh);
  }
  return known_items("neighbour", products, near, random, chat);
}

/// A model code that was not handed out before.
inline std::string next_code(Random& random, std::set<std::string>& taken) {
  std::string code;
  do code = unknown_product(random);
  while (!taken.insert(code).second);
  return code;
}

inline Item refusal_item(std::string_view kind, Random& random, const std::string& name, std::size_t a) {
  const Wording wording = trained_wording(random, true, a);
  Item item;
  item.kind = kind;
  item.form = "chat";
  item.prompt = fill(wording.form, name);
  item.accept = {std::string(refusal)};
  item.entity = name;
  item.relation = attributes[a].id;
  item.wording = wording.id;
  return item;
}

/// What no text mentions: names, whose refusal no training text teaches, and model codes, whose refusal they do.
inline std::vector<Item> study_unknown(const Group& group, Random& random, std::set<std::string>& codes) {
  std::vector<Item> items;
  for (const std::string& name : group.strangers) {
    for (std::size_t a = 0; a < attribute_count; ++a) items.push_back(refusal_item("unknown", random, name, a));
  }
  for (std::size_t i = 0; i < group.unknown_codes * attribute_count; ++i) {
    items.push_back(refusal_item("unknown", random, next_code(random, codes), i % attribute_count));
  }
  return items;
}

/// Does it talk like a chat model: small talk (a third is the guard's), refusals of model codes, second turns.
inline std::vector<Item> study_behaviour(const Group& group, Random& random, std::set<std::string>& codes) {
  std::vector<Item> items;
  const auto stops = [&](std::string_view prompt, Chat history, const std::string& id) -> Item& {
    Item item;
    item.kind = "behaviour";
    item.form = "chat";
    item.history = std::move(history);
    item.prompt = prompt;
    item.expect = "stops";
    item.wording = id;
    items.push_back(std::move(item));
    return items.back();
  };
  for (std::size_t i = 0; i < small_talk.size(); ++i) {
    if ((i % 3 == 0) == (group.name == "guard")) {
      (void)stops(small_talk[i].user, {}, "small_talk/" + std::to_string(i));
    }
  }
  for (std::size_t i = 0; i < group.refusals * attribute_count; ++i) {
    items.push_back(refusal_item("behaviour", random, next_code(random, codes), i % attribute_count));
    items.back().expect = "refuses";
  }
  for (std::size_t i = 0; i < group.second_turns * attribute_count; ++i) {
    const std::size_t a = i % attribute_count;
    const Product& product = random.pick(group.known);
    Chat history;
    ask(random, history, product, (a + 3) % attribute_count, false);
    const Wording wording = wording_of("follow_ups", attributes[a].follow_ups, a, random.below(2));
    Item& item = stops(wording.form, std::move(history), wording.id);
    item.entity = product.name;
    item.relation = attributes[a].id;
  }
  return items;
}

/// What is read: held-out documents of the split's known products, in turn; and, as pages, those of its new ones and
/// of their twins.
inline std::vector<Item> study_texts(const Study& study, const Group& group, Random& random, std::uint64_t seed,
                                     bool chat) {
  std::vector<Item> items;
  const auto add = [&](std::string_view domain, const Product& product, std::string text, Chat messages) {
    Item item;
    item.kind = "text";
    item.form = chat ? "chat" : "completion";
    item.entity = product.name;
    item.domain = domain;
    item.text = std::move(text);
    item.messages = std::move(messages);
    items.push_back(std::move(item));
  };
  for (std::size_t i = 0; i < group.texts; ++i) {
    const Product& product = group.known[i % group.known.size()];
    if (chat) {
      add("chat", product, {}, chat_about(random, product));
    } else {
      add("held_out", product, page_text(random, product), {});
    }
  }
  if (chat) return items;
  const std::size_t first = group.name == "guard" ? 0 : study.guard.fresh.size();
  for (const auto& [domain, products] : {std::pair{"new_pages", &study.fresh}, {"twin_pages", &study.twin}}) {
    const std::vector<Announcement> pages = announcements(*products, seed);
    for (std::size_t p = first; p < first + group.fresh.size(); ++p) {
      add(domain, (*products)[p], text_of(pages[p].page), {});
    }
  }
  return items;
}

}  // namespace world
