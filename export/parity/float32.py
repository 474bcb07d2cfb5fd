"""Judges the float32 graphs of a bundle: every output tensor, and the greedy tokens."""

from collections.abc import Sequence

from export.checkpoint import Checkpoint
from export.parity.greedy import (
    Difference,
    as_pytorch_has_them,
    continue_prompts,
    continue_together,
    find_suspects,
    judge_suspect,
)
from export.parity.lens import judge_lens
from export.parity.likelihoods import as_truth, judge_likelihoods
from export.parity.outputs import reference_outputs
from export.parity.parts import Parts
from export.parity.report import Report, Row
from export.parity.standard import Noise, Standard, compare, judge_decode, largest_noise
from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import Continuation
from runtime.graphs.decode import DecodeGraph, open_decode_graph
from runtime.graphs.reference import ReferenceGraph
from runtime.ort.placement import Placement
from runtime.text.tokenizer import Tokenizer

REHEARSED = Placement(on_device=True)  # CUDA's code path on the CPU: state stays in device arrays


def judge_float32(
    bundle: Bundle,
    checkpoint: Checkpoint,
    standards: list[Standard],
    prompts: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    parts: Parts,
) -> Report:
    """Judge all float32 graphs by the checkpoint's standards, and the greedy tokens after `prompts`."""
    architecture, noise = bundle.manifest.architecture, largest_noise(standards)
    parts.begin("the reference graph")
    rows = judge_reference(bundle, standards, noise)
    parts.begin("the lens")
    cases, truths = [standard.case for standard in standards], [standard.truth for standard in standards]
    rows += judge_lens(bundle, checkpoint, cases, truths)
    parts.begin("the decode graphs")
    rows += judge_decode("decode", DecodeGraph(bundle.graph_path("decode"), architecture), standards, noise)
    served = open_decode_graph(bundle)
    if bundle.manifest.has_graph("ragged", "fp32"):
        rows += judge_decode("ragged", served, standards, noise)
    continuations = continue_prompts(served, prompts, architecture.n_positions)
    together = continue_together(served, continuations, tokenizer)
    del served
    parts.begin("the decode graph for CUDA, on the CPU")
    rows += judge_decode("decode_cuda", open_decode_graph(bundle, placement=REHEARSED), standards, noise)
    parts.begin("greedy tokens in PyTorch")
    differences = judge_greedy(checkpoint, continuations)
    probes = as_pytorch_has_them(continuations, differences)
    likelihoods, lens = judge_likelihoods(checkpoint, probes)
    return Report(
        tuple(rows),
        sum(len(continuation.token_ids) for continuation in continuations),
        tuple(probes),
        differences=differences,
        together=judge_together(checkpoint, continuations, together),
        likelihoods=likelihoods,
        lens=lens,
    )


def judge_reference(bundle: Bundle, standards: list[Standard], noise: Noise) -> list[Row]:
    architecture = bundle.manifest.architecture
    reference = ReferenceGraph(bundle.graph_path("reference"), architecture)
    return [
        row
        for standard in standards
        for row in compare("reference", standard, reference_outputs(reference, standard.case), standard.truth, noise)
    ]


def judge_together(
    checkpoint: Checkpoint, alone: list[Continuation], together: list[Continuation]
) -> tuple[Difference, ...]:
    """Where a batch differs from PyTorch; not checked if it gives the same tokens as single prompts."""
    return () if together == alone else judge_greedy(checkpoint, together)


def judge_greedy(checkpoint: Checkpoint, continuations: list[Continuation]) -> tuple[Difference, ...]:
    """The differences from PyTorch's float32 choice; float64 runs only if there are any."""
    model = checkpoint.load_model()
    suspects = list(find_suspects(model, continuations))
    truth = as_truth(model) if suspects else model
    return tuple(judge_suspect(truth, continuations[suspect.prompt], suspect) for suspect in suspects)
