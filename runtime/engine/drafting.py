"""Drafting: who drafts for a generation."""

from runtime.engine.drafts import DraftModel, PromptLookup
from runtime.engine.texts import Drafter
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

    def drafters(self, generation: Generation) -> list[Drafter]:
        """Those of a generation, in the order in which they are asked; none if it is not drafted."""
        if not self.applies(generation):
            return []
        models = [DraftModel(DecodeState(self.drafter.slots(1)))] if self.drafter else []
        return [PromptLookup(), *models]

    def applies(self, generation: Generation) -> bool:
        return self.exact and generation.plain if generation.draft is None else generation.draft
