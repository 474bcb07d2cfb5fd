"""Inspection: the tokens, logits, hidden states and attention maps of a text, as arrays."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from runtime.arrays import Floats, softmax
from runtime.bundle.architecture import Architecture
from runtime.checks import check_count
from runtime.graphs.reference import ReferenceGraph
from runtime.text.tokenizer import NextToken, Pieces

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OUTPUTS = ("logits", "hidden_states", "attentions")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Inspection:
    """What the model computed for a text of S tokens. Arrays that were not asked for are empty.

    Attributes:
        tokens: The text of each id; bytes that make no character by themselves as \\xNN. Joined, they are the text
            if no character spans several tokens.
        token_ids: The ids.
        logits: [S, V]
        hidden_states: [L + 1, S, C], of the embedding and of each block; the last one is normed by `ln_f`.
        attentions: [layers, H, S, S], the weights of each query (row) over the keys (columns).
        layers: The layers of `attentions`.
    """

    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    logits: Floats
    hidden_states: Floats
    attentions: Floats
    layers: tuple[int, ...]
    pieces: Pieces

    def __repr__(self) -> str:
        names = [name for name in OUTPUTS if getattr(self, name).size]
        shapes = ", ".join(f"{name} {list(getattr(self, name).shape)}" for name in names)
        return f"<Inspection of {len(self.tokens)} tokens: {shapes}>"

    def attention(self, layer: int, head: int) -> Floats:
        """One head's map [S, S].

        Raises:
            ValueError: A layer or head that does not exist, or was not asked for.
        """
        layer = check_count("layer", layer, least=0)
        if layer not in self.layers:
            kept = ", ".join(map(str, self.layers)) or "none"
            raise ValueError(f"layer must be one whose attentions were asked for ({kept}), got {layer}")
        head = check_count("head", head, least=0, most=self.attentions.shape[1] - 1)
        found: Floats = self.attentions[self.layers.index(layer), head]
        return found

    def next_tokens(self, k: int = 5) -> list[NextToken]:
        """The k likeliest next tokens, the likeliest first, with their probabilities.

        Raises:
            ValueError: k is not from 1 to the vocabulary's size, or logits were not asked for.
        """
        if not self.logits.size:
            raise ValueError("next_tokens needs logits; ask for them: inspect(text, outputs=['logits'])")
        k = check_count("k", k, most=self.logits.shape[1])
        last = self.logits[-1].astype(np.float64)
        likeliest = np.argsort(-last, kind="stable")[:k].tolist()
        probabilities = softmax(last)
        return [NextToken(self.pieces.piece(token), token, float(probabilities[token])) for token in likeliest]

    def plot_attention(self, layer: int, head: int) -> "Figure":
        """One head's map: queries down, keys across. A matplotlib figure, neither shown nor saved.

        Raises:
            ImportError: matplotlib, the extra `plot`, is not installed.
            ValueError: A layer or head that does not exist, or attentions were not asked for.

        Example:
            >>> figure = model.inspect("It was a bright cold day").plot_attention(0, 1)
            >>> figure.savefig("head.png")
        """
        from runtime.inside import plots

        self._check_attentions("plot_attention")
        return plots.plot_attention(self.attention(layer, head), self.tokens, layer, head)

    def plot_overview(self) -> "Figure":
        """All maps as tiles: layers down, heads across. A matplotlib figure, neither shown nor saved.

        Raises:
            ImportError: matplotlib, the extra `plot`, is not installed.
            ValueError: Attentions were not asked for.

        Example:
            >>> model.inspect("It was a bright cold day").plot_overview().savefig("overview.png")
        """
        from runtime.inside import plots

        self._check_attentions("plot_overview")
        return plots.plot_overview(self.attentions, self.layers)

    def _check_attentions(self, method: str) -> None:
        if not self.layers:
            raise ValueError(f"{method} needs attentions; ask for them: inspect(text, outputs=['attentions'])")


def inspect_ids(
    session: ReferenceGraph,
    pieces: Pieces,
    token_ids: Sequence[int],
    architecture: Architecture,
    *,
    outputs: Sequence[str],
    layers: Sequence[int],
) -> Inspection:
    """Run the reference graph over ids and fetch the outputs wanted."""
    length = len(token_ids)
    logits = np.zeros((length if "logits" in outputs else 0, architecture.vocab_size), np.float32)
    n_states = architecture.n_layer + 1 if "hidden_states" in outputs else 0
    states = np.zeros((n_states, length, architecture.n_embd), np.float32)
    chosen = tuple(layers) if "attentions" in outputs else ()
    maps = np.zeros((len(chosen), architecture.n_head, length, length), np.float32)
    arrays = {"logits": logits} if logits.size else {}
    arrays |= {f"hidden_states.{layer}": state for layer, state in enumerate(states)}
    arrays |= {f"attentions.{layer}": heads for layer, heads in zip(chosen, maps, strict=True)}
    session.read(token_ids, arrays)
    return Inspection(
        tokens=tuple(map(pieces.piece, token_ids)),
        token_ids=tuple(token_ids),
        logits=logits,
        hidden_states=states,
        attentions=maps,
        layers=chosen,
        pieces=pieces,
    )


def check_outputs(value: object) -> tuple[str, ...]:
    """`value` as a tuple of at least one of `OUTPUTS`."""
    wanted = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
    for name in wanted or ("none",):
        if name not in OUTPUTS:
            raise ValueError(f"outputs must be some of {', '.join(map(repr, OUTPUTS))}, got {name!r}")
    return wanted


def check_layers(value: Iterable[object] | int | None, n_layer: int) -> tuple[int, ...]:
    """`value` as layer numbers, each once, in the order given; by default all."""
    if value is None:
        return tuple(range(n_layer))
    asked = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    if not asked:
        raise ValueError(f"layers must be some from 0 to {n_layer - 1}, or None for all, got none")
    return tuple(dict.fromkeys(check_count("layers", layer, least=0, most=n_layer - 1) for layer in asked))
