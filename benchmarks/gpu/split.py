"""Where the time of our step at batch 1 goes: the device's kernels, the launches, and the host between."""

import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.common.study import text_table, timed
from benchmarks.gpu.checkpoint import Checkpoint
from benchmarks.gpu.kernels import Kernels, kernels_of, make_stepper, profiled_by_onnxruntime
from benchmarks.gpu.plan import Piece, Plan, one_line
from runtime.engine.steps import MOST_STEPS
from runtime.graphs.state import DecodeState
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
