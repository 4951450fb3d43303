"""Writes tests/data/regex_classes.json: what the package `tokenizers` finds among all characters, by expression.

    pip install tokenizers==0.22.2
    python3 tests/data/make_regex_classes.py

Per expression: how many runs of matching characters there are in the text of all characters from U+0000 on, how many
characters they have together, and a hash of where they begin and end, in bytes. regex_test.cpp computes the same.
"""

import itertools
import json
import os

from tokenizers import Regex, pre_tokenizers

here = os.path.dirname(os.path.abspath(__file__))
categories = "L Lu Ll Lt Lm Lo M Mc Me N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So Z Zs Zl Zp Cc Cf"
expressions = [
    r"\s+",
    r"\S+",
    r"\w+",
    r"\W+",
    r"\d+",
    r"\D+",
    r"\p{Han}+",
    r"\P{L}+",
    r"[^\s\p{L}\p{N}]+",
    r"[\S\p{P}]+",
    r"[^\r\n\p{L}\p{P}\p{S}]+",
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+",
    r"(?i:[a-z])+",
    r"[a-z\d]+",
    r".+",
    *(rf"\p{{{name}}}+" for name in categories.split()),
]
every = "".join(chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000)
begins = [0, *itertools.accumulate(len(character.encode()) for character in every)]


def hashed(numbers):
    value = 14695981039346656037
    for number in numbers:
        value = ((value ^ number) * 1099511628211) % 2**64
    return value


def runs_of(expression):
    """Where runs begin and end, in bytes, and how many characters they have together."""
    split = pre_tokenizers.Split(Regex(expression), "removed")
    place, runs, characters = 0, [], 0
    # What is left lies between the matches.
    for _, (begin, end) in [*split.pre_tokenize_str(every), ("", (len(every), len(every)))]:
        if begin > place:
            runs += [begins[place], begins[begin]]
            characters += begin - place
        place = end
    return runs, characters


def found(expression):
    runs, characters = runs_of(expression)
    return {"runs": len(runs) // 2, "characters": characters, "hash": hashed(runs)}


if __name__ == "__main__":
    with open(os.path.join(here, "regex_classes.json"), "w", encoding="utf-8") as file:
        json.dump({expression: found(expression) for expression in expressions}, file, indent=0)
        file.write("\n")
