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
# A build folder remembers its generator; a new one gets Ninja.
[ -f $build/CMakeCache.txt ] || generator=-GNinja
# shellcheck disable=SC2086
cmake --preset release ${generator:-} -DQLORA_BUILD_BENCH=OFF -DQLORA_BUILD_EXAMPLES=OFF
cmake --build --preset release --target qlora_program --parallel "$(nproc)"
program=$(find $build -name qlora -type f -perm -u+x | head -n 1)
exec "$program" run examples/quickstart.toml "$@"
