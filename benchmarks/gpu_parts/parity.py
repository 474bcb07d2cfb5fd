"""Parity on the device: the graphs against PyTorch's float64, beside PyTorch's own error there."""

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import torch
from gpu_parts.checkpoint import Checkpoint
from gpu_parts.greedy import greedy_piece
from gpu_parts.on_device import OnDevice
from gpu_parts.part import Piece
from gpu_parts.plan import Plan
from gpu_parts.text_table import text_table

from export.parity.cases import Case, make_cases, single
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

STEPS = 8  # after a long prompt
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
