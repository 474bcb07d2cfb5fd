"""The processor's name, and the instruction sets that decide how int8 and int4 products are computed."""

import platform
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
SETS = {  # by Linux's flags for them
    "AVX2": {"avx2"},
    "AVX-512": {"avx512f"},
    "VNNI": {"avx512_vnni", "avx_vnni"},
    "AMX": {"amx_int8"},
    "dot products": {"asimddp"},
    "i8mm": {"i8mm"},
}
KEYS = ("model name", "flags", "Features")  # x86 has flags, ARM has Features


@dataclass(frozen=True, slots=True)
class Processor:
    """Its name, and which of `SETS` it has; None if the system does not tell."""

    name: str = "unknown"
    instructions: tuple[str, ...] | None = None

    @property
    def meaning(self) -> str:
        """How this processor computes the products of int8 and int4."""
        found = self.instructions
        if found is None:
            return "unknown"
        if "VNNI" in found or "AMX" in found:
            return f"exact in one instruction, by {'AMX' if 'AMX' in found else 'VNNI'}"
        if "AVX2" in found:
            return "exact, but slower than with VNNI: without it, ONNX Runtime is told to keep sums out of 16 bits"
        if "i8mm" in found or "dot products" in found:
            return f"exact in one instruction, by {'i8mm' if 'i8mm' in found else 'dot products'}"
        return "exact, but slow: there are no instructions for them"

    def __str__(self) -> str:
        if self.instructions is None:
            return f"{self.name}, instruction sets unknown"
        return f"{self.name}: {', '.join(self.instructions) or 'none of ' + ', '.join(SETS)}"


def find_processor(path: Path = CPUINFO) -> Processor:
    """The processor that /proc/cpuinfo describes, or just its name elsewhere."""
    name = platform.processor() or platform.machine() or "unknown"
    try:
        found = read(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:  # not Linux
        return Processor(name)
    flags = found.get("flags") or found.get("Features")
    instructions = None if flags is None else tuple(each for each, ones in SETS.items() if ones & set(flags.split()))
    return Processor(found.get("model name") or name, instructions)


def read(text: str) -> dict[str, str]:
    """The first processor's value of each of `KEYS`."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in KEYS:
            found.setdefault(key.strip(), value.strip())
    return found
