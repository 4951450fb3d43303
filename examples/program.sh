# Sourced by the scripts of this folder, from the repository's root: build_program TARGET... installs what is missing
# (Debian 12, as root or with sudo), builds the program and the targets, and sets $program and $build.
. cmake/packages.sh

build=build-release
build_program() {
  need_packages g++ cmake ninja-build pkg-config libeigen3-dev nlohmann-json3-dev libxxhash-dev libssl-dev \
    libsentencepiece-dev libpcre2-dev libutf8proc-dev libedit-dev libcli11-dev libtomlplusplus-dev \
    libcurl4-openssl-dev libgumbo-dev libxml2-dev libboost1.81-dev
  # An existing build folder keeps its generator and CUDA setting. A new one uses Ninja, and compiles kernels, which
  # takes minutes, only if there is a GPU.
  new=
  if [ ! -f $build/CMakeCache.txt ]; then
    new=-GNinja
    nvidia-smi >/dev/null 2>&1 || new="$new -DQLORA_CUDA=OFF"
  fi
  # shellcheck disable=SC2086
  cmake --preset release $new -DQLORA_BUILD_BENCH=OFF
  cmake --build --preset release --target qlora_program "$@" --parallel "$(nproc)"
  program=$(find $build -name qlora -type f -perm -u+x | head -n 1)
}
