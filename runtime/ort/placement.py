"""Placement: the device that sessions run on, their memory limits, and the provider options for it."""

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Placement:
    """A device and its settings.

    Attributes:
        device: "cpu" or "cuda".
        index: The card's number, as CUDA counts them.
        on_device: Whether the state of running sequences stays in the device's memory. Always true on CUDA; on the CPU
            it runs CUDA's code path.
        gpu_mem_limit: Bytes that a session's arena may take; None means no limit.
        arena_extend_strategy: How ONNX Runtime's arena grows; None is its default, kNextPowerOfTwo.
        cuda_graph: Whether steps may be captured as CUDA graphs.
    """

    device: str = "cpu"
    index: int = 0
    on_device: bool = False
    gpu_mem_limit: int | None = None
    arena_extend_strategy: str | None = None
    cuda_graph: bool = True

    def __str__(self) -> str:
        return self.device if self.device == "cpu" else f"{self.device}:{self.index}"

    def without_cuda_graph(self) -> "Placement":
        return replace(self, cuda_graph=False)

    def as_on_device(self) -> "Placement":
        return replace(self, on_device=True)

    @property
    def provider(self) -> str:
        """The name of ONNX Runtime's execution provider."""
        return f"{self.device.upper()}ExecutionProvider"

    def provider_options(self) -> dict[str, Any]:
        """Options of the provider; documented at onnxruntime.ai, CUDA Execution Provider."""
        if self.device == "cpu":
            return {}
        options = {
            "device_id": str(self.index),
            "use_tf32": "0",  # TF32 rounds the factors of products to 10 bits
            "enable_skip_layer_norm_strict_mode": "1",  # else a fused norm sums in float16
            "use_ep_level_unified_stream": "1",  # so that queued runs finish before later ones start
            "enable_cuda_graph": str(int(self.cuda_graph)),
        }
        if self.gpu_mem_limit is not None:
            options["gpu_mem_limit"] = str(self.gpu_mem_limit)
        if self.arena_extend_strategy is not None:
            options["arena_extend_strategy"] = self.arena_extend_strategy
        return options


CPU = Placement()
