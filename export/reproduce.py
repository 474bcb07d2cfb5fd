"""Makes a bundle again from what its manifest records, and compares the two, file by file."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from export.checkpoint import find_checkpoint
from export.errors import ExportError
from export.parity.report import INT8_CACHE
from export.pipeline import export_bundle
from export.progress import Steps
from export.quantization.recipe import PRECISIONS
from runtime.bundle.bundle import check_hashes, open_bundle
from runtime.bundle.manifest import NAME, Manifest
from runtime.errors import command

SHOWN = 3
TOLD = ("files.", "made_with.")  # in a manifest: told by themselves


@dataclass(frozen=True)
class Reproduction:
    """How a bundle that was made again differs from the first one.

    Attributes:
        files: How many files were compared, the manifest among them.
        differing: Names of those that differ, or that one of the two lacks.
        versions: {package: (its version then, its version now)} of those that differ.
        fields: Where else the manifests differ, such as "parity.greedy.tokens".
    """

    files: int
    differing: tuple[str, ...]
    versions: dict[str, tuple[str, str]]
    fields: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        return not self.differing

    def line(self) -> str:
        """The verdict in one sentence."""
        if self.same:
            return f"all {self.files} files are the same, byte for byte"
        told = ", ".join(f"{name} {then} then, {now} now" for name, (then, now) in self.versions.items())
        why = f"; what made it differs, too: {told}" if told else "; all that made it has the same versions"
        where = f" (in {', '.join(self.fields[:SHOWN])}{', …' if self.fields[SHOWN:] else ''})" if self.fields else ""
        return f"{len(self.differing)} of {self.files} files differ: {', '.join(self.differing)}{where}{why}"


def reproduce_bundle(
    bundle: str | Path, checkpoint: str | None = None, *, adapter: str | None = None, steps: Steps | None = None
) -> Reproduction:
    """Make a bundle again, in the system's folder for temporary files, and compare it with the first one.

    What has come since, signatures and proofs on other devices, is not compared.

    Args:
        bundle: The first one's folder; all of its files are checked by their SHA-256 first.
        checkpoint: Where its checkpoint is, a folder of the same name; by default the Hub id that the manifest has.
        adapter: The same for an adapter that was merged.
        steps: Where progress is shown; standard error by default.

    Raises:
        BundleError: There is no bundle, or a file of it is not what its manifest says.
        ExportError: The checkpoint cannot be found, or has other weights.

    Example:
        >>> reproduce_bundle("models/novelist-onnx", "models/novelist").same  # doctest: +SKIP
        True
    """
    steps = steps or Steps()
    with steps.step("Checking the bundle"):
        first = open_bundle(bundle, verify=False)
        check_hashes(first, first.manifest.files)
    manifest = first.manifest
    source = checkpoint or manifest.source.id
    check_source(manifest, source, checkpoint, first.folder)
    with TemporaryDirectory() as folder:
        made = Path(folder) / first.folder.name
        export_bundle(
            source,
            made,
            precisions=asked(manifest),
            cache="int8" if INT8_CACHE in known(manifest) else None,
            revision=None if checkpoint else manifest.source.revision or None,
            adapter=adapter or (manifest.adapter.id if manifest.adapter else None),
            steps=steps,
        )
        return compare(manifest, open_bundle(made).manifest)


def check_source(manifest: Manifest, source: str, given: str | None, folder: Path) -> None:
    """Raise ExportError unless the checkpoint is there and has the weights that the bundle was made from."""
    if not (given or manifest.source.revision):
        again = command("python", "-m", "export", "CHECKPOINT", "--reproduce", folder)
        raise ExportError(
            f"the manifest knows the checkpoint's folder only by name, {source}; say where it is: {again}"
        )
    found = find_checkpoint(source, revision=None if given else manifest.source.revision).weights_sha256()
    if found != manifest.source.weights_sha256:
        raise ExportError(f"{source} has other weights than those that {folder} was made from")


def known(manifest: Manifest) -> set[str]:
    """The precisions and kinds of graphs that the bundle has, and those that were asked for and left out."""
    refused = {each["precision"] for each in manifest.parity["refused"]}
    return refused | {name for graph in manifest.graphs for name in (graph.precision, graph.kind)}


def asked(manifest: Manifest) -> list[str]:
    return [precision for precision in PRECISIONS if precision in known(manifest)]


def compare(first: Manifest, second: Manifest) -> Reproduction:
    names = sorted({*first.files, *second.files})
    differing = [name for name in names if first.files.get(name) != second.files.get(name)]
    if compared(first) != compared(second):
        differing.append(NAME)
    then, now = first.made_with, second.made_with
    versions = {
        name: (then.get(name, "none"), now.get(name, "none"))
        for name in {**then, **now}
        if then.get(name) != now.get(name)
    }
    fields = [name for name in differing_fields(compared(first), compared(second)) if not name.startswith(TOLD)]
    return Reproduction(len(names) + 1, tuple(differing), versions, tuple(fields))


def compared(manifest: Manifest) -> dict[str, Any]:
    """All of a manifest but what `verify` added to it on other machines, before it had a file of its own for that."""
    parity = {name: part for name, part in manifest.parity.items() if name != "proofs"}
    return asdict(replace(manifest, parity=parity))


def differing_fields(first: Any, second: Any, path: str = "") -> Iterator[str]:
    """Where two values from JSON differ, by the names and places that lead there."""
    if isinstance(first, dict) and isinstance(second, dict):
        pairs = [(name, first.get(name), second.get(name)) for name in {**first, **second}]
    elif isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        pairs = [(str(place), *both) for place, both in enumerate(zip(first, second, strict=True))]
    else:
        yield from [path] if first != second else []
        return
    for name, one, other in pairs:
        yield from differing_fields(one, other, f"{path}.{name}" if path else name)
