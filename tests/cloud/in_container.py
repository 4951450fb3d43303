"""`train` and `serve` in the folder that tests/cloud/dockerfile.py made of the Dockerfile, as SageMaker starts them.

    python3 tests/cloud/in_container.py IMAGE_JSON SOURCE WORK
"""
import contextlib
import http.server
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import boto3
import botocore

image = json.load(open(sys.argv[1]))
source, work = pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
root = pathlib.Path(image["root"])
ml = root / "opt/ml"


def fail(what):
    sys.exit(f"FAILED: {what}")


def container(argument, env=None):
    """`docker run IMAGE ARGUMENT`; nothing of this machine's environment comes along."""
    return subprocess.Popen([shutil.which("chroot"), root, *image["entrypoint"], argument],
                            env={"PATH": "/usr/local/bin:/usr/bin:/bin", **image["env"], **(env or {})},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lay_out(checkpoints=None):
    """A new container's /opt/ml, with the checkpoints that S3 has."""
    shutil.rmtree(ml, ignore_errors=True)
    for folder in ("input/config", "input/data/training", "model", "output", "checkpoints"):
        (ml / folder).mkdir(parents=True)
    shutil.copytree(source / "examples/models/tiny-chat", ml / "input/data/model")
    (ml / "input/data/training/documents.jsonl").write_text("".join(
        json.dumps({"text": f"The price of the Vorzana {i} is {7 * i}. Nothing else costs {7 * i}."}) + "\n"
        for i in range(40)))
    job = json.load(open(source / "examples/sagemaker/create-training-job.json"))
    hyper = {**job["HyperParameters"], "seq": "64", "compat": "none", "lr": "2e-3", "epochs": "2", "device": "cpu",
             "checkpoint_every": "1"}
    write = lambda name, value: (ml / "input/config" / name).write_text(json.dumps(value))  # noqa: E731
    write("hyperparameters.json", hyper)
    write("inputdataconfig.json", {channel["ChannelName"]: {"TrainingInputMode": channel["InputMode"],
                                                            "S3DistributionType": "FullyReplicated",
                                                            "RecordWrapperType": "None"}
                                   for channel in job["InputDataConfig"]})
    write("resourceconfig.json", {"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "eth0"})
    if checkpoints:
        shutil.copytree(checkpoints, ml / "checkpoints", dirs_exist_ok=True)


@contextlib.contextmanager
def platform():
    """What SageMaker does before an endpoint: hands bodies to the container's /invocations. Gives its address."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked = urllib.request.Request("http://127.0.0.1:8080/invocations", body,
                                           {"Content-Type": self.headers["Content-Type"]})
            try:
                with urllib.request.urlopen(asked) as answer:
                    status, text = answer.status, answer.read()
            except urllib.error.HTTPError as error:
                status, text = error.code, error.read()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def trained(process):
    out, err = process.communicate()
    return process.returncode, out, err


if shutil.which("python3", path=str(root / "usr/bin")):
    fail("Python is in the image")

# One training whole, one that SIGTERM interrupts and a second container ends: the same files.
lay_out()
code, out, err = trained(container("train"))
if code != 0 or "step=1 " not in out:
    fail(f"train: {code}\n{out}\n{err}")
whole = {file.name: file.read_bytes() for file in (ml / "model").iterdir()}
print(f"train: {out.splitlines()[-1]}")

lay_out()
process = container("train")
for line in process.stdout:
    if line.startswith("step=2 "):
        process.send_signal(signal.SIGTERM)
        break
code, out, err = trained(process)
if code != 6 or (ml / "output/failure").exists() or any((ml / "model").iterdir()):
    fail(f"an interrupted train: {code}\n{err}")
shutil.rmtree(work / "checkpoints", ignore_errors=True)
shutil.copytree(ml / "checkpoints", work / "checkpoints")
lay_out(work / "checkpoints")
code, out, err = trained(container("train"))
if code != 0 or "resuming after step" not in err:
    fail(f"the second container: {code}\n{err}")
if {file.name: file.read_bytes() for file in (ml / "model").iterdir()} != whole:
    fail("an interrupted training leaves other files")
print("interrupted and resumed: the same bytes")

# A failure says why.
adapter = work / "adapter"
shutil.rmtree(adapter, ignore_errors=True)
shutil.copytree(ml / "model", adapter)
lay_out()
(ml / "input/config/hyperparameters.json").write_text('{"rnk": "8"}')
code, out, err = trained(container("train"))
if code != 2 or "`rnk` is unknown" not in (ml / "output/failure").read_text():
    fail(f"a failure: {code}\n{err}")

# The endpoint: the adapter as /opt/ml/model, its base as an additional source.
shutil.rmtree(ml)
shutil.copytree(adapter, ml / "model")
shutil.copytree(source / "examples/models/tiny-chat", ml / "additional-model-data-sources/base")
model = json.load(open(source / "examples/sagemaker/create-model.json"))["PrimaryContainer"]["Environment"]
# The small model reads 512 tokens; the limits of the example are those of LLaMA-2.
env = {**model, "MAX_INPUT_LENGTH": "256", "MAX_TOTAL_TOKENS": "512"}
server = container("serve", env)
try:
    deadline = time.monotonic() + 300
    while True:
        try:
            with urllib.request.urlopen("http://127.0.0.1:8080/ping") as answer:
                break
        except (urllib.error.URLError, ConnectionError):
            if server.poll() is not None or time.monotonic() > deadline:
                fail(f"serve: {trained(server)}")
            time.sleep(0.2)
    if answer.status != 200:
        fail(f"/ping: {answer.status}")
    with platform() as url:
        runtime = boto3.client("sagemaker-runtime", endpoint_url=url, region_name="eu-west-1",
                               aws_access_key_id="any", aws_secret_access_key="any",
                               config=botocore.config.Config(retries={"max_attempts": 0}))

        def asked(**body):
            said = runtime.invoke_endpoint(EndpointName="qlora", ContentType="application/json", Body=json.dumps(body))
            return json.loads(said["Body"].read())

        def texts(**parameters):
            body = {"inputs": "The price of the", "parameters": {"max_new_tokens": 12, **parameters}}
            return asked(**body)[0]["generated_text"]

        unnamed, tuned, base = texts(), texts(adapter_id="adapter"), texts(adapter_id="base")
        if unnamed != tuned or tuned == base:
            fail(f"the adapter does not answer: {unnamed!r}, {tuned!r}, {base!r}")
        chat = asked(messages=[{"role": "user", "content": "What is the price?"}], max_tokens=8)
        if chat["model"] != "adapter" or not chat["choices"]:
            fail(f"a chat: {chat}")
        # The script's own question, twice to each form of body, through the AWS CLI.
        for form in ("base", "chat"):
            said = subprocess.run(["sh", source / "examples/sagemaker/submit.sh", "ask", form], check=True, text=True,
                                  stdout=subprocess.PIPE, env={
                                      **os.environ, "ACCOUNT": "1", "REGION": "eu-west-1", "BUCKET": "b", "ROLE": "r",
                                      "AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any",
                                      "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": url,
                                      "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"}).stdout
            answers = dict(line.split(": ", 1) for line in said.splitlines())
            if sorted(answers) != ["adapter", "base"] or answers["adapter"] == answers["base"]:
                fail(f"submit.sh ask {form}: {said}")
            print(f"submit.sh ask {form}: two answers")
finally:
    server.send_signal(signal.SIGTERM)
code, out, err = trained(server)
if code != 0:
    fail(f"serve after SIGTERM: {code}\n{err}")
print(f"serve: {tuned!r} with the adapter, {base!r} without")
