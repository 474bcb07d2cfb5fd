"""Runs one case in PyTorch and in the bundle's graphs, with outputs under common names, and measures errors."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GPT2LMHeadModel

from export.errors import ParityError
from export.majors import CACHE, cache_of
from export.parity.cases import Case
from runtime.graphs.decode import DecodeGraph
from runtime.graphs.reference import ReferenceGraph
from runtime.graphs.work import Work

Outputs = dict[str, NDArray[Any]]
POSITION_AXIS = {"logits": 1, "hidden_states": 1, "attentions": 2}


@torch.no_grad()
def pytorch_outputs(model: GPT2LMHeadModel, case: Case) -> Outputs:
    """PyTorch's outputs in the precision of `model`; each chunk gets the cache of the one before."""
    past, parts, outputs = None, [], {}
    for chunk in case.chunks():
        result = model(
            torch.from_numpy(chunk.input_ids),
            attention_mask=torch.from_numpy(chunk.attention_mask),
            position_ids=torch.from_numpy(chunk.position_ids),
            use_cache=True,
            output_hidden_states=True,
            output_attentions=True,
            **{CACHE: past},
        )
        past, outputs = cache_of(result), named_outputs(result)
        parts.append(by_position(outputs))
    return join(parts, outputs)


def named_outputs(result: Any) -> Outputs:
    outputs = {"logits": result.logits.numpy()}
    for number, layer in enumerate(cache_of(result).layers):
        outputs[f"present.{number}.key"] = layer.keys.numpy()
        outputs[f"present.{number}.value"] = layer.values.numpy()
    outputs |= {f"hidden_states.{number}": state.numpy() for number, state in enumerate(result.hidden_states)}
    outputs |= {f"attentions.{number}": weights.numpy() for number, weights in enumerate(result.attentions)}
    return outputs


def reference_outputs(graph: ReferenceGraph, case: Case) -> Outputs:
    """The reference graph's outputs; each chunk gets the cache of the one before."""
    outputs: Outputs = {}
    parts = []
    for chunk in case.chunks():
        outputs = graph.run(chunk.input_ids, attention_mask=chunk.attention_mask, past=outputs)
        parts.append(by_position(outputs))
    return join(parts, outputs)


def position_axis(name: str) -> int | None:
    """The axis of a run's new positions; the cache has none, as it covers all positions so far."""
    return POSITION_AXIS.get(name.partition(".")[0])


def by_position(outputs: Outputs) -> Outputs:
    return {name: array for name, array in outputs.items() if position_axis(name) is not None}


def join(parts: list[Outputs], last: Outputs) -> Outputs:
    """Join the outputs of consecutive chunks into those of one run; the cache is the last chunk's."""
    width = last["present.0.key"].shape[2]
    wide = [{name: full_width(name, array, width) for name, array in part.items()} for part in parts]
    return {**last, **{name: np.concatenate([part[name] for part in wide], position_axis(name)) for name in wide[0]}}


def full_width(name: str, array: NDArray[Any], width: int) -> NDArray[Any]:
    """Pad attention maps [B, H, S, P+S] of an early chunk to the width of the last chunk's."""
    if not name.startswith("attentions."):
        return array
    return np.pad(array, [(0, 0)] * 3 + [(0, width - array.shape[3])])


def decode_outputs(graph: DecodeGraph, case: Case) -> Outputs:
    """The decode graph's outputs for a case, in the shapes of `decoded`."""
    return side_by_side(graph, case) if case.padded else one_row(graph, case)


def side_by_side(graph: DecodeGraph, case: Case) -> Outputs:
    """Run rows of different lengths side by side, in steps that are a mix: parts of prompts, single ids, nothing."""
    rows = case.rows()
    slots = graph.slots(len(rows))
    for slot, row in enumerate(rows):
        slots.reserve(slot, len(row))
    lasts = {}
    for works in mixed_steps(rows):
        for work, answer in zip(works, slots.run(works), strict=True):
            lasts[work.slot] = answer.logits[-1:].copy()
    caches = [slots.cache(slot, len(row)) for slot, row in enumerate(rows)]
    joined = {name: np.concatenate([cache[name] for cache in caches], axis=2) for name in caches[0]}
    return {"logits": np.stack([lasts[slot] for slot in range(len(rows))], axis=1), **joined}


def mixed_steps(rows: Sequence[Sequence[int]]) -> Iterator[list[Work]]:
    """Row by row another start: row n begins at step n, and runs one id, then the rest but one, then the last."""
    for step in range(len(rows) + 2):
        works = []
        for slot, row in enumerate(rows):
            ends = (0, 1, max(1, len(row) - 1), len(row))
            start, end = ends[max(0, min(step - slot, 3))], ends[max(0, min(step - slot + 1, 3))]
            if end > start:
                works.append(Work(slot, row[start:end], start, logits=True))
        yield works


def one_row(graph: DecodeGraph, case: Case) -> Outputs:
    """Run one row: logits after each chunk [1, chunks, V], and the cache."""
    logits = []
    with graph.sequence(case.input_ids.shape[1]) as sequence:
        for chunk in case.chunks():
            next_token, row = sequence.step(chunk.input_ids[0].tolist())
            logits.append(row.copy())
            if next_token != logits[-1].argmax():
                raise ParityError(f"next_token is {next_token}, but the largest of the logits is {logits[-1].argmax()}")
        return {"logits": np.stack(logits)[None], **{name: part.copy() for name, part in sequence.cache().items()}}


def decoded(outputs: Outputs, case: Case) -> Outputs:
    """The part of the reference graph's outputs that the decode graph returns.

    Logits [1, chunks, V] of one row, or [1, B, V] of the last ids of B rows; the caches of B rows are joined without
    padding.
    """
    cache = {name: array for name, array in outputs.items() if name.startswith("present.")}
    if not case.padded:
        return {"logits": outputs["logits"][:, np.cumsum(case.lengths) - 1], **cache}
    kept = case.attention_mask == 1
    rows = {name: [row[:, keep] for row, keep in zip(array, kept, strict=True)] for name, array in cache.items()}
    joined = {name: np.concatenate(parts, axis=1)[None] for name, parts in rows.items()}
    return {"logits": outputs["logits"][None, :, -1], **joined}


def last_only(name: str, outputs: NDArray[Any]) -> bool:
    """Whether `outputs` has positions, and only one."""
    axis = position_axis(name)
    return axis is not None and outputs.shape[axis] == 1


def worst_position_error(name: str, outputs: NDArray[Any], truth: NDArray[Any]) -> float:
    """The largest error of a single position, each relative to the norm of the truth there."""
    axis = position_axis(name)
    if axis is None:
        return normwise_error(outputs, truth)
    if outputs.shape != truth.shape or not np.isfinite(outputs).all():
        return float("inf")
    others = tuple(each for each in range(truth.ndim) if each != axis)
    scales, errors = (np.sqrt(np.square(array).sum(others)) for array in (truth, outputs - truth))
    return float((errors / np.where(scales, scales, 1.0)).max())


def normwise_error(outputs: NDArray[Any], truth: NDArray[Any]) -> float:
    """‖outputs − truth‖ / ‖truth‖; infinite unless all outputs are finite and the shapes are equal."""
    if outputs.shape != truth.shape or not np.isfinite(outputs).all():
        return float("inf")
    scale = float(np.linalg.norm(truth))
    return float(np.linalg.norm(outputs - truth)) / (scale or 1.0)
