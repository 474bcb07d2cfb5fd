"""This runtime's loops: as `complete` runs them, but for the text; and as `complete` runs them."""

from collections.abc import Sequence

from runtime.engine.decoding import PREFILL_TOKENS, decode_alone, decode_together
from runtime.engine.drafting import Drafting
from runtime.engine.steps import DeviceStep
from runtime.graphs.decode import DecodeGraph
from runtime.text.generation import Generation
from runtime.text.options import Settings
from runtime.text.tokenizer import Tokenizer

Rows = list[list[int]]


class Ours:
    """Prompts, continued by the ids alone: no peer makes text either.

    Args:
        most: New tokens at most, for which there is room.
    """

    def __init__(self, session: DecodeGraph, prompts: Sequence[list[int]], most: int) -> None:
        self.session = session
        self.prompts = prompts
        self.room = most + max(map(len, prompts))

    def __call__(self, count: int) -> Rows:
        return [self.alone(count)] if len(self.prompts) == 1 else self.together(count)

    def alone(self, count: int) -> list[int]:
        (prompt,) = self.prompts
        token_ids: list[int] = []
        with self.session.sequence(self.room) as state:
            step = DeviceStep(state, len(prompt) + count)
            while len(token_ids) < count:
                token_ids.append(step(token_ids[-1:] or prompt)[0])
        return token_ids

    def together(self, count: int) -> Rows:
        """Prompts are read some at a time, as `decode_together` does."""
        batch = self.session.batch(len(self.prompts), self.room)
        some = max(1, PREFILL_TOKENS // max(map(len, self.prompts)))
        parts = [
            batch.admit(self.prompts[first : first + some], logits=False)[0].tolist()
            for first in range(0, len(self.prompts), some)
        ]
        steps = [[token for part in parts for token in part]]
        while len(steps) < count:
            steps.append(batch.step(steps[-1], logits=False)[0].tolist())
        return [list(row) for row in zip(*steps, strict=True)]


class OursWithText(Ours):
    """The whole of `complete`, ids to text included."""

    def __init__(self, session: DecodeGraph, prompts: Sequence[list[int]], most: int, tokenizer: Tokenizer) -> None:
        super().__init__(session, prompts, most)
        self.tokenizer = tokenizer
        self.drafting = Drafting(exact=False)

    def alone(self, count: int) -> list[int]:
        generation = self.begin(self.prompts[0], count)
        with self.session.sequence(self.room) as state, self.drafting.step(state, generation, ()) as step:
            for _ in decode_alone(step, generation, generation.prompt_ids):
                pass
        return generation.token_ids

    def together(self, count: int) -> Rows:
        generations = [self.begin(prompt, count) for prompt in self.prompts]
        for _ in decode_together(self.session.batch(len(generations), self.room), generations):
            pass
        return [generation.token_ids for generation in generations]

    def begin(self, prompt: list[int], count: int) -> Generation:
        return Generation(prompt, Settings(max_new_tokens=count), tokenizer=self.tokenizer, eos_ids=(), room=count)
