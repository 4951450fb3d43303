"""Models in 4 bits: directories that the library wrote, read by transformers and bitsandbytes, and the other way round."""

import json
import os
import random
import sys


def quantized(run):
    import drawn
    import torch
    from interop import largest, logits_bound, logits_of, randomize

    torch.set_num_threads(1)
    worst = {}
    n = run.count(20)
    for again in range(n):
        seed = f"{run.seed} quantized {again}"
        rng = random.Random(seed)
        torch.manual_seed(rng.getrandbits(63))
        model = drawn.model(rng).eval()
        randomize(model, torch)
        folder = run.path("quantized", str(again))
        differences = compare_model(run, model, folder, rng, largest)
        if max(differences.values()) >= logits_bound:
            print(f"seed {seed}: {differences}\n{model.config}", flush=True)
        for key, difference in differences.items():
            worst[key] = max(worst.get(key, 0.0), difference)
    for key, difference in worst.items():
        what, against = logits_of.get(key, descriptions.get(key))
        run.near(what, against, n, difference, logits_bound)


descriptions = {
    "ours": ("logits of a model in NF4 that the library wrote, read by transformers", "bitsandbytes"),
    "theirs": ("logits of a model in NF4 that transformers wrote, read by the library", "bitsandbytes"),
    "adapted": ("logits with an adapter that the library trained on such a model", "peft on bitsandbytes"),
}


def compare_model(run, model, folder, rng, largest):
    import torch
    from interop import with_peft
    from safetensors.torch import load_file
    from transformers import BitsAndBytesConfig

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

    def opened(directory, **more):
        # What is not quantized is computed in float32 as well.
        return type(model).from_pretrained(directory, dtype=torch.float32, device_map="cpu", **more).eval()

    def logits(model):
        with torch.no_grad():
            return model(ids).logits[0].float()

    out = {}
    double = rng.choice([True, False])
    written = os.path.join(folder, "written")
    run.ask("quantize", plain, written, int(double))
    theirs = opened(written)
    expect_nf4(theirs)
    out["ours"] = largest(ours(written), logits(theirs))
    trained = os.path.join(folder, "trained")
    run.ask("train4", written, ids_file, trained, 4, 8)
    out["adapted"] = largest(ours(written, trained), with_peft(theirs, trained, ids).float())

    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=rng.choice([True, False]),
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_quant_storage=rng.choice([torch.uint8, torch.bfloat16, torch.float32]),
    )
    saved = os.path.join(folder, "saved")
    made = type(model).from_pretrained(plain, dtype=dtype, device_map="cpu", quantization_config=how)
    made.save_pretrained(saved, max_shard_size=rng.choice(["30KB", "1GB"]))
    out["theirs"] = largest(ours(saved), logits(opened(saved)))
    return out


def expect_nf4(model):
    """A model that was not read in 4 bits would prove nothing."""
    from bitsandbytes.nn import Linear4bit

    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    if len(layers) != 7 * model.config.num_hidden_layers:
        sys.exit("transformers did not read the projections in 4 bits")
