#!/usr/bin/env python3
"""`qlora serve` under abuse: abuse.py PROGRAM MODEL [--short]

Real sockets against the real program: many requests, clients that go in the middle, slow clients, keys, signals, and
bodies that are wrong in every way that the server's description forbids. Says what it measured, one line each; exits
with 1 where something does not hold. No time is asserted. --short does less of everything.
"""
import json
import os
import random
import resource
import signal
import socket
import sys
import time

import abuse_bodies
from abuse_server import Client, Server, request, until

program, model = sys.argv[1], sys.argv[2]
short = "--short" in sys.argv[3:]
MEGABYTE = 1 << 20
# It does not end by itself. A conversation ignores the prompt, as all fields that it does not know.
ENDLESS = {"prompt": "The", "temperature": 0, "logit_bias": {"2": -100}, "stream": True}


def report(line):
    print(line, flush=True)


def quick(source):
    """A request that asks for little, and the statuses that it may have."""
    words = ["The", "A lamp", "Oakhurst is", "Who", "In the year"]
    prompt, most = source.choice(words), source.randint(1, 3)
    chat = {"messages": [{"role": "user", "content": prompt}], "max_tokens": most}
    inputs = {"inputs": prompt, "parameters": {"max_new_tokens": most}}
    return source.choice([
        ("POST", "/v1/completions", {"prompt": prompt, "max_tokens": most}, 200),
        ("POST", "/v1/completions", {"prompt": prompt, "max_tokens": most, "stream": True}, 200),
        ("POST", "/v1/chat/completions", chat, 200),
        ("POST", "/v1/chat/completions", {**chat, "stream": True}, 200),
        ("POST", "/generate", inputs, 200),
        ("POST", "/generate_stream", inputs, 200),
        ("POST", "/compare", {"prompt": prompt, "models": ["tiny-chat", "tiny-chat"], "max_tokens": most}, 200),
        ("POST", "/v1/completions", {"prompt": prompt, "max_tokens": -1}, 400),
        ("POST", "/generate", {"inputs": prompt, "parameters": {"stop": ["a"] * 5}}, 422),
        ("POST", "/v1/completions", b"{", 400),
        ("GET", "/health", b"", 200), ("GET", "/metrics", b"", 200), ("GET", "/nowhere", b"", 404)])


def many_requests(server):
    """No descriptor, slot or connection stays behind; memory does not grow with the number of requests."""
    source, wrong = random.Random(1), []
    total, clients = (400, 4) if short else (10000, 16)

    def some(count):
        open_clients = [server.client() for _ in range(clients)]
        for begin in range(0, count, clients):
            asked = []
            for i, client in enumerate(open_clients):
                method, path, body, status = quick(source)
                client.send(request(method, path, body))
                if source.random() < 0.05:  # goes before its answer
                    client.close()
                    open_clients[i] = server.client()
                else:
                    asked.append((client, path, status))
            for client, path, status in asked:
                got, answer = client.answer()
                if got != status:
                    wrong.append(f"{path}: {got}, not {status}: {answer[:200]}")
        for client in open_clients:
            client.close()

    some(total // 4)  # threads, caches and the allocator take what they keep
    server.at_rest()
    memory, descriptors = server.memory(), server.descriptors()
    for _ in range(20):  # the connection that asked for the counters is closed soon
        time.sleep(0.01)
        descriptors = min(descriptors, server.descriptors())
    begun = time.monotonic()
    some(total)
    seconds = time.monotonic() - begun
    server.at_rest()
    grown = (server.memory() - memory) / MEGABYTE
    report(f"{total} requests of {clients} clients in {seconds:.1f} s: {grown:.1f} MB more")
    assert not wrong, "\n".join(wrong[:20])
    until("no descriptor more than before", lambda: server.descriptors() <= descriptors)
    assert grown < 16, f"memory grew by {grown:.1f} MB"


def cut_streams(server):
    """A client that goes in the middle of its stream is noticed, and its reply ends long before it would."""
    total, length, most_tries = (10, 400, 100) if short else (100, 400, 1000)
    chat = {"messages": [{"role": "user", "content": "Who?"}]}
    overshoots, tries = [], 0
    while len(overshoots) < total and tries < most_tries:
        tries += 1
        path, what = [("/v1/completions", {}), ("/v1/chat/completions", chat)][tries % 2]
        before = server.at_rest()
        client = server.client()
        client.send(request("POST", path, {**ENDLESS, "max_tokens": length, **what}))
        for _ in range(5):
            client.until(b"data:")
        # Halted, the server draws nothing while what it has sent is counted and the connection ends.
        server.process.send_signal(signal.SIGSTOP)
        until("a halted server", lambda: stopped(server.process.pid))
        client.socket.setblocking(False)
        try:
            while client.more():
                pass
        except BlockingIOError:
            pass
        received = 5 + client.held.count(b"data:")
        client.close()
        server.process.send_signal(signal.SIGCONT)
        after = server.at_rest()
        name = 'qlora_requests_total{end="cancelled"}'
        drawn = int(after["qlora_generated_tokens_total"] - before["qlora_generated_tokens_total"])
        if after.get(name, 0) > before.get(name, 0):  # else this client came too late: the reply was whole
            assert drawn < length, f"a reply that was cancelled has all of its {drawn} tokens"
            overshoots.append(drawn - received)
    assert len(overshoots) == total, f"of {tries} streams {len(overshoots)} were cut off"
    overshoots.sort()
    report(f"{total} streams cut off: tokens drawn beyond those that were sent: median {overshoots[total // 2]}, "
           f"most {overshoots[-1]}")


def stopped(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return file.read().rsplit(") ", 1)[1][0] == "T"


def slow_clients(server):
    """While clients that send little, or do not read, hold connections open, others are answered, and each of them
    costs little."""
    total = 80 if short else 1000
    memory = server.memory()
    head, half = b"POST /generate HTTP/1.1\r\nHost: localhost\r\n", b"x" * (2 * MEGABYTE - 1)
    beginnings = [
        b"", b"G", b"GET /health HTTP/1.1\r\nX-Slow: ",
        head + b"Content-Length: %d\r\n\r\n" % (2 * MEGABYTE) + half,
        head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % (2 * MEGABYTE) + half,
        request("GET", "/openapi.json") * 20,  # whose answers it does not read
    ]
    slow = []
    for i in range(total):
        slow.append(server.client())
        try:
            slow[-1].send(beginnings[i % len(beginnings)])
        except OSError:
            pass  # there are too many large bodies
    times = []
    for i in range(20 if short else 200):
        if i % 10 == 0:
            for client in slow[1::6] + slow[2::6]:
                try:
                    client.send(b"E" if client in slow[1::6] else b"a")
                except OSError:
                    pass  # its time was over
        begun = time.perf_counter()
        status, _ = server.ask("GET", "/health")
        times.append(time.perf_counter() - begun)
        assert status == 200, f"/health answers {status} beside {total} slow clients"
    open_now = server.metrics()["qlora_connections"] - 1
    each = (server.memory() - memory) / total / MEGABYTE
    times.sort()
    report(f"{total} slow clients, {min(total, int(open_now))} of them open after {len(times)} requests: /health took "
           f"{times[len(times) // 2] * 1000:.1f} ms, at most {times[-1] * 1000:.1f} ms; {each:.2f} MB for each of them")
    assert each < 2, f"{each:.2f} MB for each slow client"
    begun = time.monotonic()
    for client in slow:
        client.close()
    server.at_rest()
    report(f"all gone {time.monotonic() - begun:.2f} s after they closed")


def full_house():
    """A server that has as many connections as it may have: those that keep it waiting longest make room for others."""
    total, room = (400, 104) if short else (3000, 904)
    with Server(program, model, descriptors=room + 96) as server:
        slow, times = [], []
        for i in range(total):
            slow.append(server.client())
            slow[-1].send([b"", b"G", request("POST", "/generate", b"{}")[:-1]][i % 3])
            if i % 20 == 0 or i + 50 > total:
                begun = time.perf_counter()
                status, _ = server.ask("GET", "/health")
                times.append(time.perf_counter() - begun)
                assert status == 200, f"/health answers {status} beside {i} connections"
        open_now = server.metrics()["qlora_connections"]
        assert open_now <= room + 32, f"{open_now} connections are open; {room} may be"
        assert server.ask("POST", "/v1/completions", {"prompt": "The", "max_tokens": 2})[0] == 200
        times.sort()
        report(f"{total} connections to a server that may have {room}: {open_now:.0f} are open, /health took "
               f"{times[len(times) // 2] * 1000:.1f} ms, at most {times[-1] * 1000:.1f} ms")
        for client in slow:
            client.close()
        server.at_rest()


def heavy_bodies(server):
    """While bodies that take long to read are read, others are answered."""
    total = 16 if short else 200
    prompts = {"prompt": ["a" * 6000] * 16, "max_tokens": 1}  # too many tokens, which is known when they are counted
    clients = [server.client() for _ in range(total)]
    for client in clients:
        client.send(request("POST", "/v1/completions", prompts))
    times = []
    for _ in range(20):
        begun = time.perf_counter()
        status, _ = server.ask("GET", "/health")
        times.append(time.perf_counter() - begun)
        assert status == 200, f"/health answers {status} beside {total} heavy bodies"
    begun = time.perf_counter()
    for client in clients:
        status, answer = client.answer()
        assert status == 400, f"{status} {answer[:200]}"
        client.close()
    times.sort()
    report(f"{total} heavy bodies: /health took {times[10] * 1000:.1f} ms, at most {times[-1] * 1000:.1f} ms; the last "
           f"body was refused {time.perf_counter() - begun:.2f} s later")


def deadlines():
    """Slow clients are left when their time is over, whatever they drip."""
    with Server(program, model, "--timeout", "1") as server:
        begun = time.monotonic()
        slow = [server.client() for _ in range(60)]
        ends = {}
        for i, client in enumerate(slow):
            client.socket.setblocking(False)
            client.send([b"GET /health HTTP/1.1\r\nX: ", b"", request("POST", "/generate", b"{}")[:-1]][i % 3])
        while len(ends) < len(slow):
            assert time.monotonic() - begun < 120, f"{len(slow) - len(ends)} slow clients are still there after 120 s"
            for i, client in enumerate(slow):
                if i in ends:
                    continue
                try:
                    if i % 3 == 0:
                        client.send(b"a")
                    if not client.more():
                        ends[i] = time.monotonic() - begun
                except BlockingIOError:
                    pass
                except OSError:
                    ends[i] = time.monotonic() - begun
            time.sleep(0.2)
        of_kind = [max(end for i, end in ends.items() if i % 3 == kind) for kind in range(3)]
        report(f"--timeout 1: slow headers were left after {of_kind[0]:.1f} s at most, silent clients after "
               f"{of_kind[1]:.1f} s, half bodies after {of_kind[2]:.1f} s")
        server.at_rest()


def closed_doors():
    """With a key every path but /health is closed, whatever the method and the spelling; a browser gets the page."""
    with Server(program, model, "--admin", key="sesame") as server:
        key = b"Authorization: Bearer sesame\r\n"
        paths = json.loads(server.ask("GET", "/openapi.json", headers=key)[1])["paths"]
        spellings = ["/nowhere", "/v1/models/tiny-chat", "/?x=/health", "/index.html", "/health/", "//health",
                     "/health/../info", "/%68ealth", "/HEALTH", "/health;x", "*", "http://localhost/health",
                     "http://localhost/info"]
        count = 0
        for path in [*paths, *spellings]:
            for method in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "PATCH"):
                for header in (b"", b"Authorization: Bearer \r\n", b"Authorization: Bearer sesam\r\n",
                               b"Authorization: Basic sesame\r\n", b"X-Api-Key: sesame\r\n",
                               b"Accept: text/html\r\n"):
                    client = server.client()
                    client.send(request(method, path, b"", header))
                    head = client.until(b"\r\n\r\n")
                    client.close()
                    count += 1
                    closed = head.startswith(b"HTTP/1.1 401 ")
                    page = path in ("/", "/?x=/health") and method in ("GET", "HEAD") and header.startswith(b"Accept")
                    assert closed or page or path == "/health", f"{method} {path} is open: {head[:60]}"
                    assert not page or b"\r\nContent-Type: text/html" in head, f"{method} {path} is no page: {head}"
        status, _ = server.ask("GET", "/health")
        assert status == 200, f"/health answers {status}"
        report(f"{count} requests without the key for {len(paths)} paths and {len(spellings)} spellings: all refused "
               "but /health")


def begin_again(port):
    """A server on a port that another connection of this machine may have for a moment."""
    for _ in range(20):
        try:
            return Server(program, model, port=port)
        except AssertionError as error:
            report(f"again: {error}")
            time.sleep(1)
    raise AssertionError(f"no server begins on port {port}")


def ends():
    """Killed, a server begins again on its port; told to end, it lets streams end and takes nothing new."""
    with Server(program, model) as server:
        port = server.port
        clients = [server.client() for _ in range(3)]
        for client in clients:
            client.send(request("POST", "/v1/completions", {**ENDLESS, "max_tokens": 400}))
            client.until(b"data:")
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        for client in clients:
            client.rest()
    with begin_again(port) as server:
        status, _ = server.ask("POST", "/v1/completions", {"prompt": "The", "max_tokens": 2})
        assert status == 200, f"after a kill and a start the server answers {status}"
        idle, begun, streams = server.client(), server.client(), [server.client() for _ in range(3)]
        assert idle.ask("GET", "/health")[0] == 200
        begun.send(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n")
        for client in streams:
            client.send(request("POST", "/v1/completions", {**ENDLESS, "max_tokens": 480}))
            client.until(b"data:")
        server.process.send_signal(signal.SIGTERM)
        assert idle.rest() == b"", "an idle connection is not closed"

        def refused():
            try:
                Client(port).close()
                return False
            except ConnectionError:
                return True

        until("a server that takes no connections", refused)
        try:
            begun.send(b"{}")
            late, _ = begun.answer()
        except ConnectionError:
            late = 0
        assert late in (0, 503), f"a request that came too late is answered with {late}"
        whole = sum(client.rest().endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") for client in streams)
        code = server.process.wait(timeout=120)
        report(f"killed and begun again on the same port; SIGTERM: {whole} of 3 streams whole, exit code {code}")
        assert whole == 3 and code == 0


def main():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096) if hard > 0 else 4096, hard))
    begun = time.monotonic()
    closed_doors()
    ends()
    full_house()
    probes = os.path.join(model, "..", "..", "quickstart", "retention.jsonl")
    with Server(program, model, "--slots", "4", "--queue", "60", "--probes", probes, "--admin") as server:
        abuse_bodies.walk(server, report, 10000 if short else 1000000)
        abuse_bodies.large(server, report)
        cut_streams(server)
        many_requests(server)
        slow_clients(server)
        heavy_bodies(server)
        assert server.ask("POST", "/v1/completions", {"prompt": "The", "max_tokens": 2})[0] == 200
        code = server.stop()
        assert code == 0, f"the exit code is {code}"
    if not short:
        deadlines()
    used = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = sum(use.ru_utime + use.ru_stime for use in used)
    report(f"all held; {time.monotonic() - begun:.0f} s, {seconds:.0f} s of processors, on {os.cpu_count()} of them")


try:
    main()
except (AssertionError, OSError, socket.timeout) as error:
    sys.exit(f"abuse.py: {error}")
