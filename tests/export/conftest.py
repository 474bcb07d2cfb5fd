"""What the export's tests share: a tiny checkpoint, and copies of it to be changed."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def original(tmp_path_factory, seeded_checkpoint) -> Path:
    """A tiny seeded checkpoint, to be left as it is."""
    return seeded_checkpoint(tmp_path_factory.mktemp("original") / "gpt2-tiny")


@pytest.fixture
def checkpoint(original, tmp_path) -> Path:
    """A copy of it, to be changed."""
    return shutil.copytree(original, tmp_path / "checkpoint")
