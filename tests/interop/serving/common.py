"""What the checks of clients share: servers, what they are compared with, and the list of what was found."""

import json
import os
import signal
import subprocess

import sentencepiece

root = os.path.abspath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", ".."))
model = os.path.join(root, "examples", "models", "tiny-chat")
prompt = "The company behind the Vorzana is"
question = "Who makes the Vorzana?"
tokens = 20
logprob_bound = 1e-4  # largest difference of a log-probability
key = "sesame"


class Server:
    """`qlora serve` with tiny-chat at a free port."""

    def __init__(self, program, *arguments, key=None):
        environment = {name: value for name, value in os.environ.items() if name != "QLORA_API_KEY"}
        if key:
            environment["QLORA_API_KEY"] = key
        self.process = subprocess.Popen([program, "serve", "-q", model, "--port", "0", "--threads", "1", *arguments],
                                        stdout=subprocess.PIPE, text=True, env=environment)
        line = self.process.stdout.readline()
        if not line.startswith("listening on "):
            raise RuntimeError("the server does not start: " + line)
        self.url = line.split()[-1]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


class Checks:
    """Of one client."""

    def __init__(self, client, package):
        from importlib.metadata import version

        self.client, self.version = client, version(package)
        self.done, self.wrong, self.kinds = 0, [], []

    def about(self, what):
        """Names what the next checks are about, for the table."""
        self.kinds.append(what)

    def true(self, what, holds, detail=""):
        self.done += 1
        if not holds:
            self.wrong.append(f"{what}: {detail}")
            print(f"FAIL {self.client}: {what}: {detail}", flush=True)

    def equal(self, what, got, wanted):
        self.true(what, got == wanted, f"{got!r} is not {wanted!r}")

    def near(self, what, got, wanted, bound=logprob_bound):
        self.true(what, abs(got - wanted) <= bound, f"{got} is not {wanted}")

    def nears(self, what, got, wanted, bound=1e-5):
        """Of lists, which were computed in batches of other sizes and so with sums in another order."""
        same = len(got) == len(wanted) and all(abs(a - b) <= bound for a, b in zip(got, wanted, strict=True))
        self.true(what, same, f"{got} are not {wanted}")

    def raises(self, what, kind, use, says=""):
        """The error that `use` ends with, which must be of exactly this kind."""
        try:
            got = use()
        except Exception as error:  # noqa: BLE001: whatever a client throws
            self.true(what, type(error) is kind and says in str(error), f"{type(error).__name__}: {error}")
            return error
        self.true(what, False, f"no error, but {got!r}")
        return None

    def row(self):
        print(f"{'FAIL' if self.wrong else 'ok  '} {self.client} {self.version}: {self.done} checks", flush=True)
        return {"client": self.client, "version": self.version, "about": self.kinds, "checks": self.done,
                "wrong": self.wrong}


class World:
    """Servers, and what the program says itself: its verbs do not use the server's code for batches and texts."""

    def __init__(self, program, adapter, folder):
        self.program, self.adapter, self.folder = program, adapter, folder
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=os.path.join(model, "tokenizer.model"))
        self.text = {"tiny-chat": self.generated(), "tuned": self.generated("--adapter", adapter)}
        self.answer = {"tiny-chat": self.chatted(), "tuned": self.chatted("--adapter", adapter)}
        if self.text["tiny-chat"] == self.text["tuned"]:
            raise RuntimeError("the adapter changes nothing")
        self.prompt_ids = [self.pieces.bos_id(), *self.pieces.encode(prompt)]
        self.chat_ids = [self.pieces.bos_id(), *self.pieces.encode(f"[INST] {question} [/INST]")]
        self.open = Server(program, "--adapter", "tuned=" + adapter, "--slots", "4", "--queue", "60")
        self.locked = Server(program, "--base", "full", "--slots", "1", "--queue", "0", key=key)

    def stop(self):
        codes = [server.stop() for server in (self.open, self.locked)]
        if any(codes):
            raise RuntimeError(f"servers ended with {codes}")

    def verb(self, *arguments):
        result = os.path.join(self.folder, "verb.json")
        subprocess.run([self.program, *arguments, "-q", "--json", result], check=True, stdout=subprocess.DEVNULL)
        with open(result, encoding="utf-8") as file:
            return json.load(file)

    def generated(self, *more):
        return self.verb("generate", model, "-p", prompt, "--temperature", "0", "--max-new-tokens", str(tokens),
                         *more)["text"]

    def chatted(self, *more):
        return self.verb("chat", model, "-p", question, "--temperature", "0", *more)["turns"][0]["assistant"]
