"""Summary: a model's parameters counted by module, from its architecture alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from runtime.bundle.architecture import Architecture

NAMES = 22  # the width of the first column


@dataclass(frozen=True, slots=True)
class Summary:
    """A model's sizes and parameter counts; `str()` gives them as a table.

    Attributes:
        architecture: Its sizes, under the names of config.json.
        parameters: The parameters of each module that has its own, by PyTorch's name, in PyTorch's order. A tied
            `lm_head` has none: its weights are those of `wte`.

    Example:
        >>> summary = model.summary()
        >>> summary.count("transformer.h.0.attn") == sum(
        ...     summary.parameters[f"transformer.h.0.attn.{name}"] for name in ("c_attn", "c_proj")
        ... )
        True
    """

    architecture: Architecture
    parameters: dict[str, int]

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self.parameters.values())

    def count(self, module: str) -> int:
        """The parameters of a module and its submodules; KeyError if there is no module of that name."""
        found = [size for name, size in self.parameters.items() if f"{name}.".startswith(f"{module}.")]
        if not found:
            raise KeyError(f"no module is named {module!r}; names are like transformer.h.0.attn.c_attn")
        return sum(found)

    def as_dict(self) -> dict[str, Any]:
        """A dictionary for JSON.

        Example:
            >>> sorted(model.summary().as_dict())
            ['architecture', 'parameters', 'total']
        """
        sizes = {name: getattr(self.architecture, name) for name in self.architecture.__slots__}
        return {"architecture": sizes, "parameters": self.parameters, "total": self.total}

    def __str__(self) -> str:
        sizes = self.architecture
        head = (
            f"GPT-2 of {sizes.n_layer} layers, {sizes.n_head} heads of {sizes.head_size}, width {sizes.n_embd:,}, "
            f"context {sizes.n_positions:,}, vocabulary {sizes.vocab_size:,}, {sizes.activation_function}"
        )
        rows = [*self._rows(), ("total", f"{self.total:,}")]
        width = max(len(number) for _, number in rows)
        return "\n".join([head, "", *(f"{name:<{NAMES}}{number:>{width}}" for name, number in rows)])

    def _rows(self) -> Iterator[tuple[str, str]]:
        """The rows of the table; all blocks are alike, so the first stands for all."""
        last = self.architecture.n_layer - 1
        names = [(f"h.0 to h.{last}, each" if last and name == "h.0" else name, module) for name, module in SHOWN]
        for name, module in names:
            tied = module == "lm_head" and self.architecture.tie_word_embeddings
            yield name, "as wte" if tied else f"{self.count(module):,}"


SHOWN = (  # a name in the table, and PyTorch's name
    ("wte", "transformer.wte"),
    ("wpe", "transformer.wpe"),
    ("h.0", "transformer.h.0"),
    ("  ln_1", "transformer.h.0.ln_1"),
    ("  attn", "transformer.h.0.attn"),
    ("    c_attn", "transformer.h.0.attn.c_attn"),
    ("    c_proj", "transformer.h.0.attn.c_proj"),
    ("  ln_2", "transformer.h.0.ln_2"),
    ("  mlp", "transformer.h.0.mlp"),
    ("    c_fc", "transformer.h.0.mlp.c_fc"),
    ("    c_proj", "transformer.h.0.mlp.c_proj"),
    ("ln_f", "transformer.ln_f"),
    ("lm_head", "lm_head"),
)


def summarize(architecture: Architecture) -> Summary:
    return Summary(architecture, dict(module_sizes(architecture)))


def module_sizes(architecture: Architecture) -> Iterator[tuple[str, int]]:
    """PyTorch's name of each module with its own parameters, and how many it has."""
    width, inner = architecture.n_embd, architecture.n_inner
    yield "transformer.wte", architecture.vocab_size * width
    yield "transformer.wpe", architecture.n_positions * width
    for layer in range(architecture.n_layer):
        block = f"transformer.h.{layer}"
        yield f"{block}.ln_1", 2 * width
        yield f"{block}.attn.c_attn", (width + 1) * 3 * width
        yield f"{block}.attn.c_proj", (width + 1) * width
        yield f"{block}.ln_2", 2 * width
        yield f"{block}.mlp.c_fc", (width + 1) * inner
        yield f"{block}.mlp.c_proj", (inner + 1) * width
    yield "transformer.ln_f", 2 * width
    yield "lm_head", 0 if architecture.tie_word_embeddings else architecture.vocab_size * width
