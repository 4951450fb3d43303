#!/bin/sh
# The cloud, as far as it can be had on one machine: sh tests/cloud/run.sh
#   sagemaker.py   the requests of examples/sagemaker against botocore; submit.sh with the AWS CLI against moto
#   container.sh   the Dockerfile's steps, and the container's train and serve, in Debians of debootstrap; as root
#   s3.sh          S3 on stores that check signatures: faults, boto3, the speed of `aws s3 cp`
# Needs the network for packages, 10 GB of disk and the time of a build.
set -eu
cd "$(dirname "$0")"
python3 sagemaker.py
sh container.sh "$@"
sh s3.sh
