#!/bin/sh
# The quickstart: sh examples/quickstart.sh
# On a fresh Debian 12 machine: installs what is missing, builds the program, and teaches the small chat model that comes
# with it ten web pages with QLoRA: pages -> text -> windows -> NF4 -> adapter -> merged model -> base and tuned compared.
set -eu
cd "$(dirname "$0")/.."
. cmake/packages.sh
need_packages g++ cmake ninja-build pkg-config libeigen3-dev nlohmann-json3-dev libsentencepiece-dev libcli11-dev \
  libtomlplusplus-dev libcurl4-openssl-dev libxml2-dev

build=build-release
# A build folder remembers its generator and its CUDA; a new one gets Ninja, and kernels only where a GPU can run them:
# they take minutes to compile.
if [ ! -f $build/CMakeCache.txt ]; then
  new=-GNinja
  nvidia-smi >/dev/null 2>&1 || new="$new -DQLORA_CUDA=OFF"
fi
# shellcheck disable=SC2086
cmake --preset release ${new:-} -DQLORA_BUILD_BENCH=OFF -DQLORA_BUILD_EXAMPLES=OFF
cmake --build --preset release --target qlora_program --parallel "$(nproc)"
program=$(find $build -name qlora -type f -perm -u+x | head -n 1)
exec "$program" run examples/quickstart.toml "$@"
