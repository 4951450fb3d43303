"""Writes a Hugging Face directory from a GGUF file of a LLaMA-architecture model with a byte-level tokenizer.

    python3 examples/smollm2/convert.py SmolLM2-135M-Instruct.Q4_1.gguf out/smollm2/model

Needs numpy only. Weights that the file holds in 4 or 8 bits are computed back to float16: the model is the file's, not
the one that was quantized. Reads F32, F16, Q4_0, Q4_1 and Q8_0 tensors and the pre-tokenizer "smollm"; anything else is
an error that says so. Writes config.json, generation_config.json, model.safetensors, tokenizer.json,
tokenizer_config.json and special_tokens_map.json. The folder appears whole or not at all.
"""

import json
import os
import shutil
import struct
import sys

import numpy

scalars = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
string, array = 8, 9
control_token, user_token = 3, 4  # values of tokenizer.ggml.token_type


class Gguf:
    """The metadata of a GGUF file, and its tensors as float32 arrays of (rows, columns)."""

    def __init__(self, path):
        self.path = path
        self.file = open(path, "rb")
        if self.file.read(4) != b"GGUF":
            sys.exit(f"{path}: is no GGUF file")
        version = self.number("I")
        if version not in (2, 3):
            sys.exit(f"{path}: is GGUF version {version}; 2 and 3 can be read")
        tensors, keys = self.number("Q"), self.number("Q")
        self.values = {}
        for _ in range(keys):
            key = self.text()
            self.values[key] = self.value(self.number("I"))
        self.tensors = {}
        for _ in range(tensors):
            name = self.text()
            shape = [self.number("Q") for _ in range(self.number("I"))][::-1]
            self.tensors[name] = (shape, self.number("I"), self.number("Q"))
        alignment = self.values.get("general.alignment", 32)
        self.data = -(-self.file.tell() // alignment) * alignment

    def number(self, code):
        return struct.unpack("<" + code, self.file.read(struct.calcsize("<" + code)))[0]

    def text(self):
        return self.file.read(self.number("Q")).decode()

    def value(self, kind):
        if kind == string:
            return self.text()
        if kind == array:
            of = self.number("I")
            return [self.value(of) for _ in range(self.number("Q"))]
        return self.number(scalars[kind])

    def get(self, key):
        if key not in self.values:
            sys.exit(f"{self.path}: has no {key}")
        return self.values[key]

    def tensor(self, name):
        shape, kind, offset = self.tensors[name]
        count = int(numpy.prod(shape))

        def blocks(**fields):  # of 32 weights
            return read(numpy.dtype([(key, *of) for key, of in fields.items()]), count // 32)

        def read(dtype, items):
            self.file.seek(self.data + offset)
            return numpy.frombuffer(self.file.read(items * numpy.dtype(dtype).itemsize), dtype)

        def nibbles(codes):  # the low halves are the first 16 weights of a block
            return numpy.concatenate([codes & 15, codes >> 4], axis=1).astype(numpy.float32)

        def column(values):
            return values.astype(numpy.float32)[:, None]

        half = ("<f2",)
        if kind == 0:
            out = read("<f4", count)
        elif kind == 1:
            out = read("<f2", count).astype(numpy.float32)
        elif kind == 2:  # Q4_0
            block = blocks(scale=half, codes=("u1", 16))
            out = column(block["scale"]) * (nibbles(block["codes"]) - 8)
        elif kind == 3:  # Q4_1
            block = blocks(scale=half, least=half, codes=("u1", 16))
            out = column(block["scale"]) * nibbles(block["codes"]) + column(block["least"])
        elif kind == 8:  # Q8_0
            block = blocks(scale=half, codes=("i1", 32))
            out = column(block["scale"]) * block["codes"].astype(numpy.float32)
        else:
            sys.exit(f"{self.path}: {name} is of type {kind}; F32, F16, Q4_0, Q4_1 and Q8_0 can be read")
        return out.reshape(shape)


def halves_together(weights, heads):
    """Undoes llama.cpp's order of the rows of queries and keys: it has the two halves of a rotated pair side by side,
    Hugging Face half a head apart."""
    rows, columns = weights.shape
    return weights.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def weights_of(gguf, layers, heads, kv_heads):
    """(name, tensor) in Hugging Face's names, one by one."""
    yield "model.embed_tokens.weight", gguf.tensor("token_embd.weight")
    names = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    turned = {"attn_q": heads, "attn_k": kv_heads}
    for layer in range(layers):
        for theirs, ours in names.items():
            tensor = gguf.tensor(f"blk.{layer}.{theirs}.weight")
            if theirs in turned:
                tensor = halves_together(tensor, turned[theirs])
            yield f"model.layers.{layer}.{ours}.weight", tensor
    yield "model.norm.weight", gguf.tensor("output_norm.weight")
    if "output.weight" in gguf.tensors:
        yield "lm_head.weight", gguf.tensor("output.weight")


def write_safetensors(path, tensors):
    """Tensors in float16."""
    header, parts, end = {"__metadata__": {"format": "pt"}}, [], 0
    for name, tensor in tensors:
        if not numpy.isfinite(tensor).all() or numpy.abs(tensor).max() > numpy.finfo(numpy.float16).max:
            sys.exit(f"{name} does not fit into float16")
        part = tensor.astype("<f2").tobytes()
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [end, end + len(part)]}
        parts.append(part)
        end += len(part)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(parts)


def tokenizer_of(gguf):
    """tokenizer.json: digits stand alone, then GPT-2's words and byte-level BPE. Nothing goes before a text."""
    kind, words = gguf.get("tokenizer.ggml.model"), gguf.get("tokenizer.ggml.pre")
    if (kind, words) != ("gpt2", "smollm"):
        sys.exit(f"{gguf.path}: has a tokenizer {kind} with words {words}; gpt2 with smollm can be written")
    pieces, kinds = gguf.get("tokenizer.ggml.tokens"), gguf.get("tokenizer.ggml.token_type")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": at, "content": piece, **flags, "special": kinds[at] == control_token}
        for at, piece in enumerate(pieces)
        if kinds[at] in (control_token, user_token)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {piece: at for at, piece in enumerate(pieces)},
            "merges": gguf.get("tokenizer.ggml.merges"),
        },
    }


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    gguf, out = Gguf(sys.argv[1]), sys.argv[2]
    if gguf.get("general.architecture") != "llama":
        sys.exit(f"{sys.argv[1]}: is of architecture {gguf.get('general.architecture')}; llama can be converted")
    if any(key.startswith("llama.rope.scaling") for key in gguf.values) or "rope_freqs.weight" in gguf.tensors:
        sys.exit(f"{sys.argv[1]}: has a scaled rotary embedding, which is not converted")
    dim, heads = gguf.get("llama.embedding_length"), gguf.get("llama.attention.head_count")
    layers, kv_heads = gguf.get("llama.block_count"), gguf.get("llama.attention.head_count_kv")
    begin, end = gguf.get("tokenizer.ggml.bos_token_id"), gguf.get("tokenizer.ggml.eos_token_id")
    pieces = gguf.get("tokenizer.ggml.tokens")
    marks = {
        "bos_token": pieces[begin],
        "eos_token": pieces[end],
        "unk_token": pieces[gguf.get("tokenizer.ggml.unknown_token_id")],
        "pad_token": pieces[gguf.get("tokenizer.ggml.padding_token_id")],
    }
    length = gguf.get("llama.context_length")
    files = {
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": len(pieces),
            "hidden_size": dim,
            "intermediate_size": gguf.get("llama.feed_forward_length"),
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": gguf.values.get("llama.attention.key_length", dim // heads),
            "hidden_act": "silu",
            "rms_norm_eps": round(gguf.get("llama.attention.layer_norm_rms_epsilon"), 9),  # stored in float32
            "rope_theta": gguf.get("llama.rope.freq_base"),
            "max_position_embeddings": length,
            "tie_word_embeddings": "output.weight" not in gguf.tensors,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": begin,
            "eos_token_id": end,
            "pad_token_id": gguf.get("tokenizer.ggml.padding_token_id"),
            "initializer_range": 0.041666666666666664,
            "torch_dtype": "float16",
        },
        "generation_config.json": {
            "bos_token_id": begin,
            "eos_token_id": end,
            "pad_token_id": gguf.get("tokenizer.ggml.padding_token_id"),
        },
        "tokenizer.json": tokenizer_of(gguf),
        "tokenizer_config.json": {
            **marks,
            "chat_template": gguf.get("tokenizer.chat_template"),
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": length,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
        "special_tokens_map.json": marks,
    }
    making = f"{out}.{os.getpid()}"
    os.makedirs(making)
    for name, content in files.items():
        with open(os.path.join(making, name), "w", encoding="utf-8") as file:
            json.dump(content, file, ensure_ascii=False, indent=1)
    write_safetensors(os.path.join(making, "model.safetensors"), weights_of(gguf, layers, heads, kv_heads))
    if os.path.isdir(out):
        shutil.rmtree(out)
    os.rename(making, out)


main()
