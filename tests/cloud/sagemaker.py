"""The requests of examples/sagemaker against botocore's service model, and submit.sh with the AWS CLI against moto.

    python3 tests/cloud/sagemaker.py [--short]

Makes a virtual environment with the packages that it needs in a folder that goes again; --short checks the requests
alone, and with the Python that QLORA_S3_PYTHON names where that has botocore.
"""
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

source = pathlib.Path(__file__).resolve().parent.parent.parent
examples = source / "examples/sagemaker"
operations = {"create-training-job": "CreateTrainingJob", "create-model": "CreateModel",
              "create-endpoint-config": "CreateEndpointConfig", "create-endpoint": "CreateEndpoint"}


def fail(what):
    sys.exit(f"FAILED: {what}")


def check_limits(shape, value, where):
    """Patterns, lengths and choices, which botocore leaves to the service. A pattern is for the whole value."""
    if shape.type_name == "structure":
        for name, inner in value.items():
            check_limits(shape.members[name], inner, f"{where}.{name}")
    elif shape.type_name == "list":
        for number, inner in enumerate(value):
            check_limits(shape.member, inner, f"{where}[{number}]")
    elif shape.type_name == "map":
        for name, inner in value.items():
            check_limits(shape.key, name, f"{where}: {name}")
            check_limits(shape.value, inner, f"{where}.{name}")
    limits = shape.metadata
    size = value if shape.type_name in ("integer", "float") else len(value) if hasattr(value, "__len__") else 0
    if not limits.get("min", size) <= size <= limits.get("max", size):
        fail(f"{where} is {value!r}; it must be {limits}")
    if shape.type_name == "string":
        pattern, choices = limits.get("pattern"), limits.get("enum")
        if choices and value not in choices:
            fail(f"{where} is {value!r}, which is none of {choices}")
        if pattern and not re.fullmatch(pattern, value):
            fail(f"{where} is {value!r}; it must match {pattern}")


def check_requests():
    import botocore.session
    from botocore.validate import ParamValidator
    model = botocore.session.get_session().get_service_model("sagemaker")
    for file, operation in operations.items():
        request = json.load(open(examples / f"{file}.json"))
        shape = model.operation_model(operation).input_shape
        report = ParamValidator().validate(request, shape)
        if report.has_errors():
            fail(f"{file}.json: {report.generate_report()}")
        check_limits(shape, request, file)
        broken = {**request, "Nonsense": 1}
        if not ParamValidator().validate(broken, shape).has_errors():
            fail("the validator takes anything")
    print(f"{len(operations)} requests are as botocore {botocore.__version__} describes them")


def submitted(folder):
    """submit.sh against moto: what the service then has."""
    import boto3
    from moto.server import ThreadedMotoServer
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    keys = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
    env = {**os.environ, **keys, "AWS_ENDPOINT_URL": url, "ACCOUNT": "123456789012", "REGION": "us-east-2",
           "BUCKET": "other-bucket", "ROLE": "other-role", "IMAGE": "other:1",
           "INSTANCE": "ml.g4dn.4xlarge",  # moto knows no g5
           "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"}
    client = boto3.client("sagemaker", endpoint_url=url, region_name="us-east-2", aws_access_key_id="any",
                          aws_secret_access_key="any")
    for model, weights in (("base", "Llama-2-13b-hf"), ("chat", "Llama-2-13b-chat-hf")):
        name = f"qlora-article-{model}"
        for step in ("train", "deploy"):
            ran = subprocess.run(["sh", examples / "submit.sh", step, model], env=env, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, text=True, timeout=300)
            if ran.returncode != 0:
                fail(f"submit.sh {step} {model}: {ran.stdout}")
        job = client.describe_training_job(TrainingJobName=name)
        wanted = json.load(open(examples / "create-training-job.json"))["HyperParameters"]
        expected = {
            "role": ("arn:aws:iam::123456789012:role/other-role", job["RoleArn"]),
            "instance": ("ml.g4dn.4xlarge", job["ResourceConfig"]["InstanceType"]),
            "image": ("123456789012.dkr.ecr.us-east-2.amazonaws.com/other:1",
                      job["AlgorithmSpecification"]["TrainingImage"]),
            "hyperparameters": (wanted, job["HyperParameters"]),
            "model channel": (f"s3://other-bucket/qlora/models/{weights}/",
                              job["InputDataConfig"][1]["DataSource"]["S3DataSource"]["S3Uri"]),
            "model": (name, client.describe_model(ModelName=name)["ModelName"]),
            "variant": (name, client.describe_endpoint_config(EndpointConfigName=name)["ProductionVariants"][0]
                        ["ModelName"]),
            "endpoint": ("InService", client.describe_endpoint(EndpointName=name)["EndpointStatus"])}
        for what, (wanted, got) in expected.items():
            if wanted != got:
                fail(f"{what} of {model}: {got!r}, not {wanted!r}")
        subprocess.run(["sh", examples / "submit.sh", "clean", model], env=env, check=True)
        if client.list_endpoints(NameContains=name)["Endpoints"]:
            fail("clean leaves the endpoint")
    server.stop()
    print("submit.sh train, deploy and clean: moto has what the files say, with the account's places")


python = os.environ.get("QLORA_S3_PYTHON") or sys.executable
if os.environ.get("QLORA_SAGEMAKER_VENV"):
    check_requests()
    if "--short" not in sys.argv:
        submitted(pathlib.Path(os.environ["QLORA_SAGEMAKER_VENV"]))
elif "--short" in sys.argv and subprocess.run([python, "-c", "import botocore"], capture_output=True).returncode == 0:
    sys.exit(subprocess.run([python, __file__, "--short"], env={**os.environ, "QLORA_SAGEMAKER_VENV": "-"}).returncode)
else:
    with tempfile.TemporaryDirectory() as made:
        began = time.monotonic()
        if subprocess.run([sys.executable, "-m", "venv", made]).returncode != 0:
            print("no virtual environment can be made")
            sys.exit(77 if "--short" in sys.argv else 1)
        packages = ["botocore==1.44.8"]
        if "--short" not in sys.argv:
            packages += ["boto3==1.44.8", "awscli==1.46.3", "moto[server,sagemaker,s3]==5.2.5"]
        if subprocess.run([f"{made}/bin/pip", "-q", "install", *packages]).returncode != 0:
            print("the packages cannot be installed")
            sys.exit(77 if "--short" in sys.argv else 1)
        print(f"packages: {time.monotonic() - began:.0f} s", file=sys.stderr)
        sys.exit(subprocess.run([f"{made}/bin/python", __file__, *sys.argv[1:]],
                                env={**os.environ, "QLORA_SAGEMAKER_VENV": made}).returncode)
