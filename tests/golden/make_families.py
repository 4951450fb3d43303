"""Writes tests/golden/families/NAME/: small models of LLaMA's relatives with random weights, and what transformers
computes with them.

    pip install torch transformers==4.57.6 safetensors
    python3 tests/golden/make_families.py

model/                a Hugging Face directory, weights in float16
reference.safetensors input_ids (1, T); fp32.logits (1, T, V); lora.weight.* and with these adapters (rank 4, alpha 8, no
                      dropout) lora.loss (mean over the T - 1 next tokens), lora.grad.* and lora.greedy: the first 8
                      tokens of input_ids, then 24 greedy ones, with lora.margin, the least distance between the first
                      two logits of those
"""

import json
import os
import shutil

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "families")
tokens = 64
base = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    initializer_range=0.2,
    tie_word_embeddings=False,
)


def llama(**more):
    return LlamaForCausalLM(LlamaConfig(**{**base, **more}))


models = {
    # 16 pairs in heads of 32, so that each band of a scaling has some
    "llama3": lambda: llama(
        head_dim=32,
        rope_theta=100.0,
        rms_norm_eps=1e-5,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
    "linear": lambda: llama(rope_scaling={"rope_type": "linear", "factor": 4.0}),
    "dynamic": lambda: llama(rope_scaling={"rope_type": "dynamic", "factor": 2.0}, rope_theta=500.0),
    "yarn": lambda: llama(
        head_dim=32,
        rope_theta=1000.0,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "beta_fast": 4.0,
            "beta_slow": 0.5,
        },
    ),
    "yarn_mscale": lambda: llama(
        head_dim=32,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 8,
            "mscale": 1.2,
            "mscale_all_dim": 0.7,
            "beta_fast": 2.0,
            "beta_slow": 0.25,
            "truncate": False,
        },
    ),
    "mistral": lambda: MistralForCausalLM(
        MistralConfig(**{**base, "max_position_embeddings": 256, "sliding_window": tokens, "head_dim": 8})
    ),
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(**{**base, "tie_word_embeddings": True, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6})
    ),
    "bias": lambda: llama(attention_bias=True),
    # heads that are wider together than the stream, a vocabulary that no width divides, and another eps
    "head_dim": lambda: llama(head_dim=12, vocab_size=101, rms_norm_eps=1e-3),
}


def adapted(model, generator):
    """Puts an adapter on each of the seven projections; returns A and B by name."""
    weights = {}
    for name, module in list(model.named_modules()):
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue
        a = torch.randn(4, module.in_features, generator=generator) * 0.1
        b = torch.randn(module.out_features, 4, generator=generator) * 0.1
        weights[f"{name}.lora_A.weight"] = a.requires_grad_()
        weights[f"{name}.lora_B.weight"] = b.requires_grad_()
        module.register_forward_hook(lambda _, x, y, a=a, b=b: y + 2.0 * (x[0] @ a.T @ b.T))
    return weights


def main():
    shutil.rmtree(here, ignore_errors=True)
    for seed, (name, make) in enumerate(models.items()):
        torch.manual_seed(seed)
        model = make().eval()
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases, which start as ones and zeros
                parameter.data += torch.randn_like(parameter) * 0.2
        folder = os.path.join(here, name)
        model.half().save_pretrained(os.path.join(folder, "model"))
        # Read back, since half() has rounded the frequencies of the rotary embedding as well.
        model = type(model).from_pretrained(os.path.join(folder, "model"), dtype=torch.float32).eval()
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, model.config.vocab_size, (1, tokens), generator=generator)
        out = {"input_ids": ids}
        with torch.no_grad():
            out["fp32.logits"] = model(ids).logits
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        weights = adapted(model, generator)
        logits = model(ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
        loss.backward()
        out["lora.loss"] = loss.detach().reshape(1)
        for key, weight in weights.items():
            out[f"lora.weight.{key}"] = weight.detach().clone()
            out[f"lora.grad.{key}"] = weight.grad.clone()
        greedy, margin = ids[:, :8], 1e9
        with torch.no_grad():
            for _ in range(24):
                last = model(greedy, use_cache=False).logits[0, -1]
                top = last.topk(2).values
                margin = min(margin, float(top[0] - top[1]))
                greedy = torch.cat([greedy, last.argmax().reshape(1, 1)], 1)
        out["lora.greedy"], out["lora.margin"] = greedy[0], torch.tensor([margin])
        save_file(
            {key: value.contiguous() for key, value in out.items()}, os.path.join(folder, "reference.safetensors")
        )
        print(name, float(loss), margin, len(set(greedy[0, 8:].tolist())))


if __name__ == "__main__":
    main()
