# article.sh — examples/article.toml with six made-up pages on a loopback web server and small models: the example
# file itself is what runs; only addresses, models, lengths and the output directory are replaced.
#   article.sh PROGRAM MAKE_MODEL SERVE SOURCE_DIR SIGNAL_AT
set -eu
qlora=$1 serve=$3 source=$4
base=$source/examples/models/tiny-base
chat=$source/examples/models/tiny-chat
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null; rm -rf "$work"' EXIT
fail() {
  echo "FAILED: $*" >&2
  for f in out err; do [ ! -f "$work/$f" ] || sed "s/^/$f: /" "$work/$f" >&2; done
  exit 1
}
# expect CODE arguments...: runs the program, keeps its streams in $work/out and $work/err.
expect() {
  code=$1; shift
  got=0
  "$qlora" "$@" >"$work/out" 2>"$work/err" </dev/null || got=$?
  [ "$got" = "$code" ] || fail "exit $got, not $code, of: $*"
}
json() { sed -n "s/^ *\"$2\": \([^,]*\),*\$/\1/p" "$1" | head -1; }
same() { [ "$2" = "$3" ] || fail "$1: $2, not $3"; }

# The file as it is: what the article's notebook and script say.
expect 0 run --show "$source/examples/article.toml"
cp "$work/out" "$work/check.json"
for setting in "seq 2048" "rank 64" "alpha 16.0" "dropout 0.1" "lr 0.0002" 'schedule "linear"' "warmup 0.0" \
  "epochs 20" \
  "batch 2" "accumulate 1" "weight_decay 0.0" "max_grad_norm 1.0" "seed 42" "max_new_tokens 200" "top_p 0.9" \
  "temperature 0.01" "shard_bytes 2000000000"; do
  same "${setting% *}" "$(json "$work/check.json" "${setting% *}")" "${setting#* }"
done
same "the parts that follow the article" "$(grep -c '"compat": "article"' "$work/check.json")" 2

python3 "$source/tests/e2e/article_cloud.py" "$source" "$work/check.json" || fail "another job on SageMaker"

# Each address becomes one of the example pages on the loopback, under the last part of its path.
mkdir "$work/site"
set -- "$source"/examples/pages/*.html
for slug in $(sed -n 's|^  "https://aws.amazon.com/blogs/.*/\([^/]*\)/",$|\1|p' "$source/examples/article.toml"); do
  cp "$1" "$work/site/$slug.html"
  shift
done
same "addresses" "$(ls "$work/site" | wc -l)" 6
"$serve" "$work/site" >"$work/port" &
server=$!
until [ -s "$work/port" ]; do kill -0 $server || fail "no web server"; sleep 0.05; done
url=http://127.0.0.1:$(cat "$work/port")
seq=160 epochs=2
sed -e "s|\"https://aws.amazon.com/blogs/.*/\([^/]*\)/\"|\"$url/\1.html\"|" -e '/^\[data\]$/a allow_private = true' \
  -e "s|^path = \".*-13b-hf\"|path = \"$base\"|" -e "s|^path = \".*-13b-chat-hf\"|path = \"$chat\"|" \
  -e "s|^questions = \"|&$source/examples/|" -e "s|^seq = .*|seq = $seq|" -e "s|^epochs = .*|epochs = $epochs|" \
  -e "s|^dir = .*|dir = \"$work/article\"|" "$source/examples/article.toml" >"$work/job.toml"
! grep -v '^#' "$work/job.toml" | grep -E 'aws.amazon|13b' || fail "not all was replaced"
expect 0 run "$work/job.toml"
out=$work/article

# Six pages, once for both models, with their menus and without double spaces.
same pages "$(wc -l <"$out/pages.jsonl")" 6
same "sources of pages" "$(grep -c "\"source\":\"$url/" "$out/pages.jsonl")" 6
for page in $(grep -l 'Account settings' "$work"/site/*.html); do
  expect 0 fetch --allow-private "$url/${page##*/}" -o "$work/main.jsonl"
  ! grep -q 'Account settings' "$work/main.jsonl" ||
  fail "the main text has a menu: other words must tell the forms apart"
  grep "${page##*/}" "$out/pages.jsonl" | grep -q 'Account settings' || fail "a page without its menu"
  menus=yes
done
same "pages with a menu" "${menus:-no}" yes
! grep -q '  ' "$out/pages.jsonl" || fail "a double space was kept"

for model in base chat; do
  eval "dir=\$$model"
  # The library's own form frames each page with BOS and EOS and loses nothing: that the article's has six tokens less,
  # is one stream, and drops what does not fill a window, follows by arithmetic.
  expect 0 pack "$out/pages.jsonl" -m "$dir" -o "$work/framed" --seq "$seq" --json "$work/framed.json"
  stream=$(($(json "$work/framed.json" tokens) - 6))
  windows=$((stream / seq))
  manifest=$work/manifest.json # with a line for each key
  sed -e 's/[{,]/&\n/g' -e 's/}/\n}/g' "$out/$model/qlora/data/manifest.json" | sed 's/":/": /' >"$manifest"
  [ "$((stream % seq))" != 0 ] || fail "nothing would be dropped: the test needs another length"
  same "form" "$(json "$manifest" form)" '"article"'
  same "windows of $model" "$(json "$manifest" windows)" "$windows"
  same "tokens" "$(json "$manifest" tokens)" $((windows * seq))
  same "labels: all but the first of a window" "$(json "$manifest" labelled)" $((windows * (seq - 1)))
  same "padding" "$(json "$manifest" padding)" 0
  same "dropped" "$(json "$manifest" dropped_tokens)" $((stream % seq))
  expect 0 data show "$out/$model/qlora/data" -m "$dir" -n "$windows"
  same "begin marks" "$(grep -o '<s>' "$work/out" | wc -l)" 6
  ! grep -q '</s>' "$work/out" || fail "an end mark in the article's form"

  # Trained and merged: two windows a step, the last step of an epoch has what is left.
  same "steps" "$(wc -l <"$out/$model/qlora/train/metrics.jsonl")" $((epochs * ((windows + 1) / 2)))
  expect 0 info "$out/$model/qlora/train/adapter"
  expect 0 info "$out/$model/merged"
  ! cmp -s "$out/$model/merged/model.safetensors" "$dir/model.safetensors" || fail "merging changed nothing"
  same "answers of one model" "$(grep -c '"answers": {' "$out/$model/comparison.json")" 2
done

# Both models before and after, under each of the two questions.
for column in "base nf4" "base qlora" "base merged" "chat nf4" "chat qlora" "chat merged"; do
  same "answers of $column" "$(grep -c "^ *\"$column\": \"" "$out/report.json")" 2
  same "columns of $column" "$(grep -o "<h4[^>]*>$column</h4>" "$out/report.html" | wc -l)" 2
done
for form in completion chat; do
  question=$(sed -n "s/.*\"form\":\"$form\",\"prompt\":\"\(.*\)\"}/\1/p" "$source/examples/article/questions.jsonl")
  grep -qF "\"prompt\": \"$question\"" "$out/report.json" || fail "no $form in report.json"
  grep -qF "$question" "$out/report.html" || fail "no $form in report.html"
done

# Again: one step of fetching and four of each model, all skipped.
cp "$out/report.json" "$work/first.json"
expect 0 run "$work/job.toml"
same "skipped steps" "$(grep -c 'unchanged, skipped' "$work/err")" 9
cmp "$work/first.json" "$out/report.json" || fail "a run that did nothing changed the report"

# One process serves the four models: two bases, each with its adapter.
if "$qlora" --version | grep -q '^Boost: yes'; then
  python3 -B "$source/tests/e2e/job_served.py" "$qlora" "$out" "$base" "$chat" || fail "the job is not served"
fi

# Probes, too, are scored for each model under its name; nothing but the comparisons is done again.
head -2 "$source/examples/quickstart/knowledge.jsonl" >"$work/probes.jsonl"
sed -i "/^questions = /a probes = [\"$work/probes.jsonl\"]" "$work/job.toml"
expect 0 run "$work/job.toml"
same "skipped steps" "$(grep -c 'unchanged, skipped' "$work/err")" 7
for variant in w16 nf4 qlora merged; do
  for model in base chat; do
    same "scores of $model $variant" "$(sed -n '/^  "variants": {/,/^  "seconds": {/p' "$out/report.json" |
      grep -c "^ *\"$model $variant\": {")" 1
  done
done
echo "all is well"
