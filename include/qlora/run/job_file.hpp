// qlora/run/job_file.hpp — a job as one TOML page. Its keys, ranges and defaults are the tables of run/options.hpp.
// Unknown keys and wrong values are errors with a line number and a suggestion. Relative paths are meant from the
// folder of the job file, so that a job does the same from wherever it is started. The TOML library stays in this file.
#pragma once

#include <toml++/toml.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/file.hpp"
#include "qlora/run/job.hpp"
#include "qlora/run/remote_path.hpp"
#include "qlora/run/suggest.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// What read_job makes of a job file.
struct JobFile {
  Job job;                         ///< complete
  std::vector<std::string> notes;  ///< what the user is to know: old keys that were used
};

namespace detail {

/// Where a value stands, for messages, and what relative paths are relative to.
struct Place {
  std::filesystem::path file;
  std::string section;

  [[noreturn]] void fail(const toml::node& node, const std::string& what) const {
    throw Error(concat(file.string(), ":", node.source().begin.line, ": ", what));
  }
};

inline std::string text_of(const toml::node& node, std::string_view name, const Place& place) {
  if (!node.is_string()) place.fail(node, concat("`", name, "` must be a text in quotes"));
  return node.as_string()->get();
}

/// What stands in the file; nothing for what no option can hold, as a date.
inline std::optional<Value> value_of(const toml::node& node) {
  if (node.is_boolean()) return node.as_boolean()->get();
  if (node.is_integer()) return node.as_integer()->get();
  if (node.is_floating_point()) return node.as_floating_point()->get();
  if (node.is_string()) return node.as_string()->get();
  const toml::array* array = node.as_array();
  if (array == nullptr) return std::nullopt;
  std::vector<std::string> texts;
  for (const toml::node& item : *array) {
    if (!item.is_string()) return std::nullopt;
    texts.push_back(item.as_string()->get());
  }
  return texts;
}

/// A relative path of a job that lies in S3, as an address.
inline std::string remote_path(const std::string& text, const toml::node& node, std::string_view name,
                               const Place& place) {
  constexpr std::size_t scheme = std::string_view("s3:/").size();  // and the root of "/bucket/key"
  const std::filesystem::path folder = std::filesystem::path(place.file.native().substr(scheme)).parent_path();
  if (std::filesystem::path(text).is_absolute()) return text;
  const std::string joined = (folder / text).lexically_normal().string();
  const std::filesystem::path bucket = *std::next(folder.begin());
  if (!joined.starts_with(concat("/", bucket.string(), "/")))
    place.fail(node, concat("`", name, "` leads out of the bucket of the job"));
  return "s3:/" + joined;
}

/// Makes relative paths those of the job file's folder.
inline void resolve(Value& value, const toml::node& node, std::string_view name, const Place& place) {
  const auto resolved = [&](const std::string& text) {
    if (text.empty()) place.fail(node, concat("`", name, "` must not be empty"));
    if (is_remote(text)) return text;
    if (is_remote(place.file)) return remote_path(text, node, name, place);
    return (place.file.parent_path() / text).lexically_normal().string();
  };
  if (auto* text = std::get_if<std::string>(&value)) *text = resolved(*text);
  if (auto* texts = std::get_if<std::vector<std::string>>(&value)) {
    for (std::string& text : *texts) text = resolved(text);
  }
}

/// A group of options that a section fills, seen without its type.
struct Target {
  /// Whether the group has this key; then it is read.
  std::function<bool(std::string_view name, const toml::node& node, const Place& place)> read;
  std::vector<std::string_view> names;
  std::vector<std::pair<std::string_view, std::string_view>> old_names;  ///< old, new
};

template <HasTable S>
Target target(S& group) {
  Target made;
  for (const Option<S>& option : Table<S>::options) {
    made.names.push_back(option.name);
    if (!option.old_name.empty()) made.old_names.emplace_back(option.old_name, option.name);
  }
  made.read = [&group](std::string_view name, const toml::node& node, const Place& place) {
    for (const Option<S>& option : Table<S>::options) {
      if (option.name != name) continue;
      std::optional<Value> value = value_of(node);
      if (value && (option.kind() == Kind::path || option.kind() == Kind::paths)) {
        resolve(*value, node, name, place);
      }
      const std::string wrong = value ? assign(option, group, *value) : requirement(option);
      if (wrong.empty()) return true;
      const auto* text = value ? std::get_if<std::string>(&*value) : nullptr;
      const std::vector<std::string_view> choices(option.choices().begin(), option.choices().end());
      place.fail(node, concat("`", name, "` ", wrong,
                              text == nullptr || choices.empty() ? std::string() : suggestion(*text, choices)));
    }
    return false;
  };
  return made;
}

inline std::vector<Target> targets(TrainSection& train) {
  return {target(train.options), target(train.replay), target(train.loop)};
}

/// Reads every key of a section but those in `apart`, which are read elsewhere.
inline void read_section(const toml::table& table, const std::vector<Target>& targets, const Place& place,
                         std::vector<std::string>& notes, const std::vector<std::string_view>& apart = {}) {
  for (const auto& [key, node] : table) {
    std::string_view name = key;
    if (std::find(apart.begin(), apart.end(), name) != apart.end()) continue;
    for (const Target& target : targets) {
      for (const auto& [before, now] : target.old_names) {
        if (name != before) continue;
        if (table.contains(now))
          place.fail(node, concat("`", before, "` is the old name of `", now, "`, which is given, too"));
        notes.push_back(concat(place.file.string(), ":", node.source().begin.line, ": `", before, "` is now called `",
                               now, "`; the next version no longer knows the old name"));
        name = now;
        break;
      }
    }
    const bool read = std::any_of(targets.begin(), targets.end(),
                                  [&, &value = node](const Target& target) { return target.read(name, value, place); });
    if (read) continue;
    std::vector<std::string_view> known = apart;
    for (const Target& target : targets) known.insert(known.end(), target.names.begin(), target.names.end());
    place.fail(node, concat("unknown key `", name, "` in ", place.section, suggestion(name, known)));
  }
}

/// Names and numbers: what is varied, and where the arm stands.
inline void read_sweep(Arm& arm, const toml::node& node, const Place& place) {
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

/// Calls use(table, name, place) for each [[section]]. The name becomes a folder and a key of the report: it is there,
/// plain, and only once.
template <class Use>
void for_each_named(const toml::node& node, const std::filesystem::path& file, const std::string& section,
                    const Use& use) {
  const Place place{file, concat("[[", section, "]]")};
  const toml::array* items = node.as_array();
  if (items == nullptr || items->empty() || !items->is_array_of_tables()) {
    place.fail(node, concat("write each ", section, " as ", place.section));
  }
  if (items->size() > max_named) {
    place.fail(node, concat(items->size(), " of ", place.section, "; a job has at most ", max_named));
  }
  std::set<std::string> names;
  for (const toml::node& item : *items) {
    const toml::table& table = *item.as_table();
    const toml::node* node_of_name = table.get("name");
    if (node_of_name == nullptr) place.fail(item, concat("each ", place.section, " needs a `name`"));
    const std::string name = text_of(*node_of_name, "name", place);
    if (!is_plain_name(name)) place.fail(*node_of_name, "`name` must be 1 to 64 of a-z 0-9 _ -");
    if (!names.insert(name).second) place.fail(*node_of_name, concat("a second ", section, " \"", name, "\""));
    use(table, name, place);
  }
}

inline void read_models(const toml::node& node, JobFile& read, const std::filesystem::path& file) {
  for_each_named(node, file, "model", [&](const toml::table& table, const std::string& name, const Place& place) {
    JobModel model{name, {}, {}};
    read_section(table, {target(model.source), target(model.chat)}, place, read.notes, {"name"});
    if (model.source.path.empty()) place.fail(table, concat("the ", place.section, " \"", name, "\" needs a `path`"));
    read.job.models.push_back(std::move(model));
  });
}

/// Refuses what a table says of adapters where there are none. [train] is shared, so it may say it as long as one arm
/// has adapters; an arm speaks for itself. adamw8bit = false says what is so.
inline void refuse_adapter_settings(const toml::table& table, const Place& place, std::string_view whose) {
  for (const auto& option : Table<Training>::options) {
    const std::string_view name = option.name;
    const toml::node* node = table.get(name);
    if (node == nullptr && !option.old_name.empty()) node = table.get(option.old_name);
    if (!option.adapters_only || node == nullptr || (node->is_boolean() && !node->as_boolean()->get())) continue;
    place.fail(*node, concat("`", name, "` is of adapters, and ", whose, " trains all weights (method = \"full\")"));
  }
}

inline Arm read_arm(const toml::table& table, const std::string& name, const Place& place, JobFile& read) {
  if (is_variant_name(name)) {
    place.fail(*table.get("name"), concat("`name` cannot be \"", name, "\", the report uses it"));
  }
  Arm arm{.name = name, .pages = read.job.pages, .train = read.job.train};
  const toml::node* own_pages = table.contains("files") ? table.get("files") : table.get("urls");
  if (own_pages != nullptr) arm.pages = {};
  std::vector<Target> all{target(arm.labels), target(arm.pages)};
  for (Target& target : targets(arm.train)) all.push_back(std::move(target));
  read_section(table, all, place, read.notes, {"name", "sweep"});
  if (const toml::node* sweep = table.get("sweep"); sweep != nullptr) read_sweep(arm, *sweep, place);
  if (own_pages != nullptr && arm.pages == Pages{}) {
    place.fail(*own_pages, concat("the ", place.section, " \"", name,
                                  "\" needs urls or files: what to learn from; without either it learns from [data]"));
  }
  if (!arm.labels.control.empty() && !arm.sweep.empty()) {
    place.fail(*table.get("control"), concat("the arm \"", name, "\" is a control or stands in a sweep, not both"));
  }
  if (arm.trains_all()) {
    refuse_adapter_settings(table, place, concat("the arm \"", name, "\""));
    arm.train.options.adamw8bit = false;  // shared by [train], meant for its neighbours
  }
  return arm;
}

inline void read_arms(const toml::node& node, JobFile& read, const std::filesystem::path& file) {
  for_each_named(node, file, "arm", [&](const toml::table& table, const std::string& name, const Place& place) {
    Arm arm = read_arm(table, name, place, read);
    for (const Arm& other : read.job.arms) {
      if (const std::string sweep = shared_point(arm, other); !sweep.empty()) {
        place.fail(*table.get("sweep"),
                   concat("\"", other.name, "\" and \"", name, "\" have the same value of the sweep \"", sweep,
                          "\" and the same seed; arms that differ in more than the seed need a `group` each"));
      }
    }
    read.job.arms.push_back(std::move(arm));
  });
}

/// The TOML parser nests a table for every part of a dotted key, without limit, and destroys them by recursion. No key
/// of a job has more than two parts. Strings and comments are passed over.
inline void refuse_deep_keys(std::string_view content, const std::filesystem::path& file) {
  constexpr int most = 8;
  int line = 1;
  int parts = 1;
  for (std::size_t i = 0; i < content.size(); ++i) {
    const char c = content[i];
    if (c == '"' || c == '\'') {
      const std::string_view triple = c == '"' ? R"(""")" : "'''";
      const std::string_view end = content.substr(i, 3) == triple ? triple : triple.substr(0, 1);
      for (i += end.size(); i < content.size() && content.substr(i, end.size()) != end; ++i) {
        if (content[i] == '\\' && c == '"') ++i;
        if (i < content.size() && content[i] == '\n') {
          ++line;
          if (end.size() == 1) break;  // the parser refuses it
        }
      }
      i += end.size() - 1;
      const bool several = end.size() == 3;  // whose text may end with up to two quotes
      for (int more = 0; several && more < 2 && i + 1 < content.size() && content[i + 1] == c; ++more) ++i;
    } else if (c == '#') {
      i = std::min(content.find('\n', i), content.size()) - 1;
    } else if (c == '\n') {
      ++line;
      parts = 1;
    } else if (c == '=' || c == ',' || c == '[' || c == '{') {
      parts = 1;
    } else if (c == '.' && ++parts > most) {
      throw Error(concat(file.string(), ":", line, ": a key of more than ", most, " parts"));
    }
  }
}

}  // namespace detail

/// The job of a TOML text that stands in `file`, a path or an address in S3, whose folder relative paths are meant
/// from. Throws Error(input) that
/// names file, line and key.
[[nodiscard]] inline JobFile parse_job(std::string_view content, const std::filesystem::path& file) {
  using namespace detail;
  refuse_deep_keys(content, file);
  toml::table root;
  try {
    root = toml::parse(content, file.string());
  } catch (const toml::parse_error& error) {
    throw Error(concat(file.string(), ":", error.source().begin.line, ": ", error.description()));
  }
  JobFile read;
  Job& job = read.job;
  const toml::node* arms = nullptr;
  for (const auto& [name, node] : root) {
    const Place place{file, concat("[", std::string_view(name), "]")};
    if (name == "arm") {
      arms = &node;  // after [train] and [data], which it overrides, wherever either stands in the file
      continue;
    }
    const toml::table* table = node.as_table();
    const auto section = [&](const std::vector<Target>& into) {
      if (table == nullptr)
        place.fail(node, concat("`", std::string_view(name), "` is a section: write ", place.section));
      read_section(*table, into, place, read.notes);
    };
    if (name == "model" && node.is_array())
      read_models(node, read, file);
    else if (name == "model")
      section({target(job.models.emplace_back().source), target(job.models.back().chat)});
    else if (name == "device")
      section({target(job.device)});
    else if (name == "data")
      section({target(job.pages), target(job.fetching)});
    else if (name == "pack")
      section({target(job.packing)});
    else if (name == "train")
      section(targets(job.train));
    else if (name == "merge")
      section({target(job.merge), target(job.merging)});
    else if (name == "compare")
      section({target(job.comparison), target(job.sampling)});
    else if (name == "output")
      section({target(job.output)});
    else
      place.fail(
          node,
          concat("unknown section ", place.section,
                 suggestion(name, {"model", "device", "data", "pack", "train", "arm", "merge", "compare", "output"})));
  }
  if (arms != nullptr) read_arms(*arms, read, file);
  const auto trains_all = [](const Arm& arm) { return arm.trains_all(); };
  const bool all_weights = job.arms.empty() ? job.train.options.method == Method::full
                                            : std::all_of(job.arms.begin(), job.arms.end(), trains_all);
  if (const toml::table* shared = root["train"].as_table(); shared != nullptr && all_weights) {
    refuse_adapter_settings(*shared, {file, "[train]"}, arms == nullptr ? "this job" : "every arm");
  }
  try {
    complete_job(job);
  } catch (const Error& error) {
    throw Error(concat(file.string(), ": ", error.what()), error.kind());
  }
  return read;
}

/// The job of a file of at most 1 MiB. `from`: the address that the file is a copy of; empty: it is none. Throws
/// Error(input) as parse_job does, and where the file cannot be read.
[[nodiscard]] inline JobFile read_job(const std::filesystem::path& file, const std::filesystem::path& from = {}) {
  std::error_code error;
  const auto size = std::filesystem::file_size(file, error);
  if (error) throw Error(concat("cannot read the job file ", file.string(), ": ", error.message()));
  if (size > (1U << 20)) throw Error(concat(file.string(), " has ", size, " bytes; a job file has at most 1 MiB"));
  std::ifstream stream(file, std::ios::binary);
  std::ostringstream content;
  content << stream.rdbuf();
  if (!stream) throw Error(concat("cannot read the job file ", file.string()));
  refuse_lfs_pointer(content.str(), file.string());
  return parse_job(content.str(), from.empty() ? file : from);
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
