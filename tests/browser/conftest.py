"""Pages in a real browser: headless Chromium, driven by selenium."""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime
from runtime.inside.inspection import Inspection
from runtime.inside.lens import Lens
from runtime.inside.page import make_page

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",  # of a container it is small
]
WIDE = (1400, 900)
READY = 30  # seconds
TEXT = "The old house stood at the end of the lane, and"


class Page:
    """A page that is open, worked as a reader would."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def log(self) -> list[str]:
        """What the browser complained about since the last call."""
        return [entry["message"] for entry in self.browser.get_log("browser")]

    def within(self, condition: Callable[[], object], seconds: float = READY) -> None:
        """Wait for what comes with one of the next frames."""
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, self.log()
            time.sleep(0.02)

    def theme(self, name: str) -> None:
        media = {"features": [{"name": "prefers-color-scheme", "value": name}]}
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    def find(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def token(self, position: int) -> Any:
        return self.find(f"#tokens [data-position='{position}']")

    def text(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def cells(self, table: str) -> list[list[str]]:
        """The texts in a table's body, but for rows that are hidden."""
        rows = f"[...document.querySelectorAll('{table} tbody tr')].filter(row => !row.hidden)"
        return self.run(f"return {rows}.map(row => [...row.cells].map(cell => cell.textContent))")

    def fills(self, selector: str) -> list[str]:
        elements = "[...document.querySelectorAll(arguments[0])]"
        return self.run(f"return {elements}.map(one => getComputedStyle(one).backgroundColor)", selector)

    def pinned(self) -> list[str]:
        return self.run("return [...document.querySelectorAll('.pinned')].map(one => one.dataset.position)")

    def hover(self, element: Any, x: int = 0, y: int = 0) -> None:
        """The pointer on an element's middle, or so far from it."""
        from selenium.webdriver import ActionChains

        ActionChains(self.browser, duration=0).move_to_element_with_offset(element, x, y).perform()

    def press(self, *names: str) -> None:
        """Real keys, by selenium's names of them."""
        from selenium.webdriver import ActionChains, Keys

        ActionChains(self.browser).send_keys(*(getattr(Keys, name) for name in names)).perform()

    def focus(self, selector: str) -> None:
        self.run("document.querySelector(arguments[0]).focus()", selector)

    def focused(self, attribute: str) -> str | None:
        return self.browser.switch_to.active_element.get_attribute(attribute)

    def choose(self, layer: int, head: int) -> None:
        """By the native controls."""
        from selenium.webdriver.support.select import Select

        for name, number in (("#layer", layer), ("#head", head)):
            Select(self.find(name)).select_by_visible_text(str(number))


GET_SELENIUM = "no selenium is installed; make test installs it"
HOW = "get one: apt-get install chromium chromium-driver, or Chrome and its chromedriver from Google"


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason=f"THE PAGE IS NOT TESTED: {GET_SELENIUM}")
    from selenium.common.exceptions import WebDriverException

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip(f"THE PAGE IS NOT TESTED: no Chromium or Chrome with its chromedriver is in PATH; {HOW}")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    home = tmp_path_factory.mktemp("home")  # of its crash reports and caches too
    for argument in [*ARGUMENTS, f"--user-data-dir={home / 'profile'}"]:
        options.add_argument(argument)
    service = webdriver.ChromeService(driver, env={**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home)})
    try:
        started = webdriver.Chrome(options=options, service=service)
    except WebDriverException as error:
        pytest.skip(f"THE PAGE IS NOT TESTED: {chromium} does not start: {str(error).splitlines()[0]}")
    yield started
    started.quit()


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Callable[..., Page]:
    """Open a page in a window of a size and a theme, and wait till all is unpacked unless told otherwise."""

    def open_page(html: str, *, size: tuple[int, int] = WIDE, theme: str = "light", whole: bool = True) -> Page:
        page = Page(browser)
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        page.theme(theme)
        page.log()  # of another page
        path = tmp_path / "page.html"
        path.write_text(html, encoding="utf-8")
        browser.get(path.as_uri())
        if whole:
            page.within(lambda: page.run("return document.documentElement.dataset.ready"))
        return page

    return open_page


@pytest.fixture(scope="session")
def model(bundle: Path) -> runtime.Model:
    return runtime.load(bundle, device="cpu", threads=2)


@pytest.fixture(scope="session")
def seen(model: runtime.Model) -> Inspection:
    return model.inspect(TEXT)


@pytest.fixture(scope="session")
def lens(model: runtime.Model) -> Lens:
    return model.lens(TEXT)


@pytest.fixture(scope="session")
def html(seen: Inspection, lens: Lens) -> str:
    return make_page(seen, lens, model="novelist")


@pytest.fixture
def page(show: Callable[..., Page], html: str) -> Page:
    return show(html)


@pytest.fixture(scope="session")
def percent() -> Callable[[float], str]:
    """A share as a page shows it."""
    return lambda share: f"{100 * float(share):.2f}\u00a0%"


@pytest.fixture(scope="session")
def luminance() -> Callable[[str], float]:
    """WCAG 2's relative luminance of a colour as CSS writes it: rgb(1, 2, 3)."""

    def relative(colour: str) -> float:
        shares = [int(channel) / 255 for channel in re.findall(r"\d+", colour)[:3]]
        linear = [share / 12.92 if share <= 0.03928 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return sum(weight * each for weight, each in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    return relative


class Words:
    """Pieces that are told apart by their number."""

    def piece(self, token_id: int) -> str:
        return f" word{token_id}"


@pytest.fixture(scope="session")
def imagined() -> Callable[..., tuple[Inspection, Lens]]:
    """What a model of the size of GPT-2 small might see in a text of so many tokens."""

    def imagine(length: int, *, layers: int = 12, heads: int = 12, vocabulary: int = 50257) -> tuple[Inspection, Lens]:
        draw = np.random.default_rng(11)
        scores = draw.normal(scale=1.5, size=(layers, heads, length, length)).astype(np.float32)
        weights = np.tril(np.exp(scores))
        pieces, ids = Words(), tuple(draw.integers(vocabulary, size=length).tolist())
        tokens = tuple(map(pieces.piece, ids))
        empty = np.empty((0, vocabulary), np.float32)
        maps = weights / weights.sum(-1, keepdims=True)
        inspection = Inspection(tokens, ids, empty, empty, maps, tuple(range(layers)), pieces)
        top = draw.integers(vocabulary, size=(layers + 1, length, 5))
        ranks = draw.integers(1, vocabulary, size=(layers + 1, length))
        chances = np.sort(draw.dirichlet(np.full(6, 0.3), size=(layers + 1, length)).astype(np.float32)[..., :5])
        descending = chances[..., ::-1]
        return inspection, Lens(tokens, ids, top, descending, top[-1, :, 0], ranks, descending[..., 0], pieces)

    return imagine
