"""A fixed number of greedy tokens, whatever ends a text: what a proof compares."""

from collections.abc import Sequence

from runtime.decode_session import DecodeSession
from runtime.generation import generate


def greedy_tokens(session: DecodeSession, prompt_ids: Sequence[int], count: int) -> list[int]:
    """The `count` most likely ids behind `prompt_ids`."""
    with session.sequence() as sequence:
        return list(generate(sequence.advance, prompt_ids, max_new_tokens=count, stop_ids=()))
