"""Pages in a real browser: headless Chromium, driven by selenium."""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_server import Live, live

import runtime
from runtime.inside.inspection import Inspection
from runtime.inside.lens import Lens
from runtime.inside.page import make_page
from runtime.server import ServerSettings, create_app

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
COLOURS = """
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const found = {};
    while (walker.nextNode()) {
        const [text, element] = [walker.currentNode.data.trim(), walker.currentNode.parentElement];
        if (!text || !element.checkVisibility() || element.closest("script, noscript, style, .sign")) continue;
        const fill = each => getComputedStyle(each).backgroundColor;
        let ground = element;
        while (fill(ground) === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
        const pair = [getComputedStyle(element).color, fill(ground)];
        found[pair] = [...pair, text];
    }
    return Object.values(found)"""


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

    def texts(self) -> list[list[str]]:
        """[its colour, the colour behind it, its last text] of each pair of colours that text has."""
        return self.run(COLOURS)

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


class Console(Page):
    """The server's page."""

    def write(self, prompt: str, *, wait: bool = True, **settings: Any) -> None:
        """Fill in the prompt and settings, and press Generate."""
        self.run(
            """const {elements} = document.getElementById("ask");
            for (const [name, value] of Object.entries(arguments[0])) elements[name].value = value;""",
            {"prompt": prompt, **settings},
        )
        self.find("#generate").click()
        if wait:
            self.until_done()

    def until_done(self) -> None:
        self.within(lambda: self.find("#generate").is_displayed())

    def piece(self, position: int) -> Any:
        return self.browser.find_elements("css selector", ".piece")[position]

    def choices_shown(self) -> bool:
        return bool(self.find("#choices").is_displayed())

    def chord(self, held: str, key: str) -> None:
        """A key while another is held."""
        from selenium.webdriver import ActionChains, Keys

        first, second = getattr(Keys, held), getattr(Keys, key)
        ActionChains(self.browser).key_down(first).send_keys(second).key_up(first).perform()

    def tab_to(self, name: str) -> None:
        """Press Tab until what has this id or class is focused."""
        for _ in range(20):
            self.press("TAB")
            if name in (self.focused("id"), self.focused("class")):
                return
        raise AssertionError(f"Tab does not reach {name}")

    def look_inside(self) -> None:
        """Press the button, and go to the tab that it opens, once all is unpacked there."""
        self.find("#look-inside").click()
        self.within(lambda: len(self.browser.window_handles) > 1)
        self.browser.switch_to.window(self.browser.window_handles[-1])
        self.within(lambda: self.run("return document.documentElement.dataset.ready"))

    def close_tab(self) -> None:
        self.browser.close()
        self.browser.switch_to.window(self.browser.window_handles[0])


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
def visit(browser: Any) -> Callable[..., Page]:
    """Open an address in a window of a size and a theme."""

    def open_page(address: str, *, size: tuple[int, int] = WIDE, theme: str = "light") -> Page:
        page = Page(browser)
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        page.theme(theme)
        page.log()  # of another page
        browser.get(address)
        return page

    return open_page


@pytest.fixture
def show(visit: Callable[..., Page], tmp_path: Path) -> Callable[..., Page]:
    """Open a page, and wait till all is unpacked unless told otherwise."""

    def open_page(html: str, *, whole: bool = True, **looks: Any) -> Page:
        path = tmp_path / "page.html"
        path.write_text(html, encoding="utf-8")
        page = visit(path.as_uri(), **looks)
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


@pytest.fixture(scope="session")
def faint(luminance) -> Callable[[list[list[str]]], list[list[str]]]:
    """Those pairs of colours whose contrast is less than level AA of WCAG 2 asks of text."""

    def contrast(one: str, other: str) -> float:
        lights = sorted((luminance(one), luminance(other)))
        return (lights[1] + 0.05) / (lights[0] + 0.05)

    return lambda pairs: [pair for pair in pairs if contrast(*pair[:2]) < 4.5]


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


@pytest.fixture
def serve(bundle: Path) -> Iterator[Callable[..., Live]]:
    """Make servers with limits of their own."""
    with ExitStack() as stack:

        def make(*, slots: int = 2, **limits: Any) -> Live:
            settings = ServerSettings(**{"served_name": "novelist", **limits})
            return stack.enter_context(live(create_app(runtime.load(bundle, device="cpu", slots=slots), settings)))

        yield make


@pytest.fixture(scope="session")
def served(bundle: Path) -> Iterator[Live]:
    """A server with the default limits."""
    loaded = runtime.load(bundle, device="cpu", slots=2, threads=2)
    with live(create_app(loaded, ServerSettings(served_name="novelist"))) as found:
        yield found


@pytest.fixture
def console(visit: Callable[..., Page], served: Live) -> Iterator[Callable[..., Console]]:
    """Open a server's page; what it leaves under way and its tabs end with the test."""
    browsers = []

    def open_console(live: Live = served, **looks: Any) -> Console:
        browser = visit(f"{live.url}/", **looks).browser
        browsers.append(browser)
        return Console(browser)

    yield open_console
    for browser in browsers[:1]:
        first, *others = browser.window_handles
        for other in others:
            browser.switch_to.window(other)
            browser.close()
        browser.switch_to.window(first)
        browser.get("about:blank")
