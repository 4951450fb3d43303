#!/bin/sh
# Compares data sets and downloaded models with the Python packages that read and write the same files:
# sh tests/interop/files.sh. Makes a virtual environment in build-interop (needs python3 with venv and 0.7 GB of disk),
# builds the program with the preset "dev" and runs rows.py and hub.py with a new random seed. Writes the section about
# rows and models of docs/interop.md. Not part of the tests of a commit: it fetches packages.
#
#   QLORA_PROGRAM   a built program; default: builds it
#   QLORA_SEED      a seed to repeat; default: a new one
set -eu
cd "$(dirname "$0")/../.."
folder=build-interop
mkdir -p $folder
program=${QLORA_PROGRAM:-}
if [ -z "$program" ]; then
  new=  # an existing build folder keeps its generator
  [ -f build-dev/CMakeCache.txt ] || new=-GNinja
  # shellcheck disable=SC2086
  cmake --preset dev $new >$folder/configure.log
  cmake --build --preset dev --target qlora_program --parallel "$(nproc)" >$folder/build.log
  program=$(find build-dev -name qlora -type f -perm -u+x | head -n 1)
fi
python=$folder/files/bin/python
[ -x "$python" ] || python3 -m venv $folder/files
"$python" -m pip install --quiet pyarrow==26.0.1 datasets==5.2.0 huggingface_hub==2.4.0

failed=
# compare NAME ARGUMENTS...: the last line that it prints has the versions
compare() {
  name=$1
  shift
  "$python" -B tests/interop/"$name".py "$program" "$@" >$folder/"$name".log || failed="$failed $name"
  cat $folder/"$name".log
}
# shellcheck disable=SC2086
compare rows tests/data/small_tokenizer.model ${QLORA_SEED:-}
compare hub
row() { # row NAME WHAT
  bad=$(grep -c '^FAIL' $folder/"$1".log || true)
  echo "| $2 | $(tail -n 1 $folder/"$1".log) | $(grep -c '^ok\|^FAIL' $folder/"$1".log) | $bad differ |"
}
{
  sed '/^## Rows and models/,$d' docs/interop.md | sed '/^## Clients of /,$d'
  echo '## Rows and models'
  echo
  echo 'Written by `sh tests/interop/files.sh`. Rows are random, of random types, lengths and batches.'
  echo
  echo '| compared | with | n | result |'
  echo '|---|---|---|---|'
  row rows '`qlora data import` and `export`: Arrow streams and folders, JSON Lines'
  row hub '`qlora login` and `pull`: token, cache and files, in both directions'
  echo
  sed -n '/^## Clients of /,$p' docs/interop.md
} >$folder/interop.md
mv $folder/interop.md docs/interop.md
[ -z "$failed" ] || {
  echo "something differs in:$failed" >&2
  exit 1
}
