"""Where the locale has no more than ASCII: texts are UTF-8 all the same, and a name that cannot be used is named."""

import json
import os
import sys
from pathlib import Path

import pytest

import runtime
from runtime import BundleError
from runtime.files import check_name

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": None}
ADVICE = "in this locale names are ASCII; choose another: export LC_ALL=C.UTF-8 (or PYTHONUTF8=1)"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="names are Unicode there, whatever the locale")


@pytest.fixture
def accented(bundle, tmp_path):
    """The bundle under a name that is not ASCII."""
    (tmp_path / "café").symlink_to(bundle)
    return tmp_path / "café"


@pytest.mark.parametrize(
    "command",
    [["complete", "x"], ["score", "-"], ["inspect", "x"], ["summary"], ["verify"]],
    ids=lambda words: words[0],
)
def test_a_model_whose_name_is_not_ascii_is_named_with_what_to_do(cli, accented, command):
    done = cli(*command, "--model", str(accented), env=ASCII)
    quoted = f"$'{accented.parent}/caf\\xc3\\xa9'"
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"gpt2-onnx: {quoted} cannot be used: {ADVICE}\n"


def test_a_model_of_the_environment_too(cli, accented):
    done = cli("complete", "x", env={**ASCII, "GPT2_ONNX_MODEL": str(accented)})
    assert done.returncode == 1
    assert done.stderr.endswith(f"cannot be used: {ADVICE}\n")


def test_and_in_the_library_where_the_name_is_a_string_of_the_program(run_python, accented):
    """Python cannot even look whether it is there."""
    script = (
        "import runtime, sys\n"
        "try: runtime.load(sys.argv[1] + '/caf\\u00e9')\n"
        "except runtime.BundleError as error: print(ascii(str(error)))"
    )
    done = run_python("-c", script, str(accented.parent), env=ASCII)
    assert ascii("café")[1:-1] in done.stdout, done.stderr
    assert ADVICE in done.stdout


@pytest.mark.parametrize("change", [{"LC_ALL": "C.UTF-8"}, {"PYTHONUTF8": "1"}], ids=str)
def test_the_advice_is_right(cli, accented, change):
    done = cli("complete", "x", "--model", str(accented), "--max-new-tokens", "1", env={**ASCII, **change})
    assert (done.returncode, done.stderr) == (0, "")


def test_a_locale_in_which_the_name_is_other_characters(monkeypatch, refusal):
    """In Latin-1 each byte is some character, and ONNX Runtime would look for a file of another name."""
    monkeypatch.setattr(os, "fsencode", lambda name: name.encode("latin-1"))
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "iso8859-1")
    message = refusal(BundleError, check_name, "caf\u00c3\u00a9")
    assert "in this locale names are ISO8859-1; choose another: export LC_ALL=C.UTF-8" in message
    check_name("cafe")


def test_a_name_that_is_not_utf8_in_any_locale(tmp_path, bundle, refusal):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    try:
        Path(name).symlink_to(bundle)
    except OSError:
        pytest.skip("this file system takes no such name")
    message = refusal(BundleError, runtime.load, name)
    assert message == f"$'{tmp_path}/caf\\xe9' cannot be used: its name is not UTF-8; rename it"


def test_a_prompt_and_a_stop_are_utf8(cli, bundle, vocabulary):
    prompt = "“Très bien,” said he — 😀"
    options = ["--model", str(bundle), "--max-new-tokens", "4", "--json"]
    done = cli("complete", prompt, "--stop", "é", *options, env=ASCII)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["prompt_tokens"] == len(vocabulary.encode(prompt).ids)


def test_a_text_to_inspect_is_utf8(cli, bundle, vocabulary):
    done = cli("inspect", "Très bien", "--model", str(bundle), "--json", env=ASCII)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["token_ids"] == vocabulary.encode("Très bien").ids


def test_files_that_python_alone_reads_and_writes(cli, bundle, tmp_path):
    """Their names may be anything."""
    (tmp_path / "prompts é.jsonl").write_bytes(b'{"prompt": "It was", "max_new_tokens": 1}\r\n')
    (tmp_path / "text é.txt").write_text("It was a bright cold day", encoding="utf-8")
    model = ["--model", str(bundle)]
    output = ["--output", str(tmp_path / "out é.jsonl")]
    for command in (
        ["batch", str(tmp_path / "prompts é.jsonl"), *output, *model],
        ["score", str(tmp_path / "text é.txt"), "--json", *model],
        ["inspect", "x", "--html", str(tmp_path / "page é.html"), *model],
    ):
        done = cli(*command, env=ASCII)
        assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out é.jsonl").read_text().splitlines()) == 1
    assert (tmp_path / "page é.html").exists()
