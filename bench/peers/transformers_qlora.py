#!/usr/bin/env python3
"""The usual QLoRA stack (transformers, peft, bitsandbytes) at LLaMA-2 shapes with random weights, on one GPU.

  transformers_qlora.py                      training steps: 7B, 13B with and without checkpointing, 70B from 16 layers
  transformers_qlora.py --decode             also tokens/s when generating, batch 1, base and adapter
  transformers_qlora.py --article            the whole job at 13B: load, quantize, train, save, reload, merge, save
  transformers_qlora.py --dry [--article]    the same code with tiny shapes on the CPU

One JSON object per row on stdout and, appended, in --out; progress on stderr. A row that fails holds "error", and the
rest go on.
What is measured, and how, is in README.md beside this file.
"""

import argparse
import contextlib
import gc
import importlib.metadata
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import traceback

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # the Trainer would spread over several

import bitsandbytes as bnb
import torch
import transformers
from peft import AutoPeftModelForCausalLM, LoraConfig, TaskType, get_peft_model, prepare_model_for_kbit_training
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, Trainer, TrainingArguments
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

GIB = 2**30
VOCAB = 32000
# dim, ffn, layers, heads, kv heads
SHAPES = {
    "7b": (4096, 11008, 32, 32, 32),
    "13b": (5120, 13824, 40, 40, 40),
    "70b": (8192, 28672, 80, 64, 8),
    "tiny": (64, 176, 2, 4, 4),
    "tiny_deep": (64, 176, 48, 4, 2),
}
# A model of more layers than this is measured at --layers and half of that, and scaled: 80 layers take long to build.
WHOLE_LAYERS = 40
LEARNING_RATE = 2e-4
MAX_GRAD_NORM = 1.0


def say(text):
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


class Rows:
    """Where results go: a line each, at once, so that a run that is cut short keeps what it measured."""

    def __init__(self, path):
        self.path = path

    def add(self, row):
        line = json.dumps(row)
        print(line, flush=True)
        if self.path:
            with open(self.path, "a", encoding="utf-8") as out:
                out.write(line + "\n")


def guarded(rows, row, work):
    """Runs work(row), which fills row in; an exception is recorded in it instead of ending the run."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the Trainer prints its log
            work(row)
    except Exception as error:
        traceback.print_exc()
        row["error"] = f"{type(error).__name__}: {error}"[:2000]
    rows.add(row)
    free()


def free():
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def synchronize():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def start_peak():
    free()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak():
    """What PyTorch's allocator held at most since start_peak(); the CUDA context comes on top."""
    if not torch.cuda.is_available():
        return {}
    return {
        "peak_allocated_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
        "peak_reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2),
    }


def environment():
    version = importlib.metadata.version
    row = {"row": "environment", "date": time.strftime("%Y-%m-%d %H:%M:%S"), "python": sys.version.split()[0]}
    row |= {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes", "accelerate")}
    row["cuda"] = torch.version.cuda
    row["gpu"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return row


# ---- the model


def llama_config(name, layers=None):
    dim, ffn, all_layers, heads, kv_heads = SHAPES[name]
    return LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=dim,
        intermediate_size=ffn,
        num_hidden_layers=layers or all_layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        dtype="float16",
    )


def random_weight(shape, dtype, device):
    return torch.empty(shape, dtype=dtype, device=device).normal_(0.0, 0.02)


def quantized_model(config, device):
    """A model that never exists unquantized: laid out without memory, then filled matrix by matrix on the device."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.bfloat16)
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            linear = bnb.nn.Linear4bit(
                module.in_features,
                module.out_features,
                bias=False,
                compute_dtype=torch.bfloat16,
                compress_statistics=True,
                quant_type="nf4",
                quant_storage=torch.uint8,
                device="meta",
            )
            weight = random_weight((module.out_features, module.in_features), torch.bfloat16, device)
            linear.weight = bnb.nn.Params4bit(
                weight,
                requires_grad=False,
                compress_statistics=True,
                quant_type="nf4",
                quant_storage=torch.uint8,
                module=linear,
            ).to(device)
            model.set_submodule(name, linear)
        elif name == "lm_head" or isinstance(module, torch.nn.Embedding):
            module.weight = torch.nn.Parameter(random_weight(module.weight.shape, torch.bfloat16, device))
        elif name.endswith("norm"):
            module.weight = torch.nn.Parameter(torch.ones(module.weight.shape, dtype=torch.bfloat16, device=device))
    with torch.device(device):
        model.model.rotary_emb = LlamaRotaryEmbedding(config)
    left = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if left:
        raise RuntimeError(f"never given memory: {left[:4]}")
    model.config.use_cache = False
    model.is_loaded_in_4bit = True  # what from_pretrained sets, and peft goes by
    return model


def add_adapter(model, checkpointing, adapter_dtype, norm_dtype):
    """Freezes the base and puts LoRA on all linear layers, with the casts of the article's script."""
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)
    if checkpointing:
        model.gradient_checkpointing_enable()
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(
        r=64, lora_alpha=16, lora_dropout=0.1, bias="none", target_modules=targets, task_type=TaskType.CAUSAL_LM
    )
    model = get_peft_model(model, lora)
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            for adapter in (module.lora_A, module.lora_B):
                adapter.to(adapter_dtype)
        elif name.endswith("norm"):
            module.to(norm_dtype)
        elif "lm_head" in name or "embed_tokens" in name:
            module.to(torch.bfloat16)
    return model


# ---- one training step


def measure_steps(config, batch, checkpointing, args):
    """Builds the model, trains it for some steps and says what one takes."""
    began = time.perf_counter()
    model = quantized_model(config, args.device)
    norm_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.norms]
    model = add_adapter(model, checkpointing, torch.float32, norm_dtype)
    model.train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    synchronize()
    result = {"build_s": round(time.perf_counter() - began, 1), "trainable": sum(p.numel() for p in trainable)}
    say(f"  {config.num_hidden_layers} layers built in {result['build_s']} s")
    start_peak()
    losses, seconds = [], []
    for _ in range(args.warmup + args.steps):
        tokens = torch.randint(0, VOCAB, (batch, args.seq), device=args.device)
        synchronize()
        began = time.perf_counter()
        with torch.autocast(torch.device(args.device).type, dtype=torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize()
        seconds.append(time.perf_counter() - began)
        losses.append(loss.item())
    timed = seconds[args.warmup :]
    result["step_ms"] = round(1e3 * statistics.median(timed), 2)
    result["step_ms_min_max"] = [round(1e3 * min(timed), 2), round(1e3 * max(timed), 2)]
    result["loss_first_last"] = [round(losses[0], 4), round(losses[-1], 4)]
    return result | peak()


def train_row(row, name, batch, checkpointing, args):
    all_layers = SHAPES[name][2]
    if all_layers <= WHOLE_LAYERS or args.layers >= all_layers:
        row |= measure_steps(llama_config(name), batch, checkpointing, args)
        row |= {"layers": all_layers, "scaled": False}
    else:
        # Two depths give the cost of a layer; the rest of a step (embedding, head, loss) is there once at any depth.
        few, more = args.layers // 2, args.layers
        shallow = measure_steps(llama_config(name, few), batch, checkpointing, args)
        free()
        deep = measure_steps(llama_config(name, more), batch, checkpointing, args)
        row |= {"layers": more, "scaled": True, "scaled_to_layers": all_layers, "measured": {few: shallow, more: deep}}
        layer_ms = (deep["step_ms"] - shallow["step_ms"]) / (more - few)
        row["layer_ms"] = round(layer_ms, 3)
        row["outside_layers_ms"] = round(shallow["step_ms"] - few * layer_ms, 2)
        row["step_ms"] = round(deep["step_ms"] + (all_layers - more) * layer_ms, 2)
        for key in peak():
            layer_gib = (deep[key] - shallow[key]) / (more - few)
            row[key] = round(deep[key] + (all_layers - more) * layer_gib, 1)
    row["tok_s"] = round(batch * args.seq / row["step_ms"] * 1e3, 1)
    say(f"  {row['tok_s']} tok/s, peak {row.get('peak_allocated_gib')} GiB")


# ---- generating


def decode_row(row, name, args):
    """Everything in bf16 and no autocast, as for inference: faster than the casts of training."""
    model = add_adapter(quantized_model(llama_config(name), args.device), False, torch.bfloat16, torch.bfloat16)
    model.eval()
    model.config.use_cache = True
    prompt = torch.randint(3, VOCAB, (1, 16), device=args.device)
    start_peak()

    def seconds(count):
        synchronize()
        began = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                min_new_tokens=count,
                max_new_tokens=count,
                do_sample=False,
                use_cache=True,
                pad_token_id=0,
            )
        synchronize()
        if out.shape[1] != prompt.shape[1] + count:
            raise RuntimeError(f"generated {out.shape[1] - prompt.shape[1]} tokens instead of {count}")
        return time.perf_counter() - began

    seconds(4)
    first = min(seconds(1) for _ in range(2))  # reading the prompt gives the first token
    took = seconds(1 + args.decode_tokens)
    row |= {"tokens": args.decode_tokens, "tok_s": round(args.decode_tokens / (took - first), 2)}
    row |= {"first_token_ms": round(1e3 * first, 1), "layers": SHAPES[name][2]} | peak()
    say(f"  {row['tok_s']} tok/s")


# ---- the article's job


def write_checkpoint(path, config, device):
    """A Hugging Face checkpoint of random fp16 weights, in files of about 5 GB; returns its bytes."""
    os.makedirs(path)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    files, held = [{}], 0
    for name, parameter in model.named_parameters():
        size = 2 * parameter.numel()
        if held and held + size > 5e9:
            files.append({})
            held = 0
        files[-1][name] = parameter.shape
        held += size
    weight_map, total = {}, 0
    for index, shapes in enumerate(files, 1):
        file = f"model-{index:05d}-of-{len(files):05d}.safetensors"
        tensors = {}
        for name, shape in shapes.items():
            if name.endswith("norm.weight"):
                tensor = torch.ones(shape, dtype=torch.float16)
            else:
                tensor = random_weight(shape, torch.float16, device).cpu()
            tensors[name] = tensor
            weight_map[name] = file
            total += 2 * tensor.numel()
        save_file(tensors, os.path.join(path, file), metadata={"format": "pt"})
        say(f"  wrote {file}")
    with open(os.path.join(path, "model.safetensors.index.json"), "w", encoding="utf-8") as out:
        json.dump({"metadata": {"total_size": total}, "weight_map": weight_map}, out)
    return total


class StepTimes(transformers.TrainerCallback):
    def __init__(self):
        self.stamps = []

    def on_step_end(self, args, state, control, **kwargs):
        self.stamps.append(time.perf_counter())

    def median(self):
        return statistics.median(after - before for before, after in zip(self.stamps, self.stamps[1:]))


def article_trainer(model, times, where, args):
    """The article's settings; everything unnamed is the Trainer's default, as there."""
    windows = [torch.randint(0, VOCAB, (args.seq,)).tolist() for _ in range(16)]
    data = [{"input_ids": ids, "attention_mask": [1] * args.seq, "labels": ids} for ids in windows]
    settings = TrainingArguments(
        output_dir=where,
        per_device_train_batch_size=2,
        bf16=True,
        learning_rate=LEARNING_RATE,
        max_steps=args.article_steps,
        gradient_checkpointing=True,
        logging_strategy="steps",
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=args.device == "cpu",
    )
    return Trainer(
        model=model,
        args=settings,
        train_dataset=data,
        data_collator=transformers.default_data_collator,
        callbacks=[times],
    )


def article_row(row, name, args):
    config = llama_config(name)
    work = tempfile.mkdtemp(prefix="article_", dir=args.dir)
    base, adapter, merged = (os.path.join(work, part) for part in ("base", "adapter", "merged"))
    phases = row["seconds"] = {}

    @contextlib.contextmanager
    def phase(title):
        say(f"  {title}")
        synchronize()
        began = time.perf_counter()
        yield
        synchronize()
        phases[title] = round(time.perf_counter() - began, 2)
        say(f"  {title}: {phases[title]} s")

    try:
        row |= {"dir": work, "disk_free_gib": round(shutil.disk_usage(work).free / GIB, 1)}
        began = time.perf_counter()
        checkpoint_bytes = write_checkpoint(base, config, args.device)
        row["checkpoint_gb"] = round(checkpoint_bytes / 1e9, 2)
        row["written_s_untimed"] = round(time.perf_counter() - began, 1)
        start_peak()
        with phase("load_and_quantize"):
            nf4 = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_use_double_quant=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=torch.bfloat16,
            )
            where = "auto" if args.device != "cpu" else {"": "cpu"}
            model = AutoModelForCausalLM.from_pretrained(
                base, use_cache=False, device_map=where, quantization_config=nf4
            )
        with phase("set_up"):
            model = add_adapter(model, True, torch.bfloat16, torch.float32)
            times = StepTimes()
            trainer = article_trainer(model, times, os.path.join(work, "trainer"), args)
        with phase("train"):
            trainer.train()
        row |= peak()
        step = times.median()
        row |= {"steps": args.article_steps, "step_ms": round(1e3 * step, 1), "tok_s": round(2 * args.seq / step, 1)}
        with phase("save_adapter"):
            trainer.model.save_pretrained(adapter)
        del model, trainer
        free()
        with phase("reload_fp16"):
            model = AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float16)
        with phase("merge"):
            model = model.merge_and_unload()
        if shutil.disk_usage(work).free < checkpoint_bytes + GIB:
            shutil.rmtree(base)
            row["base_deleted_before_save"] = True
        with phase("save_merged"):
            model.save_pretrained(merged, max_shard_size="2GB")
        row["total_s"] = round(sum(phases.values()), 1)
        row["total_s_at_160_steps"] = round(row["total_s"] + (160 - args.article_steps) * step, 1)
    finally:
        shutil.rmtree(work, ignore_errors=True)


# ---- the program


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    rows = ["7b:2:ckpt", "7b:2:none", "13b:2:ckpt", "13b:2:none", "70b:1:ckpt"]
    add("--rows", nargs="*", default=rows, help="MODEL:BATCH:ckpt|none; ckpt: gradient checkpointing (%(default)s)")
    add("--seq", type=int, default=2048)
    add("--warmup", type=int, default=3)
    add("--steps", type=int, default=10, help="timed steps of each row")
    add("--layers", type=int, default=16, help="of 70B: measured at this and half this depth and scaled; 80: whole")
    add("--norms", choices=["fp32", "bf16"], default="fp32", help="dtype of the norms' weights; fp32 as in the article")
    add("--decode", action="store_true", help="also generate with each model that is not scaled")
    add("--decode-tokens", type=int, default=64)
    add("--article", action="store_true", help="only the article's job, at 13B")
    add("--article-steps", type=int, default=160)
    add("--dir", help="where --article writes about 55 GB and deletes them (default: the temporary directory)")
    add("--out", help="a file to append the rows to")
    add("--dry", action="store_true", help="tiny shapes on the CPU: does the script still run?")
    args = parser.parse_args()
    args.device = "cpu" if args.dry else "cuda:0"
    if args.dry:
        args.rows = ["tiny:2:ckpt", "tiny:2:none", "tiny_deep:1:ckpt"]
        args.seq, args.warmup, args.steps, args.layers, args.article_steps, args.decode_tokens = 32, 1, 2, 4, 3, 4
    for text in args.rows:
        parts = text.split(":")
        if len(parts) != 3 or parts[0] not in SHAPES or not parts[1].isdigit() or parts[2] not in ("ckpt", "none"):
            parser.error(f"--rows: {text!r} is not MODEL:BATCH:ckpt|none with a model of {', '.join(SHAPES)}")
    if args.layers < 2 or args.layers % 2:
        parser.error("--layers: an even number, since half as many are measured too")
    if args.article_steps < 2:
        parser.error("--article-steps: at least 2, since a step is timed from the end of the one before")
    return args


def main():
    args = arguments()
    torch.manual_seed(1)
    transformers.utils.logging.disable_progress_bar()
    if args.device != "cpu":
        torch.cuda.set_device(0)
    rows = Rows(args.out)
    rows.add(environment())
    if args.article:
        name = "tiny" if args.dry else "13b"
        say(f"article {name}")
        row = {"row": "article", "model": name, "batch": 2, "seq": args.seq}
        guarded(rows, row, lambda row: article_row(row, name, args))
        return
    for text in args.rows:
        name, batch, how = text.split(":")
        say(f"train {text}")
        row = {"row": "train", "model": name, "batch": int(batch), "seq": args.seq, "checkpointing": how == "ckpt"}
        row |= {"norms": args.norms, "warmup": args.warmup, "steps": args.steps}
        guarded(rows, row, lambda row: train_row(row, name, int(batch), how == "ckpt", args))
    models = dict.fromkeys(text.split(":")[0] for text in args.rows) if args.decode else {}
    for name in models:
        if SHAPES[name][2] <= WHOLE_LAYERS or args.layers >= SHAPES[name][2]:
            say(f"decode {name}")
            guarded(rows, {"row": "decode", "model": name, "batch": 1}, lambda row: decode_row(row, name, args))


if __name__ == "__main__":
    main()
