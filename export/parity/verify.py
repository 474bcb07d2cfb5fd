"""Judge a bundle: PyTorch first, then each graph, one after the other so that they never share memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import GPT2LMHeadModel

from export.checkpoint import Checkpoint
from export.parity.cases import Case, make_cases
from export.parity.greedy import (
    PROMPTS,
    Difference,
    continue_prompts,
    continue_together,
    find_suspects,
    judge_suspect,
)
from export.parity.outputs import (
    Outputs,
    decode_outputs,
    decoded,
    last_only,
    normwise_error,
    pytorch_outputs,
    reference_outputs,
    worst_position_error,
)
from export.parity.report import Report, Row
from export.progress import Progress
from runtime.bundle import Bundle
from runtime.decode_session import DecodeSession
from runtime.manifest import Continuation
from runtime.reference_session import ReferenceSession
from runtime.tokenizer import Tokenizer

Noise = dict[tuple[str, bool], float]


@dataclass(frozen=True)
class Standard:
    """What a case is held against: the truth, and how far PyTorch's own float32 is from it.

    `noise` is by tensor and by whether it is that of the whole tensor or of its worst single position.
    """

    case: Case
    truth: Outputs
    noise: Noise


def verify_bundle(bundle: Bundle, checkpoint: Checkpoint, progress: Progress) -> Report:
    """Judge every output tensor and the greedy tokens of `bundle` against its checkpoint in PyTorch."""
    architecture = bundle.manifest.architecture
    tokenizer = Tokenizer(bundle.folder / "tokenizer.json")
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    text_ids = [token for prompt in prompts for token in prompt]
    cases = make_cases(text_ids, architecture.vocab_size, architecture.n_positions)
    progress("PyTorch in float32 and float64")
    standards = measure_pytorch(checkpoint, cases)
    noise = largest_noise(standards)
    progress("the reference graph")
    rows = judge_reference(bundle, standards, noise)
    progress("the decode graph")
    decode = DecodeSession(bundle.graph_path("decode"), architecture, device="cpu", threads=None)
    rows += judge_decode(decode, standards, noise)
    continuations = continue_prompts(decode, prompts, architecture.n_positions)
    together = continue_together(decode, continuations, tokenizer)
    del decode, standards
    progress("greedy tokens in PyTorch")
    return Report(
        tuple(rows),
        tuple(continuations),
        differences=judge_greedy(checkpoint, continuations),
        together=judge_together(checkpoint, continuations, together),
    )


def measure_pytorch(checkpoint: Checkpoint, cases: list[Case]) -> list[Standard]:
    model = checkpoint.load_model()
    float32 = [pytorch_outputs(model, case) for case in cases]
    truth = as_truth(model)
    return [make_standard(case, float32.pop(0), pytorch_outputs(truth, case)) for case in cases]


def as_truth(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """`model` itself in float64. Its attention must not go through float32, as reorder_and_upcast_attn would."""
    for block in model.transformer.h:
        block.attn.reorder_and_upcast_attn = False
    return model.to(torch.float64)


def make_standard(case: Case, float32: Outputs, truth: Outputs) -> Standard:
    noise: Noise = {}
    for name, true in truth.items():
        noise[name, False] = normwise_error(float32[name], true)
        noise[name, True] = worst_position_error(name, float32[name], true)
    return Standard(case, truth, noise)


def judge_reference(bundle: Bundle, standards: list[Standard], noise: Noise) -> list[Row]:
    architecture = bundle.manifest.architecture
    session = ReferenceSession(bundle.graph_path("reference"), architecture, device="cpu", threads=None)
    return [
        row
        for standard in standards
        for row in compare("reference", standard, reference_outputs(session, standard.case), standard.truth, noise)
    ]


def judge_decode(session: DecodeSession, standards: list[Standard], noise: Noise) -> list[Row]:
    """All cases; the decode graph knows the rows of the padded one by their lengths, not by a mask."""
    return [
        row
        for standard in standards
        for row in compare(
            "decode",
            standard,
            decode_outputs(session, standard.case),
            decoded(standard.truth, standard.case),
            noise,
        )
    ]


def largest_noise(standards: list[Standard]) -> Noise:
    """Of each tensor over all cases.

    The error of one tensor is one draw of a random size, and the smaller the tensor, the wider the draws: over twelve
    texts the last logits of PyTorch's eager and SDPA attention, equal in principle, had errors in ratios from 0.7 to
    1.5. A draw that happens to be small would condemn whatever is held against it.
    """
    keys = standards[0].noise
    return {key: max(standard.noise[key] for standard in standards) for key in keys}


def compare(graph: str, standard: Standard, outputs: Outputs, truth: Outputs, noise: Noise) -> Iterator[Row]:
    """A row for each tensor of the truth; one that the graph lacks is a KeyError."""
    for name, true in truth.items():
        error = normwise_error(outputs[name], true)
        yield Row(graph, name, standard.case.name, error, noise[name, last_only(name, true)])


def judge_together(
    checkpoint: Checkpoint, alone: list[Continuation], together: list[Continuation]
) -> tuple[Difference, ...]:
    """What prompts side by side get that is neither what they get alone nor what PyTorch says."""
    return () if together == alone else judge_greedy(checkpoint, together)


def judge_greedy(checkpoint: Checkpoint, continuations: list[Continuation]) -> tuple[Difference, ...]:
    """What differs from PyTorch's float32 choice; float64 is asked only if anything does."""
    model = checkpoint.load_model()
    suspects = list(find_suspects(model, continuations))
    truth = as_truth(model) if suspects else model
    return tuple(judge_suspect(truth, continuations[suspect.prompt], suspect) for suspect in suspects)
