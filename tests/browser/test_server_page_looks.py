"""How the server's page looks, and what a browser may do with it: contrast, widths, colours, policy."""

import base64
import hashlib
import re

import pytest

PROMPT = "The old house stood at the end of the lane, and"
SETTINGS = {"tokens": 60, "temperature": 0.9, "topP": 0.95, "seed": 7}
REFUSED = re.compile("Content Security Policy|requires 'Trusted(HTML|Script)' assignment")


def opened(page):
    page.write(PROMPT, **SETTINGS)
    page.run("document.querySelectorAll('.piece')[9].focus({focusVisible: true})")
    page.within(page.choices_shown)
    return page


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_text_has_the_contrast_of_wcag_aa(console, faint, luminance, theme):
    page = opened(console(theme=theme))
    page.run("document.getElementById('failure').hidden = false; document.getElementById('failure').textContent = 'so'")
    pairs = page.texts()
    assert len(pairs) > 10
    assert faint(pairs) == []
    assert (luminance(page.fills("body")[0]) < 0.1) == (theme == "dark")


@pytest.mark.parametrize("width", [320, 400, 800, 1180, 1600])
def test_no_window_scrolls_sideways(console, width):
    page = opened(console(size=(width, 700)))
    assert page.run("return document.documentElement.scrollWidth") <= width
    outside = """return [...document.querySelectorAll("form, section, #choices, .scale")].filter(part => {
        const {left, right} = part.getBoundingClientRect();
        return left < 0 || right > document.documentElement.clientWidth || part.scrollWidth > part.clientWidth;
    }).map(part => part.id || part.className)"""
    assert page.run(outside) == []


def test_choices_stay_in_the_window(console):
    page = opened(console(size=(360, 640)))
    inside = """const {left, right} = document.getElementById("choices").getBoundingClientRect();
        return left >= 0 && right <= document.documentElement.clientWidth"""
    for position in range(0, 60, 7):
        page.run("document.querySelectorAll('.piece')[arguments[0]].focus({focusVisible: true})", position)
        page.within(page.choices_shown)
        assert page.run(inside)


def test_forced_colours_keep_the_shades(console):
    page = opened(console())
    shades = page.fills(".piece")
    assert len(set(shades)) > 3
    forced = {"features": [{"name": "forced-colors", "value": "active"}]}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", forced)
    page.within(lambda: page.run("return matchMedia('(forced-colors: active)').matches"))
    assert page.fills(".piece") == shades
    outline = "return getComputedStyle(document.querySelectorAll('.piece')[9]).outlineStyle"
    assert page.run(outline) == "solid"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_signs_and_every_shade_bear_text(console, faint, theme):
    """A line break has nothing but its sign, on whatever shade it has."""
    page = opened(console(theme=theme))
    signs = """const found = [];
        const piece = document.querySelector(".piece");
        piece.dataset.sign = "↵";
        for (let level = 0; level < 8; level++) {
            piece.dataset.level = level;
            const {backgroundColor, color} = getComputedStyle(piece);
            found.push([backgroundColor, color], [backgroundColor, getComputedStyle(piece, "::before").color]);
        }
        return found"""
    pairs = page.run(signs)
    assert len({ground for ground, _ in pairs}) == 8
    assert faint(pairs) == []


def test_nothing_beats_for_those_who_want_no_motion(console):
    page = console()
    page.run("document.getElementById('sheet').hidden = false; document.body.classList.add('busy')")
    motion = "return getComputedStyle(document.getElementById('written'), '::after').animationName"
    assert page.run(motion) == "beat"
    reduced = {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", reduced)
    page.within(lambda: page.run(motion) == "none")


@pytest.mark.parametrize("part", ["#prompt", "[name=seed]", "#generate", ".piece", "#look-inside"])
def test_what_is_focused_has_a_ring(console, part):
    page = console()
    page.write(PROMPT, tokens=3, temperature=0)
    page.run("document.activeElement.blur(); document.querySelector(arguments[0]).focus({focusVisible: true})", part)
    style = "const {outlineStyle, outlineWidth} = getComputedStyle(document.querySelector(arguments[0])); "
    assert page.run(f"{style} return [outlineStyle, parseFloat(outlineWidth) >= 2]", part) == ["solid", True]


def test_it_asks_no_host_but_its_own(served, console):
    page = opened(console())
    asked = page.run("return performance.getEntriesByType('resource').map(each => each.name)")
    assert asked == [f"{served.url}/v1/completions"]
    assert page.log() == []


def test_its_policy_is_of_hashes(served):
    answer = served.client.get("/")
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert (policy["default-src"], policy["connect-src"]) == ("'none'", "'self'")
    for tag, sources in (("style", policy["style-src"]), ('script type="module"', policy["script-src"])):
        (code,) = re.findall(rf"<{tag}>(.*?)</", answer.text, re.DOTALL)
        own = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert sources.split()[0] == f"'sha256-{own}'"
        assert re.fullmatch(r"'sha256-[\w+/=]{44}' 'sha256-[\w+/=]{44}'", sources)  # the other is the inside page's


@pytest.mark.parametrize(
    "attempt",
    [
        "const s = document.createElement('script'); s.append('injected = 1'); document.body.append(s)",
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"injected = 1\">')",
        "const s = document.createElement('style'); s.append('body{color:rgb(1,2,3)}'); document.body.append(s)",
        "document.body.setAttribute('style', 'color: rgb(1, 2, 3)')",
        "fetch('http://127.0.0.1:9/').then(() => { injected = 1 }, () => {})",
        "const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'; document.body.append(i)",
    ],
)
def test_its_policy_forbids_all_but_its_own(console, attempt):
    page = console()
    page.run(f"try {{ {attempt} }} catch {{ }}")
    page.browser.execute_async_script("setTimeout(arguments[0], 100)")
    assert page.run("return window.injected ?? null") is None
    assert page.run("return getComputedStyle(document.body).color") != "rgb(1, 2, 3)"
    assert REFUSED.search(page.log()[0])
