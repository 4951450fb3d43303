#!/usr/bin/env python3
"""Compiles files of a configured build again with clang, for its warnings alone.

clang.py BUILD_FOLDER COMPILER REGEX: each file whose path matches, with the command of compile_commands.json and
-fsyntax-only -Werror, for a CPU with AVX-512 in place of this machine's: warnings must not depend on the machine, and
clang 19 warns about each function that it compiles for CPUs with AVX10. Prints what the compiler says and ends with 1
if there is anything. What files of one target share is parsed once for all of them.
"""
import collections
import concurrent.futures
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile

build, compiler, pattern = sys.argv[1:]
# What most files of the program include; none of it asks whether the steps of run/ are compiled elsewhere.
SHARED = ["io/gguf_model", "io/hf_model", "io/peft", "text/tokenizer", "text/dataset", "run/options"]


def command_of(entry):
    words = shlex.split(entry["command"])
    # A launcher may stand before the compiler; outputs and dependency files are not wanted.
    first = next(i for i, word in enumerate(words) if re.search(r"(\+\+|cc)(-\d+)?$", word))
    kept = [compiler]
    skip = False
    for word in words[first + 1 :]:
        if skip:
            skip = False
        elif word in ("-o", "-MT", "-MF"):
            skip = True
        elif word == "-march=native":
            kept.append("-march=sapphirerapids")
        elif word not in ("-MD", "-c") and not word.startswith("--param="):  # parameters are g++'s
            kept.append(word)
    return kept + ["-fsyntax-only", "-Werror"]


def run(command, folder):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stderr


def precompile(entry, path):
    """Writes path from SHARED with the options of an entry; returns the compiler's status and what it says."""
    header = path + ".hpp"
    with open(header, "w") as out:
        out.writelines(f"#include <qlora/{name}.hpp>\n" for name in SHARED)
    command = [word for word in command_of(entry) if word not in (entry["file"], "-fsyntax-only")]
    return run(command + ["-fpch-instantiate-templates", "-x", "c++-header", header, "-o", path], entry["directory"])


def check(entry, path):
    command = command_of(entry)
    if path:
        command[1:1] = ["-include-pch", path]
    return entry["file"], *run(command, entry["directory"])


with open(os.path.join(build, "compile_commands.json")) as file:
    entries = [one for one in json.load(file) if re.search(pattern, one["file"]) and not one["file"].endswith(".cu")]
if not entries:
    sys.exit(f"no file matches {pattern}")
targets = collections.defaultdict(list)
for one in entries:
    targets[tuple(word for word in command_of(one) if word != one["file"])].append(one)
jobs = int(os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", os.cpu_count()))
failed = 0
with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(jobs) as pool:
    shared = {}
    for alike in targets.values():
        if len(alike) > 4:
            path = os.path.join(folder, f"{len(shared)}.pch")
            code, said = precompile(alike[0], path)
            if code != 0 or said:
                sys.exit(f"{compiler}: headers that {len(alike)} files share:\n{said}")
            shared.update((one["file"], path) for one in alike)
    for name, code, said in pool.map(lambda one: check(one, shared.get(one["file"])), entries):
        if code != 0 or said:
            failed += 1
            print(f"{name}:\n{said}")
print(f"{compiler}: {len(entries)} files, {failed} with warnings or errors")
sys.exit(1 if failed else 0)
