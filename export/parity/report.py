"""The parity report of a bundle: as data for its manifest, as a table for people."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from export.parity.greedy import PROMPTS, Difference
from export.parity.half import LARGEST, MOST_SHARE
from export.parity.int8_cache import CacheQuality
from export.parity.precision import Quality
from runtime.bundle.manifest import Continuation, Likelihoods
from runtime.proof.rounded import RoundedStandard

if TYPE_CHECKING:
    from rich.table import Table

FACTOR = 2.0
FLOOR = 1e-6
INT8_CACHE = "int8_cache"  # int8 keys and values, among what was refused
UNPROVEN = (
    "CUDA: unproven so far; all this was computed by the CPU provider, which keeps float32 between float16 nodes. "
    "On a machine with a card: python -m runtime verify --model DIR --device cuda"
)


@dataclass(frozen=True)
class Row:
    """One tensor in one case: its normwise error against float64, and PyTorch's own largest error in that tensor.

    PyTorch's error is that in float32, in float16 for a float16 graph, or with inputs rounded to int8 for a graph that
    rounds them.
    """

    graph: str
    tensor: str
    case: str
    error: float
    pytorch_error: float

    @property
    def share(self) -> float:
        """The error as a share of what is allowed; above 1 it fails."""
        return self.error / max(FACTOR * self.pytorch_error, FLOOR)

    @property
    def passed(self) -> bool:
        return self.share <= 1.0

    @property
    def precision(self) -> str:
        """The graph's precision, which its name gives except for float32: "decode int8", "prefill int8 rounded"."""
        return (*self.graph.split(), "fp32")[1]

    @property
    def refuses(self) -> str:
        """What is left out of the bundle if this fails: the precision, or INT8_CACHE for "int8_cache int8 rounded"."""
        kind = self.graph.split()[0]
        return kind if kind == INT8_CACHE else self.precision

    @property
    def family(self) -> str:
        """`present.*.key` for `present.7.key`."""
        return ".".join("*" if part.isdigit() else part for part in self.tensor.split("."))


@dataclass(frozen=True)
class Refusal:
    """What was asked for and left out, and why; `replaced` if a bundle that had it was replaced.

    `precision` is a precision, or INT8_CACHE.
    """

    precision: str
    reason: str
    replaced: bool = False


@dataclass(frozen=True)
class Report:
    """The verdict on a bundle.

    `tokens` were decoded greedily after PROMPTS; `differences` are from single prompts, `together` from the same ones
    in a batch, and `probes` are what any machine can replay: each prompt's tokens up to its first difference.
    `refused` are the precisions that were asked for and failed; everything else is about those that the bundle has.
    `caches` and `rounded_caches` are about int8 keys and values: one of each precision that has them. `known_cases` are
    those of rows that a manifest did not keep.
    """

    rows: tuple[Row, ...]
    tokens: int
    probes: tuple[Continuation, ...]
    differences: tuple[Difference, ...]
    together: tuple[Difference, ...]
    qualities: tuple[Quality, ...] = ()
    likelihoods: Likelihoods | None = None
    lens: Likelihoods | None = None
    rounded: tuple[RoundedStandard, ...] = ()
    caches: tuple[CacheQuality, ...] = ()
    rounded_caches: tuple[RoundedStandard, ...] = ()
    refused: tuple[Refusal, ...] = ()
    largest_activation: float | None = None
    known_cases: tuple[str, ...] = ()

    @property
    def in_range(self) -> bool:
        """Whether float16 holds what the model computes, with room to spare."""
        return self.largest_activation is None or self.largest_activation <= MOST_SHARE * LARGEST

    @property
    def passed(self) -> bool:
        verdicts: Sequence[Row | Difference | Quality | CacheQuality] = (
            *self.rows,
            *self.differences,
            *self.together,
            *self.qualities,
            *self.caches,
        )
        return self.in_range and all(verdict.passed for verdict in verdicts)

    def worst(self, *key: str) -> list[Row]:
        """The worst row of each group of rows that agree in `key`, in order of first appearance."""
        groups: dict[tuple[str, ...], Row] = {}
        for row in self.rows:
            group = tuple(getattr(row, name) for name in key)
            groups[group] = max(groups.get(group, row), row, key=lambda candidate: candidate.share)
        return list(groups.values())

    def precisions(self) -> list[str]:
        """The precisions of the bundle."""
        return ["fp32", *(quality.precision for quality in self.qualities)]

    def cases(self) -> list[str]:
        """The names of all cases, those of which no row was kept among them."""
        return list(dict.fromkeys((*self.known_cases, *(row.case for row in self.rows))))

    def as_manifest(self) -> dict[str, Any]:
        return {
            "truth": "PyTorch in float64 with eager attention",
            "rule": f"error <= max({FACTOR:g} * pytorch_error, {FLOOR:g}), relative to the norm of the truth; "
            "pytorch_error is the largest of PyTorch's float32 over the cases; of a single position, over positions",
            "passed": self.passed,
            "cases": self.cases(),
            "tensors": [asdict(row) for row in self.worst("graph", "tensor")],
            "greedy": {
                "tokens": self.tokens,
                "differences": [asdict(difference) for difference in self.differences],
                "differences_side_by_side": [asdict(difference) for difference in self.together],
                "probes": [asdict(probe) for probe in self.probes],
            },
            "precisions": [quality.as_manifest() for quality in self.qualities],
            "largest_activation": self.largest_activation,
            "likelihoods": None if self.likelihoods is None else asdict(self.likelihoods),
            "lens": None if self.lens is None else asdict(self.lens),
            "rounded": [asdict(standard) for standard in self.rounded],
            INT8_CACHE: {
                "qualities": [quality.as_manifest() for quality in self.caches],
                "rounded": [asdict(standard) for standard in self.rounded_caches],
            },
            "refused": [asdict(refusal) for refusal in self.refused],
        }

    def lines(self) -> list[str]:
        """What the table does not show: greedy tokens, and what each precision costs."""
        lines = [self.greedy_line(), *(quality.line() for quality in self.qualities)]
        lines += [cache.line() for cache in self.caches]
        if self.largest_activation is not None:
            verdict = "pass" if self.in_range else "FAIL"
            lines.append(f"fp16: {self.range_line()}: {verdict}")
        lines += [f"{refusal.precision} was left out: {refusal.reason}" for refusal in self.refused]
        return [*lines, UNPROVEN]

    def range_line(self) -> str:
        return (
            f"the largest activation is {self.largest_activation:,.0f}, float16 holds {LARGEST:,.0f} "
            f"(at most {MOST_SHARE:.0%} of it)"
        )

    def greedy_line(self) -> str:
        total, count = self.tokens, len(PROMPTS)
        if not self.differences + self.together:
            return f"greedy: {total} of {total} tokens over {count} prompts as PyTorch's, alone and side by side"
        found = [describe(difference) for difference in self.differences]
        found += [f"side by side, {describe(difference)}" for difference in self.together]
        same = f"{count - len(self.differences)} of {count} prompts as PyTorch's alone, "
        return f"greedy: {same}{count - len(self.together)} side by side; {'; '.join(found)}"


def describe(difference: Difference) -> str:
    verdict = "under" if difference.passed else "NOT under"
    return (
        f"prompt {difference.prompt} differs at token {difference.position}, where PyTorch's two best lie "
        f"{difference.margin:.2e} apart, {verdict} the float32 noise of {difference.noise:.2e}"
    )


def make_table(report: Report) -> "Table":
    """A row per family of tensors: its worst case, the error there, and PyTorch's own largest error."""
    from rich import box  # what else is here serves where rich is not installed
    from rich.table import Table

    title = "Parity with PyTorch float64, relative errors: the worst of each kind; beside them PyTorch's own errors"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, collapse_padding=True)
    for heading in ("graph", "tensor", "worst case"):
        table.add_column(heading, no_wrap=True)
    for heading in ("error", "PyTorch's\nown", "verdict"):
        table.add_column(heading, justify="right", no_wrap=True, min_width=8)
    for row in report.worst("graph", "family"):
        table.add_row(*cells(row))
    return table


def make_markdown(report: Report) -> str:
    """The same table for a model card."""
    lines = ["| graph | tensor | worst case | error | PyTorch's own | verdict |", "|---|---|---|--:|--:|---|"]
    lines += [f"| {' | '.join(cells(row))} |" for row in report.worst("graph", "family")]
    return "\n".join(lines).replace(".*", r".\*")


def cells(row: Row) -> Iterable[str]:
    verdict = "pass" if row.passed else "FAIL"
    return row.graph, row.family, row.case, f"{row.error:.2e}", f"{row.pytorch_error:.2e}", verdict
