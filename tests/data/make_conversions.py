"""Writes tests/data/conversions.json: what transformers makes of a tokenizer.model without a tokenizer.json.

    pip install "transformers>=4.57,<5" tokenizers==0.22.2 sentencepiece protobuf
    python3 tests/data/make_conversions.py

Per case the files beside small_tokenizer.model, the tokenizer.json that AutoTokenizer saves (without its model, which
in all cases is that of the kind llama2_prepend in tokenizers.json), and the ids of texts, in which marks become their
ids.
"""

import json
import os
import random
import shutil
import tempfile

import make_tokenizers
from transformers import AutoTokenizer

here = os.path.dirname(os.path.abspath(__file__))
pieces = 400  # of small_tokenizer.model


def token(content, **flags):
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {"content": content, **plain, **flags}


own = {str(id): token(content) for id, content in enumerate(["<unk>", "<s>", "</s>"])}
turns = {str(pieces): token("<|im_start|>"), str(pieces + 1): token("<|im_end|>", special=False, lstrip=True)}
llama = {"tokenizer_class": "LlamaTokenizer"}
cases = {
    "no configuration": {},
    "legacy": {"tokenizer_config.json": {**llama, "legacy": True, "added_tokens_decoder": own}},
    "not legacy": {"tokenizer_config.json": {**llama, "legacy": False}},
    "no space": {"tokenizer_config.json": {**llama, "add_prefix_space": False}},
    "no space, not legacy": {"tokenizer_config.json": {**llama, "add_prefix_space": False, "legacy": False}},
    "no begin": {"tokenizer_config.json": {**llama, "add_bos_token": False}},
    "end": {"tokenizer_config.json": {**llama, "add_eos_token": True}},
    "added": {"tokenizer_config.json": {**llama, "eos_token": "<|im_end|>", "added_tokens_decoder": {**own, **turns}}},
    "added, not legacy": {
        "tokenizer_config.json": {**llama, "legacy": False, "added_tokens_decoder": {**own, **turns}}
    },
    "a piece": {"tokenizer_config.json": {**llama, "added_tokens_decoder": {**own, "300": token("", rstrip=True)}}},
    "older": {
        "tokenizer_config.json": {**llama, "pad_token": "<pad>", "eos_token": "<|im_end|>"},
        "added_tokens.json": {"<pad>": pieces, "<|im_end|>": pieces + 1, "<|im_start|>": pieces + 2},
    },
}


def main():
    from sentencepiece import SentencePieceProcessor

    model = os.path.join(here, "small_tokenizer.model")
    cases["a piece"]["tokenizer_config.json"]["added_tokens_decoder"]["300"]["content"] = SentencePieceProcessor(
        model_file=model
    ).IdToPiece(300)
    make_tokenizers.marks.extend(["<|im_start|>", "<|im_end|>", "<pad>"])
    rng = random.Random(1)
    out = {}
    converted = None
    for name, files in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(model, os.path.join(folder, "tokenizer.model"))
            for file, value in {"config.json": {"model_type": "llama"}, **files}.items():
                with open(os.path.join(folder, file), "w", encoding="utf-8") as opened:
                    json.dump(value, opened)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            tokenizer.save_pretrained(folder)
            with open(os.path.join(folder, "tokenizer.json"), encoding="utf-8") as opened:
                saved = json.load(opened)
        converted = converted or saved["model"]
        assert saved.pop("model") == converted and tokenizer.is_fast
        texts = [make_tokenizers.random_text(rng, name) for _ in range(20)]
        ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        out[name] = {
            "files": files,
            "saved": saved,
            "eos": tokenizer.eos_token_id,
            "texts": [{"text": text, "ids": of} for text, of in zip(texts, ids)],
        }
    with open(os.path.join(here, "conversions.json"), "w", encoding="utf-8") as file:
        json.dump(out, file, ensure_ascii=True, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
