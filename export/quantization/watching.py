"""Hooks that show the inputs of a model's modules while it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def watching(modules: dict[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """During the block, call `see` with the name and the input rows [R, K] of each module that runs."""

    def hook(name: str) -> Callable[..., None]:
        return lambda _, inputs: see(name, inputs[0].flatten(0, -2))

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
