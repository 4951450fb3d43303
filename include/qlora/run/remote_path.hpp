// qlora/run/remote_path.hpp — paths in S3, for code that only tells them from others; run/remote.hpp has what is done.
#pragma once

#include <filesystem>
#include <string>

namespace qlora {
inline namespace v0 {
namespace run {

/// Whether a path is an address of S3.
[[nodiscard]] inline bool is_remote(const std::filesystem::path& path) { return path.native().starts_with("s3://"); }

/// Something that is written to S3.
struct RemoteOutput {
  std::string address;           ///< "s3://bucket/key"
  std::filesystem::path staged;  ///< where it is written first
  bool keep = false;             ///< what an earlier run left there is used: a training resumes
};

}  // namespace run
}  // namespace v0
}  // namespace qlora
