"""What a page never does: ask the network, run what is not its own, take a text for markup."""

import base64
import dataclasses
import hashlib
import re

import pytest

from runtime.inside.page import make_page

NASTY = [
    "<script>alert(1)</script>",
    "</script><script>injected=1</script>",
    "<!--",
    "--><img src=x onerror=injected=1>",
    "&amp;",
    "\"'`${injected=1}",
    "a\u2028b\u2029c",
    "line\none\ttwo  three",
    "🙂",
    r"\xf0",
    "שלום",
    "\u202eright to left",
    "\x00\x07",
    "'><style>*{display:none}</style>",
    " one",
    " two",
    "\n\n",
]
UNSEEN = re.compile("[ \n\t\u2028\u2029\u202e\x00\x07]")
POLICY = "Content Security Policy"


class Given:
    """Pieces of given texts."""

    def piece(self, token_id):
        return NASTY[token_id]


@pytest.fixture
def nasty(imagined):
    """A page all of whose texts try to be something else."""
    inspection, lens = imagined(len(NASTY), layers=2, heads=2, vocabulary=len(NASTY))
    ids = tuple(range(len(NASTY)))
    seen = dataclasses.replace(inspection, tokens=tuple(NASTY), token_ids=ids)
    return make_page(seen, dataclasses.replace(lens, token_ids=ids, pieces=Given()), model=NASTY[1])


def test_texts_are_texts_and_nothing_else(show, nasty):
    page = show(nasty)
    shown = page.run("return [...document.querySelectorAll('#tokens [role=option]')].map(one => one.textContent)")
    assert shown == NASTY
    assert page.text("h1") == page.browser.title == f"Inside {NASTY[1]}"
    assert page.run("return window.injected ?? null") is None
    assert page.run("return document.querySelectorAll('script, style, img').length") == 3
    assert page.log() == []


def test_the_lens_spells_whatever_comes_after_whatever(show, nasty, imagined):
    """A text that takes another's place has all of its own signs and none of the other's."""
    page = show(nasty)
    _, lens = imagined(len(NASTY), layers=2, heads=2, vocabulary=len(NASTY))
    spelled = """
        const token = document.querySelector(`#tokens [data-position="${arguments[0]}"]`);
        token.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
        return [...document.querySelectorAll("#lens-list .guess .token-text")].map(one =>
            [one.textContent, [...one.querySelectorAll(".sign")].map(sign => sign.textContent).join("")])"""
    for position in [0, 14, 15, 3, 15, *range(len(NASTY))]:
        texts = [NASTY[token] for token in lens.top_ids[:, position].ravel()]
        assert page.run(spelled, position) == [[text, "".join(UNSEEN.findall(text))] for text in texts]


def test_line_breaks_in_tokens_do_not_break_the_rows_of_tables(show, nasty):
    page = show(nasty)
    heights = "return [...document.querySelectorAll(arguments[0])].map(row => row.getBoundingClientRect().height)"
    for position in (7, 16):
        page.hover(page.token(position))
        for table in ("#strongest", "#lens-list", "#lens-table"):
            rows = [height for height in page.run(heights, f"{table} tbody tr") if height]
            assert max(rows) - min(rows) < 1.5, table


def test_no_markup_is_in_what_a_page_carries(nasty):
    contents = re.search(r'<script type="application/json" id="contents">(.*?)</script>', nasty, re.DOTALL)[1]
    assert "<" not in contents
    assert r"\u003c!--" in contents


def test_spaces_are_seen_and_the_text_stays(page, seen):
    assert page.text("#tokens") == "".join(seen.tokens)
    sign = "return getComputedStyle(document.querySelector('#tokens .space'), '::before').content"
    assert page.run(sign) == '"·"'


def test_it_asks_the_network_for_nothing_and_has_no_complaints(page):
    assert page.run("return performance.getEntriesByType('resource').map(each => each.name)") == []
    assert page.log() == []
    assert not page.find("#failure").is_displayed()


def test_its_policy_names_two_hashes_and_nothing_else(html):
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', html)
    (style,), (script,) = (re.findall(rf"<{tag}>(.*?)</", html, re.DOTALL) for tag in ("style", 'script type="module"'))
    hashes = [base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in (script, style)]
    sources = "script-src 'sha256-{}'; style-src 'sha256-{}'".format(*hashes)
    assert policy == f"default-src 'none'; {sources}; base-uri 'none'"


@pytest.mark.parametrize(
    "attempt",
    [
        "const s = document.createElement('script'); s.textContent = 'injected = 1'; document.body.append(s)",
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"injected = 1\">')",
        "document.body.insertAdjacentHTML('beforeend', '<style>body { color: rgb(1, 2, 3) }</style>')",
        "document.body.setAttribute('style', 'color: rgb(1, 2, 3)')",
        "fetch('data:text/plain,1').then(() => { injected = 1 }, () => {})",
    ],
)
def test_its_policy_forbids_all_but_its_own_script_and_style(page, attempt):
    page.run(attempt)
    page.browser.execute_async_script("setTimeout(arguments[0], 100)")
    assert page.run("return window.injected ?? null") is None
    assert page.run("return getComputedStyle(document.body).color") != "rgb(1, 2, 3)"
    assert POLICY in page.log()[0]


@pytest.mark.parametrize(
    ("old", "new"), [('"use strict";', '"use strict"; injected = 1;'), ("--paper: #", "--paper:  #")]
)
def test_a_script_or_style_that_was_changed_is_refused(show, html, old, new):
    page = show(html.replace(old, new, 1), whole=False)
    assert POLICY in page.log()[0]
    assert page.run("return window.injected ?? null") is None


def test_maps_that_are_damaged_are_said_to_be(show, html):
    page = show(re.sub(r'"maps":\["....', '"maps":["AAAA', html), whole=False)
    page.within(lambda: page.find("#failure").is_displayed())
    assert page.text("#failure").startswith("The attention maps cannot be unpacked: ")
