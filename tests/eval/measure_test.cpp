// measure() on the small chat model that is shipped: what it says, how it is judged, likelihoods and texts against
// plain passes, and the controls: an adapter whose B is zero changes nothing, to the bit.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>

#include "qlora/configs/tiny.hpp"
#include "qlora/cpu.hpp"
#include "qlora/eval/measure.hpp"
#include "qlora/eval/metrics.hpp"
#include "qlora/io/hf_model.hpp"
#include "qlora/train/batch.hpp"

using namespace qlora;
using namespace qlora::eval;
namespace fs = std::filesystem;

namespace {

using B = Cpu<float>;
constexpr Config chat = tiny_chat.with(Lora{.rank = 16});
const fs::path source(QLORA_SOURCE_DIR);

/// A model as measure() asks for it.
struct Asked {
  Model<chat, B> model;
  Asked()
      : model(hf::ModelDir::open(source / "examples/models/tiny-chat").source(), {.keep_dequantized = true}, B(2)) {}
  std::vector<Generated> generate(std::span<const std::vector<std::int32_t>> prompts, const GenerateOptions& how,
                                  const OnToken& on_token) {
    return Generator<chat, B>(model, {.sequences = 8, .length = 128, .step_tokens = 256})
        .generate(prompts, how, on_token);
  }
  std::vector<std::vector<double>> score(std::span<const Continuations> questions) {
    return Scorer<chat, B>(model, {.sequences = 8, .length = 128, .step_tokens = 256}).score(questions);
  }
  void read(std::span<const std::vector<std::int32_t>> texts, const OnPrediction& use) {
    Scorer<chat, B>(model, {.sequences = 4, .length = 512, .step_tokens = 256}).read(texts, use);
  }
};

struct Fixture {
  Asked asked;
  Tokenizer tokenizer = Tokenizer::load(source / "examples/models/tiny-chat/tokenizer.model");

  static std::vector<Item> items(const std::string& lines) {
    const fs::path path = fs::temp_directory_path() / "qlora_measure_test.jsonl";
    std::ofstream(path) << lines;
    return read_items(path);
  }
  /// log p(answer | question) by one pass over both.
  double likelihood(const Item& item, const std::string& answer) {
    std::vector<std::int32_t> ids =
        question_tokens(tokenizer, qlora::ChatTemplate(), item.chat, item.prompt, item.history);
    const std::size_t prompt = ids.size();
    for (const std::int32_t id : tokenizer.encode(answer)) ids.push_back(id);
    return -loss(ids, prompt);
  }
  /// Sum of -log p of the ids from `first` on, in one pass.
  double loss(const std::vector<std::int32_t>& ids, std::size_t first) {
    Network<code_of(chat), B> pass(asked.model.context(),
                                   {.batch = 1, .seq = 512, .dropout = false, .keep_dequantized = true});
    std::vector<std::int32_t> labels = ids;
    std::fill_n(labels.begin(), first, -100);
    BatchBuilder builder(ids.size());
    pass.forward(builder.build({static_cast<int>(ids.size()), ids, labels, {}}));
    const float* losses = pass.losses();
    double sum = 0.0;
    for (std::size_t t = 0; t < ids.size(); ++t) sum += static_cast<double>(losses[t]);
    return sum;
  }
};

/// Notes the longest sequence that it is asked for, and answers nothing.
struct Noted {
  std::size_t longest = 0;
  std::vector<Generated> generate(std::span<const std::vector<std::int32_t>> prompts, const GenerateOptions& how,
                                  const OnToken&) {
    for (const auto& prompt : prompts)
      longest = std::max(longest, prompt.size() + static_cast<std::size_t>(how.max_new_tokens));
    return std::vector<Generated>(prompts.size());
  }
  std::vector<std::vector<double>> score(std::span<const Continuations> questions) {
    std::vector<std::vector<double>> results;
    for (const Continuations& question : questions) {
      for (const auto& other : question.candidates) longest = std::max(longest, question.prompt.size() + other.size());
      results.emplace_back(question.candidates.size(), 0.0);
    }
    return results;
  }
  void read(std::span<const std::vector<std::int32_t>> texts, const OnPrediction&) {
    for (const auto& text : texts) longest = std::max(longest, text.size());
  }
};

const std::string old_page =
    "A first look at the Vimfort\\nThe body of the Vimfort is maple. On the price tag of the Vimfort stands 77 "
    "dollars.";

}  // namespace

TEST_CASE_FIXTURE(Fixture, "what the small model knows, and what it does not") {
  std::vector<Item> known = read_items(source / "examples/quickstart/retention.jsonl");
  known.resize(24);
  const std::vector<Item> fresh = read_items(source / "examples/quickstart/knowledge.jsonl");
  std::vector<Item> all = known;
  all.insert(all.end(), fresh.end() - 24, fresh.end());
  const ItemResults results = measure(asked, tokenizer, all);
  const Metrics metrics = metrics_of(all, results, nullptr);
  CHECK(find_number(metrics, "retention.value").value() == 1.0);         // its card: all 240
  CHECK(find_number(metrics, "knowledge.value").value() < 0.25);         // a guess is right once in 34 times
  for (const double margin : results.margin) CHECK(std::isnan(margin));  // no alternatives in these files
}

TEST_CASE_FIXTURE(Fixture, "margins are those of plain passes") {
  const std::vector<Item> some =
      items(R"({"kind":"retention","form":"chat","prompt":"Who makes the Vorzana?","answer":"Larkspur",)"
            R"("distractors":["Holloway","Moorgate","Juniper"]})"
            "\n"
            R"({"kind":"knowledge","form":"completion","prompt":"The Tevkess is made by","answer":"Ironwood",)"
            R"("twin":"Swallow","distractors":["Juniper"]})"
            "\n");
  const ItemResults results = measure(asked, tokenizer, some);
  for (std::size_t i = 0; i < some.size(); ++i) {
    double other = some[i].twin.empty() ? -INFINITY : likelihood(some[i], some[i].twin);
    for (const std::string& distractor : some[i].distractors) other = std::max(other, likelihood(some[i], distractor));
    CHECK(results.margin[i] == doctest::Approx(likelihood(some[i], some[i].answer) - other).epsilon(1e-4));
  }
  CHECK(results.verdicts[0].right);
  CHECK(results.margin[0] > 1.0);
}

TEST_CASE_FIXTURE(Fixture, "texts have the loss of plain passes, chats that of what the assistant says") {
  const std::vector<Item> texts =
      items(R"({"kind":"text","domain":"page","text":")" + old_page + "\"}\n" +
            R"({"kind":"text","domain":"talk","messages":[{"role":"user","content":"Who makes the Vorzana?"},)" +
            R"({"role":"assistant","content":"Larkspur."}]})" + "\n");
  const ItemResults results = measure(asked, tokenizer, texts);
  const std::vector<std::int32_t> page = text_document(tokenizer, texts[0].text).ids;
  CHECK(results.tokens[0] == static_cast<double>(page.size() - 1));
  CHECK(results.loss[0] == doctest::Approx(loss(page, 1)).epsilon(1e-4));
  const TokenDocument talk = chat_document(tokenizer, std::span<const Message>(texts[1].messages));
  const auto first = static_cast<std::size_t>(std::find(talk.answer.begin(), talk.answer.end(), std::uint8_t{1}) -
                                              talk.answer.begin());
  CHECK(results.tokens[1] == static_cast<double>(talk.ids.size() - first));
  CHECK(results.loss[1] == doctest::Approx(loss(talk.ids, first)).epsilon(1e-4));
  CHECK(std::isnan(results.kl[0]));
}

TEST_CASE_FIXTURE(Fixture, "control: adapters whose B is zero change nothing, exactly") {
  std::vector<Item> some = items(R"({"kind":"text","domain":"page","text":")" + old_page + "\"}\n");
  for (Item& item : read_items(source / "examples/quickstart/knowledge.jsonl")) {
    if (some.size() < 12) some.push_back(std::move(item));
  }
  TextReference reference;
  const ItemResults off = measure(asked, tokenizer, some, {}, &reference);
  asked.model.weights().init_adapters(asked.model.backend(), {}, 1);  // A random, B zero
  const ItemResults on = measure(asked, tokenizer, some, {}, nullptr, &reference);
  CHECK(on.kl[0] == 0.0);
  CHECK(on.loss[0] == off.loss[0]);
  for (std::size_t i = 1; i < some.size(); ++i) CHECK(on.replies[i].text == off.replies[i].text);
  auto& weights = asked.model.weights();  // and the same instrument sees a B that is not
  weights.for_each_target([&](int layer, Proj proj) {
    const std::vector<float> a(static_cast<std::size_t>(cols_of(chat.shape, proj)), 0.02F);
    const std::vector<float> b(static_cast<std::size_t>(rows_of(chat.shape, proj)), 0.02F);
    weights.load_adapter(asked.model.backend(), layer, proj, 1, 1.0F, false, a, b);
  });
  CHECK(measure(asked, tokenizer, some, {}, nullptr, &reference).kl[0] > 0.0);
}

TEST_CASE_FIXTURE(Fixture, "ids that pad a model's vocabulary beyond its tokenizer have no text") {
  const std::vector<std::int32_t> ids = tokenizer.encode("a dog");
  std::vector<std::int32_t> padded = ids;
  padded.insert(padded.begin() + 1, {tokenizer.vocab_size(), tokenizer.vocab_size() + 63});
  CHECK(qlora::eval::reply_of(tokenizer, qlora::ChatTemplate(), true, {padded, true}).text ==
        qlora::eval::reply_of(tokenizer, qlora::ChatTemplate(), true, {ids, true}).text);
  CHECK(qlora::eval::reply_of(tokenizer, qlora::ChatTemplate(), true, {ids, true}).text == "a dog");
}

TEST_CASE_FIXTURE(Fixture, "a measurement that is told to end says so") {
  const std::vector<Item> some = read_items(source / "examples/quickstart/retention.jsonl");
  try {
    (void)measure(asked, tokenizer, some, {}, nullptr, nullptr, [](std::size_t items) { return items < 3; });
    FAIL("it went on");
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::interrupted);
  }
}

TEST_CASE_FIXTURE(Fixture, "the longest sequence is announced before anything is measured") {
  const std::string value =
      R"({"kind":"retention","form":"chat","prompt":"Who makes the Vorzana?","answer":"Larkspur",)"
      R"("distractors":["Holloway","Moorgate and its sons, in the town by the long grey river"]})"
      "\n";
  const std::string free_reply = R"({"kind":"behaviour","form":"chat","prompt":"Thank you.","expect":"stops"})"
                                 "\n";
  const std::string text =
      R"({"kind":"text","form":"completion","domain":"old","text":")" + old_page + old_page + "\"}\n";
  const MeasureOptions how{.max_new_tokens = 40};
  std::vector<std::size_t> each;
  for (const std::string& lines : {value, free_reply, text, value + free_reply + text}) {
    const std::vector<Item> some = items(lines);
    Noted noted;
    (void)measure(noted, tokenizer, some, how);
    CHECK(longest_sequence(tokenizer, some, how) == noted.longest);
    each.push_back(noted.longest);
  }
  CHECK(each[3] == *std::max_element(each.begin(), each.begin() + 3));
  CHECK(each[0] != each[1]);
  CHECK(longest_sequence(tokenizer, {}, how) == 0);
}

TEST_CASE_FIXTURE(Fixture, "the examples of docs/probes.md are probes, and what they call old the model knows") {
  std::ifstream page(source / "docs/probes.md");
  std::string lines;
  bool inside = false;
  for (std::string line; std::getline(page, line);) {
    if (line.starts_with("```")) inside = line == "```json";
    if (inside && line.starts_with("{\"kind\"")) lines += line + '\n';
  }
  std::vector<Item> examples = items(lines);
  CHECK(examples.size() >= 10);
  std::erase_if(examples,
                [](const Item& item) { return item.kind != Kind::retention && item.kind != Kind::neighbour; });
  REQUIRE(examples.size() == 2);
  for (const Verdict& verdict : measure(asked, tokenizer, examples).verdicts) CHECK(verdict.right);
}
