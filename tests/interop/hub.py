"""Models of a hub in the cache that huggingface_hub keeps, in both directions: python hub.py PROGRAM. The hub is
tests/run/hub_server.py over TLS on the loopback interface. Exits with 1 when something differs.
"""

import hashlib
import os
import subprocess
import sys
import tempfile

program = os.path.abspath(sys.argv[1])
server_file = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "run", "hub_server.py")
wrong = 0


def check(what, good):
    global wrong
    wrong += not good
    print(f"{'ok  ' if good else 'FAIL'} {what}", flush=True)


def bytes_of(folder):
    found = {}
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), "rb") as file:
            found[name] = hashlib.sha256(file.read()).hexdigest()
    return found


with tempfile.TemporaryDirectory() as work:
    server = subprocess.Popen([sys.executable, server_file, work], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    port = server.stdout.readline().split()[0].decode()
    os.environ.update(HF_HOME=os.path.join(work, "ours"), HF_ENDPOINT=f"https://127.0.0.1:{port}",
                      SSL_CERT_FILE=os.path.join(work, "cert.pem"), HF_HUB_DISABLE_XET="1",
                      HF_HUB_DISABLE_PROGRESS_BARS="1")
    os.environ.pop("HF_TOKEN", None)
    import huggingface_hub
    from huggingface_hub import scan_cache_dir, snapshot_download

    login = subprocess.run([program, "login"], input=b"hf_good\n", capture_output=True)
    stored = login.returncode == 0 and huggingface_hub.get_token() == "hf_good"
    check("huggingface_hub finds the token of qlora login", stored)
    for name in ("ok/model", "gated/model"):
        pulled = subprocess.run([program, "pull", name, "--quiet"], stdout=subprocess.PIPE, text=True)
        found = snapshot_download(name, local_files_only=True)
        check(f"snapshot_download finds {name}", pulled.returncode == 0 and found == pulled.stdout.strip())
        check(f"{name} has 7 files", len(bytes_of(found)) == 7)
    cache = scan_cache_dir(os.path.join(work, "ours", "hub"))
    check("scan_cache_dir has no warning", not cache.warnings and len(cache.repos) == 2)
    os.environ["HF_HUB_OFFLINE"] = "1"
    again = subprocess.run([program, "pull", "ok/model", "--quiet"], stdout=subprocess.PIPE, text=True)
    check("qlora pull, offline", again.returncode == 0 and os.path.isdir(again.stdout.strip()))
    theirs = os.path.join(work, "theirs", "hub")
    del os.environ["HF_HUB_OFFLINE"]
    try:
        downloaded = snapshot_download("ok/model", cache_dir=theirs, allow_patterns=list(bytes_of(found)))
        check("both download the same bytes", bytes_of(downloaded) == bytes_of(found))
        os.environ.update(HF_HUB_CACHE=theirs, HF_HUB_OFFLINE="1")
        there = subprocess.run([program, "pull", "ok/model", "--quiet"], stdout=subprocess.PIPE, text=True)
        same = os.path.realpath(there.stdout.strip()) == os.path.realpath(downloaded)
        check("qlora finds what huggingface_hub downloaded", same)
    finally:
        server.kill()
print(f"huggingface_hub {huggingface_hub.__version__}")
sys.exit(1 if wrong else 0)
