"""Verifies a bundle: runs PyTorch first, then each graph in turn, so that only one is in memory at a time."""

from export.checkpoint import Checkpoint
from export.parity.candidates import Candidates, add_caches, add_half, add_quantized
from export.parity.cases import make_cases
from export.parity.float32 import judge_float32
from export.parity.greedy import PROMPTS
from export.parity.parts import Parts
from export.parity.precision import read_by_pytorch
from export.parity.report import Report
from export.parity.standard import measure_pytorch
from export.progress import Progress
from export.quantization.codes import QuantizedWeights
from runtime.bundle.bundle import Bundle
from runtime.text.tokenizer import Tokenizer

STANDARDS = "PyTorch in float32 and float64"
READINGS = "PyTorch's perplexity"
HALF = "PyTorch in float16, and the float16 graph"
QUANTIZED = "a quantized precision"
CACHES = "int8 keys and values"
FLOAT32 = {  # what each takes beside the others, here and below: about as many seconds for GPT-2 small on two cores
    "the reference graph": 2.0,
    "the lens": 4.0,
    "the decode graphs": 7.0,
    "the decode graph for CUDA, on the CPU": 2.0,
    "greedy tokens in PyTorch": 3.5,
}
COSTS = {STANDARDS: 4.0, READINGS: 2.0, HALF: 20.0, QUANTIZED: 22.0, CACHES: 40.0}


def verify_bundle(
    bundle: Bundle,
    checkpoint: Checkpoint,
    progress: Progress,
    candidates: Candidates,
    known: Report | None = None,
) -> Report:
    """Judge every output tensor and the greedy tokens of `bundle` against its checkpoint in PyTorch.

    Args:
        candidates: What was written beside float32's graphs.
        known: What is known of all other graphs, float32's among them; None judges float32's, too.
    """
    parts = Parts(progress, plan(candidates, whole=known is None))
    tokenizer = Tokenizer(bundle.folder / "tokenizer.json")
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    text_ids, architecture = [token for prompt in prompts for token in prompt], bundle.manifest.architecture
    cases, standards = make_cases(text_ids, architecture.vocab_size, architecture.n_positions), []
    if known is None or candidates.half:
        parts.begin(STANDARDS)
        standards = measure_pytorch(checkpoint.load_model(), cases)
    report = known or judge_float32(bundle, checkpoint, standards, prompts, tokenizer, parts)
    if candidates.texts is not None:
        parts.begin(READINGS)
        readings = read_by_pytorch(checkpoint.load_model(), candidates.texts)
        if candidates.half:
            parts.begin(HALF)
            report = add_half(report, bundle, checkpoint, standards, readings)
        del standards
        for part in candidates.quantized:
            parts.begin(graphs_of(part.recipe.precision))
            report = add_quantized(report, bundle, checkpoint, part, cases, readings)
    if candidates.cache:
        parts.begin(CACHES)
        weights = cached(candidates, report, whole=known is None)
        report = add_caches(report, bundle, checkpoint, weights, candidates.cache)
    return report


def plan(candidates: Candidates, *, whole: bool) -> dict[str, float]:
    """The parts in order, and what each takes beside the others."""
    costs = {STANDARDS: COSTS[STANDARDS]} if whole or candidates.half else {}
    costs |= FLOAT32 if whole else {}
    costs |= {READINGS: COSTS[READINGS]} if candidates.texts is not None else {}
    costs |= {HALF: COSTS[HALF]} if candidates.half else {}
    costs |= {graphs_of(part.recipe.precision): COSTS[QUANTIZED] for part in candidates.quantized}
    return costs | ({CACHES: COSTS[CACHES] * (whole + len(candidates.quantized))} if candidates.cache else {})


def graphs_of(precision: str) -> str:
    return f"the {precision} graphs"


def cached(candidates: Candidates, report: Report, *, whole: bool) -> dict[str, QuantizedWeights | None]:
    """The weights with which int8 keys and values are judged: those of all new precisions that work so far."""
    found: dict[str, QuantizedWeights | None] = {"fp32": None} if whole else {}
    judged = {quality.precision for quality in report.qualities}
    return found | {
        part.recipe.precision: part.weights for part in candidates.quantized if part.recipe.precision in judged
    }
