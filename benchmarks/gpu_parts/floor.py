"""The least that a token can cost: the bytes it must read, over the speed at which the device copies."""

import time

import torch
from gpu_parts.checkpoint import Checkpoint

SIZE = {"cuda": 4 * 2**30, "cpu": 2**28}  # bytes, far more than a cache holds
GOES = 10
HALF, FLOAT = 2, 4  # bytes


def copy_bandwidth(device: str) -> list[float]:
    """Bytes a second, read and written, of several copies within the device's memory."""
    source = torch.ones(SIZE[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return [2 * SIZE[device] / copy_seconds(source, target) for _ in range(GOES + 1)][1:]


def copy_seconds(source: torch.Tensor, target: torch.Tensor) -> float:
    synchronize(source.device.type)
    started = time.perf_counter()
    target.copy_(source)
    synchronize(source.device.type)
    return time.perf_counter() - started


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
