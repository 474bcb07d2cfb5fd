"""Tokens per second of greedy decoding, ours beside transformers', all in one process and taking turns.

Each turn continues the prompts by one token and then by all: decoding's speed is of the difference, in which the prompt
and the first token go out.
"""

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.common.study import ratios, spread, text_table, timed
from benchmarks.gpu.checkpoint import Checkpoint
from benchmarks.gpu.parts import Piece, Plan
from benchmarks.gpu.sides import Compiled, Eager, Make, Ours, OursWithText, make_sides, take_rounds
from runtime.text.tokenizer import Tokenizer

OURS = "ours"
COMPILED = "transformers, static cache, torch.compile"
EAGER = "transformers, generate"
WARM_UP = 40  # tokens, or those of a turn
COPIED = {"cuda": 4 * 2**30, "cpu": 2**28}  # bytes, far more than a cache holds
COPIES = 10
HALF, FLOAT = 2, 4  # bytes
SHORT_CALLS = 3  # in a turn: their seconds are few, and one that was late would count in all


def pieces(plan: Plan, rows: str) -> Iterator[Piece]:
    checkpoint, count = Checkpoint(plan), int(rows)
    floor = floor_of(checkpoint, count)
    yield "floor", floor, floor_line(floor, checkpoint)
    sides, failed = make_sides(makers(checkpoint, count), min(WARM_UP, plan.tokens), plan.deadline)
    turns = {name: partial(turn, side, plan.tokens) for name, side in sides.items()}
    found = take_rounds(turns, plan.rounds, plan.deadline, failed)
    speeds = {name: [decode_speed(one, plan.tokens, count) for one in taken] for name, taken in found.items()}
    value = {"decode": speeds, "seconds": seconds_in(found), "failed sides": failed, "same": alike(found, count)}
    yield "speed", value, speed_table(value, floor["tokens/s"], count, plan)


def makers(checkpoint: Checkpoint, count: int) -> dict[str, Make]:
    plan = checkpoint.plan
    prompts, most = checkpoint.prompts(count, plan.prompt), plan.tokens

    def ours(*, cuda_graph: bool) -> Ours:
        return Ours(checkpoint.session("fp16", cuda_graph=cuda_graph), prompts)

    def with_text() -> Ours:
        return OursWithText(checkpoint.session("fp16"), prompts, Tokenizer(checkpoint.folder / "tokenizer.json"))

    made: dict[str, Make] = {
        OURS: partial(ours, cuda_graph=True),
        "ours, with the text": with_text,
        "ours, without CUDA graphs": partial(ours, cuda_graph=False),
        EAGER: lambda: Eager(checkpoint.model(torch.float16, "sdpa"), prompts),
        COMPILED: lambda: Compiled(checkpoint.model(torch.float16, "sdpa"), prompts, most),
    }
    if not plan.compiled:
        del made[COMPILED]
    if plan.device == "cpu":
        del made["ours, without CUDA graphs"]
    return made


def turn(side: Callable[[int], Any], tokens: int) -> tuple[float, float, list[list[int]]]:
    """Seconds for one token, seconds for all, and those."""
    first = statistics.median(timed(lambda: side(1))[0] for _ in range(SHORT_CALLS))
    whole, token_ids = timed(lambda: side(tokens))
    return first, whole, token_ids


def decode_speed(taken: tuple[float, float, Any], tokens: int, rows: int) -> float:
    first, whole, _ = taken
    return rows * (tokens - 1) / (whole - first)


def seconds_in(found: dict[str, list[Any]]) -> dict[str, dict[str, list[float]]]:
    return {
        name: {"one token": [one[0] for one in taken], "all": [one[1] for one in taken]}
        for name, taken in found.items()
    }


def alike(found: dict[str, list[Any]], rows: int) -> dict[str, str]:
    """Tokens that are those of `generate`, in the last turn: in float16 two right answers may part."""
    if EAGER not in found:
        return dict.fromkeys(found, "")
    right = [token for row in found[EAGER][-1][2] for token in row]
    texts = {name: [token for row in taken[-1][2] for token in row] for name, taken in found.items()}
    return {
        name: f"{sum(map(int.__eq__, text, right)) / len(right):.0%}" if len(text) == len(right) else f"not {rows} rows"
        for name, text in texts.items()
    }


def floor_of(checkpoint: Checkpoint, rows: int) -> dict[str, Any]:
    bandwidth = copy_bandwidth(checkpoint.plan.device)
    middle, cache = statistics.median(bandwidth), cache_bytes(checkpoint)
    weights, ours = weight_bytes(checkpoint), our_weight_bytes(checkpoint)
    return {
        "bandwidth": bandwidth,
        "weights": weights,
        "our weights": ours,
        "cache": rows * cache,
        "tokens/s": floor_speed(middle, weights, cache, rows),
        "our tokens/s": floor_speed(middle, ours, cache, rows),
    }


def copy_bandwidth(device: str) -> list[float]:
    """Bytes a second, read and written, of several copies within the device's memory."""
    source = torch.ones(COPIED[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return [2 * COPIED[device] / copy_seconds(source, target) for _ in range(COPIES + 1)][1:]


def copy_seconds(source: torch.Tensor, target: torch.Tensor) -> float:
    synchronize(source.device.type)

    def copy() -> None:
        target.copy_(source)
        synchronize(source.device.type)

    return timed(copy)[0]


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def weight_bytes(checkpoint: Checkpoint) -> int:
    """Of float16 weights that a step reads: all but the position embeddings, as `wte` is the head."""
    sizes = checkpoint.architecture
    return HALF * (sizes.parameters - sizes.n_positions * sizes.n_embd)


def our_weight_bytes(checkpoint: Checkpoint) -> int:
    """Of our graph, whose head is in float32."""
    sizes = checkpoint.architecture
    return weight_bytes(checkpoint) + (FLOAT - HALF) * sizes.vocab_size * sizes.n_embd


def cache_bytes(checkpoint: Checkpoint) -> int:
    """Of float16 keys and values that a row's step reads, halfway through its new tokens."""
    sizes, plan = checkpoint.architecture, checkpoint.plan
    return 2 * sizes.n_layer * sizes.n_embd * HALF * (plan.prompt + plan.tokens // 2)


def floor_speed(bandwidth: float, weights: int, cache: int, rows: int) -> float:
    """Tokens a second of so many rows: weights are read once for all of them."""
    return rows * bandwidth / (weights + rows * cache)


def floor_line(floor: dict[str, Any], checkpoint: Checkpoint) -> str:
    return (
        f"The device copies {spread([one / 1e9 for one in floor['bandwidth']])} GB/s, read and written. A step reads "
        f"{floor['weights'] / 1e6:,.1f} MB of fp16 weights\n(all but wpe; our graph, whose head is in float32, "
        f"{floor['our weights'] / 1e6:,.1f}) and {floor['cache'] / 1e6:,.1f} MB of keys and values (at "
        f"{checkpoint.plan.prompt + checkpoint.plan.tokens // 2} tokens a row):\nat that speed "
        f"{floor['tokens/s']:,.0f} tokens/s; of our graph's bytes {floor['our tokens/s']:,.0f}"
    )


def speed_table(value: dict[str, Any], floor: float, rows: int, plan: Plan) -> str:
    speeds, cells = value["decode"], []
    for name, found in speeds.items():
        times = spread(ratios(speeds[OURS], found)) if OURS in speeds and name != OURS else ""
        first = spread([1e3 * one for one in value["seconds"][name]["one token"]])
        whole = statistics.median(value["seconds"][name]["all"])
        share = f"{floor / statistics.median(found):.1f}"
        cells.append(
            [name, spread(found), times, share, first, f"{rows * plan.tokens / whole:,.0f}", value["same"][name]]
        )
    cells += [[name, "unmeasured", *[""] * 5] for name in value["failed sides"]]
    turns = max(map(len, speeds.values()), default=0)
    title = f"Batch of {rows}, fp16, prompt {plan.prompt}, {plan.tokens} new tokens: median of {turns} (min to max)"
    headings = ["side", "decode, tokens/s", "ours is times", "floor is times", "prompt and first, ms", "all, tokens/s"]
    lines = [f"{name}: {why}" for name, why in value["failed sides"].items()]
    return "\n".join([text_table(title, [*headings, "as generate"], cells), *lines])
