"""Which of a bundle's decode graphs runs: the ragged one where the bundle has it and ONNX Runtime can run it."""

from pathlib import Path

from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import Kind, Manifest
from runtime.ort.install import load_onnxruntime
from runtime.ort.placement import Placement

QUERY_SEQLENS_SINCE = (1, 32)  # ONNX Runtime's release from which on GroupQueryAttention has it on the CPU
RAGGED: dict[Kind, Kind] = {"decode": "ragged", "prefill": "ragged_prefill"}


def decode_path(bundle: Bundle, precision: str, placement: Placement) -> Path:
    """The graph that generates; float16 has one graph for the CPU and CUDA."""
    if placement.on_device:
        return bundle.graph_path("decode_cuda" if precision == "fp32" else "decode", precision)
    return bundle.graph_path(best_kind(bundle.manifest, "decode", precision), precision)


def prefill_path(bundle: Bundle, precision: str, placement: Placement) -> Path | None:
    """The graph for many ids at once, if there is one."""
    kind = best_kind(bundle.manifest, "prefill", precision)
    served = bundle.manifest.has_graph(kind, precision) and not placement.on_device
    return bundle.graph_path(kind, precision) if served else None


def best_kind(manifest: Manifest, kind: Kind, precision: str) -> Kind:
    """The ragged kind, or `kind` itself."""
    ragged = RAGGED[kind]
    return ragged if runs(ragged) and manifest.has_graph(ragged, precision) else kind


def runs(kind: Kind) -> bool:
    """Whether this release of ONNX Runtime runs graphs of a kind."""
    if kind not in RAGGED.values():
        return True
    release = load_onnxruntime().__version__.split(".")[:2]
    return tuple(int(part) for part in release) >= QUERY_SEQLENS_SINCE
