"""Milliseconds to read a long prompt and say its first token, ours beside transformers'."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from benchmarks.common.study import ratios, spread, text_table, timed
from benchmarks.gpu.checkpoint import Checkpoint
from benchmarks.gpu.parts import Piece, Plan
from benchmarks.gpu.sides import CompiledStep, Make, Side, StaticForward, make_sides, take_rounds
from benchmarks.gpu.speed import COMPILED, OURS

EAGER = "transformers, forward"
REPEATS = 5  # in a turn


def pieces(plan: Plan) -> Iterator[Piece]:
    checkpoint = Checkpoint(plan)
    length = min(plan.long, checkpoint.architecture.n_positions - 1)
    (ids,) = checkpoint.prompts(1, length)
    sides, failed = make_sides(makers(checkpoint, ids), 1, plan.deadline)
    turns = {name: partial(turn, side) for name, side in sides.items()}
    found = take_rounds(turns, plan.rounds, plan.deadline, failed)
    yield "prefill", {"ms": found, "failed sides": failed}, prefill_table(found, failed, length)


def turn(side: Side) -> float:
    """The mean of a few, in milliseconds."""
    seconds, _ = timed(lambda: [side(1) for _ in range(REPEATS)])
    return 1e3 * seconds / REPEATS


def makers(checkpoint: Checkpoint, ids: list[int]) -> dict[str, Make]:
    made: dict[str, Make] = {
        OURS: lambda: ours(checkpoint, ids),
        EAGER: lambda: eager(checkpoint, ids),
        COMPILED: lambda: compiled(checkpoint, ids),
    }
    if not checkpoint.plan.compiled:
        del made[COMPILED]
    return made


def ours(checkpoint: Checkpoint, ids: list[int]) -> Side:
    session = checkpoint.session("fp16")

    def read(_: int) -> int:
        with session.sequence(len(ids) + 1) as state:
            return state.advance(ids)

    return read


def eager(checkpoint: Checkpoint, ids: list[int]) -> Side:
    model, tensor = on_device(checkpoint, ids)

    @torch.no_grad()
    def read(_: int) -> int:
        return int(model(tensor, use_cache=True, logits_to_keep=1).logits[0, -1].argmax())

    return read


def compiled(checkpoint: Checkpoint, ids: list[int]) -> Side:
    model, tensor = on_device(checkpoint, ids)
    positions = torch.arange(len(ids), device=model.device)
    forward = StaticForward(model, 1, len(ids) + 1)
    step = CompiledStep(forward)
    with torch.no_grad():
        forward(tensor, positions)  # the cache is made here, as it must not be within what is compiled

    @torch.no_grad()
    def read(_: int) -> int:
        forward.cache.reset()
        return int(step(tensor, positions))

    return read


def on_device(checkpoint: Checkpoint, ids: list[int]) -> tuple[GPT2LMHeadModel, Tensor]:
    model = checkpoint.model(torch.float16, "sdpa")
    return model, torch.tensor([ids], device=model.device)


def prefill_table(found: dict[str, list[float]], failed: dict[str, str], length: int) -> str:
    cells = [
        [name, spread(ms), spread(ratios(ms, found[OURS])) if OURS in found and name != OURS else ""]
        for name, ms in found.items()
    ]
    cells += [[name, "unmeasured", ""] for name in failed]
    title = f"A prompt of {length}, fp16, to its first token: median of {max(map(len, found.values()), default=0)}"
    lines = [f"{name}: {why}" for name, why in failed.items()]
    return "\n".join([text_table(title, ["side", "ms (min to max)", "ours is times as fast"], cells), *lines])
