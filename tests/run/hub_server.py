"""A hub over TLS on 127.0.0.1 and, as another host, its store: python3 hub_server.py FOLDER. The standard library and
the program openssl, which makes FOLDER/cert.pem. Prints the two ports; FOLDER/log has a line for each request: where it
came, method, path, range, and whether it had a token. What goes wrong is said by the organisation: "cut/model".
"""
import hashlib
import http.server
import json
import os
import random
import ssl
import subprocess
import sys
import threading
import time

folder = sys.argv[1]
cert, key = os.path.join(folder, "cert.pem"), os.path.join(folder, "key.pem")
subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=127.0.0.1", "-addext",
                "subjectAltName=IP:127.0.0.1"], check=True, stderr=subprocess.DEVNULL)
draw = random.Random(3)
files = {
    "config.json": b'{"model_type": "llama"}\n',
    "generation_config.json": b"{}\n",
    "LICENSE.txt": b"Do as you like.\n",
    "USE_POLICY.md": b"But not that.\n",
    "README.md": b"",
    "tokenizer.model": draw.randbytes(5000),
    "model.safetensors": draw.randbytes(1_000_003),
    "consolidated.safetensors": b"a second copy",
    "pytorch_model.bin": b"\x80pickle",
    "original/params.json": b"{}",
}
large = ("tokenizer.model", "model.safetensors")
lock = threading.Lock()
counts = {}


def commit_of(model):
    return hashlib.sha1(model.encode()).hexdigest()


def etag_of(name):
    data = files[name]
    if name in large:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def times(what):
    with lock:
        counts[what] = counts.get(what, 0) + 1
        return counts[what]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, body=b"", length=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        if length is not None:
            self.close_connection = True

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        with lock, open(os.path.join(folder, "log"), "a", encoding="utf-8") as log:
            where = "hub" if self.server is hub else "store"
            token = "token" if self.headers.get("Authorization") else "-"
            print(where, self.command, self.path, self.headers.get("Range") or "-", token, file=log, flush=True)
        try:
            self.hub() if self.server is hub else self.store()
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            self.close_connection = True

    def hub(self):
        parts = self.path.split("/")[1:]
        token = self.headers.get("Authorization", "")
        if self.path == "/api/whoami-v2":
            return self.reply(200, b'{"name": "tester"}') if token == "Bearer hf_good" else self.reply(401)
        model = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        kind = model.split("/")[0]
        if kind == "none":
            return self.reply(401, X_Error_Code="RepoNotFound")
        if kind == "down":
            return self.reply(500)
        if kind == "busy" and times(self.path) < 3:
            return self.reply(429, Retry_After="0")
        if parts[0] == "api":
            if parts[5] == "absent":
                return self.reply(404, X_Error_Code="RevisionNotFound")
            names = [n for n in files if kind != "pickle" or not n.endswith(".safetensors")]
            if parts[4] == "tree":
                tree = [{"type": "file", "path": n, "size": len(files[n]), "oid": etag_of(n)} for n in names]
                for entry in tree:
                    if entry["path"] in large:
                        entry["lfs"] = {"oid": entry["oid"], "size": entry["size"], "pointerSize": 130}
                return self.reply(200, json.dumps(tree).encode(), Content_Type="application/json")
            about = {"sha": commit_of(model), "siblings": [{"rfilename": n} for n in names],
                     "id": model, "cardData": {"license": "llama2"}}
            return self.reply(200, json.dumps(about).encode())
        name = "/".join(parts[4:])
        if kind == "gated" and token != "Bearer hf_good":
            return self.reply(401 if not token else 403, X_Error_Code="GatedRepo")
        if name not in files:
            return self.reply(404, X_Error_Code="EntryNotFound")
        about = {"X_Repo_Commit": commit_of(model), "ETag": '"%s"' % etag_of(name)}
        if kind == "untagged":
            about["ETag"] = '"1234"'
        if name not in large:
            return self.send(kind, name, about)
        about.update(X_Linked_Etag='"%s"' % etag_of(name), X_Linked_Size=str(len(files[name])), ETag='"of the store"')
        scheme = "http" if kind == "plain" else "https"
        to = "%s://127.0.0.1:%d/%s/%s?Signature=abc" % (scheme, store.server_port, kind, name)
        return self.reply(302, Location=to, **about)

    def store(self):
        _, kind, name = self.path.split("?")[0].split("/")
        self.send(kind, name, {"ETag": '"of the store"'})

    def send(self, kind, name, headers):
        data = files[name]
        wanted = self.headers.get("Range")
        big = name == "model.safetensors"
        if big and kind == "refused":
            return self.reply(403)
        if big and kind in ("flip", "fliponce") and (kind == "flip" or times("flipped") == 1):
            data = data[:700] + bytes([data[700] ^ 4]) + data[701:]
        if big and kind == "short" or big and kind == "long":
            data = data[:-9] if kind == "short" else data + b"more"
        if wanted is None or (big and kind == "norange"):
            if big and kind == "norange" and times("norange") == 2:
                return self.reply(200, data[:300_000], len(data), **headers)
            return self.reply(200, data, **headers)
        first, last = map(int, wanted[6:].split("-"))
        if first >= len(data) or (big and kind == "passed" and times(wanted) == 1):
            return self.reply(416, Content_Range="bytes */%d" % len(data))
        part = data[first:last + 1]
        said = "bytes %d-%d/%d" % (first + (kind == "shifted" and big), first + len(part) - 1, len(data))
        if big and kind == "cut" and len(part) > 9000:
            return self.reply(206, part[:len(part) // 3], len(part), Content_Range=said, **headers)
        if big and kind == "slow":
            time.sleep(0.15)
        return self.reply(206, part, Content_Range=said, **headers)


def server():
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads = True
    made.handle_error = lambda *_: None  # clients that end handshakes
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    made.socket = context.wrap_socket(made.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    return made


hub, store = server(), server()
print(hub.server_port, store.server_port, flush=True)
# The parent holds our standard input: when it goes, so do we.
sys.stdin.read()
