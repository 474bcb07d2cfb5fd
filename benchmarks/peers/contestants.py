"""Who is compared: this runtime and its peers, each at the precisions that it has."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.common.study import PRECISIONS

HERE = Path(__file__).parent
OURS = "gpt2-onnx"
TRUTH = "transformers fp32"  # whose greedy tokens are the right ones
SIDES = "benchmarks.peers.sides"


@dataclass(frozen=True, slots=True)
class Contestant:
    """A library.

    Attributes:
        module: Of `sides`, what its process runs.
        package: The one whose version is told.
        formats: What it calls each of the precisions that it has.
    """

    module: str
    package: str
    formats: dict[str, str]


CONTESTANTS = {
    OURS: Contestant("runtime_side", "onnxruntime", {"fp32": "fp32", "int8": "int8", "int4": "int4"}),
    "llama.cpp": Contestant("llama_cpp_side", "llama-cpp-python", {"fp32": "F32", "int8": "Q8_0", "int4": "Q4_0"}),
    "CTranslate2": Contestant("ctranslate2_side", "ctranslate2", {"fp32": "float32", "int8": "int8"}),
    "OpenVINO": Contestant("openvino_side", "openvino", {"fp32": "f32", "int8": "int8", "int4": "int4"}),
    "optimum": Contestant("optimum_side", "optimum-onnx", {"fp32": "fp32"}),
    "transformers": Contestant("transformers_side", "transformers", {"fp32": "fp32"}),
}
PEERS = tuple(name for name in CONTESTANTS if name != OURS)


@dataclass(frozen=True, slots=True)
class Side:
    """A contestant at one precision."""

    contestant: str
    precision: str

    @property
    def name(self) -> str:
        return f"{self.contestant} {self.precision}"

    @property
    def label(self) -> str:
        return f"{self.contestant} {CONTESTANTS[self.contestant].formats[self.precision]}"

    @property
    def module(self) -> str:
        return f"{SIDES}.{CONTESTANTS[self.contestant].module}"

    @property
    def sources(self) -> list[Path]:
        """Which say what it serves from."""
        used = ("protocol", CONTESTANTS[self.contestant].module)
        return [HERE / "sides" / f"{module}.py" for module in used]


def sides_of(peers: Sequence[str], precisions: Sequence[str]) -> list[Side]:
    """Those of one precision next to each other, so that their turns are."""
    wanted = (OURS, *(peer for peer in PEERS if peer in peers))
    return [
        Side(contestant, precision)
        for precision in PRECISIONS
        if precision in precisions
        for contestant in wanted
        if precision in CONTESTANTS[contestant].formats
    ]


def requirements(peer: str) -> Path:
    return HERE / "requirements" / f"{peer.lower()}.txt"


def release(contestant: str) -> str:
    """The package that it comes in, and its version."""
    package = CONTESTANTS[contestant].package
    if contestant == OURS:
        return f"{package} {version(package)}"
    pinned = re.search(f"^{package}==(.+)$", requirements(contestant).read_text(), re.MULTILINE)
    return f"{package} {pinned[1]}" if pinned else package
