#!/bin/sh
# Makes the model of this directory again, from nothing: world, tokenizer, weights. About an hour on two cores; it can be
# stopped and goes on where it was. The result is left in build/tiny-chat.
set -eu
root=$(cd "$(dirname "$0")/../../.." && pwd)
build=${BUILD:-$root/build/release}
work=$root/build/tiny-chat-work
. "$root/cmake/packages.sh"
need_packages g++ make cmake pkg-config libeigen3-dev nlohmann-json3-dev libsentencepiece-dev
cmake -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=Release -DQLORA_BUILD_TESTS=OFF -DQLORA_BUILD_BENCH=OFF \
  -DQLORA_BUILD_PROGRAM=OFF
cmake --build "$build" --target make_world train_tokenizer train_model --parallel "$(nproc)"
bin=$(dirname "$(find "$build" -name train_model -type f -perm -u+x | head -n 1)")
mkdir -p "$work/tokenizer"
"$bin/make_world" "$work/world" --documents 136000
"$bin/train_tokenizer" "$work/world/tokenizer.txt" "$work/tokenizer/tokenizer.model"
cmp "$work/tokenizer/tokenizer.model" "$root/examples/models/tiny-chat/tokenizer.model"
cp "$root/examples/models/tiny-chat/tokenizer_config.json" "$root/examples/models/tiny-chat/special_tokens_map.json" \
  "$work/tokenizer/"
rm -rf "$root/build/tiny-chat"
"$bin/train_model" "$work/world/corpus.jsonl" "$work/tokenizer/tokenizer.model" \
  "$root/examples/models/tiny-chat/config.json" "$root/build/tiny-chat" --checkpoints "$work/checkpoints" "$@"
echo "the model is in $root/build/tiny-chat"
