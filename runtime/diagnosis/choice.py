"""Chooses the device: CUDA where it works, else the CPU or an error that names the fix."""

from dataclasses import replace

from runtime.checks import check_device
from runtime.diagnosis.probe import CUDA, probe
from runtime.ort.install import load_onnxruntime
from runtime.ort.placement import Placement


def find_placement(device: object, asked: Placement) -> tuple[Placement, str]:
    """Where to run, with the settings of `asked`; for "auto" also the reason, as the end of a sentence.

    Raises:
        RuntimeError: CUDA was asked for and does not compute here; the message names the cause and the fix.
    """
    kind, index = check_device(device)
    if kind == "cpu":
        return asked, ""
    cuda = replace(asked, device="cuda", index=index, on_device=True)
    problem = cuda_problem(cuda)
    if problem is None:
        return cuda, ", as CUDA works" if kind == "auto" else ""
    if kind == "auto":
        return asked, f", as CUDA does not: {problem}"
    raise RuntimeError(f"device must be one that works here, got {device!r}: {problem}")


def cuda_problem(placement: Placement) -> str | None:
    """Why CUDA does not compute here, and the fix; None if it does."""
    onnxruntime = load_onnxruntime()
    if CUDA not in onnxruntime.get_available_providers():
        return 'this ONNX Runtime is built without CUDA; pip uninstall -y onnxruntime && pip install "gpt2-onnx[gpu]"'
    problem = probe(onnxruntime, CUDA, **placement.without_cuda_graph().provider_options())
    if problem is None:
        return None
    from runtime.diagnosis.findings import why_not_cuda  # imported late: its imports take 30 ms

    return why_not_cuda(problem, placement.index)
