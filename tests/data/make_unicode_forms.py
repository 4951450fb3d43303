"""Writes tests/data/unicode_forms.json: what the normalizers of the package `tokenizers` make of all characters.

    pip install tokenizers==0.22.2
    python3 tests/data/make_unicode_forms.py

Per normalizer the SHA-256 of the texts that it makes of each character and a line end, in their order, and what it
makes of random sequences of letters and marks.
"""

import hashlib
import json
import os
import random
import unicodedata

from tokenizers import normalizers

here = os.path.dirname(os.path.abspath(__file__))
every = [chr(c) for c in range(1, 0x110000) if not 0xD800 <= c < 0xE000]
rng = random.Random(1)
marks = [c for c in every if unicodedata.combining(c)]
parts = sorted({p for c in every for p in unicodedata.normalize("NFD", c) if unicodedata.decomposition(c)} | set(marks))


def sequence():
    return "".join(rng.choice(rng.choice([parts, parts, marks, "aAqé가ᄀ"])) for _ in range(rng.randrange(1, 9)))


def main():
    texts = [sequence() for _ in range(300)]
    out = {"texts": texts}
    for name in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase"):
        normalizer = getattr(normalizers, name)()
        whole = "\n".join([normalizer.normalize_str(c) for c in every] + [""])
        digest = hashlib.sha256(whole.encode()).hexdigest()
        out[name] = {"every": digest, "texts": [normalizer.normalize_str(text) for text in texts]}
    with open(os.path.join(here, "unicode_forms.json"), "w", encoding="utf-8") as file:
        json.dump(out, file, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
