"""Judge a bundle: PyTorch first, then each graph, one after the other so that they never share memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import GPT2LMHeadModel

from export.checkpoint import Checkpoint
from export.parity.cases import Case, make_cases
from export.parity.greedy import PROMPTS, Continuation, Difference, continue_prompts, find_suspects, judge_suspect
from export.parity.outputs import (
    Outputs,
    decode_outputs,
    last_position,
    normwise_error,
    pytorch_outputs,
    reference_outputs,
)
from export.parity.report import Report, Row, with_largest_noise
from export.progress import Report as Progress
from runtime.bundle import Bundle
from runtime.decode_session import DecodeSession
from runtime.reference_session import ReferenceSession
from runtime.tokenizer import Tokenizer


@dataclass(frozen=True)
class Standard:
    """What a case is held against: the truth, and how far PyTorch's own float32 is from it, by graph and tensor."""

    case: Case
    truth: Outputs
    pytorch_errors: dict[tuple[str, str], float]


def verify_bundle(bundle: Bundle, checkpoint: Checkpoint, progress: Progress) -> Report:
    """Judge every output tensor and the greedy tokens of `bundle` against its checkpoint in PyTorch."""
    architecture = bundle.manifest.architecture
    tokenizer = Tokenizer(bundle.folder / "tokenizer.json")
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    text_ids = [token for prompt in prompts for token in prompt]
    cases = make_cases(text_ids, architecture.vocab_size, architecture.n_positions)
    progress("PyTorch in float32 and float64")
    standards = measure_pytorch(checkpoint, cases)
    progress("the reference graph")
    rows = judge_reference(bundle, standards)
    progress("the decode graph")
    decode = DecodeSession(bundle.graph_path("decode"), architecture, device="cpu", threads=None)
    rows += judge_decode(decode, standards)
    continuations = continue_prompts(decode, prompts, architecture.n_positions)
    del decode, standards
    progress("greedy tokens in PyTorch")
    return Report(with_largest_noise(rows), tuple(continuations), judge_greedy(checkpoint, continuations))


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
    by_graph = {"reference": (float32, truth), "decode": (last_position(float32), last_position(truth))}
    errors = {
        (graph, name): normwise_error(own[name], true[name]) for graph, (own, true) in by_graph.items() for name in true
    }
    return Standard(case, truth, errors)


def judge_reference(bundle: Bundle, standards: list[Standard]) -> list[Row]:
    architecture = bundle.manifest.architecture
    session = ReferenceSession(bundle.graph_path("reference"), architecture, device="cpu", threads=None)
    return [
        row
        for standard in standards
        for row in compare("reference", standard, reference_outputs(session, standard.case), standard.truth)
    ]


def judge_decode(session: DecodeSession, standards: list[Standard]) -> list[Row]:
    """All cases but the padded one: the decode graph knows a sequence by its length, not by a mask."""
    return [
        row
        for standard in standards
        if not standard.case.padded
        for row in compare("decode", standard, decode_outputs(session, standard.case), last_position(standard.truth))
    ]


def compare(graph: str, standard: Standard, outputs: Outputs, truth: Outputs) -> Iterator[Row]:
    """A row for each tensor of the truth; one that the graph lacks is a KeyError."""
    for name, true in truth.items():
        error = normwise_error(outputs[name], true)
        yield Row(graph, name, standard.case.name, error, standard.pytorch_errors[graph, name])


def judge_greedy(checkpoint: Checkpoint, continuations: list[Continuation]) -> tuple[Difference, ...]:
    """What differs from PyTorch's float32 choice; float64 is asked only if anything does."""
    model = checkpoint.load_model()
    suspects = list(find_suspects(model, continuations))
    truth = as_truth(model) if suspects else model
    return tuple(judge_suspect(truth, continuations[suspect.prompt], suspect) for suspect in suspects)
