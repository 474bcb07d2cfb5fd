"""A precision that there is not, or that a bundle lacks: one line that says what there is."""

import json

import pytest

import runtime
from runtime.errors import BundleError

OPTIONS = "precision must be one of 'fp32', 'fp16', 'int8', 'int4', got "
LACKS = "this bundle has no decode graph in {0}; it has: reference fp32, decode fp32, "


@pytest.mark.parametrize("precision", ["int3", "fp64", "INT8", "", " int8", "fp32 ", 8, True, b"int8", ["int8"]])
def test_an_unknown_precision_is_refused_before_anything_is_read(refusal, precision):
    for call in (runtime.load, lambda path, **options: runtime.complete("x", model=path, **options)):
        assert refusal(ValueError, call, "no such folder", precision=precision) == f"{OPTIONS}{precision!r}"


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_precision_that_a_bundle_lacks_is_refused_with_what_it_has_and_how_to_add_it(refusal, bundle, precision):
    for call in (runtime.load, lambda path, **options: runtime.complete("x", model=path, **options)):
        message = refusal(BundleError, call, bundle, precision=precision)
        assert message.startswith(LACKS.format(precision))
        assert message.endswith(f"; add it: python -m export --add {precision} --output DIR")


def test_a_precision_that_was_refused_leaves_the_model_usable(refusal, bundle, probe):
    refusal(BundleError, runtime.complete, probe.prompt, model=bundle, precision="int4")
    assert runtime.complete(probe.prompt, model=bundle, max_new_tokens=6).token_ids == probe.token_ids[:6]


def test_float32_may_be_said(bundle, probe):
    model = runtime.load(bundle, precision="fp32", verify=False)
    assert model.precision == "fp32"
    assert model.complete(probe.prompt, max_new_tokens=6).token_ids == probe.token_ids[:6]
    assert runtime.complete(probe.prompt, model=bundle, precision="fp32", max_new_tokens=6).text == model.decode(
        probe.token_ids[:6]
    )


@pytest.mark.parametrize("command", ["complete", "score", "batch"])
@pytest.mark.parametrize(
    ("precision", "code", "message"),
    [("int3", 2, f"{OPTIONS}'int3'"), ("int8", 1, LACKS.format("int8")), ("int4", 1, LACKS.format("int4"))],
)
def test_a_command_says_so_in_one_line(cli_here, bundle, tmp_path, command, precision, code, message):
    given, output = tmp_path / "given", tmp_path / "out.jsonl"
    given.write_text(json.dumps({"prompt": "It was"}) + "\n")
    arguments = {"complete": ["It was"], "score": [str(given)], "batch": [str(given), "--output", str(output)]}
    done = cli_here(command, *arguments[command], "--model", str(bundle), "--precision", precision)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(f"gpt2-onnx: {message}")
    assert done.stderr.count("\n") == 1
    assert not output.exists()


@pytest.mark.parametrize("command", ["complete", "score", "batch"])
def test_help_names_the_precisions(cli_here, command):
    done = cli_here(command, "--help")
    assert done.returncode == 0
    assert "fp32, fp16, int8 or int4" in " ".join(done.stdout.split())
