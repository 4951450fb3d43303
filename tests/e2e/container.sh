# container.sh — `qlora train` and `qlora serve` as SageMaker starts them: everything comes from the folder that the
# platform lays out, everything goes there; an interrupted training goes on in the next container to the same bits.
#   container.sh PROGRAM MAKE_MODEL SERVE SOURCE_DIR SIGNAL_AT
set -eu
qlora=$1 source=$4 signal_at=$5
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ml=$work/ml
export QLORA_ML_ROOT="$ml"
unset SM_HOSTS SM_CURRENT_HOST HF_MODEL_ID
fail() {
  echo "FAILED: $*" >&2
  for f in out err; do [ ! -f "$work/$f" ] || sed "s/^/$f: /" "$work/$f" >&2; done
  exit 1
}
# container HYPERPARAMETERS: a new container with the job's channels, whose values stand as JSON.
container() {
  rm -rf "$ml"
  mkdir -p "$ml/input/config" "$ml/input/data/training" "$ml/model" "$ml/checkpoints"
  cp "$work/documents.jsonl" "$ml/input/data/training/"
  cp -r "$source/examples/models/tiny-chat" "$ml/input/data/model"
  printf '%s' "$1" >"$ml/input/config/hyperparameters.json"
  channel='{"TrainingInputMode":"File","S3DistributionType":"FullyReplicated","RecordWrapperType":"None"}'
  printf '%s' "{\"training\":$channel,\"model\":$channel}" >"$ml/input/config/inputdataconfig.json"
  printf '%s' '{"current_host":"algo-1","hosts":["algo-1"],"network_interface_name":"eth0"}' \
    >"$ml/input/config/resourceconfig.json"
}
# expect CODE arguments...: runs the program, keeps its streams in $work/out and $work/err.
expect() {
  code=$1; shift
  got=0
  "$qlora" "$@" >"$work/out" 2>"$work/err" </dev/null || got=$?
  [ "$got" = "$code" ] || fail "exit $got, not $code, of: $*"
}
# refused CODE TEXT: the job fails with this code and a message that has the text, in output/failure as on stderr.
refused() {
  expect "$1" train
  grep -qF "$2" "$work/err" || fail "the message says nothing of: $2"
  [ "qlora: $(head -1 "$ml/output/failure")" = "$(tail -1 "$work/err")" ] || fail "another reason in output/failure"
  [ -z "$(ls "$ml/model")" ] || fail "a failed job left a model"
}
without_times() { sed 's/,"tok_per_s":[^,}]*//' "$1"; }

i=0
while [ $i -lt 40 ]; do
  echo "{\"text\":\"Document $i says that $((i * 7)) and $((i * i)) are numbers. It has nothing more to say of $i.\"}"
  i=$((i + 1))
done >"$work/documents.jsonl"
cat >"$work/probes.jsonl" <<'END'
{"kind":"retention","form":"completion","prompt":"The Vorzana is made by","answer":"Larkspur","relation":"maker"}
{"kind":"retention","form":"completion","prompt":"Document 7 says that","answer":"49","relation":"number"}
END
common='"rank":"8","epochs":"2","lr":"1e-3","checkpoint_every":"3","device":"cpu","threads":"2","accumulate":"2"'
settings="{$common,\"seq\":\"64\",\"rslora\":\"True\",\"max-grad-norm\":\"0.5\",\"_tuning_objective_metric\":\"loss\"}"

# A job: the adapter, the record, and metrics that the job's MetricDefinitions read. Probes are measured twice.
container "${settings%\}},\"every\":\"4\"}"
mkdir "$ml/input/data/probes"
cp "$work/probes.jsonl" "$ml/input/data/probes/"
sed -i "s/\"model\":/\"probes\":{},&/" "$ml/input/config/inputdataconfig.json"
expect 0 train
[ ! -e "$ml/output/failure" ] || fail "a failure of a job that did not fail"
python3 "$source/tests/e2e/container_metrics.py" "$source/examples/sagemaker/create-training-job.json" "$work/out" \
  "$ml/output/data/metrics.jsonl" || fail "metrics"
cp -r "$ml/model" "$work/model"
# The same options on the command line give the same bits, and beside options the platform's folder counts nothing.
expect 0 pack "$work/documents.jsonl" -m "$ml/input/data/model" -o "$work/data" --seq 64
expect 0 train -m "$ml/input/data/model" -d "$work/data" -o "$work/alone" --rank 8 --epochs 2 --lr 1e-3 \
  --accumulate 2 --rslora --max-grad-norm 0.5 --device cpu --threads 2
diff -r "$work/alone/adapter" "$work/model" || fail "another adapter than by the command line"
! grep -q '^step=' "$work/out" || fail "metrics outside of a container"
expect 2 train --rank 8
grep -q -- '--model is required' "$work/err" || fail "options beside the contract"

# A spot interruption: SIGTERM saves, the next container has the checkpoints and nothing else.
interrupted() {
  code=0
  LD_PRELOAD=$signal_at SIGNAL_AT_TEXT='step=4 ' SIGNAL_AT=15 "$qlora" train >"$work/out" 2>"$work/err" || code=$?
  [ $code = 6 ] || fail "exit $code of an interrupted job"
}
container "$settings"
interrupted
[ ! -e "$ml/output/failure" ] || fail "an interruption is no failure"
[ -z "$(ls "$ml/model")" ] || fail "an interrupted job left a model"
mv "$ml/checkpoints" "$work/checkpoints"
container "$settings"
cp -r "$work/checkpoints/." "$ml/checkpoints"
expect 0 train
grep -q 'resuming after step 4' "$work/err" || fail "it did not go on"
[ "$(sed -n 's/^step=\([0-9]*\) .*/\1/p' "$work/out" | head -1)" = 5 ] || fail "steps are reported twice"
diff -r "$ml/model" "$work/model" || fail "another adapter after an interruption"
without_times "$work/alone/metrics.jsonl" >"$work/expected"
without_times "$ml/output/data/metrics.jsonl" | cmp "$work/expected" - || fail "another record after an interruption"

# What it left is served, and refused without its model.
if "$qlora" --version | grep -q '^Boost: yes'; then
  cp -r "$ml/input/data/model" "$work/base"
  HF_MODEL_ID=$work/base python3 -B "$source/tests/e2e/container_served.py" "$qlora" || fail "the adapter is not served"
  rm -r "$ml/input"
  expect 2 serve --port 0
  grep -q 'holds an adapter' "$work/err" || fail "an adapter without its model is served"
fi

# A packed data set as the channel, and the merged model.
packed() { # packed HYPERPARAMETERS: a container whose data set is packed
  container "{$common,\"rslora\":\"true\",\"max_grad_norm\":\"0.5\"$1}"
  rm -r "$ml/input/data/training"
  cp -r "$work/data" "$ml/input/data/training"
}
packed ',"merge":"true"'
expect 0 train
expect 0 merge -m "$ml/input/data/model" -a "$work/model" -o "$work/merged"
diff -r "$ml/model" "$work/merged" || fail "another model than merge writes"

# What cannot be is named, and nothing is left.
container "{$common,\"rnk\":\"8\"}"
refused 2 'the hyperparameter `rnk` is unknown; did you mean `rank`?'
container '{"rank":"eight"}'
refused 2 'the hyperparameter `rank` is "eight", and must be a whole number from 1 to 1024'
container '{"schedule":"linaer"}'
refused 2 'the hyperparameter `schedule` is "linaer", and cannot be "linaer"; did you mean `linear`?'
container '{"rank":8}'
refused 3 'the hyperparameter `rank` must be a text in quotes'
container '{"weight_decay":"0","weight-decay":"0.1"}'
refused 2 'is given under two names'
container '{"shard_bytes":"1000000000"}'
refused 2 'the hyperparameter `shard_bytes` is of merging'
container '{"method":"full","rank":"8"}'
refused 2 'the hyperparameter `rank` is of adapters'
container '{"every":"5"}'
refused 2 'the hyperparameter `every` is of probes'
container '{"model":"org/name"}'
refused 2 'so is the channel model'
container '{"rank":"8"'
refused 3 'hyperparameters.json: not valid JSON'
container '{}'
printf '{"train":{}}' >"$ml/input/config/inputdataconfig.json"
refused 2 'the channel `train` is unknown; known are training model probes replay'
printf '{"training":{"TrainingInputMode":"Pipe"}}' >"$ml/input/config/inputdataconfig.json"
refused 2 'set InputMode to File or FastFile'
printf '{"training":{}}' >"$ml/input/config/inputdataconfig.json"
refused 2 'there is no model'
printf '{"model":{}}' >"$ml/input/config/inputdataconfig.json"
refused 2 'there is nothing to learn from'
printf '{"model":{},"training":{},"replay":{}}' >"$ml/input/config/inputdataconfig.json"
refused 3 'the channel replay is not in'
container '{"device":"cpu"}'
printf '%s' '{"current_host":"algo-2","hosts":["algo-1","algo-2"]}' >"$ml/input/config/resourceconfig.json"
refused 2 'a job of 2 hosts trains on GPUs'
container "$settings"
echo '{"text": 5}' >>"$ml/input/data/training/documents.jsonl"
refused 3 'documents.jsonl:41'
container "$settings"
touch "$ml/model/old"
expect 2 train
grep -q 'model/old is there' "$work/err" || fail "a result over something"
rm "$ml/model/old"
expect 0 train
[ ! -e "$ml/output/failure" ] || fail "the failure of the job before"

# Two hosts, each with a folder of its own, whose ranks mpirun starts: the adapter of one process, on the first alone.
# hosts FIRST: two new hosts, whose first step is this one.
hosts() {
  for host in 1 2; do
    rm -rf "$work/host-$host"
    packed ""
    printf '%s' "{\"current_host\":\"algo-$host\",\"hosts\":[\"algo-1\",\"algo-2\"]}" \
      >"$ml/input/config/resourceconfig.json"
    [ "$1" = 1 ] || cp -r "$work/checkpoints/." "$ml/checkpoints"
    mv "$ml" "$work/host-$host"
  done
  code=0
  # shellcheck disable=SC2016
  mpirun --oversubscribe -n 2 sh -c 'QLORA_ML_ROOT=$0/host-$((OMPI_COMM_WORLD_RANK + 1)) exec "$1" train' \
    "$work" "$qlora" >"$work/out" 2>"$work/err" || code=$?
  ! grep -q 'built without MPI' "$work/err" || return 1
  [ $code = 0 ] || fail "two hosts: exit $code"
  cmp "$work/host-1/model/adapter_model.safetensors" "$work/model/adapter_model.safetensors" ||
    fail "two hosts train another adapter"
  [ -z "$(ls "$work/host-2/model")" ] || fail "the second host left a model, too"
  without_times "$work/host-1/output/data/metrics.jsonl" | cmp "$work/expected" - || fail "two hosts: another record"
  [ "$(grep -c '^step=' "$work/out")" = $((15 - $1)) ] || fail "both hosts report steps"
}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
if ! command -v mpirun >/dev/null || ! hosts 1; then
  echo "two hosts are not tested: mpirun is not here, or the program was built without MPI"
  exit 0
fi
# After an interruption S3 gives every host the checkpoints.
packed ""
interrupted
rm -r "$work/checkpoints"
mv "$ml/checkpoints" "$work/checkpoints"
hosts 5
grep -q 'resuming after step 4' "$work/err" || fail "two hosts did not go on"
echo "all is well"
