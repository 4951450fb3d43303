#!/bin/sh
# Asks `qlora serve` with the clients that people have: sh tests/interop/serving.sh
# Makes two virtual environments in build-interop (needs python3 with venv, and 1.5 GB of disk), builds the program with
# the preset "dev", trains an adapter for tiny-chat, and runs tests/interop/serving/clients.py in each. Writes the
# section about clients of docs/interop.md. Not part of the tests of a commit: it takes minutes and fetches packages.
#
#   QLORA_PROGRAM    a built program; default: builds it
#   QLORA_SEED       of schemathesis, to repeat; default: a new one
#   QLORA_EXAMPLES   bodies that schemathesis draws for a route; default 100
set -eu
cd "$(dirname "$0")/../.."
say() { printf '\n== %s\n' "$*"; }
folder=build-interop
mkdir -p $folder
program=${QLORA_PROGRAM:-}
if [ -z "$program" ]; then
  # shellcheck source=cmake/packages.sh
  . cmake/packages.sh
  need_packages g++ cmake ninja-build pkg-config libeigen3-dev nlohmann-json3-dev libxxhash-dev libssl-dev \
    libsentencepiece-dev libpcre2-dev libutf8proc-dev libcli11-dev libboost1.81-dev
  say "build"
  new=  # an existing build folder keeps its generator
  [ -f build-dev/CMakeCache.txt ] || new=-GNinja
  # shellcheck disable=SC2086
  cmake --preset dev $new >$folder/configure.log
  cmake --build --preset dev --target qlora_program --parallel "$(nproc)" >$folder/build.log
  program=$(find build-dev -name qlora -type f -perm -u+x | head -n 1)
fi

say "an adapter"
model=examples/models/tiny-chat
work=$folder/serving
rm -rf $work
mkdir $work
"$program" pack -q examples/quickstart/text_completion.jsonl -m $model -o $work/data --seq 128
"$program" train -q -m $model -d $work/data -o $work/run --rank 8 --alpha 16 --lr 2e-3 --epochs 2 --dropout 0

rows=
failed=
# ask NAME "MODULES" PACKAGES...
ask() {
  name=$1
  modules=$2
  shift 2
  say "$name: $*"
  python=$folder/$name/bin/python
  [ -x "$python" ] || python3 -m venv "$folder/$name"
  "$python" -m pip install --quiet "$@" numpy safetensors sentencepiece
  rm -f "$folder/$name.json"
  # shellcheck disable=SC2086
  TQDM_DISABLE=1 TRANSFORMERS_VERBOSITY=error "$python" -B tests/interop/serving/clients.py "$program" \
    $work/run/adapter "$folder/$name.json" $modules || failed="$failed $name"
  rows="$rows $folder/$name.json"
}
# text-generation needs a huggingface_hub before 1.0.
ask clients "openai_client hugging_face langchain_client sagemaker" openai==3.57.0 text-generation==0.7.0 \
  huggingface_hub==0.36.2 langchain-openai==1.7.4 boto3==1.44.8
ask evaluation "hugging_face lm_eval_client described" openai==3.57.0 huggingface_hub==2.4.0 "lm-eval[api]==0.4.13" \
  transformers==5.24.0 protobuf schemathesis==4.32.5
{
  sed '/^## Clients of /,$d' docs/interop.md
  # shellcheck disable=SC2086
  "$python" -B tests/interop/serving/clients.py --table $rows
} >$work/interop.md
mv $work/interop.md docs/interop.md
[ -z "$failed" ] || {
  echo "something is not as it should be in:$failed" >&2
  exit 1
}
say "all as it should be; the table is in docs/interop.md"
