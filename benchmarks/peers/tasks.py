"""What every side is asked to do, in token ids, so that no tokenizer counts; and what figure comes of the seconds.

Decoding's speed is (tokens - 1) / (seconds of a call for all the tokens - seconds of a call for one): a call's prompt
and first token cost the same in both and go out, whether or not a library tells when its first token came.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

TEXT = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a "
    "wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, this "
    "truth is so well fixed in the minds of the surrounding families, that he is considered as the rightful property "
    "of some one or other of their daughters. My dear Mr. Bennet, said his lady to him one day, have you heard that "
    "Netherfield Park is let at last?"
)
FILLER = " and"
PREFILL = 512  # tokens, or what the context leaves
BATCH, BATCH_TOKENS = 8, 64
SHORTEST, LONGEST = 16, 128  # prompts of a batch
Task = dict[str, Any]
Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Metric:
    """What is measured of a side's answers in a turn.

    Attributes:
        name: Of it in the results.
        heading: Of its column.
        best: `max` or `min`.
        figure: What comes of the answers to a turn's tasks, one by one.
    """

    name: str
    heading: str
    best: Callable[..., Any]
    figure: Callable[[list[Answer]], float]


def decode_speed(answers: list[Answer]) -> float:
    first, whole = answers
    return float((len(whole["token_ids"][0]) - 1) / (whole["seconds"] - first["seconds"]))


def batch_speed(answers: list[Answer]) -> float:
    return float(sum(map(len, answers[-1]["token_ids"])) / answers[-1]["seconds"])


METRICS = (
    Metric("decode", "decode, tokens/s", max, decode_speed),
    Metric("prefill", "prefill, ms", min, lambda answers: answers[-1]["seconds"] * 1000),
    Metric("batch", f"batch of {BATCH}, tokens/s", max, batch_speed),
)


def make_tasks(bundle: Path, context: int, prompt: int, tokens: int) -> dict[str, list[Task]]:
    """{metric: a turn's tasks}."""
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    alone = [ids_of(tokenizer, prompt)]
    together = [ids_of(tokenizer, length, skipped=3 * n) for n, length in enumerate(batch_lengths(context))]
    return {
        "decode": [task(alone, 1), task(alone, tokens)],
        "prefill": [task([ids_of(tokenizer, min(PREFILL, context - 1))], 1)],
        "batch": [task(together, BATCH_TOKENS)],
    }


def task(prompts: list[list[int]], new_tokens: int) -> Task:
    return {"prompts": prompts, "new_tokens": new_tokens}


def batch_lengths(context: int) -> list[int]:
    longest = min(LONGEST, context - BATCH_TOKENS)
    shortest = min(SHORTEST, longest)
    return [shortest + n * (longest - shortest) // (BATCH - 1) for n in range(BATCH)]


def ids_of(tokenizer: Any, length: int, skipped: int = 0) -> list[int]:
    """Ids of a text of so many tokens, from its so manieth word on; whole words, so that the text has no other ids."""
    words, text = TEXT.split(), ""
    for word in cycle(words[skipped:] + words[:skipped]):
        longer = f"{text} {word}".strip()
        if len(tokenizer.encode(longer).ids) > length:
            break
        text = longer
    text += FILLER * (length - len(tokenizer.encode(text).ids))
    return list(tokenizer.encode(text).ids[:length])


def alike(found: Sequence[Any], right: Sequence[Any]) -> int:
    """How many are equal before the first that is not."""
    for count, (one, other) in enumerate(zip(found, right, strict=True)):
        if one != other:
            return count
    return len(right)
