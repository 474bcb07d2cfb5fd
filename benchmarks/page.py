"""The page that looks inside: its size, how soon it is there, and what an event takes, in headless Chromium.

python -m benchmarks.page [--tokens 100,300] [--layers 12] [--heads 12]

An event's time is its script and the layout after it, on the browser's clock: a frame has 16.7 ms. Arrays are made up,
in the sizes of GPT-2 small unless told otherwise; how long a page takes does not depend on what they hold.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from selenium import webdriver

from benchmarks.common.study import OneLineParser, count
from runtime.inside.inspection import Inspection
from runtime.inside.lens import Lens
from runtime.inside.page import make_page

VOCABULARY, K, EVENTS = 50_257, 5, 100
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--window-size=1400,900")
TIMES = """
    const [selector, act, count] = arguments;
    const all = [...document.querySelectorAll(selector)];
    return Array.from({length: count}, (_, i) => {
        const start = performance.now();
        all[(i * 37) % all.length].dispatchEvent(new PointerEvent(act, {bubbles: true}));
        document.body.getBoundingClientRect();
        return performance.now() - start;
    })"""
READY = "return document.documentElement.dataset.ready && performance.now()"


class Words:
    """Pieces of made-up texts."""

    def piece(self, token_id: int) -> str:
        return f" word{token_id}"


def main() -> None:
    options = parse()
    print(f"{'tokens':>6} {'made, s':>8} {'MB':>6} {'open, s':>8} {'hover, ms':>16} {'other head, ms':>16}")
    for length in options.tokens:
        started = time.perf_counter()
        page = make_page(*imagine(length, options.layers, options.heads), model="made up")
        made = time.perf_counter() - started
        opened, hover, switch = measure(page)
        size = len(page.encode()) / 1e6
        print(
            f"{length:>6} {made:>8.2f} {size:>6.2f} {opened:>8.2f} {shown(hover):>16} {shown(switch):>16}", flush=True
        )


def parse() -> argparse.Namespace:
    parser = OneLineParser("python -m benchmarks.page", __doc__)
    parser.add_argument("--tokens", type=counts, default=[100, 300])
    parser.add_argument("--layers", type=count, default=12)
    parser.add_argument("--heads", type=count, default=12)
    return parser.parse_args()


def counts(text: str) -> list[int]:
    return [count(part) for part in text.split(",")]


def imagine(length: int, layers: int, heads: int) -> tuple[Inspection, Lens]:
    draw = np.random.default_rng(0)
    maps = np.tril(draw.exponential(size=(layers, heads, length, length)).astype(np.float32) ** 3)
    maps /= maps.sum(-1, keepdims=True)
    pieces, ids = Words(), tuple(draw.integers(VOCABULARY, size=length).tolist())
    tokens, none = tuple(map(pieces.piece, ids)), np.empty((0, VOCABULARY), np.float32)
    top = draw.integers(VOCABULARY, size=(layers + 1, length, K))
    chances = -np.sort(-draw.dirichlet(np.full(2 * K, 0.3), size=(layers + 1, length)))[..., :K].astype(np.float32)
    ranks = draw.integers(1, VOCABULARY, size=(layers + 1, length))
    seen = Inspection(tokens, ids, none, none, maps, tuple(range(layers)), pieces)
    return seen, Lens(tokens, ids, top, chances, top[-1, :, 0], ranks, chances[..., 0], pieces)


def measure(page: str) -> tuple[float, list[float], list[float]]:
    """Seconds until all is there, and the milliseconds of each event."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_text(page, encoding="utf-8")
        for flag in (*FLAGS, f"--user-data-dir={folder}/profile"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            browser.get(path.as_uri())
            while not (opened := browser.execute_script(READY)):
                time.sleep(0.01)
            hover = browser.execute_script(TIMES, "#tokens [role=option]", "pointerover", EVENTS)
            switch = browser.execute_script(TIMES, "[role=gridcell]", "click", EVENTS)
        finally:
            browser.quit()
    return opened / 1000, hover, switch


def shown(times: list[float]) -> str:
    """The median, and what one in twenty takes more than."""
    return f"{statistics.median(times):.1f} (95 %: {statistics.quantiles(times, n=20)[-1]:.1f})"


if __name__ == "__main__":
    main()
