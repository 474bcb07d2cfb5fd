"""The checkpoints and the bundle that most tests use. Without torch only `bundle` is to be had."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing may wait for a network
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

ROOT = Path(__file__).parent.parent
BUNDLE_VARIABLE = "GPT2_ONNX_TEST_BUNDLE"
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")  # "gw0" and so on, where processes share the tests
PINS = hasattr(os, "sched_setaffinity")
ALL_CPUS = os.sched_getaffinity(0) if PINS else set()


def pytest_configure() -> None:
    """Each process has CPUs of its own: threads that spin on the same ones hold each other up."""
    if WORKER and PINS:
        number, count = int(WORKER.removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        os.sched_setaffinity(0, set(sorted(ALL_CPUS)[number::count]) or ALL_CPUS)


@pytest.fixture(autouse=True)
def unpinned(request: pytest.FixtureRequest) -> Iterator[None]:
    """All CPUs for a test that is marked so."""
    if not (WORKER and PINS and request.node.get_closest_marker("all_cpus")):
        yield
        return
    pinned = os.sched_getaffinity(0)
    os.sched_setaffinity(0, ALL_CPUS)
    yield
    os.sched_setaffinity(0, pinned)


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Make a folder, once for all processes that share the tests: the first to ask makes it, the others wait."""
    from filelock import FileLock

    own = tmp_path_factory.getbasetemp()
    shared = own.parent if WORKER else own

    def once(name: str, make: Callable[[Path], object]) -> Path:
        with FileLock(shared / f"{name}.lock"):
            done = shared / f"{name}.done"
            if not done.exists():
                make(shared / name)
                done.touch()
        return shared / name

    return once


@pytest.fixture(scope="session")
def novelist() -> Path:
    """The shipped checkpoint."""
    return ROOT / "models" / "novelist"


@pytest.fixture(scope="session")
def bundle(request: pytest.FixtureRequest) -> Path:
    """A bundle of the shipped checkpoint: exported here, or given by GPT2_ONNX_TEST_BUNDLE where there is no torch."""
    if given := os.environ.get(BUNDLE_VARIABLE):
        return Path(given)
    from export.pipeline import export_bundle

    checkpoint = str(ROOT / "models" / "novelist")
    make_once = request.getfixturevalue("make_once")  # it needs filelock, which is not where there is no torch
    return make_once(
        "novelist", lambda folder: export_bundle(checkpoint, folder, precisions=("fp32", "fp16"), cache="int8")
    )


@pytest.fixture(scope="session")
def precise_bundle(make_once: Callable[..., Path]) -> Path:
    """A bundle of the shipped checkpoint in every precision; needs torch."""
    from export.pipeline import export_bundle

    checkpoint, precisions = str(ROOT / "models" / "novelist"), ("fp32", "fp16", "int8", "int4")
    return make_once(
        "novelist-precise", lambda folder: export_bundle(checkpoint, folder, precisions=precisions, cache="int8")
    )


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
