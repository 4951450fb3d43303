"""A job of two models, served by one process from its output directory: all four models of the article's job.

    python3 tests/e2e/job_served.py PROGRAM OUT BASE CHAT

OUT is what `qlora run` wrote for the models "base" (directory BASE) and "chat" (CHAT), each with an arm "qlora".
Greedy texts are to be those of `qlora generate`.
"""
import json
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "serve"))
import abuse_server  # noqa: E402

program, out = sys.argv[1], pathlib.Path(sys.argv[2])
folders = {"base": sys.argv[3], "chat": sys.argv[4]}
prompt, tokens = "The price of the", 12


def generated(model, *arguments):
    run = subprocess.run(
        [program, "generate", model, "--prompt", prompt, "--temperature", "0", "--max-new-tokens", str(tokens), "-q",
         "--threads", "1", *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return run.stdout.removesuffix("\n").removeprefix(prompt)


def same(what, got, expected):
    if got != expected:
        sys.exit(f"FAILED: {what}: {got!r}, not {expected!r}")


def post(server, path, **body):
    status, answer = server.ask("POST", path, body)
    return status, answer.decode()


def completed(server, **body):
    status, answer = post(server, "/v1/completions", prompt=prompt, temperature=0, max_tokens=tokens, **body)
    same(f"status for {body}", status, 200)
    return json.loads(answer)["choices"][0]["text"]


texts = {}
for name, folder in folders.items():
    texts[name] = generated(folder)
    texts[f"{name}-qlora"] = generated(folder, "--adapter", str(out / name / "qlora/train/adapter"))
same("two bases say the same: the test needs another prompt", texts["base"] == texts["chat"], False)

with abuse_server.Server(program, str(out)) as server:
    status, answer = server.ask("GET", "/v1/models")
    models = json.loads(answer)["data"]
    same("names", [model["id"] for model in models], ["base", "base-qlora", "chat", "chat-qlora"])
    same("parents", [model["parent"] for model in models], [None, "base", None, "chat"])
    for name, text in texts.items():
        same(f"text of {name}", completed(server, model=name), text)
    same("text without a name", completed(server), texts["base"])
    same("no strength", completed(server, model="chat-qlora@0"), texts["chat"])
    status, answer = post(server, "/generate", inputs=prompt,
                          parameters={"adapter_id": "chat-qlora", "max_new_tokens": tokens})
    same("TGI's form", json.loads(answer)["generated_text"], texts["chat-qlora"])
    status, answer = post(server, "/v1/completions", prompt=prompt, model="other-qlora")
    same("status of an unknown name", (status, json.loads(answer)["error"]["code"]), (404, "model_not_found"))

    # All four at once: their texts, and the first token at which they part, by the events themselves.
    names = list(texts)
    status, answer = post(server, "/compare", models=names, prompt=prompt, temperature=0, max_tokens=tokens)
    same("status of the comparison", status, 200)
    events = [json.loads(line[len("data: "):]) for line in answer.splitlines() if line.startswith("data: ")]
    ids = {name: [event["id"] for event in events if event["event"] == "token" and names[event["model"]] == name]
           for name in names}
    for event in events:
        if event["event"] == "end":
            same(f"compared text of {names[event['model']]}", event["text"], texts[names[event["model"]]])
    place = 0
    while len({tuple(of[place:place + 1]) for of in ids.values()}) == 1:
        place += 1
    same("the first place where they part", events[-1], {"event": "done", "parted": place})
    metrics = server.metrics()
    same("slots of two bases", metrics["qlora_slots"], 16)
    server.stop()

# The same by name, with an adapter on the second base, and what cannot be meant.
adapter = out / "chat/qlora/train/adapter"
with abuse_server.Server(program, "two=" + folders["chat"], "one=" + folders["base"], "--adapter",
                         f"tuned={adapter}@two", "--slots", "3") as server:
    same("slots", server.metrics()["qlora_slots"], 6)
    same("an adapter of the second", completed(server, model="tuned"), texts["chat-qlora"])
    same("the second", completed(server, model="two"), texts["chat"])
    server.stop()
for arguments, words in ((["--adapter", f"tuned={adapter}"], "NAME=DIR@BASE"),
                         (["--adapter", f"tuned={adapter}@three"], "none of the bases")):
    run = subprocess.run([program, "serve", "--port", "0", "one=" + folders["base"], "two=" + folders["chat"],
                          *arguments], capture_output=True, text=True)
    same(f"exit code of {arguments}", run.returncode, 2)
    same(f"{words!r} in {run.stderr!r}", words in run.stderr, True)
print("all four models answer")
