"""Verifies a bundle: runs PyTorch first, then each graph in turn, so that only one is in memory at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import GPT2LMHeadModel

from export.checkpoint import Checkpoint
from export.errors import ParityError
from export.parity.cases import Case, make_cases
from export.parity.greedy import (
    PROMPTS,
    Difference,
    as_pytorch_has_them,
    continue_prompts,
    continue_together,
    find_suspects,
    judge_suspect,
)
from export.parity.half import MOST_COST, half_noise, largest_activation
from export.parity.int8_cache import CacheQuality, judge_cache, likeliest
from export.parity.lens import judge_lens
from export.parity.likelihoods import as_truth, judge_likelihoods
from export.parity.memory import give_back
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
from export.parity.precision import Quality, Readings, exact_graph, judge_quality, read_by_pytorch, with_weights
from export.parity.report import INT8_CACHE, Refusal, Report, Row
from export.parity.rounded import judge_rounded, measure_cache_rounding, measure_rounding
from export.progress import Progress
from export.quantization.cache_scales import CacheScales
from export.quantization.codes import QuantizedWeights
from export.quantization.recipe import HALF, Recipe
from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import Continuation, Kind
from runtime.graphs.decode import DecodeGraph, open_decode_graph
from runtime.graphs.reference import ReferenceGraph
from runtime.graphs.work import MANY
from runtime.ort.placement import Placement
from runtime.proof.rounded import RoundedStandard
from runtime.text.tokenizer import Tokenizer

Noise = dict[tuple[str, bool], float]
Texts = NDArray[np.int64]
REHEARSED = Placement(on_device=True)  # CUDA's code path on the CPU: state stays in device arrays


@dataclass(frozen=True)
class Standard:
    """The standard of a case: the truth, and how far PyTorch's own float32 is from it.

    `noise` is keyed by tensor, and by whether it is for its worst single position (True) or the whole tensor (False).
    """

    case: Case
    truth: Outputs
    noise: Noise


@dataclass(frozen=True)
class Quantized:
    """A precision of the bundle: its recipe, and its weights."""

    recipe: Recipe
    weights: QuantizedWeights

    def kinds(self, bundle: Bundle) -> list[Kind]:
        """The kinds of its graphs, without the one for an int8 cache, which is judged apart."""
        found = [graph.kind for graph in bundle.manifest.graphs if graph.precision == self.recipe.precision]
        return [kind for kind in found if kind != INT8_CACHE]


def verify_bundle(
    bundle: Bundle,
    checkpoint: Checkpoint,
    progress: Progress,
    quantized: Sequence[Quantized] = (),
    texts: Texts | None = None,
    cache: CacheScales | None = None,
) -> Report:
    """Judge every output tensor and the greedy tokens of `bundle` against its checkpoint in PyTorch.

    Args:
        texts: [B, S], which were not used to calibrate; precisions other than float32 are judged by them.
        cache: The scales of int8 keys and values, if the bundle has them.
    """
    architecture = bundle.manifest.architecture
    tokenizer = Tokenizer(bundle.folder / "tokenizer.json")
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    text_ids = [token for prompt in prompts for token in prompt]
    cases = make_cases(text_ids, architecture.vocab_size, architecture.n_positions)
    begin(progress, "PyTorch in float32 and float64")
    standards = measure_pytorch(checkpoint.load_model(), cases)
    noise = largest_noise(standards)
    begin(progress, "the reference graph")
    rows = judge_reference(bundle, standards, noise)
    begin(progress, "the lens")
    rows += judge_lens(bundle, checkpoint, cases, [standard.truth for standard in standards])
    begin(progress, "the decode graphs")
    rows += judge_decode("decode", DecodeGraph(bundle.graph_path("decode"), architecture), standards, noise)
    served = open_decode_graph(bundle)
    if bundle.manifest.has_graph("ragged", "fp32"):
        rows += judge_decode("ragged", served, standards, noise)
    continuations = continue_prompts(served, prompts, architecture.n_positions)
    together = continue_together(served, continuations, tokenizer)
    del served
    begin(progress, "the decode graph for CUDA, on the CPU")
    rows += judge_decode("decode_cuda", open_decode_graph(bundle, placement=REHEARSED), standards, noise)
    qualities, halves, rounded, refused = [], [], [], []
    readings = None
    if texts is not None:
        begin(progress, "PyTorch's perplexity")
        readings = read_by_pytorch(checkpoint.load_model(), texts)
    if readings and bundle.manifest.has_graph("decode", HALF):
        begin(progress, "PyTorch in float16, and the float16 graph")
        try:
            found, quality, largest = judge_half(bundle, checkpoint, standards, readings)
        except ParityError as error:
            refused.append(Refusal(HALF, str(error)))
        else:
            rows += found
            qualities.append(quality)
            halves.append(largest)
    del standards
    for part in quantized:
        assert readings  # nothing is quantized without texts
        begin(progress, f"the {part.recipe.precision} graphs")
        try:
            found, quality, standard = judge_weights(bundle, checkpoint, part, cases, readings)
        except ParityError as error:
            refused.append(Refusal(part.recipe.precision, str(error)))
        else:
            rows += found
            qualities.append(quality)
            rounded.append(standard)
    caches: list[tuple[list[Row], CacheQuality, RoundedStandard]] = []
    if cache:
        begin(progress, "int8 keys and values")
        judged = {quality.precision for quality in qualities}
        caches = judge_caches(
            bundle, checkpoint, [part for part in quantized if part.recipe.precision in judged], cache
        )
        rows += [row for found, _, _ in caches for row in found]
    begin(progress, "greedy tokens in PyTorch")
    differences = judge_greedy(checkpoint, continuations)
    probes = as_pytorch_has_them(continuations, differences)
    likelihoods, lens = judge_likelihoods(checkpoint, probes, half=bool(halves))
    return Report(
        tuple(rows),
        tuple(continuations),
        differences=differences,
        together=judge_together(checkpoint, continuations, together),
        qualities=tuple(qualities),
        likelihoods=likelihoods,
        lens=lens,
        rounded=tuple(rounded),
        caches=tuple(quality for _, quality, _ in caches),
        rounded_caches=tuple(standard for _, _, standard in caches),
        refused=tuple(refused),
        largest_activation=max(halves, default=None),
    )


def begin(progress: Progress, step: str) -> None:
    """Report the next step, after giving back the memory of the last one."""
    give_back()
    progress(step)


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


def judge_reference(bundle: Bundle, standards: list[Standard], noise: Noise) -> list[Row]:
    architecture = bundle.manifest.architecture
    reference = ReferenceGraph(bundle.graph_path("reference"), architecture)
    return [
        row
        for standard in standards
        for row in compare("reference", standard, reference_outputs(reference, standard.case), standard.truth, noise)
    ]


def judge_weights(
    bundle: Bundle, checkpoint: Checkpoint, part: Quantized, cases: list[Case], readings: Readings
) -> tuple[list[Row], Quality, RoundedStandard]:
    """Compare a precision's graphs with PyTorch with its weights: without rounded inputs, and as they are served."""
    precision, kinds = part.recipe.precision, part.kinds(bundle)
    model = with_weights(checkpoint.load_model(), part.weights)
    quality = judge_quality(
        open_decode_graph(bundle, precision=precision),
        readings,
        model,
        part.weights,
        precision=precision,
        most_cost=part.recipe.most_cost,
        integer="prefill" in kinds and readings.texts.shape[1] >= MANY,
    )
    standards = measure_pytorch(model, cases)  # `model` is in float64 afterwards
    served = measure_rounding(model, part.weights, readings.texts[0].tolist(), precision=precision, kinds=kinds)
    del model
    rows = []
    for kind in ("decode", "ragged"):
        if kind in kinds:
            with exact_graph(bundle.graph_path(kind, precision)) as path:
                decode = DecodeGraph(path, bundle.manifest.architecture)
                rows += judge_decode(f"{kind} {precision}", decode, standards, largest_noise(standards))
    return [*rows, *judge_rounded(bundle, served)], quality, served


def judge_caches(
    bundle: Bundle, checkpoint: Checkpoint, quantized: Sequence[Quantized], cache: CacheScales
) -> list[tuple[list[Row], CacheQuality, RoundedStandard]]:
    """Judge int8 keys and values in float32 and in other precisions."""
    expected, found = likeliest(checkpoint.load_model(), cache.texts), []
    weights: dict[str, QuantizedWeights | None] = {"fp32": None}
    for precision, each in (weights | {part.recipe.precision: part.weights for part in quantized}).items():
        model = checkpoint.load_model()
        model = as_truth(with_weights(model, each) if each else model)
        standard = measure_cache_rounding(model, each, cache.texts[0].tolist(), cache.scales, precision=precision)
        del model
        give_back()
        rows = list(judge_rounded(bundle, standard))
        found.append((rows, judge_cache(bundle, precision, cache.texts, expected), standard))
        give_back()
    return found


def judge_half(
    bundle: Bundle, checkpoint: Checkpoint, standards: list[Standard], readings: Readings
) -> tuple[list[Row], Quality, float]:
    """Judge the float16 graph on the CPU: errors beside PyTorch's float16, perplexity, and the largest activation."""
    cases, truths = [standard.case for standard in standards], [standard.truth for standard in standards]
    noise = half_noise(checkpoint.load_model(), cases, truths)
    decode = open_decode_graph(bundle, precision=HALF)
    rows = judge_decode(f"decode {HALF}", decode, standards, noise)
    model = checkpoint.load_model()
    quality = judge_quality(decode, readings, model, None, precision=HALF, most_cost=MOST_COST)
    return rows, quality, largest_activation(model, readings.texts)


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


def largest_noise(standards: list[Standard]) -> Noise:
    """The largest noise of each tensor over all cases.

    A tensor's error in one case is a random draw, and the smaller the tensor, the wider the spread: over twelve texts,
    the last logits of PyTorch's eager and SDPA attention, equal in principle, had errors in ratios from 0.7 to 1.5. A
    draw that happens to be small would fail any graph compared with it.
    """
    keys = standards[0].noise
    return {key: max(standard.noise[key] for standard in standards) for key in keys}


def compare(graph: str, standard: Standard, outputs: Outputs, truth: Outputs, noise: Noise) -> Iterator[Row]:
    """A row for each tensor of the truth; KeyError if the graph lacks one."""
    for name, true in truth.items():
        error = normwise_error(outputs[name], true)
        yield Row(graph, name, standard.case.name, error, noise[name, last_only(name, true)])


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
