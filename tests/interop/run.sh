#!/bin/sh
# Compares the library with the Python packages it exchanges files with: sh tests/interop/run.sh
# Makes a virtual environment for each generation of transformers in build-interop (needs python3 with venv and some
# 12 GB of disk, since torch comes with CUDA's libraries), builds the program interop_probe with the preset "dev", and
# runs interop.py in each with a new random seed. Writes docs/interop.md. Not part of the tests of a commit: minutes.
#
#   QLORA_LLAMA2_TOKENIZER   LLaMA-2's tokenizer.model, to compare with it as well
#   QLORA_SEED               a seed to repeat; default: a new one for each environment
#   QLORA_SCALE              of the numbers of texts, conversations and models; default 1
set -eu
cd "$(dirname "$0")/../.."
# shellcheck source=cmake/packages.sh
. cmake/packages.sh
need_packages g++ cmake ninja-build pkg-config libeigen3-dev nlohmann-json3-dev libxxhash-dev libssl-dev doctest-dev \
  libsentencepiece-dev libpcre2-dev libutf8proc-dev

say() { printf '\n== %s\n' "$*"; }
folder=build-interop
mkdir -p $folder
# An existing build folder keeps its generator.
new=
[ -f build-dev/CMakeCache.txt ] || new=-GNinja
say "build"
# shellcheck disable=SC2086
cmake --preset dev $new >$folder/configure.log
cmake --build --preset dev --target interop_probe --parallel "$(nproc)" >$folder/build.log
probe=$(find build-dev -name interop_probe -type f -perm -u+x | head -n 1)

common="torch==2.15.0 peft==0.21.2 bitsandbytes==0.50.2 gguf==0.19.0"
common="$common accelerate safetensors sentencepiece protobuf jinja2"
compared=
failed=
while read -r name packages; do
  say "$name: $packages"
  python=$folder/$name/bin/python
  [ -x "$python" ] || python3 -m venv "$folder/$name"
  # shellcheck disable=SC2086
  "$python" -m pip install --quiet $packages $common </dev/null
  rm -f "$folder/$name.json"
  HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1 \
    "$python" tests/interop/interop.py "$probe" "$folder/$name.json" --scale "${QLORA_SCALE:-1}" \
    ${QLORA_SEED:+--seed "$QLORA_SEED"} </dev/null || failed="$failed $name"
  compared="$compared $folder/$name.json"
done <<END
transformers4 transformers==4.57.6 tokenizers==0.22.2
transformers5 transformers==5.24.0 tokenizers==0.23.3
END
# shellcheck disable=SC2086
"$python" tests/interop/interop.py --table $compared >$folder/interop.md
# The sections that files.sh and serving.sh write stay.
{ echo && sed -n '/^## Rows and models/,$p' docs/interop.md; } >>$folder/interop.md
mv $folder/interop.md docs/interop.md
[ -z "$failed" ] || {
  echo "something differs in:$failed" >&2
  exit 1
}
say "all equal; the table is docs/interop.md"
