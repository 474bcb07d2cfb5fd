"""Servers that are live, and the model that they serve."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from live_server import Live, live

import runtime
from runtime.server import ServerSettings, create_app


@pytest.fixture(scope="session")
def model(bundle: Path) -> runtime.Model:
    return runtime.load(bundle, device="cpu", slots=8)


@pytest.fixture(scope="session")
def server(model: runtime.Model) -> Iterator[Live]:
    """A server with the default limits, which all tests share; none may leave anything running in it."""
    with live(create_app(model, ServerSettings(served_name="novelist"))) as found:
        yield found


@pytest.fixture
def serve(bundle: Path) -> Iterator[Callable[..., Live]]:
    """Make servers with limits of their own, over a model of their own."""
    with ExitStack() as stack:

        def make(*, slots: int = 2, **limits) -> Live:
            loaded = runtime.load(bundle, device="cpu", slots=slots)
            return stack.enter_context(live(create_app(loaded, ServerSettings(served_name="novelist", **limits))))

        yield make
