// qlora/run/remote.hpp — paths in S3 for functions that know files alone: what they read is copied into a cache, but
// for weights, which are read where they lie; what they write is copied to its place when it is whole.
// Cache      XDG_CACHE_HOME or ~/.cache, qlora/s3/HASH/NAME, HASH of endpoint and address; etags.json beside NAME says
//            what lies there, and only what differs is downloaded; qlora/s3-out/HASH/NAME for what is written
// Weights    of a model, *.safetensors, and whatever else of it has more than 64 MiB: the cache has stand-ins for them
//            (io/byte_source.hpp), which this process reads from the store
// Visible    a data set by its manifest.json, a model by config.json, an adapter by adapter_config.json: these objects
//            are written last, and a prefix with weights or windows and without any of them is refused when it is read
#pragma once

#include <filesystem>
#include <string>

#include "qlora/run/prebuilt.hpp"
#include "qlora/run/progress.hpp"
#include "qlora/run/remote_path.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// What a path names, on this machine: the path itself, or the copy of an object, or of all objects below a prefix,
/// with stand-ins for weights. `progress` outlives who reads these: it is asked whether to stop.
/// Throws Error: (input) for what is not there, may not be read with these credentials, or is half written; (network),
/// (resource) for want of disk, (interrupted).
[[nodiscard]] QLORA_STEP std::filesystem::path local_copy(const std::filesystem::path& named, Progress& progress);

/// A place for what is to be written to an address. What lies there from before is removed, but with `keep`: then it
/// stays, and what the address has is copied to it where it is empty. With `file` the address names an object, else a
/// prefix, which must be empty or hold a data set, or with `keep` anything. Throws Error: (usage) for a prefix that
/// holds something else, and as local_copy does.
[[nodiscard]] QLORA_STEP RemoteOutput remote_output(const std::string& address, bool file, bool keep,
                                                    Progress& progress);

/// Copies what was written to its address, manifests last, and removes it here; of a run that goes on, what its address
/// has not got yet (run/remote_copies.hpp copies it meanwhile). Where this fails it stays, and the error says where.
/// Throws Error as local_copy does.
QLORA_STEP void publish(const RemoteOutput& output, Progress& progress);

}  // namespace run
}  // namespace v0
}  // namespace qlora

#ifdef QLORA_STEP_CODE  // prebuilt.hpp
#include "qlora/run/remote_steps.hpp"
#endif  // QLORA_STEP_CODE
