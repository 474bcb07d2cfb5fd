"""Facts about this machine and installation, gathered once, from which findings are drawn."""

import importlib
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType

from runtime.diagnosis.machine import (
    LIBRARIES,
    ONNX_RUNTIMES,
    Gpu,
    find_gpus,
    find_libraries,
    installed,
    wanted_libraries,
)
from runtime.diagnosis.probe import probe_products, probe_providers
from runtime.diagnosis.processor import Processor, find_processor
from runtime.diagnosis.serving import ServerPackages, find_server_packages
from runtime.ort.threads import affinity_cpus, available_cpus


@dataclass(frozen=True, slots=True)
class Facts:
    """This machine and its installation.

    Attributes:
        python, platform: Their names and versions.
        packages: Versions of this package and its dependencies.
        wheels: Versions of the installed packages that contain ONNX Runtime; there should be one.
        import_error: Why `import onnxruntime` fails, or None.
        cuda: The version of CUDA that the wheel was built for, "" for a CPU-only wheel.
        server: The packages of the extra `serve`.
        providers: Why each does not work, or None if it does.
        libraries: Where each library of the CUDA provider is, or None if missing; empty for a CPU-only wheel.
        gpus: The NVIDIA cards.
        no_gpu: Why there is none, or None.
        processor: Its name, and the instruction sets that matter to int8 and int4.
        wrong_products: Wrong products of int8 and int4 at extreme values, by kernel; empty if all are right.
        cpus: CPUs that this process may be scheduled on.
        threads: The default of `threads`: `cpus`, or fewer by a cgroup's quota.
        telemetry: Whether ONNX Runtime may send telemetry.
    """

    python: str
    platform: str
    packages: Mapping[str, str]
    wheels: Mapping[str, str]
    import_error: str | None = None
    cuda: str = ""
    server: ServerPackages = field(default_factory=ServerPackages)
    providers: Mapping[str, str | None] = field(default_factory=dict)
    libraries: Mapping[str, str | None] = field(default_factory=dict)
    gpus: tuple[Gpu, ...] = ()
    no_gpu: str | None = None
    processor: Processor = field(default_factory=Processor)
    wrong_products: tuple[str, ...] = ()
    cpus: int = 1
    threads: int = 1
    telemetry: bool = False

    @property
    def cuda_major(self) -> int:
        """The major version of CUDA; 0 for a CPU-only wheel."""
        major = self.cuda.partition(".")[0]
        return int(major) if major.isdigit() else 0


def gather(*, probing: bool = True) -> Facts:
    """Gather all facts; without `probing`, no provider and no package of the server's is tried."""
    onnxruntime, import_error = import_onnxruntime()
    gpus, no_gpu = find_gpus()
    facts = Facts(
        python=f"{platform.python_version()} ({sys.executable})",
        platform=platform.platform(),
        packages=installed(LIBRARIES),
        wheels=installed(ONNX_RUNTIMES),
        import_error=import_error,
        cuda=built_for_cuda(),
        server=find_server_packages() if probing else ServerPackages(),
        providers=probe_providers(onnxruntime) if onnxruntime and probing else {},
        gpus=gpus,
        no_gpu=no_gpu,
        processor=find_processor(),
        wrong_products=probe_products() if not import_error and probing else (),
        cpus=affinity_cpus(),
        threads=available_cpus(),
        telemetry=os.environ.get("ORT_DISABLE_TELEMETRY") != "1",
    )
    return with_libraries(facts)


def with_libraries(facts: Facts) -> Facts:
    """Add the CUDA libraries that the wheel needs; only on Linux, as their names elsewhere are not known here."""
    if not facts.cuda_major or sys.platform != "linux":
        return facts
    return replace(facts, libraries=find_libraries(wanted_libraries(facts.cuda_major)))


def import_onnxruntime() -> tuple[ModuleType | None, str | None]:
    """The module, even if two wheels overwrote each other, or why it cannot be imported."""
    try:
        module = importlib.import_module("onnxruntime")
        module.get_available_providers()  # a folder that an uninstalled wheel left behind has none
    except Exception as error:  # a broken binary raises anything
        return None, " ".join(str(error).split()) or type(error).__name__
    return module, None


def built_for_cuda() -> str:
    """The CUDA version that the wheel names; "" if it names none."""
    try:
        info = importlib.import_module("onnxruntime.capi.build_and_package_info")
    except Exception:  # `import_error` says what is wrong
        return ""
    return str(getattr(info, "cuda_version", "") or "")
