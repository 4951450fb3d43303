#!/bin/sh
# The study: sh examples/forgetting.sh [option of qlora run]...
# What the small chat model learns from 35 new pages and what it forgets, by QLoRA and by full fine-tuning, each over its own
# learning rates, with and without a little replay, over several seeds: out/forgetting/report.html. Installs and builds like
# the quickstart. An hour on two cores; it can be stopped and goes on from there.
#
#   QLORA_SEEDS    default "1 2 3 4 5"
#   QLORA_EPOCHS   default 20
#   QLORA_OUT      default out/forgetting
set -eu
cd "$(dirname "$0")/.."
. examples/program.sh
build_program make_world
make_world=$(find $build -name make_world -type f -perm -u+x | head -n 1)

out=${QLORA_OUT:-out/forgetting}
mkdir -p "$out"
"$make_world" "$out/world" --documents 1000 # the study's files do not depend on how long the corpus is
study=world/study

# The job. Settings were picked on the guard's probes, which ask about other products than the report's.
arm() { # NAME METHOD GROUP LR SEED [more lines]
  printf '[[arm]]\nname = "%s"\nmethod = "%s"\ngroup = "%s"\nlr = %s\nseed = %s\n%s\n' "$1" "$2" "$3" "$4" "$5" "${6:-}"
}
{
  cat <<END
[model]
path = "$(pwd)/examples/models/tiny-chat"
[data]
files = ["$study/pages"]
[pack]
seq = 384
split = "pad"
[train]
rank = 64
alpha = 64
dropout = 0.1
epochs = ${QLORA_EPOCHS:-20}
batch = 2
checkpoint_every = 1000000
[compare]
probes = [
  "$study/report/knowledge_completion.jsonl", "$study/report/knowledge_chat.jsonl",
  "$study/report/paraphrase_completion.jsonl", "$study/report/paraphrase_chat.jsonl",
  "$study/report/reversed_chat.jsonl", "$study/report/neighbour_chat.jsonl",
  "$study/report/retention_chat.jsonl", "$study/report/unknown_chat.jsonl",
  "$study/report/behaviour_chat.jsonl", "$study/report/text_completion.jsonl", "$study/report/text_chat.jsonl",
]
max_new_tokens = 48
[output]
dir = "run"
END
  for seed in ${QLORA_SEEDS:-1 2 3 4 5}; do
    for lr in 1e-3 2e-3 3e-3; do arm "qlora_${lr}_s$seed" qlora "QLoRA" $lr "$seed"; done
    for lr in 2e-4 5e-4 1e-3; do arm "full_${lr}_s$seed" full "full fine-tuning" $lr "$seed"; done
    arm "qlora_replay_s$seed" qlora "QLoRA, replay" 2e-3 "$seed" "replay = \"$study/replay.jsonl\"
replay_limit = 100"
    arm "full_replay_s$seed" full "full fine-tuning, replay" 5e-4 "$seed" "replay = \"$study/replay.jsonl\"
replay_limit = 100"
  done
} >"$out/forgetting.toml"
exec "$program" run "$out/forgetting.toml" "$@"
