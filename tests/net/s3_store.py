"""A real S3 server with signatures checked (moto, of PyPI), and a proxy before it that goes wrong as it is told to.

s3_store.py: prints "PORT KEY SECRET ROLE" when both run, or one line that begins with "none:" where moto is not here;
ends when its standard input closes. POST /faults has a JSON list of rules for the proxy, each used `times` times (1):
`method`, `match` (a part of the request's target) and `do`:
  500, 503, 429       that status; slowdown, timeout: the codes SlowDown (503) and RequestTimeout (400)
  reset, cut          the connection ends in the middle of the request's, or of the answer's, body
  lost                the request is done, its answer lost
  corrupt             one byte of the answer's body differs
  skew                (until replaced) the store's clock is `seconds` ahead of ours, which is checked as S3 does it
GET /log: the requests since the last POST /faults, "METHOD TARGET STATUS" a line.
"""

import calendar
import email.utils
import http.client
import http.server
import json
import logging
import os
import sys
import threading
import time

ADMIN = {"service_name": "iam", "region_name": "us-east-1", "aws_access_key_id": "x", "aws_secret_access_key": "x"}
EVERYTHING = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}


def start_moto():
    """The port of a moto that checks signatures, and a key that may do everything."""
    os.environ["INITIAL_NO_AUTH_ACTION_COUNT"] = "4"
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    import boto3
    import moto
    from moto.server import ThreadedMotoServer

    if tuple(int(part) for part in moto.__version__.split(".")[:3]) < (5, 2, 5):
        raise ImportError("moto %s signs queries otherwise than S3; 5.2.5 does not" % moto.__version__)

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    iam = boto3.client(endpoint_url="http://127.0.0.1:%d" % port, **ADMIN)
    iam.create_user(UserName="writer")
    iam.put_user_policy(UserName="writer", PolicyName="all", PolicyDocument=json.dumps(EVERYTHING))
    role = iam.create_role(RoleName="reader", AssumeRolePolicyDocument=json.dumps(EVERYTHING))["Role"]["Arn"]
    key = iam.create_access_key(UserName="writer")["AccessKey"]
    return port, key["AccessKeyId"], key["SecretAccessKey"], role


class Faults:
    def __init__(self):
        self.lock = threading.Lock()
        self.rules = []
        self.log = []
        self.seconds = 0

    def set(self, rules):
        with self.lock:
            self.log = []
            self.seconds = sum(r["seconds"] for r in rules if r["do"] == "skew")
            self.rules = [dict(r, times=r.get("times", 1)) for r in rules if r["do"] != "skew"]

    def take(self, method, target):
        with self.lock:
            for rule in self.rules:
                if rule["times"] > 0 and rule.get("method", method) == method and rule.get("match", "") in target:
                    rule["times"] -= 1
                    return rule["do"]
        return None


faults = Faults()


class Proxy(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    def log_message(self, *_):
        pass

    def answer(self, status, headers, body, length=None):
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.send_header("Date", email.utils.formatdate(time.time() + faults.seconds, usegmt=True))
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def error(self, status, code):
        body = "<?xml version='1.0'?><Error><Code>%s</Code><Message>as told</Message></Error>" % code
        faults.log.append("%s %s %d" % (self.command, self.path, status))
        self.answer(status, [("Content-Type", "application/xml")], body.encode())

    def drop(self):
        faults.log.append("%s %s 0" % (self.command, self.path))
        self.wfile.flush()
        self.close_connection = True
        self.connection.close()

    def handle_request(self):
        if self.path == "/log":
            return self.answer(200, [], "\n".join(faults.log).encode())
        length = int(self.headers.get("Content-Length", 0))
        if self.path == "/faults":
            faults.set(json.loads(self.rfile.read(length)))
            return self.answer(200, [], b"")
        fault = faults.take(self.command, self.path)
        if fault == "reset":
            self.rfile.read(length // 2)
            return self.drop()
        body = self.rfile.read(length)
        if fault in ("500", "503", "429"):
            return self.error(
                int(fault), {"500": "InternalError", "503": "ServiceUnavailable", "429": "TooMany"}[fault]
            )
        if fault == "slowdown":
            return self.error(503, "SlowDown")
        if fault == "timeout":
            return self.error(400, "RequestTimeout")
        if faults.seconds:
            stated = calendar.timegm(time.strptime(self.headers["X-Amz-Date"], "%Y%m%dT%H%M%SZ"))
            if abs(stated - time.time() - faults.seconds) > 900:
                return self.error(403, "RequestTimeTooSkewed")
        import moto.settings

        # A web identity signs nothing, which moto would refuse.
        moto.settings.INITIAL_NO_AUTH_ACTION_COUNT = float("inf") if b"AssumeRoleWithWebIdentity" in body[:200] else 4
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "expect"):
                upstream.putheader(name, value)
        upstream.endheaders(body if length else None)
        reply = upstream.getresponse()
        data = reply.read()
        upstream.close()
        faults.log.append("%s %s %d" % (self.command, self.path, 0 if fault == "lost" else reply.status))
        if fault == "lost":
            self.close_connection = True
            return self.connection.close()
        if fault == "corrupt" and data:
            data = bytes([data[0] ^ 1]) + data[1:]
        if fault == "cut":
            self.answer(reply.status, reply.getheaders(), data[: len(data) // 2], len(data))
            return self.drop()
        head = self.command == "HEAD"
        self.answer(reply.status, reply.getheaders(), data, int(reply.getheader("Content-Length", 0)) if head else None)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_request


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_):
        pass


def main():
    python = os.environ.get("QLORA_S3_PYTHON", "")  # one that has moto
    if python and os.path.realpath(sys.prefix) != os.path.realpath(os.path.dirname(os.path.dirname(python))):
        os.execv(python, [python, __file__])
    try:
        port, key, secret, role = start_moto()
    except ImportError as missing:
        print("none: %s" % missing, flush=True)
        return
    proxy = Server(("127.0.0.1", 0), Proxy)
    proxy.upstream = port
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    print(proxy.server_port, key, secret, role, flush=True)
    sys.stdin.read()
    os._exit(0)


main()
