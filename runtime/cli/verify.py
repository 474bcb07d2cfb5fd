"""`gpt2-onnx verify`: checks a bundle's files, and proves its graphs on this machine against PyTorch's numbers."""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from runtime.cli.arguments import add_model, add_public_key
from runtime.errors import BundleError, command


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "verify",
        help="check a bundle",
        description="Check every file of a bundle, then replay the greedy tokens that PyTorch gave when it was made. "
        "On the CPU, also compare the graphs of int8 and int4, prefill included, and those with int8 keys and values "
        "with PyTorch's numbers. "
        "On CUDA, add the proof to proofs.json. With a public key, check who signed the bundle, too.",
    )
    add_model(parser)
    add_public_key(parser)
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Verify the bundle; return 1 if anything fails."""
    from runtime.api import find_model
    from runtime.bundle.bundle import check_hash, open_bundle
    from runtime.bundle.signature import check_signature, find_public_key
    from runtime.diagnosis.choice import find_placement
    from runtime.ort.placement import Placement

    placement, _ = find_placement(options.device, Placement())
    key = find_public_key(options.public_key)
    bundle = open_bundle(find_model(options.model), verify=False)
    started = time.perf_counter()
    for name, record in bundle.manifest.files.items():
        check_hash(bundle.folder / name, record)
        report(f"  {name:<28} {record.size:>15,} bytes  ok")
    report(f"  {len(bundle.manifest.files)} files in {time.perf_counter() - started:.1f} s")
    if key:
        check_signature(bundle, key)
        report(f"  all of them signed by the key {key}")
    for graph in bundle.manifest.graphs:
        bundle.graph_path(graph.kind, graph.precision)
    device, wrong = device_name(placement), wrong_products(bundle, placement)
    proofs = []
    for proof in made_here(bundle, placement):
        proofs.append(proof)
        report(f"  {proof}")
    parity = bundle.manifest.parity.get("passed") is True
    passed = parity and not wrong and all(proof.passed for proof in proofs)
    if passed and placement.device == "cuda":
        note(bundle, placement, proofs)
    if options.json:
        found = {"model": str(bundle.folder), "passed": passed, "files": len(bundle.manifest.files), "parity": parity}
        found |= {"signed_by": key, "device": str(placement), "runs_on": device, "wrong_products": wrong}
        print(json.dumps({**found, "graphs": [asdict(proof) for proof in proofs]}))
    else:
        signed = [f"signed by {key}"] if key else []
        print(verdict(bundle, device, [*signed, *wrong, *map(str, proofs)], parity=parity, passed=passed))
    return 0 if passed else 1


def made_here(bundle: Any, placement: Any) -> Iterator[Any]:
    """A proof of each graph that this device serves."""
    from runtime.proof.graphs import prove, prove_lens, prove_reference

    for precision in ("fp32", "fp16"):
        if bundle.manifest.has_graph("decode", precision):
            yield prove(bundle, precision, placement)
    for precision in rounded_precisions(bundle):
        yield from made_of_rounded(bundle, precision, placement)
    yield from made_of_int8_cache(bundle, placement)
    for kind, prove_more in (("reference", prove_reference), ("lens", prove_lens)):
        if proof := prove_more(bundle, placement):
            yield proof
        else:
            report(f"  {kind} fp32: NOT PROVED, as this bundle lacks it, or PyTorch's numbers for it")


def rounded_precisions(bundle: Any) -> list[str]:
    """The bundle's precisions whose graphs round inputs to int8."""
    return [name for name in ("int8", "int4") if bundle.manifest.has_graph("decode", name)]


def made_of_rounded(bundle: Any, precision: str, placement: Any) -> Iterator[Any]:
    """A proof of each graph of int8 or int4, which only the CPU serves."""
    from runtime.proof.rounded import prove_rounded

    if placement.device != "cpu":
        words = command("python", "-m", "runtime", "verify", "--model", bundle.folder)
        report(f"  {precision}: NOT PROVED, as only the CPU serves it: {words}")
        return
    proofs = list(prove_rounded(bundle, precision))
    yield from proofs
    if not proofs:
        reason = "PyTorch's numbers for it are not in this bundle; a new export has them"
        words = f"python -m export CHECKPOINT --precision {precision} --output DIR"
        report(f"  {precision}: NOT PROVED, as {reason}: {words}")


def made_of_int8_cache(bundle: Any, placement: Any) -> Iterator[Any]:
    """A proof of each graph with int8 keys and values, which only the CPU serves, if the bundle has them."""
    from runtime.proof.rounded import prove_int8_cache

    precisions = [graph.precision for graph in bundle.manifest.graphs if graph.kind == "int8_cache"]
    proofs = [proof for each in precisions if placement.device == "cpu" for proof in prove_int8_cache(bundle, each)]
    yield from proofs
    if len(proofs) < len(precisions):
        report("  int8_cache: NOT PROVED, as only the CPU serves it, with ONNX Runtime 1.32 or newer")


def wrong_products(bundle: Any, placement: Any) -> list[str]:
    """Errors of this processor's int8 and int4 products at extreme values, if the bundle has either precision."""
    from runtime.ort.corners import inexact_products

    if placement.device != "cpu" or not rounded_precisions(bundle):
        return []
    wrong = inexact_products()
    for line in wrong or ["exact"]:
        report(f"  integer products of extreme values: {line}")
    return wrong


def device_name(placement: Any) -> str:
    """The device; for the CPU, with its model and instruction sets."""
    from runtime.diagnosis.processor import find_processor

    return f"{placement} ({find_processor()})" if placement.device == "cpu" else str(placement)


def note(bundle: Any, placement: Any, proofs: Sequence[Any]) -> None:
    """Record beside the manifest that the graphs were proved on this card."""
    from runtime import __version__
    from runtime.bundle.signature import PROOFS
    from runtime.diagnosis.machine import find_gpus, visible
    from runtime.ort.install import load_onnxruntime
    from runtime.proof.graphs import note_proof

    cards = visible(find_gpus()[0])
    card = cards[placement.index].name if placement.index < len(cards) else str(placement)
    versions = {"gpt2-onnx": __version__, "onnxruntime": load_onnxruntime().__version__}
    graphs = [asdict(proof) for proof in proofs]
    try:
        note_proof(bundle, {"card": card, "provider": placement.provider, "made_with": versions, "graphs": graphs})
    except (BundleError, OSError) as error:
        report(f"  not noted in {PROOFS}: {getattr(error, 'strerror', None) or error}")


def verdict(bundle: Any, device: str, found: Sequence[str], *, parity: bool, passed: bool) -> str:
    return (
        f"{bundle.folder} is {'verified' if passed else 'NOT verified'} on {device}: "
        f"{len(bundle.manifest.files)} files as in its manifest, {'; '.join(found)}, "
        f"parity report {'passed' if parity else 'not passed'}"
    )


def report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
