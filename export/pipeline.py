"""The export from checkpoint to bundle: load, write graphs, quantize, verify against PyTorch, put in place."""

from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from export.bundle.model_card import write_model_card
from export.bundle.signing import Signer
from export.bundle.staging import staged
from export.bundle.writer import copy_weights, make_manifest, record_file, without, write_graphs, write_settings
from export.checkpoint import find_checkpoint
from export.errors import ParityError
from export.graphs.tracing.choice import find_tracer
from export.parity.refusal import failing_lines, settle
from export.parity.report import Report, make_table
from export.parity.verify import verify_bundle
from export.precisions import write_precisions
from export.progress import Steps
from export.quantization.cache_scales import check_cache
from export.quantization.quantize import check_quantizable
from export.quantization.recipe import check_precisions, find_recipes
from runtime.bundle.bundle import open_bundle
from runtime.bundle.manifest import Manifest, read_manifest
from runtime.errors import BundleError
from runtime.files import check_name


def export_bundle(
    checkpoint: str,
    output: str | Path,
    *,
    precisions: str | Collection[str] = "fp32",
    cache: str | None = None,
    revision: str | None = None,
    adapter: str | None = None,
    force: bool = False,
    sign: str | Path | None = None,
    steps: Steps | None = None,
) -> Report:
    """Export a GPT-2 checkpoint to a verified bundle.

    Args:
        checkpoint: A folder, or a Hub id such as `gpt2`; only safetensors or weights-only pickles are read.
        output: The bundle's folder. It appears whole, after verification, or not at all.
        precisions: The precisions of decode graphs to add to float32's: any of `"fp16"`, `"int8"` and `"int4"`. One
            that costs too much on this checkpoint is left out of the bundle, and the report's `refused` says why.
        cache: `"int8"` adds graphs with int8 keys and values in each of float32, int8 and int4, for
            `runtime.load(…, cache="int8")`. They are left out in the same way if they cost over 0.1 % of perplexity.
        revision: A branch, tag or commit of a Hub id.
        adapter: A folder or a Hub id with an adapter of this checkpoint to merge, LoRA or one of its relatives; needs
            peft. One in the checkpoint's own folder is merged without being named.
        force: Replace the bundle at `output`.
        sign: A PEM file with an elliptic-curve private key that signs the bundle, for
            `runtime.load(…, public_key=…)`; needs the extra `signing`.
        steps: Where progress is shown; standard error by default.

    Returns:
        The parity report, as in the manifest. Check `refused`: the precisions that were left out, and `"int8_cache"` if
        int8 keys and values were.

    Raises:
        ExportError: The checkpoint, the output or the key cannot be used, or nothing is installed that traces.
        ParityError: The float32 graphs do not compute what PyTorch computes; nothing is left at `output`.

    Example:
        >>> export_bundle("models/novelist", "models/novelist-onnx")  # doctest: +SKIP
    """
    steps, output = steps or Steps(), Path(output).expanduser()
    asked, caching = check_precisions(precisions), check_cache(cache)
    check_name(checkpoint)
    recipes, before = find_recipes(asked), names_at(output)
    find_tracer()  # fails before the work if there is none
    signer = None if sign is None else Signer(sign)
    with staged(output, force=force, say=steps.say) as folder:
        with steps.step("Finding and checking the checkpoint"):
            source = find_checkpoint(checkpoint, revision=revision, adapter=adapter)
            check_quantizable(source, recipes)
        with steps.step("Writing config and tokenizer"):
            write_settings(source, folder)
        steps.note(source.notes)
        with steps.step("Writing the weights"):
            weights, parameters = copy_weights(source, folder)
        with steps.step("Tracing and building the graphs"):
            graphs = write_graphs(source, weights, folder)
        written = write_precisions(source, folder, asked, steps, float32=graphs, caching=caching)
        with steps.step("Hashing the files"):
            manifest = make_manifest(source, parameters, [*graphs, *written.graphs], folder)
            manifest.write(folder)
        with steps.step("Verifying against PyTorch") as progress:
            report = verify_bundle(open_bundle(folder, verify=False), source, progress, written.candidates)
        kept = settle(replace(report, refused=(*written.refused, *report.refused)), before)
        if not kept.passed:
            steps.console.print(make_table(report), *report.lines(), sep="\n")
            raise ParityError(f"{checkpoint}: the graphs do not compute what PyTorch computes; nothing was written")
        if failed := failing_lines(report):
            steps.console.print(*failed, sep="\n")
        report = kept
        finish(manifest, report, folder)
        if signer:
            signer.sign(folder, output.name)
    return report


def finish(manifest: Manifest, report: Report, folder: Path) -> None:
    """Remove what is refused from the bundle in `folder`, and write its model card and its manifest."""
    for refusal in report.refused:
        manifest = without(manifest, refusal.precision, folder)
    card = write_model_card(manifest, report, folder)
    files = {**manifest.files, card.name: record_file(card)}
    replace(manifest, files=files, parity=report.as_manifest()).write(folder)


def names_at(output: Path) -> set[str]:
    """The precisions and the kinds of graphs of the bundle at `output`, if there is one."""
    with suppress(BundleError):
        return {name for graph in read_manifest(output).graphs for name in (graph.precision, graph.kind)}
    return set()
