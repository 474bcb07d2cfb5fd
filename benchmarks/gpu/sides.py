"""Sides that take turns in one process, A B C A B C …, until all rounds are done or the time is over.

A side is a loop: this runtime's, without and with the text, or transformers', eager and compiled.
"""

import inspect
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, StaticCache

from benchmarks.gpu.parts import one_line
from runtime.engine.scheduler import Scheduler
from runtime.engine.texts import GeneratedText, Text
from runtime.graphs.decode import DecodeGraph
from runtime.graphs.work import Answer, Work
from runtime.text.generation import Generation
from runtime.text.options import Settings
from runtime.text.tokenizer import Tokenizer

PAUSE = 0.2  # seconds, for threads of the turn before to stop spinning
Turn = Callable[[], Any]
Side = Callable[[int], Any]  # is asked for so many tokens
Make = Callable[[], Side]
Rows = list[list[int]]


class GreedyIds(Text):
    """Ids that grow greedily, and no text: no peer makes text either."""

    def __init__(self, ids: Sequence[int], count: int) -> None:
        super().__init__(ids)
        self._most = len(ids) + count

    @property
    def finished(self) -> bool:
        return self.error is not None or len(self.ids) == self._most

    @property
    def most_ids(self) -> int:
        return self._most

    @property
    def plain(self) -> bool:
        return self.decodes

    def work(self, slot: int, most: int) -> Work:
        pending = self.ids[self.read : self.read + most]
        return Work(slot, pending, self.read, int(self.read + len(pending) == len(self.ids)))

    def take(self, work: Work, answer: Answer) -> None:
        self.read = work.past_length + len(work.token_ids)
        self.ids += answer.next_ids.tolist()

    def take_ids(self, token_ids: Sequence[int]) -> None:
        self.ids += token_ids[: self._most - len(self.ids)]
        self.read = len(self.ids) - 1


class Ours:
    """Prompts, continued by the engine; a scheduler of its own for each call, so that each reads its prompts."""

    def __init__(self, graph: DecodeGraph, prompts: Sequence[list[int]]) -> None:
        self.slots = graph.slots(len(prompts))
        self.prompts = prompts

    def __call__(self, count: int) -> Rows:
        texts = [self.begin(prompt, count) for prompt in self.prompts]
        scheduler = Scheduler(self.slots, prefix_cache=False)
        for text in texts:
            scheduler.add(text)
        while not all(text.finished for text in texts):
            scheduler.step()
        for text in texts:
            if text.error:
                raise text.error
        return [text.ids[len(prompt) :] for text, prompt in zip(texts, self.prompts, strict=True)]

    def begin(self, prompt: list[int], count: int) -> Text:
        return GreedyIds(prompt, count)


class OursWithText(Ours):
    """The whole of `complete`, ids to text included."""

    def __init__(self, graph: DecodeGraph, prompts: Sequence[list[int]], tokenizer: Tokenizer) -> None:
        super().__init__(graph, prompts)
        self.tokenizer = tokenizer

    def begin(self, prompt: list[int], count: int) -> Text:
        settings = Settings(max_new_tokens=count)
        return GeneratedText(Generation(prompt, settings, tokenizer=self.tokenizer, eos_ids=(), room=count))


class Eager:
    """Prompts of one length, continued by `generate`, greedily and over a cache that grows."""

    def __init__(self, model: GPT2LMHeadModel, prompts: Sequence[list[int]]) -> None:
        self.model = model
        self.ids = torch.tensor(prompts, device=model.device)

    @torch.no_grad()
    def __call__(self, count: int) -> Rows:
        mask = torch.ones_like(self.ids)
        found = self.model.generate(self.ids, attention_mask=mask, do_sample=False, max_new_tokens=count)
        rows: Rows = found[:, self.ids.shape[1] :].tolist()
        return rows


class Compiled:
    """The same over a cache of fixed size: the prompt read as it comes, each step compiled and captured.

    Steps follow each other without a look at what they said; that is fetched once, at the end.

    Args:
        most: New tokens at most; the cache has room for no more, as it is read whole.
    """

    def __init__(self, model: GPT2LMHeadModel, prompts: Sequence[list[int]], most: int) -> None:
        self.ids = torch.tensor(prompts, device=model.device)
        self.forward = StaticForward(model, len(prompts), self.ids.shape[1] + most)
        self.step = CompiledStep(self.forward)

    @torch.no_grad()
    def __call__(self, count: int) -> Rows:
        self.forward.cache.reset()
        length, device = self.ids.shape[1], self.ids.device
        steps = [self.forward(self.ids, torch.arange(length, device=device))]
        position = torch.full((1,), length, device=device)
        for _ in range(count - 1):
            steps.append(self.step(steps[-1], position))
            position.add_(1)
        return torch.cat(steps, dim=1).tolist()


class StaticForward:
    """The most likely ids [B, 1] after ids [B, S] at positions [S]."""

    def __init__(self, model: GPT2LMHeadModel, rows: int, capacity: int) -> None:
        self.model = model
        self.rows = rows
        self.cache = StaticCache(config=model.config, max_cache_len=capacity)
        self.counts_positions = "cache_position" not in inspect.signature(model.forward).parameters  # from 5 on

    def __call__(self, ids: Tensor, positions: Tensor) -> Tensor:
        places = {} if self.counts_positions else {"cache_position": positions}
        result = self.model(
            ids,
            past_key_values=self.cache,
            position_ids=positions[None].expand(self.rows, -1),
            use_cache=True,
            logits_to_keep=1,
            **places,
        )
        likeliest: Tensor = result.logits[:, -1].argmax(-1, keepdim=True)
        return likeliest


class CompiledStep:
    """A forward as CUDA graphs, in one piece if the compiler can."""

    def __init__(self, forward: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.forward = forward
        self.whole = True
        self.compiled = self.compile()

    def compile(self) -> Callable[[Tensor, Tensor], Tensor]:
        return torch.compile(self.forward, mode="reduce-overhead", fullgraph=self.whole, dynamic=False)

    def __call__(self, ids: Tensor, positions: Tensor) -> Tensor:
        """A copy: the next run writes where this one did."""
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        try:
            return self.compiled(ids, positions).clone()
        except torch._dynamo.exc.Unsupported:
            if not self.whole:
                raise
            self.whole = False
            torch._dynamo.reset()
            self.compiled = self.compile()
            return self(ids, positions)


def make_sides(makers: Mapping[str, Make], first: int, deadline: float) -> tuple[dict[str, Side], dict[str, str]]:
    """Each made and warmed up twice, as what compiles and captures does so in its first runs; why others are not.

    None may take more than half of the time that is left, so that the others can still take their turns.
    """
    sides: dict[str, Side] = {}
    failed: dict[str, str] = {}
    for name, make in makers.items():
        started = time.time()
        try:
            with time_limit((deadline - started) / 2):
                sides[name] = warm(make(), first)
        except Exception as error:
            failed[name] = one_line(error)
        print(f"  {name}: {failed.get(name, 'ready')} after {time.time() - started:.1f} s", file=sys.stderr, flush=True)
    return sides, failed


def warm(side: Side, first: int) -> Side:
    for tokens in (first, 1) * 2:
        side(tokens)
    return side


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """TimeoutError in the midst of what takes longer."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not ready after {seconds:.0f} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(1.0, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def take_rounds(
    turns: Mapping[str, Turn], rounds: int, deadline: float, failed: dict[str, str]
) -> dict[str, list[Any]]:
    """What each side's turns gave; one that fails misses the others. At least one round is gone through."""
    found: dict[str, list[Any]] = {name: [] for name in turns}
    each = 0.0
    for _ in range(rounds):
        started = time.time()
        if started + each > deadline and each:
            break
        for name in [name for name in turns if name not in failed]:
            take_turn(name, turns[name], found, failed)
        each = time.time() - started
    return {name: taken for name, taken in found.items() if name not in failed}


def take_turn(name: str, turn: Turn, found: dict[str, list[Any]], failed: dict[str, str]) -> None:
    time.sleep(PAUSE)
    try:
        found[name].append(turn())
    except Exception as error:
        failed[name] = one_line(error)
