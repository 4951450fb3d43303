#!/usr/bin/env python3
"""Compiles files of a configured build again with clang, for its warnings alone.

clang.py BUILD_FOLDER COMPILER REGEX: each file whose path matches, with the command of compile_commands.json and
-fsyntax-only -Werror, for a CPU with AVX-512 in place of this machine's: warnings must not depend on the machine, and
clang 19 warns about each function that it compiles for CPUs with AVX10. Prints what the compiler says and ends with 1
if there is anything.
"""
import concurrent.futures
import json
import os
import re
import shlex
import subprocess
import sys

build, compiler, pattern = sys.argv[1:]


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
        elif word not in ("-MD", "-c"):
            kept.append(word)
    return kept + ["-fsyntax-only", "-Werror"]


def check(entry):
    done = subprocess.run(command_of(entry), cwd=entry["directory"], capture_output=True, text=True)
    return entry["file"], done.returncode, done.stderr


with open(os.path.join(build, "compile_commands.json")) as file:
    entries = [one for one in json.load(file) if re.search(pattern, one["file"]) and not one["file"].endswith(".cu")]
if not entries:
    sys.exit(f"no file matches {pattern}")
jobs = int(os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", os.cpu_count()))
failed = 0
with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
    for name, code, said in pool.map(check, entries):
        if code != 0 or said:
            failed += 1
            print(f"{name}:\n{said}")
print(f"{compiler}: {len(entries)} files, {failed} with warnings or errors")
sys.exit(1 if failed else 0)
