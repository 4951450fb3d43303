"""Asks `qlora serve` with the clients that people have, and compares what they get with what the program says itself.

    python3 tests/interop/serving/clients.py PROGRAM ADAPTER ROWS.json MODULE...   the clients of one environment
    python3 tests/interop/serving/clients.py --table ROWS.json...                  the section of docs/interop.md

tests/interop/serving.sh makes the environments. A module has a function run(world) that gives its lists of checks.
Exits with 1 when something is not as it should be.
"""

import importlib
import json
import os
import sys
import tempfile
import traceback

heading = "## Clients of `qlora serve`"


def check(program, adapter, rows, modules):
    from common import World

    found = []
    with tempfile.TemporaryDirectory() as folder:
        world = World(os.path.abspath(program), os.path.abspath(adapter), folder)
        try:
            for module in modules:
                try:
                    found += [checks.row() for checks in importlib.import_module(module).run(world)]
                except Exception as error:  # the others are asked all the same
                    traceback.print_exc()
                    found.append({"client": module, "version": "", "about": [], "checks": 0, "wrong": [str(error)]})
        finally:
            world.stop()
    with open(rows, "w", encoding="utf-8") as file:
        json.dump(found, file, indent=1)
    return 1 if any(row["wrong"] for row in found) else 0


def table(paths):
    rows = []
    for path in paths:
        with open(path, encoding="utf-8") as file:
            rows += json.load(file)
    print(heading)
    print("""
Written by `sh tests/interop/serving.sh`, which trains an adapter for tiny-chat, serves both, and asks with the clients
below. Greedy texts must be those of `qlora generate` and `qlora chat`, with the adapter and without; numbers of tokens
those of the package sentencepiece; log-probabilities those of a numpy program, or of `qlora compare`, within 1e-4, and
those of one form of the wire those of the other within 1e-5. schemathesis sends what
[/openapi.json](serving.md#tgis-form) allows and what it does not. No part of the tests of a commit.
""")
    print("| client | version | asked for | checks | result |\n|---|---|---|---|---|")
    for row in rows:
        result = f"**{len(row['wrong'])} wrong**" if row["wrong"] else "as it should be"
        print(f"| {row['client']} | {row['version']} | {'; '.join(row['about'])} | {row['checks']:,} | {result} |")
    print("""
Tools and structured output are refused by name; for embeddings and OpenAI's Responses there is no path.
text-generation's chat streams are not read: that package wants `tool_calls` in each part, and takes OpenAI's `[DONE]`
for JSON. boto3 addresses `/endpoints/NAME/invocations`; SageMaker's platform turns that into the container's
`/invocations`, and so does the check. The frames in which the platform wraps a stream
(`invoke_endpoint_with_response_stream`) are the platform's. A description cannot say all: bodies that it allows may be
refused where a prompt and a reply have no room together, where fields exclude each other, and for turns that are not in
the chat form's order; [rules.py](../tests/interop/serving/rules.py) has all such sentences of the server, and the
checks allow no other.""")


if __name__ == "__main__":
    if sys.argv[1] == "--table":
        table(sys.argv[2:])
    else:
        sys.exit(check(*sys.argv[1:4], sys.argv[4:]))
