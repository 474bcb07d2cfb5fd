"""The tolerances of float16: PyTorch's own float16 errors, and how near activations come to overflow."""

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
MOST_SHARE = 0.5  # of LARGEST that an activation may take: untried texts may have larger ones
MOST_COST = 0.002  # relative, of perplexity
LONGEST = 8  # ids of a case: PyTorch's float16 takes 0.1 s per id here, and its error does not grow with their number


def half_noise(
    model: GPT2LMHeadModel, cases: Sequence[Case], truths: Sequence[Outputs]
) -> dict[tuple[str, bool], float]:
    """Each tensor's largest error in float16, whole and at its worst single position; `model` becomes float16."""
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
    """The largest output of any module of the float32 `model` except `lm_head`, over texts [B, S]."""
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
