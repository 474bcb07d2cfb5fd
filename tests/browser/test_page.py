"""What a page shows, against the arrays."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest

from runtime.inside.page import make_page

FILLS = "return [...arguments[0].querySelectorAll('td')].map(cell => cell.style.backgroundColor)"


@pytest.fixture
def strongest(percent):
    """Positions and weights as shown, the strongest first."""

    def first(weights):
        order = np.argsort(-weights, kind="stable")[:10]
        return [[str(position), percent(weights[position])] for position in order]

    return first


@pytest.fixture
def lens_lights(page, luminance):
    """The luminance of each cell of the lens table."""
    rows = "#lens-table tbody tr"
    return lambda: np.array(
        [[luminance(fill) for fill in page.run(FILLS, row)] for row in page.browser.find_elements("css selector", rows)]
    )


@pytest.mark.parametrize(("layer", "head", "position"), [(0, 0, 11), (2, 1, 7), (5, 3, 10)])
def test_the_strongest_weights_are_the_inspections(page, seen, strongest, layer, head, position):
    page.choose(layer, head)
    page.hover(page.token(position))
    rows = page.cells("#strongest")
    assert [row[1:] for row in rows] == strongest(seen.attention(layer, head)[position, : position + 1])
    assert [row[0] for row in rows] == [seen.tokens[int(row[1])] for row in rows]
    assert page.text("#head-title") == f"Layer {layer}, head {head}"


def test_the_other_direction_is_of_the_later_tokens(page, seen, percent):
    page.choose(3, 1)
    page.hover(page.token(4))
    page.find("[value=ahead]").click()
    expected = seen.attention(3, 1)[:, 4]
    rows = page.cells("#strongest")
    assert [row[2] for row in rows] == [percent(weight) for weight in sorted(expected[4:], reverse=True)[:10]]
    assert all(row[2] == percent(expected[int(row[1])]) for row in rows)
    assert page.text("#strongest-title") == f"“{seen.tokens[4].replace(' ', '·')}” (4) is looked at by"


def test_tokens_are_darker_where_weights_are_stronger(page, seen, luminance):
    page.choose(2, 1)
    page.hover(page.token(8))
    fills = page.fills("#tokens [role=option]")
    lights = [luminance(fills[position]) for position in np.argsort(seen.attention(2, 1)[8])]
    assert lights == sorted(lights, reverse=True)
    assert len(set(fills[9:])) == 1, "what is masked has a weight"
    assert len(set(fills[:9])) > 5


def test_any_cell_of_the_map_is_read_out(page, seen, percent):
    page.choose(1, 2)
    plot, size = page.find("#plot"), len(seen.tokens)
    for query, key in [(0, 0), (10, 3), (11, 11), (7, 0)]:
        page.hover(plot, *(round(plot.size["width"] * ((place + 0.5) / size - 0.5)) for place in (key, query)))
        names = [f"“{seen.tokens[place].replace(' ', '·')}” ({place})" for place in (query, key)]
        weight = percent(seen.attention(1, 2)[query, key])
        assert page.text("#map-reading") == f"{names[0]} looks at {names[1]}: {weight}"
    corner = round(plot.size["width"] * 0.4)
    page.hover(plot, corner, -corner)
    assert "click to pin" in page.text("#map-reading"), "a masked cell is read out"


def test_the_map_is_darker_where_weights_are_stronger(page, seen, luminance):
    page.choose(4, 2)
    pixels = page.run("""
        const canvas = document.getElementById("map-weights");
        return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data]""")
    size = len(seen.tokens)
    image = np.array(pixels).reshape(size, size, 4)
    below = np.tril_indices(size)
    order = np.argsort(seen.attention(4, 2)[below])
    lights = [luminance("{} {} {}".format(*pixel)) for pixel in image[below][order]]
    assert all(later <= earlier for earlier, later in pairwise(lights))
    assert lights[0] - lights[-1] > 0.5
    assert np.array_equal(image[..., 3], np.tril(np.full((size, size), 255)))


def test_the_overview_has_each_map_at_its_place(page, seen):
    """Whatever else, a head's thumbnail is the same as its map, and no two are alike."""
    pixels = """
        const cell = document.querySelector(arguments[0]).getBoundingClientRect();
        const canvas = document.getElementById("thumbnails");
        const all = canvas.getBoundingClientRect();
        const [x, y] = [cell.left - all.left, cell.top - all.top].map(place => place * canvas.width / all.width + 2);
        return [...canvas.getContext("2d").getImageData(Math.round(x), Math.round(y), 64, 64).data]"""
    large = """
        const map = document.getElementById("map-weights"), canvas = new OffscreenCanvas(64, 64);
        const pen = canvas.getContext("2d");
        pen.imageSmoothingEnabled = false;
        pen.drawImage(map, 0, 0, 64, 64);
        return [...pen.getImageData(0, 0, 64, 64).data]"""
    shown = {}
    for layer, head in [(0, 0), (0, 3), (5, 0), (5, 3), (2, 1)]:
        page.choose(layer, head)
        shown[layer, head] = page.run(pixels, f"[aria-label='layer {layer}, head {head}']")
        assert shown[layer, head] == page.run(large)
    assert len({tuple(each) for each in shown.values()}) == len(shown)
    assert len(page.browser.find_elements("css selector", "[role=gridcell]")) == np.prod(seen.attentions.shape[:2])


def test_the_lens_of_a_token_is_the_lens(page, lens, percent):
    position = 6
    page.hover(page.token(position))
    rows = page.cells("#lens-list")
    assert len(rows) == len(lens.ranks)
    for layer, (_, *guesses, rank, answer) in enumerate(rows):
        expected = lens.next_tokens(layer, position)
        assert guesses == [each.text + percent(each.probability) for each in expected]
        assert rank == f"rank {lens.ranks[layer, position]:,}"
        assert answer == percent(lens.answer_probabilities[layer, position])
    answer = lens.next_tokens(-1 + len(rows), position)[0].text.replace(" ", "·")
    assert page.text("#lens-list-title").endswith(f"({position}): the final answer is “{answer}”")


def test_the_lens_table_has_the_likeliest_of_all_positions(page, lens):
    rows = page.cells("#lens-table")
    for layer, (_, *found) in enumerate(rows):
        assert found == [lens.next_tokens(layer, position)[0].text for position in range(len(lens.tokens))]
    last = len(rows) - 1
    assert [row[0] for row in rows] == ["0 embedding", *map(str, range(1, last)), f"{last} output"]


def test_the_lens_table_is_coloured_by_probability_or_rank(page, lens, lens_lights):
    lights = lens_lights().ravel()
    assert (np.diff(lights[np.argsort(lens.probabilities[..., 0].ravel())]) <= 0).all()
    assert not page.find("#ranks").is_displayed()
    page.find("[value=rank]").click()
    assert page.find("#ranks").is_displayed()
    lights = lens_lights().ravel()
    assert (np.diff(lights[np.argsort(lens.ranks.ravel())]) >= 0).all()
    assert len(set(lights[lens.ranks.ravel() == 1])) == 1


def test_final_answers_are_marked(page, lens):
    marked = page.run("""return [...document.querySelectorAll("#lens-table tbody tr")].map(row =>
        [...row.querySelectorAll("td")].map(cell => getComputedStyle(cell).textDecorationLine === "underline"))""")
    assert np.array_equal(marked, lens.top_ids[..., 0] == lens.answers)


def test_a_cell_of_the_lens_table_is_read_out_and_pins_its_token(page, lens, percent):
    position = len(lens.tokens) - 2
    page.find(f"#lens-table tbody tr:nth-child(3) td:nth-child({position + 2})").click()
    reading = page.text("#lens-reading")
    assert reading.startswith("Layer 2, after ")
    assert f" {percent(lens.probabilities[2, position, 0])};" in reading
    answer = percent(lens.answer_probabilities[2, position])
    assert reading.endswith(f"{answer}, rank {lens.ranks[2, position]:,}")
    assert page.pinned() == [str(position)]


@pytest.mark.parametrize("length", [1, 512])
def test_the_shortest_and_a_long_text(show, imagined, strongest, length):
    inspection, lens = imagined(length, layers=2, heads=3)
    page = show(make_page(inspection, lens, model="imagined"))
    page.choose(1, 2)
    assert page.text("#size") == f"{length} token{'s' * (length > 1)} · 2 layers · 3 heads"
    assert [row[1:] for row in page.cells("#strongest")] == strongest(inspection.attention(1, 2)[-1])
    assert page.log() == []


def test_some_layers_alone_keep_their_numbers(show, seen, lens, strongest):
    some = dataclasses.replace(seen, layers=(4, 1), attentions=seen.attentions[[4, 1]])
    page = show(make_page(some, lens, model="novelist"))
    for layer in (1, 4):
        page.choose(layer, 3)
        assert page.text("#head-title") == f"Layer {layer}, head 3"
        assert [row[1:] for row in page.cells("#strongest")] == strongest(seen.attention(layer, 3)[-1])


def test_what_cannot_make_a_page_is_refused(seen, lens, model):
    with pytest.raises(ValueError, match="a page needs attentions; ask for them"):
        make_page(model.inspect("He", outputs="logits"), lens, model="novelist")
    with pytest.raises(ValueError, match=f"{len(seen.tokens)} tokens, got one of 1$"):
        make_page(seen, model.lens("He"), model="novelist")
