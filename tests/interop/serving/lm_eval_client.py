"""The Python package lm-eval with its model `local-completions`: a task of multiple choice and one of generation."""

import itertools
import json
import os
import subprocess

from common import Checks, key, model, root

count = 24  # questions


def run(world):
    from lm_eval.tasks import TaskManager  # here: it takes seconds

    checks = Checks("lm-eval", "lm-eval")
    probes = os.path.join(world.folder, "probes.jsonl")
    source = os.path.join(root, "examples", "quickstart", "knowledge_completion.jsonl")
    with open(source, encoding="utf-8") as file, open(probes, "w", encoding="utf-8") as out:
        out.writelines(itertools.islice(file, count))
    # What `qlora compare` says: of the weights in 4 bits, of the adapter on them, and of the weights in the files.
    figures = os.path.join(world.folder, "figures.json")
    subprocess.run([world.program, "compare", "-q", "-m", model, "-a", world.adapter, "--probes", probes,
                    "--max-new-tokens", "8", "--json", figures], check=True, stdout=subprocess.DEVNULL)
    with open(figures, encoding="utf-8") as file:
        variants = json.load(file)["variants"]
    tasks = TaskManager()
    for variant, name, server, secret in (("nf4", "tiny-chat", world.open, None), ("tuned", "tuned", world.open, None),
                                          ("w16", "tiny-chat", world.locked, key)):
        choices(checks, tasks, probes, variants[variant]["figures"]["knowledge"], name, server, secret)
    replies(checks, tasks, probes, world)
    return [checks]


def evaluated(task, tasks, name, server, secret, **more):
    from lm_eval.evaluator import simple_evaluate

    result = simple_evaluate(
        model="local-completions", tasks=[task], task_manager=tasks, log_samples=True, bootstrap_iters=0,
        model_args={"model": name, "base_url": server.url + "/v1/completions", "tokenizer_backend": "huggingface",
                    "tokenizer": model, "add_bos_token": True, "max_length": 512,
                    "header": {"Authorization": f"Bearer {secret or 'none'}"}, **more})
    samples = sorted(result["samples"][task["task"]], key=lambda sample: sample["doc_id"])
    return result["results"][task["task"]], samples


def choices(checks, tasks, probes, figures, name, server, secret):
    if name == "tuned":
        checks.about("a task of multiple choice, beside `qlora compare`")
    task = {"task": "choices", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": probes}},
            "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{prompt}}",
            "doc_to_choice": "{{[answer, twin] + distractors}}", "doc_to_target": 0, "target_delimiter": " ",
            "metric_list": [{"metric": "acc"}]}
    # The locked server runs one request and lets none wait.
    at_once = {"batch_size": 1} if secret else {"batch_size": 4, "num_concurrent": 3}
    result, samples = evaluated(task, tasks, name, server, secret, **at_once)
    checks.equal("questions", len(samples), count)
    checks.near("share of right choices", result["acc,none"], figures["choice"]["value"], 1e-9)
    values = [[float(value) for value, _ in sample["filtered_resps"]] for sample in samples]
    margin = sum(of[0] - max(of[1:]) for of in values) / count
    checks.near("nats between the right one and the likeliest other", margin, figures["margin"]["value"])


def replies(checks, tasks, probes, world):
    checks.about("a task of generation with six stop strings")
    stops = [".", "\n", " and", " which", "Question:", "!"]
    task = {"task": "replies", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": probes}},
            "test_split": "test", "output_type": "generate_until", "doc_to_text": "{{prompt}}",
            "doc_to_target": "{{answer}}", "target_delimiter": " ",
            "generation_kwargs": {"until": stops, "max_gen_toks": 12, "temperature": 0},
            "metric_list": [{"metric": "exact_match"}]}
    _, samples = evaluated(task, tasks, "tuned", world.open, None, num_concurrent=4, tokenized_requests=False)
    for sample in samples[:6]:
        text = world.verb("generate", model, "-p", sample["doc"]["prompt"], "--temperature", "0", "--adapter",
                          world.adapter, "--max-new-tokens", "12")["text"]
        wanted = text[:min([text.find(stop) for stop in stops if stop in text], default=len(text))]
        checks.equal("reply, as `qlora generate` has it", sample["filtered_resps"][0], wanted)
