"""Greedy tokens of the runtime's own loops, held against PyTorch's choices after the same texts."""

from collections.abc import Sequence
from dataclasses import asdict

import torch
from gpu_parts.checkpoint import Checkpoint
from gpu_parts.on_device import OnDevice
from gpu_parts.ours import Ours
from gpu_parts.part import Piece
from gpu_parts.text_table import text_table

from export.parity.greedy import continuation_logits, find_suspects, judge_suspect
from export.parity.likelihoods import as_truth
from runtime.bundle.manifest import Continuation
from runtime.graphs.decode import DecodeGraph

LENGTHS = 3, 17, 40, 64, 100, 200  # of prompts


def greedy_piece(checkpoint: Checkpoint, session: DecodeGraph, precision: str) -> Piece:
    """fp32 must say what PyTorch says; of fp16 how often it does is told, beside PyTorch's own fp16."""
    alone, together = continuations(checkpoint, session)
    float32 = OnDevice(checkpoint.model(torch.float32, "eager"), checkpoint.plan.device)
    found = {"alone": agreement(float32, alone), "side by side": agreement(float32, together)}
    total = sum(len(one.token_ids) for one in alone)
    rows = [[f"ours {precision}, {name}", f"{count} of {total}"] for name, count in found.items()]
    if precision == "fp16":
        half = OnDevice(checkpoint.model(torch.float16, "eager"), checkpoint.plan.device)
        found["PyTorch fp16"] = sum(same(half, float32, alone))
        rows.append(["PyTorch fp16, after the same tokens", f"{found['PyTorch fp16']} of {total}"])
    differences = differing(checkpoint, float32, [*alone, *together]) if precision == "fp32" else []
    rows += [[f"differs at {one['position']}, margin {one['margin']:.1e}", verdict(one)] for one in differences]
    value = {"tokens": total, "as PyTorch float32": found, "differences": differences}
    return (
        "greedy",
        value,
        text_table(f"Greedy tokens of {len(alone)} texts that are PyTorch float32's", ["tokens of", "the same"], rows),
    )


def continuations(checkpoint: Checkpoint, session: DecodeGraph) -> tuple[list[Continuation], list[Continuation]]:
    """Alone, and side by side."""
    count, context = checkpoint.plan.tokens, checkpoint.architecture.n_positions
    (ids,) = checkpoint.prompts(1, sum(LENGTHS))
    starts = [sum(LENGTHS[:place]) for place in range(len(LENGTHS))]
    prompts = [ids[start : start + length][: context - count] for start, length in zip(starts, LENGTHS, strict=True)]
    alone = [Ours(session, [prompt], count)(count)[0] for prompt in prompts]
    together = Ours(session, prompts, count)(count)
    return tuple([Continuation(*pair) for pair in zip(prompts, texts, strict=True)] for texts in (alone, together))


def agreement(model: OnDevice, texts: Sequence[Continuation]) -> int:
    """How many tokens are what `model` would have said there."""
    return sum(int((choices(model, one) == torch.tensor(one.token_ids)).sum()) for one in texts)


def same(model: OnDevice, other: OnDevice, texts: Sequence[Continuation]) -> list[int]:
    return [int((choices(model, one) == choices(other, one)).sum()) for one in texts]


def choices(model: OnDevice, text: Continuation) -> torch.Tensor:
    return torch.from_numpy(continuation_logits(model, text).argmax(axis=1))


def differing(checkpoint: Checkpoint, float32: OnDevice, texts: Sequence[Continuation]) -> list[dict]:
    """Where PyTorch's float32 says something else, and whether its two best are too close there to tell."""
    suspects = list(find_suspects(float32, texts))
    if not suspects:
        return []
    truth = OnDevice(as_truth(checkpoint.model(torch.float32, "eager")), checkpoint.plan.device)
    judged = [judge_suspect(truth, texts[suspect.prompt], suspect) for suspect in suspects]
    return [{**asdict(difference), "passed": difference.passed} for difference in judged]


def verdict(difference: dict) -> str:
    return "pass: under float32's noise" if difference["passed"] else "FAIL"
