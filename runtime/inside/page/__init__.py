"""The HTML page of an inspection: attention maps, the text token by token, and the lens.

The page is self-contained and makes no network requests: its Content-Security-Policy allows only its own script and
style, by their hashes.
"""

from runtime.inside.inspection import Inspection
from runtime.inside.lens import Lens
from runtime.inside.page.contents import page_contents
from runtime.inside.page.document import document


def make_page(inspection: Inspection, lens: Lens, *, model: str) -> str:
    """An inspection and the lens of the same text as an HTML page.

    Args:
        inspection: An inspection with attentions [layers, H, S, S] of all or some layers.
        lens: The lens of the same S tokens.
        model: The name to show.

    Returns:
        The page, to be written as UTF-8; about 1.2 MB for 100 tokens of GPT-2 small.

    Raises:
        ValueError: The inspection has no attentions, or the lens is of another text.

    Example:
        >>> from runtime.inside.page import make_page
        >>> text = "It was a bright cold day"
        >>> make_page(model.inspect(text), model.lens(text), model="novelist").startswith("<!doctype html>")
        True
    """
    if not inspection.layers:
        raise ValueError("a page needs attentions; ask for them: inspect(text, outputs=['attentions'])")
    if inspection.token_ids != lens.token_ids:
        raise ValueError(
            f"lens must be of the inspected text, {len(inspection.token_ids)} tokens, "
            f"got one of {'others' if len(lens.token_ids) == len(inspection.token_ids) else len(lens.token_ids)}"
        )
    return document(page_contents(inspection, lens), model=model)
