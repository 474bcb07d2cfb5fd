"""The output of `inspect`: a table for people, a dictionary for JSON."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple
from unicodedata import combining, east_asian_width

import numpy as np
from numpy.typing import NDArray

from runtime.bundle.architecture import Architecture
from runtime.inside.lens import Lens
from runtime.text.tokenizer import NextToken, escaped

SHOWN_TOKENS = 12  # the last ones of a long text


class Map(NamedTuple):
    """One head's attentions [S, S]."""

    layer: int
    head: int
    weights: NDArray[np.float32]


def report(lens: Lens, sizes: Architecture) -> str:
    """The shapes of the outputs, and what each layer would predict after the last token."""
    last = len(lens.tokens) - 1
    shapes = [f"{name:<15}{shape}" for name, shape in shapes_of(len(lens.tokens), sizes).items()]
    rows = [["layer", "rank"], *layer_rows(lens, last)]
    token, answer = quoted(lens.tokens[last]), quoted(lens.pieces.piece(int(lens.answers[last])))
    title = f"What each layer finds likeliest after {token}, and the rank of {answer} in it:"
    return "\n".join([shown_tokens(lens.tokens), "", *shapes, "", title, "", *aligned(rows)])


def shapes_of(length: int, sizes: Architecture) -> dict[str, list[int]]:
    return {
        "logits": [length, sizes.vocab_size],
        "hidden_states": [sizes.n_layer + 1, length, sizes.n_embd],
        "attentions": [sizes.n_layer, sizes.n_head, length, length],
    }


def shown_tokens(tokens: Sequence[str]) -> str:
    left_out = f"… {len(tokens) - SHOWN_TOKENS} more … " if len(tokens) > SHOWN_TOKENS else ""
    count = f"{len(tokens)} token{'s' if len(tokens) > 1 else ''}"
    return f"{count}: {left_out}{' '.join(map(quoted, tokens[-SHOWN_TOKENS:]))}"


def quoted(piece: str) -> str:
    """In quotes, with spaces kept and unprintable characters escaped."""
    return f"'{''.join(each if each.isprintable() else escaped(each) for each in piece)}'"


def layer_rows(lens: Lens, position: int) -> Iterator[list[str]]:
    """A row per layer, from the embedding down to the model's own output."""
    last = len(lens.ranks) - 1
    names = {0: "embedding", last: "output"}
    for layer in range(last + 1):
        likely = [f"{quoted(each.text)} {each.probability:.1%}" for each in lens.next_tokens(layer, position)]
        yield [names.get(layer, str(layer)), f"{lens.ranks[layer, position]:,}", *likely]


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns two spaces apart, the ranks right-aligned."""
    widths = [max(map(cells_of, column)) for column in zip_longest(*rows, fillvalue="")]
    for name, rank, *cells in rows:
        padded = [cell + " " * (width - cells_of(cell)) for cell, width in zip(cells, widths[2:], strict=False)]
        yield "  ".join([name.ljust(widths[0]), rank.rjust(widths[1]), *padded]).rstrip()


def cells_of(text: str) -> int:
    """How many cells of a terminal a text takes."""
    return sum(2 if east_asian_width(each) in "WF" else not combining(each) for each in text)


def as_dict(lens: Lens, chosen: Map | None) -> dict[str, Any]:
    """For JSON: layers from the embedding to the output, and each one's predictions after every token."""
    layers, positions = lens.ranks.shape
    said = [[lens_place(lens, layer, position) for position in range(positions)] for layer in range(layers)]
    found: dict[str, Any] = {"tokens": lens.tokens, "token_ids": lens.token_ids, "layers": said}
    if chosen:
        found["attention"] = {"layer": chosen.layer, "head": chosen.head, "weights": chosen.weights.tolist()}
    return found


def lens_place(lens: Lens, layer: int, position: int) -> dict[str, Any]:
    answer = int(lens.answers[position])
    found = NextToken(lens.pieces.piece(answer), answer, float(lens.answer_probabilities[layer, position]))
    return {
        "next_tokens": [each._asdict() for each in lens.next_tokens(layer, position)],
        "answer": {**found._asdict(), "rank": int(lens.ranks[layer, position])},
    }
