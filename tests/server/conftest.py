"""Servers that are live, and the model that they serve."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from live_server import Live, live
from starlette.applications import Starlette

import runtime
from runtime.server import ServerSettings, create_app

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def serving() -> Callable[[Starlette], AbstractContextManager[Live]]:
    """Serve an app from a thread, for a fixture that lasts longer than a test."""
    return live


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


@dataclass(frozen=True)
class Started:
    """A server in a process of its own, whose log grows in `log`."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def logged(self, part: str, seconds: float = 10.0) -> str:
        """Wait for a line of the log."""
        end = time.monotonic() + seconds
        while not (found := [line for line in self.log.read_text().splitlines() if part in line]):
            assert time.monotonic() < end, f"{part!r} is not in the log:\n{self.log.read_text()}"
            time.sleep(0.02)
        return found[0]

    def ends(self, seconds: float = 10.0) -> int:
        """Wait for the end; the exit code."""
        return self.process.wait(seconds)


@pytest.fixture
def start(bundle: Path, tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """Start `python -m runtime serve` with arguments, or another command; it listens once this returns."""
    with ExitStack() as stack:

        def begin(*arguments: object, command: Sequence[object] = (), **environment: str) -> Started:
            log = tmp_path / f"server-{len(list(tmp_path.glob('server-*.log')))}.log"
            serving = (sys.executable, "-m", "runtime", "serve", "--model", bundle, "--device", "cpu", "--port", 0)
            told = [str(part) for part in (*(command or serving), *arguments)]
            given = {name: value for name, value in os.environ.items() if not name.startswith("GPT2_ONNX_")}
            with log.open("wb") as file:
                process = subprocess.Popen(told, stderr=file, cwd=ROOT, env=given | environment)
            stack.callback(process.wait, 10)
            stack.callback(process.kill)
            end = time.monotonic() + 30
            while not (found := re.search(r" (?:at|on) (http://\S+:\d+)", log.read_text())):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.02)
            return Started(process, found[1].replace("0.0.0.0", "127.0.0.1"), log)

        yield begin
