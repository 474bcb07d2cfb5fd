"""A bundle appears whole or not at all, and nothing that is not a bundle is ever replaced."""

import pytest

from export.bundle.staging import staged
from export.errors import ExportError


def fill(folder, content="new"):
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(content)


def test_the_folder_is_renamed_at_the_end(tmp_path):
    output = tmp_path / "models" / "gpt2"
    with staged(output, force=False) as work:
        fill(work)
        assert not output.exists()
    assert (output / "manifest.json").read_text() == "new"
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_export_leaves_nothing(tmp_path, error):
    def export():
        with staged(tmp_path / "gpt2", force=False) as work:
            fill(work)
            raise error

    with pytest.raises(error):
        export()
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_replacement_leaves_the_old_bundle(tmp_path):
    fill(tmp_path / "gpt2", "old")
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "gpt2", force=True):
        raise KeyboardInterrupt
    assert (tmp_path / "gpt2" / "manifest.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "gpt2"]


def test_a_bundle_is_replaced_with_force_alone(tmp_path):
    fill(tmp_path / "gpt2", "old")
    with pytest.raises(ExportError, match="exists; choose another output, or force its replacement"):
        staged(tmp_path / "gpt2", force=False).__enter__()
    with staged(tmp_path / "gpt2", force=True) as work:
        fill(work)
    assert (tmp_path / "gpt2" / "manifest.json").read_text() == "new"
    assert list(tmp_path.iterdir()) == [tmp_path / "gpt2"]


def test_what_is_not_a_bundle_is_not_replaced_even_with_force(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("ten years")
    (tmp_path / "file").write_text("")
    for name in ("home", "file"):
        with pytest.raises(ExportError, match="exists and is not a bundle"):
            staged(tmp_path / name, force=True).__enter__()
    assert (tmp_path / "home" / "thesis.txt").exists()


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "gpt2").mkdir()
    with staged(tmp_path / "gpt2", force=False) as work:
        fill(work)
    assert (tmp_path / "gpt2" / "manifest.json").exists()


def test_what_was_put_there_meanwhile_is_kept(tmp_path):
    def export():
        with staged(tmp_path / "gpt2", force=False) as work:
            fill(work)
            fill(tmp_path / "gpt2", "somebody else's")

    with pytest.raises(ExportError, match="exists"):
        export()
    assert (tmp_path / "gpt2" / "manifest.json").read_text() == "somebody else's"
    assert list(tmp_path.iterdir()) == [tmp_path / "gpt2"]


def test_a_link_to_a_bundle_stays_a_link(tmp_path):
    fill(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with staged(tmp_path / "link", force=True) as work:
        fill(work)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "manifest.json").read_text() == "new"
    assert sorted(tmp_path.iterdir()) == [tmp_path / "link", tmp_path / "real"]
