"""Compares the library with Python packages on fresh random models, adapters, texts and conversations.

    python3 tests/interop/interop.py PROBE ROWS.json [--seed N] [--scale F]   one environment; run.sh makes them
    python3 tests/interop/interop.py --table ROWS.json... >docs/interop.md

PROBE is the program interop_probe. What is compared is made anew from the seed, which is random without --seed and in
the result; the kinds of tokenizers, forms of chats and families of models are those of the committed generators
(tests/data/make_tokenizers.py, make_chats.py, tests/golden/make_families.py). Exits with 1 when something differs.
QLORA_LLAMA2_TOKENIZER may name LLaMA-2's tokenizer.model, which is not in this repository.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile

root = os.path.abspath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
logits_bound = 1e-4  # largest difference of a logit
smollm2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Run:
    def __init__(self, probe, seed, scale, folder):
        self.probe, self.seed, self.scale, self.folder = probe, seed, scale, folder
        self.rows = []

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def ask(self, verb, *arguments):
        subprocess.run([self.probe, verb, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)

    def asked(self, verb, of, questions):
        """What the probe answers to a list of questions."""
        with open(self.path("asked.json"), "w", encoding="utf-8") as file:
            json.dump(questions, file)
        self.ask(verb, of, self.path("asked.json"), self.path("answers.json"))
        with open(self.path("answers.json"), encoding="utf-8") as file:
            return json.load(file)

    def count(self, n):
        return max(1, int(n * self.scale))

    def equal(self, what, against, all_, wrong):
        self.add(what, against, all_, f"{wrong} differ", wrong == 0)

    def near(self, what, against, n, difference, bound):
        self.add(what, against, n, f"{difference:.1e}", difference < bound)

    def add(self, what, against, n, result, good):
        self.rows.append({"what": what, "against": against, "n": n, "result": result, "good": bool(good)})
        print(f"{'ok  ' if good else 'FAIL'} {what}, {against}: n {n}, {result}", flush=True)


def write_tokenizer(folder, file, eos):
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "tokenizer.json")
    with open(path, "w", encoding="utf-8") as out:
        json.dump(file, out)
    with open(os.path.join(folder, "tokenizer_config.json"), "w", encoding="utf-8") as out:
        json.dump({"eos_token": eos}, out)
    return path


def tokenizer_kinds():
    with open(os.path.join(root, "tests", "data", "tokenizers.json"), encoding="utf-8") as file:
        return json.load(file)


def tokenizers(run):
    import make_tokenizers
    from tokenizers import Tokenizer

    kinds = tokenizer_kinds()
    for name, kind in kinds.items():
        rng = random.Random(f"{run.seed} {name}")
        texts = [make_tokenizers.random_text(rng, name) for _ in range(run.count(100_000))]
        tokenizer = Tokenizer.from_str(json.dumps(kind["file"]))
        tokenizer.encode_special_tokens = True
        answers = run.asked("ids", write_tokenizer(run.path("kind", name), kind["file"], kind["eos"]), texts)
        wrong = 0
        for text, answer in zip(texts, answers):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            decoded = tokenizer.decode(ids, skip_special_tokens=True)
            wrong += ids != answer["ids"] or decoded != answer["decoded"]
        run.equal(f"ids and decoded texts, tokenizer.json of kind {name}", "tokenizers", len(texts), wrong)


# How published models split words; of those that do it in several steps the expressions with classes.
published = {
    "Qwen 2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
    "Tekken": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}"
    r"\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "DeepSeek V3": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "DeepSeek LLM": r"\s?\p{P}+|[一-龥ࠀ-一가-퟿]+|\s?\p{L}+",
}


def splits(run):
    """Every word loses its first character, so that the ids show where it begins."""
    import make_tokenizers

    gpt2 = tokenizer_kinds()["gpt2"]
    rng = random.Random(f"{run.seed} splits")
    for name, expression in published.items():
        texts = [make_tokenizers.random_text(rng, name) for _ in range(run.count(5000))]
        steps = [split_step(expression, "Isolated"), split_step(r"\A.", "Removed")]
        wrong = split_differently(run, gpt2, steps, texts)
        run.equal(f"words, split as {name} does", "tokenizers", len(texts), wrong)


def split_step(expression, behavior):
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": behavior, "invert": False}


def split_differently(run, kind, steps, texts):
    """How many texts have other ids when the tokenizer has no merges and these pre-tokenizers."""
    from tokenizers import Tokenizer

    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    file = {**kind["file"], "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, byte_level]}}
    file["model"] = {**file["model"], "merges": []}
    tokenizer = Tokenizer.from_str(json.dumps(file))
    tokenizer.encode_special_tokens = True
    answers = run.asked("ids", write_tokenizer(run.path("split"), file, kind["eos"]), texts)
    return sum(tokenizer.encode(text, add_special_tokens=False).ids != a["ids"] for text, a in zip(texts, answers))


def characters(run):
    """Classes of characters, over all characters: nothing is random here."""
    import make_regex_classes
    from tokenizers import Tokenizer

    expressions, every = make_regex_classes.expressions, make_regex_classes.every
    for name, value in (("expressions", expressions), ("every", every)):
        with open(run.path(f"{name}.json"), "w", encoding="utf-8") as file:
            json.dump(value, file)
    run.ask("matches", run.path("expressions.json"), run.path("every.json"), run.path("matches.json"))
    with open(run.path("matches.json"), encoding="utf-8") as file:
        ours = json.load(file)
    wrong = [e for e, places in zip(expressions, ours) if make_regex_classes.runs_of(e)[0] != places]
    what = "expressions, what each finds among all characters"
    run.equal(what, "tokenizers", len(expressions), len(wrong))
    kinds = tokenizer_kinds()
    rows = [every[at : at + 256] for at in range(0, len(every), 256)]
    digits = [{"type": "Digits", "individual_digits": True}, split_step("x.", "Removed")]
    texts = ["".join(f"x{character} " for character in row) for row in rows]
    wrong = split_differently(run, kinds["gpt2"], digits, texts)
    run.equal("rows of 256 characters, which are digits", "tokenizers", len(rows), wrong)
    tokenizer = Tokenizer.from_str(json.dumps(kinds["added"]["file"]))
    tokenizer.encode_special_tokens = True
    folder = write_tokenizer(run.path("kind", "added"), kinds["added"]["file"], kinds["added"]["eos"])
    for what, form in (("belong to words", "{}boat "), ("are stripped before a token", "a{}<left>")):
        texts = ["".join(form.format(character) for character in row) for row in rows]
        answers = run.asked("ids", folder, texts)
        wrong = sum(tokenizer.encode(t, add_special_tokens=False).ids != a["ids"] for t, a in zip(texts, answers))
        run.equal(f"rows of 256 characters, which {what}", "tokenizers", len(rows), wrong)


def sentencepiece(run):
    import make_tokenizers
    from sentencepiece import SentencePieceProcessor

    models = {"400 pieces": os.path.join(root, "tests", "data", "small_tokenizer.model")}
    if os.environ.get("QLORA_LLAMA2_TOKENIZER"):
        models["LLaMA-2"] = os.environ["QLORA_LLAMA2_TOKENIZER"]
    for name, path in models.items():
        rng = random.Random(f"{run.seed} {name}")
        texts = [make_tokenizers.random_text(rng, name) for _ in range(run.count(100_000))]
        model = SentencePieceProcessor(model_file=path)
        answers = run.asked("ids", path, texts)
        wrong = sum(model.encode(text) != answer["ids"] for text, answer in zip(texts, answers))
        run.equal(f"ids, tokenizer.model of {name}", "sentencepiece", len(texts), wrong)
        llama2_json(run, name, path, texts)


def llama2_json(run, name, path, texts):
    """tokenizer.json as transformers makes it of a tokenizer.model."""
    import shutil

    from transformers import LlamaTokenizerFast

    folder = run.path("converted", name.replace(" ", "_"))
    os.makedirs(folder)
    shutil.copy(path, os.path.join(folder, "tokenizer.model"))
    tokenizer = LlamaTokenizerFast.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tokenizer = LlamaTokenizerFast.from_pretrained(folder)
    tokenizer.backend_tokenizer.encode_special_tokens = True
    answers = run.asked("ids", os.path.join(folder, "tokenizer.json"), texts)
    encode = tokenizer.backend_tokenizer.encode
    wrong = sum(encode(text, add_special_tokens=False).ids != a["ids"] for text, a in zip(texts, answers))
    run.equal(f"ids, tokenizer.json converted from that of {name}", "transformers", len(texts), wrong)


def directories(run):
    """Merged models whose base has a tokenizer.model and no tokenizer.json, opened by AutoTokenizer."""
    import shutil

    import make_families
    import make_tokenizers
    from sentencepiece import SentencePieceProcessor
    from transformers import AutoTokenizer, __version__

    small = os.path.join(root, "tests", "data", "small_tokenizer.model")
    with open(os.path.join(root, "tests", "data", "conversions.json"), encoding="utf-8") as file:
        bases = {name: (case["files"], small) for name, case in json.load(file).items()}
    if os.environ.get("QLORA_LLAMA2_TOKENIZER"):
        bases["LLaMA-2"] = ({}, os.environ["QLORA_LLAMA2_TOKENIZER"])
    for name, (files, path) in bases.items():
        folder, merged = run.path("directory", name, "base"), run.path("directory", name, "merged")
        model = SentencePieceProcessor(model_file=path)
        vocab = model.vocab_size() + 3
        make_families.llama(**{**make_families.base, "vocab_size": vocab}).save_pretrained(folder)
        shutil.copy(path, os.path.join(folder, "tokenizer.model"))
        for file, value in files.items():
            with open(os.path.join(folder, file), "w", encoding="utf-8") as out:
                json.dump(value, out)
        with open(run.path("ids.json"), "w", encoding="utf-8") as out:
            json.dump(list(range(3, 19)), out)
        run.ask("train", folder, run.path("ids.json"), run.path("directory", name, "adapter"), 2, 4)
        run.ask("merge", folder, run.path("directory", name, "adapter"), merged)
        rng = random.Random(f"{run.seed} {name}")
        texts = [make_tokenizers.random_text(rng, name) for _ in range(run.count(1000))]

        def ids_of(folder, fast, special):
            tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=fast)
            return [tokenizer.encode(text, add_special_tokens=special) for text in texts]

        # transformers 5 makes another tokenizer of a tokenizer.model, with other merges and without <s>; beside a
        # tokenizer_config.json that names LlamaTokenizer it has rules of its own for any file. What it has to give is
        # then what the file says.
        if __version__.startswith("4."):
            for fast in (True, False):
                base, ours = ids_of(folder, fast, True), ids_of(merged, fast, True)
                # Where older files name another end mark, its slow class takes </s> for text, its fast one does not.
                odd = "</s>" if name == "older" and not fast else None
                wrong = sum(a != b for a, b, text in zip(base, ours, texts) if odd is None or odd not in text)
                what = f"ids by a merged model's directory, {'fast' if fast else 'slow'} ({name})"
                run.equal(what, "AutoTokenizer of its base", len(texts), wrong)
        if not files:
            # Marks that a text spells are ids here, and pieces to sentencepiece.
            plain = [at for at, text in enumerate(texts) if not any(mark in text for mark in ("<s>", "</s>", "<unk>"))]
            ours = ids_of(merged, True, True)
            wrong = sum([1, *model.encode(texts[at])] != ours[at] for at in plain)
            what = f"ids by AutoTokenizer of a merged model's directory ({name})"
            run.equal(what, "sentencepiece", len(plain), wrong)


def conversations(rng, make_chats, refused, n, system):
    """Random ones without the marks that a form refuses."""
    out = []
    while len(out) < n:
        messages = make_chats.conversation(rng)
        if not system and messages[0]["role"] == "system":
            continue
        if not any(tag in message["content"] for tag in refused for message in messages):
            out.append(messages)
    return out


def chats(run):
    import make_chats

    # Templates that are no built-in form: with a system prompt of its own, with a date, without a system prompt.
    special = {"smollm2": ("chatml", True), "llama31": ("llama3", True), "gemma": ("chatml", False)}
    templates = {**make_chats.others, "smollm2": smollm2}
    cases = [(form, kind, make_chats.forms[form]) for form, kind in make_chats.pairs]
    cases += [(name, "llama3" if name == "llama31" else "digits", templates[name]) for name in special]
    for name, kind, template in cases:
        form, system = special.get(name, (name, True))
        tokenizer = make_chats.tokenizer_of(form, kind)
        tokenizer.chat_template = template
        folder = run.path("chat", f"{name}_{kind}")
        path = write_tokenizer(folder, json.loads(tokenizer.backend_tokenizer.to_str()), tokenizer.eos_token)
        with open(os.path.join(folder, "tokenizer_config.json"), "w", encoding="utf-8") as file:
            config = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token, "chat_template": template}
            json.dump(config, file)
        rng = make_chats.Random(run.seed + len(run.rows))
        refused = make_chats.tags.get(form, []) + ["<|begin|>", "<|end|>", "<s>", "</s>"] * (name in special)
        asked = conversations(rng, make_chats, refused, run.count(1000), system)
        answers = run.asked("chats", os.path.dirname(path), asked)
        masked = "generation %}" in template
        wrong = 0
        for messages, answer in zip(asked, answers["chats"]):
            begun = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)
            whole = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=masked)
            same = begun["input_ids"] == answer["open"] and whole["input_ids"] == answer["ids"]
            wrong += not same or (masked and whole["assistant_masks"] != answer["answer"])
        what = "ids and labels" if masked else "ids"
        run.equal(f"{what} of chats, {name} on {kind}", "apply_chat_template", len(asked), wrong)


def largest(a, b):
    import torch

    if a.shape != b.shape or not torch.isfinite(a - b).all():
        return float("inf")
    return float((a - b).abs().max())


def randomize(model, torch):
    """Norms and biases, which start as ones and zeros."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += torch.randn_like(parameter) * 0.2


def families(run):
    import drawn
    import make_families
    import torch

    torch.set_num_threads(1)
    makes = {**make_families.models, "drawn": None}
    for name, make in makes.items():
        worst = {}
        n = run.count(5 if make else 60)
        for again in range(n):
            seed = f"{run.seed} {name} {again}"
            rng = random.Random(seed)
            torch.manual_seed(rng.getrandbits(63))
            model = (make() if make else drawn.model(rng)).eval()
            folder = run.path("model", name, str(again))
            try:
                differences = compare_model(run, model, folder, rng)
            except subprocess.CalledProcessError as error:
                print(error)
                differences = {"base": float("inf")}
            if max(differences.values()) >= logits_bound:
                print(f"seed {seed}: {differences}\n{model.config}", flush=True)
            for key, difference in differences.items():
                worst[key] = max(worst.get(key, 0.0), difference)
        for key, difference in worst.items():
            what, against = logits_of.get(key, (f"logits with an adapter that peft wrote ({key})", "peft"))
            run.near(f"{what}, {name}", against, n, difference, logits_bound)


def exports(run):
    """GGUF files of models and adapters of each family, read by the package gguf."""
    import exported
    import make_families
    import torch

    made = {kind: [0, 0] for kind in (*exported.quantized, "adapter")}
    for name, make in make_families.models.items():
        if "yarn" in name:  # llama.cpp has no settings of their own for it
            continue
        rng = random.Random(f"{run.seed} export {name}")
        torch.manual_seed(rng.getrandbits(63))
        folder = run.path("export", name)
        model = make()
        randomize(model, torch)
        model.to(rng.choice([torch.float16, torch.bfloat16, torch.float32])).save_pretrained(folder)
        for kind in exported.quantized:
            run.ask("export", folder, run.path("export.gguf"), kind)
            add(made[kind], exported.wrong_tensors(folder, run.path("export.gguf"), kind))
        for variant, options in adapters().items():
            written = os.path.join(folder, variant)
            ids = torch.randint(3, model.config.vocab_size, (1, make_families.tokens))
            written_by_peft(model.float(), options, written, ids)
            run.ask("export", folder, run.path("export.gguf"), "f16", written)
            add(made["adapter"], exported.wrong_matrices(folder, written, run.path("export.gguf")))
    for kind, (n, wrong) in made.items():
        what = "modules of adapters in GGUF files" if kind == "adapter" else f"tensors of GGUF files of type {kind}"
        run.equal(what, "gguf", n, wrong)


def add(sums, numbers):
    for at, number in enumerate(numbers):
        sums[at] += number


logits_of = {
    "base": ("logits", "transformers"),
    "trained": ("logits with an adapter that the library trained, read by peft", "peft"),
    "merged": ("logits of a model that the library merged, read by transformers", "peft, not merged"),
}


def compare_model(run, model, folder, rng):
    """Largest difference of a logit, by what was compared."""
    import make_families
    import torch
    from safetensors.torch import load_file

    randomize(model, torch)
    # Rounded, cut into files and read back, so that both sides have the same weights.
    dtype = rng.choice([torch.float16, torch.bfloat16, torch.float32])
    model.to(dtype).save_pretrained(folder, max_shard_size=rng.choice(["30KB", "1GB"]))
    model = type(model).from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(3, model.config.vocab_size, (1, make_families.tokens))
    ids_file = os.path.join(folder, "ids.json")
    with open(ids_file, "w", encoding="utf-8") as file:
        json.dump(ids[0].tolist(), file)

    def ours(*adapter):
        run.ask("logits", folder, ids_file, run.path("logits.safetensors"), *adapter)
        return load_file(run.path("logits.safetensors"))["logits"]

    with torch.no_grad():
        out = {"base": largest(ours(), model(ids).logits[0])}
    trained = os.path.join(folder, "trained")
    run.ask("train", folder, ids_file, trained, rng.choice([1, 3, 4, 8]), 8)
    out["trained"] = largest(ours(trained), with_peft(model, trained, ids))
    for variant, options in adapters().items():
        written = os.path.join(folder, variant)
        theirs = written_by_peft(model, options, written, ids)
        out[variant] = largest(ours(written), theirs)
    # The last of them, which has patterns.
    merged = os.path.join(folder, "merged")
    run.ask("merge", folder, written, merged)
    with torch.no_grad():
        merged_model = type(model).from_pretrained(merged, dtype=torch.float32).eval()
        out["merged"] = largest(theirs, merged_model(ids).logits[0])
    return out


def adapters():
    """Options of LoraConfig by name."""
    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    patterns = {"rank_pattern": {"q_proj": 6, "layers.0.mlp.down_proj": 2}, "alpha_pattern": {"v_proj": 3}}
    return {
        "all projections": {"r": 4, "lora_alpha": 8, "target_modules": every},
        "rank-stabilised, q and v": {
            "r": 3,
            "lora_alpha": 5,
            "use_rslora": True,
            "target_modules": ["q_proj", "v_proj"],
        },
        "the first layer": {
            "r": 2,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "down_proj"],
            "layers_to_transform": [0],
        },
        "a regular expression": {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": r".*\.(?:self_attn\.[qv]|mlp\.up)_proj",
            "rank_pattern": {r".*self_attn\.q.*": 2},
        },
        "all but some": {
            "r": 3,
            "lora_alpha": 8,
            "target_modules": "all-linear",
            "exclude_modules": ["layers.0.self_attn.q_proj", "v_proj"],
        },
        "patterns of rank and alpha": {"r": 4, "lora_alpha": 8, "target_modules": every, **patterns},
    }


def written_by_peft(model, options, folder, ids):
    """Saves an adapter with random A and B; returns the logits with it, and leaves the model as it was."""
    import torch
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, init_lora_weights=False, **options)
    )
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.1
    adapted.eval().save_pretrained(folder)
    return logits_and_unload(adapted, ids)


def with_peft(model, folder, ids):
    from peft import PeftModel

    return logits_and_unload(PeftModel.from_pretrained(model, folder).eval(), ids)


def logits_and_unload(adapted, ids):
    """An adapter without effect would prove nothing."""
    import torch

    with torch.no_grad():
        logits = adapted(ids).logits[0]
        with adapted.disable_adapter():
            if largest(logits, adapted(ids).logits[0]) < 0.01:
                sys.exit("an adapter changes no logit by more than 0.01")
    adapted.unload()
    return logits


def versions():
    from importlib.metadata import version

    names = ["torch", "transformers", "tokenizers", "peft", "safetensors", "sentencepiece", "jinja2"]
    names += ["bitsandbytes", "gguf"]
    return {name: version(name) for name in names}


def compare(options):
    sys.path[:0] = [os.path.join(root, "tests", "data"), os.path.join(root, "tests", "golden")]
    from quantized import quantized

    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(os.path.abspath(options.probe), seed, options.scale, folder)
        parts = (tokenizers, splits, characters, sentencepiece, directories, chats, exports, families, quantized)
        for part in parts:
            if options.only is None or part.__name__ in options.only:
                part(run)
    result = {"seed": seed, "python": sys.version.split()[0], "versions": versions(), "rows": run.rows}
    with open(options.rows, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
    return 0 if all(row["good"] for row in run.rows) else 1


def table(paths):
    results = []
    for path in paths:
        with open(path, encoding="utf-8") as file:
            results.append(json.load(file))
    head = [f"transformers {result['versions']['transformers']}" for result in results]
    print("""# Compared with Python packages

Written by `sh tests/interop/run.sh`, which makes virtual environments with the packages below, draws new random models,
adapters, texts and conversations each time it runs, and asks the packages and this library the same. It is no part of
the tests of a commit, which compare with files that the packages wrote ([tests/golden](../tests/golden/README.md),
[tests/data](../tests/data/README.md)). Weights are stored in float16, bfloat16 or float32, in one file or in several,
and everything is computed in float32 on a CPU. *n*: texts, conversations, expressions, rows, or models. The result is
how many of them differ, or the largest difference of a logit, which must stay below 1e-4. *Drawn* models have a shape,
a rotary embedding and options of their own, drawn as well; no layer is narrower than the rank of an adapter, since the
library refuses what peft would take there. Not compared: gradients, GPUs, and known differences, which
[models.md](models.md) names.
""")
    rows = [row for result in results for row in result["rows"]]
    print(f"Of {len(rows)} comparisons {sum(not row['good'] for row in rows) or 'none'} failed.\n")
    print("| | " + " | ".join(f"environment {at + 1}" for at in range(len(results))) + " |")
    print("|---" * (1 + len(results)) + "|")
    print("| seed | " + " | ".join(str(result["seed"]) for result in results) + " |")
    print("| Python | " + " | ".join(result["python"] for result in results) + " |")
    for name in results[0]["versions"]:
        print(f"| {name} | " + " | ".join(result["versions"][name] for result in results) + " |")
    print("\n| compared | with | n | " + " | ".join(head) + " |")
    print("|---" * (3 + len(results)) + "|")
    by_what = [{(row["what"], row["against"]): row for row in result["rows"]} for result in results]
    for what, against in by_what[0]:
        rows = [rows.get((what, against)) for rows in by_what]
        cells = [("{result}" if row["good"] else "**{result}**").format(**row) if row else "-" for row in rows]
        print(f"| {what} | {against} | {rows[0]['n']:,} | " + " | ".join(cells) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("probe", nargs="?")
    parser.add_argument("rows", nargs="?")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--only", metavar="PART", nargs="+", help="parts to compare, by the names of the functions")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of texts, conversations and models")
    parser.add_argument("--table", nargs="+", metavar="ROWS")
    options = parser.parse_args()
    if options.table:
        return table(options.table)
    return compare(options)


if __name__ == "__main__":
    sys.exit(main())
