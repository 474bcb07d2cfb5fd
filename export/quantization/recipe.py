"""The recipes of int8 and int4: bits, block sizes and allowed cost; docs/precisions.md has the measurements."""

from collections.abc import Collection
from dataclasses import dataclass

from export.errors import ExportError


@dataclass(frozen=True)
class Recipe:
    """How one precision is made.

    Attributes:
        bits: Bits per code of the matrices in the blocks.
        block: The most weights per scale; None means one scale per output.
        embedding_bits: Bits per code of `wte` and `lm_head`.
        embedding_block: The most weights per scale there.
        most_cost: The increase of perplexity, relative to float32, above which the precision is left out.
    """

    precision: str
    bits: int
    block: int | None
    embedding_bits: int
    embedding_block: int
    most_cost: float

    @property
    def integer_prefill(self) -> bool:
        """Whether the prefill uses integer products, which need int8 and one scale per output."""
        return self.bits == 8 and self.block is None


RECIPES = {
    "int8": Recipe("int8", bits=8, block=None, embedding_bits=8, embedding_block=128, most_cost=0.01),
    "int4": Recipe("int4", bits=4, block=128, embedding_bits=8, embedding_block=128, most_cost=0.1),
}
DAMPING = 0.05
HALF = "fp16"
PRECISIONS = ("fp32", HALF, *RECIPES)


def check_precisions(precisions: str | Collection[str]) -> list[str]:
    """One precision or several, as a list; ExportError for an unknown one."""
    asked = [precisions] if isinstance(precisions, str) else list(precisions)
    for precision in asked:
        if precision not in PRECISIONS:
            raise ExportError(f"precision must be among {', '.join(PRECISIONS)}, got {precision!r}")
    return asked


def find_recipes(precisions: Collection[str]) -> list[Recipe]:
    """The recipes of the quantized precisions among `precisions`, in the order of RECIPES."""
    return [recipe for recipe in RECIPES.values() if recipe.precision in precisions]
