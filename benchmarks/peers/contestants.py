"""Who is compared: this runtime and its peers, each at the precisions that it has; and the process of each side."""

import json
import os
import re
import select
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.common.kept import ROOT, WORK
from benchmarks.common.study import PRECISIONS
from benchmarks.common.turns import SideError

HERE = Path(__file__).parent
OURS = "gpt2-onnx"
TRUTH = "transformers fp32"  # whose greedy tokens are the right ones
SIDES = "benchmarks.peers.sides"
PATIENCE = 900  # seconds for an answer; slower is a failure, so that nothing waits for ever
NOT_OURS = ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH")  # compiled modules are kept, as pip installs them


@dataclass(frozen=True, slots=True)
class Contestant:
    """A library.

    Attributes:
        module: Of `sides`, what its process runs.
        package: The one whose version is told.
        formats: What it calls each of the precisions that it has.
        converter: Of `sides` too, whose conversion it shares.
    """

    module: str
    package: str
    formats: dict[str, str]
    converter: str = ""


CONTESTANTS = {
    OURS: Contestant("runtime_side", "onnxruntime", {"fp32": "fp32", "int8": "int8", "int4": "int4"}),
    "llama.cpp": Contestant("llama_cpp_side", "llama-cpp-python", {"fp32": "F32", "int8": "Q8_0", "int4": "Q4_0"}),
    "CTranslate2": Contestant("ctranslate2_side", "ctranslate2", {"fp32": "float32", "int8": "int8"}),
    "OpenVINO": Contestant("openvino_side", "openvino", {"fp32": "f32", "int8": "int8", "int4": "int4"}),
    "OpenVINO GenAI": Contestant(
        "genai_side", "openvino-genai", {"fp32": "f32", "int8": "int8", "int4": "int4"}, converter="openvino_side"
    ),
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
        contestant = CONTESTANTS[self.contestant]
        used = ("protocol", contestant.module, contestant.converter)
        return [HERE / "sides" / f"{module}.py" for module in used if module]


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
    return HERE / "requirements" / f"{peer.lower().replace(' ', '-')}.txt"


def release(contestant: str) -> str:
    """The package that it comes in, and its version."""
    package = CONTESTANTS[contestant].package
    if contestant == OURS:
        return f"{package} {version(package)}"
    pinned = re.search(f"^{package}==(.+)$", requirements(contestant).read_text(), re.MULTILINE)
    return f"{package} {pinned[1]}" if pinned else package


@dataclass(frozen=True, slots=True)
class Ready:
    """A side that can be started.

    Attributes:
        facts: The folder it serves from, the bytes it needs there, and the bytes of weights that a token reads.
    """

    side: Side
    python: Path
    facts: dict[str, Any]
    environment: dict[str, str]

    def command(self, mode: str, threads: int, *more: str) -> list[object]:
        folder, precision = self.facts["folder"], self.side.precision
        return [self.python, "-m", self.side.module, mode, folder, precision, threads, *more]

    def log(self, mode: str) -> Path:
        return log_of(self.side, mode)


def log_of(side: Side, mode: str) -> Path:
    return WORK / "logs" / f"{side.name.replace(' ', '-')}-{mode}.log"


class Worker:
    """A process that answers a line of JSON with a line of JSON; started when it is first asked."""

    def __init__(self, command: Sequence[object], environment: dict[str, str], log: Path) -> None:
        self.command, self.environment, self.log = command, environment, log
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, task: Any) -> Any:
        self.process = self.process or start(self.command, self.environment, self.log)
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(task).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise SideError(last_line(self.log)) from None
        answer = json.loads(line_of(self.process, self.log))
        if "error" in answer:
            raise SideError(answer["error"])
        return answer

    def close(self) -> None:
        if self.process:
            try:
                self.process.communicate(timeout=10)  # its input ends, and with it its work
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.communicate()


def start(command: Sequence[object], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as errors:
        pipe = subprocess.PIPE
        texts = [str(part) for part in command]
        return subprocess.Popen(texts, stdin=pipe, stdout=pipe, stderr=errors, env=environment, cwd=ROOT)


def cold_start(command: Sequence[object], environment: dict[str, str], log: Path) -> tuple[float, float]:
    """Seconds to a process's first line, and the MiB of its peak; those count from this process's own, a small one."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.PIPE, stderr=errors, env=environment, cwd=ROOT
        )
    assert process.stdout
    try:
        line_of(process, log)
        seconds = time.perf_counter() - started
    finally:
        process.stdout.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SideError(f"{last_line(log)} (exit code {process.returncode})")
    return seconds, usage.ru_maxrss / 1024


def line_of(process: subprocess.Popen[bytes], log: Path) -> bytes:
    """Its next line of output."""
    assert process.stdout
    if not select.select([process.stdout], [], [], PATIENCE)[0]:
        process.kill()
        raise SideError(f"no answer in {PATIENCE} seconds")
    line = process.stdout.readline()
    if not line:
        process.wait()
        raise SideError(f"{last_line(log)} (exit code {process.returncode})")
    return line


def last_line(log: Path, starting: str = "") -> str:
    """The last one there, of those that start so if there are any: of a Python traceback, what went wrong."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    chosen = [line for line in lines if line.startswith(starting)] or lines
    return chosen[-1][:300] if chosen else "it said nothing"


def side_environment(**more: str) -> dict[str, str]:
    """This process's variables, but that nothing is looked up on the Hub: all that is needed is in folders."""
    kept = {name: value for name, value in os.environ.items() if name not in NOT_OURS}
    return {**kept, "HF_HUB_OFFLINE": "1", **more}
