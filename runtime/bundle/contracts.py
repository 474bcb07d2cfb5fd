"""What a graph takes and gives, by its kind: names, types and shapes, as the runtime feeds and reads them."""

from collections.abc import Mapping
from typing import NamedTuple

from runtime.bundle.architecture import Architecture
from runtime.bundle.onnx_model import Model, Value

BATCH, SEQUENCE, PAST, TOTAL, CAPACITY = "batch", "sequence", "past", "total", "capacity"
LOGITS, TOKENS, ANSWERS, LOG = "logits", "tokens", "answers", "log"
STATES, FINISHED, ROWS = "states", "finished", "rows"
FLOAT, INT, INT32, FLAG = "float32", "int64", "int32", "bool"


class Given(NamedTuple):
    """A type and a shape; a named dimension is the caller's."""

    kind: str
    shape: tuple[int | str, ...]


Signature = Mapping[str, Given]


class Contract(NamedTuple):
    """The inputs, the outputs, and a size of each named dimension in a large run."""

    inputs: Signature
    outputs: Signature
    sizes: Mapping[str, int]


def contract_of(model: Model, architecture: Architecture) -> Contract:
    """The contract that a graph claims to keep, told by the inputs that only one kind has."""
    if "final_logits" in model.inputs:
        return lens(architecture)
    if "attention_mask" in model.inputs:
        return reference(architecture)
    cache = model.inputs.get("past_key_values.0.key", Value(FLOAT, ())).kind
    if "token_log" in model.inputs:
        return device(architecture, cache)
    return ragged(architecture, cache) if "query_seqlens" in model.inputs else decode(architecture, cache)


def reference(of: Architecture) -> Contract:
    ids = Given(INT, (BATCH, SEQUENCE))
    sequence = max(1, of.n_positions // 2)
    sizes = {BATCH: 1, SEQUENCE: sequence, PAST: of.n_positions - sequence, TOTAL: of.n_positions}
    maps = Given(FLOAT, (BATCH, of.n_head, SEQUENCE, TOTAL))
    states = Given(FLOAT, (BATCH, SEQUENCE, of.n_embd))
    return Contract(
        {
            "input_ids": ids,
            **cache_of(of, "past_key_values", FLOAT, PAST),
            "attention_mask": Given(INT, (BATCH, TOTAL)),
            "position_ids": ids,
        },
        {
            "logits": Given(FLOAT, (BATCH, SEQUENCE, of.vocab_size)),
            **cache_of(of, "present", FLOAT, TOTAL),
            **{f"hidden_states.{layer}": states for layer in range(of.n_layer + 1)},
            **{f"attentions.{layer}": maps for layer in range(of.n_layer)},
        },
        sizes,
    )


def lens(of: Architecture) -> Contract:
    top = Given(INT, (ROWS, "k"))
    column = Given(INT, (ROWS, 1))
    return Contract(
        {
            "hidden_states": Given(FLOAT, (STATES, of.n_embd)),
            "final_logits": Given(FLOAT, (FINISHED, of.vocab_size)),
            "answers": column,
            "k": Given(INT, (1,)),
        },
        {
            "logits": Given(FLOAT, (ROWS, of.vocab_size)),
            "top_ids": top,
            "top_logprobs": Given(FLOAT, top.shape),
            "answer_logprobs": Given(FLOAT, column.shape),
            "ranks": column,
        },
        {STATES: 64, FINISHED: 64, ROWS: 128, "k": min(10, of.vocab_size)},
    )


def decode(of: Architecture, cache: str) -> Contract:
    ids = Given(INT, (BATCH, SEQUENCE))
    sequence = of.n_positions
    return Contract(
        {"input_ids": ids, "position_ids": ids, **positions(of, cache), "token_indices": Given(INT, (TOKENS,))},
        answers(of, cache),
        {BATCH: 2, SEQUENCE: sequence, CAPACITY: of.n_positions, LOGITS: 64, TOKENS: 64, ANSWERS: 128},
    )


def ragged(of: Architecture, cache: str) -> Contract:
    ids = Given(INT, ("packed",))
    own = {
        "packed_indices": Given(INT, (BATCH, SEQUENCE)),
        "row_indices": Given(INT, ("packed", 2)),
        "query_seqlens": Given(INT32, (BATCH,)),
    }
    given = decode(of, cache)
    sizes = {**given.sizes, "packed": 2 * of.n_positions}
    return Contract({**given.inputs, "input_ids": ids, "position_ids": ids, **own}, given.outputs, sizes)


def device(of: Architecture, cache: str) -> Contract:
    ids = Given(INT, (BATCH, SEQUENCE))
    state = {
        "position_ids": ids,
        "seqlens_k": Given(INT32, (BATCH,)),
        "log_indices": Given(INT, (LOGITS,)),
        "token_log": Given(INT, (LOG,)),
    }
    return Contract(
        {"input_ids": ids, **positions(of, cache), **state},
        {
            "next_token": Given(INT, (LOGITS, 1)),
            "logits": Given(FLOAT, (LOGITS, of.vocab_size)),
            **{f"next_{name}": given for name, given in state.items()},
            **cache_of(of, "present", cache, CAPACITY),
        },
        {BATCH: 2, SEQUENCE: of.n_positions, CAPACITY: of.n_positions, LOGITS: 64, LOG: 2048},
    )


def positions(of: Architecture, cache: str) -> Signature:
    """The inputs that all graphs with a preallocated cache have."""
    return {
        "seqlens_k": Given(INT32, (BATCH,)),
        "total_sequence_length": Given(INT32, (1,)),
        "logits_indices": Given(INT, (LOGITS,)),
        **cache_of(of, "past_key_values", cache, CAPACITY),
    }


def answers(of: Architecture, cache: str) -> Signature:
    return {
        "next_token": Given(INT, (ANSWERS, 1)),
        "logits": Given(FLOAT, (LOGITS, of.vocab_size)),
        "tied": Given(FLAG, (ANSWERS, 1)),
        **cache_of(of, "present", cache, CAPACITY),
    }


def cache_of(of: Architecture, prefix: str, kind: str, length: str) -> Signature:
    return dict.fromkeys(of.cache_names(prefix), Given(kind, (BATCH, of.n_head, length, of.head_size)))
