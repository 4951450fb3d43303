#!/bin/sh
# The container of examples/sagemaker/Dockerfile, built and used without Docker: its steps are taken in Debians that
# debootstrap makes, as root. Then `train` and `serve` run there as SageMaker starts them, with nothing but a path below
# /opt/ml: a training is interrupted by SIGTERM and goes on in a second container, and boto3 asks the endpoint.
#   sh tests/cloud/container.sh [WORK]
# WORK keeps the folders, about 2 GB; default: a new one in /tmp, which goes again. Takes the time of a build.
set -eu
source=$(cd "$(dirname "$0")/../.." && pwd)
. "$source/cmake/packages.sh"
need_packages debootstrap python3 python3-venv git curl
work=${1:-}
if [ -z "$work" ]; then
  work=$(mktemp -d)
  trap 'rm -rf --one-file-system "$work"' EXIT
fi
mkdir -p "$work"
python3 -B "$source/tests/cloud/dockerfile.py" "$source/examples/sagemaker/Dockerfile" "$source" "$work" \
  >"$work/image.json"
[ -x "$work/venv/bin/python" ] || python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install boto3==1.44.8 awscli==1.46.3
"$work/venv/bin/python" -B "$source/tests/cloud/in_container.py" "$work/image.json" "$source" "$work"
