"""Writes tests/data/rows: streams of pyarrow, a folder of `datasets`, and what their rows are, for
tests/run/data_files_test.cpp. Ids are below 300, so that the small tokenizer has them.

    python3 -m pip install pyarrow==26.0.1 datasets==5.2.0 && python3 tests/data/make_rows.py
"""

import json
import os
import random
import shutil

import datasets
import pyarrow

folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "rows")
draw = random.Random(7)


def rows(lengths):
    ids = [[draw.randrange(300) for _ in range(n)] for n in lengths]
    labels = [[i if draw.random() < 0.7 else -100 for i in row] for row in ids]
    return {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids], "labels": labels}


def stream(name, table, **options):
    with pyarrow.OSFile(os.path.join(folder, name + ".arrow"), "wb") as file:
        with pyarrow.ipc.new_stream(file, table.schema, options=pyarrow.ipc.IpcWriteOptions(**options)) as out:
            out.write_table(table, max_chunksize=3)


def lists(values, kind):
    return pyarrow.array(values, type=kind)


def columns(data, **kinds):
    return pyarrow.table({name: lists(data[name], kinds[name]) for name in kinds})


shutil.rmtree(folder, ignore_errors=True)
os.makedirs(folder)
expected = {"saved": rows([16] * 7), "types": rows([9, 12, 5, 12, 3, 7, 12, 2])}
datasets.Dataset.from_dict(expected["saved"]).save_to_disk(os.path.join(folder, "saved"), num_shards=2)
types = expected["types"]
others = {
    "text": pyarrow.array([None, "a", "b", "", "c", "d", None, "e"]),
    "kind": pyarrow.array(["x", "y", "x", "x", "y", "x", "x", "y"]).dictionary_encode(),
    "score": pyarrow.array([0.5] * 8, type=pyarrow.float64()),
    "spans": pyarrow.array([[{"a": 1, "b": "s"}], None, [], [], [], [], [], [{"a": 2, "b": None}]]),
    "pairs": pyarrow.array([[1, 2]] * 8, type=pyarrow.list_(pyarrow.int16(), 2)),
    "nothing": pyarrow.nulls(8),
}
int32, int64 = pyarrow.int32(), pyarrow.int64()
bools = {**types, "attention_mask": [[bool(m) for m in row] for row in types["attention_mask"]]}
mixed = columns(bools, input_ids=pyarrow.large_list(pyarrow.uint16()), labels=pyarrow.list_(int64),
                attention_mask=pyarrow.list_(pyarrow.bool_()))
for place, (name, column) in enumerate(others.items()):
    mixed = mixed.add_column(min(place, mixed.num_columns), name, column)
stream("types", mixed)
same = {"input_ids": types["input_ids"]}
plain = columns(same, input_ids=pyarrow.list_(int32))
stream("zstd", plain, compression="zstd")
stream("lz4", plain, compression="lz4")
stream("null_row", pyarrow.table({"input_ids": lists([[1, 2], None], pyarrow.list_(int32))}))
stream("null_token", pyarrow.table({"input_ids": lists([[1, None], [3, 4]], pyarrow.list_(int32))}))
stream("floats", pyarrow.table({"input_ids": lists([[1.0, 2.0]], pyarrow.list_(pyarrow.float32()))}))
stream("dictionary", pyarrow.table({"input_ids": pyarrow.array(["a", "b"]).dictionary_encode()}))
stream("views", plain.add_column(0, "view", pyarrow.array(["a"] * 8, type=pyarrow.string_view())))
stream("text", pyarrow.table({"text": pyarrow.array(["a"])}))
with pyarrow.ipc.new_file(os.path.join(folder, "feather.arrow"), plain.schema) as out:
    out.write_table(plain)
with open(os.path.join(folder, "expected.json"), "w", encoding="utf-8") as file:
    json.dump(expected, file)
