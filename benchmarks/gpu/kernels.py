"""How long the kernels of a step take, from traces: PyTorch's profiler and ONNX Runtime's write the same format."""

import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from benchmarks.gpu.checkpoint import Checkpoint
from runtime.engine.steps import MOST_STEPS
from runtime.graphs.device.cache import DeviceCache, bucket
from runtime.graphs.device.graph import DeviceGraph
from runtime.graphs.device.runs import DeviceRuns
from runtime.graphs.forward import Forward
from runtime.graphs.state import DecodeState
from runtime.ort.placement import Placement
from runtime.ort.sessions import make_session

Event = dict[str, Any]


@dataclass
class Kernels:
    """Of one step: how many and how long in all, and the same of each name; `source` says how it is known."""

    source: str
    count: float = 0.0
    microseconds: float = 0.0
    named: dict[str, tuple[float, float]] = field(default_factory=dict)


def kernels_of(checkpoint: Checkpoint, *, cuda_graph: bool) -> Kernels:
    """As CUPTI records them, of steps that the device feeds itself."""
    placement = checkpoint.placement(cuda_graph=cuda_graph)
    session = make_session(checkpoint.graph("fp16"), placement=placement, threads=checkpoint.plan.threads, capture=True)
    state = make_stepper(session, placement, checkpoint)
    token = warm(state, checkpoint)
    traced(state, token)  # CUPTI starts at the first, and may miss what runs meanwhile
    events = [event for event in traced(state, token) if event.get("cat") == "kernel"]
    return summed(events, MOST_STEPS, "CUPTI's record, by PyTorch's profiler")


def warm(state: DecodeState, checkpoint: Checkpoint) -> int:
    (prompt,) = checkpoint.prompts(1, checkpoint.plan.prompt)
    token = state.advance(prompt)
    state.launch(token, MOST_STEPS)
    return state.collect()[-1]


def traced(state: DecodeState, token: int) -> list[Event]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        state.launch(token, MOST_STEPS)
        state.collect()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events: list[Event] = json.loads(path.read_text())["traceEvents"]
        return events


def profiled_by_onnxruntime(checkpoint: Checkpoint) -> Kernels:
    """ONNX Runtime's own: kernels on a GPU, where it was built to see them; on the CPU its nodes."""
    with tempfile.TemporaryDirectory() as folder:
        session = profiling_session(checkpoint, Path(folder))
        state = make_stepper(session, checkpoint.placement(cuda_graph=False), checkpoint)
        token = warm(state, checkpoint)
        state.launch(token, MOST_STEPS)
        state.collect()
        events = json.loads(Path(session.end_profiling()).read_text())
    start = [event["ts"] for event in events if event["name"] == "model_run"][-MOST_STEPS]
    wanted = "Kernel" if checkpoint.plan.device == "cuda" else "Node"
    found = [event for event in events if event.get("cat") == wanted and event["ts"] >= start]
    return summed(found, MOST_STEPS, f"{wanted} events in ONNX Runtime's profile")


def profiling_session(checkpoint: Checkpoint, folder: Path) -> onnxruntime.InferenceSession:
    placement = checkpoint.placement(cuda_graph=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = checkpoint.plan.threads
    options.log_severity_level = 3
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    providers = [(placement.provider, placement.provider_options())]
    return onnxruntime.InferenceSession(str(checkpoint.graph("fp16")), options, providers=providers)


def summed(events: Iterable[Event], steps: int, source: str) -> Kernels:
    found = Kernels(source)
    for event in events:
        microseconds = event["dur"] / steps
        count, sofar = found.named.get(event["name"], (0.0, 0.0))
        found.named[event["name"]] = count + 1 / steps, sofar + microseconds
        found.count += 1 / steps
        found.microseconds += microseconds
    return found


def make_stepper(session: Any, placement: Placement, checkpoint: Checkpoint) -> DecodeState:
    """In float16, with room for the plan's tokens and some more."""
    sizes, plan = checkpoint.architecture, checkpoint.plan
    capacity = bucket(plan.prompt + max(plan.tokens, 64) + 64, sizes.n_positions)
    cache = DeviceCache(sizes, 1, capacity, dtype=np.float16, placement=placement)
    graph = DeviceGraph(DeviceRuns(session, placement), cache)
    return DecodeState(Forward(cache, graph, lambda: None, launcher=graph))
