"""Compares the bundle's greedy tokens with PyTorch's.

The bundle continues each prompt; PyTorch then runs prompt and continuation at once, which gives its choice at every
position. Up to the first difference, those are the tokens of its own greedy decoding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GPT2LMHeadModel

from runtime.bundle.manifest import Continuation
from runtime.engine.scheduler import Scheduler
from runtime.engine.texts import GeneratedText
from runtime.graphs.decode import DecodeGraph
from runtime.proof.graphs import greedy_tokens
from runtime.text.generation import Generation
from runtime.text.options import Settings
from runtime.text.tokenizer import Tokenizer

PROMPTS = (
    "It was a bright cold day in April, and the clocks were striking thirteen.",
    "The old house stood at the end of the lane, and",
    "He opened the letter slowly and",
    '"I do not believe a word of it," said',
    "In the year 1897 the city of London",
)
MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class Difference:
    """A position where PyTorch chooses another token, and by how little.

    `margin` is the distance between PyTorch's two best logits there, in float64; `noise` is how far a float32 logit may
    be off: twice the largest error of PyTorch's own float32 at that position.
    """

    prompt: int
    position: int
    margin: float
    noise: float

    @property
    def passed(self) -> bool:
        return self.margin < self.noise


def continue_prompts(graph: DecodeGraph, prompts: Sequence[Sequence[int]], n_positions: int) -> list[Continuation]:
    return [continue_prompt(graph, prompt[: n_positions // 2], n_positions) for prompt in prompts]


def continue_prompt(graph: DecodeGraph, prompt_ids: Sequence[int], n_positions: int) -> Continuation:
    count = min(MAX_NEW_TOKENS, n_positions - len(prompt_ids))
    return Continuation(list(prompt_ids), greedy_tokens(graph, prompt_ids, count))


def continue_together(graph: DecodeGraph, alone: Sequence[Continuation], tokenizer: Tokenizer) -> list[Continuation]:
    """The same prompts continued by as many tokens, in one batch."""
    generations = [
        Generation(
            continuation.prompt_ids,
            Settings(max_new_tokens=len(continuation.token_ids)),
            tokenizer=tokenizer,
            eos_ids=(),
            room=len(continuation.token_ids),
        )
        for continuation in alone
    ]
    scheduler, texts = Scheduler(graph.slots(len(generations))), [GeneratedText(each) for each in generations]
    for text in texts:
        scheduler.add(text)
    while not all(text.finished for text in texts):
        scheduler.step()
    return [Continuation(list(text.generation.prompt_ids), list(text.completion().token_ids)) for text in texts]


@dataclass(frozen=True)
class Suspect:
    """The first token that is not PyTorch's float32 choice, and PyTorch's logits [V] there."""

    prompt: int
    position: int
    float32: NDArray[Any]


def as_pytorch_has_them(continuations: Sequence[Continuation], differences: Sequence[Difference]) -> list[Continuation]:
    """Each continuation up to its first difference, without those that become empty."""
    ends = {difference.prompt: difference.position for difference in differences}
    return [
        Continuation(continuation.prompt_ids, continuation.token_ids[: ends.get(number)])
        for number, continuation in enumerate(continuations)
        if ends.get(number) != 0
    ]


def find_suspects(model: GPT2LMHeadModel, continuations: Sequence[Continuation]) -> Iterator[Suspect]:
    """At most one suspect per continuation, by `model` in float32."""
    for prompt, continuation in enumerate(continuations):
        logits = continuation_logits(model, continuation)
        differing = np.flatnonzero(logits.argmax(axis=1) != np.array(continuation.token_ids))
        if len(differing):
            yield Suspect(prompt, int(differing[0]), logits[differing[0]].copy())


def judge_suspect(truth: GPT2LMHeadModel, continuation: Continuation, suspect: Suspect) -> Difference:
    """The difference at a suspect: how close PyTorch's two best logits are there in float64."""
    logits = continuation_logits(truth, continuation)[suspect.position]
    second, best = np.partition(logits, -2)[-2:]
    noise = 2 * float(np.abs(suspect.float32 - logits).max())
    return Difference(suspect.prompt, suspect.position, float(best - second), noise)


@torch.no_grad()
def continuation_logits(model: GPT2LMHeadModel, continuation: Continuation) -> NDArray[Any]:
    """PyTorch's logits [tokens, V] at the positions where the bundle chose its tokens."""
    ids = torch.tensor([continuation.prompt_ids + continuation.token_ids[:-1]])
    logits: NDArray[Any] = model(ids, use_cache=False).logits[0, len(continuation.prompt_ids) - 1 :].numpy()
    return logits
