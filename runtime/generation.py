"""The greedy loop. It knows no ONNX: a step is any function from new ids to the next one."""

from collections.abc import Callable, Collection, Iterator, Sequence

Step = Callable[[Sequence[int]], int]


def generate(step: Step, prompt_ids: Sequence[int], *, max_new_tokens: int, stop_ids: Collection[int]) -> Iterator[int]:
    """Yield ids until one of `stop_ids`, which is yielded too, or until `max_new_tokens` of them."""
    new_ids = prompt_ids
    for _ in range(max_new_tokens):
        token = step(new_ids)
        yield token
        if token in stop_ids:
            return
        new_ids = (token,)
