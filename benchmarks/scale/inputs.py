"""The measured inputs of a simulation, of one replica on one core: kept as JSON, with the machine that they are of."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.study import machine
from benchmarks.scale.live import Live, live, measured_speed
from benchmarks.scale.load import Texts
from benchmarks.scale.quiet import watched
from benchmarks.scale.replica import Speed

GPT2_SMALL = Path(__file__).with_name("gpt2-small.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What one replica is and takes.

    Attributes:
        steps: Seconds of a step, by the texts that decode in it.
        token: Seconds for each token of a prompt.
        request: Seconds for each request besides.
        cold: Seconds from the start of a process to its first token.
        bundle: Bytes of the bundle, all its precisions.
        idle: MiB of a server that has done nothing.
        busy: The most MiB that it had, with all slots in use.
        kept: Bytes of keys and values of a token.
        vocabulary: Ids that there are.
        others: CPUs that other processes took meanwhile.
    """

    title: str
    machine: str
    slots: int
    steps: dict[int, float]
    token: float
    request: float
    cold: float
    bundle: int
    idle: float
    busy: float
    kept: int
    vocabulary: int
    others: float

    @property
    def speed(self) -> Speed:
        return Speed(self.steps, token=self.token, request=self.request)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def read(path: Path) -> Inputs:
    found = json.loads(path.read_text())
    return Inputs(**found | {"steps": {int(texts): seconds for texts, seconds in found["steps"].items()}})


def measured(bundle: Path, precision: str, slots: int, cpu: int, rounds: int, texts: Texts) -> Inputs:
    """Of one server on one CPU, after prompts as `texts` has; its client has another CPU, where there is one."""
    cold, idle = list[float](), list[float]()
    for _ in range(rounds):
        with live(bundle, precision, slots, cpu) as server:
            cold.append(server.cold)
            idle.append(server.memory("VmRSS"))
    with live(bundle, precision, slots, cpu) as server:
        before = {"cold": statistics.median(cold), "idle": statistics.median(idle)}
        return of_servers(bundle, precision, [server], texts, **before)


def of_servers(
    bundle: Path, precision: str, servers: Sequence[Live], texts: Texts, *, cold: float, idle: float
) -> Inputs:
    """What servers take that are up and busy alike."""
    shape: dict[str, Any] = json.loads((bundle / "config.json").read_text())
    with watched(server.process.pid for server in servers) as others:
        speed = measured_speed(servers, shape["vocab_size"], round(texts.means()[0]))
    return Inputs(
        title=f"{bundle.resolve().name}, {precision}, one core a replica",
        machine=machine("onnxruntime", "uvicorn"),
        slots=servers[0].slots,
        steps=dict(speed.known),
        token=speed.token,
        request=speed.request,
        cold=cold,
        bundle=sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()),
        idle=idle,
        busy=max(server.memory("VmHWM") for server in servers),
        kept=2 * shape["n_layer"] * shape["n_embd"] * 4,
        vocabulary=shape["vocab_size"],
        others=others[0],
    )
