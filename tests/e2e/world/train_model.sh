# train_model.sh — two steps of the small model's training: from random weights, from another model's weights, on
# pages or chats alone. At a learning rate too small to change a weight, what is written is the model that it began
# from: the weights that a first such run writes are those that a second one, from the first one's, writes again.
#   train_model.sh MAKE_WORLD TRAIN_MODEL SOURCE_DIR
set -eu
make_world=$1 train_model=$2 source=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "FAILED: $*" >&2; [ ! -f "$work/err" ] || sed "s/^/err: /" "$work/err" >&2; exit 1; }
tiny=$source/examples/models/tiny-chat
# expect CODE OUT options...: two steps into $work/OUT.
expect() {
  code=$1 out=$2; shift 2
  got=0
  "$train_model" "$work/world/corpus.jsonl" "$tiny/tokenizer.model" "$tiny/config.json" "$work/$out" --steps 2 \
    "$@" 2>"$work/err" || got=$?
  [ "$got" = "$code" ] || fail "exit $got, not $code, of: $out $*"
}

"$make_world" "$work/world" --documents 300
pages=$(grep -c '^{"text":' "$work/world/corpus.jsonl")
chats=$(grep -c '^{"messages":' "$work/world/corpus.jsonl")
[ $((pages + chats)) = 300 ] || fail "$pages pages and $chats chats"

expect 0 random --lr 1e-12
expect 0 same --from "$tiny" --lr 1e-12
grep -q "^300 documents" "$work/err" || fail "300 documents were to be read"
expect 0 same_again --from "$work/same" --lr 1e-12
cmp "$work/same/model.safetensors" "$work/same_again/model.safetensors" || fail "weights changed on the way"
! cmp -s "$work/same/model.safetensors" "$work/random/model.safetensors" || fail "the weights are random ones"
cmp "$work/same/tokenizer.model" "$tiny/tokenizer.model" || fail "another tokenizer"
expect 0 pages --from "$tiny" --kind pages
grep -q "^$pages documents" "$work/err" || fail "$pages pages were to be read"
! cmp -s "$work/pages/model.safetensors" "$work/same/model.safetensors" || fail "nothing was learned"
expect 0 chats --from "$tiny" --kind chats
grep -q "^$chats documents" "$work/err" || fail "$chats chats were to be read"

# Random weights and the order of the windows are the seed's.
expect 0 one --seed 3
expect 0 again --seed 3
expect 0 other --seed 4
cmp "$work/one/model.safetensors" "$work/again/model.safetensors" || fail "one seed, two models"
! cmp -s "$work/one/model.safetensors" "$work/other/model.safetensors" || fail "two seeds, one model"

expect 2 none --kind talks
grep -q 'all, pages or chats, not "talks"' "$work/err" || fail "the kinds are not named"
expect 2 none --lr fast
expect 2 none --steps 1e3
expect 3 none --from "$work/nowhere"
echo passed
