"""Architecture: GPT-2's sizes as a manifest names them, and whether the weights that are there explain them."""

from collections.abc import Collection
from dataclasses import asdict, dataclass

LARGEST = {
    "n_layer": 2**12,
    "n_head": 2**12,
    "n_embd": 2**16,
    "n_inner": 2**20,
    "n_positions": 2**20,
    "vocab_size": 2**22,
}
LEAST_BITS, MOST_BYTES = 4, 8  # of a parameter in the weights files
PADDING = 2**20  # bytes of a weights file that are no parameters: for each layer, and once more


@dataclass(frozen=True, slots=True)
class Architecture:
    """GPT-2's own numbers, under the names of its config.json; `parameters` counts a tied `wte` once."""

    n_layer: int
    n_head: int
    n_embd: int
    n_inner: int
    n_positions: int
    vocab_size: int
    activation_function: str
    tie_word_embeddings: bool
    parameters: int

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    def cache_names(self, prefix: str) -> list[str]:
        """`prefix.0.key`, `prefix.0.value` and so on, layer by layer."""
        return [f"{prefix}.{layer}.{part}" for layer in range(self.n_layer) for part in ("key", "value")]


def check_sizes(architecture: Architecture, weights: Collection[int]) -> Architecture:
    """`architecture`; ValueError unless its sizes make its count of parameters, and that the sizes of weights files.

    So whatever is allocated by these sizes is no larger than files that are there.
    """
    for name, value in asdict(architecture).items():
        most = LARGEST.get(name)
        if type(value) is int and value < 1:
            raise ValueError(f"Architecture.{name} is {value}")
        if most and value > most:
            raise ValueError(f"Architecture.{name} is {value:,}, more than {most:,}")
    if architecture.n_embd % architecture.n_head:
        raise ValueError(f"Architecture.n_embd is {architecture.n_embd}, no multiple of n_head {architecture.n_head}")
    count, padding = count_parameters(architecture), PADDING * (architecture.n_layer + 1)
    if architecture.parameters != count:
        raise ValueError(f"Architecture.parameters is {architecture.parameters:,}, but its sizes make {count:,}")
    if sum(weights) * 8 < count * LEAST_BITS:
        raise ValueError(f"Architecture has {count:,} parameters, more than fit in {sum(weights):,} bytes of weights")
    if max(weights, default=0) > count * MOST_BYTES + padding:
        raise ValueError(f"a weights file has {max(weights):,} bytes, more than {count:,} parameters take")
    return architecture


def count_parameters(sizes: Architecture) -> int:
    """What PyTorch counts for these sizes, a tied `lm_head` not again."""
    width, inner = sizes.n_embd, sizes.n_inner
    block = 4 * width + 4 * width * (width + 1) + (width + 1) * inner + (inner + 1) * width
    tables = sizes.n_positions + sizes.vocab_size * (1 if sizes.tie_word_embeddings else 2)
    return sizes.n_layer * block + tables * width + 2 * width
