// qlora/run/container_steps.hpp — the code of run/container.hpp.
#pragma once

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cstddef>
#include <cstdlib>
#include <optional>
#include <set>
#include <span>
#include <utility>

#include "qlora/dist/sagemaker.hpp"
#include "qlora/io/directory.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/json.hpp"
#include "qlora/run/container.hpp"
#include "qlora/run/merge.hpp"
#include "qlora/run/pack.hpp"
#include "qlora/run/suggest.hpp"
#include "qlora/run/train.hpp"
#include "qlora/run/training_log.hpp"

namespace qlora {
inline namespace v0 {
namespace run {
namespace detail {

/// Reads the platform's files into a ContainerTraining.
class ContainerReader {
 public:
  ContainerReader(std::filesystem::path root, const dist::Environment& get) : get_(get) {
    job_.root = std::move(root);
    job_.train.out = job_.root / "checkpoints";
  }

  ContainerTraining read() {
    job_.train.launch = dist::launch_of(get_);
    job_.hosts = dist::sagemaker_hosts_in(job_.root, get_).count;
    read_hyperparameters();
    read_channels();
    check();
    if (job_.hosts > 1 && job_.train.launch.size == 1) take_hosts();
    return std::move(job_);
  }

 private:
  [[noreturn]] static void refuse(const std::string& why) { throw Error(why, ErrorKind::usage); }
  [[nodiscard]] std::filesystem::path config(const char* name) const { return job_.root / "input" / "config" / name; }
  [[nodiscard]] bool given(std::string_view name) const { return given_.contains(std::string(name)); }

  /// Names of the platform and of its SDK, which are not meant for a program: "_tuning_objective_metric".
  [[nodiscard]] static bool is_of_platform(std::string_view name) {
    return name.starts_with('_') || name.starts_with("sagemaker_");
  }
  /// "weight_decay" for "weight-decay".
  [[nodiscard]] static std::string plain(std::string_view name) {
    std::string text(name);
    std::replace(text.begin(), text.end(), '-', '_');
    return text;
  }
  /// The name of an option as a hyperparameter: that of the command line, without dashes.
  template <class S>
  [[nodiscard]] static std::string hyperparameter(const Option<S>& option) {
    return plain(option.on_the_line.empty() ? option.name : option.on_the_line);
  }
  /// What a channel brings is no hyperparameter.
  template <class S>
  [[nodiscard]] static bool is_of_channel(const Option<S>& option) {
    return option.kind() == Kind::path || option.kind() == Kind::paths;
  }

  /// A text as the value of an option. Python's str() writes True; lists are JSON.
  [[nodiscard]] static std::optional<Value> value_in(Kind kind, const std::string& text, const std::string& where) {
    if (kind == Kind::flag && (text == "True" || text == "False")) return text == "True";
    if (kind != Kind::texts || !text.starts_with('[')) return parse_value(kind, text);
    std::vector<std::string> texts;
    for (const Json& item : parse_json(text, where)) {
      if (!item.is_string()) return std::nullopt;
      texts.push_back(item.get<std::string>());
    }
    return texts;
  }

  /// Whether the group has a hyperparameter of this name, which then has its value.
  template <class S>
  bool take(S& group, const std::string& name, const std::string& text, const std::string& where) {
    for (const Option<S>& option : Table<S>::options) {
      if (is_of_channel(option) || (name != hyperparameter(option) && name != option.name)) continue;
      const auto value = value_in(option.kind(), text, where);
      const std::string wrong = value ? assign(option, group, *value) : requirement(option);
      const std::vector<std::string_view> choices(option.choices().begin(), option.choices().end());
      if (!wrong.empty()) {
        refuse(concat(where, " is \"", qlora::detail::excerpt(text), "\", and ", wrong,
                      choices.empty() ? std::string() : suggestion(text, choices)));
      }
      if (!given_.insert(std::string(option.name)).second) refuse(concat(where, " is given under two names"));
      return true;
    }
    return false;
  }
  template <class S>
  static void add_names(std::vector<std::string>& names) {
    for (const Option<S>& option : Table<S>::options) {
      if (!is_of_channel(option)) names.push_back(hyperparameter(option));
    }
  }
  /// Calls use(group) for each group whose options are hyperparameters.
  template <class Use>
  bool any_group(const Use& use) {
    return use(job_.options) || use(job_.train.options) || use(job_.train.loop) || use(job_.train.chat) ||
           use(job_.train.device) || use(job_.ranks) || use(job_.packing) || use(job_.replay) || use(job_.merging);
  }

  void read_hyperparameters() {
    const std::filesystem::path file = config("hyperparameters.json");
    if (!std::filesystem::exists(file)) return;
    const Json all = read_json_object(file, 1U << 20);
    for (const auto& [key, value] : all.items()) {
      if (is_of_platform(key)) continue;
      const std::string where = concat(file.string(), ": the hyperparameter `", qlora::detail::excerpt(key), "`");
      if (!value.is_string()) throw Error(where + " must be a text in quotes, as SageMaker writes all of them");
      const std::string name = plain(key);
      const auto& text = value.get_ref<const std::string&>();
      if (any_group([&](auto& group) { return take(group, name, text, where); })) continue;
      std::vector<std::string> names;
      any_group([&]<class S>(S&) { return add_names<S>(names), false; });
      if (name == "probes" || name == "replay") {
        refuse(concat(where, " is a channel: give its files in InputDataConfig"));
      }
      refuse(concat(where, " is unknown", suggestion(name, std::vector<std::string_view>(names.begin(), names.end()))));
    }
  }

  /// The folder of a channel.
  [[nodiscard]] std::filesystem::path folder_of(const std::string& channel) const {
    std::string name = "SM_CHANNEL_";
    for (const char c : channel) name += static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    const std::string of_toolkit = get_(name.c_str()).value_or("");
    std::filesystem::path folder = of_toolkit;
    if (folder.empty()) folder = job_.root / "input" / "data" / channel;
    std::error_code none;
    if (std::filesystem::is_directory(folder, none)) return folder;
    throw Error(concat("the channel ", channel, " is not in ", folder.string(), "; does its S3Uri hold any object?"));
  }
  /// The files of a channel, in the order of their paths. Throws Error where there is none.
  [[nodiscard]] static std::vector<std::filesystem::path> files_in(const std::filesystem::path& folder) {
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
      if (entry.is_regular_file()) files.push_back(entry.path());
    }
    std::sort(files.begin(), files.end());
    if (files.empty()) throw Error(concat(folder.string(), " holds no file; is the channel's S3Uri a prefix?"));
    return files;
  }

  void read_channels() {
    const std::filesystem::path file = config("inputdataconfig.json");
    const Json all = std::filesystem::exists(file) ? read_json_object(file, 1U << 20) : Json::object();
    for (const auto& [name, about] : all.items()) {
      const std::string where = concat(file.string(), ": the channel `", qlora::detail::excerpt(name), "`");
      if (std::find(channels.begin(), channels.end(), name) == channels.end()) {
        refuse(concat(where, " is unknown", suggestion(name, {channels.begin(), channels.end()})));
      }
      if (!about.is_object()) throw Error(where + " is no object");
      if (json_string_or(about, "TrainingInputMode", where, "File") == "Pipe") {
        refuse(concat(where, " comes in Pipe mode, and files are needed: set InputMode to File or FastFile"));
      }
      if (json_string_or(about, "S3DistributionType", where, "") == "ShardedByS3Key" && job_.hosts > 1) {
        refuse(concat(where, " is ShardedByS3Key, and every host reads all of it: set FullyReplicated"));
      }
      take_channel(name, folder_of(name));
    }
  }
  void take_channel(const std::string& name, const std::filesystem::path& folder) {
    if (name == "model") {
      job_.train.model = folder;
    } else if (name == "probes") {
      job_.train.loop.probes = files_in(folder);
    } else if (name == "replay") {
      const auto files = files_in(folder);
      if (files.size() > 1) refuse(concat("the channel replay has ", files.size(), " files; it must be one"));
      job_.replay.replay = files.front();
    } else if (std::filesystem::exists(folder / "manifest.json")) {
      job_.train.data = folder;
    } else {
      job_.documents = files_in(folder);
    }
  }

  /// Each host starts a rank for a GPU at least.
  void take_hosts() {
    if (job_.train.device.use == DeviceUse::cpu) {
      refuse(concat("a job of ", job_.hosts, " hosts trains on GPUs; on the CPU mpirun must start its processes"));
    }
    job_.ranks.gpus = std::max(job_.ranks.gpus, 1);
  }

  /// Throws Error (usage) for options that would do nothing.
  template <class S>
  void refuse_given(const char* why) const {
    for (const Option<S>& option : Table<S>::options) {
      if (given(option.name)) refuse(concat("the hyperparameter `", hyperparameter(option), "` ", why));
    }
  }
  void check() {
    const Training& options = job_.train.options;
    if (!job_.options.model.empty()) {
      if (!job_.train.model.empty()) refuse("the hyperparameter `model` is given, and so is the channel model");
      job_.train.model = job_.options.model;
    }
    if (job_.train.model.empty()) {
      refuse("there is no model: give the channel model, or the hyperparameter `model` with a name of the hub");
    }
    if (job_.train.data.empty() && job_.documents.empty()) {
      refuse("there is nothing to learn from: give the channel training, with a packed data set or documents");
    }
    if (job_.documents.empty()) {
      refuse_given<Packing>("is of packing, and the channel training is packed already: leave it out");
      if (!job_.replay.replay.empty()) refuse("the channel replay is of packing, and training is packed already");
    }
    if (given("replay_limit") && job_.replay.replay.empty()) {
      refuse("the hyperparameter `replay_limit` needs the channel replay");
    }
    if (job_.train.loop.probes.empty()) refuse_given<LoopProbes>("is of probes: give the channel probes");
    if (!job_.train.loop.guard.empty() && job_.hosts > 1) {
      refuse(
          "the hyperparameter `guard` goes back to a checkpoint, which only the first of several hosts has; leave "
          "it out, or train on one host");
    }
    if (!job_.options.merge) refuse_given<Merging>("is of merging: set `merge` to true");
    if (options.method != Method::full) return;
    for (const auto& option : Table<Training>::options) {
      if (option.adapters_only && given(option.name)) {
        refuse(concat("the hyperparameter `", option.name, "` is of adapters, and method full trains all weights"));
      }
    }
    if (job_.options.merge) refuse("the hyperparameter `merge` is of adapters, and method full trains all weights");
  }

  static constexpr std::array<std::string_view, 4> channels{"training", "model", "probes", "replay"};
  const dist::Environment& get_;
  ContainerTraining job_;
  std::set<std::string> given_;
};

/// A folder that goes again: a data set that is packed here is no result.
class PassingFolder {
 public:
  PassingFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "qlora-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw_errno("cannot create directory", name, errno);
    path_ = name;
  }
  PassingFolder(const PassingFolder&) = delete;
  PassingFolder& operator=(const PassingFolder&) = delete;
  ~PassingFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// Puts the files of `from` into `to`, which may be a mount and cannot be replaced; `last` comes when all others are
/// there, so that nobody takes a part for the whole.
inline void put_files(const std::filesystem::path& from, const std::filesystem::path& to, std::string_view last,
                      bool move) {
  const auto put = [&](const std::filesystem::path& file) {
    const std::filesystem::path target = to / file.filename();
    if (move) return std::filesystem::rename(file, target);
    const std::filesystem::path part = temporary_beside(target);
    std::filesystem::copy_file(file, part);
    std::filesystem::rename(part, target);
  };
  for (const auto& entry : std::filesystem::directory_iterator(from)) {
    if (entry.is_regular_file() && entry.path().filename() != last) put(entry.path());
  }
  if (std::filesystem::exists(from / last)) put(from / last);
}

}  // namespace detail

QLORA_STEP ContainerTraining container_training(const std::filesystem::path& root, const dist::Environment& get) {
  return detail::ContainerReader(root, get).read();
}

QLORA_STEP TrainResult train_in_container(const ContainerTraining& job, Progress& progress) {
  TrainRequest request = job.train;
  const bool first = request.launch.rank == 0;
  const std::filesystem::path model = job.root / "model";
  if (first) {
    make_directories(model);
    if (!std::filesystem::is_empty(model)) {
      const auto there = std::filesystem::directory_iterator(model)->path();
      throw Error(concat(there.string(), " is there, where the result goes; a container begins with an empty folder"),
                  ErrorKind::usage);
    }
  }
  std::optional<detail::PassingFolder> folder;
  if (!job.documents.empty()) {
    folder.emplace();
    request.data = folder->path() / "data";
    PackRequest packing;
    packing.documents = job.documents;
    packing.replay = job.replay;
    packing.model = request.model;
    packing.out = request.data;
    packing.packing = job.packing;
    packing.chat = request.chat;
    (void)pack(packing, progress);
  }
  TrainResult result = train(request, progress);
  if (!first) return result;
  const std::filesystem::path record = job.root / "output" / "data";
  make_directories(record);
  for (const char* name : {"metrics.jsonl", "trainer_state.json"}) {
    if (std::filesystem::exists(request.out / name)) {
      write_file_atomically(record / name, read_text(request.out / name, std::size_t{1} << 30));
    }
  }
  if (!job.options.merge) {
    const bool full = request.options.method == Method::full;
    detail::put_files(result.trained, model, full ? "config.json" : "adapter_config.json", false);
    result.trained = model;
  } else {
    const std::filesystem::path merged = model / "merged";
    (void)merge({.model = request.model,
                 .adapter = result.trained,
                 .out = merged,
                 .merging = job.merging,
                 .device = request.device},
                progress);
    detail::put_files(merged, model, "config.json", true);
    std::filesystem::remove(merged);
    progress.say("merged model in " + model.string());
  }
  return result;
}

QLORA_STEP std::string metric_line(const StepRecord& record) {
  std::string line = concat("step=", record.step);
  const auto add = [&](std::string_view name, double value) {
    std::array<char, 32> text{};
    const char* end = std::to_chars(text.data(), text.data() + text.size(), value).ptr;
    line += concat(" ", name, "=", std::string_view(text.data(), static_cast<std::size_t>(end - text.data())));
  };
  add("epoch", record.epoch);
  add("loss", record.loss);
  add("grad_norm", record.grad_norm);
  add("lr", record.lr);
  add("tokens_per_s", record.tok_per_s);
  for (const eval::Metric& metric : record.probes) {
    add(concat("probe.", metric.name, ".value"), metric.numbers.front().second.value);
    add(concat("probe.", metric.name, ".lower"), metric.numbers.front().second.lower);
  }
  return line;
}

QLORA_STEP void forget_failure(const std::filesystem::path& root) {
  std::error_code none;
  std::filesystem::remove(root / "output" / "failure", none);
}

QLORA_STEP void write_failure(const std::filesystem::path& root, std::string_view message, ErrorKind kind) {
  const std::filesystem::path file = root / "output" / "failure";
  try {
    make_directories(file.parent_path());
    const FileDescriptor out = FileDescriptor::open("cannot write", file, O_WRONLY | O_CREAT | O_EXCL, 0644);
    const std::string text = concat(message, "\nqlora ended with exit code ", static_cast<int>(kind), "\n");
    write_stream(out, file, std::as_bytes(std::span(text)));
  } catch (const Error&) {  // another process was first, or the disk is full
    return;
  }
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
