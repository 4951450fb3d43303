"""What gives credentials beside a program: a container's agent and an instance's metadata (IMDSv2), on 127.0.0.1, any
free port, which is printed first. A request to a host of amazonaws is answered with the lines of its head. Standard
library only."""

import http.server
import json
import sys
import threading

KEYS = {"AccessKeyId": "ASIAPASSING", "SecretAccessKey": "passing/secret", "Token": "passing-token"}
SOON = "2026-01-31T12:00:00Z"
FAR = "2099-01-31T12:00:00Z"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, body, status=200):
        body = body.encode("latin-1")
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Authorization", self.headers.get("Authorization", ""))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "amazonaws" in self.headers["Host"]:
            head = "%s %s\n" % (self.command, self.path)
            return self.reply(head + "".join("%s: %s\n" % item for item in self.headers.items()))
        if self.path == "/container":
            if self.headers.get("Authorization") != "container-token":
                return self.reply("no", 401)
            return self.reply(json.dumps(dict(KEYS, Expiration=FAR)))
        if self.path == "/expired":
            self.server.count += 1
            return self.reply(json.dumps(dict(KEYS, Token="token-%d" % self.server.count, Expiration=SOON)))
        if self.path == "/latest/api/token":
            good = self.command == "PUT" and self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
            return self.reply("session" if good else "no", 200 if good else 405)
        if self.headers.get("X-aws-ec2-metadata-token") != "session":
            return self.reply("no", 401)
        if self.path == "/latest/meta-data/iam/security-credentials/":
            return self.reply("a-role")
        if self.path == "/latest/meta-data/iam/security-credentials/a-role":
            return self.reply(json.dumps(dict(KEYS, Code="Success", Expiration=FAR)))
        return self.reply("no", 404)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    count = 0


server = Server(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_port, flush=True)
sys.stdin.read()
