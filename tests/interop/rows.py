"""Rows of token ids exchanged with pyarrow and `datasets`, in both directions: python rows.py PROGRAM TOKENIZER
[SEED]. PROGRAM is the built qlora, TOKENIZER a model directory or tokenizer file. Exits with 1 when something differs.
"""

import json
import os
import random
import subprocess
import sys
import tempfile

import datasets
import numpy
import pyarrow

program, tokenizer = map(os.path.abspath, sys.argv[1:3])
seed = int(sys.argv[3]) if len(sys.argv) > 3 else random.SystemRandom().randrange(2**31)
draw = random.Random(seed)
datasets.disable_progress_bars()


def run(*arguments):
    subprocess.run([program, *map(str, arguments), "--quiet"], check=True, stdout=subprocess.DEVNULL)


def rows(count, most, equal):
    lengths = [most if equal else draw.randint(2, most) for _ in range(count)]
    ids = [[draw.randrange(3, 250) for _ in range(n)] for n in lengths]
    labels = [[i if t == 1 or draw.random() < 0.6 else -100 for t, i in enumerate(row)] for row in ids]
    return {"input_ids": ids, "attention_mask": [[1] * n for n in lengths], "labels": labels}


def padded(data):
    longest = max(map(len, data["input_ids"]))
    mask = [row + [0] * (longest - len(row)) for row in data["attention_mask"]]
    labels = [row + [-100] * (longest - len(row)) for row in data["labels"]]
    return mask, labels


def same(data, folder):
    """Whether load_from_disk finds these rows, padded to the longest."""
    found = datasets.load_from_disk(folder)[:]
    mask, labels = padded(data)
    inside = [[i for i, m in zip(*row) if m] for row in zip(found["input_ids"], found["attention_mask"])]
    return found["attention_mask"] == mask and found["labels"] == labels and inside == data["input_ids"]


def column(values, list_type, kind):
    return pyarrow.array(values, type=list_type(kind))


integers = [pyarrow.int16(), pyarrow.uint16(), pyarrow.int32(), pyarrow.uint32(), pyarrow.int64(), pyarrow.uint64()]
wrong = 0
with tempfile.TemporaryDirectory() as work:
    os.chdir(work)
    for trial in range(12):
        data = rows(draw.randint(1, 3000 if trial == 0 else 60), draw.randint(2, 200), trial % 2 == 0)
        name = f"in{trial}"
        if trial % 3 == 0:
            shards = min(draw.randint(1, 3), len(data["input_ids"]))
            datasets.Dataset.from_dict(data).save_to_disk(name, num_shards=shards)
        else:
            name += ".arrow"
            lists = draw.choice([pyarrow.list_, pyarrow.large_list])
            table = pyarrow.table({
                "other": pyarrow.array([draw.choice([None, "x", ""]) for _ in data["labels"]]),
                "labels": column(data["labels"], lists, draw.choice([pyarrow.int16(), pyarrow.int64()])),
                "input_ids": column(data["input_ids"], lists, draw.choice(integers)),
                "attention_mask": column(data["attention_mask"], lists, draw.choice([pyarrow.int8(), *integers])),
            })
            with pyarrow.OSFile(name, "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as out:
                out.write_table(table, max_chunksize=draw.randint(1, 50))
        run("data", "import", name, "-m", tokenizer, "-o", f"set{trial}")
        run("data", "export", f"set{trial}", "-o", f"out{trial}")
        run("data", "export", f"set{trial}", "-o", f"out{trial}.jsonl")
        with open(f"out{trial}.jsonl", encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        by_line = {key: [line[key] for line in lines] for key in lines[0]}
        good = same(data, f"out{trial}") and datasets.load_from_disk(f"out{trial}")[:] == by_line
        for file in sorted(os.listdir(f"out{trial}")):
            if file.endswith(".arrow"):
                pyarrow.ipc.open_stream(os.path.join(f"out{trial}", file)).read_all().validate(full=True)
        wrong += not good
        print(f"{'ok  ' if good else 'FAIL'} {name}: {len(lines)} rows of {len(lines[0]['labels'])}", flush=True)
print(f"seed {seed}; datasets {datasets.__version__}, pyarrow {pyarrow.__version__}, numpy {numpy.__version__}")
sys.exit(1 if wrong else 0)
