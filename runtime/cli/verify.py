"""`gpt2-onnx verify`: is this bundle whole, and does it say here what PyTorch said where it was made?"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from runtime.cli.arguments import add_model


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "verify",
        help="check a bundle",
        description="Check every file of a bundle, then replay the greedy tokens that PyTorch gave when it was made.",
    )
    add_model(parser)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Exit with 1 if anything is not as it was."""
    from runtime.bundle import check_hash, open_bundle
    from runtime.loading import find_model

    bundle = open_bundle(find_model(options.model), verify=False)
    started = time.perf_counter()
    for name, record in bundle.manifest.files.items():
        check_hash(bundle.folder / name, record)
        report(f"  {name:<28} {record.size:>15,} bytes  ok")
    report(f"  {len(bundle.manifest.files)} files in {time.perf_counter() - started:.1f} s")
    for graph in bundle.manifest.graphs:
        bundle.graph_path(graph.kind, graph.precision)
    tokens, replayed = replay(bundle)
    parity = bundle.manifest.parity.get("passed") is True
    passed = parity and 0 < tokens == replayed
    findings = {"files": len(bundle.manifest.files), "tokens": tokens, "replayed": replayed, "parity": parity}
    show({"passed": passed, **findings}, as_json=options.json, model=str(bundle.folder))
    return 0 if passed else 1


def replay(bundle: Any) -> tuple[int, int]:
    """(greedy tokens in the manifest, how many of them are said again before the first that differs)."""
    from runtime.decode_session import open_decode_session
    from runtime.replay import greedy_tokens

    probes = bundle.manifest.probes()
    session = open_decode_session(bundle)
    total = equal = 0
    for probe in probes:
        total += len(probe.token_ids)
        equal += agreement(greedy_tokens(session, probe.prompt_ids, len(probe.token_ids)), probe.token_ids)
        report(f"  replayed {equal} of {total} greedy tokens")
    return total, equal


def agreement(tokens: Sequence[int], expected: Sequence[int]) -> int:
    """How many tokens are equal before the first that is not."""
    differing = [n for n, (a, b) in enumerate(zip(tokens, expected, strict=True)) if a != b]
    return differing[0] if differing else len(expected)


def show(findings: Mapping[str, Any], *, as_json: bool, model: str) -> None:
    if as_json:
        print(json.dumps({"model": model, **findings}))
        return
    verdict = "verified" if findings["passed"] else "NOT verified"
    print(
        f"{model} is {verdict}: {findings['files']} files as in its manifest, "
        f"{findings['replayed']} of {findings['tokens']} greedy tokens as PyTorch's, "
        f"parity report {'passed' if findings['parity'] else 'not passed'}"
    )


def report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
