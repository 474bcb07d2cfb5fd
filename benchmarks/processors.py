"""Products of bytes on this processor, with and without asking for exact ones: what is right, and how long it takes.

    python -m benchmarks.processors BUNDLE                  # a bundle that has int8
    python -m benchmarks.processors BUNDLE --rounds 0       # what is right alone
    qemu-x86_64-static -cpu Haswell $(which python) -m benchmarks.processors BUNDLE --rounds 0     # AVX2 alone

Times are of a prompt that the prefill graph of int8 reads, the two taking turns. An emulator's say nothing.
"""

import argparse
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import runtime
from benchmarks.common.study import OneLineParser, machine, ratios, spread, timed, whole_number
from benchmarks.common.turns import take_turns
from runtime.bundle.bundle import open_bundle
from runtime.diagnosis.processor import find_processor
from runtime.ort.corners import inexact_products
from runtime.proof.rounded import prove_rounded

LONGEST = 512  # tokens


def main() -> None:
    options = parse_arguments()
    print(f"{find_processor()}\n{machine('onnxruntime')}")
    for name, asked in (("exact products asked for", True), ("not asked for", False)):
        print(name)
        with products(exact=asked):
            print(*findings(options.bundle), sep="\n")
    if options.rounds:
        print(*times(options.bundle, options.rounds), sep="\n")


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser("python -m benchmarks.processors", __doc__)
    parser.add_argument("bundle", type=Path, help="a bundle that has int8")
    parser.add_argument("--rounds", type=whole_number, default=15, help="turns of each, 0 for none (default: 15)")
    options = parser.parse_args()
    if not open_bundle(options.bundle, verify=False).manifest.has_graph("prefill", "int8"):
        parser.error(f"{options.bundle} has no int8 graph for prompts; export one with --precision int8")
    return options


@contextmanager
def products(*, exact: bool) -> Iterator[None]:
    """Sessions that are made meanwhile ask for exact products, as they do, or for nothing."""
    with patch("runtime.ort.sessions.EXACT_BYTES", "session.x64quantprecision" if exact else "gpt2_onnx.nothing"):
        yield


def findings(folder: Path) -> Iterator[str]:
    yield f"  at the corners: {'; '.join(inexact_products()) or 'exact'}"
    bundle = open_bundle(folder, verify=False)
    for precision in ("int8", "int4"):
        for proof in prove_rounded(bundle, precision):
            yield f"  {'pass' if proof.passed else 'FAIL'}  {proof}; worst: {proof.tensor}"


def times(folder: Path, rounds: int) -> Iterator[str]:
    """How long a prompt takes either way."""
    models = {}
    for name, exact in (("asked", True), ("not asked", False)):
        with products(exact=exact):
            models[name] = runtime.load(folder, precision="int8", verify=False)
            read_prompt(models[name])  # loads the prefill graph
    answers, _ = take_turns({name: partial(read_prompt, model) for name, model in models.items()}, rounds, "int8")
    for name, seconds in answers.items():
        yield f"  {name:<10} {1e3 * statistics.median(seconds):8.1f} ms, {spread([1e3 * one for one in seconds])}"
    yield f"  asked over not asked: {spread(ratios(answers['asked'], answers['not asked']))}"


def read_prompt(model: runtime.Model) -> float:
    """Seconds that it takes."""
    with model.decode_graph.sequence() as state:
        ids = range(100, 100 + min(LONGEST, model.prompting.context - 1))
        return timed(lambda: state.advance(ids))[0]


if __name__ == "__main__":
    main()
