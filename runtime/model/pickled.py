"""Pickling of models: a pickle holds the bundle and the options; unpickling loads them once per process."""

import copyreg
import threading
from collections.abc import Callable
from typing import Any

from runtime.forks import tell_children
from runtime.model.model import Model, models
from runtime.model.parts import Loading


class Unpickler:
    """Returns the model that this process already has, or loads it.

    The last one is kept: a pool's worker unpickles it again with every task.
    """

    def __init__(self) -> None:
        self._last: Model | None = None
        self._lock = threading.Lock()
        tell_children(self, Unpickler._forked)

    def unpickle(self, loading: Loading) -> Model:
        with self._lock:
            known = (model for model in list(models) if model.loading == loading)
            self._last = next(known, None) or Model(loading, loading.again())
            return self._last

    def _forked(self) -> None:
        self._lock = threading.Lock()


_unpickler = Unpickler()


def unpickle(loading: Loading) -> Model:
    return _unpickler.unpickle(loading)


def reduce_model(model: Model) -> tuple[Callable[..., Any], tuple[Loading]]:
    """How pickle and copy take a model apart."""
    return unpickle, (model.loading,)


copyreg.pickle(Model, reduce_model)
