"""Plots of attention maps and the lens as matplotlib figures; needs the extra `plot`."""

try:
    import matplotlib  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "matplotlib":  # it is installed, but broken
        raise
    raise ImportError('pictures need matplotlib; install it: pip install "gpt2-onnx[plot]"') from error

from runtime.inside.plots.attention import plot_attention
from runtime.inside.plots.lens import plot_lens
from runtime.inside.plots.overview import plot_overview

__all__ = ["plot_attention", "plot_lens", "plot_overview"]
