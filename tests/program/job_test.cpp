// job_test.cpp — job files through the program: defaults, overrides, and errors that say file, line and what was meant.
// QLORA_PROGRAM is the built program.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "support/program.hpp"

using program_test::contains;
using program_test::Outcome;
using program_test::qlora;
using program_test::Scratch;

namespace {

const std::string minimal = "[model]\npath = 'model'\n[data]\nfiles = ['pages']\n[output]\ndir = 'out'\n";

Outcome check(const Scratch& scratch, const std::string& job) {
  return qlora(scratch, "run --show '" + scratch.write("job.toml", job).string() + "'");
}

const std::string old_fact =
    R"({"kind":"retention","form":"chat","prompt":"Who makes the Kesfort?","answer":"Eastlake"})";
const std::string new_fact =
    R"({"kind":"knowledge","form":"chat","prompt":"Who makes the Daxnova?","answer":"Castermoor","twin":"Swallow"})";

/// The error line of a job that must be refused as input.
std::string refusal(const Scratch& scratch, const std::string& job) {
  const Outcome outcome = check(scratch, job);
  CHECK(outcome.code == 3);
  CHECK(outcome.out.empty());
  CHECK(std::count(outcome.err.begin(), outcome.err.end(), '\n') == 1);
  return outcome.err;
}

}  // namespace

TEST_CASE("a job file of very many arms is refused at once") {
  const Scratch scratch;
  std::string job = minimal;
  for (int i = 0; i < 1001; ++i) job += "[[arm]]\nname='a" + std::to_string(i) + "'\n";
  CHECK(contains(refusal(scratch, job), "1001 of [[arm]]; a job has at most 1000"));
}

TEST_CASE("a minimal job means the article's settings, and paths stand beside the job file") {
  const Scratch scratch;
  const Outcome outcome = check(scratch, minimal);
  REQUIRE(outcome.code == 0);
  const auto job = nlohmann::json::parse(outcome.out);
  const auto& arm = job.at("arms").at("qlora");
  CHECK(arm.at("rank") == 64);
  CHECK(arm.at("alpha") == 16.0);
  CHECK(arm.at("dropout") == 0.1);
  CHECK(arm.at("lr") == 2e-4);
  CHECK(arm.at("epochs") == 20);
  CHECK(arm.at("batch") == 2);
  CHECK(job.at("compare").at("max_new_tokens") == 200);
  CHECK(job.at("compare").at("top_p") == 0.9);
  CHECK(job.at("compare").at("temperature") == 0.01);
  CHECK(job.at("model").at("path") == (scratch / "model").string());
  CHECK(job.at("data").at("files").at(0) == (scratch / "pages").string());
}

TEST_CASE("arms override [train] wherever it stands") {
  const Scratch scratch;
  const Outcome outcome = check(scratch, minimal +
                                             "[[arm]]\nname = 'pages_only'\nlr = 1e-3\n"
                                             "[[arm]]\nname = 'mixed'\nreplay = 'old.jsonl'\nreplay_limit = 60\n"
                                             "[train]\nrank = 8\nlr = 5e-4\n");
  REQUIRE(outcome.code == 0);
  const auto arms = nlohmann::json::parse(outcome.out).at("arms");
  REQUIRE(arms.size() == 2);
  CHECK(arms.at("pages_only").at("lr") == 1e-3);
  CHECK(arms.at("pages_only").at("rank") == 8);
  CHECK(arms.at("pages_only").at("replay") == "");
  CHECK(arms.at("mixed").at("lr") == 5e-4);
  CHECK(arms.at("mixed").at("replay") == (scratch / "old.jsonl").string());
  CHECK(arms.at("mixed").at("replay_limit") == 60);
  CHECK(nlohmann::json::parse(outcome.out).at("merge").at("arm") == "mixed");
}

TEST_CASE("arms may differ in what they adapt") {
  const Scratch scratch;
  const Outcome outcome = check(scratch, minimal +
                                             "[[arm]]\nname = 'attention'\ntargets = 'o,q,k,v'\n"
                                             "[[arm]]\nname = 'everything'\n");
  REQUIRE(outcome.code == 0);
  const auto arms = nlohmann::json::parse(outcome.out).at("arms");
  CHECK(arms.at("attention").at("targets") == "q,k,v,o");
  CHECK(arms.at("everything").at("targets") == "all");
  CHECK(contains(refusal(scratch, minimal + "[train]\ntargets = 'q,w'\n"), "`targets` must be \"all\", or names of q"));
}

TEST_CASE("an arm may learn from pages of its own, with settings of its own") {
  const Scratch scratch;
  const Outcome outcome = check(scratch, minimal +
                                             "[[arm]]\nname = 'a'\n"
                                             "[[arm]]\nname = 'b'\nfiles = ['b/pages', 'more.txt']\n"
                                             "rank = 8\nalpha = 32\nepochs = 3\ndropout = 0\n"
                                             "[[arm]]\nname = 'c'\nurls = ['http://x/']\n"
                                             "[[arm]]\nname = 'd'\nfiles = ['pages']\n");
  REQUIRE(outcome.code == 0);
  const auto arms = nlohmann::json::parse(outcome.out).at("arms");
  CHECK_FALSE(arms.at("a").contains("files"));
  CHECK(arms.at("b").at("files") == nlohmann::json{(scratch / "b/pages").string(), (scratch / "more.txt").string()});
  CHECK(arms.at("b").at("urls").empty());
  CHECK(arms.at("c").at("urls") == nlohmann::json{"http://x/"});
  CHECK(arms.at("c").at("files").empty());      // both are replaced, not one of them
  CHECK_FALSE(arms.at("d").contains("files"));  // those of [data], said once more
  CHECK(arms.at("b").at("rank") == 8);
  CHECK(arms.at("b").at("alpha") == 32);
  CHECK(arms.at("b").at("epochs") == 3);
  CHECK(arms.at("b").at("dropout") == 0);
  CHECK(arms.at("a").at("rank") == 64);

  const std::string empty = minimal + "[[arm]]\nname = 'a'\nfiles = []\n";
  CHECK(contains(refusal(scratch, empty), ":9: the [[arm]] \"a\" needs urls or files"));
  CHECK(contains(refusal(scratch, minimal + "[[arm]]\nname = 'a'\nfiles = 'x'\n"), "`files` must be a list of texts"));
  CHECK(contains(refusal(scratch, minimal + "[[arm]]\nname = 'a'\nfile = ['x']\n"), "did you mean `files`?"));
  // [data] may be empty where nobody needs it.
  const std::string without = "[model]\npath = 'm'\n[output]\ndir = 'out'\n[[arm]]\nname = 'a'\nfiles = ['x']\n";
  CHECK(check(scratch, without).code == 0);
  CHECK(contains(refusal(scratch, without + "[[arm]]\nname = 'b'\n"), "[data] needs urls or files"));
}

TEST_CASE("an arm says where it stands in sweeps, or what it controls for") {
  const Scratch scratch;
  const auto arms = [&](const std::string& text) { return minimal + "[[arm]]\nname = 'a'\n" + text; };
  const std::string second = "[[arm]]\nname = 'b'\n";
  const auto job = nlohmann::json::parse(
      check(scratch, arms("sweep = { 'phrasings per fact' = 4, rank = 6.5 }\n" + second + "control = 'permuted'\n"))
          .out);
  CHECK(job.at("arms").at("a").at("sweep") == nlohmann::json{{"phrasings per fact", 4.0}, {"rank", 6.5}});
  CHECK_FALSE(job.at("arms").at("a").contains("control"));
  CHECK(job.at("arms").at("b").at("control") == "permuted");
  CHECK_FALSE(job.at("arms").at("b").contains("sweep"));
  CHECK(job.at("merge").at("arm") == "a");  // requirements are checked on what is merged: no control
  const auto full = nlohmann::json::parse(
      check(scratch, arms("method = 'full'\n" + second + "method = 'full'\ncontrol = 'permuted'\n")).out);
  CHECK(full.at("merge").at("arm") == "a");
  const auto alone = nlohmann::json::parse(check(scratch, arms("control = 'permuted'\n")).out);
  CHECK(alone.at("merge").at("arm") == "a");

  CHECK(contains(refusal(scratch, arms("sweep = 'rank'\n")),
                 ":9: `sweep` must be names with numbers: { \"rank\" = 64 }"));
  CHECK(contains(refusal(scratch, arms("sweep = { rank = '64' }\n")), ":9: `sweep` must give a number for \"rank\""));
  CHECK(contains(refusal(scratch, arms("sweep = { rank = inf }\n")), "must give a number"));
  CHECK(contains(refusal(scratch, arms("sweep = { '' = 1 }\n")), "must name what is varied"));
  CHECK(contains(refusal(scratch, arms("control = true\n")), "`control` must be a text"));
  CHECK(contains(refusal(scratch, arms("sweep = { rank = 1 }\ncontrol = 'x'\n")),
                 ":10: the arm \"a\" is a control or stands in a sweep, not both"));
  CHECK(contains(refusal(scratch, arms("swep = { rank = 1 }\n")), "did you mean `sweep`?"));
  // One seed counts once at a value; other seeds and other groups do not meet it.
  const std::string at_one = arms("sweep = { epochs = 2, rank = 1 }\n" + second + "sweep = { rank = 1 }\n");
  CHECK(contains(refusal(scratch, at_one),
                 ":12: \"a\" and \"b\" have the same value of the sweep \"rank\" and the same seed"));
  CHECK(check(scratch, at_one + "seed = 7\n").code == 0);
  CHECK(check(scratch, at_one + "group = 'other'\n").code == 0);
  CHECK(check(scratch, at_one + "method = 'full'\n").code == 0);
}

TEST_CASE("several models go through the same job under their names") {
  const Scratch scratch;
  const std::string rest = "[data]\nfiles = ['pages']\n[output]\ndir = 'out'\n";
  const Outcome outcome = check(
      scratch, "[[model]]\nname = 'base'\npath = 'models/13b'\n" + rest + "[[model]]\npath = 'chat'\nname = 'x-1_y'\n");
  REQUIRE(outcome.code == 0);
  const auto models = nlohmann::ordered_json::parse(outcome.out).at("model");
  REQUIRE(models.size() == 2);
  CHECK(models.begin().key() == "base");
  CHECK(models.at("base") == (scratch / "models/13b").string());
  CHECK(models.at("x-1_y") == (scratch / "chat").string());
  const Outcome single = check(scratch, "[[model]]\nname = 'base'\npath = 'm'\n" + rest);
  REQUIRE(single.code == 0);
  CHECK(nlohmann::json::parse(single.out).at("model").at("base") == (scratch / "m").string());

  const std::string file = (scratch / "job.toml").string();
  const auto with = [&](const std::string& models_text) { return refusal(scratch, models_text + rest); };
  CHECK(contains(with("[[model]]\npath = 'm'\n"), file + ":1: each [[model]] needs a `name`"));
  CHECK(contains(with("[[model]]\nname = 'a'\n"), file + ":1: the [[model]] \"a\" needs a `path`"));
  CHECK(contains(with("[[model]]\nname = 'a'\npath = ''\n"), ":3: `path` must not be empty"));
  CHECK(contains(with("[[model]]\nname = 'a'\npath = 'm'\n[[model]]\nname = 'a'\npath = 'n'\n"),
                 ":5: a second model \"a\""));
  for (const std::string name : {"", "a/b", "..", "a b", "A", "a.b", "\\u0000", "\\u00e4"}) {
    CAPTURE(name);
    CHECK(contains(with("[[model]]\nname = \"" + name + "\"\npath = 'm'\n"),
                   ":2: `name` must be 1 to 64 of a-z 0-9 _ -"));
  }
  CHECK(contains(with("[[model]]\nname = '" + std::string(65, 'a') + "'\npath = 'm'\n"), "`name` must be 1 to 64"));
  CHECK(contains(with("[[model]]\nname = 3\npath = 'm'\n"), ":2: `name` must be a text in quotes"));
  CHECK(contains(with("[[model]]\nname = 'a'\npaht = 'm'\n"), "in [[model]]; did you mean `path`?"));
  CHECK(contains(with("model = []\n"), ":1: write each model as [[model]]"));
  CHECK(contains(with("model = ['m']\n"), ":1: write each model as [[model]]"));
  // Both forms in one file are no TOML; a name is for [[model]] alone.
  CHECK(contains(with("[model]\npath = 'm'\n[[model]]\nname = 'a'\npath = 'm'\n"), ":3: "));
  CHECK(contains(with("[[model]]\nname = 'a'\npath = 'm'\n[model]\npath = 'm'\n"), ":4: "));
  CHECK(contains(with("[model]\nname = 'a'\npath = 'm'\n"), ":2: unknown key `name` in [model]"));
}

TEST_CASE("[device] and recompute come from the job, and the command line goes before it") {
  const Scratch scratch;
  const std::string text =
      minimal + "[device]\nuse = 'cuda'\nmemory_cap = '24GB'\nfast = true\n[train]\nrecompute = 'cheap'\n";
  const auto job = nlohmann::json::parse(check(scratch, text).out);
  CHECK(job.at("device").at("use") == "cuda");
  CHECK(job.at("device").at("memory_cap") == "24GB");
  CHECK(job.at("device").at("fast") == true);
  CHECK(job.at("device").at("keep_dequantized") == false);
  CHECK(job.at("arms").at("qlora").at("recompute") == "cheap");
  const std::string file = scratch.write("job.toml", text).string();
  const Outcome overridden =
      qlora(scratch, "run --show '" + file + "' --device cpu --memory-cap 8GiB --keep-dequantized --recompute block");
  REQUIRE(overridden.code == 0);
  const auto other = nlohmann::json::parse(overridden.out);
  CHECK(other.at("device").at("use") == "cpu");
  CHECK(other.at("device").at("memory_cap") == "8GiB");
  CHECK(other.at("device").at("keep_dequantized") == true);
  CHECK(other.at("arms").at("qlora").at("recompute") == "block");
  const auto plain = nlohmann::json::parse(check(scratch, minimal).out);
  CHECK(plain.at("device").at("use") == "auto");
  CHECK(plain.at("arms").at("qlora").at("recompute") == "auto");
  CHECK(contains(refusal(scratch, minimal + "[device]\nuse = 'gpu'\n"), "`use` cannot be \"gpu\""));
  CHECK(contains(refusal(scratch, minimal + "[device]\nmemory_cap = 'much'\n"), ":8: `memory_cap` must be a size"));
}

TEST_CASE("what is trained, how arms are grouped, what must hold") {
  const Scratch scratch;
  const std::string arms =
      "[train]\nprobes = ['guard.jsonl']\nguard = ['retention.lower>=0.9']\n[[arm]]\nname = 'a'\n[[arm]]\nname = 'b'\n"
      "method = 'full'\ngroup = 'all weights'\nevery = 7\n[compare]\nprobes = ['new.jsonl']\n"
      "require = ['knowledge.value>0']\n";
  scratch.write("guard.jsonl", old_fact);
  scratch.write("new.jsonl", new_fact);
  const auto job = nlohmann::json::parse(check(scratch, minimal + arms).out);
  CHECK(job.at("arms").at("b").at("method") == "full");
  CHECK_FALSE(job.at("arms").at("b").contains("rank"));  // all weights have none
  CHECK(job.at("arms").at("b").at("every") == 7);
  CHECK(job.at("arms").at("a").at("every") == 50);
  CHECK(job.at("arms").at("a").at("guard") == nlohmann::json{"retention.lower>=0.9"});
  CHECK(job.at("merge").at("arm") == "a");  // the last one that has an adapter
  CHECK(job.at("compare").at("require") == nlohmann::json{"knowledge.value>0"});
  CHECK(contains(refusal(scratch, minimal + arms + "[merge]\narm = 'b'\n"), "which trains all weights"));
  CHECK(contains(refusal(scratch, minimal + "[train]\nmethod = 'lora'\n"), "`method` cannot be \"lora\""));
  CHECK(contains(refusal(scratch, minimal + "[[arm]]\nname = 'a'\ngroup = 3\n"), "`group` must be a text"));
  CHECK(contains(refusal(scratch, minimal + "[[arm]]\nname = 'a'\ngruop = 'x'\n"), "did you mean `group`?"));
}

TEST_CASE("what says how adapters are is refused where all weights are trained") {
  const Scratch scratch;
  const std::string both = "[[arm]]\nname = 'a'\n[[arm]]\nname = 'b'\nmethod = 'full'\n";
  for (const std::string setting : {"rank = 8", "alpha = 4", "rslora = true", "dropout = 0", "adamw8bit = true"}) {
    CAPTURE(setting);
    const std::string name = "`" + setting.substr(0, setting.find(' ')) + "` is of adapters, and ";
    CHECK(check(scratch, minimal + both + "[train]\n" + setting + "\n").code == 0);  // for the other arm
    CHECK(contains(refusal(scratch, minimal + both + setting + "\n"), ":12: " + name + "the arm \"b\" trains all"));
    const std::string shared = "[train]\nmethod = 'full'\n" + setting + "\n";
    CHECK(contains(refusal(scratch, minimal + shared), ":9: " + name + "this job trains all weights"));
    CHECK(contains(refusal(scratch, minimal + shared + "[[arm]]\nname = 'a'\n"), ":9: " + name + "every arm"));
    CHECK(check(scratch, minimal + shared + "[[arm]]\nname = 'a'\nmethod = 'qlora'\n").code == 0);
    CHECK(contains(refusal(scratch, minimal + shared + "[[arm]]\nname = 'x'\nmethod = 'qlora'\n[[arm]]\nname = 'a'\n" +
                                        setting + "\n"),
                   name + "the arm \"a\""));
  }
  CHECK(check(scratch, minimal + both + "adamw8bit = false\n").code == 0);
}

TEST_CASE("--check looks at what the job will need, and does nothing") {
  const Scratch scratch;
  const std::string model = QLORA_SOURCE_DIR "/examples/models/tiny-chat";
  scratch.write("page.txt", "The Daxnova is made by Castermoor.");
  scratch.write("questions.txt", "Who makes the Daxnova?");
  const std::string good = "[model]\npath = '" + model +
                           "'\n[data]\nfiles = ['page.txt']\n[output]\ndir = 'new/out'\n[compare]\nquestions = "
                           "'questions.txt'\n[device]\nuse = 'cpu'\n";
  const auto checked = [&](const std::string& job) {
    const Outcome outcome = qlora(scratch, "run --check '" + scratch.write("job.toml", job).string() + "'");
    CHECK_FALSE(std::filesystem::exists(scratch / "new"));
    return outcome;
  };
  const Outcome fine = checked(good);
  REQUIRE(fine.code == 0);
  CHECK(fine.out == check(scratch, good).out);
  const auto refused = [&](const std::string& from, const std::string& to, int code, const std::string& part) {
    std::string job = good;
    job.replace(job.find(from), from.size(), to);
    CHECK(check(scratch, job).code == 0);  // as far as the job file itself tells
    const Outcome outcome = checked(job);
    CAPTURE(outcome.err);
    CHECK(outcome.code == code);
    CHECK(outcome.out.empty());
    CHECK(contains(outcome.err, part));
  };
  for (const std::string input : {"page.txt", "questions.txt"}) {  // which the job file names, and not the line
    const Outcome over = qlora(scratch, "run --check '" + scratch.write("job.toml", good).string() + "' --json '" +
                                            (scratch / input).string() + "'");
    CHECK(over.code == 2);
    CHECK(contains(over.err, "--json would replace " + (scratch / input).string()));
  }
  CHECK(program_test::contents(scratch / "questions.txt") == "Who makes the Daxnova?");
  refused("tiny-chat", "no-model", 3, "no-model: no such model directory");
  refused("page.txt", "no.txt", 3, "no.txt is not there");
  refused("'questions.txt'", "'no.txt'", 3, "no.txt");
  refused("[device]", "[train]\nrank = 1024\n[device]", 2, "LoRA rank 1024 is outside 1 to");
  refused("[device]", "[train]\nprobes = ['no.jsonl']\n[device]", 3, "no.jsonl");
  refused("[device]", "[pack]\nseq = 100000\n[device]", 3, "windows of 100000 tokens; the model was made for");
  refused("'cpu'\n", "'cpu'\nmemory_cap = '8GB'\n", 2, "are for a GPU");
}

TEST_CASE("a requirement or a guard that nothing could answer is refused before the job begins") {
  const Scratch scratch;
  scratch.write("old.jsonl", old_fact);
  scratch.write("new.jsonl", new_fact);
  const auto refused = [&](const std::string& more, const std::string& part) {
    for (const std::string check : {"--check", ""}) {
      const std::string file = scratch.write("job.toml", minimal + more).string();
      const Outcome outcome = qlora(scratch, "run " + check + " '" + file + "'");
      CAPTURE(outcome.err);
      CHECK(outcome.code == 2);
      CHECK(outcome.out.empty());
      CHECK(contains(outcome.err, part));
      CHECK_FALSE(std::filesystem::exists(scratch / "out"));
    }
  };
  const std::string compare = "[compare]\nprobes = ['old.jsonl', 'new.jsonl']\nrequire = ['retention.lower>=0', '";
  CHECK(check(scratch, minimal + compare + "knowledge.net.lower>0', 'w16.retention.n>=1', 'qlora.knowledge.n>0']\n")
            .code == 0);
  refused(compare + "paraphrase.value>0']\n", "there are knowledge, merged, nf4, qlora, retention, w16");
  refused(compare + "retention.net.value>0']\n", "`retention` has change, clusters, kept, lower, n, upper, value");
  refused(compare + "retention.middle>0']\n", "`retention` has");
  refused(compare + "other.retention.value>0']\n", "there are knowledge, merged");
  refused(compare + "w16.retention.kept.value>0']\n", "`w16.retention` has clusters, lower, n, upper, value");
  refused(compare + "retention.value>0,9']\n", "`0,9` is not a number");
  refused(compare + "retention.value=>0.9']\n", "`=>` is not one of");
  refused("[compare]\nrequire = ['retention.lower>=0']\n", "a requirement is checked on probes");
  refused("[train]\nprobes = ['old.jsonl']\nguard = ['knowledge.value>0']\n", "there are retention");
  refused("[train]\nguard = ['knowledge.value>0']\n", "a guard is checked on probes");
}

TEST_CASE("unknown keys and sections name file, line and what was probably meant") {
  const Scratch scratch;
  const std::string file = (scratch / "job.toml").string();
  CHECK(contains(refusal(scratch, minimal + "[train]\nranks = 8\n"),
                 file + ":8: unknown key `ranks` in [train]; did you mean `rank`?"));
  CHECK(contains(refusal(scratch, minimal + "[train]\nrank = 8\n\nlearning_rate = 1\n"), ":10: unknown key"));
  CHECK(contains(refusal(scratch, minimal + "[tarin]\nrank = 8\n"), "unknown section [tarin]; did you mean `train`?"));
  CHECK(contains(refusal(scratch, minimal + "[[arm]]\nname = 'a'\nalhpa = 2\n"), "did you mean `alpha`?"));
  CHECK(contains(refusal(scratch, "rank = 3\n" + minimal), ":1: unknown section"));
  CHECK(contains(refusal(scratch, minimal + "[train]\nzzzzzzzz = 1\n"), "known are method rank"));
}

TEST_CASE("wrong types and values name the line, too") {
  const Scratch scratch;
  CHECK(contains(refusal(scratch, minimal + "[train]\nrank = 'eight'\n"), ":8: `rank` must be a whole number"));
  CHECK(contains(refusal(scratch, minimal + "[train]\nrank = 8.5\n"), "`rank` must be a whole number"));
  CHECK(contains(refusal(scratch, minimal + "[train]\nrank = 0\n"), "from 1 to"));
  CHECK(contains(refusal(scratch, minimal + "[train]\nlr = nan\n"), "`lr` must be a number"));
  CHECK(contains(refusal(scratch, minimal + "[train]\ndropout = 1\n"), "`dropout`"));
  CHECK(contains(refusal(scratch, minimal + "[train]\nrslora = 1\n"), "true or false"));
  CHECK(contains(refusal(scratch, minimal + "[train]\nschedule = 'cosin'\n"), "did you mean `cosine`?"));
  CHECK(contains(refusal(scratch, minimal + "[[arm]]\nlr = 1\n"), "needs a `name`"));
  CHECK(contains(refusal(scratch, minimal + "[[arm]]\nname = 'a/b'\n"), "`name`"));
  CHECK(contains(refusal(scratch, minimal + "[[arm]]\nname = 'nf4'\n"), "the report uses it"));
  CHECK(contains(refusal(scratch, minimal + "[[arm]]\nname = 'a'\n[[arm]]\nname = 'a'\n"), "a second arm"));
  CHECK(contains(refusal(scratch, minimal + "[merge]\narm = 'b'\n"), "no [[arm]] has that name"));
  CHECK(contains(refusal(scratch, "[model]\npath = 3\n"), "a text in quotes"));
  CHECK(contains(refusal(scratch, "model = 3\n"), "is a section"));
  CHECK(contains(refusal(scratch, "arm = 3\n"), "[[arm]]"));
}

TEST_CASE("what is missing is named") {
  const Scratch scratch;
  CHECK(contains(refusal(scratch, ""), "[model] path is missing"));
  CHECK(contains(refusal(scratch, "[model]\npath = 'm'\n"), "[data] needs urls or files"));
  CHECK(contains(refusal(scratch, "[model]\npath = 'm'\n[data]\nurls = ['http://x/']\n"), "[output] dir is missing"));
}

TEST_CASE("what is not TOML is refused with its line") {
  const Scratch scratch;
  CHECK(contains(refusal(scratch, "[model]\npath = \n"), ":2: "));
  CHECK(contains(refusal(scratch, "[model]\npath = 'a'\npath = 'b'\n"), ":3: "));
  refusal(scratch, std::string("[model]\n\0\xFF\xFE", 11));
  refusal(scratch, std::string(2 << 20, '#'));
  refusal(scratch, "a = " + std::string(100000, '['));
  // Every part of a dotted key is a table inside the one before.
  const auto too_deep = [&](const std::string& job, const char* line) {
    CHECK(contains(refusal(scratch, job), std::string(line) + "a key of more than 8 parts"));
  };
  std::string deep = "a";
  std::string quoted = "'a'";
  for (int i = 0; i < 30000; ++i) {
    deep += ".a";
    quoted += ".\"a\"";
  }
  too_deep(deep + " = 1\n", ":1: ");
  too_deep("[x]\n[" + deep + "]\n", ":2: ");
  too_deep(quoted + " = 1\n", ":1: ");
  too_deep("x = {a = \"\"\"\n\"\"\"\"\", " + deep + " = 1}\n", ":2: ");
  for (const char* cut : {"a = '''", "a = \"", "a = \"\\", "a = \"\"\"\\", "#", "a = '"}) refusal(scratch, cut);
  // Dots of texts and comments are no parts of keys.
  const std::string dots(20, '.');
  const Outcome texts = check(scratch, "# " + dots + "\n[model]\npath = 'm'\n[data]\nfiles = ['" + dots + "', \"\\\"" +
                                           dots + "\", '''\n" + dots + "''', \"\"\"'" + dots + "'\n" + dots +
                                           "\"\"\"]\n[output]\ndir = 'out'\n");
  CAPTURE(texts.err);
  CHECK(texts.code == 0);
  CHECK(qlora(scratch, "run --check /nonexistent/job.toml").code == 3);
}

TEST_CASE("the printed reference is itself a job file without unknown keys") {
  const Scratch scratch;
  const Outcome keys = qlora(scratch, "run --keys");
  REQUIRE(keys.code == 0);
  // Its empty paths are what a user must fill in; everything else must pass.
  std::string job;
  std::istringstream lines(keys.out);
  for (std::string line; std::getline(lines, line);) {
    if (!contains(line, " = \"\"")) job += line + "\n";
  }
  CHECK(contains(refusal(scratch, job), "[model] path is missing"));
}
