"""Chooses how each step of a text runs: with drafts, launched on the device, or one id per run."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from runtime.engine.decoding import Step
from runtime.engine.drafts import DraftModel, PromptLookup
from runtime.engine.steps import DeviceStep, DraftedStep, Drafter
from runtime.graphs.decode import DecodeGraph
from runtime.graphs.state import DecodeState
from runtime.text.generation import Generation


class Drafting:
    """How one model drafts.

    Args:
        exact: Whether runs over several ids give what runs over one id give, except in the last bits; if so, plain
            texts are drafted by default.
        drafter: The graph of a smaller model, which drafts where the text itself offers no draft.
    """

    def __init__(self, *, exact: bool, drafter: DecodeGraph | None = None) -> None:
        self.exact = exact
        self.drafter = drafter

    @contextmanager
    def step(self, state: DecodeState, generation: Generation, known: Sequence[int]) -> Iterator[Step]:
        """Yield the function that runs new ids of a text; `state` has already read `known`."""
        with ExitStack() as leases:
            if self.applies(generation):
                drafters, most = self._drafters(leases), generation.most_ids
                drafted = DraftedStep(state, drafters, known, most, logits=not generation.plain)
                leases.callback(drafted.settle)
                yield drafted
            elif state.launches and generation.plain:
                steps = DeviceStep(state, generation.most_ids)
                leases.callback(steps.settle)
                yield steps
            else:
                yield partial(state.step, logits=not generation.plain)

    def applies(self, generation: Generation) -> bool:
        return self.exact and generation.plain if generation.draft is None else generation.draft

    def _drafters(self, leases: ExitStack) -> list[Drafter]:
        drafters: list[Drafter] = [PromptLookup()]
        if self.drafter:
            drafters.append(DraftModel(leases.enter_context(self.drafter.sequence())))
        return drafters
