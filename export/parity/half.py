"""What float16 may cost: PyTorch's own float16 is the measure, as its float32 is of float32."""

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from export.errors import ParityError
from export.parity.cases import Case
from export.parity.outputs import Outputs, normwise_error, pytorch_outputs, worst_position_error

LARGEST = float(torch.finfo(torch.float16).max)
MOST_SHARE = 0.5  # of it that an activation may take: texts that nobody tried may have larger ones
MOST_COST = 0.002  # of perplexity
LONGEST = 8  # ids of a case: PyTorch's float16 takes 0.1 s an id here, and errs no more over many of them than over few


def half_noise(
    model: GPT2LMHeadModel, cases: Sequence[Case], truths: Sequence[Outputs]
) -> dict[tuple[str, bool], float]:
    """The largest error of each tensor in float16, and that of its worst single position; `model` becomes float16."""
    noise: dict[tuple[str, bool], float] = {}
    model = model.half()
    for case, truth in zip(cases, truths, strict=True):
        if case.input_ids.size > LONGEST:
            continue
        outputs = pytorch_outputs(model, case)
        for name, true in truth.items():
            whole, single = normwise_error(outputs[name], true), worst_position_error(name, outputs[name], true)
            noise[name, False] = max(noise.get((name, False), 0.0), whole)
            noise[name, True] = max(noise.get((name, True), 0.0), single)
    if not np.isfinite(list(noise.values())).all():
        raise ParityError("PyTorch itself overflows in float16 on this checkpoint")
    return noise


@torch.no_grad()
def largest_activation(model: GPT2LMHeadModel, texts: NDArray[np.int64]) -> float:
    """What any module of `model`, which is in float32, but for `lm_head` gives at most, over texts [B, S]."""
    largest = torch.zeros(())

    def watch(_: nn.Module, __: object, output: object) -> None:
        nonlocal largest
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor):
            largest = torch.maximum(largest, first.abs().max())

    with ExitStack() as hooks:
        for module in model.transformer.modules():
            hooks.callback(module.register_forward_hook(watch).remove)
        for text in texts:
            model(torch.from_numpy(text[None]))
    return float(largest)
