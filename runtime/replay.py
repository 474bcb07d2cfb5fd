"""A fixed number of greedy tokens, whatever ends a text: what a proof compares."""

from collections.abc import Sequence

from runtime.graphs.decode import DecodeSession


def greedy_tokens(session: DecodeSession, prompt_ids: Sequence[int], count: int) -> list[int]:
    """The `count` most likely ids behind `prompt_ids`."""
    with session.sequence() as sequence:
        tokens = [sequence.advance(prompt_ids)]
        while len(tokens) < count:
            tokens.append(sequence.advance(tokens[-1:]))
    return tokens[:count]
