#!/bin/sh
# layering.sh ROOT: checks each #include under ROOT/include, configs and cuda against the layers; prints every offence.
#
#   0 vocabulary   include/qlora/*.hpp, std only      4 training      train/ generate/
#   1 contract     backend.hpp                        5 the outside   text/ io/ net/ web/ eval/ dist/
#   2 backends     cpu/, cpu.hpp, cuda/, cuda.hpp     6 doors         llama2.hpp, run/, serve/; configs/ is vocabulary
#   3 network      model/
#
# A file includes its own layer and those below it. Network and training code never name a backend, and no backend names
# the other. A foreign library stays in the folders that wrap it. CUDA's headers stay in *.cuh and in
# cuda/attention/cudnn* and cuda/comm/nccl.hpp, since callers of launchers are compiled without them, and so do the
# .cuh files.
set -eu
cd "$1"

offences=$(
  find include configs cuda -name '*.hpp' -o -name '*.cuh' | sort | while read -r file; do
    sed -n 's/^[[:space:]]*#[[:space:]]*include[[:space:]]*[<"]\([^">]*\)[">].*/\1/p' "$file" | sed "s|^|$file |"
  done | awk '
    # The layer of a path below qlora/, and the folder it lies in.
    function layer(path) {
      if (path ~ /^qlora\/(cpu|cuda)[\/.]/) return 2
      if (path ~ /^qlora\/model\//) return 3
      if (path ~ /^qlora\/(train|generate)\//) return 4
      if (path ~ /^qlora\/(text|io|net|web|eval|dist)\//) return 5
      if (path == "qlora/backend.hpp") return 1
      if (path == "qlora/llama2.hpp" || path ~ /^qlora\/(run|serve)\//) return 6
      if (path ~ /^qlora\/configs\//) return 0
      if (path ~ /^qlora\/[^\/]*\.hpp$/) return 0
      return -1
    }
    function backend(path) { return path ~ /^qlora\/cpu[\/.]/ ? "cpu" : path ~ /^qlora\/cuda[\/.]/ ? "cuda" : "" }
    function sees_cuda(path) {
      return path ~ /^qlora\/cuda.*\.cuh$|^qlora\/cuda\/(attention\/cudnn[a-z_0-9]*|comm\/nccl)\.hpp$/
    }
    function offence(why) { print $1 " includes " $2 ": " why }
    {
      from = $1; sub(/^(include|configs|cuda)\//, "", from)
      mine = layer(from)
      if (mine < 0) { print $1 " lies in no known layer"; next }
      if ($2 ~ /^qlora\//) {
        theirs = layer($2)
        if (theirs < 0) offence("that lies in no known layer")
        else if (theirs > mine) offence("layer " mine " must not reach up to layer " theirs)
        else if (theirs == 2 && (mine == 3 || mine == 4)) offence("network and training code never name a backend")
        else if (mine == 2 && theirs == 2 && backend(from) != backend($2)) offence("no backend names the other")
        else if (sees_cuda($2) && !sees_cuda(from)) offence("files that see CUDA\047s headers stay behind launch.hpp")
        next
      }
      if ($2 ~ /^(unsupported\/)?Eigen\//) { if (backend(from) != "cpu") offence("Eigen stays in cpu/"); next }
      if ($2 ~ /^nlohmann\//) {
        plain = from ~ /^qlora\/run\/(((training|console|serving)_)?options?|steps|progress|device)\.hpp$/
        if (mine < 5 || plain)
          offence("nlohmann/json stays in text/, io/, web/, eval/ and run/, and out of options and requests")
        next
      }
      if ($2 ~ /^xxh(ash|_x86dispatch)\.h$/) {
        if (from != "qlora/io/checksum.hpp") offence("xxHash stays in io/checksum.hpp")
        next
      }
      if ($2 ~ /^openssl\//) { if (from != "qlora/io/sha256.hpp") offence("OpenSSL stays in io/sha256.hpp"); next }
      if ($2 ~ /^curl\//) { if (from !~ /^qlora\/net\//) offence("libcurl stays in net/"); next }
      if ($2 ~ /^libxml\//) { if (from != "qlora/net/xml.hpp") offence("libxml2 stays in net/xml.hpp"); next }
      if ($2 ~ /^gumbo\.h$/) { if (from !~ /^qlora\/web\//) offence("libgumbo stays in web/"); next }
      if ($2 ~ /^toml\+\+\//) {
        if (from != "qlora/run/job_file.hpp") offence("toml++ stays in run/job_file.hpp")
        next
      }
      if ($2 == "mpi.h") { if (from != "qlora/dist/mpi.hpp") offence("MPI stays in dist/mpi.hpp"); next }
      if ($2 == "nccl.h") {
        if (from != "qlora/cuda/comm/nccl.hpp") offence("NCCL stays in cuda/comm/nccl.hpp")
        next
      }
      if ($2 ~ /^boost\//) {
        if (from !~ /^qlora\/serve\/http_(server|connection|reading|writing)\.hpp$/)
          offence("Boost stays in serve/http_server.hpp, http_connection.hpp, http_reading.hpp and http_writing.hpp")
        next
      }
      if ($2 ~ /^sentencepiece/) {
        if (from != "qlora/text/sentencepiece.hpp") offence("sentencepiece stays in text/sentencepiece.hpp")
        next
      }
      if ($2 ~ /^utf8proc/) {
        if (from != "qlora/text/unicode_forms.hpp") offence("utf8proc stays in text/unicode_forms.hpp")
        next
      }
      if ($2 ~ /^pcre2/) { if (from != "qlora/text/regex.hpp") offence("PCRE2 stays in text/regex.hpp"); next }
      if ($2 ~ /^(sys|arpa|netinet)\/[a-z]+\.h$/ ||
          $2 ~ /^(unistd|strings|fcntl|netdb|poll|signal|errno|iconv|dirent|termios|fnmatch)\.h$/) {
        if (mine < 5) offence("system calls stay in text/, io/, net/, web/, eval/ and dist/")
        next
      }
      if ($2 ~ /^(immintrin|cpuid)\.h$/) {
        offence("processor instructions are the compiler\047s and the libraries\047 to choose")
        next
      }
      if ($2 ~ /^(cuda[A-Za-z_0-9]*|cublas[A-Za-z]*|cudnn[a-z_0-9]*|mma|math_constants)\.h$|^(cub|cuda)\//) {
        if (!sees_cuda(from))
          offence("CUDA\047s headers stay in cuda/*/*.cuh, cuda/attention/cudnn*.hpp and cuda/comm/nccl.hpp")
        next
      }
      if ($2 !~ /^[a-z_0-9]+$/) offence("only the standard library, and no headers by relative path, here")
    }'
)
# Each file of launchers is a translation unit of qlora::cuda, and all of them are one in cuda.cuh.
all_launchers=$(cd cuda &&
  grep -rlE --include='*.cuh' --include='*.hpp' '^[^#/]*QLORA_CUDA_LAUNCHER( |$)' qlora/cuda | sort)
for launchers in $all_launchers; do
  grep -qF "#include \"$launchers\"" cuda/qlora/cuda.cuh || offences="$offences
cuda/qlora/cuda.cuh does not include $launchers"
  for other in $all_launchers; do
    ! grep -qF "#include \"$other\"" "cuda/$launchers" || offences="$offences
cuda/$launchers includes $other: both define launchers, which would be defined twice in qlora::cuda"
  done
done
if [ -n "$offences" ]; then
  printf '%s\n' "$offences"
  exit 1
fi
echo "$(find include configs cuda -name '*.hpp' -o -name '*.cuh' | wc -l) headers keep to their layers"
