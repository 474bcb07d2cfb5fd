"""Run the bundle and PyTorch over the same inputs, one after the other so that they never share memory."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from transformers import GPT2LMHeadModel

from export.checkpoint import Checkpoint
from export.parity.cases import Case, make_cases
from export.parity.greedy import (
    PROMPTS,
    Continuation,
    Difference,
    continuation_logits,
    continue_prompts,
    first_difference,
)
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

BundleOutputs = Mapping[tuple[str, str], Outputs]  # by graph and case


def verify_bundle(bundle: Bundle, checkpoint: Checkpoint, progress: Progress) -> Report:
    """Judge every output tensor and the greedy tokens of `bundle` against its checkpoint in PyTorch."""
    architecture = bundle.manifest.architecture
    tokenizer = Tokenizer(bundle.folder / "tokenizer.json")
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    text_ids = [token for prompt in prompts for token in prompt]
    cases = make_cases(text_ids, architecture.vocab_size, architecture.n_positions)
    progress("the bundle")
    outputs, continuations = run_bundle(bundle, cases, prompts)
    progress("PyTorch float32")
    model = checkpoint.load_model()
    float32 = [pytorch_outputs(model, case) for case in cases]
    float32_logits = [continuation_logits(model, continuation) for continuation in continuations]
    progress("PyTorch float64")
    truth = as_truth(model)
    rows = [row for case, own in zip(cases, float32, strict=True) for row in judge(case, own, truth, outputs)]
    differences = judge_greedy(continuations, float32_logits, truth)
    return Report(with_largest_noise(rows), tuple(continuations), tuple(differences))


def run_bundle(bundle: Bundle, cases: list[Case], prompts: list[list[int]]) -> tuple[BundleOutputs, list[Continuation]]:
    """What both graphs return; their sessions, and the memory that these take, end with this function."""
    architecture = bundle.manifest.architecture
    outputs: dict[tuple[str, str], Outputs] = {}
    reference = ReferenceSession(bundle.graph_path("reference"), architecture, device="cpu", threads=None)
    for case in cases:
        outputs["reference", case.name] = reference_outputs(reference, case)
    del reference
    decode = DecodeSession(bundle.graph_path("decode"), architecture, device="cpu", threads=None)
    for case in cases:
        if not case.padded:
            outputs["decode", case.name] = decode_outputs(decode, case)
    return outputs, continue_prompts(decode, prompts, architecture.n_positions)


def as_truth(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """`model` itself in float64. Its attention must not go through float32, as reorder_and_upcast_attn would."""
    for block in model.transformer.h:
        block.attn.reorder_and_upcast_attn = False
    return model.to(torch.float64)


def judge(case: Case, float32: Outputs, truth: GPT2LMHeadModel, outputs: BundleOutputs) -> Iterator[Row]:
    true = pytorch_outputs(truth, case)
    yield from compare("reference", case.name, outputs["reference", case.name], float32, true)
    if ("decode", case.name) in outputs:
        decoded = outputs["decode", case.name]
        yield from compare("decode", case.name, decoded, last_position(float32), last_position(true))


def compare(graph: str, case: str, outputs: Outputs, float32: Outputs, truth: Outputs) -> Iterator[Row]:
    """A row for each tensor of the truth; one that the graph lacks is a KeyError."""
    for name, true in truth.items():
        yield Row(graph, name, case, normwise_error(outputs[name], true), normwise_error(float32[name], true))


def judge_greedy(
    continuations: list[Continuation], float32: list[NDArray[Any]], truth: GPT2LMHeadModel
) -> Iterator[Difference]:
    for number, (continuation, logits) in enumerate(zip(continuations, float32, strict=True)):
        difference = first_difference(number, continuation, logits, continuation_logits(truth, continuation))
        if difference:
            yield difference
