"""Writes tests/data/s3_signatures.json: requests to S3 and the header Authorization that botocore gives each.

python3 make_s3_signatures.py, with PyPI's botocore. `path` and the query's names and values are not encoded; the time
is that of the examples in S3's documentation ("Signature Calculations for the Authorization Header"), whose four
signatures are checked here, too.
"""

import datetime
import json
import pathlib
import urllib.parse

import botocore
from botocore import auth, awsrequest, credentials

KEY = ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
NOW = datetime.datetime(2013, 5, 24)
NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
HELLO = "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072"  # "Welcome to Amazon S3."
HOST = "examplebucket.s3.amazonaws.com"

PUBLISHED = {
    "published: GET of a range": "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    "published: PUT": "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
    "published: a query without a value": "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
    "published: list": "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
}
# name, method, path, query, headers, hash of the body
CASES = [
    ("published: GET of a range", "GET", "/test.txt", [], ["range: bytes=0-9"], NOTHING),
    (
        "published: PUT",
        "PUT",
        "/test$file.text",
        [],
        ["date: Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class: REDUCED_REDUNDANCY"],
        HELLO,
    ),
    ("published: a query without a value", "GET", "/", [["lifecycle", ""]], [], NOTHING),
    ("published: list", "GET", "/", [["max-keys", "2"], ["prefix", "J"]], [], NOTHING),
    ("GET", "GET", "/key", [], [], NOTHING),
    ("HEAD", "HEAD", "/key", [], [], NOTHING),
    ("DELETE", "DELETE", "/key", [], [], NOTHING),
    ("path style", "GET", "/bucket/a/b/c.safetensors", [], [], NOTHING),
    ("PUT", "PUT", "/key", [], ["content-type: application/octet-stream"], HELLO),
    (
        "PUT with a checksum",
        "PUT",
        "/key",
        [],
        ["x-amz-checksum-sha256: RM591nyVng01JP+sF3Hfu6h9K2tLTpnkIDSouAP4sHI="],
        HELLO,
    ),
    ("PUT without a hash", "PUT", "/key", [], [], "UNSIGNED-PAYLOAD"),
    ("a session", "GET", "/key", [], ["x-amz-security-token: FwoGZXIvYXdzEBYaDEXAMPLE+/=="], NOTHING),
    (
        "list with a prefix",
        "GET",
        "/",
        [["list-type", "2"], ["prefix", "models/7b chat/"], ["encoding-type", "url"]],
        [],
        NOTHING,
    ),
    (
        "next page",
        "GET",
        "/",
        [
            ["list-type", "2"],
            ["continuation-token", "1ueGcxLPRx1Tr/XYExHnhbYLgveDs2J/wm36Hy4vbOwM="],
            ["prefix", "a/b"],
        ],
        [],
        NOTHING,
    ),
    ("begin an upload", "POST", "/key", [["uploads", ""]], ["x-amz-checksum-algorithm: SHA256"], NOTHING),
    ("part of an upload", "PUT", "/key", [["uploadId", "VXBsb2FkIElE.b_-~=="], ["partNumber", "12"]], [], HELLO),
    ("complete an upload", "POST", "/key", [["uploadId", "VXBsb2FkIElE"]], ["content-type: application/xml"], HELLO),
    ("abort an upload", "DELETE", "/key", [["uploadId", "VXBsb2FkIElE"]], [], NOTHING),
    ("uploads of a prefix", "GET", "/", [["uploads", ""], ["prefix", "a=b&c"], ["key-marker", "x y"]], [], NOTHING),
    ("signs in a path", "GET", "/a+b=c:d*e'f(g)h!i@j,k;l&m$n", [], [], NOTHING),
    ("blanks and a percent sign", "GET", "/a b/100%/%41", [], [], NOTHING),
    ("letters beyond ASCII", "GET", "/modèle/模型/🦙.bin", [], [], NOTHING),
    ("slashes and dots", "GET", "/a//b/../c/./d", [], [], NOTHING),
    ("plain signs", "GET", "/-._~", [["prefix", "-._~"]], [], NOTHING),
    ("signs in a query", "GET", "/", [["prefix", "a+b=c:d*e'f(g)h!i@j,k;l&m$n?#"], ["list-type", "2"]], [], NOTHING),
    ("equal names", "GET", "/", [["a", "2"], ["a", "1"], ["A", "3"]], [], NOTHING),
]


def signed(method, path, query, headers, payload):
    target = urllib.parse.quote(path, safe="/-._~")
    pairs = "&".join("%s=%s" % tuple(urllib.parse.quote(x, safe="-._~") for x in pair) for pair in query)
    request = awsrequest.AWSRequest(method, "https://" + HOST + target + ("?" + pairs if pairs else ""))
    request.headers["host"] = HOST
    for line in headers:
        name, value = line.split(": ", 1)
        request.headers[name] = value
    request.headers["X-Amz-Content-SHA256"] = payload
    request.context["timestamp"] = NOW.strftime("%Y%m%dT%H%M%SZ")
    signer = auth.S3SigV4Auth(credentials.Credentials(*KEY), "s3", "us-east-1")
    signer.payload = lambda _: payload
    if "date" not in request.headers:
        request.headers["X-Amz-Date"] = request.context["timestamp"]
    else:
        request.headers["x-amz-date"] = request.context["timestamp"]
    names = signer.headers_to_sign(request)
    text = signer.canonical_request(request)
    signature = signer.signature(signer.string_to_sign(request, text), request)
    return "AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s" % (
        KEY[0],
        signer.credential_scope(request),
        signer.signed_headers(names),
        signature,
    )


def main():
    rows = []
    for name, method, path, query, headers, payload in CASES:
        authorization = signed(method, path, query, headers, payload)
        if name in PUBLISHED:
            assert authorization.endswith(PUBLISHED[name]), (name, authorization)
        rows.append(
            {
                "name": name,
                "method": method,
                "path": path,
                "query": query,
                "headers": headers,
                "sha256": payload,
                "authorization": authorization,
            }
        )
    page = {
        "by": "botocore " + botocore.__version__,
        "key": KEY[0],
        "secret": KEY[1],
        "date": "20130524T000000Z",
        "host": HOST,
        "requests": rows,
    }
    file = pathlib.Path(__file__).with_name("s3_signatures.json")
    file.write_text(json.dumps(page, indent=1, ensure_ascii=False) + "\n")
    print(len(rows), "requests")


main()
