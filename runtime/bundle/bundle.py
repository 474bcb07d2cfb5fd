"""A bundle on disk: found, checked against its manifest, and its weights hashed while they load."""

import hashlib
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from runtime.bundle.architecture import Architecture
from runtime.bundle.external_data import external_data_locations
from runtime.bundle.graph_check import check_graph
from runtime.bundle.json_files import read_object, shown
from runtime.bundle.manifest import NAME, WEIGHTS_SUFFIX, FileRecord, Kind, Manifest, are_ids, read_manifest
from runtime.bundle.place import Place
from runtime.bundle.set_aside import put_back, set_aside
from runtime.errors import BundleError, command
from runtime.files import Mark, check_name, find_mark

KINDS = get_args(Kind)
GENERATING = {"decode", "prefill", "ragged", "ragged_prefill", "int8_cache"}  # the kinds of graphs that generate


@dataclass(frozen=True, slots=True)
class Bundle:
    """A folder whose manifest was read and whose files are all there.

    Attributes:
        place: Its real path, so that a change of the current folder or of a link does not lead elsewhere.
        marks: The marks of its files and of the manifest when the bundle was opened.
    """

    place: Place
    manifest: Manifest
    marks: Mapping[str, Mark] = field(default_factory=dict, compare=False, repr=False)

    @property
    def folder(self) -> Path:
        """How its files are reached: its real path, but for while it is loaded."""
        return self.place.path

    def path(self, name: str) -> Path:
        """A file of the bundle; BundleError unless the manifest lists it."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.folder / NAME} does not list {name}, so nobody vouches for it; export it again")
        return self.folder / name

    def graph_path(self, kind: Kind, precision: str = "fp32") -> Path:
        """The file of a graph, after checking what it runs, and where it reads its weights from."""
        graph = self.manifest.graph(kind, precision)
        external_files(self.folder, graph.path, self.manifest)
        path = self.folder / graph.path
        if kind in KINDS:  # those of a newer bundle are nothing that runs here
            mark = mark_there(path)
            places = {location: name_of(graph.path, location) for location in locations_in(path, mark)}
            sizes = frozenset((location, self.manifest.files[name].size) for location, name in places.items())
            check_once(path, mark, self.manifest.architecture, sizes)
        return path

    def weights_of(self, precision: str) -> set[str]:
        """The weights files of the graphs that generate in a precision."""
        graphs = [graph for graph in self.manifest.graphs if graph.precision == precision and graph.kind in GENERATING]
        return {name for graph in graphs for name in external_files(self.folder, graph.path, self.manifest)}

    def weights_at(self, path: Path) -> set[str]:
        """The weights files of the graph at `path`."""
        return external_files(self.folder, path.relative_to(self.folder).as_posix(), self.manifest)

    def has_successor(self) -> bool:
        """Whether the manifest on disk has been replaced since; a new link to it or a new mode replaces nothing."""
        try:
            mark = find_mark(self.folder / NAME)
            if mark == self.marks[NAME]:
                return False
            return not mark.same_content(self.marks[NAME]) or read_manifest(self.folder) != self.manifest
        except OSError:
            return False
        except BundleError:
            return True

    def bos_token_id(self) -> int | None:
        """The id that an empty prompt starts from."""
        value = self._generation_setting("bos_token_id")
        return value if are_ids([value], self.manifest.architecture.vocab_size) else None

    def eos_token_ids(self) -> frozenset[int]:
        """The ids that end a text; empty if none does."""
        value = self._generation_setting("eos_token_id")
        values = value if isinstance(value, list) else [value]
        return frozenset(token for token in values if are_ids([token], self.manifest.architecture.vocab_size))

    def _generation_setting(self, name: str) -> Any:
        """From generation_config.json, else config.json."""
        for file in ("generation_config.json", "config.json"):
            if file in self.manifest.files:
                value = read_object(self.path(file)).get(name)
                if value is not None:
                    return value
        return None


def open_bundle(path: str | Path | Place, *, verify: bool = True) -> Bundle:
    """Read the manifest and check that every file is there with its size and, if `verify`, its SHA-256.

    Weights are the exception: they are most of the bytes, and nothing parses them. `weights_verified` hashes the ones
    needed while a session loads them.
    """
    place = path if isinstance(path, Place) else Place(find_folder(path))
    folder = place.path
    check_inside(folder, NAME)
    marks = {NAME: mark_there(folder / NAME)}
    manifest = read_manifest(folder)
    marks |= {name: check_file(folder, name, record) for name, record in manifest.files.items()}
    bundle = Bundle(place, manifest, marks)
    if verify:
        check_hashes(bundle, parsed_files(bundle.manifest))
    return bundle


@contextmanager
def weights_verified(bundle: Bundle, precisions: Iterable[str]) -> Iterator[None]:
    """Hash the weights of some precisions while the block makes sessions; BundleError if they are not the manifest's.

    One after the other, hashing 498 MB takes 0.35 s and making the session 0.60 s; side by side on two CPUs, the
    hashing costs next to nothing.
    """
    weights = {name for precision in precisions for name in bundle.weights_of(precision)}
    with ThreadPoolExecutor(max_workers=1) as pool:
        verdict = pool.submit(check_hashes, bundle, weights)
        try:
            yield
        finally:
            verdict.result()  # takes precedence over an error that damaged weights caused


def check_hashes(bundle: Bundle, names: Iterable[str]) -> None:
    for name in names:
        check_hash(bundle.folder / name, bundle.manifest.files[name])


def parsed_files(manifest: Manifest) -> list[str]:
    """All files except weights."""
    return [name for name in manifest.files if not name.endswith(WEIGHTS_SUFFIX)]


def find_folder(path: str | Path) -> Path:
    """The real path of the folder at `path`, if it holds a manifest."""
    check_name(path)
    try:
        folder = Path(path).expanduser()
        real = Path(os.path.realpath(folder))
        if (real / NAME).is_file() or (not real.exists() and put_back(real)):
            return real
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, no such home, a NUL
        raise BundleError(f"no bundle at {path}: {error}") from None
    if not real.exists() and (old := next(set_aside(real), None)):
        raise BundleError(f"no bundle at {folder}; a killed export set it aside, put it back: {move(old, real)}")
    if (folder / "config.json").is_file():
        raise BundleError(f"{folder} is a checkpoint, not a bundle; make one: {export(folder)} --output DIR")
    what = f"{folder} is not a bundle (it has no {NAME})" if folder.exists() else f"no bundle at {folder}"
    raise BundleError(f"{what}; make one: {export('CHECKPOINT', '--output', folder)}")


def move(source: Path, target: Path) -> str:
    return command("mv", source, target)


def export(*words: str | Path) -> str:
    return command("python", "-m", "export", *words)


def check_file(folder: Path, name: str, record: FileRecord) -> Mark:
    """The mark of a file, which lies in the bundle and has its size."""
    path = folder / name
    mark = mark_there(path)
    check_inside(folder, name)
    if mark.size != record.size:
        raise BundleError(f"{path} has {mark.size:,} bytes, not {record.size:,}; export or copy the bundle again")
    return mark


def check_inside(folder: Path, name: str) -> None:
    """Raise BundleError unless a file is a regular one, and no link on the way to it leads out of the bundle."""
    path = folder / name
    if has_links(folder, name) and leads_out(folder, path):
        whole = command("cp", "-rL", folder, "DIR")
        raise BundleError(f"{path} is a link that leads out of the bundle; copy what it leads to: {whole}")
    if not path.is_file():
        raise BundleError(f"{path} is not a regular file; export or copy the bundle again")


def has_links(folder: Path, name: str) -> bool:
    """Whether a file, or a folder on the way to it, is a link; if not, it lies in `folder`, wherever that is now."""
    way = [PurePosixPath(name), *PurePosixPath(name).parents][:-1]
    return any((folder / part).is_symlink() for part in way)


def leads_out(folder: Path, path: Path) -> bool:
    """Whether a file lies elsewhere; in the Hub's cache, a snapshot's are links to blobs beside it."""
    real, home = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    blobs = [home.parents[1] / "blobs"] if home.parent.name == "snapshots" else []
    return not any(real.is_relative_to(each) for each in (home, *blobs))


def mark_there(path: Path) -> Mark:
    try:
        return find_mark(path)
    except (OSError, ValueError):
        raise BundleError(f"{path} is missing; export or copy the bundle again") from None


def check_hash(path: Path, record: FileRecord) -> None:
    digest = file_sha256(path)
    if digest != record.sha256:
        raise BundleError(
            f"{path} was changed: its SHA-256 begins {digest[:12]}, not {record.sha256[:12]}; "
            "export or copy the bundle again"
        )


def file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from None


def external_files(folder: Path, graph: str, manifest: Manifest) -> set[str]:
    """The weights files of a graph; BundleError if one is not in the bundle."""
    locations = locations_in(folder / graph, mark_there(folder / graph))
    files = {name_of(graph, location): location for location in locations}
    for name, location in files.items():
        if name not in manifest.files:
            what = f"reads weights from {shown(location)}"
            raise BundleError(f"{folder / graph} {what}, which is not a file of this bundle")
    return set(files)


def name_of(graph: str, location: str) -> str:
    """The name in the bundle of a file that a graph names from its own folder."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(graph), location))


@lru_cache(maxsize=16)
def check_once(path: Path, _mark: Mark, architecture: Architecture, sizes: frozenset[tuple[str, int]]) -> None:
    """Check a graph, but not again while its file is unchanged."""
    check_graph(path, architecture, dict(sizes))


@lru_cache(maxsize=16)
def locations_in(path: Path, _mark: Mark) -> frozenset[str]:
    """External data of a graph, cached while its file is unchanged: loading asks several times, each takes 15 ms."""
    return frozenset(external_data_locations(path))
