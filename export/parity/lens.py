"""Compares the lens graph with PyTorch's `ln_f` and `lm_head` over PyTorch's hidden states."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import GPT2LMHeadModel

from export.checkpoint import Checkpoint
from export.parity.cases import Case
from export.parity.memory import give_back
from export.parity.outputs import Outputs, normwise_error, pytorch_outputs, reference_outputs
from export.parity.report import Row
from runtime.bundle.bundle import Bundle
from runtime.graphs.lens import LensGraph
from runtime.graphs.reference import ReferenceGraph

POSITIONS = 4  # the last ones of a case: all layers' logits of GPT-2 small are 2.4 MB per position
Floats = NDArray[Any]


class LensStandard(NamedTuple):
    """A case, and each layer's logits [positions, V] for it: the truth, and PyTorch's float32."""

    case: Case
    truth: list[Floats]
    float32: list[Floats]


def judge_lens(bundle: Bundle, checkpoint: Checkpoint, cases: Sequence[Case], truths: Sequence[Outputs]) -> list[Row]:
    """A row for each layer and each case that is one run over one text; `truths` are PyTorch's in float64."""
    known = [(case, truth) for case, truth in zip(cases, truths, strict=True) if is_one_run(case)]
    standards = measure_lens(checkpoint.load_model(), known)
    give_back()  # PyTorch's memory, before the sessions take theirs
    noise = [max(normwise_error(*pair) for pair in layer) for layer in zip(*map(pairs, standards), strict=True)]
    architecture = bundle.manifest.architecture
    reference = ReferenceGraph(bundle.graph_path("reference"), architecture)
    lens = LensGraph(bundle.graph_path("lens"), architecture)
    rows = []
    for case, truth, _ in standards:
        found = map(lens.logits, layers_of(reference_outputs(reference, case)))
        for layer, (logits, true) in enumerate(zip(found, truth, strict=True)):
            rows.append(Row("lens", f"logits.{layer}", case.name, normwise_error(logits, true), noise[layer]))
    return rows


def is_one_run(case: Case) -> bool:
    return len(case.lengths) == len(case.input_ids) == 1


def measure_lens(model: GPT2LMHeadModel, known: Sequence[tuple[Case, Outputs]]) -> list[LensStandard]:
    """Logits of each layer in float64 and float32; of the float32 `model` only the end is converted to float64."""
    end = nn.Sequential(model.transformer.ln_f, model.lm_head)
    float32 = [read(end, pytorch_outputs(model, case)) for case, _ in known]
    del model
    end = end.to(torch.float64)
    return [LensStandard(case, read(end, truth), single) for (case, truth), single in zip(known, float32, strict=True)]


@torch.no_grad()
def read(end: nn.Module, outputs: Outputs) -> list[Floats]:
    """The logits of each layer."""
    return [end(torch.from_numpy(state)).numpy() for state in layers_of(outputs)]


def layers_of(outputs: Outputs) -> list[Floats]:
    """The last hidden states [positions, C] of each layer except the last, which `ln_f` has already normed."""
    names = [name for name in outputs if name.startswith("hidden_states.")][:-1]
    return [np.ascontiguousarray(outputs[name][0, -POSITIONS:]) for name in names]


def pairs(standard: LensStandard) -> list[tuple[Floats, Floats]]:
    return list(zip(standard.float32, standard.truth, strict=True))
