"""Lens: the logit lens, what each layer's hidden states predict after each token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runtime.bundle.architecture import Architecture
from runtime.checks import check_count
from runtime.graphs.lens import LensGraph, Reading
from runtime.graphs.reference import ReferenceGraph
from runtime.text.tokenizer import NextToken, Pieces

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Lens:
    """A text of S tokens, and what each layer's hidden state would predict after each of them.

    Layer 0 is the embedding, layer L the model's own output. The final answer is the model's own likeliest token.

    Attributes:
        tokens: The text of each id, as in an `Inspection`.
        token_ids: The ids.
        top_ids: [L + 1, S, k], the likeliest ids, the likeliest first.
        probabilities: [L + 1, S, k], their probabilities.
        answers: [S], the ids of the final answers.
        ranks: [L + 1, S], the ranks of the final answers in each layer, from 1.
        answer_probabilities: [L + 1, S], the probabilities of the final answers in each layer.
    """

    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    top_ids: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    answers: NDArray[np.int64]
    ranks: NDArray[np.int64]
    answer_probabilities: NDArray[np.float32]
    pieces: Pieces

    def __repr__(self) -> str:
        layers, positions, k = self.top_ids.shape
        return f"<Lens over {positions} tokens: the {k} likeliest in each of {layers} layers>"

    def next_tokens(self, layer: int, position: int) -> list[NextToken]:
        """What a layer predicts after a position, the likeliest first.

        Raises:
            ValueError: A layer that is not from 0 to L, or a position that is not from 0 to S - 1.
        """
        layers, positions, _ = self.top_ids.shape
        layer = check_count("layer", layer, least=0, most=layers - 1)
        position = check_count("position", position, least=0, most=positions - 1)
        pairs = zip(self.top_ids[layer, position].tolist(), self.probabilities[layer, position].tolist(), strict=True)
        return [NextToken(self.pieces.piece(token), token, probability) for token, probability in pairs]

    def plot(self) -> "Figure":
        """The likeliest token of each layer after each position, coloured by its probability, marked if it is already
        the final answer. A matplotlib figure, neither shown nor saved.

        Raises:
            ImportError: matplotlib, the extra `plot`, is not installed.

        Example:
            >>> model.lens("It was a bright cold day").plot().savefig("lens.png")
        """
        from runtime.inside.plots import plot_lens

        return plot_lens(self)


def lens_ids(
    reference: ReferenceGraph,
    session: LensGraph,
    pieces: Pieces,
    token_ids: Sequence[int],
    architecture: Architecture,
    *,
    k: int,
    progress: Callable[[int], object],
) -> Lens:
    """Apply the lens to ids; `progress` is called after each layer."""
    length = len(token_ids)
    logits = np.zeros((length, architecture.vocab_size), np.float32)
    states = np.zeros((architecture.n_layer, length, architecture.n_embd), np.float32)  # the last one is already normed
    arrays = {f"hidden_states.{layer}": state for layer, state in enumerate(states)}
    reference.read(token_ids, {"logits": logits, **arrays})
    answers: NDArray[np.int64] = logits.argmax(axis=1)
    readings = []
    for state in states:
        readings.append(session.read_states(state, answers, k))
        progress(1)
    readings.append(session.read_logits(logits, answers, k))
    progress(1)
    layers = Reading(*map(np.stack, zip(*readings, strict=True)))
    return Lens(
        tokens=tuple(map(pieces.piece, token_ids)),
        token_ids=tuple(token_ids),
        top_ids=layers.top_ids,
        probabilities=np.exp(layers.top_logprobs),
        answers=answers,
        ranks=layers.ranks,
        answer_probabilities=np.exp(layers.answer_logprobs),
        pieces=pieces,
    )
