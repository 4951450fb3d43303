#!/bin/sh
# Makes .peers/ in the repository's root (git ignores it) from a bitsandbytes wheel: its Python files and metadata, the
# library for CUDA 13.0 and the one for CPUs (5 MB instead of 125), for a machine that has PyTorch but not bitsandbytes.
#   python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
#     --platform manylinux_2_24_x86_64 bitsandbytes
#   sh bench/peers/trim_bitsandbytes.sh bitsandbytes-*.whl
#   PYTHONPATH=.peers python3 bench/peers/transformers_qlora.py
set -eu
if [ $# -ne 1 ] || [ ! -f "$1" ]; then
  echo "usage: sh $0 WHEEL" >&2
  exit 2
fi
root=$(cd "$(dirname "$0")/../.." && pwd)
rm -rf "$root/.peers"
mkdir "$root/.peers"
# Python's unzip: not every machine has the program.
python3 -m zipfile -e "$1" "$root/.peers"
for library in "$root"/.peers/bitsandbytes/libbitsandbytes_*; do
  case $library in
    *_cuda130.so | *_cpu.so) ;;
    *) rm "$library" ;;
  esac
done
if [ ! -f "$root/.peers/bitsandbytes/libbitsandbytes_cuda130.so" ]; then
  echo "$1 holds no library for CUDA 13.0" >&2
  exit 1
fi
du -sh "$root/.peers"
