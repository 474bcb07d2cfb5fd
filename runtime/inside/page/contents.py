"""The data of a page: an inspection and a lens as plain values for JSON."""

from typing import Any

from runtime.inside.inspection import Inspection
from runtime.inside.lens import Lens
from runtime.inside.page.packing import hundredths, pack_layer


def page_contents(inspection: Inspection, lens: Lens) -> dict[str, Any]:
    return {
        "tokens": inspection.tokens,
        "layers": inspection.layers,
        "heads": inspection.attentions.shape[1],
        "maps": [pack_layer(maps) for maps in inspection.attentions],
        "vocabulary": inspection.logits.shape[1],
        "lens": lens_contents(lens),
    }


def lens_contents(lens: Lens) -> dict[str, Any]:
    """Arrays as lists, probabilities in hundredths of a percent, and the text of every id among them."""
    ids = sorted({*lens.top_ids.ravel().tolist(), *lens.answers.tolist()})
    return {
        "texts": {token: lens.pieces.piece(token) for token in ids},
        "top": lens.top_ids.tolist(),
        "probabilities": hundredths(lens.probabilities).tolist(),
        "answers": lens.answers.tolist(),
        "ranks": lens.ranks.tolist(),
        "answerProbabilities": hundredths(lens.answer_probabilities).tolist(),
    }
