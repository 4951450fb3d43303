# job.sh — the whole job on a loopback web server and a model of random weights: each verb by itself, an interrupted
# training that resumes to the same adapter, and `run` with two arms, skipping what is done.
#   job.sh PROGRAM MAKE_MODEL SERVE SOURCE_DIR SIGNAL_AT
set -eu
qlora=$1 make_model=$2 serve=$3 source=$4 signal_at=$5
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
# at TEXT SIGNAL command...: runs a command, whose program gets the signal when it writes the text. Nothing here waits
# for a time: the tests are the same on a slow machine.
at() {
  LD_PRELOAD=$signal_at SIGNAL_AT_TEXT=$1 SIGNAL_AT=$2
  export LD_PRELOAD SIGNAL_AT_TEXT SIGNAL_AT
  shift 2
  "$@"
  unset LD_PRELOAD SIGNAL_AT_TEXT SIGNAL_AT
}
HUP=1 INT=2 KILL=9 STOP=19
json() { sed -n "s/^ *\"$2\": \([^,]*\),*\$/\1/p" "$1" | head -1; }

mkdir "$work/site"
for page in blog-daxyard press-hulbix shop-tevkess; do cp "$source/examples/pages/$page.html" "$work/site/"; done
printf '<html><body><p>%s</p></body></html>' "A page at the root of this small site says a few words." \
  >"$work/site/index.html"
"$serve" "$work/site" >"$work/port" &
server=$!
until [ -s "$work/port" ]; do kill -0 $server || fail "no web server"; sleep 0.05; done
url=http://127.0.0.1:$(cat "$work/port")
"$make_model" "$source/examples/models/tiny-chat" "$work/model"

# fetch: private addresses only when asked for; a bad page does not fail the rest; all bad is the network's fault.
expect 5 fetch "$url/shop-tevkess.html" -o "$work/none.jsonl"
[ ! -e "$work/none.jsonl" ] || fail "a failed fetch wrote a file"
expect 0 fetch --allow-private "$url/blog-daxyard.html" "$url/missing" "$url/moved" "$url/binary" \
  "$url/shop-tevkess.html" -o "$work/docs.jsonl" --json "$work/fetch.json"
[ "$(wc -l <"$work/docs.jsonl")" = 3 ] || fail "3 documents were to come"
grep -q "3 documents in .*, 2 sources left out" "$work/out" || fail "what was left out is not said"
grep -q "few words" "$work/docs.jsonl" || fail "the redirect was not followed"
! grep -q "<p>" "$work/docs.jsonl" || fail "markup in the text"
expect 0 fetch --allow-private --compat article "$url/blog-daxyard.html" -o "$work/article.jsonl"

tiny=$source/examples/models/tiny-chat
# pack and data show
expect 0 pack "$work/docs.jsonl" -m "$work/model" -o "$work/data" --seq 64 --json "$work/pack.json"
[ "$(json "$work/pack.json" dropped_tokens)" = 0 ] || fail "tokens were dropped"
expect 0 data show "$work/data" -m "$work/model" -n 1
grep -q "^-- document 0 $url/blog-daxyard.html" "$work/out" || fail "data show names no source"
grep -q "‹<s>›" "$work/out" || fail "the first token is marked as not learned"
expect 0 data show "$work/data" -m "$work/model" --color always
grep -q "$(printf '\033')" "$work/out" || fail "no colours when asked for"
expect 0 info "$work/data"

# info, plan, and the model itself
expect 0 info "$work/model"
grep -Eq "^parameters +3737856" "$work/out" || fail "parameter count"
expect 0 plan "$work/model" --seq 64
expect 0 generate "$work/model" --prompt "The price" --max-new-tokens 4 --temperature 0
expect 0 chat "$work/model" --prompt "Hello" --max-new-tokens 4
expect 0 generate "$work/model" --base full --prompt "The price" --max-new-tokens 4

# A vocabulary that is padded beyond its tokenizer trains on what that tokenizer packed, and so does the merged model,
# which has tokenizer.json beside it.
mkdir "$work/like"
cp "$tiny"/* "$work/like/"
sed 's/"vocab_size": [0-9]*/"vocab_size": 1600/' "$tiny/config.json" >"$work/like/config.json"
"$make_model" "$work/like" "$work/padded"
expect 0 train -m "$work/padded" -d "$work/data" -o "$work/on_padded" --rank 4 --epochs 1
expect 0 merge -m "$work/padded" -a "$work/on_padded/adapter" -o "$work/padded_merged"
[ -f "$work/padded_merged/tokenizer.json" ] || fail "no tokenizer.json in a merged model"
expect 0 train -m "$work/padded_merged" -d "$work/data" -o "$work/on_merged" --rank 4 --epochs 1

# What a model writes of itself: the same seed the same documents, which can be replayed; none that has no end.
expect 0 recall "$tiny" -o "$work/recall.jsonl" -n 12 --seed 3 --json "$work/recall.json"
expect 0 recall "$tiny" -o "$work/again.jsonl" -n 12 --seed 3
expect 0 recall "$tiny" -o "$work/other.jsonl" -n 12 --seed 4
cmp "$work/recall.jsonl" "$work/again.jsonl" || fail "one seed, two recollections"
! cmp -s "$work/recall.jsonl" "$work/other.jsonl" || fail "two seeds, one recollection"
lines=$(wc -l <"$work/recall.jsonl")
grep -q "\"documents\": $lines,\$" "$work/recall.json" || fail "$lines documents were counted otherwise"
[ "$lines" -ge 6 ] || fail "the small model ends its documents, mostly"
expect 3 recall "$tiny" -o "$work/none.jsonl" -n 3 --max-new-tokens 1
[ ! -e "$work/none.jsonl" ] || fail "a file without documents"
expect 2 recall "$tiny" -o "$work/none.txt"

# A chat that is interrupted while it answers leaves the turns that it has.
yes "Who makes the Kesfort, and what does it cost in the shop at Eastlake?" 2>"$work/err" | head -40 >"$work/turns"
got=0
LD_PRELOAD=$signal_at SIGNAL_AT_TEXT="the context is full" SIGNAL_AT=$INT "$qlora" chat "$tiny" --temperature 0 \
  --max-new-tokens 8 --json "$work/chat.json" <"$work/turns" >"$work/out" 2>"$work/err" || got=$?
[ "$got" = 6 ] || fail "exit $got of an interrupted chat"
[ "$(grep -c '"user": "Who' "$work/chat.json")" = "$(wc -l <"$work/out")" ] || fail "the turns are not in the JSON"

# train: ten steps through, against ten steps that are interrupted once and killed once; the adapters are equal
steps="--rank 4 --alpha 8 --lr 1e-3 --batch 1 --epochs 40 --checkpoint-every 5 --threads 2"
expect 0 train -m "$work/model" -d "$work/data" -o "$work/through" $steps --json "$work/train.json"
total=$(json "$work/train.json" steps)
[ "$(wc -l <"$work/through/metrics.jsonl")" = "$total" ] || fail "metrics.jsonl has not one line a step"
grep -q '"global_step": '"$total" "$work/through/trainer_state.json" || fail "trainer_state.json"
at '{"step":3,' $INT expect 6 train -m "$work/model" -d "$work/data" -o "$work/parts" $steps
[ -d "$work/parts/checkpoints/checkpoint-3" ] || fail "the step was not saved"
# The signal of a closed terminal does the same, whether or not these tests run under nohup.
printf '#!/bin/sh\nexec env --default-signal=HUP "%s" "$@"\n' "$qlora" >"$work/hup"
chmod +x "$work/hup"
program=$qlora qlora=$work/hup
at '{"step":7,' $HUP expect 6 train -m "$work/model" -d "$work/data" -o "$work/parts" $steps
qlora=$program
[ -d "$work/parts/checkpoints/checkpoint-7" ] || fail "the step before SIGHUP was not saved"
at '{"step":11,' $KILL expect 137 train -m "$work/model" -d "$work/data" -o "$work/parts" $steps
expect 2 train -m "$work/model" -d "$work/data" -o "$work/parts" $steps --seed 7
expect 0 train -m "$work/model" -d "$work/data" -o "$work/parts" $steps
grep -q "resuming after step 10" "$work/err" || fail "did not resume"
cmp "$work/through/adapter/adapter_model.safetensors" "$work/parts/adapter/adapter_model.safetensors" ||
  fail "the resumed run's adapter differs"
cut -d, -f1-7 "$work/through/metrics.jsonl" >"$work/a"
cut -d, -f1-7 "$work/parts/metrics.jsonl" >"$work/b"
cmp "$work/a" "$work/b" || fail "the resumed run's metrics differ"
# A run whose checkpoints are all damaged does not begin anew by itself, and with --restart gives the same adapter.
for state in "$work"/parts/checkpoints/checkpoint-*/state.safetensors; do
  printf x | dd of="$state" bs=1 seek=300 conv=notrunc 2>"$work/err"
done
expect 3 train -m "$work/model" -d "$work/data" -o "$work/parts" $steps
grep -q -e "--restart begins anew" "$work/err" || fail "what to do about damaged checkpoints is not said"
expect 0 train -m "$work/model" -d "$work/data" -o "$work/parts" $steps --restart
cmp "$work/through/adapter/adapter_model.safetensors" "$work/parts/adapter/adapter_model.safetensors" ||
  fail "the adapter of the run that began anew differs"
expect 0 info "$work/through/adapter"
expect 2 train -m "$work/model" -d "$work/data" -o "$work/wide" --rank 512
grep -q "LoRA rank 512 is outside 1 to [0-9]*, the input width" "$work/err" ||
  fail "a rank above the width is not named"
# Adapters of some projections: the adapter says which, and a run with others is another run.
some="-m $work/model -d $work/data -o $work/some --rank 4 --epochs 1 --batch 8 --threads 2"
expect 0 train $some --targets v,q
tr -d ' \n' <"$work/some/adapter/adapter_config.json" | grep -q '"target_modules":\["q_proj","v_proj"\]' ||
  fail "the adapter does not say what it adapts"
expect 2 train $some --targets q
grep -q "holds a run with other settings" "$work/err" || fail "other targets went on with this run"
expect 0 train $some --targets q,v
expect 2 train $some --targets q,w
grep -q '\-\-targets must be "all", or names of q' "$work/err" ||
  fail "a wrong target is not answered with the right ones"

# merge and compare
expect 0 merge -m "$work/model" -a "$work/through/adapter" -o "$work/merged"
grep -q "28 of 39 tensors changed" "$work/out" || fail "merge"
printf '%s\n' 'The price of the Tevkess' '<script>alert(1)</script> & "quotes"' >"$work/questions.txt"
head -2 "$source/examples/quickstart/knowledge.jsonl" >"$work/probes.jsonl"
expect 0 compare -m "$work/model" -a "$work/through/adapter" --merged "$work/merged" --questions "$work/questions.txt" \
  --probes "$work/probes.jsonl" --max-new-tokens 5 --report "$work/report.html" --json "$work/compare.json"
[ "$(json "$work/compare.json" n)" = 2 ] || fail "probes were not scored"
for what in reference figures lower upper change kept by_relation; do
  grep -q "\"$what\": " "$work/compare.json" || fail "no $what in the comparison"
done
# An adapter goes on the model that it was trained on.
for verb in "chat $work/merged -p Hello --max-new-tokens 2" "merge -m $work/merged -o $work/wrong" \
  "compare -m $work/merged --probes $work/probes.jsonl --max-new-tokens 2"; do
  expect 3 $verb -a "$work/through/adapter"
  grep -q "was trained on other weights than those of $work/merged" "$work/err" || fail "the wrong model is not named"
done
[ ! -e "$work/wrong" ] || fail "an adapter was merged into another model"
expect 0 chat "$work/merged" -p Hello --max-new-tokens 2 -a "$work/through/adapter" --any-base
expect 3 chat "$work/model" -p Hello -a "$work/through"
grep -q "the one of that training is $work/through/adapter" "$work/err" || fail "the adapter inside is not pointed to"
# A requirement decides the exit code, and one that names nothing is refused.
expect 0 compare -m "$work/model" -a "$work/through/adapter" --probes "$work/probes.jsonl" --max-new-tokens 5 \
  --require "knowledge.value<=1" --require "nf4.knowledge.n>=2"
expect 1 compare -m "$work/model" -a "$work/through/adapter" --probes "$work/probes.jsonl" --max-new-tokens 5 \
  --require "knowledge.lower>1"
grep -q "requirement knowledge.lower>1: .*NOT MET" "$work/out" || fail "the requirement that is not met is not named"
expect 2 compare -m "$work/model" -a "$work/through/adapter" --probes "$work/probes.jsonl" \
  --require "knowledge.middle>1"
expect 2 compare -m "$work/model" -a "$work/through/adapter" --probes "$work/probes.jsonl" --require "knowledge"

# all weights instead of adapters; the model that comes out is one
expect 0 train -m "$work/model" -d "$work/data" -o "$work/full" --method full --lr 1e-3 --epochs 2 --batch 1 --threads 2
expect 0 compare -m "$work/model" --full "$work/full/model" --probes "$work/probes.jsonl" --max-new-tokens 5
# A folder that no training here wrote is never removed, the base last of all.
mkdir -p "$work/own/model" "$work/base"
echo thesis >"$work/own/model/thesis.txt"
cp -r "$work/model" "$work/base/model"
expect 2 train -m "$work/model" -d "$work/data" -o "$work/own" --method full --epochs 1
grep -q "holds thesis.txt" "$work/err" || fail "what is in the way is not named"
[ -f "$work/own/model/thesis.txt" ] || fail "a foreign file was removed"
expect 2 train -m "$work/base/model" -d "$work/data" -o "$work/base" --method full --epochs 1
cmp "$work/model/model.safetensors" "$work/base/model/model.safetensors" || fail "the base was changed"

# probes during training: watching changes nothing, a guard ends the run where it still held
short="-m $work/model -d $work/data --rank 4 --alpha 8 --lr 1e-3 --batch 1 --epochs 4 --threads 2"
expect 0 train $short -o "$work/alone"
expect 2 train -m "$work/full/model" -d "$work/data" --rank 4 --alpha 8 --lr 1e-3 --batch 1 --epochs 4 --threads 2 \
  -o "$work/alone"
grep -q "holds a run with other settings" "$work/err" || fail "a run went on with another base model"
expect 0 train $short -o "$work/watched" --probes "$work/probes.jsonl" --every 3
cmp "$work/alone/adapter/adapter_model.safetensors" "$work/watched/adapter/adapter_model.safetensors" ||
  fail "measuring changed the training"
[ "$(grep -c '"probes":{"knowledge"' "$work/watched/metrics.jsonl")" -ge 2 ] || fail "nothing was measured in the loop"
printf '{"kind":"text","domain":"d","text":"%s"}\n' "The price of the Tevkess is low." >"$work/text.jsonl"
expect 0 train $short -o "$work/watched_text" --probes "$work/text.jsonl" --every 1
limit=$(sed -n '3s/.*"kl":{"n":1,"clusters":1,"value":\([^,]*\),.*/\1/p' "$work/watched_text/metrics.jsonl")
[ -n "$limit" ] || fail "no divergence in the record"
expect 0 train $short -o "$work/guarded" --probes "$work/text.jsonl" --every 1 --guard "text_d.kl.value<$limit" \
  --json "$work/guarded.json"
[ "$(json "$work/guarded.json" stopped_at)" -le 3 ] || fail "the guard did not end the run"
kept=$(json "$work/guarded.json" steps)
kept_loss=$(sed -n "${kept}s/.*\"loss\":\([^,]*\),.*/\1/p" "$work/guarded/metrics.jsonl")
[ "$(json "$work/guarded.json" last_loss)" = "$kept_loss" ] ||
  fail "the loss is not that of the step that was gone back to"
grep -q "going back to step" "$work/err" || fail "nothing is said of going back"
expect 1 train $short -o "$work/never" --probes "$work/text.jsonl" --every 1 --guard "text_d.kl.value<-1"
expect 2 train $short -o "$work/none" --guard "retention.lower>=0.5"
expect 2 train $short -o "$work/none" --probes "$work/text.jsonl" --guard "retention.lower>=0.5"
grep -q "there are text_d" "$work/err" || fail "what a guard can ask is not named"
[ ! -e "$work/none/metrics.jsonl" ] || fail "a guard that cannot be held was noticed after the first step"
expect 2 train $short -o "$work/none" --method full --fast
# Interrupted between two measurements, a guarded run keeps the measured step alone: only that is known to have held.
at '{"step":6,' $INT expect 6 \
  train -m "$work/model" -d "$work/data" --rank 4 --lr 1e-3 --batch 1 --epochs 4 --threads 2 \
  -o "$work/cut" --probes "$work/text.jsonl" --every 5 --guard "text_d.kl.value<1000"
for kept in "$work"/cut/checkpoints/checkpoint-*; do
  [ $((${kept##*-} % 5)) = 0 ] || fail "$kept was not measured, and was saved"
done

# Ctrl-C while a measurement runs: the step is kept, the measurement is made again first thing, and nothing of the
# outcome tells that there was an interruption. The program says when it begins to measure.
loop="-m $work/model -d $work/data --rank 4 --alpha 8 --lr 1e-3 --batch 1 --epochs 2 --threads 2 --every 5"
loop="$loop --probes $source/examples/quickstart/retention.jsonl $work/text.jsonl"
# interrupt STEP OUT arguments...: interrupts a training in the measurement after STEP
interrupt() {
  step=$1; to=$2; shift 2
  at "step $step: measuring 241 probes" $INT expect 6 train $loop -o "$to" "$@"
  grep -q "interrupted; step $step of" "$work/err" || fail "step $step was lost"
  [ "$(wc -l <"$to/metrics.jsonl")" = "$step" ] || fail "the record does not end with step $step"
  ! tail -1 "$to/metrics.jsonl" | grep -q probes || fail "the measurement after step $step was not interrupted"
}
# The record without times.
record() { sed 's/"tok_per_s":[^,}]*//' "$1/metrics.jsonl"; }
expect 0 train $loop -o "$work/whole"
interrupt 5 "$work/halves"
interrupt 5 "$work/halves"
expect 0 train $loop -o "$work/halves"
grep -q "resuming after step 5, whose measurement was interrupted" "$work/err" || fail "did not go on from step 5"
record "$work/whole" >"$work/a"
record "$work/halves" >"$work/b"
cmp "$work/a" "$work/b" || fail "the record tells of the interruption"
cmp "$work/whole/adapter/adapter_model.safetensors" "$work/halves/adapter/adapter_model.safetensors" ||
  fail "an interrupted measurement changed the training"
# A guard that holds after step 5 and not after step 10 goes back to 5, though step 10 was saved to be measured.
limit=$(sed -n '10s/.*"kl":{"n":1,"clusters":1,"value":\([^,]*\),.*/\1/p' "$work/whole/metrics.jsonl")
expect 0 train $loop -o "$work/back" --guard "text_d.kl.value<$limit" --json "$work/back.json"
[ "$(json "$work/back.json" steps)" = 5 ] && [ "$(json "$work/back.json" stopped_at)" = 10 ] ||
  fail "the guard was to fail after step 10 and to hold after step 5"
interrupt 10 "$work/back_again" --guard "text_d.kl.value<$limit"
[ -d "$work/back_again/checkpoints/checkpoint-10" ] || fail "the step to be measured was not saved"
expect 0 train $loop -o "$work/back_again" --guard "text_d.kl.value<$limit" --json "$work/back.json"
[ "$(json "$work/back.json" steps)" = 5 ] || fail "went back to a step that did not meet the guard"
cmp "$work/back/adapter/adapter_model.safetensors" "$work/back_again/adapter/adapter_model.safetensors" ||
  fail "the guarded run's adapter tells of the interruption"
! grep -q "<script" "$work/report.html" || fail "the page holds a script"
grep -q "&lt;script&gt;alert" "$work/report.html" || fail "the question is not on the page"

# run: four arms, one with a page of its own; then again with nothing to do, then with one setting changed, with that
# page changed, and with an output damaged
cp "$work/site/press-hulbix.html" "$work/own.html"
head -2 "$source/examples/quickstart/replay.jsonl" >"$work/replay.jsonl"
cat >"$work/job.toml" <<JOB
[model]
path = "model"
[data]
urls = ["$url/blog-daxyard.html", "$url/shop-tevkess.html"]
allow_private = true
[pack]
seq = 64
[train]
rank = 4
lr = 1e-3
batch = 4
epochs = 2
[[arm]]
name = "qlora_pages"
[[arm]]
name = "seed_7"
seed = 7
sweep = { rank = 4 }
[[arm]]
name = "own_page"
files = ["own.html"]
rank = 2
control = "another page"
[[arm]]
name = "qlora"
replay = "replay.jsonl"
[compare]
questions = "questions.txt"
probes = ["probes.jsonl"]
max_new_tokens = 5
[output]
dir = "job"
JOB
# Ctrl-C in the middle of an arm, then the same command again; two arms are enough.
sed 's/epochs = 2/epochs = 40/; s/dir = "job"/dir = "stopped"/; /seed_7/,/^..arm/d; /own_page/,/^..arm/d' \
  "$work/job.toml" >"$work/stopped.toml"
LD_PRELOAD=$signal_at SIGNAL_AT_TEXT='{"step":2,' SIGNAL_AT=$STOP "$qlora" run "$work/stopped.toml" \
  >"$work/out" 2>"$work/err" &
job=$!
until grep -q '^State:.*(stopped)' /proc/$job/status; do
  ! grep -q '^State:.*(zombie)' /proc/$job/status || fail "the job ended before its second step"
  sleep 0.05
done
expect 4 run "$work/stopped.toml" # another run holds the lock
kill -INT $job
kill -CONT $job
got=0; wait $job || got=$?
[ "$got" = 6 ] || fail "exit $got of an interrupted job, not 6"
# Killed when the merged model has its name and the job no record of it.
got=0
LD_PRELOAD=$signal_at SIGNAL_AT_TEXT=/stopped/merged SIGNAL_AT=$KILL "$qlora" run "$work/stopped.toml" \
  >"$work/out" 2>"$work/err" || got=$?
[ "$got" = 137 ] || fail "exit $got of a job that was killed, not 137"
grep -q "resuming after step 2" "$work/err" || fail "the job's training did not resume"
[ -f "$work/stopped/merged/config.json" ] || fail "the job was killed before the merged model had its name"
expect 0 run "$work/stopped.toml"
! grep -q "^merge: unchanged" "$work/err" || fail "a merged model without a record was taken for done"
expect 0 run "$work/job.toml"
[ "$(tail -1 "$work/out")" = "$work/job/report.json" ] || fail "the last line is not the report"
for variant in w16 nf4 qlora_pages seed_7 own_page qlora merged; do
  grep -q "\"$variant\": {" "$work/job/report.json" || fail "no $variant in the report"
done
grep -q "2 replayed" "$work/out" || fail "the replayed documents are not counted"
[ -s "$work/job/report.html" ] || fail "no page"
grep -q '"sweep": "rank"' "$work/job/report.json" || fail "no sweep in report.json"
grep -q '"control": "another page"' "$work/job/report.json" || fail "no control in report.json"
grep -q "<h2>Sweeps</h2>" "$work/job/report.html" || fail "no sweep on the page"
grep -q "another page (qlora)" "$work/job/report.html" || fail "no control on the page"
ls "$work/job/seed_7/data" >/dev/null 2>&1 && fail "the same pages were packed twice"
grep -q own.html "$work/job/own_page/data/manifest.json" || fail "the arm's own page was not packed"
! grep -q blog-daxyard "$work/job/own_page/data/manifest.json" || fail "[data] was packed for an arm that replaces it"
cp "$work/job/report.json" "$work/first.json"
expect 0 run "$work/job.toml"
[ "$(grep -c "unchanged, skipped" "$work/err")" = 11 ] || fail "not all of 11 steps were skipped"
cmp "$work/first.json" "$work/job/report.json" || fail "a run that did nothing changed the report"
sed -i 's/max_new_tokens = 5/max_new_tokens = 6/' "$work/job.toml"
expect 0 run "$work/job.toml"
[ "$(grep -c "unchanged, skipped" "$work/err")" = 10 ] || fail "one changed setting of compare must redo compare alone"
sed -i 's/<p>/<p>New words of the page. /' "$work/own.html"
expect 0 run "$work/job.toml"
for step in "fetch own_page" "pack own_page" "train own_page" compare; do
  ! grep -q "^$step: unchanged" "$work/err" || fail "the arm's page changed, and $step was skipped"
done
[ "$(grep -c "unchanged, skipped" "$work/err")" = 7 ] || fail "an arm's page changed, and more than that arm was redone"
printf x >>"$work/job/merged/config.json"
expect 0 run "$work/job.toml"
grep -q "^merge: " "$work/err" || fail "damaged output was not made again"
sed -i 's/epochs/epoch/' "$work/job.toml"
expect 3 run "$work/job.toml"
grep -q "job.toml:12: unknown key .epoch. in .train.; did you mean .epochs.?" "$work/err" || fail "no suggestion"
echo "all is well"
