"""One case's outputs, from PyTorch and from the bundle, under the names that the reference graph gives them."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GPT2LMHeadModel

from export.parity.cases import Case
from runtime.decode_session import DecodeSession
from runtime.reference_session import ReferenceSession

Outputs = dict[str, NDArray[Any]]


@torch.no_grad()
def pytorch_outputs(model: GPT2LMHeadModel, case: Case) -> Outputs:
    """Of the last chunk, in the precision of `model`."""
    past = None
    for chunk in case.chunks():
        result = model(
            torch.from_numpy(chunk.input_ids),
            attention_mask=torch.from_numpy(chunk.attention_mask),
            position_ids=torch.from_numpy(chunk.position_ids),
            past_key_values=past,
            use_cache=True,
            output_hidden_states=True,
            output_attentions=True,
        )
        past = result.past_key_values
    return named_outputs(result)


def named_outputs(result: Any) -> Outputs:
    outputs = {"logits": result.logits.numpy()}
    for number, layer in enumerate(result.past_key_values.layers):
        outputs[f"present.{number}.key"] = layer.keys.numpy()
        outputs[f"present.{number}.value"] = layer.values.numpy()
    outputs |= {f"hidden_states.{number}": state.numpy() for number, state in enumerate(result.hidden_states)}
    outputs |= {f"attentions.{number}": weights.numpy() for number, weights in enumerate(result.attentions)}
    return outputs


def reference_outputs(session: ReferenceSession, case: Case) -> Outputs:
    """Of the last chunk, each chunk fed the cache of the one before."""
    outputs: Outputs = {}
    for chunk in case.chunks():
        outputs = session.run(chunk.input_ids, attention_mask=chunk.attention_mask, past=outputs)
    return outputs


def decode_outputs(session: DecodeSession, case: Case) -> Outputs:
    """Logits of the last position [1, 1, V] and the cache, of a case with one row."""
    with session.sequence() as sequence:
        for chunk in case.chunks():
            next_token = sequence.advance(chunk.input_ids[0].tolist())
        logits = sequence.logits.copy()
        if next_token != logits.argmax():
            raise RuntimeError(f"next_token is {next_token}, but the largest of the logits is {logits.argmax()}")
        return {"logits": logits[None, None], **{name: part.copy() for name, part in sequence.cache().items()}}


def last_position(outputs: Outputs) -> Outputs:
    """What the decode graph returns of the reference graph's outputs."""
    cache = {name: array for name, array in outputs.items() if name.startswith("present.")}
    return {"logits": outputs["logits"][:, -1:], **cache}


def normwise_error(outputs: NDArray[Any], truth: NDArray[Any]) -> float:
    """‖outputs − truth‖ / ‖truth‖, infinite unless all is finite and of one shape."""
    if outputs.shape != truth.shape or not np.isfinite(outputs).all():
        return float("inf")
    scale = float(np.linalg.norm(truth))
    return float(np.linalg.norm(outputs - truth)) / (scale or 1.0)
