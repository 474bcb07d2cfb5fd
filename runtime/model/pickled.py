"""A pickled model: which bundle it was loaded from, and how. Whoever unpickles it loads it, once a process."""

import copyreg
import threading
from collections.abc import Callable
from typing import Any

from runtime.forks import tell_children
from runtime.model.model import Model, models
from runtime.model.parts import Loading


class Unpickler:
    """Gives the model there is, or loads it.

    The last one is kept: a pool's worker gets it anew with every task.
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
    """For pickle and copy."""
    return unpickle, (model.loading,)


copyreg.pickle(Model, reduce_model)
