"""What int8 and int4 mean here. The figures that decided are in docs/precisions.md."""

from collections.abc import Collection
from dataclasses import dataclass

from export.errors import ExportError


@dataclass(frozen=True)
class Recipe:
    """Of one precision.

    Attributes:
        bits: Of the matrices in the blocks.
        block: Weights a scale, at most; None is all the weights of an output.
        embedding_bits: Of `wte`, which is `lm_head` too.
        embedding_block: Weights a scale there.
        most_cost: What it may cost of perplexity, relative to float32, before an export fails.
    """

    precision: str
    bits: int
    block: int | None
    embedding_bits: int
    embedding_block: int
    most_cost: float

    @property
    def integer_prefill(self) -> bool:
        """Whether many tokens at a time go through integer products, which know one scale an output, and int8."""
        return self.bits == 8 and self.block is None


RECIPES = {
    "int8": Recipe("int8", bits=8, block=None, embedding_bits=8, embedding_block=128, most_cost=0.01),
    "int4": Recipe("int4", bits=4, block=128, embedding_bits=8, embedding_block=128, most_cost=0.1),
}
DAMPING = 0.05
PRECISIONS = ("fp32", *RECIPES)


def find_recipes(precisions: str | Collection[str]) -> list[Recipe]:
    """Of the precisions below float32, or of one of them, in our order; ExportError for one that is unknown."""
    precisions = [precisions] if isinstance(precisions, str) else precisions
    for precision in precisions:
        if precision not in PRECISIONS:
            raise ExportError(f"precision must be among {', '.join(PRECISIONS)}, got {precision!r}")
    return [recipe for recipe in RECIPES.values() if recipe.precision in precisions]
