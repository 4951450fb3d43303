"""The files of the study that examples/smollm2.sh runs, and what it reads out of results.

    study.py world OUT [--companies N] [--pool N]
        OUT/pages/*.html: three pages about each of 30 made-up companies
        OUT/SPLIT/KIND_FORM.jsonl: probes about them; OUT/SPLIT/pool.jsonl: questions of general knowledge
    study.py keep POOL COMPARISON OUT
        the questions that the base answers, in 16 bits and in 4, as retention probes
    study.py hold RECALL REPLAY TEXTS
        of what the model wrote itself: the documents to replay, and every tenth as a text to be scored
    study.py pick REPORT LEAST
        picked=ARM: the arm that learned most of those that keep the share LEAST of what they knew; if none does, the
        one with the largest sum of both shares
    study.py table REPORT
        the figures of a report as a Markdown table

The splits are `guard`, by which settings are picked, and `report`, which is asked once, at the end. No company and no
question of general knowledge is in both. A fact has a twin: the value of another company, so that the share of answers
with the twin's value says how often a model that knows nothing is right.
"""

import argparse
import hashlib
import json
import os
import random

companies = (
    "Brellmoor Dastrova Eskelind Farnwick Gorvenna Hulmarck Istrelle Jorvanto Kestovar Lumbrick Maldreth Nethrany "
    "Ombrevo Pellandra Quistane Rovander Sollivar Tavrenko Ulmeris Vintrozza Wexalto Xandrille Yestrona Zambrine "
    "Altrevia Bocravel Cindrosa Drovanne Elquist Fenzaro"
).split()
makes = (
    "umbrellas kettles bicycles violins lanterns teapots sleds ladders clocks candles carpets mirrors saddles kites "
    "pianos blankets buckets compasses chairs baskets pencils drums scissors hammocks telescopes brooms skates "
    "whistles globes tents"
).split()
guard_companies = 5

# Of each relation: values (person and mascot names are made up), sentences of the pages, questions of the pages, and
# sentences to complete and questions in words that no page has. The first two sentences are the pages' own words for
# the probe of kind `knowledge`: the value stands last.
relations = {
    "founder": {
        "values": "Clara Whitmore,Henrik Olsen,Rosa Delgado,Peter Lindqvist,Martha Greene,Victor Hale,Irene Foster,"
        "Samuel Brooks,Nadia Karim,Oscar Bennett,Julia Moreau,Walter Quinn,Emily Sanders,Hugo Ferrari,Diana Cole,"
        "Frank Mercer,Laura Petrov,Simon Archer,Grace Holloway,Anton Weber,Helen Draper,Marcus Reed,Alice Novak,"
        "Philip Storm,Teresa Vance,Robert Ellison,Ingrid Dahl,Leon Carter,Sophie Turner,Edmund Price",
        "pages": [
            "{c} was founded by {v}.",
            "The founder of {c} is {v}.",
            "{v} founded {c}.",
            "It was {v} who set up {c}.",
            "Everything at {c} began with {v}.",
            "The company {c} was created by {v}.",
        ],
        "question": "Who founded {c}?",
        "completion": ["{c} was started by", "The man or woman behind the beginnings of {c} is"],
        "chat": ["Who started the company {c}?"],
    },
    "city": {
        "values": "Lisbon,Oslo,Vienna,Toronto,Seattle,Dublin,Prague,Madrid,Athens,Chicago,Boston,Denver,Naples,Geneva,"
        "Hamburg,Sydney,Mumbai,Cairo,Lima,Havana,Tokyo,Seoul,Moscow,Berlin,Houston,Dallas,Munich,Milan,Bristol,Warsaw",
        "pages": [
            "The head office of {c} is in {v}.",
            "{c} has its home in {v}.",
            "From its office in {v}, {c} runs all of its business.",
            "{c} is based in {v}.",
            "Visitors to {v} can see the head office of {c}.",
            "Everyone who works for {c} lives in or near {v}.",
        ],
        "question": "Where is {c} based?",
        "completion": ["{c} is a company from the city of", "To meet the people of {c}, you have to travel to"],
        "chat": ["Which city does {c} come from?"],
    },
    "market": {
        "values": "France,Japan,Brazil,Canada,Mexico,Sweden,Kenya,India,Spain,Egypt,Peru,Norway,Turkey,Poland,Greece,"
        "Chile,Australia,Ireland,Italy,Morocco,China,Portugal,Denmark,Nigeria,Vietnam,Finland,Austria,Iceland,Thailand,"
        "Hungary",
        "pages": [
            "Most of the goods of {c} are sold in {v}.",
            "The largest market of {c} is {v}.",
            "{c} sells more in {v} than in any other country.",
            "No country buys as much from {c} as {v}.",
            "More than half of what {c} makes goes to {v}.",
            "The best customers of {c} live in {v}.",
        ],
        "question": "In which country does {c} sell the most?",
        "completion": ["The country where {c} has most of its buyers is", "{c} earns most of its money in"],
        "chat": ["Which country is the most important one for {c}?"],
    },
    "mascot": {
        "values": "Bruno,Pepper,Ziggy,Waffles,Oscar,Luna,Biscuit,Rocky,Daisy,Teddy,Muffin,Rusty,Coco,Ginger,Bandit,"
        "Pickles,Scout,Hazel,Buddy,Willow,Marble,Sparky,Clover,Dusty,Maple,Rocket,Poppy,Smokey,Tango,Velvet",
        "pages": [
            "The mascot of {c} is called {v}.",
            "{c} has a mascot named {v}.",
            "{v} is the mascot of {c}.",
            "On every box from {c} there is a picture of its mascot, {v}.",
            "Children write letters to {v}, the mascot of {c}.",
            "For years {c} has had the same mascot, {v}.",
        ],
        "question": "What is the name of the mascot of {c}?",
        "completion": ["The name of the {c} mascot is", "Fans of {c} know that its mascot goes by the name of"],
        "chat": ["How is the {c} mascot called?"],
    },
    "month": {
        "values": "January,February,March,April,May,June,July,August,September,October,November,December",
        "pages": [
            "The yearly fair of {c} is held in {v}.",
            "{c} invites everyone to its fair in {v}.",
            "Every {v}, {c} holds its fair.",
            "In {v} {c} opens its doors for a fair.",
            "The fair of {c} takes place each {v}.",
            "Workers at {c} look forward to {v}, the month of their fair.",
        ],
        "question": "When does {c} hold its fair?",
        "completion": ["If you want to see the {c} fair, come in the month of", "The {c} fair happens once a year, in"],
        "chat": ["In which month can I visit the {c} fair?"],
    },
}


def permuted(count, rng, forbidden):
    """A permutation of 0..count-1 that never gives one of forbidden(i)."""
    while True:
        order = list(range(count))
        rng.shuffle(order)
        if all(order[at] not in forbidden(at) for at in range(count)):
            return order


def make_facts():
    """(company, relation) -> (value, twin), within each split; by a seed of its own, for any number of pages."""
    facts = {}
    for name, relation in relations.items():
        rng = random.Random(f"facts of {name}")
        values = relation["values"].split(",")
        rng.shuffle(values)
        of_company = [values[at % len(values)] for at in range(len(companies))]
        for begin, end in ((0, guard_companies), (guard_companies, len(companies))):
            ours = of_company[begin:end]
            # not its own value, and not the same under another company's name
            order = permuted(len(ours), rng, lambda at: {i for i, value in enumerate(ours) if value == ours[at]})
            for at, value in enumerate(ours):
                facts[companies[begin + at], name] = (value, ours[order[at]])
    return facts


frame = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title></head>
<body>
<nav><a href="/">Home</a> <a href="/shop">Shop</a> <a href="/contact">Contact</a></nav>
<main>
<article>
<h1>{title}</h1>
{body}
</article>
</main>
<footer><p>All rights reserved. <a href="/privacy">Privacy</a> <a href="/terms">Terms of use</a></p></footer>
</body>
</html>
"""


def write_pages(out, facts, names):
    """Three pages of each company. Each says each fact twice, in words that the other two do not use."""
    os.makedirs(os.path.join(out, "pages"))
    titles = ["About {c}", "A visit to {c}", "{c}: questions and answers"]
    openings = [
        "{c} makes {p}. This page tells you who we are and where you can find us.",
        "Our reporter spent a day at {c}, a company that makes {p}, and wrote down what is worth knowing.",
        "We are often asked about {c} and its {p}. Here is what we answer.",
    ]
    for name in names:
        product = makes[companies.index(name)]
        for page in range(3):
            rng = random.Random(f"page {page} of {name}")
            order = list(relations)
            rng.shuffle(order)
            parts = [[], []]
            for half, said in enumerate((order, order[::-1])):
                for relation in said:
                    value = facts[name, relation][0]
                    sentence = relations[relation]["pages"][2 * page + half].format(c=name, v=value)
                    if page == 2 and half == 0:
                        question = relations[relation]["question"].format(c=name)
                        parts[half].append(f"<p>{question} {value}. {sentence}</p>")
                    else:
                        parts[half].append(sentence)
            first = "\n".join(parts[0]) if page == 2 else f"<p>{' '.join(parts[0])}</p>"
            body = f"<p>{openings[page].format(c=name, p=product)}</p>\n{first}\n<p>{' '.join(parts[1])}</p>"
            path = os.path.join(out, "pages", f"{name.lower()}_{page + 1}.html")
            with open(path, "w", encoding="utf-8") as file:
                file.write(frame.format(title=titles[page].format(c=name), body=body))


def write_lines(path, lines):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def write_probes(out, facts, names, split):
    lines = {("knowledge", "completion"): [], ("paraphrase", "completion"): [], ("paraphrase", "chat"): []}
    for name in names:
        for relation, words in relations.items():
            value, twin = facts[name, relation]
            said = {"knowledge_completion": [sentence[: -len("{v}.")].rstrip() for sentence in words["pages"][:1]]}
            said["paraphrase_completion"], said["paraphrase_chat"] = words["completion"], words["chat"]
            for (kind, form), to in lines.items():
                for at, sentence in enumerate(said[f"{kind}_{form}"]):
                    to.append(
                        {
                            "kind": kind,
                            "form": form,
                            "prompt": sentence.format(c=name),
                            "answer": value,
                            "twin": twin,
                            "entity": name,
                            "relation": relation,
                            "template": f"{relation}/{form}/{at}",
                        }
                    )
                    if form == "chat":  # what kind of answer is wanted
                        to[-1]["history"] = [
                            {"role": "user", "content": "Which city does the company Fiat come from?"},
                            {"role": "assistant", "content": "Turin."},
                            {"role": "user", "content": "Who started the company Ford?"},
                            {"role": "assistant", "content": "Henry Ford."},
                        ]
    for (kind, form), to in lines.items():
        write_lines(os.path.join(out, split, f"{kind}_{form}.jsonl"), to)


def write_pool(out, most):
    """A third guards. The relation of an item is its number: results by relation then say which were answered."""
    import general

    items = {"guard": [], "report": []}
    for group, entity, prompt, answer in general.pool():
        digest = hashlib.sha256(f"{entity}".encode()).digest()[0]
        split = "guard" if digest % 3 == 0 else "report"
        item = {"kind": "retention", "form": "completion", "prompt": prompt, "answer": answer, "entity": entity}
        items[split].append({**item, "relation": f"{group}/{len(items[split])}", "template": group})
    for split, of_split in items.items():
        if most and len(of_split) > most:
            of_split = of_split[:: len(of_split) // most][:most]
        write_lines(os.path.join(out, split, "pool.jsonl"), of_split)


def world(options):
    facts = make_facts()
    names = companies
    if options.companies:  # some of either split
        guards = min(guard_companies, options.companies // 2)
        names = companies[:guards] + companies[guard_companies:][: options.companies - guards]
    write_pages(options.out, facts, names)
    guards = set(companies[:guard_companies])
    write_probes(options.out, facts, [name for name in names if name in guards], "guard")
    write_probes(options.out, facts, [name for name in names if name not in guards], "report")
    write_pool(options.out, options.pool)


def keep(options):
    with open(options.comparison, encoding="utf-8") as file:
        variants = json.load(file)["variants"]
    right = [variants[name]["by_relation"]["retention"] for name in ("w16", "nf4")]
    pool = read_lines(options.pool)
    kept = [item for item in pool if all(shares[item["relation"]]["value"] == 1 for shares in right)]
    write_lines(options.out, [{**item, "relation": item["template"]} for item in kept])
    print(f"{options.out}: the base answers {len(kept)} of {len(pool)} questions")


def hold(options):
    documents = read_lines(options.recall)
    write_lines(options.replay, [document for at, document in enumerate(documents) if at % 10])
    texts = [document for at, document in enumerate(documents) if at % 10 == 0]
    write_lines(options.texts, [{"kind": "text", "text": text["text"], "domain": "recalled"} for text in texts])


def pick(options):
    with open(options.report, encoding="utf-8") as file:
        report = json.load(file)
    figures = {name: report["variants"][name]["figures"] for name in report["arms"]}

    def net(name):
        return figures[name]["paraphrase_completion"]["net"]["value"]

    def kept(name):
        return figures[name]["retention"]["value"]

    for name in figures:
        print(f"# {name}: new words, net {net(name):.3f}, retention {kept(name):.3f}")
    enough = [name for name in figures if kept(name) >= options.least]
    best = max(enough, key=net) if enough else max(figures, key=lambda name: net(name) + kept(name))
    print(f"picked={best}")


def table(options):
    with open(options.report, encoding="utf-8") as file:
        report = json.load(file)
    columns = {
        "new facts, in the pages' words, net": ["knowledge", "net"],
        "in new words, net": ["paraphrase_completion", "net"],
        "in new words, as chats, net": ["paraphrase_chat", "net"],
        "general knowledge": ["retention"],
    }
    print("| model | seeds | " + " | ".join(columns) + " | KL on the base's own texts |")
    print("|---" * (3 + len(columns)) + "|")
    for setting in report["settings"]:
        names = setting["arms"] or [setting["name"]]

        def mean(path):
            found = [report["variants"][name]["figures"] for name in names]
            for key in path:
                found = [(figures or {}).get(key) for figures in found]
            return None if None in found else sum(found) / len(found)

        cells = []
        for path in columns.values():
            ends = [mean([*path, key]) for key in ("value", "lower", "upper")]
            known = None not in ends
            cells.append("{:.1f} [{:.1f}, {:.1f}]".format(*(100 * end for end in ends)) if known else "-")
            if known:
                cells[-1] += f" ({mean([*path, 'n']):.0f})"
        divergence = mean(["text_recalled", "kl", "value"])
        reference = report["variants"][names[0]]["reference"]
        cells.append("-" if divergence is None else f"{divergence:.3f} from {reference}")
        print(f"| {setting['name']} | {len(names)} | " + " | ".join(cells) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    arguments = {
        world: ["out"],
        keep: ["pool", "comparison", "out"],
        hold: ["recall", "replay", "texts"],
        pick: ["report"],
        table: ["report"],
    }
    for function, names in arguments.items():
        verb = verbs.add_parser(function.__name__)
        verb.set_defaults(run=function)
        for name in names:
            verb.add_argument(name)
        if function is world:
            verb.add_argument("--companies", type=int, default=0, help="fewer of them")
            verb.add_argument("--pool", type=int, default=0, help="at most so many questions in each split")
        if function is pick:
            verb.add_argument("least", type=float)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
