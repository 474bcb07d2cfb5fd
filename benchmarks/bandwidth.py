"""How fast memory can be read, in bytes a second: the limit of decoding, which reads every weight for every token.

    python -m benchmarks.bandwidth

So many threads each go once over their own part of an array that no cache holds, and the best of several goes counts.
Once with huge pages, which is what the memory can give, and once with ordinary ones, in which weights mostly lie.
"""

import json
import mmap
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.study import OneLineParser, timed

SIZE = 2**30  # bytes
GOES = 12
PAGES = {"huge pages": mmap.MADV_HUGEPAGE, "ordinary pages": mmap.MADV_NOHUGEPAGE}


def main() -> None:
    parser = OneLineParser("benchmarks.bandwidth", __doc__)
    parser.add_threads()
    threads = parser.parse_args().threads
    print(json.dumps({name: read_bandwidth(threads, advice) for name, advice in PAGES.items()}))


def read_bandwidth(threads: int, advice: int) -> float:
    memory = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(advice)
    array = np.frombuffer(memory, np.int64)
    array[:] = 1  # pages that nobody wrote to are all one page
    parts = np.array_split(array, threads)
    with ThreadPoolExecutor(threads) as pool:
        return max(SIZE / timed(partial(go_over, pool, parts))[0] for _ in range(GOES))


def go_over(pool: ThreadPoolExecutor, parts: list[NDArray[np.int64]]) -> None:
    """Bitwise or: one instruction for 64 bytes, and NumPy lets go of the interpreter meanwhile."""
    list(pool.map(np.bitwise_or.reduce, parts))


if __name__ == "__main__":
    main()
