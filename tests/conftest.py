"""The bundle that most tests use: the shipped checkpoint, exported once a run."""

import os
from pathlib import Path

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
    export_bundle(str(ROOT / "models" / "novelist"), folder)
    return folder
