#!/bin/sh
# ranks.sh PROGRAM SOURCE HOW N: `qlora train` by one process and by N give the same bytes; a rank that is killed ends
# the others with exit 4, one that is told to stop saves once and all exit with 6, and any number of ranks goes on from
# what is left.
# HOW: mpi   the CPU, mpirun; skipped (77) where it is missing
#      gpus  GPUs, --gpus N
#      srun  the CPU, srun of a Slurm cluster whose MPI is PMIx; skipped where there is none
#      torchrun  GPUs, torchrun; skipped where it is missing
# QLORA_HANG=1 also has a rank hang, which takes half a minute to be sure of.
set -eu
program=$1 source=$2 how=$3 ranks=$4
case $how in
  mpi) command -v mpirun >/dev/null || { echo "mpirun is not here"; exit 77; } ;;
  srun) [ -n "$(sinfo -h 2>/dev/null)" ] || { echo "Slurm is not here"; exit 77; } ;;
  torchrun) command -v torchrun >/dev/null || { echo "torchrun is not here"; exit 77; } ;;
esac
case $how in
  mpi | srun) on=cpu ;;
  *) on=cuda ;;
esac
# As root in a container; and time for a busy machine to end in order, where mpirun would kill after a second.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_odls_base_sigkill_timeout=4
work=$(mktemp -d)
started=
finish() {
  [ -z "$started" ] || kill -9 "$started" 2>/dev/null || true
  rm -rf "$work"
}
trap finish EXIT
cd "$work"
fail() {
  echo "FAILED: $*"
  for log in "$work"/*/logs/*.log "$work"/*.err; do
    [ -f "$log" ] && echo "-- $log" && tail -5 "$log"
  done
  exit 1
}

# Documents of some sentences each; ten steps of four micro-batches in an epoch.
i=0
while [ $i -lt 120 ]; do
  echo "{\"text\":\"Document $i says that $((i * 7)) and $((i * i)) are numbers. It has nothing more to say of $i.\"}"
  i=$((i + 1))
done >documents.jsonl
cat >probes.jsonl <<'END'
{"kind":"text","text":"Document 7 says that 49 and 49 are numbers.","domain":"held_out"}
{"kind":"retention","form":"completion","prompt":"The Vorzana is made by","answer":"Larkspur","relation":"maker"}
END
"$program" pack documents.jsonl -m "$source/examples/models/tiny-chat" -o data --seq 64 -q >/dev/null

# train N OUT: by N processes; the exit code of each goes to OUT.code.RANK, that of all together is returned.
train() {
  count=$1 out=$2
  set -- train -m "$source/examples/models/tiny-chat" -d data -o "$out" --rank 8 --batch 2 --accumulate 4 \
    --epochs "$epochs" --checkpoint-every 2 --lr 1e-3 --seed 7 --probes probes.jsonl --every 8 --json "$out.json"
  rm -f "$out".code.*
  # shellcheck disable=SC2016
  wrapped='rank=${OMPI_COMM_WORLD_RANK:-${SLURM_PROCID:-${RANK:-0}}}
    trap : TERM; code=0; "$@" || code=$?; echo $code >"$0.code.$rank"; exit $code'
  if [ "$count" = 1 ] && [ $on = cpu ]; then
    "$program" "$@" --device cpu --threads 2
  elif [ "$how" = mpi ]; then
    mpirun --oversubscribe -n "$count" sh -c "$wrapped" "$out" "$program" "$@" --device cpu --threads 1
  elif [ "$how" = srun ]; then
    srun --mpi=pmix --overcommit -n "$count" sh -c "$wrapped" "$out" "$program" "$@" --device cpu --threads 1
  elif [ "$count" = 1 ]; then
    "$program" "$@" --device cuda
  elif [ "$how" = gpus ]; then
    "$program" "$@" --gpus "$count"
  else
    torchrun --nproc-per-node "$count" --no-python "$program" "$@" --device cuda
  fi
}
# The folder of a run that begins anew; on a GPU with the algorithms that the first run chose.
fresh() {
  mkdir -p "$1/checkpoints"
  [ ! -f one/checkpoints/algorithms.txt ] || cp one/checkpoints/algorithms.txt "$1/checkpoints/"
}
without_times() { sed 's/,"tok_per_s":[^,}]*//' "$1/metrics.jsonl"; }
same() { # same OUT WHAT: its results are those of one process
  diff -r one/adapter "$1/adapter" || fail "$2: another adapter"
  cmp one/trainer_state.json "$1/trainer_state.json" || fail "$2: another trainer_state.json"
  without_times one >one.metrics
  without_times "$1" | cmp one.metrics - || fail "$2: another metrics.jsonl"
  for step in "$last" $((last - 2)); do
    for file in state.safetensors state.json MANIFEST.json; do
      cmp "one/checkpoints/checkpoint-$step/$file" "$1/checkpoints/checkpoint-$step/$file" || fail "$2: $file"
    done
  done
}
# wait_for_step OUT N: until rank 1 has done it.
wait_for_step() {
  tries=0
  until grep -q " $2: loss" "$1/logs/rank-1.log" 2>/dev/null; do
    tries=$((tries + 1))
    [ $tries -lt 12000 ] || fail "$1 does not reach step $2"
    sleep 0.01
  done
}
process_of() { sed -n 's/.* rank '"$2"' of .* process \([0-9]*\),.*/\1/p' "$1/logs/rank-$2.log" | tail -1; }
# begin OUT: a run in the background that has done three steps.
begin() {
  fresh "$1"
  train "$ranks" "$1" >"$1.out" 2>"$1.err" &
  started=$!
  wait_for_step "$1" 3
  victim=$(process_of "$1" 1)
  [ -n "$victim" ] || fail "no process of rank 1 in its log"
}
ended() { # ended SECONDS: waits for the run; its exit code
  code=0
  since=$(date +%s)
  wait "$started" || code=$?
  started=
  took=$(($(date +%s) - since))
  [ $took -le "$1" ] || fail "the run ended after $took s"
}
# go_on OUT WHAT: one process goes on from a copy of what is left, and so do all ranks.
go_on() {
  [ -d "$1/checkpoints" ] || fail "$2: no checkpoints"
  cp -r "$1" "$1-alone"
  train 1 "$1-alone" >"$1.out" 2>&1 || fail "$2: one process does not go on: $(tail -1 "$1.out")"
  same "$1-alone" "$2, resumed by one process"
  train "$ranks" "$1" >"$1.out" 2>&1 || fail "$2: $ranks ranks do not go on: $(tail -1 "$1.out")"
  same "$1" "$2, resumed by $ranks ranks"
}

epochs=2  # so that a run is still under way when it is disturbed; steps on a GPU take milliseconds
[ $on = cpu ] || epochs=40
train 1 one >one.out 2>one.err || fail "one process"
last=$(sed -n 's/^\([0-9]*\) steps,.*/\1/p' one.out)
[ "$last" -ge 16 ] || fail "a run of $last steps"

fresh all
train "$ranks" all >all.out 2>all.err || fail "$ranks ranks: $(tail -1 all.err)"
same all "$ranks ranks"
[ "$(grep -c 'steps, loss' all.out)" = 1 ] || fail "not one rank has written the result"
[ "$(ls all/logs)" = "$(i=0; while [ $i -lt "$ranks" ]; do echo "rank-$i.log"; i=$((i + 1)); done)" ] ||
  fail "not every rank has a log"
[ -s all.json ] || fail "no result as JSON"
echo "same bytes by 1 and $ranks processes, $last steps"

begin killed
kill -9 "$victim"
ended 30
if [ $on = cpu ]; then
  [ "$(cat killed.code.0)" = 4 ] || fail "rank 0 exits with $(cat killed.code.0)"
else
  [ "$code" != 0 ] || fail "exit code 0"
  [ "$how" != gpus ] || [ "$code" = 4 ] || fail "exit code $code"
fi
grep -Eq "rank 1 \(process $victim on .*\) has ended (in|after) step [0-9]+" killed/logs/rank-0.log ||
  fail "rank 0 does not say who is gone: $(tail -1 killed/logs/rank-0.log)"
go_on killed "a killed rank"
echo "a killed rank ends the others after $took s, and the run goes on"

begin stopped
kill -TERM "$victim"
ended 30
if [ $on = cpu ]; then
  rank=0
  while [ $rank -lt "$ranks" ]; do
    [ "$(cat "stopped.code.$rank")" = 6 ] || fail "rank $rank exits with $(cat "stopped.code.$rank")"
    rank=$((rank + 1))
  done
elif [ "$how" = gpus ]; then
  [ "$code" = 6 ] || fail "exit code $code"
fi
go_on stopped "SIGTERM to a rank"
echo "a rank that is told to stop saves once, and the run goes on"

if [ "${QLORA_HANG:-0}" = 1 ]; then
  begin hanging
  kill -STOP "$victim"
  tries=0
  until grep -q "one of them hangs" hanging/logs/rank-0.log; do
    tries=$((tries + 1))
    [ $tries -lt 60 ] || fail "rank 0 waits for a rank that hangs: $(tail -1 hanging/logs/rank-0.log)"
    sleep 1
  done
  kill -9 "$victim"
  ended 60
  go_on hanging "a rank that hangs"
  echo "a rank that hangs ends the others within $tries s, and the run goes on"
fi
