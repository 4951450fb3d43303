"""Writes tests/data/tokenizers.json: tokenizer.json files and what the package `tokenizers` makes of random texts.

    pip install tokenizers==0.22.2 "transformers>=4.57,<5" sentencepiece protobuf
    python3 tests/data/make_tokenizers.py

One file per kind, trained on tokenizer_corpus.txt or converted from small_tokenizer.model, each with texts, the ids
without special tokens (as_text: a text that spells one is text; parsed: it becomes its id), and the decoded ids.
"""

import json
import os
import random
import shutil
import tempfile

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

here = os.path.dirname(os.path.abspath(__file__))
corpus = open(os.path.join(here, "tokenizer_corpus.txt"), encoding="utf-8").read()
llama3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
qwen2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
byte_level = pre_tokenizers.ByteLevel


shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # bytes that stand for themselves in pieces
hidden = [byte for byte in range(0x100) if byte not in shown]
spelled = {byte: chr(byte) for byte in shown} | {byte: chr(0x100 + at) for at, byte in enumerate(hidden)}
# Bytes without a piece in the vocabulary of SmolLM2.
holes = [0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)]


def trained(steps, ignore_merges=False, lacks=()):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=sorted(set(byte_level.alphabet()) - {spelled[byte] for byte in lacks}),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.splitlines(keepends=True), trainer)
    return tokenizer


def template(tokenizer, begin):
    return processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))])


def converted(legacy):
    from transformers import LlamaTokenizerFast

    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(os.path.join(here, "small_tokenizer.model"), os.path.join(folder, "tokenizer.model"))
        LlamaTokenizerFast.from_pretrained(folder, legacy=legacy).save_pretrained(folder)
        return Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))


def kinds():
    yield "gpt2", trained([byte_level(add_prefix_space=False)]), "<|end|>"
    yield "digits", trained(
        [pre_tokenizers.Digits(individual_digits=True), byte_level(add_prefix_space=False)]
    ), "<|end|>"
    tokenizer = trained(
        [pre_tokenizers.Split(Regex(llama3), "isolated"), byte_level(add_prefix_space=False, use_regex=False)],
        ignore_merges=True,
    )
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), template(tokenizer, "<|begin|>")]
    )
    yield "llama3", tokenizer, "<|end|>"
    tokenizer = trained([pre_tokenizers.Split(" ", "merged_with_next"), byte_level(use_regex=False)])
    tokenizer.add_tokens(
        [
            AddedToken("<plain>", normalized=False),
            AddedToken("  ", normalized=True),
            AddedToken("boat", single_word=True),
            AddedToken("<left>", lstrip=True),
            AddedToken("<right>", rstrip=True, normalized=False),
        ]
    )
    tokenizer.add_special_tokens([AddedToken("<both>", lstrip=True, rstrip=True)])
    yield "added", tokenizer, "<|end|>"
    yield "llama2_prepend", converted(legacy=True), "</s>"
    for scheme, split in (("first", False), ("always", True), ("never", True)):
        tokenizer = converted(legacy=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
        yield f"metaspace_{scheme}", tokenizer, "</s>"
    yield "holes", trained(
        [pre_tokenizers.Digits(individual_digits=True), byte_level(add_prefix_space=False)], lacks=holes
    ), "<|end|>"


    tokenizer = trained(
        [pre_tokenizers.Split(Regex(qwen2), "isolated"), byte_level(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.normalizer = normalizers.NFC()
    yield "nfc", tokenizer, "<|end|>"
    for form in ("NFD", "NFKC", "NFKD"):
        tokenizer = trained([byte_level(add_prefix_space=False)])
        tokenizer.normalizer = normalizers.Sequence(
            [
                normalizers.Strip(left=form != "NFD", right=form != "NFKC"),
                normalizers.Replace(Regex("[0-9]+"), "é"),
                normalizers.Replace("b", "b\u0301"),
                normalizers.Sequence([getattr(normalizers, form)(), normalizers.Lowercase()]),
                normalizers.Prepend("Å"),
            ]
        )
        yield form.lower(), tokenizer, "<|end|>"


words = corpus.split()
marks = [
    "<s>",
    "</s>",
    "<|begin|>",
    "<|end|>",
    "<plain>",
    "boat",
    "boats",
    "<left>",
    "<right>",
    "<both>",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\u1680",
    "\u2003",
    "\x85",
    "\u180e",
    "\x1c",
    "\ufeff",
    "'s",
    "'S",
    "\u017f",
    "'LL",
    "1234567",
    "٣٤",
    "½",
    "Ⅷ",
    "▁",
    "▁▁",
    "\u200d",
    "é",
    "e\u0301",
    "你好",
    "👩‍👩‍👧",
    "\0",
    "\U00014197",
    "\U0001d2c0",
    "\U000316a1",
    "\u0897",
]


lost = ["\x04", "\x13", "a\x1db", "\U00041234", "\U00080000x", "\x16\x16"]


# What normal forms change, leave, put into order, and what came after Unicode 9.
formed = [
    *["e\u0301", "é", "a\u0327\u0301", "a\u0301\u0327", "\u0344", "\u1e9b\u0323", "ﬁ", "①", "Ａ", "가"],
    *["\u1100\u1161\u11a8", "\u0958", "\u2126", "\ufdfa", "\u0301", "İ", "ẞ", "Σ", "\u212b", "\U0001d160"],
    *["\U00011935\U00011930", "\U00011938"],
    *["\u32ff", "\ua7cb", "\U00010d50", "a\u0897\u0323", "\U0001e08f\u0301", "q\u0307\u0323", "\u3000", "\x1c"],
]


def random_text(rng, name):
    out = []
    for _ in range(rng.randrange(1, 16)):
        kind = rng.random()
        if name == "holes" and rng.random() < 0.3:
            out.append(rng.choice(lost))
        elif name.startswith("nf") and rng.random() < 0.3:
            out.append(rng.choice(formed))
        elif kind < 0.3:
            out.append(rng.choice(words) + rng.choice(["", " ", "  ", "\n"]))
        elif kind < 0.6:
            out.append(rng.choice(marks))
        elif kind < 0.7:
            out.append(" " * rng.randrange(1, 6))
        elif kind < 0.85:
            out.append("".join(chr(rng.randrange(32, 127)) for _ in range(rng.randrange(1, 8))))
        else:
            out.append(
                "".join(
                    chr(
                        rng.choice(
                            [
                                rng.randrange(0x80, 0x3000),
                                rng.randrange(0x3000, 0xD7FF),
                                rng.randrange(0x10000, 0x20000),
                            ]
                        )
                    )
                    for _ in range(rng.randrange(1, 4))
                )
            )
    return "".join(out)


def main():
    rng = random.Random(1)
    out = {}
    for name, tokenizer, eos in kinds():
        cases = []
        for text in [""] + [random_text(rng, name) for _ in range(60)]:
            case = {"text": text}
            for mode in ("as_text", "parsed"):
                tokenizer.encode_special_tokens = mode == "as_text"
                case[mode] = tokenizer.encode(text, add_special_tokens=False).ids
            if name.startswith("nf"):  # per id of `parsed`, the character where it begins
                case["begins"] = [begin for begin, _ in tokenizer.encode(text, add_special_tokens=False).offsets]
            case["decoded"] = tokenizer.decode(case["as_text"], skip_special_tokens=True)
            cases.append(case)
        out[name] = {"eos": eos, "file": json.loads(tokenizer.to_str()), "cases": cases}
    with open(os.path.join(here, "tokenizers.json"), "w", encoding="utf-8") as file:
        json.dump(out, file, ensure_ascii=True, separators=(",", ":"), sort_keys=False)
        file.write("\n")


if __name__ == "__main__":
    main()
