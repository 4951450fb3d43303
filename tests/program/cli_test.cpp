// cli_test.cpp — the program's front: help, version, exit codes, one error line, nothing on the wrong stream.
// QLORA_PROGRAM is the built program.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "support/program.hpp"

using program_test::check_refused;
using program_test::contains;
using program_test::Outcome;
using program_test::qlora;
using program_test::Scratch;
using program_test::shell;

namespace {

const char* const verbs[] = {"fetch",  "pack", "train",  "merge", "generate",  "chat",        "recall",      "compare",
                             "plan",   "run",  "info",   "data",  "data show", "data import", "data export", "login",
                             "logout", "pull", "accept", "serve", "quantize",  "export"};

}  // namespace

TEST_CASE("version and help go to stdout") {
  const Scratch scratch;
  const Outcome version = qlora(scratch, "--version");
  CHECK(version.code == 0);
  CHECK(version.out.starts_with("qlora "));
  CHECK(version.err.empty());
  const Outcome help = qlora(scratch, "--help");
  CHECK(help.code == 0);
  for (const std::string verb : verbs) {
    INFO(verb);
    const Outcome verb_help = qlora(scratch, verb + " --help");
    CHECK(verb_help.code == 0);
    CHECK(verb_help.err.empty());
    if (verb != "data") CHECK(contains(verb_help.out, "--json"));
    if (!verb.starts_with("data ")) CHECK(contains(help.out, "  " + verb));
  }
}

TEST_CASE("help shows defaults") {
  const Scratch scratch;
  CHECK(contains(qlora(scratch, "compare --help").out, "200"));
  CHECK(contains(qlora(scratch, "compare --help").out, "0.01"));
  CHECK(contains(qlora(scratch, "train --help").out, "0.0002"));
}

TEST_CASE("a command line that cannot be meant is exit 2 and one line") {
  const Scratch scratch;
  check_refused(qlora(scratch, ""), 2);
  const Outcome mistyped = qlora(scratch, "trian");
  check_refused(mistyped, 2);
  CHECK(contains(mistyped.err, "did you mean `train`"));
  check_refused(qlora(scratch, "data"), 2);
  check_refused(qlora(scratch, "run"), 2);
  check_refused(qlora(scratch, "fetch --no-such-option"), 2);
  check_refused(qlora(scratch, "train --lr much"), 2);
  check_refused(qlora(scratch, "run job.toml --progress dots"), 2);
  check_refused(qlora(scratch, "train"), 2);
}

TEST_CASE("files that are not there or not what they should be are exit 3 and one line") {
  const Scratch scratch;
  const std::string none = (scratch / "none").string();
  check_refused(qlora(scratch, "run " + none), 3);
  check_refused(qlora(scratch, "info " + none), 3);
  check_refused(qlora(scratch, "data show " + none), 3);
  check_refused(qlora(scratch, "plan " + none), 3);
  check_refused(qlora(scratch, "generate " + none + " --prompt hello"), 3);
  const std::string junk = scratch.write("junk", std::string("\x00\xFF{]", 4)).string();
  check_refused(qlora(scratch, "info " + junk), 3);
  check_refused(qlora(scratch, "data show " + junk), 3);
}

TEST_CASE("rows go into a data set and back") {
  const Scratch scratch;
  const std::string rows = QLORA_SOURCE_DIR "/tests/data/rows/saved";
  const std::string model = QLORA_SOURCE_DIR "/tests/data/small_tokenizer.model";
  const std::string set = (scratch / "set").string();
  const Outcome taken = qlora(scratch, "data import " + rows + " -m " + model + " -o " + set);
  CHECK(taken.code == 0);
  CHECK(taken.out.starts_with("7 windows of 16: 2 documents, 112 tokens, "));
  const Outcome written = qlora(scratch, "data export " + set + " -o " + (scratch / "rows.jsonl").string());
  CHECK(written.code == 0);
  CHECK(qlora(scratch, "data import " + (scratch / "rows.jsonl").string() + " -m " + model + " -o " + set).code == 0);
  check_refused(qlora(scratch, "data import " + set + " -m " + model + " -o " + (scratch / "out").string()), 3);
  check_refused(qlora(scratch, "data export " + rows + " -o " + (scratch / "out").string()), 3);
}

TEST_CASE("a GPU that is not there is exit 4 and says what to do; what cannot be meant is exit 2") {
  const Scratch scratch;
  const std::string model = QLORA_SOURCE_DIR "/examples/models/tiny-chat";
  const std::string hidden = "CUDA_VISIBLE_DEVICES=";
  const Outcome none = qlora(scratch, "generate " + model + " --prompt x --device cuda", hidden);
  check_refused(none, 4);
  CHECK(contains(none.err, "no GPU can be used: "));
  CHECK(contains(none.err, "--device cpu"));
  const Outcome automatic =
      qlora(scratch, "generate " + model + " --prompt x --max-new-tokens 2 --device auto", hidden);
  CHECK(automatic.code == 0);
  check_refused(qlora(scratch, "generate " + model + " --prompt x --device tpu"), 2);
  check_refused(qlora(scratch, "generate " + model + " --prompt x --memory-cap much"), 2);
  check_refused(qlora(scratch, "generate " + model + " --prompt x --device cpu --fast"), 2);
  check_refused(qlora(scratch, "train -m m -d d -o o --recompute all"), 2);
  for (const std::string verb : {"train", "generate", "chat", "compare", "run"}) {
    INFO(verb);
    const std::string help = qlora(scratch, verb + " --help").out;
    for (const char* option : {"--device", "--memory-cap", "--fast", "--keep-dequantized"})
      CHECK(contains(help, option));
  }
}

TEST_CASE("processes: what cannot be meant is exit 2, and what a started one fails with is the exit code of all") {
  const Scratch scratch;
  const std::string train = "train -m " + (scratch / "none").string() + " -d none -o " + (scratch / "out").string();
  const auto refused = [&](const std::string& options, const std::string& environment, const char* words) {
    CAPTURE(options);
    CAPTURE(environment);
    const Outcome outcome = qlora(scratch, train + options, environment);
    check_refused(outcome, 2);
    CHECK(contains(outcome.err, words));
  };
  refused(" --gpus 2 --device cpu", "", "mpirun");
  refused(" --gpus 2000", "", "0 to 1024");
  refused("", "RANK=1", "no WORLD_SIZE");
  refused("", "RANK=4 WORLD_SIZE=4", "0 to 3");
  refused(" --gpus 2", "RANK=0 WORLD_SIZE=4 LOCAL_WORLD_SIZE=4", "torchrun has started 4 processes");
  CHECK(qlora(scratch, train, "RANK=0 WORLD_SIZE=1").code == 3);  // the model is missing, nothing else is wrong
  const Outcome started = qlora(scratch, train + " --gpus 2");
  CHECK(started.code == 3);
  CHECK(contains(started.err, "ended with exit code 3"));
  for (const char* log : {"out/logs/rank-0.log", "out/logs/rank-1.log"}) {
    CHECK(contains(program_test::contents(scratch / log), "of 2, process "));
  }
}

TEST_CASE("options of adapters beside --method full are refused by name, and only those that were given") {
  const Scratch scratch;
  const std::string train = "train -m " + (scratch / "none").string() + " -d none -o " + (scratch / "out").string();
  check_refused(qlora(scratch, train + " --method full --lr 1e-4"), 3);  // the model is missing, nothing else is wrong
  check_refused(qlora(scratch, train + " --rank 8 --alpha 4 --rslora --dropout 0 --adamw8bit"), 3);
  for (const std::string option : {"--rank 64", "--alpha 16", "--rslora", "--dropout 0.1", "--adamw8bit"}) {
    CAPTURE(option);
    const Outcome outcome = qlora(scratch, train + " --method full " + option);
    check_refused(outcome, 2);
    CHECK(contains(outcome.err, "leave out " + option.substr(0, option.find(' ')) + "\n"));
  }
  CHECK(contains(qlora(scratch, train + " --dropout 0 --rank 4 --method full").err, "leave out --rank, --dropout\n"));
  CHECK(contains(qlora(scratch, "train --help").out, "not with --method full"));
}

TEST_CASE("questions are read as probes are: a chat's history by the rules of the chat form, with its line") {
  const Scratch scratch;
  const auto asked = [&](const std::string& history, const std::string& form = "chat") {
    const std::string file =
        scratch
            .write("questions.jsonl",
                   "\n{\"form\": \"" + form + R"(", "prompt": "And now?", "history": )" + history + "}\n")
            .string();
    const std::string none = (scratch / "none").string();
    const Outcome outcome = qlora(scratch, "compare -m " + none + " -a " + none + " --questions " + file);
    check_refused(outcome, 3);
    return contains(outcome.err, file + ":2: ") ? outcome.err.substr(outcome.err.find(":2: ") + 4) : "the model";
  };
  const std::string user = R"({"role": "user", "content": "Hello"})";
  const std::string assistant = R"({"role": "assistant", "content": "Hello."})";
  CHECK(asked("[" + user + ", " + assistant + "]") == "the model");  // is what is missing then
  CHECK(asked("[" + user + "]") != "the model");                     // two turns of the user
  CHECK(contains(asked("[" + user + ", " + assistant + "]", "completion"), "only a chat has a \"history\""));
  CHECK(contains(asked("\"Hello\""), "is a list of {role, content}"));
  CHECK(contains(asked("[3]"), "a turn in \"history\" is {role, content}"));
}

TEST_CASE("a comparison's requirements and a training's guard are refused before a model is opened") {
  const Scratch scratch;
  scratch.write("old.jsonl", R"({"kind":"retention","form":"chat","prompt":"Who makes it?","answer":"Eastlake"})");
  const auto compare = [&](const std::string& requirement) {
    const std::string none = (scratch / "none").string();
    return qlora(scratch, "compare -m " + none + " -a " + none + " --merged " + none + " --probes " +
                              (scratch / "old.jsonl").string() + " --require '" + requirement + "'");
  };
  check_refused(compare("merged.retention.change.lower>=0"), 3);  // can be answered: it is the model that is missing
  const Outcome kind = compare("knowledge.lower>=0");
  check_refused(kind, 2);
  CHECK(contains(kind.err, "no number is named `knowledge.lower`; there are merged, nf4, retention, tuned, w16"));
  for (const char* wrong : {"retention.middle>=0", "retention.twin.value>=0", "full.retention.lower>=0",
                            "w16.retention.change.lower>=0", "retention.lower>=x", "retention.lower==0"}) {
    CAPTURE(wrong);
    check_refused(compare(wrong), 2);
  }
}

TEST_CASE("plan says what fits a GPU, for published models by name") {
  const Scratch scratch;
  const auto plan = [&](const std::string& arguments) {
    const std::string json = (scratch / "plan.json").string();
    const Outcome outcome = qlora(scratch, "plan " + arguments + " --json " + json);
    CHECK(outcome.code == 0);
    CHECK(contains(outcome.out, "largest batch"));
    return nlohmann::json::parse(program_test::contents(json));
  };
  const auto seven = plan("7b --gpu-memory 24GB --batch 2");
  const auto& largest = seven.at("advice").at("largest_batches");
  CHECK(largest.at("none") <= largest.at("cheap"));
  CHECK(largest.at("cheap") <= largest.at("block"));
  CHECK(largest.at("block") >= 2);
  const auto& recommended = seven.at("advice").at("recommended");
  CHECK(recommended.at("batch") == 2);
  CHECK(recommended.at("total") <= 24'000'000'000);
  CHECK(plan("7b --gpu-memory 141GB --batch 2").at("advice").at("recommended").at("recompute") == "none");
  // keys and values 2,097,152,000, logits 65,536,000, tables 256,000, activations of 512 tokens 63,504,384, weights
  // 187,631,616, picked ids 64; staged for 8 probes: ids and positions 64, a sequence of 24 bytes in 32 layers 6,144
  const auto block = plan("7b --gpu-memory 24GB --batch 2 --recompute block");
  const auto probed = plan("7b --gpu-memory 24GB --batch 2 --recompute block --probe-tokens 500");
  CHECK(probed.at("bytes").at("probes in the loop") == 2'414'086'464);
  CHECK(probed.at("total").get<std::int64_t>() - block.at("total").get<std::int64_t>() == 2'414'086'464);
  CHECK(block.at("bytes").at("probes in the loop") == 0);
  // The card's reserve counts everywhere: what is said to fit is recommended, one window more is not.
  CHECK(block.at("largest_batch") == largest.at("block"));
  CHECK(seven.at("total") == recommended.at("total"));  // auto shows what train would choose
  const std::string most = std::to_string(largest.at("block").get<int>());
  CHECK(plan("7b --gpu-memory 24GB --recompute block --batch " + most).at("fits") == true);
  const auto beyond = plan("7b --gpu-memory 24GB --recompute block --batch " + std::to_string(std::stoi(most) + 1));
  CHECK(beyond.at("fits") == false);
  CHECK(plan("70b --gpu-memory 24GiB").at("advice").at("recommended").is_null());
  const std::string tiny = QLORA_SOURCE_DIR "/examples/models/tiny-chat";
  CHECK(plan("'" + tiny + "' --gpu-memory 2GB --seq 128").at("fits") == true);
  CHECK(plan("'" + tiny + "'").at("fits") == true);
  check_refused(qlora(scratch, "plan 7b --gpu-memory plenty"), 2);
  check_refused(qlora(scratch, "plan 7b --gpu-memory 24"), 2);  // bytes are not meant
  check_refused(qlora(scratch, "plan 7b --gpu-memory 24GB --on cpu"), 2);
  check_refused(qlora(scratch, "plan 7b --gpu-memory 24GB --unquantized --keep-dequantized"), 2);
}

TEST_CASE("a model in NF4 answers as the one that it was made from, and is refused where 16 bits are needed") {
  const Scratch scratch;
  const std::string model = QLORA_SOURCE_DIR "/examples/models/tiny-chat";
  const std::string nf4 = (scratch / "nf4").string();
  const Outcome made = qlora(scratch, "quantize '" + model + "' -o " + nf4 + " --threads 1");
  CHECK(made.code == 0);
  CHECK(made.out == "28 of 39 tensors in NF4, model in " + nf4 + "\n");
  for (const char* file : {"generation_config.json", "tokenizer.model", "tokenizer_config.json"}) {
    CHECK(program_test::contents(nf4 + "/" + file) == program_test::contents(model + "/" + file));
  }
  const auto said = [&](const std::string& from) {
    return qlora(scratch, "generate '" + from + "' --prompt The --max-new-tokens 8 --temperature 0 --threads 1").out;
  };
  CHECK(said(nf4) == said(model));
  CHECK(contains(qlora(scratch, "info " + nf4).out, "NF4 with double quantization"));
  CHECK(qlora(scratch, "plan " + nf4 + " --seq 128").code == 0);
  check_refused(qlora(scratch, "plan " + nf4 + " --unquantized"), 2);
  check_refused(qlora(scratch, "quantize " + nf4 + " -o " + nf4), 2);
  const Outcome again = qlora(scratch, "quantize " + nf4 + " -o " + nf4 + "2");
  check_refused(again, 3);
  CHECK(contains(again.err, "is in 4 bits already"));
  const std::string probes =
      scratch
          .write("p.jsonl", R"({"kind":"retention","form":"completion","prompt":"The","answer":"new"})"
                            "\n")
          .string();
  const std::string json = (scratch / "compared.json").string();
  const Outcome compared = qlora(scratch, "compare -m " + nf4 + " --merged '" + model + "' --probes " + probes +
                                              " --max-new-tokens 2 --threads 1 --json " + json);
  CHECK(compared.code == 0);
  const auto variants = nlohmann::json::parse(program_test::contents(json)).at("variants");
  CHECK(variants.size() == 2);  // there are no 16-bit weights of the base to compare with
  CHECK(variants.at("merged").at("reference") == "nf4");
  const Outcome full = qlora(scratch, "generate " + nf4 + " --prompt The --base full");
  check_refused(full, 3);
  CHECK(contains(full.err,
                 "the model is stored in 4 bits (quantization_config), and computing with weights as they are"));
}

TEST_CASE("export writes a GGUF file, or nothing") {
  const Scratch scratch;
  const std::string model = QLORA_SOURCE_DIR "/examples/models/tiny-chat";
  const std::string file = (scratch / "model.gguf").string();
  const Outcome made = qlora(scratch, "export '" + model + "' --type q4_0 -o " + file);
  CHECK(made.code == 0);
  const std::string bytes = program_test::contents(file);
  CHECK(bytes.substr(0, 4) == "GGUF");
  CHECK(made.out == "39 tensors, " + std::to_string(bytes.size()) + " bytes, in " + file + "\n");
  check_refused(qlora(scratch, "export '" + model + "' --type q5_k -o " + file + "2"), 2);
  check_refused(qlora(scratch, "export '" + model + "' -o '" + model + "/config.json'"), 2);
  check_refused(qlora(scratch, "export '" + model + "' -a '" + model + "' -o " + file + "2"), 3);
  check_refused(qlora(scratch, "export " + (scratch / "none").string() + " -o " + file + "2"), 3);
  CHECK_FALSE(std::filesystem::exists(file + "2"));
}

TEST_CASE("a misspelt option is named, with what it may have meant") {
  const Scratch scratch;
  const Outcome memory = qlora(scratch, "plan 7b --gpu-memroy 24GB");
  check_refused(memory, 2);
  CHECK(contains(memory.err, "there is no option `--gpu-memroy`; did you mean `--gpu-memory`?"));
  CHECK(contains(qlora(scratch, "train -m m -d d -o o --epoch=3").err, "`--epoch`; did you mean `--epochs`?"));
  CHECK(contains(qlora(scratch, "data show --window 3 d").err, "did you mean `--windows`?"));
}

TEST_CASE("what could only fail at the end, or do nothing, is refused at the beginning") {
  const Scratch scratch;
  const std::string model = QLORA_SOURCE_DIR "/examples/models/tiny-chat";
  const std::string none = (scratch / "none").string();
  check_refused(qlora(scratch, "info " + model + " --json " + none + "/result.json"), 4);
  check_refused(qlora(scratch, "info " + model + " --json " + (scratch / "").string()), 4);
  const Outcome report = qlora(scratch, "compare -m " + none + " -a " + none + " --report " + none + "/page.html");
  check_refused(report, 4);
  CHECK(contains(report.err, "--report"));
  check_refused(qlora(scratch, "train -m " + model + " -d d -o " + none + " --every 5"), 2);
  const Outcome inside = qlora(scratch, "train -m " + model + " -d d -o " + model);
  check_refused(inside, 2);
  CHECK(contains(inside.err, "where a model lies"));
  check_refused(qlora(scratch, "chat " + model + " -p ''"), 2);
  const std::string pages = scratch.write("pages.jsonl", R"({"text":"A page."})").string();
  check_refused(qlora(scratch, "fetch " + pages + " -o " + pages), 2);
  CHECK(program_test::contents(pages).starts_with(R"({"text":"A page.")"));
}

TEST_CASE("a folder of another kind is named as what it is not") {
  const Scratch scratch;
  const std::string model = QLORA_SOURCE_DIR "/examples/models/tiny-chat";
  const std::string empty = (scratch / "").string();
  const auto said = [&](const std::string& arguments, const char* what) {
    const Outcome outcome = qlora(scratch, arguments);
    check_refused(outcome, 3);
    return contains(outcome.err, what);
  };
  CHECK(said("chat " + empty + " -p x", "is no model directory"));
  CHECK(said("chat " + model + " -p x -a " + empty, "is no adapter"));
  CHECK(said("train -m " + model + " -d " + empty + " -o " + (scratch / "out").string(), "is no packed data set"));
}

TEST_CASE("--json writes the result, and a file that cannot be written is exit 4") {
  const Scratch scratch;
  const std::string job =
      scratch.write("job.toml", "[model]\npath='m'\n[data]\nfiles=['p']\n[output]\ndir='o'\n").string();
  const Outcome outcome = qlora(scratch, "run --show " + job + " --json " + (scratch / "result.json").string());
  CHECK(outcome.code == 0);
  CHECK(nlohmann::json::parse(program_test::contents(scratch / "result.json")).contains("arms"));
  CHECK(qlora(scratch, "run --show " + job + " --json /nonexistent/x.json").code == 4);
}

TEST_CASE("an output where nothing can be created is exit 4, and the place is named as it was given") {
  const Scratch scratch;
  const std::string model = QLORA_SOURCE_DIR "/examples/models/tiny-chat";
  const std::string page = scratch.write("page.txt", "The Daxnova is red.").string();
  const std::string job =
      scratch
          .write("job.toml", "[model]\npath = '" + model + "'\n[data]\nfiles = ['page.txt']\n[output]\ndir = 'o'\n" +
                                 "[compare]\nquestions = 'page.txt'\n")
          .string();
  for (const std::string place : {"/proc/new", "/dev/null/x"}) {
    for (const std::string& command : {"run '" + job + "' -o ", "pack " + page + " -m " + model + " -o "}) {
      CAPTURE(command);
      const Outcome outcome = qlora(scratch, command + place);
      check_refused(outcome, 4);
      CHECK(contains(outcome.err, place.substr(0, 9)));  // of /dev/null/x what is no folder
      CHECK(contains(outcome.err, "; choose another place"));
    }
    const Outcome fetched = qlora(scratch, "fetch " + page + " -o " + place + ".jsonl");
    CHECK(fetched.code == 4);
    CHECK(contains(fetched.err, place + ".jsonl"));
  }
}

TEST_CASE("output that is lost is an error: a full disk, a closed stream, a reader that is gone, a size limit") {
  const Scratch scratch;
  const std::string model = QLORA_SOURCE_DIR "/examples/models/tiny-chat";
  const std::string json = (scratch / "info.json").string();
  CHECK(shell(scratch, "$qlora info " + model + " --json " + json + " >/dev/full 2>/dev/null") == 4);
  CHECK(nlohmann::json::parse(program_test::contents(json)).contains("parameters"));
  CHECK(shell(scratch, "$qlora info " + model + " >&- 2>/dev/null") == 4);
  CHECK(shell(scratch, "$qlora --version >/dev/full 2>/dev/null") == 4);
  CHECK(shell(scratch, "$qlora --help >/dev/full 2>/dev/null") == 4);
  CHECK(shell(scratch, "$qlora info " + model + " --json /dev/full >/dev/null 2>&1") == 4);

  // Descriptor 4: a pipe that nobody reads.
  const std::string fifo = (scratch / "fifo").string();
  const std::string pipe = "mkfifo " + fifo + "; exec 3<>" + fifo + " 4>" + fifo + " 3<&-; rm " + fifo + "; ";
  CHECK(shell(scratch, pipe + "$qlora info " + model + " >&4 2>/dev/null") == 4);

  const std::string pages = scratch.write("pages.jsonl", R"({"text":"A page."})").string();
  const auto pack = [&](const std::string& name) {
    return "$qlora pack " + pages + " -m " + model + " -o " + (scratch / name).string() + " >/dev/null";
  };
  CHECK(shell(scratch, "ulimit -f 0; " + pack("limited") + " 2>/dev/null") == 4);
  CHECK_FALSE(std::filesystem::exists(scratch / "limited"));

  // Progress that nobody reads ends nothing and does not get into a file.
  CHECK(shell(scratch, pack("data") + " 2>/dev/null") == 0);
  CHECK(shell(scratch, pipe + pack("unread") + " 2>&4") == 0);
  CHECK(shell(scratch, pack("closed") + " 2>&- <&-") == 0);
  for (const char* name : {"unread", "closed"}) {
    for (const auto& file : std::filesystem::directory_iterator(scratch / "data")) {
      CHECK(program_test::contents(scratch / name / file.path().filename()) == program_test::contents(file.path()));
    }
  }
}

TEST_CASE("a result is written whole, and never over what it comes from") {
  const Scratch scratch;
  const std::string model = QLORA_SOURCE_DIR "/examples/models/tiny-chat";
  const auto refused = [&](const std::string& line, const std::string& kept) {
    const std::string before = program_test::contents(kept);
    const Outcome outcome = qlora(scratch, line + " --json " + kept);
    check_refused(outcome, 2);
    CHECK(contains(outcome.err, "--json"));
    CHECK(contains(outcome.err, "choose another file"));
    CHECK(program_test::contents(kept) == before);
  };
  const std::string pages = scratch.write("pages.jsonl", R"({"text":"A page."})").string();
  const std::string more = scratch.write("more.jsonl", R"({"text":"Another page."})").string();
  const std::string pack = "pack " + pages + " -m " + model + " -o " + (scratch / "data").string();
  refused(pack, pages);
  refused(pack + " --replay " + more, more);
  refused("fetch " + pages + " -o " + (scratch / "out.jsonl").string(), pages);
  std::filesystem::create_directory_symlink(scratch / "", scratch / "here");
  refused("pack " + (scratch / "here" / "pages.jsonl").string() + " -m " + model + " -o x", pages);
  std::filesystem::create_directories(scratch / "model");
  const std::string config = scratch.write("model/config.json", "{}").string();
  const std::string own = (scratch / "model").string();
  refused("info " + own, config);
  CHECK_FALSE(std::filesystem::exists(scratch / "data"));

  // A symbolic link stays one, and what it points to is replaced, be it an earlier result.
  const std::string real = scratch.write("real.json", std::string(100000, 'x')).string();
  std::filesystem::create_symlink(real, scratch / "link.json");
  for (int again = 0; again < 2; ++again) {
    CHECK(qlora(scratch, "info " + model + " --json " + (scratch / "link.json").string()).code == 0);
    CHECK(std::filesystem::is_symlink(scratch / "link.json"));
    CHECK(nlohmann::json::parse(program_test::contents(real)).contains("parameters"));
  }
  // A pipe is written to where somebody reads it.
  const std::string info = "$qlora info " + model + " --json '" + (scratch / "pipe").string() + "' >/dev/null 2>&1";
  CHECK(shell(scratch, "mkfifo '" + (scratch / "pipe").string() + "'; " + info) == 4);
  CHECK(shell(scratch, "cat '" + (scratch / "pipe").string() + "' >'" + (scratch / "read.json").string() +
                           "' & until " + info + "; do sleep 0.1; done; wait") == 0);
  CHECK(nlohmann::json::parse(program_test::contents(scratch / "read.json")).contains("parameters"));
  // A result that cannot be written whole leaves the earlier one.
  const std::string before = program_test::contents(real);
  CHECK(shell(scratch, "ulimit -f 0; $qlora info " + model + " --json " + real + " >/dev/null 2>/dev/null") == 4);
  CHECK(program_test::contents(real) == before);
}

TEST_CASE("pack refuses to write into a model, and a limit of what is not replayed") {
  const Scratch scratch;
  const std::string model = QLORA_SOURCE_DIR "/examples/models/tiny-chat";
  const std::string pages = scratch.write("pages.jsonl", R"({"text":"A page."})").string();
  std::filesystem::create_directories(scratch / "model");
  scratch.write("model/config.json", "{}");
  const Outcome inside = qlora(scratch, "pack " + pages + " -m " + model + " -o " + (scratch / "model").string());
  check_refused(inside, 2);
  CHECK(contains(inside.err, "where a model lies"));
  const std::string pack = "pack " + pages + " -m " + model + " -o " + (scratch / "data").string();
  const Outcome limit = qlora(scratch, pack + " --replay-limit 3");
  check_refused(limit, 2);
  CHECK(contains(limit.err, "give --replay"));
  CHECK_FALSE(std::filesystem::exists(scratch / "data"));
  CHECK(qlora(scratch, pack + " --replay " + pages + " --replay-limit 3").code == 0);
}
