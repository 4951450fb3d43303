"""Writes tests/golden/variants/: what peft makes of a quantization residual, and of an adapter with DoRA.

    pip install torch peft==0.21.2 transformers safetensors bitsandbytes
    python3 tests/golden/make_variants.py

loftq.safetensors   weight (f16), nf4 (what bitsandbytes makes of it without double quantization, f32), and for some
                    ranks r: product.r = L R of peft's _low_rank_decomposition, which its LoftQ makes B and A of (that
                    itself asks for a GPU), left.r = |weight - nf4 - product|^2
dora/               an adapter of rank 4 on tests/golden/gqa/model as peft saves it, use_dora, alpha 6
dora.safetensors    input_ids (1, T); with the projections of the base as model-bnb-4bit means them: nf4.logits,
                    nf4.loss and nf4.grad.* (A, B and magnitude of some modules); merged_full.* and merged_full.logits
                    (merge_and_unload onto the 16-bit weights), merged_nf4.* likewise; greedy: 8 tokens of input_ids,
                    then 16 greedy ones of the NF4 base with the adapter
dora_train.safetensors
                    8 steps of AdamW (betas .9 and .999, eps 1e-8, no decay, no dropout, lr 2e-3 falling linearly to 0,
                    norm clipped to 1) from the adapter dora/ on the NF4 base: data (8, 2, 32), every token a label;
                    loss (8), grad_norm (8) before clipping; final.* (A, B and magnitude of some modules)
"""

import os
import shutil

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.loftq_utils import _low_rank_decomposition
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "variants")
gqa = os.path.join(os.path.dirname(here), "gqa")
shown = ["layers.0.self_attn.q_proj", "layers.0.mlp.down_proj", "layers.1.self_attn.k_proj", "layers.1.mlp.gate_proj"]


def make_loftq():
    import bitsandbytes as bnb

    torch.manual_seed(3)
    weight = (torch.randn(96, 160) * 0.05 * (1 + torch.rand(96, 1))).half()
    packed = bnb.nn.Params4bit(weight.float(), requires_grad=False, compress_statistics=False, quant_type="nf4")
    packed = packed.to("cpu")
    nf4 = bnb.functional.dequantize_4bit(packed.data, packed.quant_state).float().reshape(weight.shape)
    out = {"weight": weight, "nf4": nf4}
    for rank in (1, 8, 40):
        made = _low_rank_decomposition(weight.float() - nf4, reduced_rank=rank)
        product = made["L"] @ made["R"]
        out[f"product.{rank}"] = product
        out[f"left.{rank}"] = ((weight.double() - nf4.double() - product.double()) ** 2).sum().float().reshape(1)
    save_file({name: value.contiguous() for name, value in out.items()}, os.path.join(here, "loftq.safetensors"))


def dequantized(stored, name):
    """A projection from the parts that bitsandbytes saves, rounded to float16 as its state says."""
    codes = stored[name].flatten().int()
    blocks = stored[name + ".absmax"].long()
    nested = stored[name + ".nested_absmax"].repeat_interleave(256)[: blocks.numel()]
    state = bytes(stored[name + ".quant_state.bitsandbytes__nf4"].tolist()).decode()
    offset = float(state.split('"nested_offset":')[1].split("}")[0].split(",")[0])
    absmax = stored[name + ".nested_quant_map"][blocks] * nested + torch.tensor(offset, dtype=torch.float32)
    values = torch.stack([codes // 16, codes % 16], dim=1).flatten().long()
    return (stored[name + ".quant_map"][values] * absmax.repeat_interleave(64)[: values.numel()]).half().float()


def base(nf4):
    model = LlamaForCausalLM.from_pretrained(os.path.join(gqa, "model"), dtype=torch.float32)
    if nf4:
        stored = load_file(os.path.join(gqa, "model-bnb-4bit", "model.safetensors"))
        with torch.no_grad():
            for name, value in model.named_parameters():
                if name + ".absmax" in stored:
                    value.copy_(dequantized(stored, name).reshape(value.shape))
    return model.eval()


def with_dora(model):
    torch.manual_seed(11)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=6, lora_dropout=0.0, target_modules=names, use_dora=True)
    tuned = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(12)
    with torch.no_grad():
        for name, value in sorted(tuned.named_parameters()):
            if "lora_B" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.05)
            elif "lora_A" in name:
                value.copy_(torch.randn(value.shape, generator=generator) / value.shape[1] ** 0.5)
            elif "lora_magnitude_vector" in name:
                value.mul_(1 + 0.2 * torch.randn(value.shape, generator=generator))
    return tuned.eval()


def make_dora():
    ids = torch.randint(3, 256, (1, 48), generator=torch.Generator().manual_seed(13))
    tuned = with_dora(base(nf4=True))
    folder = os.path.join(here, "dora")
    shutil.rmtree(folder, ignore_errors=True)
    tuned.peft_config["default"].base_model_name_or_path = "gqa"
    tuned.save_pretrained(folder)
    os.remove(os.path.join(folder, "README.md"))
    adapter = {n: v.detach().clone() for n, v in tuned.named_parameters() if "lora_" in n}
    result = tuned(input_ids=ids, labels=ids)
    result.loss.backward()
    out = {"input_ids": ids, "nf4.logits": result.logits.detach(), "nf4.loss": result.loss.detach().reshape(1)}
    for name, value in tuned.named_parameters():
        short = name.replace("base_model.model.model.", "").replace(".default", "")
        if value.grad is not None and any(short.startswith(module) for module in shown):
            out["nf4.grad." + short] = value.grad
    with torch.no_grad():
        greedy = tuned.generate(
            input_ids=ids[:, :8], attention_mask=torch.ones(1, 8), max_new_tokens=16, do_sample=False, eos_token_id=None
        )
        out["greedy"] = greedy.reshape(-1)
        for which in ("full", "nf4"):
            other = with_dora(base(nf4=which == "nf4"))
            for name, value in other.named_parameters():
                if name in adapter:
                    value.copy_(adapter[name])
            merged = other.merge_and_unload()
            out[f"merged_{which}.logits"] = merged(input_ids=ids).logits
            for module in ("layers.0.self_attn.q_proj", "layers.1.self_attn.k_proj"):
                out[f"merged_{which}.{module}"] = merged.model.get_submodule(module).weight
    save_file({name: value.contiguous().clone() for name, value in out.items()}, os.path.join(here, "dora.safetensors"))


def make_dora_training():
    steps, rate = 8, 2e-3
    data = torch.randint(3, 256, (steps, 2, 32), generator=torch.Generator().manual_seed(17))
    tuned = PeftModel.from_pretrained(base(nf4=True), os.path.join(here, "dora"), is_trainable=True).train()
    trained = [value for value in tuned.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    losses, norms = [], []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (steps - step) / steps
        optimizer.zero_grad()
        loss = tuned(input_ids=data[step], labels=data[step]).loss
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(trained, 1.0))
        losses.append(loss.detach())
        optimizer.step()
    out = {"data": data, "loss": torch.stack(losses), "grad_norm": torch.stack(norms)}
    for name, value in tuned.named_parameters():
        short = name.replace("base_model.model.model.", "").replace(".default", "")
        if value.requires_grad and any(short.startswith(module) for module in shown):
            out["final." + short] = value.detach()
    file = os.path.join(here, "dora_train.safetensors")
    save_file({name: value.contiguous().clone() for name, value in out.items()}, file)


if __name__ == "__main__":
    os.makedirs(here, exist_ok=True)
    make_loftq()
    make_dora()
    make_dora_training()
