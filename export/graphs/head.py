"""The head of a decode graph: logits and most likely ids at the indices asked for, by a shortlist where possible.

An index is b * S + s. At `logits_indices` [N] logits are wanted; at `token_indices` [T] the most likely id is enough,
and a shortlist may find it with fewer bytes.
"""

import numpy as np

from export.graphs.linear import BlockLinear, Linear
from export.graphs.nodes import Nodes
from export.graphs.shortlist import CANDIDATES, CODES, TIE, Shortlist, rounding_factor


def add_head(nodes: Nodes, linear: Linear, hidden: str, weight: str, shortlist: Shortlist | None) -> None:
    """Add `logits` [N, V], `next_token` [N + T, 1] and `tied` [N + T, 1], whether another id may be as likely.

    Args:
        hidden: [positions, C]
        weight: [V, C]
    """
    asked = nodes.add("Gather", "logits_places", [hidden, "logits_indices"], axis=0)  # [N, C]
    guessed = nodes.add("Gather", "token_places", [hidden, "token_indices"], axis=0)  # [T, C]
    if shortlist is None:
        _, tokens, tied = add_all_logits(nodes, linear, asked, guessed, weight)
        nodes.add_node("Identity", "next_token", [tokens], ["next_token"])
        nodes.add_node("Identity", "tied", [tied], ["tied"])
        return
    chosen, doubted = add_shortlist(nodes, shortlist, guessed, weight)
    flags = nodes.add("Reshape", "doubted_flags", [doubted, nodes.constant("flat", [-1])])
    doubts = nodes.add("Transpose", "doubts", [nodes.add("NonZero", "doubted_places", [flags])], perm=[1, 0])  # [U, 1]
    rows = nodes.add("GatherND", "doubted_rows", [guessed, doubts])  # [U, C]
    counts, tokens, tied = add_all_logits(nodes, linear, asked, rows, weight)
    for name, found, base in (("next_token", tokens, chosen), ("tied", tied, doubted)):
        parts = [f"{name}_asked", f"{name}_doubted"]
        nodes.add_node("Split", f"{name}_parts", [found, counts], parts, axis=0)
        settled = nodes.add("ScatterND", f"{name}_settled", [base, doubts, parts[1]])  # [T, 1]
        nodes.add_node("Concat", name, [parts[0], settled], [name], axis=0)


def add_all_logits(nodes: Nodes, linear: Linear, asked: str, others: str, weight: str) -> tuple[str, str, str]:
    """All logits of `asked` [N, C] and `others` in one product, so that its weights are held once.

    The logits of `asked` are the output `logits`.

    Returns:
        The counts [2] of both, and the most likely ids and ties [N + U, 1] of both.
    """
    rows = nodes.add("Concat", "head_rows", [asked, others], axis=0)
    logits = linear.lm_head(nodes, rows, weight)  # [N + U, V]
    sizes = [nodes.add("Shape", f"{part}.count", [part], start=0, end=1) for part in (asked, others)]
    counts = nodes.add("Concat", "head_counts", sizes, axis=0)
    nodes.add_node("Split", "logits", [logits, counts], ["logits", "other_logits"], axis=0)
    best, ids = nodes.top("likeliest", logits, 2)
    return counts, nodes.column(ids, 0), add_tied(nodes, logits, best)


def add_tied(nodes: Nodes, logits: str, best: str) -> str:
    """Whether the two `best` [R, 2] of logits [R, V] are so close that summing in another order could swap them."""
    least, _ = nodes.top("least_likely", logits, 1, largest=False)  # a reduction would fail on zero rows
    first = nodes.column(best, 0)
    ends = [nodes.add("Abs", f"{end}.size", [end]) for end in (least, first)]
    scale = nodes.add("Max", "logits_size", ends)
    noise = nodes.add("Mul", "logits_noise", [scale, nodes.scalar("tie", TIE, np.float32)])
    lead = nodes.add("Sub", "lead", [first, nodes.column(best, 1)])
    return nodes.add("LessOrEqual", "tied_rows", [lead, noise])


def add_shortlist(nodes: Nodes, shortlist: Shortlist, hidden: str, weight: str) -> tuple[str, str]:
    """(the most likely ids [T, 1] for hidden states [T, C], whether each is in doubt [T, 1])."""
    width = shortlist.matrix.codes.shape[1]
    scaled = nodes.add("Mul", "shortlist.scaled", [hidden, "shortlist.scaling"])
    guessed = BlockLinear({CODES: shortlist.matrix}).product(nodes, "shortlist.guessed", CODES, scaled)  # [T, V]
    errors = [norm(nodes, scaled, width), rounding(nodes, scaled, width)]
    sizes = nodes.add("Concat", "shortlist.sizes", errors, axis=1)  # [T, 2]
    upper = nodes.add("Gemm", "shortlist.upper", [sizes, "shortlist.bounds", guessed])  # [T, V]
    bounds, ids = nodes.top("shortlist.top", upper, CANDIDATES)
    rows = nodes.add("Gather", "shortlist.rows", [weight, ids], axis=0)  # [T, CANDIDATES, C]
    last = nodes.constant("last_axis", [-1])
    column = nodes.add("Unsqueeze", "shortlist.column", [hidden, last])
    logits = nodes.add("Squeeze", "shortlist.logits", [nodes.add("MatMul", "shortlist.exact", [rows, column]), last])
    best, places = nodes.top("shortlist.best", logits, 2)
    first, second = nodes.column(best, 0), nodes.column(best, 1)
    threshold = nodes.column(bounds, CANDIDATES - 1)  # bounds every id that is not a candidate
    offset = nodes.add("MatMul", "shortlist.offset", [hidden, "shortlist.mean"])
    threshold = nodes.add("Add", "shortlist.threshold", [threshold, offset])
    lead = nodes.add("Sub", "shortlist.lead", [first, nodes.add("Max", "shortlist.rival", [second, threshold])])
    noise = nodes.scalar("shortlist.noise", TIE * shortlist.longest, np.float32)
    slack = nodes.add("Mul", "shortlist.slack", [norm(nodes, hidden, width), noise])
    doubted = nodes.add("Not", "shortlist.doubted", [nodes.add("Greater", "shortlist.certain", [lead, slack])])
    chosen = nodes.add("GatherElements", "shortlist.chosen", [ids, nodes.column(places, 0)], axis=1)
    return chosen, doubted


def norm(nodes: Nodes, rows: str, width: int) -> str:
    """The norms [T, 1] of rows [T, C]; not a reduction, as ONNX Runtime's give another shape for zero rows."""
    ones = nodes.constant(f"{rows}.ones", np.ones((width, 1), np.float32))
    squares = nodes.add("MatMul", f"{rows}.square", [nodes.add("Mul", f"{rows}.squares", [rows, rows]), ones])
    return nodes.add("Sqrt", f"{rows}.norm", [squares])


def rounding(nodes: Nodes, scaled: str, width: int) -> str:
    """`rounding_size` [T, 1] of scaled inputs [T, C]."""
    largest, _ = nodes.top("shortlist.largest", nodes.add("Abs", "shortlist.size", [scaled]), 1)
    factor = nodes.scalar("shortlist.rounding_factor", rounding_factor(width), np.float32)
    return nodes.add("Mul", "shortlist.rounding", [largest, factor])
