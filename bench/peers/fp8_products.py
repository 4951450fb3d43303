#!/usr/bin/env python3
"""Rates of e4m3 products with PyTorch, for the base products of one training step; bf16 beside them.

fp8_products.py [--models 7b,13b,70b]: a line of JSON for each product and direction, TFLOP/s, the median of five times
ten products. "tensor": one scale an operand; "rows": one a row of either operand; "blocks": one a row and 128 columns
of the activations and one for 128 x 128 weights. "_fast": sums of products stay in the tensor cores' short format.
Random numbers, scales of 1: nothing is said of accuracy.
"""
import argparse
import json

import torch

# Columns and rows of the weights of a layer's products, q, k and v together and gate and up; tokens of a step.
MODELS = {
    "7b": (4096, {"qkv": (4096, 12288), "o": (4096, 4096), "gate_up": (4096, 22016), "down": (11008, 4096)}),
    "13b": (4096, {"qkv": (5120, 15360), "o": (5120, 5120), "gate_up": (5120, 27648), "down": (13824, 5120)}),
    "70b": (2048, {"qkv": (8192, 10240), "o": (8192, 8192), "gate_up": (8192, 57344), "down": (28672, 8192)}),
}


def milliseconds(call):
    """Of one call: the median of five times ten."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    times = []
    for _ in range(5):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(10):
            call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 10)
    return sorted(times)[2]


def measure(m, n, k):
    """TFLOP/s of (m,k) x (n,k)^T by kind of scaling."""
    tera = 2 * m * n * k / 1e12
    x, w = (torch.randn(rows, k, device="cuda", dtype=torch.bfloat16) for rows in (m, n))
    rates = {"bf16": tera / milliseconds(lambda: x @ w.t()) * 1e3}
    x8, w8 = x.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn)
    ones = lambda *shape: torch.ones(shape, device="cuda")
    kinds = {
        "tensor": (ones(), ones(), False),
        "tensor_fast": (ones(), ones(), True),
        "rows": (ones(m, 1), ones(1, n), False),
        "rows_fast": (ones(m, 1), ones(1, n), True),
        "blocks": (ones(k // 128, m).t(), ones(n // 128, k // 128).t(), False),
    }
    for kind, (a, b, fast) in kinds.items():
        product = lambda: torch._scaled_mm(x8, w8.t(), scale_a=a, scale_b=b, out_dtype=torch.bfloat16,
                                           use_fast_accum=fast)
        rates[kind] = tera / milliseconds(product) * 1e3
    return {kind: round(rate) for kind, rate in rates.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", default="7b,13b,70b")
    for model in parser.parse_args().models.split(","):
        tokens, products = MODELS[model]
        for name, (k, n) in products.items():
            for direction, sizes in (("forward", (tokens, n, k)), ("input_gradient", (tokens, k, n))):
                print(json.dumps({"model": model, "op": name, "what": direction, **measure(*sizes)}), flush=True)


if __name__ == "__main__":
    main()
