"""Parity on the device: tensors against PyTorch's float64, beside its own error there, and greedy tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from benchmarks.common.study import text_table
from benchmarks.gpu.checkpoint import Checkpoint, OnDevice
from benchmarks.gpu.parts import Piece, Plan
from benchmarks.gpu.sides import Ours
from export.parity.cases import Case, make_cases, single
from export.parity.greedy import continuation_logits, find_suspects, judge_suspect
from export.parity.likelihoods import as_truth
from export.parity.outputs import (
    Outputs,
    decode_outputs,
    decoded,
    last_only,
    normwise_error,
    pytorch_outputs,
    worst_position_error,
)
from export.parity.report import Row
from runtime.bundle.manifest import Continuation
from runtime.graphs.decode import DecodeGraph

STEPS = 8  # after a long prompt
LENGTHS = 3, 17, 40, 64, 100, 200  # of the prompts that are continued greedily
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
Noise = dict[tuple[str, bool], float]  # by tensor, and whether of its worst single position


def pieces(plan: Plan, precision: str) -> Iterator[Piece]:
    torch.set_float32_matmul_precision("highest")
    checkpoint = Checkpoint(plan)
    cases = cases_of(checkpoint)
    truths, noise = read_by_pytorch(checkpoint, cases, DTYPES[precision])
    session = checkpoint.session(precision)
    rows = [
        Row(precision, name, case.name, normwise_error(outputs[name], true), noise[name, last_only(name, true)])
        for case, truth in zip(cases, truths, strict=True)
        for outputs in [decode_outputs(session, case)]
        for name, true in truth.items()
    ]
    yield "rows", [{**asdict(row), "share": row.share} for row in rows], parity_table(rows, precision, plan.device)
    yield greedy_piece(checkpoint, session, precision)


def cases_of(checkpoint: Checkpoint) -> list[Case]:
    """Export's own, and a long prompt with steps after it."""
    plan, sizes = checkpoint.plan, checkpoint.architecture
    (ids,) = checkpoint.prompts(1, min(plan.long, sizes.n_positions - 1))
    lengths = (len(ids) - STEPS, *[1] * STEPS)
    return [
        *make_cases(ids, sizes.vocab_size, sizes.n_positions),
        single(f"{len(ids)} tokens", np.array(ids)),
        single(f"{lengths[0]} tokens, then {STEPS} alone", np.array(ids), lengths),
    ]


def read_by_pytorch(checkpoint: Checkpoint, cases: list[Case], dtype: torch.dtype) -> tuple[list[Outputs], Noise]:
    """The truth, as the decode graph would return it, and PyTorch's largest error of each tensor in `dtype`."""
    device, noise = checkpoint.plan.device, Noise()
    own = OnDevice(checkpoint.model(dtype, "eager"), device)
    true_model = OnDevice(as_truth(checkpoint.model(torch.float32, "eager")), device)
    truths = []
    for case in cases:
        found, truth = pytorch_outputs(own, case), pytorch_outputs(true_model, case)
        for name in decoded(truth, case):
            errors = normwise_error(found[name], truth[name]), worst_position_error(name, found[name], truth[name])
            for one_position, error in enumerate(errors):
                noise[name, bool(one_position)] = max(noise.get((name, bool(one_position)), 0.0), error)
        truths.append(decoded(truth, case))
    return truths, noise


def parity_table(rows: list[Row], precision: str, device: str) -> str:
    """The worst layer and case of each kind of tensor."""
    worst: dict[str, Row] = {}
    for row in rows:
        kind = row.tensor.rpartition(".")[2]
        worst[kind] = max(worst.get(kind, row), row, key=lambda one: one.share)
    cells = [
        [row.tensor, row.case, f"{row.error:.2e}", f"{row.pytorch_error:.2e}", "pass" if row.share <= 1 else "FAIL"]
        for row in worst.values()
    ]
    cases = len({row.case for row in rows})
    title = f"Parity in {precision} on {device}, {cases} cases: error against float64, at most twice PyTorch's own"
    return text_table(title, ["worst tensor", "case", "error", f"PyTorch {precision}", "verdict"], cells)


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
    starts = [sum(LENGTHS[:index]) for index in range(len(LENGTHS))]
    prompts = [ids[start : start + length][: context - count] for start, length in zip(starts, LENGTHS, strict=True)]
    alone = [Ours(session, [prompt])(count)[0] for prompt in prompts]
    together = Ours(session, prompts)(count)
    first, second = ([*map(Continuation, prompts, texts)] for texts in (alone, together))
    return first, second


def agreement(model: OnDevice, texts: Sequence[Continuation]) -> int:
    """How many tokens are what `model` would have said there."""
    return sum(int((choices(model, one) == torch.tensor(one.token_ids)).sum()) for one in texts)


def same(model: OnDevice, other: OnDevice, texts: Sequence[Continuation]) -> list[int]:
    return [int((choices(model, one) == choices(other, one)).sum()) for one in texts]


def choices(model: OnDevice, text: Continuation) -> torch.Tensor:
    return torch.from_numpy(continuation_logits(model, text).argmax(axis=1))


def differing(checkpoint: Checkpoint, float32: OnDevice, texts: Sequence[Continuation]) -> list[dict[str, Any]]:
    """Where PyTorch's float32 says something else, and whether its two best are too close there to tell."""
    suspects = list(find_suspects(float32, texts))
    if not suspects:
        return []
    truth = OnDevice(as_truth(checkpoint.model(torch.float32, "eager")), checkpoint.plan.device)
    judged = [judge_suspect(truth, texts[suspect.prompt], suspect) for suspect in suspects]
    return [{**asdict(difference), "passed": difference.passed} for difference in judged]


def verdict(difference: dict[str, Any]) -> str:
    return "pass: under float32's noise" if difference["passed"] else "FAIL"
