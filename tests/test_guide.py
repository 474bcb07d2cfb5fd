"""The guide's examples run as they stand, on a bundle of the shipped checkpoint."""

import doctest
from pathlib import Path

GUIDE = Path(__file__).parent.parent / "docs" / "generating.md"


def test_every_example_of_the_guide_says_what_the_guide_says(bundle, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "novelist-onnx").symlink_to(bundle, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testfile(str(GUIDE), module_relative=False, encoding="utf-8")
    assert tried > 15
    assert failed == 0, "see the output above"
