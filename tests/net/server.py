"""A small hostile web server for the fetch tests: standard library only, 127.0.0.1, any free port (printed first)."""
import gzip
import http.server
import itertools
import socket
import sys
import threading
import time
import zlib

PAGE = "<html><head><title>Caf\u00e9</title></head><body><p>Plain page.</p></body></html>"
counts = {}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, body, status=200, length=None, **headers):
        if isinstance(body, str):
            body = body.encode()
        self.send_response(status)
        headers.setdefault("Content_Type", "text/html; charset=utf-8")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def redirect(self, to):
        self.reply("moved", 302, Location=to)

    def stream(self, **headers):
        self.send_response(200)
        headers.setdefault("Content_Type", "text/html")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def times(self):
        counts[self.path] = counts.get(self.path, 0) + 1
        return counts[self.path]

    def do_GET(self):
        try:
            self.route()
        except (BrokenPipeError, ConnectionResetError):
            pass

    def route(self):
        path, _, query = self.path.partition("?")
        here = "http://127.0.0.1:%d" % self.server.server_port
        if path == "/plain":
            self.reply(PAGE)
        elif path == "/part":
            self.reply(PAGE[:8], 206)
        elif path == "/agent":
            self.reply(self.headers.get("User-Agent", ""), Content_Type="text/plain")
        elif path == "/hop":  # /hop?3 -> /hop?2 -> /hop?1 -> /hop?0 -> page
            self.redirect("/hop?%d" % (int(query) - 1)) if int(query) > 0 else self.reply(PAGE)
        elif path == "/loop":
            self.redirect("/loop")
        elif path == "/to":
            self.redirect(query)
        elif path == "/gzip":
            self.reply(gzip.compress(PAGE.encode()), Content_Encoding="gzip")
        elif path == "/deflate":
            self.reply(zlib.compress(PAGE.encode()), Content_Encoding="deflate")
        elif path == "/bomb":
            squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
            body = b"".join(squeeze.compress(b"A" * (1 << 20)) for _ in range(200)) + squeeze.flush()
            self.reply(body, Content_Encoding="gzip")
        elif path == "/notgzip":
            self.reply(PAGE, Content_Encoding="gzip")
        elif path == "/slow":  # under any speed limit: a byte every half second
            self.stream()
            for _ in range(60):
                self.wfile.write(b"x")
                time.sleep(0.5)
        elif path == "/endless":
            self.stream()
            for _ in itertools.count():
                self.wfile.write(b"<p>more</p>" * 5000)
        elif path == "/missing":
            self.reply("no", 404)
        elif path == "/flaky":
            self.reply("busy", 503) if self.times() < 3 else self.reply(PAGE)
        elif path == "/down":
            self.reply("broken %d" % self.times(), 500)
        elif path == "/count":
            self.reply(str(counts.get(query, 0)), Content_Type="text/plain")
        elif path == "/limited":
            self.reply("wait", 429, Retry_After="1") if self.times() < 2 else self.reply(PAGE)
        elif path == "/limitedlong":
            self.reply("wait %d" % self.times(), 429, Retry_After="86400")
        elif path == "/latin1":  # says utf-8, is not
            self.reply("<p>Stra\u00dfe, caf\u00e9</p>".encode("latin-1"))
        elif path == "/sjis":
            self.reply("<p>\u65e5\u672c</p>".encode("shift_jis"), Content_Type="text/html; charset=Shift_JIS")
        elif path == "/metacharset":
            page = "<meta charset='windows-1251'><p>\u041c\u0438\u0440</p>"
            self.reply(page.encode("cp1251"), Content_Type="text/html")
        elif path == "/png":
            self.reply(b"\x89PNG\r\n\x1a\n" + bytes(100), Content_Type="text/html")
        elif path == "/pdf":
            self.reply(b"no magic here", Content_Type="application/pdf")
        elif path == "/nul":
            self.reply(bytes(range(256)) * 4, Content_Type="text/plain")
        elif path == "/untyped":
            self.reply(PAGE, Content_Type="application/octet-stream")
        elif path == "/hugeheader":
            self.reply(PAGE, **{"X_%d" % i: "y" * 1000 for i in range(90)})
        elif path == "/longline":
            self.reply(PAGE, X_Long="y" * 200000)
        elif path == "/impossible":
            self.reply(PAGE, length="9" * 30)
        elif path == "/forward":
            self.reply("<title>Moved</title><meta http-equiv=refresh content='0; url=/plain'><p>Moved, see there.")
        elif path == "/json":
            self.reply('{"error": "no such product"}')
        elif path == "/robots_only":
            self.reply("<title>Just a moment...</title><p>Checking your browser.")
        elif path == "/script_only":
            self.reply("<noscript>Enable JavaScript to run this app.</noscript><div id=root></div><script>1</script>")
        elif path == "/truncated":
            self.reply(PAGE, length=10000)
        elif path == "/empty":
            self.reply("")
        elif path == "/hangup":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self.reply(here, 404)


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
print(server.server_port, flush=True)
# The parent holds our standard input: when it goes, so do we.
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
