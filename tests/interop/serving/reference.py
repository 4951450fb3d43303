"""LLaMA in numpy: what a model directory's weights make of token ids, without this library. Everything is float64, so
that what differs is the server's. Written from the paper and the config's names; no speed."""

import json
import os

import numpy
from safetensors import safe_open


class Model:
    def __init__(self, folder):
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            self.config = json.load(file)
        self.weights = {}
        with safe_open(os.path.join(folder, "model.safetensors"), framework="numpy") as file:
            for name in file.keys():
                self.weights[name] = file.get_tensor(name).astype(numpy.float64)

    def norm(self, x, name):
        scale = numpy.sqrt((x * x).mean(-1, keepdims=True) + self.config["rms_norm_eps"])
        return x / scale * self.weights[name]

    def rotated(self, x):
        """(T, H, E): the first half of a head's values are real parts, the second half imaginary ones."""
        size = x.shape[-1]
        angles = numpy.outer(numpy.arange(len(x)),
                             self.config["rope_theta"] ** (-numpy.arange(0, size, 2, dtype=numpy.float64) / size))
        cosine, sine = numpy.cos(angles)[:, None], numpy.sin(angles)[:, None]
        real, imaginary = x[..., :size // 2], x[..., size // 2:]
        return numpy.concatenate([real * cosine - imaginary * sine, imaginary * cosine + real * sine], -1)

    def logprobs(self, ids):
        """(T, V): the log-probability of each token behind each of `ids`."""
        config, weights = self.config, self.weights
        heads, shared, count = config["num_attention_heads"], config["num_key_value_heads"], len(ids)
        size = config.get("head_dim") or config["hidden_size"] // heads
        hidden = numpy.triu(numpy.full((count, count), -numpy.inf), 1)
        x = weights["model.embed_tokens.weight"][numpy.asarray(ids)]
        for layer in range(config["num_hidden_layers"]):
            def project(y, name):
                return y @ weights[f"model.layers.{layer}.{name}.weight"].T

            y = self.norm(x, f"model.layers.{layer}.input_layernorm.weight")
            q = self.rotated(project(y, "self_attn.q_proj").reshape(count, heads, size))
            k = self.rotated(project(y, "self_attn.k_proj").reshape(count, shared, size))
            v = project(y, "self_attn.v_proj").reshape(count, shared, size)
            k, v = (numpy.repeat(z, heads // shared, 1) for z in (k, v))
            scores = numpy.einsum("qhe,khe->hqk", q, k) / numpy.sqrt(size) + hidden
            scores = numpy.exp(scores - scores.max(-1, keepdims=True))
            mixed = numpy.einsum("hqk,khe->qhe", scores / scores.sum(-1, keepdims=True), v)
            x = x + project(mixed.reshape(count, heads * size), "self_attn.o_proj")
            y = self.norm(x, f"model.layers.{layer}.post_attention_layernorm.weight")
            gate = project(y, "mlp.gate_proj")
            x = x + project(gate / (1 + numpy.exp(-gate)) * project(y, "mlp.up_proj"), "mlp.down_proj")
        logits = self.norm(x, "model.norm.weight") @ weights["lm_head.weight"].T
        logits -= logits.max(-1, keepdims=True)
        return logits - numpy.log(numpy.exp(logits).sum(-1, keepdims=True))
