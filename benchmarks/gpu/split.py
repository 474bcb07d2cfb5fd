"""Where the time of our step at batch 1 goes: the device's kernels, the launches, and the host between.

Kernels are known by traces: PyTorch's profiler and ONNX Runtime's write the same format.
"""

import json
import statistics
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from benchmarks.common.study import text_table, timed
from benchmarks.gpu.checkpoint import Checkpoint
from benchmarks.gpu.parts import Piece, Plan, one_line
from runtime.engine.scheduler import MOST_STEPS
from runtime.graphs.device.runs import DeviceRuns
from runtime.graphs.device.slots import DeviceSlots
from runtime.graphs.state import DecodeState
from runtime.ort.placement import Placement
from runtime.ort.sessions import make_session

NAMES = {  # of what is measured, in microseconds a step
    "wall": "a step, fed by the device",
    "onnxruntime": "  launches: in ONNX Runtime",
    "python": "  launches: in Python around it",
    "wait": "  then waiting for the device",
    "alone": "a step, the host between",
    "host": "  what that adds",
}
MOST_NAMED = 8  # kernels
Event = dict[str, Any]


@dataclass
class Kernels:
    """Of one step: how many and how long in all, and the same of each name; `source` says how it is known."""

    source: str
    count: float = 0.0
    microseconds: float = 0.0
    named: dict[str, tuple[float, float]] = field(default_factory=dict)


def pieces(plan: Plan) -> Iterator[Piece]:
    checkpoint, found = Checkpoint(plan), {}
    modes = {"CUDA graphs": True, "without": False} if plan.device == "cuda" else {"on the CPU": False}
    for mode, cuda_graph in modes.items():
        found[mode] = measure(checkpoint, cuda_graph=cuda_graph)
    yield "steps", found, split_table(found, plan)
    kernels = {mode: kernels_in(checkpoint, cuda_graph=cuda_graph) for mode, cuda_graph in modes.items()}
    walls = {mode: one["wall"] for mode, one in found.items()}
    yield "kernels", {mode: vars(one) for mode, one in kernels.items()}, kernel_table(kernels, walls)


def measure(checkpoint: Checkpoint, *, cuda_graph: bool) -> dict[str, float]:
    """Medians over launches of many steps, as the loop takes them, and over steps one at a time."""
    plan, placement = checkpoint.plan, checkpoint.placement(cuda_graph=cuda_graph)
    session = TimedSession(
        make_session(checkpoint.graph("fp16"), placement=placement, threads=plan.threads, capture=True)
    )
    state = make_stepper(session, placement, checkpoint)
    (prompt,) = checkpoint.prompts(1, plan.prompt)
    fed, alone = [], []
    for _ in range(plan.rounds + 1):
        fed += fed_turn(state, session, prompt, plan.tokens)
        alone += alone_turn(state, prompt, plan.tokens)
    kept = len(fed) // (plan.rounds + 1), len(alone) // (plan.rounds + 1)  # the first turn warms up
    middle = {name: statistics.median(one[name] for one in fed[kept[0] :]) for name in fed[0]}
    single = statistics.median(alone[kept[1] :])
    return {**middle, "alone": single, "host": single - middle["wall"]}


def fed_turn(state: DecodeState, session: "TimedSession", prompt: list[int], tokens: int) -> list[dict[str, float]]:
    state.rewind(0)
    token = state.advance(prompt)
    found = []
    for _ in range(max(2, tokens // MOST_STEPS)):
        session.seconds = 0.0
        launched, _ = timed(partial(state.launch, token, MOST_STEPS))
        waited, said = timed(state.collect)
        token = said[-1]
        found.append(per_step(launched, session.seconds, waited))
    return found[1:]  # before the first the host had written what is read


def per_step(launched: float, inside: float, waited: float) -> dict[str, float]:
    """Microseconds."""
    parts = {"wall": launched + waited, "onnxruntime": inside, "python": launched - inside, "wait": waited}
    return {name: 1e6 * seconds / MOST_STEPS for name, seconds in parts.items()}


def alone_turn(state: DecodeState, prompt: list[int], tokens: int) -> list[float]:
    """Microseconds of each step that the host asks for and waits for."""
    state.rewind(0)
    token, found = state.advance(prompt), []
    for _ in range(tokens):
        seconds, token = timed(partial(state.advance, [token]))
        found.append(1e6 * seconds)
    return found[1:]


def kernels_in(checkpoint: Checkpoint, *, cuda_graph: bool) -> Kernels:
    """By CUPTI, which PyTorch's profiler brings, as it sees whatever the process runs; else by ONNX Runtime's own."""
    try:
        if checkpoint.plan.device == "cuda":
            found = kernels_of(checkpoint, cuda_graph=cuda_graph)
            if found.count:
                return found
        return profiled_by_onnxruntime(checkpoint)
    except Exception as error:
        return Kernels(one_line(error))


class TimedSession:
    """An ONNX Runtime session that adds up the seconds of its runs."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run_with_iobinding(self, *arguments: Any) -> None:
        seconds, _ = timed(lambda: self.session.run_with_iobinding(*arguments))
        self.seconds += seconds


def split_table(found: dict[str, dict[str, Any]], plan: Plan) -> str:
    rows = [[title, *(f"{one[name]:,.1f}" for one in found.values())] for name, title in NAMES.items()]
    title = (
        f"Microseconds a step: ours, fp16, batch 1, from {plan.prompt} tokens on, {MOST_STEPS} steps a launch; medians"
    )
    return text_table(title, ["", *found], rows)


def kernel_line(mode: str, kernels: Kernels, wall: float) -> str:
    """How kernels, and what is between them, add up to a step that the device feeds itself."""
    if not kernels.count:
        return f"{mode}: kernels unmeasured; {kernels.source}"
    return (
        f"{mode}: {kernels.count:.1f} kernels a step ({kernels.source}) take {kernels.microseconds:,.1f} microseconds "
        f"of its {wall:,.1f}; {wall - kernels.microseconds:,.1f} are without one"
    )


def kernel_table(kernels: dict[str, Kernels], walls: dict[str, float]) -> str:
    lines = [kernel_line(mode, one, walls[mode]) for mode, one in kernels.items()]
    first = next((one for one in kernels.values() if one.count), None)
    named = sorted(first.named.items(), key=lambda one: -one[1][1])[:MOST_NAMED] if first else []
    rows = [[name[:72], f"{count:.1f}", f"{microseconds:,.1f}"] for name, (count, microseconds) in named]
    return "\n".join([*lines, text_table("The longest:", ["kernel", "a step", "microseconds"], rows)])


def kernels_of(checkpoint: Checkpoint, *, cuda_graph: bool) -> Kernels:
    """As CUPTI records them, of steps that the device feeds itself."""
    placement = checkpoint.placement(cuda_graph=cuda_graph)
    session = make_session(checkpoint.graph("fp16"), placement=placement, threads=checkpoint.plan.threads, capture=True)
    state = make_stepper(session, placement, checkpoint)
    token = warm(state, checkpoint)
    traced(state, token)  # CUPTI starts at the first, and may miss what runs meanwhile
    events = [event for event in traced(state, token) if event.get("cat") == "kernel"]
    return summed(events, MOST_STEPS, "CUPTI's record, by PyTorch's profiler")


def warm(state: DecodeState, checkpoint: Checkpoint) -> int:
    (prompt,) = checkpoint.prompts(1, checkpoint.plan.prompt)
    token = state.advance(prompt)
    state.launch(token, MOST_STEPS)
    return state.collect()[-1]


def traced(state: DecodeState, token: int) -> list[Event]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        state.launch(token, MOST_STEPS)
        state.collect()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events: list[Event] = json.loads(path.read_text())["traceEvents"]
        return events


def profiled_by_onnxruntime(checkpoint: Checkpoint) -> Kernels:
    """ONNX Runtime's own: kernels on a GPU, where it was built to see them; on the CPU its nodes."""
    with tempfile.TemporaryDirectory() as folder:
        session = profiling_session(checkpoint, Path(folder))
        state = make_stepper(session, checkpoint.placement(cuda_graph=False), checkpoint)
        token = warm(state, checkpoint)
        state.launch(token, MOST_STEPS)
        state.collect()
        events = json.loads(Path(session.end_profiling()).read_text())
    start = [event["ts"] for event in events if event["name"] == "model_run"][-MOST_STEPS]
    wanted = "Kernel" if checkpoint.plan.device == "cuda" else "Node"
    found = [event for event in events if event.get("cat") == wanted and event["ts"] >= start]
    return summed(found, MOST_STEPS, f"{wanted} events in ONNX Runtime's profile")


def profiling_session(checkpoint: Checkpoint, folder: Path) -> onnxruntime.InferenceSession:
    placement = checkpoint.placement(cuda_graph=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = checkpoint.plan.threads
    options.log_severity_level = 3
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    providers = [(placement.provider, placement.provider_options())]
    return onnxruntime.InferenceSession(str(checkpoint.graph("fp16")), options, providers=providers)


def summed(events: Iterable[Event], steps: int, source: str) -> Kernels:
    found = Kernels(source)
    for event in events:
        microseconds = event["dur"] / steps
        count, sofar = found.named.get(event["name"], (0.0, 0.0))
        found.named[event["name"]] = count + 1 / steps, sofar + microseconds
        found.count += 1 / steps
        found.microseconds += microseconds
    return found


def make_stepper(session: Any, placement: Placement, checkpoint: Checkpoint) -> DecodeState:
    """In float16, with room for the plan's tokens and some more."""
    sizes, plan = checkpoint.architecture, checkpoint.plan
    slots = DeviceSlots(DeviceRuns(session, placement), sizes, 1)
    slots.reserve(0, min(plan.prompt + max(plan.tokens, 64) + 64, sizes.n_positions))
    return DecodeState(slots)
