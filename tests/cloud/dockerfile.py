"""Takes the steps of a Dockerfile in folders, as root and without Docker: each stage in a Debian that debootstrap made.

    python3 tests/cloud/dockerfile.py DOCKERFILE CONTEXT WORK

CONTEXT is a git work tree, whose files COPY takes. WORK/base is a minimal Debian that stands for any FROM; it is made
if it is not there. Stages become WORK/stage-0, WORK/stage-1 and so on. Prints the folder of the last one, its
ENTRYPOINT and its environment as JSON. An instruction that this does not know is an error.
"""
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

MIRROR = [os.environ["DEBIAN_MIRROR"]] if os.environ.get("DEBIAN_MIRROR") else []  # else the one of debootstrap


def instructions(text):
    """Name and rest of each instruction, its continued lines joined."""
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if line.strip():
            name, rest = line.split(None, 1)
            yield name, rest.strip()


def substituted(text, values):
    return re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], text)


def run(root, command, env):
    """A shell's command in the folder, as RUN does it."""
    for place in ("proc", "dev"):
        subprocess.run(["mount", "--bind" if place == "dev" else "-tproc", "/" + place, root / place], check=True)
    try:
        clean = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", **env}
        if jobs := os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL"):
            clean["CMAKE_BUILD_PARALLEL_LEVEL"] = jobs
        subprocess.run(["chroot", root, "/bin/sh", "-ec", command], check=True, env=clean, stdout=sys.stderr)
    finally:
        for place in ("dev", "proc"):
            subprocess.run(["umount", root / place], check=True)


def new_stage(work, number):
    base = work / "base"
    if not base.exists():
        subprocess.run(["debootstrap", "--variant=minbase", "bookworm", base, *MIRROR], check=True, stdout=sys.stderr)
    stage = work / f"stage-{number}"
    # Of a run that was killed /dev may still be mounted there, and is not to be emptied.
    subprocess.run(["rm", "-rf", "--one-file-system", stage], check=True)
    subprocess.run(["cp", "-a", base, stage], check=True)
    shutil.copy("/etc/resolv.conf", stage / "etc/resolv.conf")
    return stage


def copy_tree(context, into):
    """What git knows of the work tree, and what it would add."""
    files = subprocess.run(["git", "-C", context, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                           check=True, stdout=subprocess.PIPE).stdout.decode().split("\0")
    for name in filter(None, files):
        if (context / name).exists():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(context / name, into / name)


def copy(rest, context, stages, root):
    words = shlex.split(rest)
    source = None
    if words[0].startswith("--from="):
        source = stages[words.pop(0).removeprefix("--from=")]
    origin, target = words
    into = root / target.lstrip("/")
    if source is None:
        if origin != ".":
            sys.exit(f"COPY {rest}: of the context only all of it is copied")
        return copy_tree(context, into)
    found = source / origin.lstrip("/")
    into.parent.mkdir(parents=True, exist_ok=True)
    if found.is_dir():
        shutil.copytree(found, into, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(found, into)


def main(dockerfile, context, work):
    arguments, of_stage, env, stages, root, entry = {}, {}, {}, {}, None, None
    for name, rest in instructions(dockerfile.read_text()):
        print(f"== {name} {rest[:100]}", file=sys.stderr, flush=True)
        if name == "ARG":
            key, value = rest.split("=", 1)
            (of_stage if root else arguments)[key] = os.environ.get(key, value)
        elif name == "FROM":
            image, *as_name = substituted(rest, arguments).split()
            if not image.startswith("debian:bookworm"):
                sys.exit(f"FROM {image}: only Debian 12 is made here")
            root, of_stage, env, entry = new_stage(work, len(stages)), {}, {}, None
            stages[as_name[1] if as_name else str(len(stages))] = root
        elif name == "RUN":
            run(root, substituted(rest, of_stage), env)
        elif name == "COPY":
            copy(rest, context, stages, root)
        elif name == "ENV":
            key, value = rest.split("=", 1)
            env[key] = value
        elif name == "ENTRYPOINT":
            entry = json.loads(rest)
        else:
            sys.exit(f"{name}: an instruction that is not known here")
    print(json.dumps({"root": str(root), "entrypoint": entry, "env": env}))


main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]).resolve())
