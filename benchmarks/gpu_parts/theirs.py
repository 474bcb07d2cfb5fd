"""transformers' loops: `generate` as it comes, and a static cache under torch.compile."""

import inspect
from collections.abc import Callable, Sequence

import torch
from gpu_parts.ours import Rows
from torch import Tensor
from transformers import GPT2LMHeadModel, StaticCache


class Eager:
    """Prompts of one length, continued by `generate`, greedily and over a cache that grows."""

    def __init__(self, model: GPT2LMHeadModel, prompts: Sequence[list[int]]) -> None:
        self.model = model
        self.ids = torch.tensor(prompts, device=model.device)

    @torch.no_grad()
    def __call__(self, count: int) -> Rows:
        mask = torch.ones_like(self.ids)
        found = self.model.generate(self.ids, attention_mask=mask, do_sample=False, max_new_tokens=count)
        return found[:, self.ids.shape[1] :].tolist()


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
        return result.logits[:, -1].argmax(-1, keepdim=True)


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
        torch.compiler.cudagraph_mark_step_begin()
        try:
            return self.compiled(ids, positions).clone()
        except torch._dynamo.exc.Unsupported:
            if not self.whole:
                raise
            self.whole = False
            torch._dynamo.reset()
            self.compiled = self.compile()
            return self(ids, positions)
