"""`qlora serve` in a container that a training left its adapter to: who names no model gets the adapter's answer.

    python3 tests/e2e/container_served.py PROGRAM

QLORA_ML_ROOT and HF_MODEL_ID are set as SageMaker's requests of examples/sagemaker set them.
"""
import json
import os
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "serve"))
import abuse_server  # noqa: E402

program, prompt, tokens = sys.argv[1], "Document 7 says that", 12
base, adapter = os.environ["HF_MODEL_ID"], pathlib.Path(os.environ["QLORA_ML_ROOT"]) / "model"


def generated(*arguments):
    run = subprocess.run(
        [program, "generate", base, "--prompt", prompt, "--temperature", "0", "--max-new-tokens", str(tokens), "-q",
         "--threads", "1", *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return run.stdout.removesuffix("\n")


def same(what, got, expected):
    if got != expected:
        sys.exit(f"FAILED: {what}: {got!r}, not {expected!r}")


before, after = generated(), generated("--adapter", str(adapter))
same("training changes nothing: the test needs another prompt", before == after, False)
with abuse_server.Server(program, "--device=cpu") as server:
    same("/ping", server.ask("GET", "/ping")[0], 200)

    def invoked(**body):
        status, answer = server.ask("POST", "/invocations", body)
        same(f"status of {body}", status, 200)
        return json.loads(answer)

    def continued(**parameters):
        return invoked(inputs=prompt, parameters={"max_new_tokens": tokens, **parameters})[0]["generated_text"]

    same("without a name", continued(), after)
    same("the adapter", continued(adapter_id="adapter"), after)
    same("the base", continued(adapter_id=pathlib.Path(base).name), before)
    completion = invoked(prompt=prompt, max_tokens=tokens, temperature=0)
    same("OpenAI's form without a name", (completion["model"], prompt + completion["choices"][0]["text"]),
         ("adapter", after))
