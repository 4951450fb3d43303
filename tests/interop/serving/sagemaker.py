"""The Python package boto3: SageMaker's runtime, with the container as its endpoint."""

import json

import boto3
from botocore.config import Config

from common import Checks, prompt, question, tokens


def run(world):
    checks = Checks("boto3 (sagemaker-runtime)", "boto3")
    runtime = boto3.client("sagemaker-runtime", endpoint_url=world.open.url, region_name="eu-west-1",
                           aws_access_key_id="none", aws_secret_access_key="none",
                           config=Config(retries={"max_attempts": 0}))

    def as_the_platform(request, **_):
        """The platform takes the endpoint's path, and hands the body to the container's."""
        request.url = request.url.replace("/endpoints/tuned/invocations", "/invocations")

    runtime.meta.events.register("before-send.sagemaker-runtime.InvokeEndpoint", as_the_platform)

    def invoke(body, **more):
        reply = runtime.invoke_endpoint(EndpointName="tuned", ContentType="application/json",
                                        Body=json.dumps(body), **more)
        checks.equal("the type", reply["ContentType"], "application/json")
        return json.load(reply["Body"])

    checks.about("invoke_endpoint with the three kinds of bodies")
    for name in ("tiny-chat", "tuned"):
        parameters = {"max_new_tokens": tokens, "adapter_id": name}
        checks.equal("TGI's body", invoke({"inputs": prompt, "parameters": parameters})[0]["generated_text"],
                     prompt + world.text[name])
        parameters["return_full_text"] = False
        checks.equal("the new text alone", invoke({"inputs": prompt, "parameters": parameters},
                                                  CustomAttributes="accept_eula=true"),
                     [{"generated_text": world.text[name]}])
        said = invoke({"model": name, "messages": [{"role": "user", "content": question}], "temperature": 0})
        checks.equal("a conversation", said["choices"][0]["message"]["content"], world.answer[name])
        checks.equal("its tokens", said["usage"]["prompt_tokens"], len(world.chat_ids))
        said = invoke({"model": name, "prompt": prompt, "max_tokens": tokens, "temperature": 0})
        checks.equal("a completion", said["choices"][0]["text"], world.text[name])

    checks.about("errors")
    error = checks.raises("a wrong value", runtime.exceptions.ClientError, lambda: invoke(
        {"inputs": prompt, "parameters": {"max_new_tokens": 5000}}))
    checks.equal("its status", error.response["ResponseMetadata"]["HTTPStatusCode"] if error else None, 422)
    return [checks]
