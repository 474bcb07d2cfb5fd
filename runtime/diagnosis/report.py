"""Diagnosis: the facts and findings of `doctor`, as text and as a dictionary."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from runtime.diagnosis.facts import Facts, gather
from runtime.diagnosis.findings import Finding, find

NAMES = 26  # the width of the first column


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The facts about this machine and the findings drawn from them; `str()` gives both as text."""

    facts: Facts
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether everything that is installed works."""
        return not any(finding.level == "problem" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """A dictionary for JSON."""
        return {"healthy": self.healthy, **asdict(self.facts), "findings": [asdict(found) for found in self.findings]}

    def __str__(self) -> str:
        lines = [f"{name:<{NAMES}}{value}" for name, value in rows(self.facts)]
        for found in self.findings:
            lines += ["", f"{found.level}: {found.what}", f"{'  fix:':<{NAMES}}{found.fix}"]
        return "\n".join([*lines, "", "all is well" if self.healthy else "something is wrong"])


def diagnose() -> Diagnosis:
    facts = gather()
    return Diagnosis(facts, find(facts))


def rows(facts: Facts) -> Iterator[tuple[str, object]]:
    yield "python", facts.python
    yield "platform", facts.platform
    yield from facts.packages.items()
    for name, version in facts.wheels.items():
        yield name, f"{version}, built for CUDA {facts.cuda}" if facts.cuda else version
    yield "server", facts.server
    for name, problem in facts.providers.items():
        yield name, "works" if problem is None else f"does not work: {problem}"
    for name, place in facts.libraries.items():
        yield name, place or "not found"
    for number, gpu in enumerate(facts.gpus):
        memory = f"{gpu.memory_free:,} of {gpu.memory_total:,} MiB free"
        yield f"cuda:{number}", f"{gpu.name}, {memory}, driver {gpu.driver}, compute {gpu.compute_capability}"
    if not facts.gpus:
        yield "GPUs", f"none ({facts.no_gpu})"
    yield "processor", facts.processor
    yield "int8 and int4 products", "WRONG" if facts.wrong_products else facts.processor.meaning
    yield "CPUs", f"{facts.cpus}, threads by default {facts.threads}"
    yield "telemetry", "may be sent" if facts.telemetry else "off"
