"""Chooses the tracer: optimum beside transformers 4.57, transformers' own exporter from 5.13 on."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

import transformers
from transformers import GPT2Config

from export.errors import EXTRAS, ExportError
from export.majors import MAJOR


@dataclass(frozen=True)
class Tracer:
    """A tracer: the module here that runs it, the package that traces, and those whose versions decide on the graph."""

    module: str
    package: str
    beside: tuple[str, ...]

    def trace(self, config: GPT2Config, path: Path) -> None:
        """Trace the graph of `config` to `path`; weights are inputs, under the checkpoint's names."""
        trace: Callable[[GPT2Config, Path], None] = import_module(self.module).trace
        trace(config, path)


OPTIMUM = Tracer("export.graphs.tracing.optimum", "optimum-onnx", ("optimum", "optimum-onnx"))
TRANSFORMERS = Tracer("export.graphs.tracing.transformers5", "transformers", ("onnxscript", "onnx-ir"))


def find_tracer() -> Tracer:
    """The tracer that fits what is installed.

    Raises:
        ExportError: None does; the message names the two commands that install one.
    """
    release = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    tracer, fits = (OPTIMUM, release == (4, 57)) if MAJOR < 5 else (TRANSFORMERS, release >= (5, 13))
    if not fits:
        raise refusal("an export needs 4.57 or from 5.13 on")
    if absent := [name for name in tracer.beside if not installed(name)]:
        raise refusal(f"an export by it needs {absent[0]} too")
    return tracer


def refusal(need: str) -> ExportError:
    return ExportError(
        f"transformers {transformers.__version__} is installed, and {need}; in an environment of its own: {EXTRAS}"
    )


def installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
