"""How a text is stepped through: drafted, by the device itself, or an id at a time."""

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
        exact: Whether its runs over several ids say what those over one say, but for the last bits; then texts are
            drafted unless they are asked not to be.
        session: Of a smaller model, to draft what the text itself has no draft for.
    """

    def __init__(self, *, exact: bool, session: DecodeGraph | None = None) -> None:
        self.exact = exact
        self.session = session

    @contextmanager
    def step(self, state: DecodeState, generation: Generation, known: Sequence[int]) -> Iterator[Step]:
        """What runs over new ids of a text, of which `state` has read `known`."""
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
        if self.session:
            drafters.append(DraftModel(leases.enter_context(self.session.sequence())))
        return drafters
