"""Adds precisions to a bundle: writes their graphs beside those that are there, and judges them alone."""

import os
import shutil
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from export.bundle.as_checkpoint import write_checkpoint
from export.bundle.model_card import NAME as CARD
from export.bundle.placing import files_in
from export.bundle.signing import Signer
from export.bundle.staging import staged
from export.bundle.writer import record_files, versions
from export.errors import ExportError
from export.parity.recorded import read_report
from export.parity.refusal import cache_refusals, failing_lines, leave_out, settle
from export.parity.report import INT8_CACHE, Report
from export.parity.verify import verify_bundle
from export.pipeline import finish
from export.precisions import write_precisions
from export.progress import Steps
from export.quantization.quantize import check_quantizable
from export.quantization.recipe import PRECISIONS, check_precisions, find_recipes
from runtime.bundle.bundle import Bundle, check_hashes, open_bundle
from runtime.bundle.manifest import NAME, Graph, Manifest
from runtime.bundle.signature import SIGNATURE

WRITTEN_ANEW = (NAME, CARD, SIGNATURE)


def add_precisions(
    bundle: str | Path,
    precisions: str | Collection[str],
    *,
    sign: str | Path | None = None,
    steps: Steps | None = None,
) -> Report:
    """Add precisions to a bundle, from its own float32 weights: the checkpoint is not needed.

    The graphs that are there are neither changed nor judged again; all files are checked by their SHA-256 first. A
    bundle with int8 keys and values gets them in the new precisions, too. In the same environment the result is what
    `export_bundle` makes with all precisions at once, byte for byte.

    Args:
        bundle: Its folder, which is replaced whole, after verification, or not at all.
        precisions: Any of `"fp16"`, `"int8"` and `"int4"` that it does not have.
        sign: A private key, as in `export_bundle`; a bundle that is signed needs the same one again.
        steps: Where progress is shown; standard error by default.

    Returns:
        The report of the whole bundle. Check `refused`: a precision that costs too much is left out.

    Raises:
        BundleError: There is no bundle, or a file of it is not what its manifest says.
        ExportError: It has a precision already, cannot be replaced, or was replaced meanwhile.

    Example:
        >>> add_precisions("models/novelist-onnx", "int4").precisions()  # doctest: +SKIP
        ['fp32', 'int4']
    """
    steps, output, asked = steps or Steps(), Path(bundle).expanduser(), check_precisions(precisions)
    signer = None if sign is None else Signer(sign)
    with steps.step("Checking the bundle"):
        first = open_bundle(output, verify=False)  # all files are checked below
        check_new(first, asked)
        check_signed(first, signer)
        check_hashes(first, first.manifest.files)
        known = read_report(first.manifest)
    known = replace(known, refused=tuple(refusal for refusal in known.refused if refusal.precision not in asked))
    with staged(output, force=True, say=steps.say) as folder:
        with steps.step("Reading the weights out of the bundle"):
            checkpoint = write_checkpoint(first, folder.parent / "checkpoint")
            check_quantizable(checkpoint, find_recipes(asked))
            carry(first.folder, folder)
        caching = any(graph.kind == INT8_CACHE for graph in first.manifest.graphs)
        written = write_precisions(checkpoint, folder, asked, steps, float32=(), caching=caching)
        with steps.step("Hashing the files"):
            manifest = extended(first, written.graphs, asked, folder)
            manifest.write(folder)
        with steps.step("Verifying against PyTorch") as progress:
            report = verify_bundle(open_bundle(folder, verify=False), checkpoint, progress, written.candidates, known)
        report = replace(report, refused=(*written.refused, *report.refused))
        if failed := failing_lines(report):
            steps.console.print(*failed, sep="\n")
        report = leave_out(report, [*report.refused, *cache_refusals(report, asked)])
        report = in_order(settle(report))
        finish(manifest, report, folder)
        if signer:
            signer.sign(folder, output.name)
        if first.has_successor():
            raise ExportError(f"{output} was replaced meanwhile and is left as it is; add to it again")
    return report


def check_new(bundle: Bundle, asked: Iterable[str]) -> None:
    there = dict.fromkeys(graph.precision for graph in bundle.manifest.graphs)
    for precision in asked:
        if precision in there:
            raise ExportError(f"{bundle.folder} has {precision} already; it has: {', '.join(there)}")


def check_signed(bundle: Bundle, signer: Signer | None) -> None:
    """A bundle that is signed stays so, by the same key: what somebody else changed must not get its signature."""
    if not (bundle.folder / SIGNATURE).exists():
        return
    if signer is None:
        raise ExportError(f"{bundle.folder} is signed, and what is added must be, too: add --sign KEY")
    signer.check(bundle)


def carry(source: Path, target: Path) -> None:
    """Link all files of a bundle into another folder but those that are written anew; copy what cannot be linked."""
    for name in files_in(source):
        if name not in WRITTEN_ANEW:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            real = (source / name).resolve()
            try:
                os.link(real, target / name)
            except OSError:  # another file system, or one without links
                shutil.copyfile(real, target / name)


def extended(bundle: Bundle, graphs: Iterable[Graph], asked: Iterable[str], folder: Path) -> Manifest:
    """The manifest of `bundle` with more graphs; `folder` has all files."""
    manifest, now = bundle.manifest, versions()
    others = {name: version for name, version in now.items() if manifest.made_with.get(name) != version}
    made_with = dict.fromkeys(asked, ", ".join(f"{name} {version}" for name, version in others.items()))
    unlisted = set(files_in(bundle.folder)) - manifest.files.keys()
    return replace(
        manifest,
        graphs=tuple(sorted((*manifest.graphs, *graphs), key=lambda graph: rank(graph.precision, graph.kind))),
        files={name: record for name, record in record_files(folder).items() if name not in unlisted},
        made_with={**manifest.made_with, **(made_with if others else {})},
    )


def rank(precision: str, kind: str) -> tuple[bool, int]:
    """Where an export of all precisions at once has it: int8 keys and values come after all precisions."""
    return kind == INT8_CACHE, PRECISIONS.index(precision)


def in_order(report: Report) -> Report:
    """The report, its parts in the order in which an export of all precisions at once has them."""
    return replace(
        report,
        rows=tuple(sorted(report.rows, key=lambda row: rank(row.precision, row.refuses))),
        qualities=tuple(sorted(report.qualities, key=lambda quality: PRECISIONS.index(quality.precision))),
        rounded=tuple(sorted(report.rounded, key=lambda standard: PRECISIONS.index(standard.precision))),
        caches=tuple(sorted(report.caches, key=lambda cache: PRECISIONS.index(cache.weights))),
        rounded_caches=tuple(sorted(report.rounded_caches, key=lambda one: PRECISIONS.index(one.precision))),
        known_cases=tuple(sorted(report.cases(), key=length_if_rounded)),
    )


def length_if_rounded(case: str) -> int:
    """The tokens of a case that only graphs have that round: those come last, shorter texts first."""
    return int(case.split()[0]) if case.endswith("inputs rounded") else 0
