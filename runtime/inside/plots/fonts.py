"""The font that matplotlib ships, whatever the user's settings, so that its glyphs and widths are known."""

from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import text_to_path

POINTS = 72  # per inch
HINTING = 1.04  # on screen glyphs are moved to whole pixels, which can widen a text


def font_of(weight: str) -> FontProperties:
    """DejaVu Sans, chosen by file, so that no setting can redirect it."""
    return FontProperties(fname=findfont(FontProperties(family="DejaVu Sans", weight=weight)))


REGULAR, BOLD = font_of("normal"), font_of("bold")


def has_glyph(character: str) -> bool:
    return all(get_font(str(font.get_file())).get_char_index(ord(character)) for font in (REGULAR, BOLD))


def text_width(text: str, size: float, font: FontProperties = REGULAR) -> float:
    """The width of a text in inches."""
    sized = font.copy()
    sized.set_size(size)
    width: float = text_to_path.get_text_width_height_descent(text, sized, ismath=False)[0]
    return width / POINTS * HINTING
