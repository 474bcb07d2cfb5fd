"""The engine `ray` of a batch: its rows in parts, completed by the workers of a Ray cluster."""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runtime.cli.job_input import Row
from runtime.cli.job_parts import PartsFolder, Task, cut, in_order
from runtime.cli.jobs import Defaults, Tally, identity
from runtime.cli.progress import Bar, Speed

NEEDED = "--engine ray needs the extra `cluster`: pip install 'gpt2-onnx[cluster]'"
DEVICES = ("auto", "cpu", "cuda")
PARTS_EACH = 8  # parts for each worker, at the least, where there are rows enough
MOST_ROWS = 256  # of a part, unless that made more parts than
MOST_PARTS = 10_000


class RayEngine:
    """Completes rows on a cluster; the process of the command loads no model."""

    def __init__(self, options: argparse.Namespace, batch_size: int) -> None:
        from runtime.api import check_served, default_precision, find_model
        from runtime.bundle.bundle import open_bundle
        from runtime.bundle.signature import find_public_key
        from runtime.checks import check_cache, check_count, check_precision
        from runtime.ort.placement import Placement

        if options.file == "-":
            raise ValueError("--engine ray reads no standard input, as each worker opens the file; give its name")
        if options.device not in DEVICES:
            raise ValueError(f"--device must be one of {', '.join(DEVICES)} with --engine ray, got {options.device!r}")
        try:
            from runtime.cluster import parts
        except ModuleNotFoundError as error:
            raise ImportError(f"{NEEDED} ({error.name} is missing)") from None
        self._joined = parts.joined
        self._workers = None if options.workers is None else check_count("--workers", options.workers)
        self._source, self._batch_size = str(Path(options.file).absolute()), batch_size
        self._folder = PartsFolder.beside(options.output.absolute())
        self._on_cuda = options.device == "cuda"
        placement = Placement(device="cuda" if self._on_cuda else "cpu")
        bundle = open_bundle(find_model(options.model), verify=False)
        precision = check_precision(options.precision) or default_precision(bundle, placement)
        cache = check_cache(options.cache, precision)
        check_served(precision, None, cache, placement)
        key = find_public_key(options.public_key)
        self.identity = identity(bundle, precision, cache)
        self._loading = {
            "path": str(bundle.folder),
            "precision": precision,
            "device": placement.device,
            "cache": cache,
            "gpu_mem_limit": options.gpu_mem_limit,
            "public_key": key and str(Path(key).absolute()),
        }

    def records(
        self, rows: Iterator[Row], total: int | None, defaults: Defaults, tally: Tally, bar: Bar
    ) -> Iterator[Mapping[str, Any]]:
        """The records of the rows that are left, in their order."""
        left = (total or 0) - tally.lines
        if left <= 0:
            return
        with self._joined(self._workers, on_cuda=self._on_cuda) as workers:
            self._folder.begin_at(tally.lines)
            most = part_rows(left, workers.count, self._batch_size)
            parts, there = cut(rows, tally.lines, self._folder, defaults, most)
            earlier = sum(part.rows for part in parts if part.first in there)
            tally.earlier += earlier
            bar.update(earlier)
            task = Task(self._source, self._folder, defaults, self._batch_size)
            wanted = [asdict(part) for part in parts if part.first not in there]
            with closing(workers.run(task, wanted, self._loading)) as reports:
                yield from in_order(parts, there, self._folder, reports, Speed(bar).count)


def part_rows(rows: int, workers: int, batch_size: int) -> int:
    """How many rows to a part: few, so that little is lost with a worker, but enough to fill its batches."""
    return max(min(-(-rows // (PARTS_EACH * workers)), MOST_ROWS), batch_size, -(-rows // MOST_PARTS))
