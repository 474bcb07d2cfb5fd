"""What the runtime's tests share: PyTorch's own tokens, bundles to damage, subprocesses, and protobuf by hand."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tokenizers

import runtime
from runtime.cli.main import main as cli_main
from runtime.graphs.kinds import runs as runs_kind
from runtime.graphs.slots import HostSlots
from runtime.graphs.work import Answer, Work


@dataclass(frozen=True)
class Probe:
    """A prompt and what PyTorch made of it, from the manifest; the texts are the tokenizers library's."""

    prompt: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str


@pytest.fixture(autouse=True)
def no_model_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own setting must not decide a test."""
    monkeypatch.delenv("GPT2_ONNX_MODEL", raising=False)


@pytest.fixture(scope="session")
def manifest(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def context(manifest: dict[str, Any]) -> int:
    return manifest["architecture"]["n_positions"]


@pytest.fixture(scope="session")
def vocabulary(bundle: Path) -> tokenizers.Tokenizer:
    """The bundle's tokenizer as the library reads it, without the code under test."""
    return tokenizers.Tokenizer.from_file(str(bundle / "tokenizer.json"))


@pytest.fixture(scope="session")
def end_of_text(bundle: Path) -> int:
    return json.loads((bundle / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]


@pytest.fixture(scope="session")
def probes(manifest: dict[str, Any], vocabulary: tokenizers.Tokenizer, end_of_text: int) -> list[Probe]:
    """The probes whose prompts survive a round trip through text and whose texts do not end."""

    def text(ids: list[int]) -> str:
        return vocabulary.decode(ids, skip_special_tokens=False)

    made = [
        Probe(
            text(probe["prompt_ids"]), tuple(probe["prompt_ids"]), tuple(probe["token_ids"]), text(probe["token_ids"])
        )
        for probe in manifest["parity"]["greedy"]["probes"]
        if end_of_text not in probe["token_ids"]
    ]
    usable = [probe for probe in made if tuple(vocabulary.encode(probe.prompt).ids) == probe.prompt_ids]
    assert usable, "this bundle has no probe to hold a completion against"
    return usable


@pytest.fixture(scope="session")
def probe(probes: list[Probe]) -> Probe:
    return probes[0]


@pytest.fixture(scope="session")
def model(bundle: Path) -> runtime.Model:
    """One model for the tests that only read it."""
    return runtime.load(bundle, device="cpu")


@pytest.fixture(scope="session")
def cached(bundle: Path) -> runtime.Model:
    """The same with int8 keys and values."""
    if not runs_kind("int8_cache"):
        pytest.skip("this ONNX Runtime has no query_seqlens")
    return runtime.load(bundle, device="cpu", threads=1, verify=False, cache="int8")


@pytest.fixture(scope="session")
def refusal() -> Callable[..., str]:
    """Call something that must raise exactly this class, and give the message: one line, not empty."""

    def refuse(kind: type[Exception], call: Callable[..., Any], *args: Any, **options: Any) -> str:
        with pytest.raises(kind) as caught:
            call(*args, **options)
        assert caught.type is kind
        message = str(caught.value)
        assert message.strip()
        assert len(message.splitlines()) == 1, message
        return message

    return refuse


class BundleCopy:
    """A bundle that a test may damage; big files are links until they are written to."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(source, folder, copy_function=link_or_copy)

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """Replace a file, never what it is a link to; the manifest is left as it is."""
        (self.folder / name).unlink(missing_ok=True)
        (self.folder / name).write_bytes(content)

    def flip_byte(self, name: str) -> None:
        content = bytearray(self.read(name))
        content[len(content) // 2] ^= 0xFF
        self.write(name, bytes(content))

    def replace(self, name: str, content: bytes) -> None:
        """Replace a file and record its new size and hash, as if the bundle had been made so."""
        self.write(name, content)
        with self.changed_manifest() as manifest:
            manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    def configure(self, **settings: Any) -> None:
        """Change generation_config.json; the manifest is repaired. None drops a setting from config.json too."""
        for name in ("generation_config.json", "config.json"):
            content = json.loads(self.read(name)) | settings
            self.replace(name, json.dumps(content).encode())

    def changed_manifest(self) -> "ChangedJson":
        return ChangedJson(self, "manifest.json")


class ChangedJson:
    """`with` gives the content of a JSON file and writes back what became of it."""

    def __init__(self, copy: BundleCopy, name: str) -> None:
        self.copy, self.name = copy, name

    def __enter__(self) -> Any:
        self.content = json.loads(self.copy.read(self.name))
        return self.content

    def __exit__(self, *_: object) -> None:
        self.copy.write(self.name, json.dumps(self.content).encode())


def link_or_copy(source: str, target: str) -> None:
    try:
        Path(target).hardlink_to(source)
    except OSError:  # another file system
        shutil.copyfile(source, target)


@pytest.fixture
def bundle_copy(bundle: Path, tmp_path: Path) -> BundleCopy:
    return BundleCopy(bundle, tmp_path / "bundle")


@pytest.fixture
def fresh(bundle: Path) -> runtime.Model:
    """A model that nobody has used."""
    return runtime.load(bundle, device="cpu", threads=1, verify=False)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each run of the decode graph read, of all slots."""
    counts, run = list[int](), HostSlots.run

    def counted(slots: HostSlots, works: Sequence[Work]) -> list[Answer]:
        counts.append(sum(len(work.token_ids) for work in works))
        return run(slots, works)

    monkeypatch.setattr(HostSlots, "run", counted)
    return counts


@pytest.fixture
def endless(bundle_copy: BundleCopy) -> runtime.Model:
    """The model with nothing that ends a text but a count."""
    bundle_copy.configure(eos_token_id=None)
    return runtime.load(bundle_copy.folder)


@pytest.fixture
def stopping(bundle_copy: BundleCopy) -> Callable[[int | list[int]], runtime.Model]:
    """The model with these ids for the end of a text."""

    def load(eos_token_id: int | list[int]) -> runtime.Model:
        bundle_copy.configure(eos_token_id=eos_token_id)
        return runtime.load(bundle_copy.folder)

    return load


@pytest.fixture(scope="session")
def turn(probe: Probe) -> int:
    """Where in the probe an id comes for the first time, some tokens after the beginning."""
    return next(n for n, token in enumerate(probe.token_ids) if n >= 3 and token not in probe.token_ids[:n])


@pytest.fixture(scope="session")
def exactly(vocabulary: tokenizers.Tokenizer) -> Callable[[int], str]:
    """Make a prompt of exactly so many tokens."""

    def make(count: int) -> str:
        prompt = " the" * count
        assert len(vocabulary.encode(prompt).ids) == count
        return prompt

    return make


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run this Python in an empty folder, with folders of a test's own in front of what is installed."""

    def run(
        *arguments: str | bytes, stdin: bytes = b"", path: tuple[Path, ...] = (), env: Mapping[str, str | None] = {}
    ) -> subprocess.CompletedProcess[str]:
        folder = tmp_path / "elsewhere"
        folder.mkdir(exist_ok=True)
        python_path = os.pathsep.join([*map(str, path), *filter(None, [os.environ.get("PYTHONPATH")])])
        changes = {"PYTHONPATH": python_path or None, "PYTHONIOENCODING": "utf-8", **env}
        environment = {**os.environ, **changes}
        done = subprocess.run(
            [sys.executable, *arguments],
            input=stdin,
            capture_output=True,
            cwd=folder,
            env={name: value for name, value in environment.items() if value is not None},
            timeout=300,
            check=False,
        )
        output, errors = (stream.decode("utf-8").replace("\r\n", "\n") for stream in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(done.args, done.returncode, output, errors)

    return run


@pytest.fixture
def cli(run_python):
    """The command in a process of its own."""
    return lambda *arguments, **options: run_python("-m", "runtime", *arguments, **options)


@pytest.fixture
def cli_here(monkeypatch, capfd):
    """The command in this process, which is quicker; an exception that it lets out fails the test."""

    def run(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "argv", ["gpt2-onnx", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as ended:
            cli_main()
        return subprocess.CompletedProcess(arguments, ended.value.code, *capfd.readouterr())

    return run


class Wire:
    """Protobuf's wire format, written by hand (https://protobuf.dev/programming-guides/encoding/)."""

    @staticmethod
    def varint(value: int) -> bytes:
        groups = []
        while value > 127:
            groups.append(value & 127 | 128)
            value >>= 7
        return bytes([*groups, value])

    @classmethod
    def tag(cls, number: int, wire: int) -> bytes:
        return cls.varint(number << 3 | wire)

    @classmethod
    def integer(cls, number: int, value: int) -> bytes:
        return cls.tag(number, 0) + cls.varint(value)

    @classmethod
    def field(cls, number: int, payload: bytes) -> bytes:
        return cls.tag(number, 2) + cls.varint(len(payload)) + payload

    @classmethod
    def entry(cls, key: str, value: str) -> bytes:
        """StringStringEntryProto: key = 1, value = 2."""
        return cls.field(1, key.encode()) + cls.field(2, value.encode())

    @classmethod
    def tensor(cls, *entries: bytes) -> bytes:
        """TensorProto of two floats: dims = 1, data_type = 2, name = 8, external_data = 13, data_location = 14."""
        external = b"".join(cls.field(13, entry) for entry in entries)
        return cls.integer(1, 2) + cls.integer(2, 1) + cls.field(8, b"weight") + external + cls.integer(14, 1)

    @classmethod
    def stored_in(cls, location: str) -> bytes:
        """A tensor whose data lies in another file."""
        return cls.tensor(cls.entry("location", location))

    @classmethod
    def model(cls, graph: bytes) -> bytes:
        """ModelProto: ir_version = 1, graph = 7, opset_import = 8."""
        return cls.integer(1, 9) + cls.field(7, graph) + cls.field(8, cls.integer(2, 18))


@pytest.fixture(scope="session")
def wire() -> type[Wire]:
    return Wire
