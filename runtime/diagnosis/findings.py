"""Findings: problems and warnings drawn from the facts, each with the command that fixes it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from runtime.diagnosis.facts import Facts, gather
from runtime.diagnosis.machine import visible
from runtime.diagnosis.serving import NEEDED

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
LEAST_ONNXRUNTIME = (1, 27)
LEAST_DRIVER = {12: 525, 13: 580}  # for the major version of CUDA: NVIDIA's CUDA compatibility guide, for Linux
LEAST_CAPABILITY = {12: 6.0, 13: 7.5}  # CUDA 13 dropped Maxwell, Pascal and Volta
LATEST_CUDA = 13  # onnxruntime-gpu on PyPI is built for it from 1.27 on


@dataclass(frozen=True, slots=True)
class Finding:
    """A `problem` keeps something from working, a `warning` does not; `fix` is a command, or what to do."""

    level: Literal["problem", "warning"]
    what: str
    fix: str


def find(facts: Facts) -> tuple[Finding, ...]:
    return (*of_installation(facts), *of_cuda(facts), *of_server(facts), *of_settings(facts))


def of_installation(facts: Facts) -> Iterator[Finding]:
    if not facts.wheels:
        yield Finding("problem", "no ONNX Runtime is installed", 'pip install "gpt2-onnx[cpu]" (or [gpu] for CUDA)')
        return
    if len(facts.wheels) > 1:
        names = list(facts.wheels)
        yield Finding(
            "problem",
            f"{' and '.join(names)} are installed over one another",
            f'pip uninstall -y {" ".join(names)} && pip install "gpt2-onnx[cpu]" (or [gpu] for CUDA)',
        )
    elif facts.import_error:
        (name,) = facts.wheels
        fix = f"pip install --force-reinstall --no-deps {name}=={facts.wheels[name]}"
        yield Finding("problem", f"onnxruntime cannot be imported: {facts.import_error}", fix)
    for name, version in facts.wheels.items():
        if parsed(version) < LEAST_ONNXRUNTIME:
            least = ".".join(map(str, LEAST_ONNXRUNTIME))
            yield Finding(
                "problem", f"{name} {version} is older than {least}", f'pip install --upgrade "{name}>={least}"'
            )
    if not facts.import_error and facts.providers.get(CPU, "it is not in this build"):
        reason = facts.providers.get(CPU, "it is not in this build")
        yield Finding("problem", f"the CPU provider does not work: {reason}", "reinstall ONNX Runtime")
    if facts.wrong_products:
        what = f"int8 and int4 are computed wrongly on this processor: {'; '.join(facts.wrong_products)}"
        yield Finding("problem", what, "precision='fp32', and pip install --upgrade onnxruntime for the others")


def parsed(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def of_cuda(facts: Facts) -> Iterator[Finding]:
    """Why CUDA does not run here; nothing if it runs, is not wanted, or the installation must be fixed first."""
    if facts.import_error or len(facts.wheels) != 1 or facts.providers.get(CUDA, "") is None:
        return
    (name,) = facts.wheels
    if name != "onnxruntime-gpu":
        if facts.gpus:
            fix = f'pip uninstall -y {name} && pip install "gpt2-onnx[gpu]"'
            yield Finding("warning", f"{facts.gpus[0].name} is not used: {name} is built without CUDA", fix)
        return
    causes = list(cuda_causes(facts))
    yield from causes
    if not causes:
        reason = facts.providers.get(CUDA) or "the provider is not in this build"
        yield Finding("problem", f"CUDA does not run: {reason}", 'pip install --force-reinstall "gpt2-onnx[gpu]"')


def why_not_cuda(problem: str, index: int) -> str:
    """The first known cause and its fix, in one line; else `problem`, ONNX Runtime's own message."""
    facts = gather(probing=False)
    cards = visible(facts.gpus)
    if 0 < len(cards) <= index:
        return f"there is no card {index}, only 0 to {len(cards) - 1}; choose one of those"
    first, *others = [*cuda_causes(facts), Finding("problem", problem, "python -m runtime doctor")]
    more = f" ({len(others) - 1} more: python -m runtime doctor)" if len(others) > 1 else ""
    return f"{first.what}; {first.fix}{more}"


def cuda_causes(facts: Facts) -> Iterator[Finding]:
    """Known causes that keep a wheel with CUDA from running it."""
    cuda = facts.cuda_major or LATEST_CUDA
    if facts.no_gpu:
        fix = f"install NVIDIA's driver, {LEAST_DRIVER.get(cuda, 580)} or newer; in a container: docker run --gpus all"
        yield Finding("problem", f"there is no NVIDIA driver, or no card: {facts.no_gpu}", fix)
    for number, gpu in enumerate(facts.gpus):
        least = LEAST_DRIVER.get(cuda, 0)
        if number == 0 and parsed(gpu.driver)[:1] < (least,):
            yield Finding(
                "problem",
                f"the NVIDIA driver is {gpu.driver}; CUDA {cuda}, for which this wheel is built, needs {least}",
                f"update the driver to {least} or newer",
            )
        if gpu.compute_capability < LEAST_CAPABILITY.get(cuda, 0):
            yield Finding(
                "problem",
                f"{gpu.name} has compute capability {gpu.compute_capability}; CUDA {cuda} needs "
                f"{LEAST_CAPABILITY[cuda]}",
                "use a newer card, or device='cpu'",
            )
    missing = [name for name, place in facts.libraries.items() if place is None]
    if missing:
        fix = 'pip install "onnxruntime-gpu[cuda,cudnn]"'
        yield Finding("problem", f"libraries of CUDA {cuda} and cuDNN 9 are missing: {', '.join(missing)}", fix)


def of_server(facts: Facts) -> Iterator[Finding]:
    """What keeps the server from running; nothing if none of its packages is there, as nobody wants it then."""
    server = facts.server
    if not server.wanted:
        return
    if server.missing:  # a warning, as those that are there may be another program's
        what = f"the extra serve is incomplete, without {' and '.join(server.missing)}"
        yield Finding("warning", what, 'pip install "gpt2-onnx[serve]"')
    for name, version in server.versions.items():
        if parsed(version) < NEEDED[name]:
            least = ".".join(map(str, NEEDED[name]))
            what = f"{name} {version} is older than {least}, which the server needs"
            yield Finding("warning" if server.missing else "problem", what, f'pip install --upgrade "{name}>={least}"')
    for name, reason in server.import_errors.items():
        fix = f"pip install --force-reinstall --no-deps {name}=={server.versions[name]}"
        yield Finding("problem", f"{name} cannot be imported: {reason}", fix)


def of_settings(facts: Facts) -> Iterator[Finding]:
    if facts.telemetry:
        yield Finding("warning", "ONNX Runtime may send telemetry", "export ORT_DISABLE_TELEMETRY=1")
    if facts.threads < facts.cpus:
        yield Finding(
            "warning",
            f"a quota leaves {facts.threads} of {facts.cpus} CPUs; that is what threads are by default",
            "raise the container's CPU limit if more are meant",
        )
