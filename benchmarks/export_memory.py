"""Peak memory of a whole export, verification included, as a multiple of the checkpoint's size.

python benchmarks/export_memory.py            # GPT-2 small and medium, seeded, made once in build/benchmarks
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from seeded import SIZES, WORK, seeded_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", default=["small", "medium"], help=f"of {', '.join(SIZES)}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("GPT-2", "checkpoint, MB", "peak memory, MB", "ratio", "seconds"):
        table.add_column(heading, justify="left" if heading == "GPT-2" else "right", no_wrap=True)
    for size in parser.parse_args().sizes:
        table.add_row(size, *measure(seeded_checkpoint(size)))
    Console(width=100).print(table)


def measure(checkpoint: Path) -> tuple[str, ...]:
    """Of one export in a process of its own: sizes in MB (10^6 bytes), their ratio and the seconds it took."""
    output = WORK / "export-memory"
    shutil.rmtree(output, ignore_errors=True)
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "export", checkpoint, "--output", output], stdout=subprocess.DEVNULL
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
