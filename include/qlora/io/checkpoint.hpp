// qlora/io/checkpoint.hpp — checkpoints of a training run: ROOT/checkpoint-STEP/ {state.safetensors, state.json,
// MANIFEST.json}.
// What may not change: everything is written under a temporary name and made durable, the manifest with the SHA-256 of
// every file last; then one rename makes it a checkpoint. So a directory named checkpoint-STEP is complete unless the
// disk changed it afterwards, and that the hashes show. An older checkpoint goes only after the newer one is durable.
#pragma once

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/directory.hpp"
#include "qlora/io/json.hpp"
#include "qlora/io/safetensors.hpp"
#include "qlora/io/safetensors_writer.hpp"
#include "qlora/io/sha256.hpp"

namespace qlora {
inline namespace v0 {

/// A tensor to be saved; the floats stay the caller's.
struct NamedTensor {
  std::string name;                 ///< unique in its checkpoint
  std::vector<std::int64_t> shape;  ///< outermost dimension first
  std::span<const float> data;      ///< as many as the shape says
};

/// Parameters and moments of an open checkpoint. The tensors are mapped and live as long as it.
struct CheckpointTensors {
  std::filesystem::path path;  ///< its directory
  std::int64_t step = 0;       ///< optimizer steps done
  SafetensorsFile tensors;     ///< mapped
};

/// An open checkpoint.
struct Checkpoint : CheckpointTensors {
  Json state;  ///< what the writer gave with them
};

/// What the search for the newest checkpoint found.
struct CheckpointSearch {
  std::optional<Checkpoint> checkpoint;  ///< empty: there is none that verifies
  std::vector<std::string> skipped;      ///< one sentence for each newer one that does not, naming the damaged file
};

namespace detail {

inline constexpr std::string_view checkpoint_prefix = "checkpoint-";
inline constexpr std::string_view checkpoint_files[] = {"state.safetensors", "state.json"};

/// The step in "checkpoint-STEP", or nothing: exactly the digits that save_checkpoint writes.
[[nodiscard]] inline std::optional<std::int64_t> step_of(std::string_view name) {
  if (!name.starts_with(checkpoint_prefix)) return std::nullopt;
  const std::string_view digits = name.substr(checkpoint_prefix.size());
  std::int64_t step = -1;
  const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), step);
  if (result.ec != std::errc{} || step < 0 || std::to_string(step) != digits) return std::nullopt;
  return step;
}

/// An error of the system is no damage: it may be gone at the next try, and what was not seen is not lost.
[[noreturn]] inline void refuse_unseen(const std::filesystem::path& path, const std::error_code& code) {
  throw Error(concat("cannot look for checkpoints in ", path.string(), ": ", code.message()), ErrorKind::resource);
}

/// Steps that have a directory, newest first. Throws Error (resource) when the system cannot tell.
[[nodiscard]] inline std::vector<std::int64_t> checkpoint_steps(const std::filesystem::path& root) {
  std::vector<std::int64_t> steps;
  std::error_code code;
  std::filesystem::directory_iterator at(root, code);
  if (code == std::errc::no_such_file_or_directory) return steps;
  if (code) refuse_unseen(root, code);
  for (const std::filesystem::directory_iterator end; at != end;) {
    const auto step = step_of(at->path().filename().string());
    const bool folder = step && at->is_directory(code);
    if (code && code != std::errc::no_such_file_or_directory) refuse_unseen(at->path(), code);
    if (folder) steps.push_back(*step);
    at.increment(code);
    if (code) refuse_unseen(root, code);
  }
  std::sort(steps.rbegin(), steps.rend());
  return steps;
}

[[nodiscard]] inline std::filesystem::path checkpoint_path(const std::filesystem::path& root, std::int64_t step) {
  return root / concat(checkpoint_prefix, step);
}

/// Removes what saves that did not end left behind. Only the holder of the run's lock may call this.
inline void remove_unfinished(const std::filesystem::path& root) {
  std::error_code ignored;
  std::vector<std::filesystem::path> stale;
  for (const auto& entry : std::filesystem::directory_iterator(root, ignored)) {
    if (entry.path().filename().string().starts_with(".tmp-")) stale.push_back(entry.path());
  }
  for (const auto& path : stale) std::filesystem::remove_all(path, ignored);
}

/// Takes a checkpoint's name away before its files, so that a crash between leaves no half checkpoint.
inline void remove_checkpoint(const std::filesystem::path& root, std::int64_t step) {
  const std::filesystem::path doomed = root / concat(".tmp-", step, "-", ::getpid(), "-old");
  std::error_code code;
  std::filesystem::rename(checkpoint_path(root, step), doomed, code);
  if (code) throw_errno("cannot remove", checkpoint_path(root, step), code.value());
  std::filesystem::remove_all(doomed, code);
}

/// Compares a directory with its manifest. Throws Error naming the file that differs.
inline void verify_manifest(const std::filesystem::path& directory, std::int64_t step) {
  const std::filesystem::path path = directory / "MANIFEST.json";
  const std::string where = path.string();
  const std::string text = read_text(path, 1U << 20);
  const Json manifest = parse_json(text, where);
  // A manifest is small enough to be compared whole with what this library writes for the same values.
  if (!manifest.is_object() || json_text(manifest) != text) throw Error(where + ": was changed after it was written");
  const std::string hash = json_string(manifest, "sha256", where);
  Json body = manifest;
  body.erase("sha256");
  if (sha256(json_text(body)) != hash) throw Error(where + ": its own SHA-256 does not match");
  if (json_int(manifest, "step", where, 0, INT64_MAX) != step) throw Error(where + ": belongs to another step");
  const Json files = json_at(manifest, "files", where);
  for (const std::string_view name : checkpoint_files) {
    const Json entry = json_at(files, name, where);
    const MappedFile file(directory / name);
    const auto size = static_cast<std::uint64_t>(json_int(entry, "bytes", where, 0, INT64_MAX));
    if (file.bytes().size() != size || sha256(file.bytes()) != json_string(entry, "sha256", where)) {
      throw Error(concat((directory / name).string(), ": its size or SHA-256 is not the one in MANIFEST.json"));
    }
  }
}

[[nodiscard]] inline Json manifest_of(const std::filesystem::path& directory, std::int64_t step) {
  Json files = Json::object();
  for (const std::string_view name : checkpoint_files) {
    const MappedFile file(directory / name);
    files[std::string(name)] = Json{{"bytes", file.bytes().size()}, {"sha256", sha256(file.bytes())}};
  }
  Json manifest{{"files", files}, {"format", 1}, {"step", step}};
  manifest["sha256"] = sha256(json_text(manifest));
  return manifest;
}

}  // namespace detail

/// Keeps the checkpoint of `step` and the keep - 1 before it, and removes all that are older. Newer ones stay and do
/// not count: a run goes on from the newest that verifies, so those are damaged. The caller holds the run's lock.
inline void prune_checkpoints(const std::filesystem::path& root, std::int64_t step, int keep) {
  QLORA_EXPECTS(keep >= 1, "keep ", keep);
  int kept = 1;
  for (const std::int64_t other : detail::checkpoint_steps(root)) {
    if (other < step && ++kept > keep) detail::remove_checkpoint(root, other);
  }
}

/// Saves a step and then prunes. A directory that exists for this step is replaced. Throws Error (ErrorKind::resource,
/// with the bytes needed) when the disk has no room; older checkpoints are then untouched. The caller holds the run's
/// lock.
inline void save_checkpoint(const std::filesystem::path& root, std::int64_t step, std::span<const NamedTensor> tensors,
                            const Json& state, int keep) {
  QLORA_EXPECTS(step >= 0 && keep >= 1, "step ", step, ", keep ", keep);
  make_directories(root);
  detail::remove_unfinished(root);
  const std::string text = json_text(state);
  std::uint64_t bytes = text.size() + (1U << 20);  // the rest is headers, the manifest and directory blocks
  std::vector<TensorInfo> plan;
  for (const NamedTensor& tensor : tensors) {
    const auto size = detail::checked_bytes(DType::f32, tensor.shape);
    QLORA_EXPECTS(size && *size == tensor.data.size_bytes(), "tensor '", tensor.name, "' has ", tensor.data.size(),
                  " values, not those of its shape");
    plan.push_back({tensor.name, DType::f32, tensor.shape});
    bytes += *size + 256;
  }
  expect_free_space(root, bytes);
  const std::filesystem::path temporary = root / concat(".tmp-", step, "-", ::getpid());
  AtomicDirectory directory(detail::checkpoint_path(root, step), temporary,
                            {"state.safetensors", "state.json", "MANIFEST.json"});
  SafetensorsWriter writer(temporary / "state.safetensors", std::move(plan));
  for (const NamedTensor& tensor : tensors) writer.write(tensor.name, std::as_bytes(tensor.data));
  writer.finish();
  write_file_atomically(temporary / "state.json", text);
  write_file_atomically(temporary / "MANIFEST.json", json_text(detail::manifest_of(temporary, step)));
  directory.commit();
  prune_checkpoints(root, step, keep);
}

/// Opens one checkpoint after comparing every byte with its manifest. Throws Error naming the damaged file.
[[nodiscard]] inline Checkpoint load_checkpoint(const std::filesystem::path& path) {
  const auto step = detail::step_of(path.filename().string());
  if (!step) throw Error(path.string() + ": is not named checkpoint-STEP");
  detail::verify_manifest(path, *step);
  return {{path, *step, SafetensorsFile(path / "state.safetensors")}, read_json_object(path / "state.json")};
}

/// Opens the newest checkpoint that verifies and says which newer ones do not. Damaged ones are left where they are.
/// Throws Error (resource) when the system cannot read: that is no damage.
/// With `keep`, as a run that starts calls it, also prunes: a process killed between saving and pruning leaves one
/// checkpoint too many, and without this they would add up.
[[nodiscard]] inline CheckpointSearch load_latest_checkpoint(const std::filesystem::path& root,
                                                             int keep = std::numeric_limits<int>::max()) {
  CheckpointSearch result;
  detail::remove_unfinished(root);
  for (const std::int64_t step : detail::checkpoint_steps(root)) {
    try {
      result.checkpoint = load_checkpoint(detail::checkpoint_path(root, step));
      break;
    } catch (const SystemError& error) {
      if (error.code() != ENOENT && error.code() != ENOTDIR) throw Error(error.what(), ErrorKind::resource);
      result.skipped.emplace_back(error.what());
    } catch (const Error& error) {
      result.skipped.emplace_back(error.what());
    }
  }
  if (result.checkpoint) prune_checkpoints(root, result.checkpoint->step, keep);
  return result;
}

}  // namespace v0
}  // namespace qlora
