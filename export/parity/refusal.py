"""Leaves failed precisions out of a bundle, with the reasons, and reports what remains.

A failed precision is not an error: some checkpoints do not suit few bits. It is left out of the bundle, and the others
stay. float32, by which the others are measured, must pass.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from export.parity.report import FACTOR, FLOOR, INT8_CACHE, Refusal, Report, Row
from export.quantization.recipe import HALF, PRECISIONS

FULL = PRECISIONS[0]


def settle(report: Report, before: Collection[str] = ()) -> Report:
    """The report without the precisions that failed; its `refused` names them.

    Args:
        before: Precisions of the bundle that will be replaced.
    """
    refused = [*report.refused, *find_refusals(report)]
    return leave_out(report, [replace(refusal, replaced=refusal.precision in before) for refusal in refused])


def leave_out(report: Report, refused: Sequence[Refusal]) -> Report:
    """The report without what is refused, by which alone its `refused` is replaced."""
    names = {refusal.precision for refusal in refused}
    cached = INT8_CACHE not in names
    return replace(
        report,
        rows=tuple(row for row in report.rows if names.isdisjoint((row.precision, row.refuses))),
        qualities=tuple(quality for quality in report.qualities if quality.precision not in names),
        rounded=tuple(standard for standard in report.rounded if standard.precision not in names),
        caches=tuple(cache for cache in report.caches if cached and cache.weights not in names),
        rounded_caches=tuple(one for one in report.rounded_caches if cached and one.precision not in names),
        largest_activation=None if HALF in names else report.largest_activation,
        refused=tuple(refused),
    )


def find_refusals(report: Report) -> Iterator[Refusal]:
    """A refusal for each precision except float32 that failed in any way, and for an int8 cache that did."""
    known = {refusal.precision for refusal in report.refused}
    for precision in (*PRECISIONS, INT8_CACHE):
        if precision != FULL and precision not in known and (reasons := list(find_reasons(report, precision))):
            yield Refusal(precision, reasons[0])


def cache_refusals(report: Report, added: Collection[str]) -> Iterator[Refusal]:
    """A refusal of each added precision whose int8 keys and values fail: those that the bundle has stay."""
    for precision in added:
        alone = replace(
            report,
            rows=tuple(row for row in report.rows if row.precision == precision),
            caches=tuple(cache for cache in report.caches if cache.weights == precision),
        )
        for reason in list(find_reasons(alone, INT8_CACHE))[:1]:
            yield Refusal(precision, f"its int8 keys and values fail: {reason}")


def find_reasons(report: Report, precision: str) -> Iterator[str]:
    """The reasons why a precision fails; quality first, as it tells more than errors of single tensors."""
    for quality in report.qualities:
        if quality.precision == precision and not quality.passed:
            yield quality.problem
    if precision == HALF and not report.in_range:
        yield report.range_line()
    if precision == INT8_CACHE:
        yield from (cache.problem for cache in report.caches if not cache.passed)
    failed = [row for row in report.rows if row.refuses == precision and not row.passed]
    if failed:
        yield describe(max(failed, key=lambda row: row.share))


def describe(row: Row) -> str:
    most = max(FACTOR * row.pytorch_error, FLOOR)
    return f"the {row.graph} graph's {row.tensor} is off by {row.error:.1e} over {row.case} (at most {most:.1e})"


def refusal_line(report: Report, output: str | Path) -> str:
    """A line that says what was left out of the bundle at `output`, why, and which precisions it has."""
    reasons = "; ".join(f"{refusal.precision} was left out: {refusal.reason}" for refusal in report.refused)
    replaced = listed([refusal.precision for refusal in report.refused if refusal.replaced])
    ends = f", and replaces one that had {replaced}" if replaced else ""
    return f"{reasons}; the bundle at {output} has {listed(report.precisions())}{ends}"


def listed(names: Sequence[str]) -> str:
    """Names as a list in words: fp32, int8 and int4."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def failing_lines(report: Report) -> list[str]:
    """Everything that failed, one line each."""
    lines = [line for line in report.lines() if line.endswith("FAIL")]
    rows = [row for row in report.worst("graph", "family") if not row.passed]
    return [*lines, *(f"{row.graph}: {describe(row)}: FAIL" for row in rows)]
