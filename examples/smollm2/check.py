"""Checks the directory that convert.py wrote, and what the program computes with it, against other implementations.

    pip install torch transformers xllamacpp
    python3 examples/smollm2/check.py out/smollm2 GGUF PROGRAM

Greedy continuations: llama.cpp reads the GGUF file itself, transformers and the program read the directory. llama.cpp
rounds activations to 8 bits, so that a close choice falls otherwise now and then: of its first words 85 % must be those
of transformers. The program's continuations must be those of transformers in all cases but one. Ids of whole texts must
be equal, their losses within 1e-3 nats per token.
"""

import json
import math
import os
import random
import subprocess
import sys
import tempfile

import general
import numpy
import torch
import xllamacpp
from transformers import AutoModelForCausalLM, AutoTokenizer

out, gguf, program = sys.argv[1:4]
model_dir = os.path.join(out, "model")
tokenizer = AutoTokenizer.from_pretrained(model_dir)
model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
rng = random.Random(7)
prompts = [prompt for _, _, prompt, _ in rng.sample(list(general.pool()), 40)]
length = 12
failures = []


def expect(what, good, all_, least):
    print(f"{what}: {good} of {all_} (at least {least})", flush=True)
    if good < least:
        failures.append(what)


def with_transformers(ids):
    ids = torch.tensor([ids])
    with torch.no_grad():
        made = model.generate(ids, max_new_tokens=length, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


def program_json(*arguments):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "result.json")
        subprocess.run([program, *arguments, "--json", path, "--quiet"], check=True, stdout=subprocess.DEVNULL)
        with open(path, encoding="utf-8") as file:
            return json.load(file)


settings = xllamacpp.CommonParams()
settings.model.path = gguf
settings.n_ctx, settings.n_parallel, settings.warmup = 1024, 1, False
server = xllamacpp.Server(settings)
theirs = [with_transformers(tokenizer(prompt).input_ids) for prompt in prompts]
llama = []
for prompt in prompts:
    answer = server.handle_completions({"prompt": prompt, "max_tokens": length, "temperature": 0})
    llama.append(answer["choices"][0]["text"])
ours = []
with tempfile.TemporaryDirectory() as folder:
    asked = os.path.join(folder, "asked.jsonl")
    with open(asked, "w", encoding="utf-8") as file:
        for prompt in prompts:
            file.write(json.dumps({"form": "completion", "prompt": prompt}) + "\n")
    sampling = ["--temperature", "0", "--max-new-tokens", str(length)]
    full = ["--full", model_dir, "--questions", asked]
    ours = [e["answers"]["full"] for e in program_json("compare", "-m", model_dir, *full, *sampling)["answers"]]


def same(a, b):
    return sum(x.strip() == y.strip() for x, y in zip(a, b))


def same_start(a, b):
    """Of the first word, which is what the study's probes look at."""
    return sum(x.split()[:1] == y.split()[:1] for x, y in zip(a, b))


expect("first words of llama.cpp and transformers", same_start(llama, theirs), len(prompts), 0.85 * len(prompts))
expect("continuations of the program and transformers", same(ours, theirs), len(prompts), len(prompts) - 1)

question = [{"role": "user", "content": "What is the capital of France?"}]
rendered = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
reply = program_json("chat", model_dir, "--base", "full", "-p", question[0]["content"], *sampling)["turns"][0][
    "assistant"
]
expect("replies", int(reply.strip() == with_transformers(tokenizer(rendered).input_ids).strip()), 1, 1)

texts = []
for _ in range(40):
    points = [
        rng.choice([rng.randrange(32, 127), rng.randrange(0xA0, 0x3000), 10, 0x1F600, 0x4F60, 4]) for _ in range(60)
    ]
    texts.append("".join(chr(point) for point in points) + " " + rng.choice(prompts))
with tempfile.TemporaryDirectory() as folder:
    pages = os.path.join(folder, "pages.jsonl")
    with open(pages, "w", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"text": text}) + "\n")
    data = os.path.join(folder, "data")
    program_json("pack", pages, "--model", model_dir, "--out", data, "--seq", "512", "--split", "pad")
    shard = next(name for name in sorted(os.listdir(data)) if name.endswith(".safetensors"))
    with open(os.path.join(data, shard), "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        rest = file.read()
    at = header["input_ids"]["data_offsets"]
    packed = numpy.frombuffer(rest[at[0] : at[1]], "<i4" if header["input_ids"]["dtype"] == "I32" else "<u2").tolist()
end = tokenizer.eos_token_id
documents, begin = [], 0
for place, token in enumerate(packed):
    if token == end:
        if place > begin:
            documents.append(tuple(packed[begin:place]))
        begin = place + 1
wanted = [tuple(tokenizer(text).input_ids) for text in texts]
expect("texts with the ids of transformers", sum(text in set(documents) for text in wanted), len(texts), len(texts))

with tempfile.TemporaryDirectory() as folder:
    probes = os.path.join(folder, "texts.jsonl")
    plain = [" ".join(rng.sample(prompts, 4)) for _ in range(4)]
    with open(probes, "w", encoding="utf-8") as file:
        for text in plain:
            file.write(json.dumps({"kind": "text", "text": text, "domain": "plain"}) + "\n")
    variants = program_json("compare", "-m", model_dir, "--full", model_dir, "--probes", probes, *sampling)["variants"]
    ours = variants["w16"]["figures"]["text_plain"]["value"]
nats = tokens = 0
for text in plain:
    ids = torch.tensor([tokenizer(text).input_ids + [end]])
    with torch.no_grad():
        logits = model(ids).logits[0, :-1].log_softmax(-1)
    nats -= logits.gather(1, ids[0, 1:, None]).sum().item()
    tokens += ids.shape[1] - 1
print(f"loss of the program {ours:.6f}, of transformers {nats / tokens:.6f} nats per token", flush=True)
if not math.isclose(ours, nats / tokens, abs_tol=1e-3):
    failures.append("losses")
sys.exit(f"differs: {', '.join(failures)}" if failures else 0)
