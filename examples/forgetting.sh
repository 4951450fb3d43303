#!/bin/sh
# The study: sh examples/forgetting.sh [option of qlora run]...
# What the small chat model learns from pages about 35 new products and what it forgets, by QLoRA and by full
# fine-tuning, each over its own learning rates and several seeds; what rank, passes, replay and the number of wordings
# change; and a control: out/forgetting/run/report.html. Installs and builds like the quickstart. 50 minutes on two
# cores; it can be stopped and goes on from there.
#
#   QLORA_SEEDS    default "1 2 3 4 5"; what is varied beside the learning rate has the first of them alone
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
# What the model knows, in its own words: replayed while it learns. And retention without alternatives to each answer:
# their likelihoods, of 2,040 facts and 45 models, would take longer than all the rest.
recall=recall.jsonl
[ -f "$out/$recall" ] || "$program" recall examples/models/tiny-chat -o "$out/$recall" --documents 3200 --seed 1
sed 's/"distractors":\[[^]]*\],//' "$out/$study/report/retention_chat.jsonl" >"$out/retention_chat.jsonl"
recalled=$(wc -l <"$out/$recall")
seeds=${QLORA_SEEDS:-1 2 3 4 5}

# The job. Settings were picked on the guard's probes, which ask about other products and in other words than the
# report's.
rate=2e-3 first=${seeds%% *}
arm() { # NAME METHOD LR SEED [more lines]
  group=QLoRA
  [ "$2" = qlora ] || group="full fine-tuning"
  printf '[[arm]]\nname = "%s"\nmethod = "%s"\nlr = %s\nseed = %s\ngroup = "%s"\n%s\n' \
    "$1" "$2" "$3" "$4" "$group" "${5:-}"
}
own="replay = \"$recall\""
varied() { # NAME SWEEP VALUE lines: QLoRA as in the middle of the front, with one thing changed
  arm "$1_s$first" qlora $rate "$first" "pareto_front = false
sweep = { \"$2\" = $3 }
$4"
}
{
  cat <<END
[model]
path = "$(pwd)/examples/models/tiny-chat"
[data]
files = ["$study/pages", "$study/phrasings_8.jsonl"]
[pack]
seq = 384
split = "pad"
[train]
rank = 64
alpha = 64
dropout = 0.1
epochs = 2
batch = 2
checkpoint_every = 1000000
[compare]
probes = [
  "$study/report/knowledge_completion.jsonl", "$study/report/knowledge_chat.jsonl",
  "$study/report/paraphrase_completion.jsonl", "$study/report/paraphrase_chat.jsonl",
  "$study/report/reversed_chat.jsonl", "$study/report/neighbour_chat.jsonl",
  "retention_chat.jsonl", "$study/report/unknown_chat.jsonl",
  "$study/report/behaviour_chat.jsonl", "$study/report/text_completion.jsonl", "$study/report/text_chat.jsonl",
]
max_new_tokens = 24
require = ["twin_s$first.knowledge.net.lower<=0"]
[merge]
arm = "qlora_s$first"
[output]
dir = "run"
END
  for seed in $seeds; do
    middle=$own
    [ "$seed" != "$first" ] || middle="$own
sweep = { rank = 64, passes = 2, \"replayed documents\" = $recalled }"
    arm "qlora_low_s$seed" qlora 1e-3 "$seed" "$own"
    arm "qlora_s$seed" qlora $rate "$seed" "$middle"
    arm "qlora_high_s$seed" qlora 3e-3 "$seed" "$own"
    arm "full_low_s$seed" full 3e-4 "$seed" "$own"
    arm "full_s$seed" full 5e-4 "$seed" "$own"
    arm "full_high_s$seed" full 8e-4 "$seed" "$own"
  done
  for rank in 8 16; do
    varied rank_$rank rank $rank "$own
rank = $rank
alpha = $rank"
  done
  varied passes_1 passes 1 "$own
epochs = 1"
  arm "replay_0_s$first" qlora $rate "$first" 'pareto_front = false
sweep = { "replayed documents" = 0, "documents about 80 products" = 0 }'
  for few in 400 1600; do
    varied replay_$few "replayed documents" $few "$own
replay_limit = $few"
  done
  # Not the model's own: true pages and chats about 80 products, none of which is asked about.
  varied told_640 "documents about 80 products" 640 "replay = \"$study/replay.jsonl\""
  # As much reading in one, two, four and eight wordings, with nothing else beside them.
  for wordings in 1 2 4 8; do
    varied wordings_$wordings "wordings of a fact" $wordings "files = [\"$study/phrasings_$wordings.jsonl\"]
epochs = $((32 / wordings))"
  done
  # Shown the twin world, asked about this one: what the meter shows where nothing can be known.
  arm "twin_s$first" qlora $rate "$first" "control = \"values permuted among the products\"
$own
files = [\"$study/pages_b\"]"
} >"$out/forgetting.toml"
exec "$program" run "$out/forgetting.toml" "$@"
