// s3.cpp — paths in S3 for all verbs. Left out of a build without libcurl or libxml2.
#define QLORA_RUN_CODE  // qlora/run/prebuilt.hpp: its code is compiled here
#include <filesystem>
#include <memory>
#include <string>

#include "qlora/run/remote.hpp"
#include "qlora/run/remote_copies.hpp"
#include "verb.hpp"

namespace qlora::program {

std::filesystem::path local_path(const std::filesystem::path& named, Progress& progress) {
  return run::local_copy(named, progress);
}

run::RemoteOutput stage_output(const std::string& address, bool file, bool keep, Progress& progress) {
  return run::remote_output(address, file, keep, progress);
}

void publish_output(const run::RemoteOutput& output, Progress& progress) { run::publish(output, progress); }

CopyMeanwhile copy_meanwhile(const run::RemoteOutput& output) {
  return [copies = std::make_shared<run::RemoteCopies>(output)] { return copies->saved(); };
}

}  // namespace qlora::program
