"""schemathesis: all of its checks over what /openapi.json describes, with a key and with the routes for adapters."""

import json
import os
import subprocess
import sys

from common import Checks, Server, key, root

here = os.path.dirname(os.path.abspath(__file__))


def run(world):
    checks = Checks("schemathesis", "schemathesis")
    checks.about("bodies that the description allows and such that it does not, methods, keys")
    probes = os.path.join(root, "examples", "quickstart", "retention.jsonl")
    server = Server(world.program, "--admin", "--adapter", "tuned=" + world.adapter, "--probes", probes, key=key)
    report = os.path.join(world.folder, "schemathesis.json")
    try:
        command = [os.path.join(os.path.dirname(sys.executable), "st"), "run", server.url + "/openapi.json",
                   "--header", "Authorization: Bearer " + key, "--phases", "examples,coverage,fuzzing,stateful",
                   "--exclude-checks", "positive_data_acceptance",  # accepted_or_ruled_out of rules.py instead
                   "--max-examples", os.environ.get("QLORA_EXAMPLES", "100"), "--continue-on-failure", "--no-color",
                   "--report", "json", "--report-json-path", report, "--generation-database", "none"]
        if os.environ.get("QLORA_SEED"):
            command += ["--seed", os.environ["QLORA_SEED"]]
        output = subprocess.run(command, env=os.environ | {"SCHEMATHESIS_HOOKS": os.path.join(here, "rules.py")},
                                cwd=world.folder, capture_output=True, text=True).stdout
        with open(report, encoding="utf-8") as file:
            found = json.load(file)
    finally:
        code = server.stop()
    checks.equal("how the server ended", code, 0)
    checks.done += found["test_cases"]["generated"]
    checks.equal("operations", found["operations"]["tested"], found["operations"]["total"])
    checks.equal("errors", found["errors"], [])
    for failure in found["failures"]:
        checks.wrong.append(f"{failure['title']}: {failure['operations']}")
    if checks.wrong:
        print(output)
    return [checks]
