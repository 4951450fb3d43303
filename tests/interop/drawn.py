"""Models with a shape, a rotary embedding and options of their own, all of them random."""

import make_families


def model(rng):
    """A model of transformers with random weights."""
    heads = rng.choice([1, 2, 3, 4, 6, 8])
    # Nothing is narrower than the rank of an adapter, which the library asks for.
    options = {
        "num_attention_heads": heads,
        "num_key_value_heads": rng.choice([n for n in range(1, heads + 1) if heads % n == 0]),
        "head_dim": rng.choice([size for size in (4, 6, 8, 14, 16, 20) if heads * size >= 8]),
        "hidden_size": heads * rng.randrange(-(-8 // heads), 60 // heads + 4),
        "intermediate_size": rng.randrange(8, 130),
        "num_hidden_layers": rng.randrange(1, 5),
        "vocab_size": rng.randrange(40, 300),
        "max_position_embeddings": rng.choice([64, 100, 256]),
        "rope_theta": 10 ** rng.uniform(1.5, 6),
        "rms_norm_eps": 10 ** rng.uniform(-8, -3),
        "tie_word_embeddings": rng.random() < 0.4,
    }
    factor = rng.uniform(1, 16)
    before = rng.choice([8, 16, 32, 64])
    yarn = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": before}
    scaling = rng.choice(
        [
            None,
            {"rope_type": "linear", "factor": factor},
            {"rope_type": "dynamic", "factor": factor},
            {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": rng.uniform(0.5, 2),
                "high_freq_factor": rng.uniform(2.5, 8),
                "original_max_position_embeddings": before,
            },
            {**yarn, "beta_fast": rng.uniform(2, 40), "beta_slow": rng.uniform(0.1, 1.5)},
            {**yarn, "attention_factor": rng.uniform(0.5, 2), "truncate": rng.random() < 0.5},
        ]
    )
    if scaling:
        options["rope_scaling"] = scaling
    options = {**make_families.base, "initializer_range": options["hidden_size"] ** -0.5, **options}
    kind = rng.choice(["llama", "llama with biases", "mistral", "qwen2"])
    if kind == "mistral":
        config = make_families.MistralConfig(**options, sliding_window=rng.choice([None, make_families.tokens]))
        return make_families.MistralForCausalLM(config)
    if kind == "qwen2":
        return make_families.Qwen2ForCausalLM(make_families.Qwen2Config(**options))
    return make_families.llama(**options, attention_bias=kind == "llama with biases")
