#!/usr/bin/env python3
"""Time and cost of a step on 1 to 1,024 GPUs, from what was measured on one and two and what is assumed of networks.

scale_model.py [--model 7b|13b|70b] [--rank R] [--price DOLLARS] [--host GPUS] [--network GBYTES]

Weak scaling: every GPU has one micro-batch of a step. A rank sends and receives (N - 1) / N of the gradient and, after
the update, of the parameters, both in float, one message for each other rank. Nothing of that is beside the
computation, as in include/qlora/train/rank_sums.hpp. Prints the table of docs/scale.md.
"""
import argparse

# Hidden size, widths of k and v, width of the feed-forward network, layers; milliseconds of a step of one H200 and its
# tokens. Measured: bench/results/h200-2026-11-30-multi.json (7B, 13B), h200-2026-11-26-train-memory-ops.json (70B).
MODELS = {
    "7b": (4096, 4096, 11008, 32, 234.9, 4096),
    "13b": (5120, 5120, 13824, 40, 431.7, 4096),
    "70b": (8192, 1024, 28672, 80, 1071.2, 2048),
}
# Bytes a second that a rank sends while it receives as many. Measured: two H200 of one host at 13B, whose step takes
# 4.97 ms longer than that of one and sends 1.00 GB; the sums are in that.
NVLINK = 1.0013e9 / 4.97e-3
# Assumed: what a message costs beside its bytes, and the share of a network's rate that is reached.
MESSAGE = 10e-6
REACHED = 0.7


def trained(model, rank):
    """Numbers in the adapters of all seven projections."""
    hidden, keys, ffn, layers, _, _ = MODELS[model]
    return layers * rank * (2 * (hidden + hidden) + 2 * (hidden + keys) + 3 * (hidden + ffn))


def step_seconds(model, rank, gpus, host, network):
    """One step: computation, messages within hosts, messages between hosts."""
    alone = MODELS[model][4] / 1e3
    if gpus == 1:
        return alone
    each = 2 * 4 * trained(model, rank) / gpus  # bytes for each other rank: gradient and parameters
    within = min(host, gpus) - 1
    between = gpus - 1 - within
    # A GPU's links and its share of the host's network work at the same time.
    return alone + max(within * each / NVLINK, between * each / (network * REACHED)) + 2 * (gpus - 1) * MESSAGE


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="13b")
    parser.add_argument("--rank", type=int, default=64, help="adapter rank")
    parser.add_argument("--price", type=float, default=3.0, help="dollars for a GPU and hour")
    parser.add_argument("--host", type=int, default=8, help="GPUs of a host, joined by NVLink")
    parser.add_argument("--network", type=float, default=50.0, help="GB/s of a GPU's share of the network")
    options = parser.parse_args()
    tokens = MODELS[options.model][5]
    print("| GPUs | step, ms | tokens/s | efficiency | 10^9 tokens, hours | dollars |")
    print("|---:|---:|---:|---:|---:|---:|")
    for gpus in (1, 2, 4, 8, 16, 64, 256, 1024):
        seconds = step_seconds(options.model, options.rank, gpus, options.host, options.network * 1e9)
        rate = gpus * tokens / seconds
        hours = 1e9 / rate / 3600
        share = MODELS[options.model][4] / 1e3 / seconds
        print(f"| {gpus:,} | {seconds * 1e3:.0f} | {rate:,.0f} | {share:.1%} | {hours:.2f} | "
              f"{hours * gpus * options.price:.0f} |")


if __name__ == "__main__":
    main()
