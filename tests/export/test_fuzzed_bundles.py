"""Mutated bundles with right hashes are refused in one line, or served; see bundle_fuzzer.py for a longer run."""

import collections
import os
import sys

import pytest
from bundle_fuzzer import UNREAD, fuzz
from tiny_vocabulary import make_tiny

from export.pipeline import export_bundle

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and /proc are Linux's")
PRECISIONS = ("fp32", "fp16", "int8", "int4")
# (seed, number) that once failed; a mutation depends on the bundle's bytes, so test_hostile_bundles.py has what it was
FOUND: list[tuple[int, int]] = []


@pytest.fixture(scope="module")
def tiny_bundle(make_once):
    def make(folder):
        folder.mkdir()
        export_bundle(str(make_tiny(folder / "checkpoint")), folder / "bundle", precisions=PRECISIONS, cache="int8")

    return make_once("fuzzed", make) / "bundle"


def check(bundle, seed, numbers):
    outcomes = list(fuzz(bundle, seed, numbers, processes=len(os.sched_getaffinity(0))))
    assert sorted(outcome.number for outcome in outcomes) == list(numbers)
    assert [outcome for outcome in outcomes if outcome.problem] == []
    return outcomes


@pytest.mark.parametrize(("seed", "number"), FOUND)
def test_what_once_failed(tiny_bundle, seed, number):
    check(tiny_bundle, seed, range(number, number + 1))


def test_some_mutations_end_well_and_each_way_is_taken(tiny_bundle):
    outcomes = check(tiny_bundle, 0, range(400))
    endings = collections.Counter(outcome.ending for outcome in outcomes)
    assert endings["refused"] > 100
    assert endings["equal"] > 50
    assert endings["other"] > 1
    assert {outcome.ending for outcome in outcomes if outcome.target in UNREAD} <= {"equal", "refused"}
    assert len({outcome.target for outcome in outcomes}) > 20


def test_without_the_checks_mutations_would_fail(tiny_bundle, monkeypatch):
    """Or the others here would find nothing."""
    monkeypatch.setattr("runtime.bundle.bundle.check_graph", lambda *_: None)
    monkeypatch.setattr("runtime.text.tokenizer.check_tokenizer", lambda *_: None)
    outcomes = list(fuzz(tiny_bundle, 0, range(300), processes=len(os.sched_getaffinity(0)), hangs=5.0))
    assert {outcome.ending for outcome in outcomes if outcome.problem} & {"died", "raised", "other", "equal"}


@pytest.mark.wide
@pytest.mark.all_cpus
def test_ten_thousand_mutations_end_well(tiny_bundle):
    check(tiny_bundle, 1, range(10_000))
