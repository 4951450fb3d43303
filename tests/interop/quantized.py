"""Models in 4 bits: directories that the library wrote, read by transformers and bitsandbytes, and the reverse."""

import json
import os
import random
import sys


def model_of(rng):
    """Rows of 64 numbers or multiples: others the CPU part of bitsandbytes 0.50.2 dequantizes otherwise than its GPU
    part, whose files the tests of a commit read (tests/io/bnb_test.cpp)."""
    import make_families

    head_dim = rng.choice([16, 32, 64])
    heads = rng.choice([n for n in (1, 2, 4, 8) if n * head_dim % 64 == 0 and n * head_dim <= 256])
    options = {
        **make_families.base,
        "num_attention_heads": heads,
        "num_key_value_heads": rng.choice([n for n in (1, 2, 4, 8) if heads % n == 0]),
        "head_dim": head_dim,
        "hidden_size": rng.choice([64, 128, 192]),
        "intermediate_size": rng.choice([64, 128, 320]),
        "num_hidden_layers": rng.randrange(1, 4),
        "initializer_range": 0.1,
        "tie_word_embeddings": rng.random() < 0.4,
    }
    if rng.random() < 0.3:
        return make_families.Qwen2ForCausalLM(make_families.Qwen2Config(**options))
    return make_families.llama(**options, attention_bias=rng.random() < 0.3)


def quantized(run):
    import torch
    from interop import largest, logits_bound, randomize

    torch.set_num_threads(1)
    worst = {}
    n = run.count(20)
    for again in range(n):
        seed = f"{run.seed} quantized {again}"
        rng = random.Random(seed)
        torch.manual_seed(rng.getrandbits(63))
        model = model_of(rng).eval()
        randomize(model, torch)
        folder = run.path("quantized", str(again))
        differences = compare_model(run, model, folder, rng, largest)
        if max(differences.values()) >= logits_bound:
            print(f"seed {seed}: {differences}\n{model.config}", flush=True)
        for key, difference in differences.items():
            worst.setdefault(key, []).append(difference)
    for key, differences in worst.items():
        run.near(*descriptions[key], len(differences), max(differences), logits_bound)


descriptions = {
    "ours": ("logits of a model in NF4 that the library wrote, read by transformers", "bitsandbytes"),
    "theirs": ("logits of a model in NF4 that transformers wrote, read by the library", "bitsandbytes"),
    "adapted": ("logits with an adapter that the library trained on such a model", "peft on bitsandbytes"),
}


def compare_model(run, model, folder, rng, largest):
    import torch
    from interop import with_peft
    from safetensors.torch import load_file
    from transformers import BitsAndBytesConfig, __version__

    dtype = rng.choice([torch.float16, torch.bfloat16, torch.float32])
    plain = os.path.join(folder, "plain")
    model.to(dtype).save_pretrained(plain)
    ids = torch.randint(3, model.config.vocab_size, (1, 64))
    ids_file = os.path.join(folder, "ids.json")
    with open(ids_file, "w", encoding="utf-8") as file:
        json.dump(ids[0].tolist(), file)

    def ours(directory, *adapter):
        run.ask("logits4", directory, ids_file, run.path("logits.safetensors"), *adapter)
        return load_file(run.path("logits.safetensors"))["logits"]

    def opened(directory):
        # What is not quantized is computed in float32 as well.
        read = type(model).from_pretrained(directory, dtype=torch.float32, device_map="cpu").eval()
        return dequantized(read)

    def logits(model):
        with torch.no_grad():
            return model(ids).logits[0].float()

    out = {}
    double = rng.choice([True, False])
    written = os.path.join(folder, "written")
    run.ask("quantize", plain, written, int(double))
    theirs = opened(written)
    out["ours"] = largest(ours(written), logits(theirs))
    trained = os.path.join(folder, "trained")
    run.ask("train4", written, ids_file, trained, 4, 8)
    out["adapted"] = largest(ours(written, trained), with_peft(theirs, trained, ids).float())

    # transformers 4 reads codes in bfloat16 as if they were numbers, and makes float32 of them here.
    storages = [torch.uint8, torch.float32] + [torch.bfloat16] * (not __version__.startswith("4."))
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=rng.choice([True, False]),
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_quant_storage=rng.choice(storages),
    )
    saved = os.path.join(folder, "saved")
    made = type(model).from_pretrained(plain, dtype=dtype, device_map="cpu", quantization_config=how)
    made.save_pretrained(saved, max_shard_size=rng.choice(["30KB", "1GB"]))
    out["theirs"] = largest(ours(saved), logits(opened(saved)))
    return out


def dequantized(model):
    """Its matrices as dequantize_4bit gives them, in float32. The products of bitsandbytes 0.50 leave out the rounding
    to the type that the weights came in, and on some processors want rows in multiples of 32."""
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, Linear4bit)]
    if len(layers) != 7 * model.config.num_hidden_layers:  # a model that was not read in 4 bits would prove nothing
        sys.exit("transformers did not read the projections in 4 bits")
    for name, layer in layers:
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
        dense = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=layer.bias is not None)
        dense.weight.data = weight
        if layer.bias is not None:
            dense.bias.data = layer.bias.data.float()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, dense)
    for mark in ("is_quantized", "is_loaded_in_4bit", "hf_quantizer"):
        if hasattr(model, mark):
            setattr(model, mark, None)
    return torch.nn.Module.float(model)
