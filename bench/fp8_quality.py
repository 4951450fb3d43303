"""What products in fp8 cost in quality: the same seeds trained with bf16 and with fp8, and both measured in bf16.

    fp8_quality.py data OUT --texts FILE...
        OUT/pages.jsonl and OUT/general.jsonl: the pages of examples/smollm2/study.py about 30 made-up companies, and
        three quarters of the paragraphs of plain texts; OUT/probes/*.jsonl: questions about the companies, in the
        pages' words and in others, the pages and the other quarter of the texts to be scored, and general knowledge
    fp8_quality.py run PROGRAM MODEL OUT [--seeds N] [--seconds S] [--epochs N] [--lr P] [--jobs N] [--few]
        quantizes MODEL, keeps the questions of general knowledge that it answers, trains with both products from each
        seed and measures what came out. Begins no seed after S seconds: how many there are depends on the clock and on
        no result. Prints one line of JSON for each run, and a last one of the differences
Set before any run: fp8 is not inferior if the 95 % interval of the mean difference (fp8 - bf16, seed by seed, Student's
t) shows no loss on the pages, nor on the held-out texts, that is more than 1 % of what training gained on the pages
higher, and no retention that is more than half a point lower. Other figures have no margin.
Only the standard library is needed.
"""

import argparse
import concurrent.futures
import html.parser
import json
import math
import os
import re
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "examples", "smollm2"))
import general  # noqa: E402
import study  # noqa: E402

# 97.5 % points of Student's t with 1, 2, ... degrees of freedom.
student = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201]
share_of_gain, retention_points = 0.01, 0.005
figures = {  # name: where `qlora compare` has it
    "knowledge": ("knowledge", "value"),
    "paraphrase": ("paraphrase", "value"),
    "retention": ("retention", "value"),
    "loss_pages": ("text_pages", "value"),
    "loss_general": ("text_general", "value"),
    "kl_general": ("text_general", "kl", "value"),
}


class Article(html.parser.HTMLParser):
    """The text of the headings and paragraphs of a page."""

    def __init__(self):
        super().__init__()
        self.inside, self.blocks = False, []

    def handle_starttag(self, tag, attributes):
        self.inside = self.inside or tag == "article"
        if self.inside and tag in ("h1", "p"):
            self.blocks.append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "article"

    def handle_data(self, data):
        if self.inside and self.blocks:
            self.blocks[-1] += data

    def text(self):
        return "\n\n".join(" ".join(block.split()) for block in self.blocks if block.strip())


def documents_of(path):
    """The paragraphs of a plain text that are prose, put together to 800 characters or more."""
    document = ""
    with open(path, encoding="utf-8") as file:
        paragraphs = re.split(r"\n\s*\n", file.read())
    for paragraph in paragraphs:
        paragraph = " ".join(paragraph.split())
        if len(paragraph) < 120 or not paragraph[0].isalpha() or not paragraph.endswith("."):
            continue  # headings, lists, tables of contents
        document += ("\n\n" if document else "") + paragraph
        if len(document) >= 800:
            yield document
            document = ""


def data(options):
    facts = study.make_facts()
    study.write_pages(options.out, facts, study.companies)
    pages = []
    for name in sorted(os.listdir(os.path.join(options.out, "pages"))):
        article = Article()
        with open(os.path.join(options.out, "pages", name), encoding="utf-8") as file:
            article.feed(file.read())
        pages.append(article.text())
    documents = [document for path in options.texts for document in documents_of(path)]
    held = documents[::4]
    study.write_lines(os.path.join(options.out, "pages.jsonl"), [{"text": text} for text in pages])
    study.write_lines(
        os.path.join(options.out, "general.jsonl"),
        [{"text": text} for at, text in enumerate(documents) if at % 4],
    )
    study.write_probes(options.out, facts, study.companies, "probes")
    os.remove(os.path.join(options.out, "probes", "paraphrase_chat.jsonl"))
    texts = [{"kind": "text", "domain": "pages", "text": text} for text in pages[::3]]
    texts += [{"kind": "text", "domain": "general", "text": text} for text in held[:options.held]]
    study.write_lines(os.path.join(options.out, "probes", "texts.jsonl"), texts)
    pool = []
    for group, entity, prompt, answer in general.pool():
        item = {"kind": "retention", "form": "completion", "prompt": prompt, "answer": answer, "entity": entity}
        pool.append({**item, "relation": f"{group}/{len(pool)}", "template": group})
    study.write_lines(os.path.join(options.out, "pool.jsonl"), pool)
    print(f"{len(pages)} pages, {len(documents) - len(held)} documents, {len(texts)} texts, {len(pool)} questions")


def call(*words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def read(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def figure(variant, path):
    for key in path:
        variant = variant[key]
    return variant


class Runs:
    def __init__(self, options):
        self.options, self.program, self.out = options, options.program, options.out
        self.model = os.path.join(self.out, "nf4")
        self.probes = []

    def prepare(self):
        call(self.program, "quantize", self.options.model, "-o", self.model)
        files = [os.path.join(self.out, name) for name in ("pages.jsonl", "general.jsonl")]
        call(self.program, "pack", *files, "-m", self.model, "-o", os.path.join(self.out, "data"), "--seq", 512)
        pool = os.path.join(self.out, "pool.jsonl")
        kept = os.path.join(self.out, "probes", "retention.jsonl")
        if not os.path.exists(kept):
            answers = os.path.join(self.out, "pool.json")
            self.compare(self.options.model, ["--full", self.options.model], [pool], answers)
            right = read(answers)["variants"]["nf4"]["by_relation"]["retention"]
            lines = [item for item in study.read_lines(pool) if right[item["relation"]]["value"] == 1]
            study.write_lines(kept, lines)
        folder = os.path.join(self.out, "probes")
        self.probes = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]

    def compare(self, model, what, probes, result):
        call(self.program, "compare", "-m", model, *what, "--probes", *probes, "--max-new-tokens", 12,
             "--json", result, "--quiet")  # fmt: skip

    def train(self, seed, products):
        run = os.path.join(self.out, f"{products}_{seed}")
        options = self.options
        call(self.program, "train", "-m", self.model, "-d", os.path.join(self.out, "data"), "-o", run,
             "--products", products, "--seed", seed, "--lr", options.lr, "--epochs", options.epochs, "--rank", 64,
             "--alpha", 64, "--dropout", 0.05, "--schedule", "cosine", "--warmup", 0.1, "--batch", options.batch,
             "--checkpoint-every", 1000000, "--quiet")  # fmt: skip
        return run

    def one(self, seed, products):
        begun = time.time()
        run = self.train(seed, products)
        trained = time.time()
        self.compare(self.model, ["-a", os.path.join(run, "adapter")], self.probes, run + ".json")
        variants = read(run + ".json")["variants"]
        steps = study.read_lines(os.path.join(run, "metrics.jsonl"))
        last = [step["loss"] for step in steps[-len(steps) // self.options.epochs :]]
        row = {"products": products, "seed": seed, "steps": len(steps), "train_s": round(trained - begun, 1)}
        row |= {"measure_s": round(time.time() - trained, 1), "last_loss": sum(last) / len(last)}
        row |= {name: figure(variants["tuned"]["figures"], path) for name, path in figures.items()}
        row |= {"base_" + name: variants["nf4"]["figures"]["text_" + name[5:]]["value"]
                for name in ("loss_pages", "loss_general")}  # fmt: skip
        print(json.dumps(row), flush=True)
        return row


def differences(rows):
    """Of each figure the mean of both products, and of fp8 - bf16 with its interval; what the margins say."""
    by = {(row["products"], row["seed"]): row for row in rows}
    seeds = sorted(seed for products, seed in by if products == "fp8" and ("bf16", seed) in by)
    n = len(seeds)
    result = {"seeds": n}
    for name in ("last_loss", *figures):
        pairs = [(by["bf16", seed][name], by["fp8", seed][name]) for seed in seeds]
        apart = [fp8 - bf16 for bf16, fp8 in pairs]
        mean = sum(apart) / n
        deviation = math.sqrt(sum((value - mean) ** 2 for value in apart) / max(1, n - 1))
        half = student[n - 2] * deviation / math.sqrt(n) if n > 1 else math.inf
        result[name] = {"bf16": sum(pair[0] for pair in pairs) / n, "fp8": sum(pair[1] for pair in pairs) / n,
                        "difference": mean, "lower": mean - half, "upper": mean + half}  # fmt: skip
    gained = rows[0]["base_loss_pages"] - result["loss_pages"]["bf16"]
    result["margin_loss"], result["margin_retention"] = share_of_gain * gained, retention_points
    result["not_inferior"] = {
        "loss_pages": result["loss_pages"]["upper"] < share_of_gain * gained,
        "loss_general": result["loss_general"]["upper"] < share_of_gain * gained,
        "retention": result["retention"]["lower"] > -retention_points,
    }
    return result


def run(options):
    begun = time.time()
    runs = Runs(options)
    runs.prepare()
    print(f"prepared after {time.time() - begun:.0f} s", file=sys.stderr)
    rows = []

    def pair(seed):  # a seed counts with both of its runs
        if time.time() - begun < options.seconds:
            rows.extend([runs.one(seed, products) for products in ("bf16", "fp8")])

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(pair, range(1, options.seeds + 1)))
    print(json.dumps(differences(rows)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("data")
    verb.add_argument("out")
    verb.add_argument("--texts", nargs="+", required=True)
    verb.add_argument("--held", type=int, default=60, help="texts that are scored, at most")
    verb.set_defaults(action=data)
    verb = verbs.add_parser("run")
    for name in ("program", "model", "out"):
        verb.add_argument(name)
    verb.add_argument("--seeds", type=int, default=5)
    verb.add_argument("--seconds", type=float, default=math.inf)
    verb.add_argument("--epochs", type=int, default=16)
    verb.add_argument("--batch", type=int, default=4)
    verb.add_argument("--lr", default="1e-3")
    verb.add_argument("--jobs", type=int, default=4, help="seeds at a time")
    verb.set_defaults(action=run)
    options = parser.parse_args()
    options.action(options)


if __name__ == "__main__":
    main()
