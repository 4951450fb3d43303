#!/bin/sh
# Measures this machine's GPU: sh bench/gpu.sh [train|memory|ops|decode|job|job_fp8|job70b|quality|multi|peers]...
# Builds the benchmarks with the preset "gpu" and writes bench/results/NAME-DATE.json (NAME from the card): each
# measurement with median and spread, and the card, driver, commit and settings. Without arguments: train memory ops
# job, which took 8 min 39 s on one H100 with the build.
# "quality" trains a model with products in bf16 and in fp8 from the same seeds; bench/fp8_quality.py says what for.
# "multi" trains 7B and 13B on 1, 2 and 4 GPUs of this host (torchrun), with as much for each, and the same steps on
# one, whose losses and norms must be the same to the last digit.
# "peers" runs transformers + peft + bitsandbytes on the same shapes; bench/peers/README.md says what it needs.
#
#   QLORA_CUDNN_FRONTEND   folder of cudnn_frontend.h, as in tests/gpu.sh
#   QLORA_RESULTS          another folder for the result
#   QLORA_COMMIT           the commit, where git is not available
#   QLORA_MODELS           default "7b 13b 70b"
#   QLORA_JOB              folder for the files of "job", "job70b" and "peers", up to 57 GB; default: the build's,
#                          and /tmp
#   QLORA_MODEL            model directory for "quality", such as the one that examples/smollm2.sh makes
#   QLORA_TEXTS            plain texts for it, in English: half of its training data, and what is held out
#   QLORA_QUALITY          other options of fp8_quality.py run, such as "--seeds 8 --seconds 120"
#   QLORA_PEERS            rows for "peers", such as 13b:2:ckpt; default: its own five
#   QLORA_PEER_STEPS       steps of the article's job in "peers", default 160; with fewer the row has a scaled total too
#   QLORA_STEPS            timed steps, default 20, after 5 that are not counted
#   QLORA_OPS              filter of ops_bench, default "." for all
set -u
cd "$(dirname "$0")/.." || exit 1
. cmake/packages.sh
find_xxhash
build=build-gpu
results=${QLORA_RESULTS:-bench/results}
models=${QLORA_MODELS:-7b 13b 70b}
steps=${QLORA_STEPS:-20}
ops=${QLORA_OPS:-.}
[ $# -gt 0 ] || set -- train memory ops job
started=$(date +%s)
say() { printf '\n== %s (%ss)\n' "$*" "$(($(date +%s) - started))"; }

mkdir -p "$results"
rows=$(mktemp)
trap 'rm -f "$rows" "$rows".*' EXIT

build_benchmarks() {
  say "build"
  generator=
  [ -f $build/CMakeCache.txt ] || generator=-GNinja
  # shellcheck disable=SC2086
  cmake --preset gpu $generator -DQLORA_BUILD_BENCH=ON >$build-bench.log 2>&1 &&
    cmake --build --preset gpu --target "$@" >>$build-bench.log 2>&1 && return
  tail -60 $build-bench.log
  exit 1
}
# train_row MODEL option...: one run; its line of JSON is a row of the result.
launcher=
train_row() {
  say "train_speed $*"
  # shellcheck disable=SC2086
  $launcher "$build"/bench/train_speed "$@" --steps "$steps" --algorithms "$build/algorithms.txt" >"$rows.one" \
    2>"$rows.err" ||
    printf '{"command": "train_speed %s", "error": "%s"}\n' "$*" "$(tr '"\n' "' " <"$rows.err")" >"$rows.one"
  cat "$rows.one"
  cat "$rows.one" >>"$rows"
}
# job_row option...: one whole job, its files deleted after it.
job_row() {
  say "job_speed $*"
  job=${QLORA_JOB:-$build}/job
  rm -rf "$job"
  "$build"/bench/job_speed "$job" "$@" >"$rows.one" 2>"$rows.err" ||
    printf '{"command": "job_speed %s", "error": "%s"}\n' "$*" "$(tr '"\n' "' " <"$rows.err")" >"$rows.one"
  rm -rf "$job"
  cat "$rows.one"
  cat "$rows.one" >>"$rows"
}
# decode_row MODEL option...: decoding, greedy.
decode_row() {
  say "decode_speed $*"
  "$build"/bench/decode_speed "$@" >"$rows.one" 2>"$rows.err" ||
    printf '{"command": "decode_speed %s", "error": "%s"}\n' "$*" "$(tr '"\n' "' " <"$rows.err")" >"$rows.one"
  cat "$rows.one"
  cat "$rows.one" >>"$rows"
}
batch_of() { if [ "$1" = 70b ]; then echo 1; else echo 2; fi; }

for what in "$@"; do
  case $what in
    multi)
      build_benchmarks train_speed
      gpus=$(nvidia-smi --list-gpus | wc -l)
      for model in $models; do
        [ "$model" != 70b ] || continue
        train_row "$model" --batch "$(batch_of "$model")"
        for n in 2 4; do
          [ "$gpus" -ge $n ] || continue
          launcher="torchrun --nproc-per-node $n --no-python"
          train_row "$model" --batch "$(batch_of "$model")"
          launcher=
          train_row "$model" --batch "$(batch_of "$model")" --accumulate $n
        done
      done
      ;;
    train)
      build_benchmarks train_speed
      for model in $models; do
        train_row "$model" --batch "$(batch_of "$model")" --profile
        train_row "$model" --batch "$(batch_of "$model")" --dynamic
        train_row "$model" --batch "$(batch_of "$model")" --recompute block
        [ "$model" = 70b ] && continue # its bf16 weights would not fit
        train_row "$model" --batch "$(batch_of "$model")" --resident
        train_row "$model" --batch "$(batch_of "$model")" --resident --recompute block
      done
      ;;
    memory) # what fits smaller cards: the process may take no more than the cap, the driver's share included
      build_benchmarks train_speed
      case " $models " in
        *' 7b '*)
          train_row 7b --batch 1 --recompute block --adamw8bit --memory-cap 7200000000
          train_row 7b --batch 1 --recompute block --adamw8bit --memory-cap 8000000000
          ;;
      esac
      case " $models " in
        *' 13b '*)
          train_row 13b --batch 1 --recompute block --adamw8bit --memory-cap 12000000000
          train_row 13b --batch 1 --recompute block --memory-cap 16000000000
          train_row 13b --batch 2 --recompute block --memory-cap 24000000000 --probe-tokens 512
          ;;
      esac
      case " $models " in
        *' 70b '*) train_row 70b --batch 1 --recompute block --adamw8bit --memory-cap 52000000000 ;;
      esac
      ;;
    ops)
      build_benchmarks ops_bench
      say "ops_bench"
      if "$build"/bench/ops_bench --benchmark_filter="ceiling|$ops" --benchmark_out="$rows.ops" \
        --benchmark_out_format=json; then
        { printf '{"ops": ' && tr -d '\n' <"$rows.ops" && printf '}\n'; } >>"$rows"
      else
        printf '{"command": "ops_bench", "error": "it ended with %s"}\n' $? >>"$rows"
      fi
      ;;
    decode) # batches, greedy; an adapter live; sampled; adapters of several sets and none side by side
      build_benchmarks decode_speed
      for model in $models; do
        batches='1 2 4 8 16 32 64'
        [ "$model" = 70b ] && batches='1 8 32'
        for batch in $batches; do
          decode_row "$model" --prompt 128 --tokens 128 --runs 3 --batch "$batch" --profile
          decode_row "$model" --prompt 128 --tokens 128 --runs 3 --batch "$batch" --adapters 1 --profile
        done
        [ "$model" = 70b ] && continue # the other rows are of smaller models
        decode_row "$model" --prompt 128 --tokens 128 --runs 3 --sample
        for batch in 8 32; do
          decode_row "$model" --prompt 128 --tokens 128 --runs 3 --batch "$batch" --sample
          decode_row "$model" --prompt 128 --tokens 128 --runs 3 --batch "$batch" --adapters 1 --base
          decode_row "$model" --prompt 128 --tokens 128 --runs 3 --batch "$batch" --adapters 2
          decode_row "$model" --prompt 128 --tokens 128 --runs 3 --batch "$batch" --adapters 4
        done
      done
      ;;
    job) # the article's, at 13B
      build_benchmarks job_speed
      job_row --model 13b
      ;;
    job_fp8)
      build_benchmarks job_speed
      job_row --model 13b --fp8
      ;;
    quality)
      build_benchmarks qlora_program
      say "fp8_quality"
      folder=$(pwd)/$build/quality
      rm -rf "$folder"
      # shellcheck disable=SC2086
      python3 bench/fp8_quality.py data "$folder" --texts $QLORA_TEXTS &&
        python3 bench/fp8_quality.py run "$(find "$build/examples" -name qlora -type f)" "$QLORA_MODEL" "$folder" \
          ${QLORA_QUALITY:-} >"$rows.one" || echo '{"command": "fp8_quality", "error": "see its output"}' >>"$rows.one"
      cat "$rows.one"
      cat "$rows.one" >>"$rows"
      ;;
    job70b) # of 70B as many layers as a disk of 64 GiB takes twice
      build_benchmarks job_speed
      job_row --model 70b --few-layers --steps 8
      ;;
    peers)
      say "peers"
      # shellcheck disable=SC2086
      PYTHONPATH=.peers python3 bench/peers/transformers_qlora.py ${QLORA_PEERS:+--rows $QLORA_PEERS} \
        --out "$rows.peers"
      PYTHONPATH=.peers python3 bench/peers/transformers_qlora.py --article --article-steps "${QLORA_PEER_STEPS:-160}" \
        ${QLORA_JOB:+--dir "$QLORA_JOB"} --out "$rows.peers"
      [ -f "$rows.peers" ] && cat "$rows.peers" >>"$rows"
      ;;
    *)
      echo "bench/gpu.sh: train, memory, ops, decode, job, job_fp8, job70b, quality, multi or peers, not $what" >&2
      exit 2
      ;;
  esac
done

say "result"
QLORA_COMMIT=${QLORA_COMMIT:-$(git rev-parse --short HEAD 2>/dev/null || echo unknown)}
export QLORA_COMMIT
python3 - "$rows" "$results" "$*" <<'END'
import json, os, re, subprocess, sys, time
rows, folder, asked = sys.argv[1:]
query = "name,driver_version,memory.total,power.limit"
card = subprocess.run(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True)
fields = [field.strip() for field in card.stdout.splitlines()[0].split(",")] if card.stdout else ["unknown"] * 4
result = {
    "date": time.strftime("%Y-%m-%d"),
    "gpu": fields[0],
    "driver": fields[1],
    "memory": fields[2],
    "power_limit": fields[3],
    "commit": os.environ["QLORA_COMMIT"],
    "measured": asked.split(),
    "note": "random weights of the exact shapes, random tokens; wall time of whole steps",
    "rows": [json.loads(line) for line in open(rows) if line.strip()],
}
def op_row(op):
    """Of Google Benchmark's record of one op: name, median, bound and counters, or why there are none."""
    row = {"op": op["name"].split("/iterations:")[0]}
    if op.get("error_occurred"):
        return row | {"error": op["error_message"]}
    counters = ("TB_per_s", "TFLOP_per_s", "percent_of_bound", "spread_percent")
    row |= {"time_us": round(op["real_time"], 3)} | {key: round(op[key], 3) for key in counters if key in op}
    return row | ({"bound": op["label"]} if op.get("label") else {})
result["rows"] = [
    row for line in result["rows"]
    for row in (map(op_row, line["ops"]["benchmarks"]) if "ops" in line else [line])
]
name = re.sub(r"[^a-z0-9]+", "-", fields[0].lower().replace("nvidia ", "")).strip("-")
path = os.path.join(folder, f"{name}-{result['date']}-{'-'.join(result['measured'])}.json")
json.dump(result, open(path, "w"), indent=1)
print(path)
END
