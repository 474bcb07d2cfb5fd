"""Candidates: what a bundle is to have beside float32, judged with PyTorch's numbers for the same weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from export.checkpoint import Checkpoint
from export.errors import ParityError
from export.parity.cases import Case, in_fewer_runs
from export.parity.half import MOST_COST, half_noise, largest_activation
from export.parity.int8_cache import judge_cache, likeliest
from export.parity.likelihoods import as_truth, with_half
from export.parity.memory import give_back
from export.parity.precision import Readings, exact_graph, judge_quality, with_weights
from export.parity.report import INT8_CACHE, Refusal, Report, Row
from export.parity.rounded import judge_rounded, measure_cache_rounding, measure_rounding
from export.parity.standard import Standard, judge_decode, largest_noise, measure_pytorch
from export.quantization.cache_scales import CacheScales
from export.quantization.codes import QuantizedWeights
from export.quantization.recipe import HALF, Recipe
from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import Kind
from runtime.graphs.decode import DecodeGraph, open_decode_graph
from runtime.graphs.work import MANY


@dataclass(frozen=True)
class Quantized:
    """A quantized precision: its recipe, and its weights."""

    recipe: Recipe
    weights: QuantizedWeights

    def kinds(self, bundle: Bundle) -> list[Kind]:
        """The kinds of its graphs, without the one for an int8 cache, which is judged apart."""
        found = [graph.kind for graph in bundle.manifest.graphs if graph.precision == self.recipe.precision]
        return [kind for kind in found if kind != INT8_CACHE]


@dataclass(frozen=True)
class Candidates:
    """What was written beside float32's graphs, and is in the bundle if it passes.

    Attributes:
        half: Whether float16 is among them.
        texts: Ids [B, S] by which float16 and quantized precisions are judged, not used to calibrate; None without any.
        cache: The scales of int8 keys and values, if there are any.
    """

    half: bool = False
    quantized: Sequence[Quantized] = ()
    texts: NDArray[np.int64] | None = None
    cache: CacheScales | None = None


def add_half(
    report: Report, bundle: Bundle, checkpoint: Checkpoint, standards: list[Standard], readings: Readings
) -> Report:
    """Judge the float16 graph on the CPU: errors beside PyTorch's float16, perplexity, and the largest activation."""
    cases, truths = [standard.case for standard in standards], [standard.truth for standard in standards]
    try:
        noise = half_noise(checkpoint.load_model(), cases, truths)
        decode = open_decode_graph(bundle, precision=HALF)
        rows = judge_decode(f"decode {HALF}", decode, standards, noise)
    except ParityError as error:
        return replace(report, refused=(*report.refused, Refusal(HALF, str(error))))
    model = checkpoint.load_model()
    quality = judge_quality(decode, readings, model, None, precision=HALF, most_cost=MOST_COST)
    return replace(
        report,
        rows=(*report.rows, *rows),
        qualities=(*report.qualities, quality),
        largest_activation=largest_activation(model, readings.texts),
        likelihoods=report.likelihoods and with_half(checkpoint, report.probes, report.likelihoods),
    )


def add_quantized(
    report: Report, bundle: Bundle, checkpoint: Checkpoint, part: Quantized, cases: list[Case], readings: Readings
) -> Report:
    """Compare a precision's graphs with PyTorch with its weights: without rounded inputs, and as they are served."""
    precision, kinds = part.recipe.precision, part.kinds(bundle)
    model = with_weights(checkpoint.load_model(), part.weights)
    try:
        quality = judge_quality(
            open_decode_graph(bundle, precision=precision),
            readings,
            model,
            part.weights,
            precision=precision,
            most_cost=part.recipe.most_cost,
            integer="prefill" in kinds and readings.texts.shape[1] >= MANY,
        )
        give_back()
        exact = in_fewer_runs(cases)  # as float32 arithmetic over codes decodes every weight again in each run
        standards = measure_pytorch(model, exact)  # `model` is in float64 afterwards
        served = measure_rounding(model, part.weights, readings.texts[0].tolist(), precision=precision, kinds=kinds)
        del model
        give_back()
        rows = judge_exact(bundle, precision, kinds, standards)
        rows += judge_rounded(bundle, served)
    except ParityError as error:
        return replace(report, refused=(*report.refused, Refusal(precision, str(error))))
    return replace(
        report,
        rows=(*report.rows, *rows),
        qualities=(*report.qualities, quality),
        rounded=(*report.rounded, served),
    )


def judge_exact(bundle: Bundle, precision: str, kinds: Sequence[Kind], standards: list[Standard]) -> list[Row]:
    """Rows for a precision's decode graphs with exact inputs."""
    rows = []
    for kind in ("decode", "ragged"):
        if kind in kinds:
            with exact_graph(bundle.graph_path(kind, precision)) as path:
                decode = DecodeGraph(path, bundle.manifest.architecture)
                rows += judge_decode(f"{kind} {precision}", decode, standards, largest_noise(standards))
    return rows


def add_caches(
    report: Report,
    bundle: Bundle,
    checkpoint: Checkpoint,
    weights: dict[str, QuantizedWeights | None],
    cache: CacheScales,
) -> Report:
    """Judge int8 keys and values in each of the precisions of `weights`; float32 has None."""
    expected = likeliest(checkpoint.load_model(), cache.texts)
    for precision, each in weights.items():
        model = checkpoint.load_model()
        model = as_truth(with_weights(model, each) if each else model)
        standard = measure_cache_rounding(model, each, cache.texts[0].tolist(), cache.scales, precision=precision)
        del model
        give_back()
        report = replace(
            report,
            rows=(*report.rows, *judge_rounded(bundle, standard)),
            caches=(*report.caches, judge_cache(bundle, precision, cache.texts, expected)),
            rounded_caches=(*report.rounded_caches, standard),
        )
        give_back()
    return report
