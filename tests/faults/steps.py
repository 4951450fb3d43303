"""The program's steps on the small model: each as a command, with what it must leave behind."""

import hashlib
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples/models/tiny-chat"
PAGES = sorted((ROOT / "examples/pages").glob("*.html"))[:3]
TIME_LIMIT = 600  # seconds; a step takes some, on a busy machine a minute


def hashes(path):
    """SHA-256 of a file, or of the files of a folder by name; lock files and times say nothing of a result."""
    path = pathlib.Path(path)
    if not path.exists():
        return None
    if path.is_file():  # of documents, when they were fetched is left out
        text = re.sub(rb'"fetched_at":"[^"]*",', b"", path.read_bytes())
        return hashlib.sha256(text).hexdigest()
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != "run.lock"
    }


class Outcome:
    """How a run of the program ended."""

    def __init__(self, code, out, error, seconds):
        self.code, self.out, self.error, self.seconds = code, out, error, seconds

    def trouble(self):
        """What no run may do, whatever happens to it; empty: it did nothing of the kind."""
        if self.code is None:
            return "it hangs"
        if self.code < 0:
            return f"signal {-self.code}"
        if self.code > 6:
            return f"exit code {self.code}"
        if self.code != 0 and "qlora: " not in self.error:
            return "it fails without a message"
        return ""


class Program:
    """The program under test, on one thread, so that a fault hits the same call each time."""

    def __init__(self, path, work):
        self.path, self.work = str(pathlib.Path(path).resolve()), pathlib.Path(work)
        self.preload = str(self.work / "fault.so")

    def run(self, arguments, env=None, kill_after=None, kill_with=signal.SIGKILL, file_limit=None):
        def limit():
            if file_limit is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

        began = time.monotonic()
        process = subprocess.Popen(
            [self.path, *map(str, arguments)],
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=limit,
            cwd=self.work,
        )
        try:
            if kill_after is not None:
                try:
                    process.wait(kill_after)
                except subprocess.TimeoutExpired:
                    process.send_signal(kill_with)
            out, error = process.communicate(timeout=TIME_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return Outcome(None, "", "", TIME_LIMIT)
        text = [stream.decode("utf-8", "replace") for stream in (out, error)]
        return Outcome(process.returncode, *text, time.monotonic() - began)

    def faulty(self, arguments, call, at, number):
        """Runs with the `at`-th call failing with the errno `number`."""
        return self.run(
            arguments,
            {"LD_PRELOAD": self.preload, "FAULT_CALL": call, "FAULT_AT": str(at), "FAULT_ERRNO": str(number)},
        )

    def calls(self, arguments, call):
        """How many calls of this kind a run makes."""
        count = self.work / "calls"
        self.run(arguments, {"LD_PRELOAD": self.preload, "FAULT_CALL": call, "FAULT_COUNT": str(count)})
        return int(count.read_text())


class Step:
    """A command that writes `out`; `result` is the part of it that has the same bytes whatever happened before."""

    def __init__(self, name, out, arguments, result=None):
        self.name, self.out, self.arguments = name, out, arguments
        self.result = result or out

    def clear(self):
        if self.out.is_dir():
            shutil.rmtree(self.out)
        else:
            self.out.unlink(missing_ok=True)


def make_steps(program):
    """All steps, each with its inputs made."""
    work = program.work
    cpu = ["--device", "cpu", "--threads", "1", "-q"]
    pages, data, run = work / "pages.jsonl", work / "data", work / "train"
    fetch = Step("fetch", pages, ["fetch", *PAGES, "-o", pages, "-q"])
    pack = Step("pack", data, ["pack", pages, "-m", MODEL, "-o", data, "--seq", "64", "-q"])
    options = ["--rank", "4", "--batch", "2", "--epochs", "1", "--checkpoint-every", "3", "--seed", "7"]
    train = Step("train", run, ["train", "-m", MODEL, "-d", data, "-o", run, *options, *cpu], run / "adapter")
    adapter, merged = work / "adapter", work / "merged"
    merge = Step("merge", merged, ["merge", "-m", MODEL, "-a", adapter, "-o", merged, *cpu])
    quantize = Step("quantize", work / "nf4", ["quantize", MODEL, "-o", work / "nf4", "--threads", "1", "-q"])
    export = Step("export", work / "model.gguf", ["export", MODEL, "-o", work / "model.gguf", "-q"])
    recall_out = work / "recalled.jsonl"
    asked = ["--documents", "4", "--max-new-tokens", "200", "--seed", "3"]
    recall = Step("recall", recall_out, ["recall", MODEL, "-o", recall_out, *asked, *cpu])
    page, answers = work / "page.html", work / "answers.json"
    (work / "asked.txt").write_text("What is new?\n")
    compare = Step(
        "compare",
        answers,
        ["compare", "-m", MODEL, "-a", adapter, "--questions", work / "asked.txt", "--max-new-tokens", "4"]
        + ["--temperature", "0", "--report", page, "--json", answers, *cpu],
    )
    job, job_out = work / "job.toml", work / "job"
    (work / "job_pages").mkdir(exist_ok=True)
    shutil.copy(PAGES[0], work / "job_pages")
    (work / "questions.txt").write_text("What is new?\n")
    job.write_text(
        f'[model]\npath = "{MODEL}"\n[device]\nuse = "cpu"\nthreads = 1\n[data]\nfiles = ["job_pages"]\n'
        '[pack]\nseq = 64\n[train]\nrank = 4\nepochs = 1\nbatch = 2\ncheckpoint_every = 2\nseed = 7\n'
        '[compare]\nquestions = "questions.txt"\nmax_new_tokens = 4\ntemperature = 0\n[output]\ndir = "job"\n'
    )
    job_step = Step("run", job_out, ["run", job, "-q"], job_out / "tiny-chat/merged")
    steps = {step.name: step for step in (fetch, pack, train, merge, quantize, export, recall, compare, job_step)}
    for name in ("fetch", "pack", "train"):
        outcome = program.run(steps[name].arguments)
        if outcome.code != 0:
            raise SystemExit(f"{name} fails without a fault: {outcome.error}")
    shutil.copytree(run / "adapter", adapter)
    for name in ("merge", "quantize", "export", "recall", "compare", "run"):
        outcome = program.run(steps[name].arguments)
        if outcome.code != 0:
            raise SystemExit(f"{name} fails without a fault: {outcome.error}")
    if not job_step.result.exists():  # a job of one arm writes beside run.json
        job_step.result = job_out / "merged"
    return steps
