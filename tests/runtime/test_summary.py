"""What a model is made of: figures that everybody knows of GPT-2, and the command."""

import json
from dataclasses import replace

import pytest

import runtime
from runtime.bundle.architecture import Architecture
from runtime.inside.summary import summarize

SMALL = Architecture(
    n_layer=12,
    n_head=12,
    n_embd=768,
    n_inner=3072,
    n_positions=1024,
    vocab_size=50257,
    activation_function="gelu_new",
    tie_word_embeddings=True,
    parameters=124_439_808,
)


@pytest.mark.parametrize(
    ("module", "parameters"),
    [
        ("transformer.wte", 38_597_376),
        ("transformer.wpe", 786_432),
        ("transformer.h.0.attn", 2_362_368),
        ("transformer.h.11.attn.c_attn", 1_771_776),
        ("transformer.h.1.attn.c_proj", 590_592),
        ("transformer.h.3.mlp", 4_722_432),
        ("transformer.ln_f", 1_536),
        ("lm_head", 0),
        ("transformer", 124_439_808),
    ],
)
def test_the_released_gpt2_has_these(module, parameters):
    assert summarize(SMALL).count(module) == parameters


@pytest.mark.parametrize(
    ("sizes", "total"),
    [
        ((12, 768), 124_439_808),
        ((24, 1024), 354_823_168),
        ((36, 1280), 774_030_080),
        ((48, 1600), 1_557_611_200),
    ],
)
def test_the_four_released_sizes_have_these_in_all(sizes, total):
    layers, width = sizes
    assert summarize(replace(SMALL, n_layer=layers, n_embd=width, n_inner=4 * width)).total == total


def test_an_untied_head_counts():
    assert summarize(replace(SMALL, tie_word_embeddings=False)).total == 124_439_808 + 38_597_376


def test_a_module_that_is_not_there_is_named():
    for name in ("transformer.h.12", "h.0", "transformer.h.1.att", ""):
        with pytest.raises(KeyError, match=repr(name)):
            summarize(SMALL).count(name)


def test_one_block_stands_for_all_in_the_table():
    lines = str(summarize(SMALL)).splitlines()
    assert lines[0].startswith("GPT-2 of 12 layers, 12 heads of 64, width 768, context 1,024, vocabulary 50,257")
    assert [line.split() for line in lines[2:]] == [
        ["wte", "38,597,376"],
        ["wpe", "786,432"],
        ["h.0", "to", "h.11,", "each", "7,087,872"],
        ["ln_1", "1,536"],
        ["attn", "2,362,368"],
        ["c_attn", "1,771,776"],
        ["c_proj", "590,592"],
        ["ln_2", "1,536"],
        ["mlp", "4,722,432"],
        ["c_fc", "2,362,368"],
        ["c_proj", "2,360,064"],
        ["ln_f", "1,536"],
        ["lm_head", "as", "wte"],
        ["total", "124,439,808"],
    ]
    assert len({len(line) for line in lines[2:]}) == 1
    assert "h.0 " in str(summarize(replace(SMALL, n_layer=1)))


def test_a_loaded_model_says_it(model, manifest):
    assert model.summary().total == manifest["architecture"]["parameters"]


def test_the_command_prints_the_table_and_json(cli_here, bundle, manifest):
    done = cli_here("summary", "--model", str(bundle))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].split() == ["total", f"{manifest['architecture']['parameters']:,}"]
    found = json.loads(cli_here("summary", "--model", str(bundle), "--json").stdout)
    assert found["architecture"] == manifest["architecture"]
    assert sum(found["parameters"].values()) == found["total"] == manifest["architecture"]["parameters"]


def test_the_command_without_a_bundle_is_one_line(cli_here, tmp_path):
    done = cli_here("summary", "--model", str(tmp_path / "none"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


def test_it_is_of_the_package(model):
    assert isinstance(model.summary(), runtime.inside.summary.Summary)
