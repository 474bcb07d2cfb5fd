"""The checkpoints and the bundle that most tests use. Without torch only `bundle` is to be had."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing may wait for a network
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

ROOT = Path(__file__).parent.parent
BUNDLE_VARIABLE = "GPT2_ONNX_TEST_BUNDLE"


@pytest.fixture(scope="session")
def novelist() -> Path:
    """The shipped checkpoint."""
    return ROOT / "models" / "novelist"


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the shipped checkpoint: exported here, or given by GPT2_ONNX_TEST_BUNDLE where there is no torch."""
    if given := os.environ.get(BUNDLE_VARIABLE):
        return Path(given)
    from export.pipeline import export_bundle

    folder = tmp_path_factory.mktemp("bundles") / "novelist"
    export_bundle(str(ROOT / "models" / "novelist"), folder, precisions=("fp32", "fp16"))
    return folder


@pytest.fixture(scope="session")
def precise_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the shipped checkpoint in every precision; needs torch."""
    from export.pipeline import export_bundle

    folder = tmp_path_factory.mktemp("precise") / "novelist"
    export_bundle(str(ROOT / "models" / "novelist"), folder, precisions=("fp32", "fp16", "int8", "int4"))
    return folder


@pytest.fixture(scope="session")
def run_notebook(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Any]:
    """Run the notebook beside a bundle, which takes the place of the shipped checkpoint's; needs nbclient."""
    import nbformat
    from nbclient import NotebookClient

    def run(bundle: Path) -> Any:
        folder = tmp_path_factory.mktemp("notebook")
        (folder / "examples").mkdir()
        (folder / "models").mkdir()
        (folder / "models" / "novelist-onnx").symlink_to(bundle)
        book = nbformat.read(ROOT / "examples" / "inside_gpt2.ipynb", as_version=4)
        resources = {"metadata": {"path": str(folder / "examples")}}
        own = {"IPYTHONDIR": str(folder / "ipython"), "MPLCONFIGDIR": str(folder / "matplotlib")}
        NotebookClient(book, timeout=300, resources=resources).execute(env={**os.environ, **own})
        return book

    return run


TINY = {"vocab_size": 8192, "n_positions": 96, "n_embd": 32, "n_layer": 3, "n_head": 4}


@pytest.fixture(scope="session")
def seeded_checkpoint(novelist: Path) -> Callable[..., Path]:
    """Make a seeded checkpoint in a folder: tiny, but for what is overridden; needs torch."""
    return lambda folder, **config: make_checkpoint(folder, novelist, **{**TINY, **config})


def make_checkpoint(folder: Path, tokenizer: Path, **config: Any) -> Path:
    """A seeded GPT-2 in `folder` whose every parameter matters: norms and biases are not ones and zeros."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

    torch.manual_seed(7)
    model = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    GPT2TokenizerFast.from_pretrained(tokenizer).save_pretrained(folder)
    return folder
