"""What graphs are compared with: PyTorch's float64 outputs in each case, and how far its own float32 is from them."""

from collections.abc import Iterator
from dataclasses import dataclass

from transformers import GPT2LMHeadModel

from export.parity.cases import Case
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
from runtime.graphs.decode import DecodeGraph

Noise = dict[tuple[str, bool], float]


@dataclass(frozen=True)
class Standard:
    """The standard of a case: the truth, and how far PyTorch's own float32 is from it.

    `noise` is keyed by tensor, and by whether it is for its worst single position (True) or the whole tensor (False).
    """

    case: Case
    truth: Outputs
    noise: Noise


def measure_pytorch(model: GPT2LMHeadModel, cases: list[Case]) -> list[Standard]:
    """The standards of all cases; `model` is in float32, and in float64 afterwards."""
    float32 = [pytorch_outputs(model, case) for case in cases]
    truths = read_truths(as_truth(model), cases)
    return [make_standard(case, float32.pop(0), true) for case, true in zip(cases, truths, strict=True)]


def read_truths(model: GPT2LMHeadModel, cases: list[Case]) -> list[Outputs]:
    """The outputs of a model in float64, which reads the same ids once: in parts they would differ by 1e-15."""
    keys = [(case.input_ids.tobytes(), case.attention_mask.tobytes()) for case in cases]
    known = {key: pytorch_outputs(model, case.whole()) for key, case in dict(zip(keys, cases, strict=True)).items()}
    return [known[key] for key in keys]


def make_standard(case: Case, float32: Outputs, truth: Outputs) -> Standard:
    noise: Noise = {}
    for name, true in truth.items():
        noise[name, False] = normwise_error(float32[name], true)
        noise[name, True] = worst_position_error(name, float32[name], true)
    return Standard(case, truth, noise)


def largest_noise(standards: list[Standard]) -> Noise:
    """The largest noise of each tensor over all cases.

    A tensor's error in one case is a random draw, and the smaller the tensor, the wider the spread: over twelve texts,
    the last logits of PyTorch's eager and SDPA attention, equal in principle, had errors in ratios from 0.7 to 1.5. A
    draw that happens to be small would fail any graph compared with it.
    """
    keys = standards[0].noise
    return {key: max(standard.noise[key] for standard in standards) for key in keys}


def judge_decode(graph: str, decode: DecodeGraph, standards: list[Standard], noise: Noise) -> list[Row]:
    """Rows for all cases; for the padded one, the decode graph gets the rows' lengths instead of a mask."""
    return [
        row
        for standard in standards
        for row in compare(
            graph,
            standard,
            decode_outputs(decode, standard.case),
            decoded(standard.truth, standard.case),
            noise,
        )
    ]


def compare(graph: str, standard: Standard, outputs: Outputs, truth: Outputs, noise: Noise) -> Iterator[Row]:
    """A row for each tensor of the truth; KeyError if the graph lacks one."""
    for name, true in truth.items():
        error = normwise_error(outputs[name], true)
        yield Row(graph, name, standard.case.name, error, noise[name, last_only(name, true)])
