"""Writes the precisions that were asked for beside float32's graphs, as candidates that are still to be judged."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from export.bundle.writer import DECODE, write_cached_graphs, write_half_graph, write_quantized_graphs
from export.checkpoint import Checkpoint
from export.errors import ParityError
from export.parity.candidates import Candidates, Quantized
from export.parity.report import Refusal
from export.progress import Steps
from export.quantization.cache_scales import calibrate_cache
from export.quantization.calibration import CALIBRATION, own_texts
from export.quantization.quantize import calibrate, quantize_checkpoint
from export.quantization.recipe import HALF, find_recipes
from runtime.bundle.manifest import Graph


@dataclass(frozen=True)
class Precisions:
    """What was written: graphs, what they are judged by, and what could not be written."""

    graphs: list[Graph]
    candidates: Candidates
    refused: list[Refusal]


def write_precisions(
    checkpoint: Checkpoint,
    folder: Path,
    asked: Collection[str],
    steps: Steps,
    *,
    float32: Collection[Graph],
    caching: bool,
) -> Precisions:
    """Write the graphs of precisions into a bundle's folder that has float32's.

    Args:
        asked: Precisions; "fp32" among them asks for nothing.
        float32: Those graphs of float32 that get one with int8 keys and values beside them, if `caching`.
    """
    graphs, refused = write_half(checkpoint, folder, steps) if HALF in asked else ([], [])
    half, recipes = bool(graphs), find_recipes(asked)
    quantized, judging = [], None
    if recipes or half:
        with steps.step("Sampling texts to calibrate and to judge by") as progress:
            texts = own_texts(checkpoint, folder / DECODE.path, progress)
            calibration, judging = calibrate(checkpoint, texts[:CALIBRATION]), texts[CALIBRATION:]
    for recipe in recipes:
        with steps.step(f"Quantizing to {recipe.precision}") as progress:
            weights = quantize_checkpoint(checkpoint, calibration, recipe, progress)
            graphs += write_quantized_graphs(checkpoint, recipe, weights, folder)
            quantized.append(Quantized(recipe, weights))
    scales = None
    if caching and (float32 or quantized):
        with steps.step("Calibrating int8 keys and values") as progress:
            scales = calibrate_cache(checkpoint, folder / DECODE.path, progress)
            graphs += write_cached_graphs([*float32, *graphs], scales.scales, folder)
    return Precisions(graphs, Candidates(half, quantized, judging, scales), refused)


def write_half(checkpoint: Checkpoint, folder: Path, steps: Steps) -> tuple[list[Graph], list[Refusal]]:
    """Write the float16 graph; a refusal instead if float16 cannot hold the weights."""
    with steps.step("Writing the float16 graph"):
        try:
            return [write_half_graph(checkpoint, folder)], []
        except ParityError as error:
            return [], [Refusal(HALF, str(error))]
