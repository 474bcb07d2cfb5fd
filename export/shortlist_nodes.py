"""The nodes of a shortlist."""

import numpy as np

from export.linear import BlockLinear
from export.nodes import Nodes
from export.shortlist import CANDIDATES, CODES, TIE, Shortlist, rounding_factor


def add_shortlist(nodes: Nodes, shortlist: Shortlist, hidden: str, weight: str) -> tuple[str, str]:
    """(the most likely ids [T, 1] of hidden [T, C], whether each is in doubt [T, 1])."""
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
    threshold = nodes.column(bounds, CANDIDATES - 1)  # of every id that is not among the candidates
    offset = nodes.add("MatMul", "shortlist.offset", [hidden, "shortlist.mean"])
    threshold = nodes.add("Add", "shortlist.threshold", [threshold, offset])
    lead = nodes.add("Sub", "shortlist.lead", [first, nodes.add("Max", "shortlist.rival", [second, threshold])])
    noise = nodes.scalar("shortlist.noise", TIE * shortlist.longest, np.float32)
    slack = nodes.add("Mul", "shortlist.slack", [norm(nodes, hidden, width), noise])
    doubted = nodes.add("Not", "shortlist.doubted", [nodes.add("Greater", "shortlist.certain", [lead, slack])])
    chosen = nodes.add("GatherElements", "shortlist.chosen", [ids, nodes.column(places, 0)], axis=1)
    return chosen, doubted


def norm(nodes: Nodes, rows: str, width: int) -> str:
    """[T, 1] of rows [T, C]. ONNX Runtime's reductions of no rows at all have another shape."""
    ones = nodes.constant(f"{rows}.ones", np.ones((width, 1), np.float32))
    squares = nodes.add("MatMul", f"{rows}.square", [nodes.add("Mul", f"{rows}.squares", [rows, rows]), ones])
    return nodes.add("Sqrt", f"{rows}.norm", [squares])


def rounding(nodes: Nodes, scaled: str, width: int) -> str:
    """`rounding_size` [T, 1] of scaled [T, C]."""
    largest, _ = nodes.top("shortlist.largest", nodes.add("Abs", "shortlist.size", [scaled]), 1)
    factor = nodes.scalar("shortlist.rounding_factor", rounding_factor(width), np.float32)
    return nodes.add("Mul", "shortlist.rounding", [largest, factor])
