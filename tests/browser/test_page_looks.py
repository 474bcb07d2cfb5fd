"""How a page looks and what it costs: contrast in both themes, widths, sizes, changes."""

import dataclasses

import numpy as np
import pytest

from runtime.inside.page import make_page

PIXELS = """return ["thumbnails", "map-weights"].map(id =>
    [...document.getElementById(id).getContext("2d").getImageData(5, 9, 1, 1).data])"""
CHANGES = """
    const [part, selector, act] = arguments;
    const all = [...document.querySelectorAll(selector)];
    const observer = new MutationObserver(() => {});
    const kinds = {subtree: true, childList: true, attributes: true, characterData: true};
    observer.observe(document.querySelector(part), kinds);
    return Array.from({length: 20}, (_, i) => {
        all[(i * 37) % all.length].dispatchEvent(new PointerEvent(act, {bubbles: true}));
        return observer.takeRecords().length;
    })"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_text_has_the_contrast_of_wcag_aa(show, html, luminance, faint, theme):
    page = show(html, theme=theme)
    page.choose(2, 3)
    pairs = page.texts()
    assert len(pairs) > 20
    assert faint(pairs) == []
    assert (luminance(page.fills("body")[0]) < 0.1) == (theme == "dark")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_shade_of_the_scale_bears_text(show, imagined, faint, theme):
    """Probabilities from 0 to 1 in the lens table, so that all of the ramp is under text."""
    inspection, lens = imagined(256, layers=1, heads=1)
    share = (np.arange(256) / 255) ** 2
    chances = np.broadcast_to(share[None, :, None], lens.probabilities.shape).astype(np.float32)
    page = show(make_page(inspection, dataclasses.replace(lens, probabilities=chances), model="ramp"), theme=theme)
    pairs = page.texts()
    assert len({ground for _, ground, _ in pairs}) > 200
    assert faint(pairs) == []


def test_a_change_of_theme_redraws_all_that_is_coloured(show, html):
    def shown(page):
        return [page.run(PIXELS), page.fills("#lens-list .guess"), page.fills("#tokens [role=option]")]

    dark = shown(show(html, theme="dark"))
    page = show(html, theme="light")
    light = shown(page)
    assert all(one != other for one, other in zip(light[0], dark[0], strict=True))
    for theme, expected in (("dark", dark), ("light", light)):
        page.theme(theme)
        page.within(lambda expected=expected: shown(page) == expected)


@pytest.mark.parametrize("width", [320, 400, 800, 1180, 1600])
def test_no_window_scrolls_sideways(show, html, width):
    page = show(html, size=(width, 800))
    assert page.run("return document.documentElement.scrollWidth") <= width
    outside = """return [...document.querySelectorAll("section")].filter(part =>
        part.getBoundingClientRect().right > innerWidth || part.scrollWidth > part.clientWidth).map(part => part.id)"""
    assert page.run(outside) == []


def test_paper_has_the_whole_lens_of_a_token(show, html):
    """On A4 with a browser's own margins, where nothing scrolls."""
    page = show(html, size=(718, 1000))
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    page.within(lambda: page.run("return matchMedia('print').matches"))
    table, room = page.run("""return ["#lens-list", "#lens-list-panel"].map(part =>
        document.querySelector(part).getBoundingClientRect().right)""")
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert table <= room


@pytest.mark.parametrize(("selector", "act"), [("#tokens [role=option]", "pointerover"), ("[role=gridcell]", "click")])
def test_an_event_changes_tokens_and_lists_and_nothing_of_the_other_heads(show, imagined, selector, act):
    """300 tokens of GPT-2 small; how long that takes is benchmarks.page's to say.

    Two changes of colour a token, six for each of five guesses in a layer and two for its answer, eight for each of the
    ten strongest, and a few dozen for what is chosen.
    """
    page = show(make_page(*imagined(300), model="imagined"))
    most = 2 * 300 + 13 * (6 * 5 + 2) + 8 * 10 + 48
    changes = page.run(CHANGES, "html", selector, act)
    assert 0 < max(changes) <= most


def test_another_head_leaves_the_lens_as_it_is(show, html):
    changes = show(html).run(CHANGES, "#lens-list-panel", "[role=gridcell]", "click")
    assert set(changes) == {0}


def test_forced_colours_keep_what_is_shown_by_colour(show, html):
    """A reader's few colours are for text and lines; weights stay shades, and the chosen head has an outline."""
    page = show(html)
    page.choose(2, 1)
    parts = ("#tokens [role=option]", "#strongest .number", "#lens-table td", "#lens-list td.guess")
    shades = [page.fills(part) for part in parts]
    forced = {"features": [{"name": "forced-colors", "value": "active"}]}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", forced)
    page.within(lambda: page.run("return matchMedia('(forced-colors: active)').matches"))
    assert [page.fills(part) for part in parts] == shades
    outline = "return getComputedStyle(document.querySelector('#overview [aria-selected=true]')).outlineStyle"
    assert page.run(outline) == "solid"


def test_100_tokens_of_gpt2_small_are_less_than_2_megabytes(imagined):
    assert len(make_page(*imagined(100), model="imagined").encode()) < 2e6
