"""Peak memory of a whole export, verification included, as a multiple of the checkpoint's size.

python -m benchmarks.export_memory            # GPT-2 small and medium, seeded, made once in build/benchmarks
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from benchmarks.common.kept import ROOT, SIZES, WORK, seeded_checkpoint
from benchmarks.common.study import OneLineParser
from benchmarks.common.turns import empty_table


def main() -> None:
    parser = OneLineParser("benchmarks.export_memory", __doc__)
    parser.add_argument("sizes", nargs="*", metavar="SIZE", default=["small", "medium"], help=f"of {', '.join(SIZES)}")
    table = empty_table("GPT-2", "checkpoint, MB", "peak memory, MB", "ratio", "seconds")
    for size in parser.parse_args().sizes:
        table.add_row(size, *measure(seeded_checkpoint(size)))
    Console(width=100).print(table)


def measure(checkpoint: Path) -> tuple[str, ...]:
    """Of one export in a process of its own: sizes in MB (10^6 bytes), their ratio and the seconds it took."""
    output = WORK / "export-memory"
    shutil.rmtree(output, ignore_errors=True)
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "export", checkpoint, "--output", output], stdout=subprocess.DEVNULL, cwd=ROOT
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    shutil.rmtree(output, ignore_errors=True)
    if process.returncode:
        sys.exit(f"the export of {checkpoint} failed with exit code {process.returncode}")
    size, peak = (checkpoint / "model.safetensors").stat().st_size / 1e6, usage.ru_maxrss * 1024 / 1e6
    return f"{size:,.0f}", f"{peak:,.0f}", f"{peak / size:.2f}", f"{seconds:.0f}"


if __name__ == "__main__":
    main()
