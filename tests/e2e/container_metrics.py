"""The metrics of a SageMaker job as the platform finds them: the regular expressions of MetricDefinitions in what a
training printed, against its record.

    python3 tests/e2e/container_metrics.py CREATE_TRAINING_JOB_JSON STDOUT METRICS_JSONL
"""
import json
import re
import sys

definitions = json.load(open(sys.argv[1]))["AlgorithmSpecification"]["MetricDefinitions"]
lines = open(sys.argv[2]).read().splitlines()
record = [json.loads(line) for line in open(sys.argv[3])]
keys = {"train:loss": "loss", "train:grad_norm": "grad_norm", "train:lr": "lr", "train:epoch": "epoch",
        "train:tokens_per_s": "tok_per_s"}
if {definition["Name"] for definition in definitions} != set(keys) | {"probes:retention"}:
    sys.exit(f"FAILED: other names than {sorted(keys)}")
measured = [step["probes"]["retention"]["value"] for step in record if "probes" in step]
if len(record) < 5 or len(measured) < 2:
    sys.exit("FAILED: a record of few steps")
for definition in definitions:
    expression = re.compile(definition["Regex"])
    if expression.groups != 1:
        sys.exit(f"FAILED: {definition} must have one group, its number")
    found = [float(match[1]) for match in map(expression.search, lines) if match]
    key = keys.get(definition["Name"])
    expected = [step[key] for step in record] if key else measured
    if found != expected:
        sys.exit(f"FAILED: {definition} finds {found}, and the record has {expected}")
