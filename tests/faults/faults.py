"""Faults and what the program makes of them; see run.sh. A fault that did harm of which no error told is a survivor."""

import errno
import pathlib
import random
import shutil
import signal
import sys

from steps import MODEL, Program, hashes, make_steps


class Table:
    """Rows of kind, faults, and what went wrong."""

    def __init__(self):
        self.rows = []

    def add(self, kind, faults, told, survivors):
        self.rows.append((kind, faults, told, survivors))
        print(f"{kind}: {faults} faults, {told} told of, {len(survivors)} survivors", flush=True)
        for survivor in survivors:
            print(f"    {survivor}", flush=True)

    def text(self):
        lines = ["| fault | n | error, then as before | no effect | survivors |", "|---|---|---|---|---|"]
        for kind, faults, told, survivors in self.rows:
            lines.append(f"| {kind} | {faults} | {told} | {faults - told - len(survivors)} | {len(survivors)} |")
        return "\n".join(lines)


def temporaries(folder):
    return [str(path) for path in folder.rglob(".*.tmp-*")]


def completes(program, step, expected):
    """What is wrong after the same command has run once more without a fault; empty: nothing."""
    again = program.run(step.arguments)
    done_before = again.code == 2 and "exists" in again.error  # merge and pack do not write over a result
    if again.code != 0 and not done_before:
        return f"the next run exits with {again.code}: {again.error.strip()[:200]}"
    if hashes(step.result) != expected:
        return "the next run's result differs"
    left = temporaries(program.work)
    return f"files are left: {left[:2]}" if left else ""


def after(program, step, expected, outcome, what, survivors):
    """Judges one disturbed run; 1 where it told of the fault."""
    trouble = outcome.trouble()
    if not trouble and outcome.code == 0 and hashes(step.result) != expected:
        trouble = "it exits with 0 and its result differs"
    trouble = trouble or completes(program, step, expected)
    if trouble:
        survivors.append(f"{what}: {trouble}")
        return 0
    return 1 if outcome.code != 0 else 0


def kills(program, step, n, expected, seconds, signals):
    told, survivors = 0, []
    for _ in range(n):
        step.clear()
        sent, moment = random.choice(signals), random.uniform(0.02, seconds)
        outcome = program.run(step.arguments, kill_after=moment, kill_with=sent)
        if outcome.code == -sent and (sent == signal.SIGKILL or outcome.error == ""):
            outcome.code, outcome.error = 6, "qlora: killed"  # by SIGKILL, or before it listened to signals
        told += after(program, step, expected, outcome, f"{sent.name} after {moment:.3f} s", survivors)
    return told, survivors


def failing_calls(program, step, n, expected, call, number):
    step.clear()
    calls = program.calls(step.arguments, call)
    told, survivors = 0, []
    places = random.sample(range(1, calls + 1), min(n, calls))  # a step without such a call has none
    for at in places:
        step.clear()
        outcome = program.faulty(step.arguments, call, at, number)
        what = f"{errno.errorcode[number]} in {call} {at} of {calls}"
        told += after(program, step, expected, outcome, what, survivors)
    return len(places), told, survivors


def file_limits(program, step, n, expected):
    told, survivors = 0, []
    for _ in range(n):
        step.clear()
        size = random.randrange(1, 400_000)
        outcome = program.run(step.arguments, file_limit=size)
        told += after(program, step, expected, outcome, f"files of at most {size} bytes", survivors)
    return told, survivors


def flip(path, rest_from=0):
    """Changes one bit of a file, and returns what and how to undo it."""
    data = bytearray(path.read_bytes())
    bit = random.randrange(rest_from * 8, len(data) * 8)
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return bit


def flips(program, files, n, use, expected):
    """Flips a bit in one of the files; `use()` runs the program on them and returns its outcome and its result."""
    told, survivors = 0, []
    for _ in range(n):
        path = random.choices(files, weights=[file.stat().st_size for file in files])[0]
        before = path.read_bytes()
        bit = flip(path)
        outcome, result = use()
        path.write_bytes(before)
        trouble = outcome.trouble()
        if not trouble and outcome.code == 0 and result != expected:
            trouble = "exit 0 and another result"
        if trouble:
            survivors.append(f"bit {bit} of {path.name}: {trouble}")
        elif outcome.code != 0:
            told += 1
    return told, survivors


def mutated(data):
    """Data with a few bytes changed, gone, doubled or new, or cut."""
    data = bytearray(data)
    for _ in range(random.choice([1, 1, 2, 8])):
        at = random.randrange(len(data) + 1)
        kind = random.randrange(5)
        if kind == 0 and at < len(data):
            data[at] = random.randrange(256)
        elif kind == 1:
            data[at:at] = bytes(random.randrange(256) for _ in range(random.randrange(1, 9)))
        elif kind == 2:
            del data[at : at + random.randrange(1, 9)]
        elif kind == 3:
            data[at:at] = data[at : at + random.randrange(1, 40)]
        elif kind == 4 and random.random() < 0.2:
            del data[at:]
    return bytes(data)


def mutations(path, n, use):
    """Mutations of one input: any result will do, but for a crash, a hang and a failure without a message."""
    told, survivors = 0, []
    before = path.read_bytes()
    for i in range(n):
        path.write_bytes(mutated(before))
        outcome = use()
        if trouble := outcome.trouble():
            kept = pathlib.Path(f"/tmp/qlora-fault-{path.name}-{i}")
            shutil.copy(path, kept)
            survivors.append(f"{kept}: {trouble}")
        elif outcome.code != 0:
            told += 1
    path.write_bytes(before)
    return told, survivors


def disturb(program, steps, n, table, wanted):
    """Kills, signals and failing calls."""
    results, seconds = {}, {}
    for name, step in steps.items():
        step.clear()
        outcome = program.run(step.arguments)
        results[name], seconds[name] = hashes(step.result), outcome.seconds
    for name, step in steps.items():
        for kind, signals in (("kill", [signal.SIGKILL]), ("signal", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])):
            if wanted(f"{kind} {name}"):
                row = kills(program, step, n, results[name], seconds[name], signals)
                table.add(f"{kind} {name}", n, *row)
        for call, number in (
            ("write", errno.ENOSPC),
            ("write", errno.EIO),
            ("read", errno.EIO),
            ("fsync", errno.EIO),
            ("rename", errno.EIO),
            ("open", errno.EMFILE),
            ("close", errno.EIO),
            ("mkdir", errno.ENOSPC),
            ("list", errno.EIO),
            ("stat", errno.EIO),
            ("map", errno.ENOMEM),
        ):
            kind = f"{errno.errorcode[number]} {call} {name}"
            if wanted(kind):
                table.add(kind, *failing_calls(program, step, n, results[name], call, number))
        if wanted(f"EFBIG {name}"):
            table.add(f"EFBIG {name}", n, *file_limits(program, step, n, results[name]))
        if hashes(step.result) != results[name]:
            raise SystemExit(f"{name} left another result than it began with")


def damage(program, steps, n, table, wanted):
    """Bits that change in what was written, and mutations of all inputs."""
    work = program.work
    base, adapter, merged = work / "base", work / "adapter", work / "merged"
    shutil.copytree(MODEL, base)
    asked = ["-p", "The", "--max-new-tokens", "4", "--temperature", "0", "--device", "cpu", "--threads", "1", "-q"]

    def files(folder, *names):
        return [path for path in sorted(folder.rglob("*")) if path.is_file() and (not names or path.name in names)]

    def generate(model, *more):
        outcome = program.run(["generate", model, *more, *asked])
        return outcome, outcome.out

    def merge():
        shutil.rmtree(work / "again", ignore_errors=True)
        outcome = program.run(["merge", "-m", base, "-a", adapter, "-o", work / "again", "--device", "cpu", "-q"])
        return outcome, hashes(work / "again") if outcome.code == 0 else None

    def train_on():
        step = steps["train"]
        shutil.rmtree(step.out / "adapter", ignore_errors=True)
        outcome = program.run(step.arguments)
        return outcome, hashes(step.result) if outcome.code == 0 else None

    def job():
        outcome = program.run(steps["run"].arguments)
        return outcome, hashes(steps["run"].result) if outcome.code == 0 else None

    bits = {
        "bits adapter": (files(adapter), lambda: generate(base, "-a", adapter)),
        "bits merged model": (files(merged), lambda: generate(merged)),
        "bits base beneath an adapter": (files(base, "model.safetensors"), lambda: generate(base, "-a", adapter)),
        "bits base while merging": (files(base, "model.safetensors"), merge),
        "bits data set": (files(work / "data"), train_on),
        "bits checkpoint": (files(work / "train/checkpoints"), train_on),
        "bits run.json": ([work / "job/run.json"], job),
        "bits results of a job": (files(steps["run"].result), job),
    }
    for kind, (paths, use) in bits.items():
        if wanted(kind):
            table.add(kind, n, *flips(program, paths, n, use, use()[1]))
    plain = work / "plain"  # an adapter without checksums, as other programs write them
    shutil.copytree(adapter, plain)
    (plain / "qlora.sha256").unlink(missing_ok=True)
    pack = steps["pack"].arguments
    inputs = {
        "config.json": (base / "config.json", lambda: generate(base)[0]),
        "generation_config.json": (base / "generation_config.json", lambda: generate(base)[0]),
        "tokenizer.model": (base / "tokenizer.model", lambda: generate(base)[0]),
        "tokenizer_config.json": (base / "tokenizer_config.json", lambda: generate(base)[0]),
        "model.safetensors": (base / "model.safetensors", lambda: generate(base)[0]),
        "adapter_config.json": (plain / "adapter_config.json", lambda: generate(base, "-a", plain)[0]),
        "adapter_model.safetensors": (plain / "adapter_model.safetensors", lambda: generate(base, "-a", plain)[0]),
        "pages.jsonl": (work / "pages.jsonl", lambda: program.run([*pack[:5], work / "packed", "--seq", "64", "-q"])),
        "page.html": (
            work / "job_pages/" / next((work / "job_pages").iterdir()).name,
            lambda: program.run(["fetch", work / "job_pages", "-o", work / "f.jsonl", "-q"]),
        ),
        "manifest.json": (work / "data/manifest.json", lambda: train_on()[0]),
        "state.json": (next((work / "train/checkpoints").glob("*/state.json")), lambda: train_on()[0]),
        "metrics.jsonl": (work / "train/metrics.jsonl", lambda: train_on()[0]),
        "run.json": (work / "job/run.json", lambda: job()[0]),
        "job.toml": (work / "job.toml", lambda: program.run(["run", work / "job.toml", "--show", "-q"])),
    }
    for name, (path, use) in inputs.items():
        if wanted(f"mutate {name}"):
            table.add(f"mutate {name}", n, *mutations(path, n, use))


def main():
    program = Program(sys.argv[1], sys.argv[2])
    n = int(sys.argv[3]) if len(sys.argv) > 3 else 20
    kinds = sys.argv[4:]
    seed = int(__import__("os").environ.get("QLORA_SEED", "1"))
    random.seed(seed)
    table = Table()
    steps = make_steps(program)

    def wanted(kind):
        return not kinds or any(kind.startswith(one) for one in kinds)

    disturb(program, steps, n, table, wanted)
    damage(program, steps, n, table, wanted)
    print(table.text())
    sys.exit(1 if any(survivors for _, _, _, survivors in table.rows) else 0)


main()
