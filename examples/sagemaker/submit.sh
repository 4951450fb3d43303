#!/bin/sh
# The article's job on SageMaker, with the AWS CLI: sh examples/sagemaker/submit.sh STEP [MODEL]
#   data       web pages to text, and to S3
#   train      a training job; waits until it has ended
#   deploy     a model of what it left, and an endpoint; waits until it answers
#   ask        the article's question to the model after training and before
#   clean      removes endpoint, its configuration and the model
# MODEL is base (Llama-2-13b-hf, the default) or chat (Llama-2-13b-chat-hf). The JSON files beside this one are the
# requests; these say where:
#   ACCOUNT    number of the AWS account          REGION     as eu-west-1
#   BUCKET     with models under qlora/models     ROLE       name of the role that SageMaker takes
#   IMAGE      name of the image in that account's registry; default qlora:latest
#   INSTANCE   that trains and serves; default ml.g5.4xlarge, with a GPU of 24 GB
set -eu
here=$(cd "$(dirname "$0")" && pwd)
step=${1:?data, train, deploy, ask or clean}
model=${2:-base}
: "${ACCOUNT:?number of the AWS account}" "${REGION:?as eu-west-1}"
: "${BUCKET:?name of the bucket}" "${ROLE:?name of the role}"
case $model in
  base) weights=Llama-2-13b-hf form=completion ;;
  chat) weights=Llama-2-13b-chat-hf form=chat ;;
  *) echo "MODEL is base or chat, not $model" >&2; exit 2 ;;
esac
name=qlora-article-$model
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export AWS_DEFAULT_REGION="$REGION" AWS_PAGER=

# request VERB: sends FILE with this account's places in it.
request() {
  sed -e "s/111122223333/$ACCOUNT/g" -e "s/eu-west-1/$REGION/g" -e "s/amzn-s3-demo-bucket/$BUCKET/g" \
    -e "s/role\/qlora-sagemaker/role\/$ROLE/g" -e "s/ml.g5.4xlarge/${INSTANCE:-ml.g5.4xlarge}/g" \
    -e "s|amazonaws.com/qlora:latest|amazonaws.com/${IMAGE:-qlora:latest}|g" \
    -e "s/qlora-article-base/$name/g" -e "s/Llama-2-13b-hf/$weights/g" "$here/$1.json" >"$work/$1.json"
  aws sagemaker "$1" --cli-input-json "file://$work/$1.json"
}

case $step in
  data)
    # shellcheck disable=SC2046
    qlora fetch --compat article -o "$work/pages.jsonl" \
      $(sed -n 's|^  "\(https://aws.amazon.com/blogs/.*\)",$|\1|p' "$here/../article.toml")
    aws s3 cp "$work/pages.jsonl" "s3://$BUCKET/qlora/article/pages/pages.jsonl" ;;
  train)
    request create-training-job
    aws sagemaker wait training-job-completed-or-stopped --training-job-name "$name"
    aws sagemaker describe-training-job --training-job-name "$name" \
      --query '[TrainingJobStatus, FailureReason, FinalMetricDataList]' ;;
  deploy)
    request create-model
    request create-endpoint-config
    request create-endpoint
    aws sagemaker wait endpoint-in-service --endpoint-name "$name" ;;
  ask)
    # Without a name the adapter answers; the directory's name is that of the base.
    question=$(sed -n "s/.*\"form\":\"$form\",\"prompt\":\"\(.*\)\"}/\1/p" "$here/../article/questions.jsonl")
    for who in adapter base; do
      if [ "$form" = chat ]; then
        body="{\"model\": \"$who\", \"messages\": [{\"role\": \"user\", \"content\": \"$question\"}],
          \"max_tokens\": 200, \"temperature\": 0.01, \"top_p\": 0.9}"
      else
        body="{\"inputs\": \"$question\", \"parameters\": {\"adapter_id\": \"$who\", \"max_new_tokens\": 200,
          \"temperature\": 0.01, \"top_p\": 0.9, \"return_full_text\": true}}"
      fi
      printf '%s' "$body" >"$work/body.json"
      aws sagemaker-runtime invoke-endpoint --endpoint-name "$name" --content-type application/json \
        --body "fileb://$work/body.json" "$work/answer.json" >"$work/said.json"
      printf '%s: %s\n' "$who" "$(cat "$work/answer.json")"
    done ;;
  clean)
    aws sagemaker delete-endpoint --endpoint-name "$name"
    aws sagemaker delete-endpoint-config --endpoint-config-name "$name"
    aws sagemaker delete-model --model-name "$name" ;;
  *) echo "STEP is data, train, deploy, ask or clean, not $step" >&2; exit 2 ;;
esac
