#!/usr/bin/env python3
"""The page of `qlora serve` in a real browser: page_test.py PROGRAM MODEL [SCREENSHOTS]

Drives Chromium through chromedriver's WebDriver protocol. What the page shows is compared with what the server's API
answers to the same requests. MODEL is a directory with a chat form; an adapter with random values is made for it.
Exits with 77 where chromedriver is missing.
"""
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

program, model = sys.argv[1], sys.argv[2]
pictures = sys.argv[3] if len(sys.argv) > 3 else None
driver_program = shutil.which("chromedriver")
if driver_program is None:
    print("chromedriver is not here; the page was not tested")
    sys.exit(77)


def ask(url, body=None, method=None, key=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": "Bearer " + key} if key else {})
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:  # what was wrong is in the body
        raise AssertionError(f"{url}: {error.code} {error.read().decode()[:500]}") from None


def wait(what, condition, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError("in vain waited for: " + what)


def write_adapter(folder):
    """An adapter of rank 4 on q and v with random values, large enough to change answers."""
    config = json.load(open(os.path.join(model, "config.json")))
    width = config["hidden_size"]
    head = config.get("head_dim") or width // config["num_attention_heads"]
    rows = {"q_proj": config["num_attention_heads"] * head, "v_proj": config["num_key_value_heads"] * head}
    source = random.Random(5)
    header, parts, at = {}, [], 0
    for layer in range(config["num_hidden_layers"]):
        for name, out in rows.items():
            for matrix, shape in (("A", [4, width]), ("B", [out, 4])):
                values = [source.gauss(0, 0.15) for _ in range(shape[0] * shape[1])]
                parts.append(struct.pack("<%df" % len(values), *values))
                key = f"base_model.model.model.layers.{layer}.self_attn.{name}.lora_{matrix}.weight"
                header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + len(parts[-1])]}
                at += len(parts[-1])
    text = json.dumps(header).encode()
    os.makedirs(folder)
    with open(os.path.join(folder, "adapter_model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(parts))
    with open(os.path.join(folder, "adapter_config.json"), "w") as file:
        json.dump({"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "lora_dropout": 0.0,
                   "target_modules": ["q_proj", "v_proj"], "bias": "none", "base_model_name_or_path": model}, file)


class Browser:
    def __init__(self, profile):
        self.driver = subprocess.Popen([driver_program, "--port=0"], stdout=subprocess.PIPE, text=True)
        port = None
        for line in self.driver.stdout:
            if "started successfully on port" in line:
                port = int(line.rsplit("port", 1)[1].strip(" .\n"))
                break
        self.base = f"http://127.0.0.1:{port}"
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     "--window-size=1200,900", "--user-data-dir=" + profile]
        options = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": {"args": arguments},
                                                    "goog:loggingPrefs": {"browser": "ALL"}}}}
        self.session = f"{self.base}/session/{ask(self.base + '/session', options)['value']['sessionId']}"

    def command(self, path, body=None):
        return ask(self.session + path, {} if body is None else body)["value"]

    def open(self, url):
        self.command("/url", {"url": url})

    def run(self, script, *arguments):
        return self.command("/execute/sync", {"script": script, "args": list(arguments)})

    def log(self):
        return [e for e in self.command("/se/log", {"type": "browser"}) if e["level"] == "SEVERE"]

    def keys(self, selector, text):
        element = self.command("/element", {"using": "css selector", "value": selector})
        self.command("/element/" + next(iter(element.values())) + "/value", {"text": text})

    def click(self, selector):
        element = self.command("/element", {"using": "css selector", "value": selector})
        self.command("/element/" + next(iter(element.values())) + "/click")

    def resize(self, width, height):
        self.command("/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": {
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}})

    def scheme(self, name):
        self.command("/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {
            "features": [{"name": "prefers-color-scheme", "value": name}]}})

    def picture(self, name):
        if pictures is None:
            return
        import base64
        data = self.command("/goog/cdp/execute", {"cmd": "Page.captureScreenshot",
                                                  "params": {"captureBeyondViewport": True}})["data"]
        with open(os.path.join(pictures, name + ".png"), "wb") as file:
            file.write(base64.b64decode(data))

    def close(self):
        try:
            ask(self.session, method="DELETE")
        finally:
            self.driver.terminate()
            self.driver.wait()


def serve(*arguments, key=""):
    """A server and its address."""
    process = subprocess.Popen([program, "serve", "small=" + model, "--port", "0", *arguments], stdout=subprocess.PIPE,
                               text=True, env=os.environ | {"QLORA_API_KEY": key})
    address = process.stdout.readline().split()[-1].rstrip("/")
    assert address.startswith("http://127.0.0.1:"), address
    return process, address


folder = tempfile.mkdtemp(prefix="qlora-page-")
server = browser = None
try:
    write_adapter(os.path.join(folder, "adapter"))
    probes = [{"kind": "retention", "form": "chat", "prompt": "Who makes the Kesfort?", "answer": "Nobody"},
              {"kind": "retention", "form": "completion", "prompt": "A <b>lamp</b> of", "answer": "light"},
              {"kind": "behaviour", "form": "chat", "prompt": "Hello!", "expect": "stops"}]
    with open(os.path.join(folder, "probes.jsonl"), "w", encoding="utf-8") as file:
        file.writelines(json.dumps(probe) + "\n" for probe in probes)
    server, address = serve("--adapter", "other=" + folder + "/adapter", "--any-base", "--probes",
                            folder + "/probes.jsonl")
    api = address + "/v1"
    ids = [m["id"] for m in ask(api + "/models")["data"]]
    assert ids == ["small", "other"], ids

    def answer(name, messages, most):
        reply = ask(api + "/chat/completions", {"model": name, "messages": messages, "max_tokens": most,
                                                "temperature": 0.01, "top_p": 0.9, "seed": 0})
        return reply["choices"][0]["message"]["content"]

    browser = Browser(folder + "/profile")
    page = browser
    page.open(address + "/")
    wait("a column for each variant", lambda: page.run("return document.querySelectorAll('.column').length") == 2)
    assert page.run("return [...document.querySelectorAll('.column h2')].map(h => h.textContent)") == ids
    assert page.run("return columns.map(c => getComputedStyle(c.scaleLabel).display)") == ["none", "flex"]
    page.run("document.querySelector('details.settings').open = true; document.getElementById('max_tokens').value = 24")

    def shown():
        return page.run("return columns.map(c => c.body ? c.body.textContent : '')")

    def feet():
        return page.run("return columns.map(c => c.foot.textContent)")

    def done():
        return page.run("return abort === null") and all(feet())

    # The first turn and the second one are what the API answers, markup in a question stays text, and a keyboard does.
    history = {name: [] for name in ids}
    for question in ("Who makes the Kesfort?", "And <img src=x onerror=\"document.title='broken'\"> <b>why</b>?"):
        page.keys("#question", question)
        page.run("document.getElementById('question').dispatchEvent("
                 "new KeyboardEvent('keydown', {key: 'Enter', ctrlKey: true, bubbles: true, cancelable: true}))")
        wait("an answer", lambda: page.run("return columns.every(c => c.foot.textContent.includes('tokens in'))"))
        wait("the end", done)
        expected = []
        for name in ids:
            history[name].append({"role": "user", "content": question})
            expected.append(answer(name, history[name], 24))
            history[name].append({"role": "assistant", "content": expected[-1]})
        assert [t.strip() for t in shown()] == [t.strip() for t in expected], (shown(), expected)
        page.run("columns.forEach(c => c.foot.textContent = '')")
    assert page.run("return document.querySelectorAll('#columns img, #columns b').length") == 0
    assert page.run("return document.title") != "broken"
    assert "<img src=x" in page.run("return document.querySelector('#columns').textContent")
    assert page.run("return document.querySelectorAll('.token.other').length") > 0
    first = expected[0].split()[:1]
    assert "says" in page.run("return document.getElementById('parted').textContent"), first

    # How far each token of the second variant is from the first one, as the API says it.
    reply = ask(api + "/chat/completions", {"model": "other", "messages": history["other"][:-1], "max_tokens": 24,
                                            "temperature": 0.01, "top_p": 0.9, "seed": 0, "logprobs": True,
                                            "against": "small"})
    expected_kl = [t["kl"] for t in reply["choices"][0]["logprobs"]["content"]]
    assert page.run("return columns[0].tokens.every(t => t.kl === undefined)")
    shown_kl = page.run("return columns[1].tokens.map(t => t.kl)")
    assert len(shown_kl) == len(expected_kl), (shown_kl, expected_kl)
    assert all(abs(a - b) < 1e-3 + 1e-2 * b for a, b in zip(shown_kl, expected_kl)), (shown_kl, expected_kl)
    assert max(expected_kl) > 0.01 and page.run("return document.querySelectorAll('#columns .token.kl').length") > 0
    assert page.run("return document.getElementById('legend').checkVisibility()")
    page.run("columns[1].body.children[0].focus()")
    assert "KL from small: " in page.run("return document.getElementById('tip').textContent")

    # Alternatives of a token, by the keyboard: the likeliest ones, of which the shown one is one.
    page.run("columns[0].body.children[0].focus()")
    if page.run("return columns[0].body.children.length") > 1:
        page.keys("#columns .token[data-at='0']", "\ue014")
        assert page.run("return document.activeElement.dataset.at") == "1"
    assert page.run("return !document.getElementById('tip').hidden")
    tip = page.run("return [...document.querySelectorAll('#tip tr')].map(r => r.children[1].textContent)")
    assert 1 <= len(tip) <= 5 and all(t.endswith(" %") for t in tip), tip
    page.picture("compare")

    # A strength of the adapter is a variant of its own.
    page.run("document.getElementById('reset').click()")
    page.run("const s = columns[1].scale; s.value = '0.5'; s.dispatchEvent(new Event('input'))")
    assert page.run("return columns[1].heading.textContent") == "other@0.5"
    page.keys("#question", "What does it cost?")
    page.click("#send")
    wait("the answers", lambda: page.run("return columns.every(c => c.foot.textContent.includes('tokens in'))"))
    message = [{"role": "user", "content": "What does it cost?"}]
    assert shown()[1].strip() == answer("other@0.5", message, 24).strip()

    # Probes: each variant is asked each question of a kind, and the page shows what the server judged.
    page.run("document.getElementById('probes').open = true")
    assert page.run("return [...document.getElementById('probe_kind').options].map(o => o.value)") == [
        "retention", "behaviour"]
    page.click("#probe_all")
    wait("the verdicts", lambda: page.run("return abort === null && verdicts.size") == 4)
    for probe in (0, 1):
        for name in ("small", "other@0.5"):
            verdict = ask(address + "/probes", {"probe": probe, "model": name})
            cell = page.run("const c = document.querySelector(`td[data-probe='${arguments[0]}'][data-model='"
                            "${arguments[1]}']`); return [c.className, c.textContent]", probe, name)
            words = "right: " if verdict["right"] else "wrong: "
            assert cell == [words[:5], words + verdict["text"].strip()], (cell, verdict)
    right = sum(ask(address + "/probes", {"probe": probe, "model": "small"})["right"] for probe in (0, 1))
    assert f"retention: small {right} of 2" in page.run("return document.getElementById('probe_sums').textContent")
    assert page.run("return document.querySelectorAll('#probe_table b').length") == 0
    page.run("document.querySelectorAll('#probe_table button')[1].click()")
    assert page.run("return [$('question').value, $('form').value]") == ["A <b>lamp</b> of", "completion"]
    page.picture("probes")
    page.run("$('form').value = 'chat'; $('question').value = ''")

    # Stop: the answers end, the server's room is free, and the page goes on.
    page.run("document.getElementById('max_tokens').value = 400; columns[0].reset(); columns[1].reset()")
    page.keys("#question", "Tell me a long story about it, with all names and all prices, and begin again at its end.")
    page.run("const take = Column.prototype.take; Column.prototype.take = function(...a) { take.apply(this, a); "
             "$('stop').click(); }; document.getElementById('send').click(); window.restore = take")
    wait("the stop", lambda: page.run("return abort === null && columns.some(c => c.foot.textContent === 'stopped')"))
    page.run("Column.prototype.take = window.restore")

    # What the server refuses is said, beside what it answers.
    page.run("document.getElementById('max_tokens').value = 24; document.getElementById('question').value = "
             "'word '.repeat(20000); document.getElementById('send').click()")
    wait("the refusal", lambda: page.run("return abort === null && "
                                         "columns.every(c => c.foot.classList.contains('error'))"))
    assert "token" in feet()[0], feet()
    page.run("document.getElementById('temperature').value = -1; document.getElementById('send').click()")
    assert page.run("return document.getElementById('problem').textContent").startswith("temperature")
    page.run("document.getElementById('temperature').value = 0.01; document.getElementById('question').value = 'Hello'")

    # Narrow screens and dark ones: nothing is cut at the side.
    page.run("document.getElementById('reset').click(); document.getElementById('send').click()")
    wait("the answers", lambda: page.run("return columns.every(c => c.foot.textContent.includes('tokens in'))"))
    assert page.run("return document.getElementById('probes').open")
    for width in (420, 768, 1200):
        page.resize(width, 900)
        wide = page.run("return [document.documentElement.scrollWidth, innerWidth]")
        assert wide[0] <= wide[1], wide
        page.picture(f"compare-{width}")
    page.scheme("dark")
    assert page.run("return getComputedStyle(document.body).backgroundColor") == "rgb(22, 25, 29)"
    page.picture("compare-dark")

    # Labels for those who hear the page, and no error in the console but for the refused requests.
    unnamed = page.run("return [...document.querySelectorAll('input,select,textarea,button')].filter("
                       "e => !e.closest('[hidden]') && !e.textContent.trim() && !(e.labels && e.labels.length)).length")
    assert unnamed == 0, unnamed
    severe = [e for e in page.log() if "status of 4" not in e["message"]]
    assert not severe, severe

    # The server goes: the page says so.
    server.send_signal(signal.SIGTERM)
    server.wait(30)
    page.run("document.getElementById('question').value = 'Hello'; document.getElementById('send').click()")
    wait("the loss", lambda: page.run("return abort === null && "
                                      "columns.every(c => c.foot.classList.contains('error'))"))
    assert feet()[0] == "the server does not answer", feet()

    # A server with a key: the page comes without one, holds nothing of the model, and asks for it.
    server, address = serve(key="sesame")
    page.open(address + "/")
    wait("the question for a key", lambda: page.run("return document.activeElement.id") == "key")
    assert page.run("return document.getElementById('problem').textContent") == "This server needs a key."
    assert page.run("return columns.length") == 0 and "small" not in page.run("return document.body.textContent")
    page.keys("#key", "wrong\ue007")
    wait("the refusal", lambda: page.run("return document.getElementById('problem').textContent") ==
         "This is not the key of this server.")
    page.run("document.getElementById('key').value = ''")
    page.keys("#key", "sesame\ue007")
    wait("a column", lambda: page.run("return columns.length") == 1)
    assert not page.run("return document.getElementById('unlock').checkVisibility()")
    page.run("document.getElementById('max_tokens').value = 12")
    page.keys("#question", "Who makes the Kesfort?")
    page.click("#send")
    wait("the answer", lambda: "tokens in" in feet()[0])
    message = [{"role": "user", "content": "Who makes the Kesfort?"}]
    request = {"messages": message, "max_tokens": 12, "temperature": 0}
    reply = ask(address + "/v1/chat/completions", request, key="sesame")
    assert shown()[0].strip() == reply["choices"][0]["message"]["content"].strip()
    print("the page: all as expected")
finally:
    if browser is not None:
        browser.close()
    if server is not None:
        server.kill()
        server.wait()
    shutil.rmtree(folder, ignore_errors=True)
