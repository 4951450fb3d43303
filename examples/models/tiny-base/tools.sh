# For make.sh and make_chat.sh, which set `root`: builds the tools, writes the world, and defines
#   train_model TOKENIZER_CONFIG OUT options...
build=${BUILD:-$root/build/release}
work=$root/build/tiny-base-work
. "$root/cmake/packages.sh"
need_packages g++ make cmake pkg-config libeigen3-dev nlohmann-json3-dev libsentencepiece-dev
cmake -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=Release -DQLORA_BUILD_TESTS=OFF -DQLORA_BUILD_BENCH=OFF \
  -DQLORA_BUILD_PROGRAM=OFF
cmake --build "$build" --target make_world train_model --parallel "$(nproc)"
bin=$(dirname "$(find "$build" -name train_model -type f -perm -u+x | head -n 1)")
"$bin/make_world" "$work/world" --documents 136000

train_model() {
  config=$1 out=$2
  shift 2
  tokenizer=$work/tokenizer-$(basename "$out")
  mkdir -p "$tokenizer"
  cp "$root/examples/models/tiny-chat/tokenizer.model" "$root/examples/models/tiny-chat/special_tokens_map.json" \
    "$config" "$tokenizer/"
  rm -rf "$out"
  "$bin/train_model" "$work/world/corpus.jsonl" "$tokenizer/tokenizer.model" \
    "$root/examples/models/tiny-chat/config.json" "$out" --checkpoints "$work/checkpoints-$(basename "$out")" "$@"
  echo "the model is in $out"
}
