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
HALF = "fp16"
PRECISIONS = ("fp32", HALF, *RECIPES)


def check_precisions(precisions: str | Collection[str]) -> list[str]:
    """One precision or several as a list; ExportError for one that is unknown."""
    asked = [precisions] if isinstance(precisions, str) else list(precisions)
    for precision in asked:
        if precision not in PRECISIONS:
            raise ExportError(f"precision must be among {', '.join(PRECISIONS)}, got {precision!r}")
    return asked


def find_recipes(precisions: Collection[str]) -> list[Recipe]:
    """Of the quantized ones among precisions, in our order."""
    return [recipe for recipe in RECIPES.values() if recipe.precision in precisions]
