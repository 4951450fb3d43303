// job.cpp — reads job files. Each section is one table of keys; parsing, range checks, suggestions and the printed
// reference all come from it, so they cannot disagree.
#include "job.hpp"

#include <toml++/toml.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <limits>
#include <ostream>
#include <set>
#include <sstream>

#include "qlora/error.hpp"
#include "suggest.hpp"

namespace qlora::program {
namespace {

namespace fs = std::filesystem;
using qlora::detail::concat;

/// Where a value stands, for messages, and what relative paths are relative to.
struct Place {
  fs::path file;
  std::string section;

  [[noreturn]] void fail(const toml::node& node, const std::string& what) const {
    throw Error(concat(file.string(), ":", node.source().begin.line, ": ", what));
  }
};

/// One key of a section: how it is read, and how its default is shown.
template <class Section>
struct Key {
  std::string_view name;
  std::string_view help;
  std::function<void(Section&, const toml::node&, const Place&)> read;
  std::function<std::string(const Section&)> show;
};

template <class Section>
using Keys = std::vector<Key<Section>>;

template <class Section, class Number>
Key<Section> number(std::string_view name, Number Section::*member, double low, double high, std::string_view help) {
  const auto read = [=](Section& section, const toml::node& node, const Place& place) {
    const auto refuse = [&](std::string_view type) {
      place.fail(node, concat("`", name, "` must be ", type, " from ", low, " to ", high));
    };
    if constexpr (std::is_integral_v<Number>) {
      const auto value = node.value_exact<std::int64_t>();
      if (!value || static_cast<double>(*value) < low || static_cast<double>(*value) > high) refuse("a whole number");
      section.*member = static_cast<Number>(*value);
    } else {
      const auto value = node.is_number() ? node.value<double>() : std::nullopt;
      if (!value || !(*value >= low && *value <= high)) refuse("a number");
      section.*member = *value;
    }
  };
  return {name, help, read, [=](const Section& section) { return concat(section.*member); }};
}

template <class Section>
Key<Section> flag(std::string_view name, bool Section::*member, std::string_view help) {
  return {name, help,
          [=](Section& section, const toml::node& node, const Place& place) {
            if (!node.is_boolean()) place.fail(node, concat("`", name, "` must be true or false"));
            section.*member = node.as_boolean()->get();
          },
          [=](const Section& section) { return section.*member ? "true" : "false"; }};
}

std::string text_of(const toml::node& node, std::string_view name, const Place& place) {
  if (!node.is_string()) place.fail(node, concat("`", name, "` must be a text in quotes"));
  return node.as_string()->get();
}

std::string quoted(const std::string& text) { return "\"" + text + "\""; }

template <class Section>
Key<Section> text(std::string_view name, std::string Section::*member, std::vector<std::string_view> choices,
                  std::string_view help) {
  return {name, help,
          [=](Section& section, const toml::node& node, const Place& place) {
            const std::string value = text_of(node, name, place);
            if (!choices.empty() && std::find(choices.begin(), choices.end(), value) == choices.end()) {
              place.fail(node, concat("`", name, "` cannot be \"", value, "\"", suggestion(value, choices)));
            }
            section.*member = value;
          },
          [=](const Section& section) { return quoted(section.*member); }};
}

fs::path resolved(const std::string& text, const Place& place) {
  return (place.file.parent_path() / text).lexically_normal();
}

template <class Section>
Key<Section> path(std::string_view name, fs::path Section::*member, std::string_view help) {
  return {name, help,
          [=](Section& section, const toml::node& node, const Place& place) {
            const std::string value = text_of(node, name, place);
            if (value.empty()) place.fail(node, concat("`", name, "` must not be empty"));
            section.*member = resolved(value, place);
          },
          [=](const Section& section) { return quoted((section.*member).string()); }};
}

template <class Section, class Item>
Key<Section> list(std::string_view name, std::vector<Item> Section::*member, std::string_view help) {
  return {name, help,
          [=](Section& section, const toml::node& node, const Place& place) {
            const toml::array* array = node.as_array();
            if (array == nullptr) place.fail(node, concat("`", name, "` must be a list of texts: [\"...\"]"));
            (section.*member).clear();
            for (const toml::node& item : *array) {
              const std::string value = text_of(item, name, place);
              if constexpr (std::is_same_v<Item, fs::path>) {
                (section.*member).push_back(resolved(value, place));
              } else {
                (section.*member).push_back(value);
              }
            }
          },
          [](const Section&) { return std::string("[]"); }};
}

// --- the sections; ranges keep typing errors out, they are not tuning advice --------------------------------------

Keys<ModelSection> model_keys() { return {path("path", &ModelSection::path, "Hugging Face model directory")}; }

/// A size in bytes, kept as it was written.
template <class Section>
Key<Section> size(std::string_view name, std::string Section::*member, std::string_view help) {
  return {name, help,
          [=](Section& section, const toml::node& node, const Place& place) {
            const std::string value = text_of(node, name, place);
            if (!value.empty() && !bytes_of(value)) {
              place.fail(node, concat("`", name, "` must be a size such as \"24GB\" or \"24GiB\""));
            }
            section.*member = value;
          },
          [=](const Section& section) { return quoted(section.*member); }};
}

Keys<DeviceSection> device_keys() {
  return {text("use", &DeviceSection::use, {"auto", "cpu", "cuda"}, "auto: a GPU if there is one"),
          size("memory_cap", &DeviceSection::memory_cap, "what may be taken of the GPU's memory; all if empty"),
          flag("fast", &DeviceSection::fast, "GPU: sums whose last bits depend on timing"),
          flag("resident", &DeviceSection::resident, "GPU: hold the frozen weights in bf16 too")};
}

Keys<DataSection> data_keys() {
  return {list("urls", &DataSection::urls, "pages to fetch"),
          list("files", &DataSection::files, "local .html, .txt, .md or .jsonl files, or folders of them"),
          text("compat", &DataSection::compat, {"none", "article"}, "how text is taken from pages"),
          flag("allow_private", &DataSection::allow_private, "fetch from private and loopback addresses too"),
          number("timeout", &DataSection::timeout, 1, 3600, "seconds for one page, all in"),
          number("max_bytes", &DataSection::max_bytes, 1024, 1e9, "decoded bytes of one page at most")};
}

Keys<PackSection> pack_keys() {
  return {number("seq", &PackSection::seq, 8, 1 << 20, "tokens in a window"),
          text("compat", &PackSection::compat, {"none", "article"}, "article: one stream, no end marks, rest dropped"),
          text("labels", &PackSection::labels, {"all", "answers"}, "what is learned of a chat"),
          text("split", &PackSection::split, {"carry", "pad"}, "whether a document may be cut to fill a window")};
}

Keys<TrainSection> train_keys() {
  return {
      text("method", &TrainSection::method, {"qlora", "full"}, "adapters on the 4-bit model, or every weight (CPU)"),
      number("rank", &TrainSection::rank, 1, 1024,
             "rank of the adapters; this and the next three have no meaning for method = \"full\""),
      number("alpha", &TrainSection::alpha, 1e-6, 1e6, "adapter scale is alpha / rank"),
      flag("rslora", &TrainSection::rslora, "adapter scale is alpha / sqrt(rank)"),
      number("dropout", &TrainSection::dropout, 0, 0.99, "on the adapters' input"),
      number("lr", &TrainSection::lr, 0, 10, "highest learning rate"),
      text("schedule", &TrainSection::schedule, {"linear", "cosine", "constant"}, "learning rate over the run"),
      number("warmup", &TrainSection::warmup, 0, 1e9, "steps of rising learning rate; below 1 a part of the run"),
      number("epochs", &TrainSection::epochs, 1, 1e6, "times over the data"),
      number("batch", &TrainSection::batch, 1, 4096, "windows in a micro-batch"),
      number("accumulate", &TrainSection::accumulate, 1, 65536, "micro-batches in a step"),
      number("weight_decay", &TrainSection::weight_decay, 0, 1, "AdamW's decay"),
      number("max_grad_norm", &TrainSection::max_grad_norm, 0, 1e9, "gradient norm is clipped to this; 0 never"),
      flag("moments8", &TrainSection::moments8, "AdamW's moments in 8 bits: a quarter of their memory"),
      number("seed", &TrainSection::seed, 0, 9e15, "of data order, initial adapters and dropout"),
      number("checkpoint_every", &TrainSection::checkpoint_every, 1, 1e9, "steps between checkpoints"),
      text("recompute", &TrainSection::recompute, {"auto", "none", "cheap", "block"},
           "what the backward pass computes again; auto: as the GPU's memory asks for"),
      path("replay", &TrainSection::replay, "documents of the model's own world (.jsonl), mixed in"),
      number("replay_limit", &TrainSection::replay_limit, 0, 1e9, "of these, the first so many; 0 all"),
      list("probes", &TrainSection::probes, "measured during training (.jsonl); not those of [compare]"),
      number("every", &TrainSection::every, 1, 1e9, "steps between measurements"),
      list("guard", &TrainSection::guard, "ends training when it fails, as \"retention.lower>=0.95\"")};
}

/// Names and numbers: what is varied, and where the arm stands.
void read_sweep(Arm& arm, const toml::node& node, const Place& place) {
  const toml::table* table = node.as_table();
  if (table == nullptr) place.fail(node, "`sweep` must be names with numbers: { \"rank\" = 64 }");
  for (const auto& [name, value] : *table) {
    const auto at = value.is_number() ? value.value<double>() : std::nullopt;
    if (!at || !std::isfinite(*at)) {
      place.fail(value, concat("`sweep` must give a number for \"", std::string_view(name), "\""));
    }
    if (name.empty()) place.fail(value, "`sweep` must name what is varied");
    arm.sweep[std::string(name)] = *at;
  }
}

/// What [[arm]] has beside the keys of [train], and beside its name, which is read first.
Keys<Arm> arm_keys() {
  const auto pages = [](std::string_view name, auto member, std::string_view help) {
    const Key<DataSection> key = list(name, member, help);
    return Key<Arm>{name, help, [=](Arm& arm, const toml::node& node, const Place& p) { key.read(arm.data, node, p); },
                    [=](const Arm& arm) { return key.show(arm.data); }};
  };
  return {text("group", &Arm::group, {}, "its line in the report's front; that of its method if empty"),
          {"sweep", "its values of what is varied, as { \"rank\" = 64 }: the report draws each name as a chart",
           read_sweep, [](const Arm&) { return std::string("{}"); }},
          flag("front", &Arm::front,
               "whether it is a point in the report's front and in what is compared at the same gain"),
          text("control", &Arm::control, {}, "what it controls for: kept apart in the report; none if empty"),
          pages("urls", &DataSection::urls, "with files: what this arm learns from, instead of [data]"),
          pages("files", &DataSection::files, "with urls: what this arm learns from, instead of [data]")};
}

Keys<MergeSection> merge_keys() {
  return {text("arm", &MergeSection::arm, {}, "which arm is merged; the last one that is no control if empty"),
          number("shard_bytes", &MergeSection::shard_bytes, 1 << 20, 1e12, "size of one weight file at most")};
}

Keys<CompareSection> compare_keys() {
  return {path("questions", &CompareSection::questions, "questions that all models answer (.jsonl or .txt)"),
          list("probes", &CompareSection::probes, "questions with known answers and texts (.jsonl), measured"),
          list("require", &CompareSection::require, "what must hold of the merged arm, as \"retention.lower>=0.98\""),
          number("max_new_tokens", &CompareSection::max_new_tokens, 1, 1e6, "tokens of an answer at most"),
          number("top_p", &CompareSection::top_p, 0.0001, 1, "nucleus that is sampled from"),
          number("temperature", &CompareSection::temperature, 0, 100, "0 is greedy"),
          number("seed", &CompareSection::seed, 0, 9e15, "of sampling")};
}

Keys<OutputSection> output_keys() { return {path("dir", &OutputSection::dir, "everything is written below this")}; }

template <class Section>
void read_section(const toml::table& table, const Keys<Section>& keys, Section& section, const Place& place,
                  const std::vector<std::string_view>& also = {}) {
  std::vector<std::string_view> known = also;
  for (const auto& key : keys) known.push_back(key.name);
  for (const auto& [name, node] : table) {
    if (std::find(also.begin(), also.end(), std::string_view(name)) != also.end()) continue;
    const auto key = std::find_if(keys.begin(), keys.end(), [&, &n = name](const auto& one) { return one.name == n; });
    if (key == keys.end()) {
      place.fail(node,
                 concat("unknown key `", std::string_view(name), "` in ", place.section, suggestion(name, known)));
    }
    key->read(section, node, place);
  }
}

/// Calls use(table, name, place) for each [[section]]. The name becomes a folder and a key of the report: it is there,
/// plain, and only once.
template <class Use>
void for_each_named(const toml::node& node, const fs::path& file, const std::string& section, const Use& use) {
  const Place place{file, concat("[[", section, "]]")};
  const toml::array* items = node.as_array();
  if (items == nullptr || items->empty() || !items->is_array_of_tables()) {
    place.fail(node, concat("write each ", section, " as ", place.section));
  }
  std::set<std::string> names;
  for (const toml::node& item : *items) {
    const toml::table& table = *item.as_table();
    const toml::node* node_of_name = table.get("name");
    if (node_of_name == nullptr) place.fail(item, concat("each ", place.section, " needs a `name`"));
    const std::string name = text_of(*node_of_name, "name", place);
    const bool plain = !name.empty() && name.size() <= 64 &&
                       name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_-") == std::string::npos;
    if (!plain) place.fail(*node_of_name, "`name` must be 1 to 64 of a-z 0-9 _ -");
    if (!names.insert(name).second) place.fail(*node_of_name, concat("a second ", section, " \"", name, "\""));
    use(table, name, place);
  }
}

void read_models(const toml::node& node, Job& job, const fs::path& file) {
  for_each_named(node, file, "model", [&](const toml::table& table, const std::string& name, const Place& place) {
    ModelSection model{name, {}};
    read_section(table, model_keys(), model, place, {"name"});
    if (model.path.empty()) place.fail(table, concat("the ", place.section, " \"", name, "\" needs a `path`"));
    job.models.push_back(std::move(model));
  });
}

/// The sweep in which two arms are one point with one seed: there the one would be counted as another draw of the other.
std::string same_point(const Arm& a, const Arm& b) {
  const auto group = [](const Arm& arm) { return arm.group.empty() ? arm.train.method : arm.group; };
  if (a.train.seed != b.train.seed || group(a) != group(b)) return {};
  for (const auto& [name, at] : a.sweep) {
    if (const auto other = b.sweep.find(name); other != b.sweep.end() && other->second == at) return name;
  }
  return {};
}

/// Refuses what a table says of adapters where there are none. [train] is shared, so it may say it as long as one arm has
/// adapters; an arm speaks for itself. moments8 = false says what is so.
void refuse_adapter_settings(const toml::table& table, const Place& place, std::string_view whose) {
  for (const std::string_view name : adapter_settings) {
    const toml::node* node = table.get(name);
    if (node == nullptr || (node->is_boolean() && !node->as_boolean()->get())) continue;
    place.fail(*node, concat("`", name, "` is of adapters, and ", whose, " trains all weights (method = \"full\")"));
  }
}

void read_arms(const toml::node& node, Job& job, const fs::path& file) {
  const Keys<Arm> keys = arm_keys();
  for_each_named(node, file, "arm", [&](const toml::table& table, const std::string& name, const Place& place) {
    if (name == "w16" || name == "nf4" || name == "merged") {
      place.fail(*table.get("name"), concat("`name` cannot be \"", name, "\", the report uses it"));
    }
    Arm arm{.name = name, .data = job.data, .train = job.train};
    const toml::node* own_pages = table.contains("files") ? table.get("files") : table.get("urls");
    if (own_pages != nullptr) {
      arm.data.urls.clear();
      arm.data.files.clear();
    }
    std::vector<std::string_view> read{"name"};
    for (const Key<Arm>& key : keys) {
      read.push_back(key.name);
      if (const toml::node* value = table.get(key.name); value != nullptr) key.read(arm, *value, place);
    }
    if (own_pages != nullptr && arm.data.urls.empty() && arm.data.files.empty()) {
      place.fail(*own_pages,
                 concat("the ", place.section, " \"", name,
                        "\" needs urls or files: what to learn from; without either it learns from [data]"));
    }
    read_section(table, train_keys(), arm.train, place, read);
    if (!arm.control.empty() && !arm.sweep.empty()) {
      place.fail(*table.get("control"), concat("the arm \"", name, "\" is a control or stands in a sweep, not both"));
    }
    if (arm.train.method == "full") {
      refuse_adapter_settings(table, place, concat("the arm \"", name, "\""));
      arm.train.moments8 = false;  // shared by [train], meant for its neighbours
    }
    for (const Arm& other : job.arms) {
      if (const std::string sweep = same_point(arm, other); !sweep.empty()) {
        place.fail(*table.get("sweep"),
                   concat("\"", other.name, "\" and \"", name, "\" have the same value of the sweep \"", sweep,
                          "\" and the same seed; arms that differ in more than the seed need a `group` each"));
      }
    }
    job.arms.push_back(std::move(arm));
  });
}

void check_whole(const Job& job, const fs::path& file) {
  const auto need = [&](bool there, std::string_view what) {
    if (!there) throw Error(concat(file.string(), ": ", what));
  };
  need(!job.models.empty() && !job.models.front().path.empty(),
       "[model] path is missing: the directory of the model to tune");
  const bool learning = std::all_of(job.arms.begin(), job.arms.end(),
                                    [](const Arm& a) { return !a.data.urls.empty() || !a.data.files.empty(); });
  need(learning, "[data] needs urls or files: what to learn from");
  need(!job.output.dir.empty(), "[output] dir is missing: where results go");
  const bool known =
      std::any_of(job.arms.begin(), job.arms.end(), [&](const Arm& a) { return a.name == job.merge.arm; });
  need(known, concat("[merge] arm is \"", job.merge.arm, "\", and no [[arm]] has that name"));
}

template <class Section>
void print_keys(std::ostream& out, std::string_view title, const Keys<Section>& keys, std::string_view before = "") {
  const Section defaults{};
  out << before << title << '\n';
  for (const auto& key : keys) {
    out << before << key.name << " = " << key.show(defaults) << "  # " << key.help << '\n';
  }
  out << '\n';
}

}  // namespace

bool same_pages(const DataSection& a, const DataSection& b) { return a.urls == b.urls && a.files == b.files; }

Job parse_job(std::string_view content, const fs::path& file) {
  toml::table root;
  try {
    root = toml::parse(content, file.string());
  } catch (const toml::parse_error& error) {
    throw Error(concat(file.string(), ":", error.source().begin.line, ": ", error.description()));
  }
  Job job;
  const toml::node* arms = nullptr;
  for (const auto& [name, node] : root) {
    const Place place{file, concat("[", std::string_view(name), "]")};
    if (name == "arm") {
      arms = &node;  // after [train] and [data], which it overrides, wherever either stands in the file
      continue;
    }
    const toml::table* table = node.as_table();
    const auto section = [&](auto keys, auto& target) {
      if (table == nullptr)
        place.fail(node, concat("`", std::string_view(name), "` is a section: write ", place.section));
      read_section(*table, keys, target, place);
    };
    if (name == "model" && node.is_array())
      read_models(node, job, file);
    else if (name == "model")
      section(model_keys(), job.models.emplace_back());
    else if (name == "device")
      section(device_keys(), job.device);
    else if (name == "data")
      section(data_keys(), job.data);
    else if (name == "pack")
      section(pack_keys(), job.pack);
    else if (name == "train")
      section(train_keys(), job.train);
    else if (name == "merge")
      section(merge_keys(), job.merge);
    else if (name == "compare")
      section(compare_keys(), job.compare);
    else if (name == "output")
      section(output_keys(), job.output);
    else
      place.fail(
          node,
          concat("unknown section ", place.section,
                 suggestion(name, {"model", "device", "data", "pack", "train", "arm", "merge", "compare", "output"})));
  }
  if (arms != nullptr) read_arms(*arms, job, file);
  if (job.arms.empty()) job.arms.push_back({.name = "qlora", .data = job.data, .train = job.train});
  const auto all_weights = [](const Arm& arm) { return arm.train.method == "full"; };
  if (const toml::table* shared = root["train"].as_table();
      shared != nullptr && std::all_of(job.arms.begin(), job.arms.end(), all_weights)) {
    refuse_adapter_settings(*shared, {file, "[train]"}, arms == nullptr ? "this job" : "every arm");
  }
  for (const Arm& arm : job.arms) {
    if (arm.name == job.merge.arm && arm.train.method == "full") {
      throw Error(
          concat(file.string(), ": [merge] arm is \"", arm.name, "\", which trains all weights: there is no adapter"));
    }
  }
  if (job.merge.arm.empty()) {  // the last one that has an adapter; requirements are held against it: no control
    const auto last = [&](const auto& wanted) { return std::find_if(job.arms.rbegin(), job.arms.rend(), wanted); };
    auto found = last([](const Arm& arm) { return arm.train.method != "full" && arm.control.empty(); });
    if (found == job.arms.rend()) found = last([](const Arm& arm) { return arm.control.empty(); });
    job.merge.arm = (found == job.arms.rend() ? job.arms.back() : *found).name;
  }
  check_whole(job, file);
  return job;
}

Job read_job(const fs::path& file) {
  std::error_code error;
  const auto size = fs::file_size(file, error);
  if (error) throw Error(concat("cannot read the job file ", file.string(), ": ", error.message()));
  if (size > (1U << 20)) throw Error(concat(file.string(), " has ", size, " bytes; a job file has at most 1 MiB"));
  std::ifstream stream(file, std::ios::binary);
  std::ostringstream content;
  content << stream.rdbuf();
  if (!stream) throw Error(concat("cannot read the job file ", file.string()));
  return parse_job(content.str(), file);
}

void print_job_keys(std::ostream& out) {
  print_keys(out, "[model]  # or several: [[model]] takes the same key and a name", model_keys());
  print_keys(out, "[device]", device_keys());
  print_keys(out, "[data]", data_keys());
  print_keys(out, "[pack]", pack_keys());
  print_keys(out, "[train]", train_keys());
  // As comments: an arm that names empty pages is refused, and a job without arms is one, too.
  print_keys(out, "[[arm]]  # none or several; each takes a name, the keys of [train] and these", arm_keys(), "# ");
  print_keys(out, "[merge]", merge_keys());
  print_keys(out, "[compare]", compare_keys());
  print_keys(out, "[output]", output_keys());
}

}  // namespace qlora::program
