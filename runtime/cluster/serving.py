"""Runs the application until a signal ends it; SIGHUP makes all replicas anew, one by one, while the others answer."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import serve

import runtime
from runtime.cluster.application import build
from runtime.cluster.environment import is_elsewhere, take_own_token
from runtime.cluster.settings import ClusterSettings

NAME = "gpt2-onnx"  # of the application
CPUS = 1024  # that a cluster of this machine alone pretends to have: how many replicas share its own, the caller says
LOOKS = 0.2  # seconds between two looks for a signal
logger = logging.getLogger("runtime")


def serve_cluster(settings: ClusterSettings, *, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT, on the cluster at RAY_ADDRESS, or on one of this machine alone, which ends too.

    Raises:
        BundleError: There is no bundle, or not one that can be served.
        RuntimeError: There is no cluster, or no replica could be made; the message says why.
    """
    alone = not is_elsewhere()
    check(settings, here=alone)
    ended, renewed = threading.Event(), threading.Event()
    with connected(alone=alone), heard(ended, renewed):  # Ray sets handlers of its own
        serve.start(proxy_location="EveryNode", http_options={"host": host, "port": port})
        deploy(settings)
        logger.info("serving %s at http://%s:%d with %s", settings.model, host, port, shown(settings))
        while not ended.wait(LOOKS):
            if renewed.is_set():
                renewed.clear()
                renew(settings, here=alone)
        logger.info("no new requests; those under way may end")
        serve.delete(NAME)


def check(settings: ClusterSettings, *, here: bool) -> None:
    """Load the model once, if replicas are made here: what is wrong with it is told before anything is made."""
    if here or (Path(settings.model).exists() and not settings.gpus):  # cards may be on other machines alone
        runtime.load(settings.model, **settings.load())


def deploy(settings: ClusterSettings) -> None:
    try:
        serve.run(build(settings), name=NAME, route_prefix="/")
    except RuntimeError as error:
        raise RuntimeError(f"no replica could be made: {reason() or error}") from None


def reason() -> str:
    """The last line of what Ray tells of a deployment that failed: that of the error."""
    told = serve.status().applications[NAME].deployments
    lines = [line.strip() for each in told.values() for line in each.message.splitlines()]
    return next((line for line in reversed(lines) if "Error: " in line), "")


def renew(settings: ClusterSettings, *, here: bool) -> None:
    """Make all replicas anew; where that cannot be, those that there are go on."""
    try:
        check(settings, here=here)
        deploy(settings)
        logger.info("SIGHUP: all replicas are new")
    except (RuntimeError, ValueError) as error:
        logger.error("SIGHUP: the replicas stay as they were: %s", error)


def shown(settings: ClusterSettings) -> str:
    least, most = settings.replicas
    return f"{least:,} to {most:,} replicas" if least < most else f"{most:,} replica{'s' * (most > 1)}"


@contextmanager
def connected(*, alone: bool) -> Iterator[None]:
    """A connection to Ray; a cluster of this machine alone begins and ends with it."""
    if alone:
        take_own_token()
    for name in ("ray", "ray.serve"):  # what the log of this command says itself
        logging.getLogger(name).setLevel(logging.ERROR)
    local: dict[str, Any] = {"include_dashboard": False, "num_cpus": CPUS} if alone else {}
    try:
        ray.init(address="local" if alone else None, logging_level="error", log_to_driver=False, **local)
    except ConnectionError as error:
        raise RuntimeError(f"there is no Ray cluster at {os.environ.get('RAY_ADDRESS')}: {error}") from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def heard(ended: threading.Event, renewed: threading.Event) -> Iterator[None]:
    """Set an event for each signal, instead of what it does by itself."""
    told = {"SIGTERM": ended, "SIGINT": ended, "SIGHUP": renewed}
    numbers = {getattr(signal, name): event for name, event in told.items() if hasattr(signal, name)}
    before = {number: signal.signal(number, lambda number, _: numbers[number].set()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
