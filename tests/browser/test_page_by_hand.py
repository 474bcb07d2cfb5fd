"""How a page is worked: pointer, keys, controls."""

import pytest

from runtime.inside.page import make_page

PLACES = """return [...document.querySelectorAll("#tokens [role=option]")].map(one => {
    const {left, top} = one.getClientRects()[0];
    return [left, top];
})"""


def test_a_click_on_the_overview_chooses_a_head(page, seen, percent):
    page.find("[aria-label='layer 4, head 2']").click()
    assert page.text("#head-title") == "Layer 4, head 2"
    assert [page.find(control).get_attribute("value") for control in ("#layer", "#head")] == ["4", "2"]
    assert page.cells("#strongest")[0][2] == percent(seen.attention(4, 2)[-1].max())


def test_the_controls_choose_in_the_overview_too(page):
    page.choose(3, 1)
    chosen = page.browser.find_elements("css selector", "#overview [aria-selected=true]")
    assert [cell.get_attribute("aria-label") for cell in chosen] == ["layer 3, head 1"]


def test_the_overview_is_worked_by_keys(page):
    page.focus("#overview [aria-selected=true]")
    for key, expected in [
        ("ARROW_DOWN", "Layer 1, head 0"),
        ("ARROW_RIGHT", "Layer 1, head 1"),
        ("END", "Layer 1, head 3"),
        ("ARROW_RIGHT", "Layer 1, head 3"),
        ("ARROW_UP", "Layer 0, head 3"),
        ("ARROW_UP", "Layer 0, head 3"),
        ("ARROW_LEFT", "Layer 0, head 2"),
        ("HOME", "Layer 0, head 0"),
    ]:
        page.press(key)
        assert page.text("#head-title") == expected
        assert page.focused("aria-label") == expected.lower()


def test_hovering_shows_and_stays_when_the_pointer_leaves(page):
    page.hover(page.token(3))
    assert "(3) looks at" in page.text("#strongest-title")
    page.hover(page.find("h1"))
    assert "(3) looks at" in page.text("#strongest-title")


def test_tokens_are_worked_by_keys(page, seen, percent):
    page.focus("#tokens [tabindex='0']")
    last = len(seen.tokens) - 1
    steps = [("HOME", 0), ("ARROW_LEFT", 0), ("ARROW_RIGHT", 1), ("END", last), ("ARROW_LEFT", last - 1)]
    for key, position in steps:
        page.press(key)
        assert page.focused("data-position") == str(position)
        assert f"({position}) looks at" in page.text("#strongest-title")
    page.press("ENTER")
    assert page.pinned() == [str(last - 1)]
    page.press("HOME")
    assert f"({last - 1}) looks at" in page.text("#strongest-title")
    assert page.text("#text-reading").endswith(f"(0): {percent(seen.attention(0, 0)[last - 1, 0])}")
    page.press("ESCAPE")
    assert page.pinned() == []


def test_up_and_down_go_to_the_next_line_of_the_text(show, model):
    text = "One two three four\nFive six seven\n\nEight"
    page = show(make_page(model.inspect(text), model.lens(text), model="novelist"))
    tokens = model.inspect(text).tokens
    places = page.run(PLACES)
    lines = sorted({top for _, top in places})
    assert [top for _, top in places] == [lines["".join(tokens[:i]).count("\n")] for i in range(len(tokens))]
    page.focus("#tokens [tabindex='0']")
    page.press("HOME")
    for key, token in [("ARROW_DOWN", "Five"), ("ARROW_DOWN", "\n"), ("ARROW_DOWN", "Eight"), ("ARROW_DOWN", "Eight")]:
        page.press(key)
        assert page.run("return document.activeElement.textContent").startswith(token[0])
    page.press("ARROW_UP", "ARROW_UP", "ARROW_RIGHT")
    left, top = places[int(page.focused("data-position"))]
    page.press("ARROW_UP")
    above = min((abs(place - left), i) for i, (place, each) in enumerate(places) if each == lines[0])
    assert top == lines[1]
    assert page.focused("data-position") == str(above[1])


def test_readings_are_spoken_to_keys_and_not_to_the_pointer(page):
    """A live region that follows the pointer would speak without end."""
    live = "return [...document.querySelectorAll('#map-reading, #text-reading')].map(one => one.ariaLive)"
    assert page.run(live) == ["off", "off"]
    page.focus("#map")
    page.press("ARROW_UP")
    assert page.run(live) == ["polite", "polite"]
    page.hover(page.token(3))
    assert page.run(live) == ["off", "off"]


def test_a_deep_model_has_the_latest_token_in_all_its_layers(show, imagined):
    """Its lens is drawn over several frames; a token shown in the meantime takes its place, and is drawn once."""
    inspection, lens = imagined(5, layers=48, heads=1)
    page = show(make_page(inspection, lens, model="imagined"))
    page.run("""window.changes = 0;
        new MutationObserver(records => { changes += records.length })
            .observe(document.querySelectorAll("#lens-list tbody tr")[20].cells[6], {childList: true});
        for (const one of document.querySelectorAll("#tokens [role=option]"))
        one.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}))""")
    expected = [f"rank {rank:,}" for rank in lens.ranks[:, 4]]
    page.browser.execute_async_script("setTimeout(arguments[0], 300)")
    assert [row[-2] for row in page.cells("#lens-list")] == expected
    assert page.run("return changes") == 1
    page.hover(page.token(0))
    expected = [f"rank {rank:,}" for rank in lens.ranks[:, 0]]
    page.within(lambda: [row[-2] for row in page.cells("#lens-list")] == expected)


def test_a_click_pins_until_it_is_clicked_again(page):
    page.token(3).click()
    page.hover(page.token(6))
    assert page.pinned() == ["3"]
    assert "(3) looks at" in page.text("#strongest-title")
    assert "cannot look ahead to" in page.text("#text-reading")
    page.token(3).click()
    page.hover(page.token(6))
    assert page.pinned() == []
    assert "(6) looks at" in page.text("#strongest-title")


def test_the_map_is_worked_by_keys(page, seen, percent):
    page.focus("#map")
    page.press("ARROW_UP", "ARROW_LEFT", "ARROW_LEFT", "ARROW_UP")
    last = len(seen.tokens) - 1
    weights = seen.attention(0, 0)[last - 1]
    assert page.text("#map-reading").endswith(f"({last - 2}): {percent(weights[last - 2])}")
    page.press("HOME")
    assert page.text("#map-reading").endswith(f"(0): {percent(weights[0])}")
    page.press("ENTER")
    assert page.pinned() == [str(last - 1)]


def test_a_click_on_the_map_pins_its_query(page, seen):
    plot, size = page.find("#plot"), len(seen.tokens)
    page.hover(plot, round(plot.size["width"] * (0.5 / size - 0.5)), round(plot.size["width"] * (7.5 / size - 0.5)))
    page.run("document.getElementById('plot').click()")
    assert page.pinned() == ["7"]


def test_tab_reaches_every_part(page):
    reached = set()
    for _ in range(12):
        page.press("TAB")
        reached.add(page.focused("id") or page.focused("role") or page.focused("name"))
    parts = {"gridcell", "layer", "head", "map", "direction", "option", "colouring", "region", "lens-scroller"}
    assert reached >= parts


@pytest.mark.parametrize(
    "part", ["#overview [tabindex='0']", "#map", "#tokens [tabindex='0']", "#lens-scroller", "#layer"]
)
def test_what_is_focused_has_a_ring(page, part):
    page.focus(part)
    page.press("SHIFT")
    ring = page.run(
        "const {outlineStyle, outlineWidth} = getComputedStyle(document.activeElement); "
        "return [outlineStyle, parseFloat(outlineWidth)]"
    )
    assert ring[0] != "none"
    assert ring[1] >= 2


def test_the_lens_table_follows_the_token(page, seen):
    page.focus("#tokens [tabindex='0']")
    code = """
        const box = selector => document.querySelector(selector).getBoundingClientRect();
        const [view, band] = [box("#lens-scroller"), box(".band")];
        const cell = box(`#lens-table thead th:nth-child(${arguments[0] + 2})`);
        return [Math.abs(band.left - cell.left), Math.abs(band.right - cell.right),
                cell.left >= view.left && cell.right <= view.right + 1]"""
    for key, position in (("HOME", 0), ("END", len(seen.tokens) - 1), ("HOME", 0)):
        page.press(key)
        left, right, visible = page.run(code, position)
        assert max(left, right) < 1
        assert visible
