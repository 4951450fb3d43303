"""GGUF files of the library, read by the package gguf and compared with the directories that they were made from."""

import json
import os

quantized = {"f16": 1, "q8_0": 8, "q4_0": 2}  # ggml's numbers of types


def rows_for_llama(numpy, weight, heads):
    """llama.cpp rotates neighbours where transformers rotates halves."""
    if heads == 0:
        return weight
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


parts = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
ends = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def name_of(name):
    if name in ends:
        return ends[name]
    _, _, layer, *module, kind = name.split(".")
    return f"blk.{layer}.{parts['.'.join(module)]}.{kind}"


def heads_of(config, name):
    if config["model_type"] == "qwen2":
        return 0
    kv = config.get("num_key_value_heads") or config["num_attention_heads"]
    return config["num_attention_heads"] * ("q_proj" in name) + kv * ("k_proj" in name)


def tensors_of(folder):
    import glob

    from safetensors.torch import load_file

    out = {}
    for path in glob.glob(os.path.join(folder, "*.safetensors")):
        out.update({name: value.float().numpy() for name, value in load_file(path).items()})
    return out


def wrong_tensors(folder, path, kind):
    """How many tensors of a model's file have other bytes than the package gguf makes of the directory's."""
    import gguf
    import numpy

    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    found.pop("rope_freqs.weight", None)
    expected = tensors_of(folder)
    if config.get("tie_word_embeddings"):
        expected.pop("lm_head.weight", None)
    wrong = abs(len(found) - len(expected))
    for name, weight in expected.items():
        tensor = found[name_of(name)]
        weight = rows_for_llama(numpy, weight, heads_of(config, name))
        as_type = gguf.GGMLQuantizationType.F32
        if weight.ndim == 2:
            at_the_ends = name in ends
            type_ = 8 if kind == "q4_0" and at_the_ends else quantized[kind]
            as_type = gguf.GGMLQuantizationType(type_ if weight.shape[1] % 32 == 0 else 1)
        want = gguf.quants.quantize(numpy.ascontiguousarray(weight), as_type)
        same = tensor.tensor_type == as_type and [int(n) for n in tensor.shape] == list(weight.shape[::-1])
        wrong += not (same and numpy.array_equal(want.view(numpy.uint8).ravel(), tensor.data.view(numpy.uint8).ravel()))
    return len(expected), wrong


def wrong_matrices(folder, adapter, path):
    """The same of an adapter's file: alpha / r B A of each module."""
    import gguf
    import numpy

    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    with open(os.path.join(adapter, "adapter_config.json"), encoding="utf-8") as file:
        options = json.load(file)
    reader = gguf.GGUFReader(path)
    alpha = reader.fields["adapter.lora.alpha"].contents()
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    theirs = tensors_of(adapter)
    wrong = abs(len(found) - len(theirs))
    for name, a in theirs.items():
        if "lora_A" not in name:
            continue
        module = name[len("base_model.model.") : -len(".lora_A.weight")]
        b = rows_for_llama(numpy, theirs[name.replace("lora_A", "lora_B")], heads_of(config, name))
        rank, its_alpha = a.shape[0], options["lora_alpha"]
        for key, value in options.get("alpha_pattern", {}).items():
            its_alpha = value if module.endswith("." + key) else its_alpha
        scale = its_alpha / (rank**0.5 if options.get("use_rslora") else rank)
        to = name_of(module + ".weight")
        ours = alpha / rank * (found[to + ".lora_b"] @ found[to + ".lora_a"])
        wrong += float(numpy.abs(ours - scale * (b @ a)).max()) > 1e-5
    return len(theirs) // 2, wrong
