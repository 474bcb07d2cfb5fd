"""Which of a bundle's decode graphs runs: the ragged one where the bundle has it and ONNX Runtime can run it."""

from pathlib import Path

from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import Kind, Manifest
from runtime.errors import BundleError
from runtime.ort.install import load_onnxruntime
from runtime.ort.placement import Placement

QUERY_SEQLENS_SINCE = (1, 32)  # ONNX Runtime's release from which on GroupQueryAttention has it on the CPU
RAGGED: dict[Kind, Kind] = {"decode": "ragged", "prefill": "ragged_prefill"}


def decode_path(bundle: Bundle, precision: str, placement: Placement, cache: str = "float32") -> Path:
    """The graph that generates; float16 has one graph for the CPU and CUDA."""
    if placement.on_device:
        return bundle.graph_path("decode_cuda" if precision == "fp32" else "decode", precision)
    if cache == "int8":
        check_int8_cache(bundle.manifest, precision)
        return bundle.graph_path("int8_cache", precision)
    return bundle.graph_path(best_kind(bundle.manifest, "decode", precision), precision)


def prefill_path(bundle: Bundle, precision: str, placement: Placement, cache: str = "float32") -> Path | None:
    """The graph for many ids at once, if there is one; beside int8 keys and values it would save nothing measurable."""
    kind = best_kind(bundle.manifest, "prefill", precision)
    served = bundle.manifest.has_graph(kind, precision) and not placement.on_device and cache == "float32"
    return bundle.graph_path(kind, precision) if served else None


def best_kind(manifest: Manifest, kind: Kind, precision: str) -> Kind:
    """The ragged kind, or `kind` itself."""
    ragged = RAGGED[kind]
    return ragged if runs(ragged) and manifest.has_graph(ragged, precision) else kind


def check_int8_cache(manifest: Manifest, precision: str) -> None:
    """Raise an error that says what to do unless a precision can be served with int8 keys and values here."""
    if not manifest.has_graph("int8_cache", precision):
        asked = "" if precision == "fp32" else f" --precision {precision}"
        raise BundleError(
            f"this bundle has no int8 keys and values in {precision}; "
            f"export it with them: python -m export CHECKPOINT{asked} --cache int8 …"
        )
    if not runs("int8_cache"):
        needed = ".".join(map(str, QUERY_SEQLENS_SINCE))
        raise RuntimeError(
            f"cache='int8' needs ONNX Runtime {needed} or newer, this is {load_onnxruntime().__version__}; "
            f'upgrade it: pip install "onnxruntime>={needed}"'
        )


def runs(kind: Kind) -> bool:
    """Whether this release of ONNX Runtime runs graphs of a kind."""
    if kind not in {*RAGGED.values(), "int8_cache"}:
        return True
    release = load_onnxruntime().__version__.split(".")[:2]
    return tuple(int(part) for part in release) >= QUERY_SEQLENS_SINCE
