"""A cluster of this machine alone, which `python -m runtime serve --cluster` begins and ends."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parent.parent.parent
BEGINS = 120  # seconds that a cluster may take to begin on a busy machine
REPLICA = "ServeReplica:gpt2-onnx:replicas"  # what Ray calls a replica's process


@dataclass(frozen=True)
class Cluster:
    """The command in a process of its own, whose log grows in `log`."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def replicas(self) -> list[int]:
        """The process ids of the replicas."""
        import psutil

        mine = psutil.Process(self.process.pid).children(recursive=True)
        return sorted(each.pid for each in mine if REPLICA in " ".join(cmdline(each)))

    def wait_for(self, condition: Callable[[], object], seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)


def cmdline(process: object) -> list[str]:
    import psutil

    try:
        return process.cmdline()
    except psutil.Error:  # it has just ended
        return []


@pytest.fixture(scope="session")
def begin() -> Callable[..., Cluster]:
    """Begin a cluster with arguments of `serve`; whoever begins one ends it."""

    def make(model: Path, log: Path, *arguments: object) -> Cluster:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "runtime", "serve", "--cluster", "--model", model, "--port", port, *arguments]
        given = {name: value for name, value in os.environ.items() if not name.startswith(("GPT2_ONNX_", "RAY_"))}
        with log.open("wb") as file:
            process = subprocess.Popen(
                list(map(str, command)), stderr=file, stdout=file, cwd=ROOT, env=given, start_new_session=True
            )
        cluster = Cluster(process, f"http://127.0.0.1:{port}", log)
        try:
            cluster.wait_for(lambda: re.search(r"serving .* at http", log.read_text()), BEGINS)
        except BaseException:
            end(cluster)
            raise
        return cluster

    return make


def end(cluster: Cluster) -> int:
    """End a cluster in peace, or by force; the exit code."""
    cluster.signal(signal.SIGTERM)
    try:
        return cluster.process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(cluster.process.pid, signal.SIGKILL)
        raise


@pytest.fixture(scope="module")
def cluster(begin, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two replicas of four slots each, and one front, which knows all that is under way."""
    log = tmp_path_factory.mktemp("cluster") / "log"
    found = begin(bundle, log, "--replicas", 2, "--slots", 4, "--fronts", 1)
    try:
        yield found
    finally:
        assert end(found) == 0, found.log.read_text()


@pytest.fixture
def started(begin, tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Begin clusters that end with the test."""
    with ExitStack() as stack:

        def make(model: Path, *arguments: object) -> Cluster:
            found = begin(model, tmp_path / "log", *arguments)
            stack.callback(end, found)
            return found

        yield make


@pytest.fixture
def client(cluster) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=cluster.url, timeout=120, trust_env=False) as made:
        yield made
