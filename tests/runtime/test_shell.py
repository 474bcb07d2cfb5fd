"""A command in a message can be pasted: bash reads from it the very words that were meant."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import runtime
from runtime.errors import command

NAMES = [
    "my bundle",
    "two  spaces",
    'my bundle\'s "x"',
    "-my bundle",
    "--force",
    "~root",
    "$HOME `id` $(id) !! & | ; * ? [a] {a,b} #",
    "back\\slash",
    "first\nsecond\ttab\r\x1b[31m",
    "it's\n'quoted\\'",
    "café 😀",
    "\u202ereversed",
]
NOT_UTF8 = os.fsdecode(b"caf\xe9")  # a bundle cannot have such a name, other files can
bash = shutil.which("bash")
needs_bash = pytest.mark.skipif(bash is None, reason="no bash here")


def pasted(line):
    """The words after `python` or `mkdir` as bash reads them."""
    show = 'show() { printf \'%s\\0\' "$@"; }; python() { show "$@"; }; mkdir() { show "$@"; }; '
    done = subprocess.run([bash, "-c", show + line], stdout=subprocess.PIPE, check=True)
    return [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]


@needs_bash
@pytest.mark.parametrize("name", [*NAMES, NOT_UTF8], ids=ascii)
def test_words_come_back(name):
    line = command("python", "-m", "runtime", "verify", "--model", Path(name))
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    *words, model = pasted(line)
    assert words == ["-m", "runtime", "verify", "--model"]
    assert Path(model) == Path(name)
    assert not model.startswith("-")
    assert pasted(command("python", name)) == [name]


def test_what_needs_no_quotes_has_none():
    assert command("python", "-m", "export", Path("models/gpt2")) == "python -m export models/gpt2"


@needs_bash
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_model_that_is_not_there(cli_here, tmp_path, name):
    done = cli_here("verify", "--model", str(tmp_path / name))
    assert done.stderr.count("\n") == 1
    line = re.search(r"make one: (python .*)", done.stderr)[1]
    assert pasted(line) == ["-m", "export", "CHECKPOINT", "--output", str(tmp_path / name)]


@needs_bash
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_checkpoint_instead_of_its_bundle(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text("{}")
    with pytest.raises(runtime.BundleError) as caught:
        runtime.load(tmp_path / name)
    line = str(caught.value).partition("make one: ")[2]
    assert pasted(line) == ["-m", "export", str(tmp_path / name), "--output", "DIR"]


@needs_bash
@pytest.mark.parametrize("name", [*NAMES, NOT_UTF8], ids=ascii)
def test_a_folder_to_make(cli_here, tmp_path, name):
    done = cli_here("inspect", "x", "--html", str(tmp_path / name / "page.html"))
    assert done.stderr.count("\n") == 1
    assert pasted(done.stderr.partition("make it: ")[2]) == ["-p", str(tmp_path / name)]
