"""Runs the parts of a batch on a Ray cluster, through Ray Data: workers take parts, and each holds one model."""

import logging
import os
import re
import socket
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import ray
import ray.data

import runtime
from runtime.cluster.environment import is_elsewhere, take_own_token

HOST_PORT = re.compile(r"([^/:]+):(\d+)")
PATIENCE = 10.0  # seconds to reach a cluster
AHEAD = 2  # parts that a worker is given at once, so that it does not wait for the next
Part = dict[str, Any]
Report = dict[str, Any]
Load = Callable[[], "runtime.Model"]
Work = Callable[[Load, Part], Report]


class Worker:
    """A process of the cluster: it loads the model when `work` first asks for it, and keeps it."""

    def __init__(self, work: Work, loading: Mapping[str, Any]) -> None:
        self._work, self._load = work, cache(partial(runtime.load, **loading))

    def __call__(self, part: Part) -> Report:
        return self._work(self._load, part)


@dataclass(frozen=True)
class Workers:
    """How many workers the cluster has room for, and the CPUs of each."""

    count: int
    cpus: int
    on_cuda: bool

    def run(self, work: Work, parts: Sequence[Part], loading: Mapping[str, Any]) -> Generator[Report, None, None]:
        """Have each part done, and yield the reports as they come, in any order.

        Ray Data replaces a worker that dies, however often, and does again what it was given. So `work` may be called
        more than once for a part; it must be importable wherever `runtime` is.
        """
        pool = ray.data.ActorPoolStrategy(size=min(self.count, len(parts)), max_tasks_in_flight_per_actor=AHEAD)
        reports = ray.data.from_items(list(parts), override_num_blocks=len(parts)).map(
            Worker,
            fn_constructor_args=(work, {**loading, "threads": self.cpus}),
            compute=pool,
            num_cpus=self.cpus,
            num_gpus=int(self.on_cuda),
        )
        batches = iter(reports.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"))
        try:
            while (batch := aside(next, batches, None)) is not None:
                yield from batch.to_pylist()
        finally:
            aside(batches.close)


@contextmanager
def joined(workers: int | None, *, on_cuda: bool) -> Iterator[Workers]:
    """Join the cluster at RAY_ADDRESS, or begin one of this machine alone; leave it, or end it, after the block.

    Raises:
        RuntimeError: There is no cluster at RAY_ADDRESS.
        ValueError: It has no room for so many workers.
    """
    aside(join, workers or 1)
    logging.disable(logging.INFO)  # Ray Data would tell of each execution, from a thread of its own
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield Workers(*(room_by_gpus if on_cuda else room_by_cpus)(nodes, workers), on_cuda)
    finally:
        logging.disable(logging.NOTSET)
        aside(ray.shutdown)


def join(workers: int) -> None:
    address = os.environ.get("RAY_ADDRESS", "")
    here: dict[str, Any] = {"address": "local", "num_cpus": max(workers, own_cpus()), "include_dashboard": False}
    if not is_elsewhere():
        take_own_token()
    try:
        if found := HOST_PORT.fullmatch(address):  # Ray itself would try for a long time
            socket.create_connection((found[1], int(found[2])), timeout=PATIENCE).close()
        ray.init(**({} if is_elsewhere() else here), log_to_driver=False)
    except OSError as error:
        raise RuntimeError(f"there is no Ray cluster at RAY_ADDRESS, {address}: {error}") from None


def aside(call: Callable[..., Any], *arguments: Any) -> Any:
    """Call Ray with standard error away, which is the command's: Ray writes there, from C++ too."""
    try:
        kept = os.dup(2)
    except OSError:  # the caller closed it
        return call(*arguments)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        return call(*arguments)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def own_cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def room_by_cpus(nodes: Sequence[Mapping[str, float]], workers: int | None) -> tuple[int, int]:
    """How many workers, and of how many CPUs: as many CPUs as leave room for `workers`, by default one a machine."""
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    wanted = workers or sum(map(bool, cpus)) or 1
    for each in range(max(cpus, default=0), 0, -1):
        if (room := sum(count // each for count in cpus)) >= wanted:
            return workers or room, each
    raise ValueError(f"workers must be at most {sum(cpus):,}, the CPUs of the cluster, got {wanted:,}")


def room_by_gpus(nodes: Sequence[Mapping[str, float]], workers: int | None) -> tuple[int, int]:
    """The same where each has a GPU: by default as many as there are GPUs, and one CPU each."""
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if (workers or 1) > gpus:
        raise ValueError(f"workers must be at most {gpus:,}, the GPUs of the cluster, got {workers or 1:,}")
    return workers or gpus, 1
