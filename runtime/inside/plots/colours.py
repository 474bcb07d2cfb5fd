"""The colours of weights and probabilities, on a square-root scale, as most values are tiny."""

import numpy as np
from matplotlib.colors import Colormap, LinearSegmentedColormap, PowerNorm
from numpy.typing import NDArray

INK, FAINT, PAPER, BLANK, ACCENT = "#1b1f24", "#656d76", "#ffffff", "#e6e8ec", "#d9480f"
BLACK = "#000000"  # on shades, where INK would be too light
SHADES = ("#f7fbf8", "#cfe8dc", "#8fd0c4", "#3fa7c2", "#2166ac", "#0b2559")  # monotonic lightness, for print too
TICKS = (0, 1, 5, 10, 25, 50, 100)  # percent
GAP = -1.0  # a value below the scale: paper
LIGHT = 0.179  # luminance at which black and white text have the same contrast (WCAG 2)


def scale() -> PowerNorm:
    return PowerNorm(0.5, vmin=0, vmax=1)


def colour_map() -> Colormap:
    """The colour map; NaN is blank."""
    return LinearSegmentedColormap.from_list("weights", SHADES).with_extremes(bad=BLANK, under=PAPER)


def causal(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Maps [..., S, S], blank at the keys after each query, which it cannot attend to."""
    later = np.triu(np.ones(weights.shape[-2:], bool), 1)
    return np.where(later, np.float32(np.nan), weights)


def ink_on(values: NDArray[np.float32]) -> NDArray[np.str_]:
    """A legible text colour on each value's colour."""
    channels = colour_map()(scale()(values))[..., :3]
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return np.where(linear @ [0.2126, 0.7152, 0.0722] > LIGHT, BLACK, PAPER)
