"""`qlora serve` as a process, and a client over a plain socket that says byte by byte what it means to say."""
import json
import os
import re
import resource
import signal
import socket
import subprocess
import time

HEAD = re.compile(rb"HTTP/1\.1 (\d+)")
LENGTH = re.compile(rb"\r\nContent-Length: (\d+)\r\n")


def until(what, condition, seconds=60):
    """Waits; a minute is for a machine that is busy."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError("in vain waited for: " + what)


def request(method, path, body=b"", headers=b""):
    """The bytes of a request. `body`: bytes, or what JSON writes. `headers`: lines with their ends."""
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    length = b"Content-Length: %d\r\n" % len(body) if body or method == "POST" else b""
    return b"%s %s HTTP/1.1\r\nHost: localhost\r\n%s%s\r\n%s" % (method.encode(), path.encode(), length, headers, body)


class Client:
    """One connection."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.held = b""

    def close(self):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def more(self):
        """False: the server has ended the connection."""
        try:
            data = self.socket.recv(65536)
        except (ConnectionResetError, BrokenPipeError):
            return False
        self.held += data
        return data != b""

    def until(self, text):
        """Everything up to a text; what there was where the connection ends before it."""
        while text not in self.held:
            if not self.more():
                text = self.held
                break
        at = self.held.index(text) + len(text)
        out, self.held = self.held[:at], self.held[at:]
        return out

    def rest(self):
        """Everything up to the end of the connection."""
        while self.more():
            pass
        return self.held

    def answer(self):
        """Status and body; status 0: the connection ended before the answer was whole."""
        head = self.until(b"\r\n\r\n")
        status = HEAD.match(head)
        if status is None:
            return 0, head
        length = LENGTH.search(head)
        body = b""
        if length is not None:
            while len(self.held) < int(length[1]):
                if not self.more():
                    return 0, self.held
            body, self.held = self.held[:int(length[1])], self.held[int(length[1]):]
        elif b"Transfer-Encoding: chunked" in head:
            while True:
                line = self.until(b"\r\n")
                if not line.endswith(b"\r\n"):
                    return 0, body
                size = int(line, 16)
                while len(self.held) < size + 2:
                    if not self.more():
                        return 0, body
                body += self.held[:size]
                self.held = self.held[size + 2:]
                if size == 0:
                    break
        else:
            body = self.rest()
        return int(status[1]), body

    def ask(self, method, path, body=b"", headers=b""):
        self.send(request(method, path, body, headers))
        return self.answer()


class Server:
    """The program at work."""

    def __init__(self, program, model, *arguments, port=0, key=None, descriptors=None):
        """`descriptors`: that the process may have; without it as many as this one."""
        environment = {name: value for name, value in os.environ.items() if name != "QLORA_API_KEY"}
        if key is not None:
            environment["QLORA_API_KEY"] = key
        self.process = subprocess.Popen(
            [program, "serve", "-q", "--threads", "1", "--port", str(port), *arguments, model],
            stdout=subprocess.PIPE, text=True, env=environment,
            preexec_fn=descriptors and (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors,) * 2)))
        line = self.process.stdout.readline()
        if not line.startswith("listening on "):
            raise AssertionError(f"the server does not listen: {line!r}, exit code {self.process.wait()}")
        self.port = int(line.rsplit(":", 1)[1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def client(self):
        return Client(self.port)

    def ask(self, method, path, body=b"", headers=b""):
        client = self.client()
        try:
            return client.ask(method, path, body, headers + b"Connection: close\r\n")
        finally:
            client.close()

    def metrics(self):
        """All counters and gauges."""
        lines = self.ask("GET", "/metrics")[1].decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    def stop(self):
        """The exit code after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=120)

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def memory(self):
        """Resident bytes."""
        with open(f"/proc/{self.process.pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def at_rest(self):
        """Waits until nothing runs, and one connection is open: the one that asks. Gives the counters."""
        def look():
            all_of_them = self.metrics()
            busy = [all_of_them[f"qlora_{name}"] for name in ("running", "waiting", "cache_tokens")]
            return all_of_them if busy == [0, 0, 0] and all_of_them["qlora_connections"] <= 1 else None

        return until("a server at rest", look)
