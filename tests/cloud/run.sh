#!/bin/sh
# The cloud, as far as it can be had on one machine: sh tests/cloud/run.sh
#   sagemaker.py   the requests of examples/sagemaker against botocore; submit.sh with the AWS CLI against moto
# Needs the network for packages.
set -eu
cd "$(dirname "$0")"
python3 sagemaker.py
