"""Where sessions run, and with which memory."""

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Placement:
    """A device, and what is asked of it.

    Attributes:
        device: "cpu" or "cuda".
        index: Of the card, as CUDA counts them.
        on_device: Whether the state of what is under way stays in the device's memory. Always so on CUDA; on the CPU it
            is what CUDA does, rehearsed.
        gpu_mem_limit: Bytes that a session's arena may take; None is all there is.
        arena_extend_strategy: ONNX Runtime's: how an arena grows; None is its default, kNextPowerOfTwo.
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
        """ONNX Runtime's name of it."""
        return f"{self.device.upper()}ExecutionProvider"

    def provider_options(self) -> dict[str, Any]:
        """What the provider is told; documented at onnxruntime.ai, CUDA Execution Provider."""
        if self.device == "cpu":
            return {}
        options = {
            "device_id": str(self.index),
            "use_tf32": "0",  # float32 products of 10-bit factors are no float32
            "enable_skip_layer_norm_strict_mode": "1",  # else a fused norm sums in float16
            "use_ep_level_unified_stream": "1",  # so that runs nobody waited for come before those after them
            "enable_cuda_graph": str(int(self.cuda_graph)),
        }
        if self.gpu_mem_limit is not None:
            options["gpu_mem_limit"] = str(self.gpu_mem_limit)
        if self.arena_extend_strategy is not None:
            options["arena_extend_strategy"] = self.arena_extend_strategy
        return options


CPU = Placement()
