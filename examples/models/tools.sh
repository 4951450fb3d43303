# For the make.sh of each small model, which set `root`: builds the tools, writes the world, makes the tokenizer, which
# must be the shipped one, and defines
#   train_model NAME options...   trains examples/models/NAME again, into build/NAME
build=${BUILD:-$root/build/release}
work=$root/build/small-models
. "$root/cmake/packages.sh"
need_packages g++ make cmake pkg-config libeigen3-dev nlohmann-json3-dev \
  libsentencepiece-dev libpcre2-dev libutf8proc-dev
cmake -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=Release -DQLORA_BUILD_TESTS=OFF -DQLORA_BUILD_BENCH=OFF \
  -DQLORA_BUILD_PROGRAM=OFF
cmake --build "$build" --target make_world train_tokenizer train_model --parallel "$(nproc)"
bin=$(dirname "$(find "$build" -name train_model -type f -perm -u+x | head -n 1)")
"$bin/make_world" "$work/world" --documents 136000
"$bin/train_tokenizer" "$work/world/tokenizer.txt" "$work/tokenizer.model"

train_model() {
  name=$1
  shift
  shipped=$root/examples/models/$name
  cmp "$work/tokenizer.model" "$shipped/tokenizer.model"
  mkdir -p "$work/$name"
  cp "$work/tokenizer.model" "$shipped/special_tokens_map.json" "$shipped/tokenizer_config.json" "$work/$name/"
  rm -rf "$root/build/$name"
  "$bin/train_model" "$work/world/corpus.jsonl" "$work/$name/tokenizer.model" \
    "$shipped/config.json" "$root/build/$name" \
    --checkpoints "$work/checkpoints-$name" "$@"
  echo "the model is in $root/build/$name"
}
