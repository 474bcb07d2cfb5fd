"""Exports in forked children that are killed at random moments; run as a process of its own, which imports once.

Usage: python kills.py FOLDER NUMBER SEED CHECKPOINT OTHER-CHECKPOINT; prints what each kill left, a line of JSON each.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import export.pipeline  # noqa: F401  (imported before the forks)
from export.bundle.staging import prepare
from export.cli import main
from runtime.bundle.bundle import check_hashes, open_bundle
from runtime.errors import BundleError

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def start(log, *arguments):
    """The command in a child, with its output in a file."""
    if child := os.fork():
        return child
    try:
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = ["export", *map(str, arguments)]
        main()
    except SystemExit as ended:
        os._exit(ended.code or 0)
    except BaseException as error:
        print("TRACEBACK", repr(error), file=sys.stderr, flush=True)
        os._exit(99)
    os._exit(0)


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def weights_at(output):
    """The checkpoint's hash of a whole bundle, None where there is no bundle; BundleError if it is not whole."""
    if not output.exists():
        return None
    found = open_bundle(output)
    check_hashes(found, found.manifest.files)
    return found.manifest.source.weights_sha256


def killed(folder, moment, number, checkpoint, *, force):
    """One export, killed so many seconds after its start; what it left."""
    output, log = folder / "gpt2", folder.with_name(f"{folder.name}.log")
    child = start(log, checkpoint, "--output", output, *(["--force"] if force else []))
    time.sleep(moment)
    os.kill(child, number)
    code = ended(child)
    left = sorted(path.name for path in folder.iterdir() if path != output)
    try:
        found = weights_at(output)
    except BundleError as error:
        found = f"not whole: {error}"
    prepare(output, force=True, say=lambda _: None)
    after = sorted(path.name for path in folder.iterdir())
    return {"code": code, "left": left, "found": found, "after": after, "said": log.read_text().splitlines()[-1:]}


def run(folder, count, seed, checkpoint, other):
    chosen = random.Random(seed)
    first = folder / "first"
    started = time.monotonic()
    assert ended(start(folder / "first.log", checkpoint, "--output", first)) == 0, (folder / "first.log").read_text()
    whole = time.monotonic() - started
    old = weights_at(first)
    print(json.dumps({"seed": seed, "seconds": whole, "old": old}), flush=True)
    for number in range(count):
        force = number % 2 == 1
        place = folder / str(number)
        place.mkdir()
        if force:
            os.system(f"cp -r '{first}' '{place}/gpt2'")
        sent = SIGNALS[number // 2 % len(SIGNALS)]
        moment = chosen.uniform(0, 1.1 * whole)
        told = killed(place, moment, sent, other, force=force)
        print(json.dumps({"signal": sent, "force": force, "moment": moment, **told}), flush=True)


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
