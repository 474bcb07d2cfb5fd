"""What int8 and int4 are held against without PyTorch: sums that tell distances, and notes that may be damaged."""

import math
from dataclasses import replace

import numpy as np
import pytest

from runtime.bundle.bundle import open_bundle
from runtime.bundle.manifest import Graph
from runtime.errors import BundleError
from runtime.proof.rounded import RoundedProof, prove_rounded, read_standards
from runtime.proof.sketch import distance, sketch

# sums


def test_sums_are_of_all_elements_with_either_sign():
    """Of powers of two, so that each sum says every sign."""
    for value in sketch([1.0, 2.0, 4.0, 8.0]):
        assert value in {a + 2 * b + 4 * c + 8 * d for a in (-1, 1) for b in (-1, 1) for c in (-1, 1) for d in (-1, 1)}
    assert len(set(sketch(2.0 ** np.arange(20)))) == 32


def test_sums_are_the_same_everywhere():
    """By MT19937 of seed 0, whose first 32 bits are 2357136044 in C++'s std::mt19937 too."""
    first = 2357136044 & 255  # the lowest byte comes first, its highest bit too
    signs = [1 if first >> (7 - n) & 1 else -1 for n in range(8)]
    assert sketch(2.0 ** np.arange(8))[0] == sum(sign * 2**n for n, sign in enumerate(signs))


@pytest.mark.parametrize("where", ["everywhere", "in one place", "in one row"])
@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0])
def test_the_distance_is_told_wherever_two_arrays_differ(where, size):
    """32 sums have a relative error of 1/sqrt(2 * 32) = an eighth; four times that is not seen by chance."""
    draw = np.random.default_rng(11)
    one = draw.normal(size=(40, 300))
    change = np.zeros_like(one)
    change[{"everywhere": ..., "in one place": (7, 250), "in one row": 3}[where]] = 1.0
    change *= size * draw.normal(size=change.shape)
    assert distance(sketch(one + change), sketch(one)) == pytest.approx(np.linalg.norm(change), rel=0.5)


def test_arrays_of_any_shape_and_kind_are_known_by_their_elements():
    array = np.arange(24, dtype=np.float32)
    assert sketch(array.reshape(2, 3, 4)) == sketch(array.astype(np.float64)) == sketch(array.tolist())
    assert distance(sketch(array), sketch(array)) == 0


# the verdict


@pytest.mark.parametrize(
    ("error", "passed"), [(0.0, True), (1.02, True), (2.0, True), (2.01, False), (math.nan, False), (math.inf, False)]
)
def test_what_passes(error, passed):
    assert RoundedProof("int8", "prefill", 160, "logits", error).passed is passed


def test_what_it_says():
    assert str(RoundedProof("int8", "prefill", 160, "logits", 1.234)) == (
        "prefill int8: keys, values and logits of 160 tokens as PyTorch's but for rounding, "
        "1.23 times what that costs PyTorch (at most 2)"
    )


# the notes


@pytest.fixture
def noted(bundle):
    """The bundle as if it had int8, by the float32 decode graph, and this noted of it."""
    opened = open_bundle(bundle, verify=False)

    def make(do=len):
        names = [*opened.manifest.architecture.cache_names("present"), "logits"]
        content = {
            "precision": "int8",
            "token_ids": [5, 6, 7],
            "sketches": {name: [1.0] * 32 for name in names},
            "pytorch_errors": {"decode": dict.fromkeys(names, 0.5)},
        }
        parity = {**opened.manifest.parity, "rounded": [content]}
        do(content)
        others = [graph for graph in opened.manifest.graphs if graph.precision != "int8"]
        graphs = (*others, Graph("onnx/decode.onnx", "decode", "int8"))
        return replace(opened, manifest=replace(opened.manifest, parity=parity, graphs=graphs))

    return make


def test_notes_are_read(noted):
    bundle = noted()
    (standard,) = read_standards(bundle.manifest)
    assert (standard.precision, standard.token_ids) == ("int8", [5, 6, 7])
    (proof,) = prove_rounded(bundle, "int8")
    assert (proof.graph, proof.tokens, proof.passed) == ("decode", 3, False)  # as the sums are made up
    assert list(prove_rounded(bundle, "int4")) == []


def test_no_error_that_is_noted_lets_other_numbers_pass(noted):
    """Whoever writes the manifest writes what PyTorch's rounding costs, too; the runtime knows how much that can be."""

    def boast(content):
        content["pytorch_errors"]["decode"] = dict.fromkeys(content["pytorch_errors"]["decode"], 1e300)

    (proof,) = prove_rounded(noted(boast), "int8")
    assert not proof.passed


def test_a_bundle_without_notes_has_no_proof(bundle):
    opened = open_bundle(bundle, verify=False)
    parity = {name: content for name, content in opened.manifest.parity.items() if name != "rounded"}
    before = replace(opened, manifest=replace(opened.manifest, parity=parity))
    assert read_standards(before.manifest) == [] == list(prove_rounded(before, "int8"))


DAMAGE = {
    "no precision": lambda content: content.pop("precision"),
    "no text": lambda content: content.update(token_ids=[]),
    "one token": lambda content: content.update(token_ids=[5]),
    "too many tokens": lambda content: content.update(token_ids=[5] * 100_000),
    "an id beyond the vocabulary": lambda content: content.update(token_ids=[5, 10**9]),
    "an id below zero": lambda content: content.update(token_ids=[5, -1]),
    "text for ids": lambda content: content.update(token_ids="some"),
    "a tensor missing": lambda content: content["sketches"].pop("present.0.key"),
    "a tensor too many": lambda content: content["sketches"].update(other=[1.0] * 32),
    "a sum missing": lambda content: content["sketches"]["logits"].pop(),
    "a sum that is no number": lambda content: content["sketches"].update(logits=[math.nan] * 32),
    "a sum that is none": lambda content: content["sketches"].update(logits=[None] * 32),
    "no errors": lambda content: content.update(pytorch_errors={}),
    "an error missing": lambda content: content["pytorch_errors"]["decode"].pop("logits"),
    "an error of nothing": lambda content: content["pytorch_errors"]["decode"].update(logits=0.0),
    "an endless error": lambda content: content["pytorch_errors"]["decode"].update(logits=math.inf),
    "a graph that is not there": lambda content: content["pytorch_errors"].update(
        prefill=content["pytorch_errors"]["decode"]
    ),
    "errors in a list": lambda content: content.update(pytorch_errors=[1]),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_notes_are_the_bundles_fault(noted, refusal, damage):
    message = refusal(BundleError, lambda: list(prove_rounded(noted(damage), "int8")))
    assert message.startswith("parity.rounded of manifest.json is damaged (")
    assert message.endswith("); export the bundle again")


@pytest.mark.parametrize("value", [3, None, [3], {"a": 1}, "some"], ids=str)
def test_notes_that_are_none_are_the_bundles_fault(bundle, refusal, value):
    opened = open_bundle(bundle, verify=False)
    manifest = replace(opened.manifest, parity={**opened.manifest.parity, "rounded": value})
    assert "parity.rounded of manifest.json is damaged" in refusal(BundleError, read_standards, manifest)
