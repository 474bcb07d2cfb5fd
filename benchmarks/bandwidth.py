"""How fast memory can be read, in bytes a second: the limit of decoding, which reads every weight for every token.

    python benchmarks/bandwidth.py --threads 2

So many threads each go once over their own part of an array that no cache holds, and the best of several goes counts.
Once with huge pages, which is what the memory can give, and once with ordinary ones, in which weights mostly lie.
"""

import argparse
import json
import mmap
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

SIZE = 2**30  # bytes
GOES = 12
PAGES = {"huge pages": mmap.MADV_HUGEPAGE, "ordinary pages": mmap.MADV_NOHUGEPAGE}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, required=True)
    threads = parser.parse_args().threads
    print(json.dumps({name: read_bandwidth(threads, advice) for name, advice in PAGES.items()}))


def read_bandwidth(threads: int, advice: int) -> float:
    memory = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(advice)
    array = np.frombuffer(memory, np.int64)
    array[:] = 1  # pages that nobody wrote to are all one page
    parts = np.array_split(array, threads)
    with ThreadPoolExecutor(threads) as pool:
        return max(SIZE / seconds_of(partial(go_over, pool, parts)) for _ in range(GOES))


def go_over(pool: ThreadPoolExecutor, parts: list[np.ndarray]) -> None:
    """Bitwise or: one instruction for 64 bytes, and NumPy lets go of the interpreter meanwhile."""
    list(pool.map(np.bitwise_or.reduce, parts))


def seconds_of(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
