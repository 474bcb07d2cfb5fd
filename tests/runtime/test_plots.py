"""Pictures: what they show, that nothing overlaps or is cut, hostile tokens, and that settings stay out of it."""

import io
import itertools
from textwrap import dedent

import numpy as np
import pytest

from runtime.inside.inspection import Inspection
from runtime.inside.lens import Lens

matplotlib = pytest.importorskip("matplotlib", reason="pictures need the extra plot")

from matplotlib import style  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.colors import to_rgb  # noqa: E402

from runtime.inside import plots  # noqa: E402
from runtime.inside.plots.labels import label, label_step  # noqa: E402
from runtime.inside.plots.lens import panels  # noqa: E402

TEXT = "The old house stood at the end of the lane, and nobody had lived in it since the winter;\nit was sold. "
HOSTILE = [
    "$x_1$",
    "$",
    r"\frac{a}{b}",
    "_^",
    "中文",
    "🙂",
    " שלום",
    "مرحبا",
    "e\u0301",
    "\u202eab",
    "\x00\x1b",
    r"\xf0",
]
HOSTILE += [" " * 40, "\n" * 3, "\t", "\r\n", "\ufffd", "\u2028", "=" * 64, "", "<b>&amp;", "W" * 30, "·"]
UNUSUAL = {
    "font.size": 40,
    "font.family": "serif",
    "text.usetex": True,
    "axes.grid": True,
    "image.cmap": "jet",
    "image.origin": "lower",
    "image.interpolation": "bicubic",
    "figure.constrained_layout.use": True,
    "figure.dpi": 30,
    "lines.linewidth": 9,
    "savefig.facecolor": "black",
    "savefig.dpi": 30,
    "savefig.bbox": "tight",
    "savefig.transparent": True,
}


def drawn(figure):
    """Its pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def texts(figure):
    return [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]


def boxes(found):
    """[texts, 4], left, bottom, right and top in pixels, as rendered; empty texts have none."""
    renderer = FigureCanvasAgg(found[0].get_figure()).get_renderer()
    return np.array([text.get_window_extent(renderer).extents for text in found if text.get_text()])


def map_of(figure):
    """The axes of the map, the widest picture after the scale's."""
    return figure.axes[0] if figure.axes[0].images[0].get_array().shape[0] > 1 else figure.axes[1]


def queries(figure):
    """Left of the map, from the top."""
    found = [text for text in figure.texts if text.get_ha() == "right"]
    return sorted(found, key=lambda text: -text.get_position()[1])[1:-1]


def keys(figure):
    """Below the map, from the left."""
    bottom = map_of(figure).get_position().y0
    found = [text for text in figure.texts if text.get_position()[1] < bottom and text.get_ha() == "center"]
    return sorted(found, key=lambda text: text.get_position()[0])


def assert_nothing_overlaps_or_is_cut(figure):
    drawn(figure)
    found = boxes(texts(figure))
    left, bottom, right, top = found.T
    assert left.min() >= 0
    assert bottom.min() >= 0
    assert right.max() <= figure.bbox.width
    assert top.max() <= figure.bbox.height
    apart = (left[:, None] >= right) | (bottom[:, None] >= top)
    assert (apart | apart.T | np.eye(len(found), dtype=bool)).all()
    pictures = np.array([axes.get_window_extent().extents for axes in figure.axes])
    for own in boxes(figure.texts):
        assert (
            (own[0] >= pictures[:, 2])
            | (own[2] <= pictures[:, 0])
            | (own[1] >= pictures[:, 3])
            | (own[3] <= pictures[:, 1])
        ).all()


def luminance(colour):
    """WCAG 2's relative luminance."""
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def weights(*shape, seed=0):
    """Causal maps whose rows sum to 1."""
    scores = np.tril(np.random.default_rng(seed).random(shape) ** 6 + 1e-6)
    return (scores / scores.sum(-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def seen(model):
    """Inspections by how many tokens they have."""
    ids = model.encode(TEXT * 20)

    def inspect(count):
        found = model.inspect(model.decode(ids[:count]))
        assert len(found.tokens) == count
        return found

    return inspect


class Names:
    """The pieces of a vocabulary of our own."""

    def __init__(self, names):
        self.names = names

    def piece(self, token_id):
        return self.names[token_id]


@pytest.fixture
def lens():
    """Two layers and the embedding, at three positions."""
    top_ids = np.array([[[0], [1], [2]], [[3], [4], [2]], [[4], [4], [0]]])
    return Lens(
        tokens=("It", " was", "\n"),
        token_ids=(5, 6, 7),
        top_ids=top_ids,
        probabilities=np.array([[[0.01], [0.2], [0.5]], [[0.04], [0.9], [0]], [[0.3], [0.6], [1]]], np.float32),
        answers=top_ids[-1, :, 0],
        ranks=np.array([[9, 9, 9], [2, 1, 5], [1, 1, 1]]),
        answer_probabilities=np.zeros((3, 3), np.float32),
        pieces=Names([" a", "b\n", "$c$", "中", " the"]),
    )


def cells(figure):
    """By row and column of the first panel."""
    return {tuple(map(int, reversed(text.get_position()))): text for text in map_of(figure).texts}


@pytest.mark.parametrize("count", [1, 7, 50])
def test_the_map_is_the_attention_and_blank_above_the_diagonal(seen, count):
    found = seen(count)
    shown = map_of(found.plot_attention(2, 1)).images[0].get_array()
    below = np.tri(count, dtype=bool)
    assert np.array_equal(np.ma.getmaskarray(shown), ~below)
    assert np.array_equal(shown.data[below], found.attention(2, 1)[below])


def test_blank_differs_from_every_colour_of_the_scale(seen):
    image = map_of(seen(7).plot_attention(0, 0)).images[0]
    colours = image.cmap(np.linspace(0, 1, 512))
    assert np.abs(colours - image.cmap(np.nan)).max(axis=1).min() > 0.02
    assert contrast(colours[0, :3], "white") < 1.1


def test_the_scale_goes_by_the_square_root_and_ever_darker(seen):
    image = map_of(seen(7).plot_attention(0, 0)).images[0]
    assert image.norm([0, 0.01, 0.25, 1]).tolist() == pytest.approx([0, 0.1, 0.5, 1])
    shades = [luminance(colour[:3]) for colour in image.cmap(np.linspace(0, 1, 64))]
    assert shades == sorted(shades, reverse=True)
    assert len(set(shades)) == len(shades)


def test_the_colour_bar_says_percent_where_its_colours_are(seen):
    figure = seen(7).plot_attention(0, 0)
    drawn(figure)
    (bar,) = [axes for axes in figure.axes if axes is not map_of(figure)]
    start, _, end, _ = bar.get_window_extent().extents
    ticks = [text for text in figure.texts if text.get_text().isdigit() and text.get_va() == "top"]
    assert [text.get_text() for text in ticks] == ["0", "1", "5", "10", "25", "50", "100"]
    shades = bar.images[0].get_array()[0]
    for tick in ticks:
        x = tick.get_transform().transform(tick.get_position())[0]
        pixel = min(int((x - start) / (end - start) * len(shades)), len(shades) - 1)
        assert 100 * shades[pixel] == pytest.approx(float(tick.get_text()), abs=1)
    assert any("%" in text.get_text() and "square-root" in text.get_text() for text in figure.texts)


def test_tokens_stand_at_their_rows_and_columns(seen):
    found = seen(50)
    figure = found.plot_attention(0, 0)
    drawn(figure)
    expected = [token.replace(" ", "·").replace("\n", "↵") for token in found.tokens]
    assert any("↵" in token for token in expected)
    assert [text.get_text() for text in queries(figure)] == expected
    assert [text.get_text() for text in keys(figure)] == expected
    where = map_of(figure).transData.transform([(number, number) for number in range(50)])
    for text, (_, y) in zip(queries(figure), where, strict=True):
        assert text.get_transform().transform(text.get_position())[1] == pytest.approx(y)
    for text, (x, _) in zip(keys(figure), where, strict=True):
        assert text.get_transform().transform(text.get_position())[0] == pytest.approx(x)


def test_few_tokens_have_their_weights_in_the_cells():
    maps = np.array([[1, 0, 0], [0.0994, 0.9006, 0], [0.0004, 0.0996, 0.9]], np.float32)
    shown = cells(plots.plot_attention(maps, ["a", "b", "c"], 0, 0))
    expected = {(0, 0): "100", (1, 0): "9.9", (1, 1): "90", (2, 0): "0.0", (2, 1): "10", (2, 2): "90"}
    assert {cell: text.get_text() for cell, text in shown.items()} == expected
    assert map_of(plots.plot_attention(weights(12, 12), list("abcdefghijkl"), 0, 0)).texts
    assert not map_of(plots.plot_attention(weights(13, 13), list("abcdefghijklm"), 0, 0)).texts


def test_numbers_are_legible_on_every_shade():
    for first in range(1, 100):
        maps = np.array([[1, 0], [first / 100, 1 - first / 100]], np.float32)
        axes = map_of(plots.plot_attention(maps, ["a", "b"], 0, 0))
        text, image = cells(axes.figure)[1, 0], axes.images[0]
        assert contrast(text.get_color(), image.cmap(image.norm(first / 100))[:3]) >= 4.5


@pytest.mark.parametrize("count", [1, 7, 12, 50, 200])
def test_nothing_overlaps_or_is_cut_in_an_attention_map(seen, count):
    figure = seen(count).plot_attention(2, 1)
    assert_nothing_overlaps_or_is_cut(figure)
    assert len(queries(figure)) == len(keys(figure)) == count
    assert min(text.get_fontsize() * figure.dpi / 72 for text in queries(figure)) > 13  # pixels


@pytest.mark.parametrize(("count", "step"), [(212, 2), (512, 5), (1024, 5)])
def test_labels_of_long_texts_are_thinned_and_the_picture_says_so(count, step):
    tokens = [f" {number}" for number in range(count)]
    figure = plots.plot_attention(weights(count, count), tokens, 0, 0)
    expected = [f"·{number}" for number in range(0, count, step)]
    assert [text.get_text() for text in queries(figure)] == [text.get_text() for text in keys(figure)] == expected
    ordinal = {2: "2nd", 5: "5th"}[step]
    assert any(f"of {count:,} tokens every {ordinal} is named" in text.get_text() for text in figure.texts)
    assert_nothing_overlaps_or_is_cut(figure)
    assert max(figure.get_size_inches()) < 22


@pytest.mark.parametrize("fitting", [0.3, 1, 1.1, 2, 4.9, 5.1, 10, 11, 70])
def test_steps_are_round_and_enough(fitting):
    round_ones = sorted(digit * 10**power for digit in (1, 2, 5) for power in range(4))
    assert label_step(fitting) == next(step for step in round_ones if step >= fitting)


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (" the", "·the"),
        ("a\tb\n", "a⇥b↵"),
        (" " * 4, "····"),
        (" " * 5, "·×5"),
        ("\n" * 12, "↵×12"),
        ("\r\n", r"\r↵"),
        ("\x00", r"\x00"),
        ("\x85", r"\u0085"),
        ("\xa0", r"\u00a0"),
        ("é", "é"),
        ("e\u0301", r"e\u0301"),
        ("中", r"\u4e2d"),
        ("🙂", r"\U0001f642"),
        ("\u202e", r"\u202e"),
        (r"\xf0\x9f", r"\xf0\x9f"),
        ("$x_1$", "$x_1$"),
        ("·", r"\u00b7"),
        ("ש", "ש"),
        ("", ""),
        ("a" * 16, "a" * 16),
        ("a" * 17, "a" * 15 + "…"),
        ("中文字", r"\u4e2d\u6587…"),
    ],
    ids=ascii,
)
def test_a_label_shows_what_a_token_is(token, expected):
    assert label(token, 16) == expected


def test_an_overview_holds_every_head_in_its_place(seen):
    found = seen(40)
    shown = map_of(found.plot_overview()).images[0].get_array()
    layers, heads = found.attentions.shape[:2]
    below = np.tri(40, dtype=bool)
    rows = np.split(shown, layers)
    for layer, head in itertools.product(range(layers), range(heads)):
        tile = np.split(rows[layer], heads, axis=1)[head]
        inner = tile[1:-1, 1:-1]
        assert (tile.sum() - inner.sum()) == -(tile.size - inner.size)  # the gap, below the scale
        assert np.array_equal(np.ma.getmaskarray(inner), ~below)
        assert np.array_equal(inner.data[below], found.attentions[layer, head][below])


def test_weights_of_few_tokens_are_squares_of_points():
    maps = weights(1, 2, 8, 8)
    shown = map_of(plots.plot_overview(maps, [0])).images[0].get_array()
    assert shown.shape == (34, 68)
    tile = shown[1:33, 35:67]  # head 1
    for query, key in itertools.product(range(8), range(8)):
        square = tile[4 * query : 4 * query + 4, 4 * key : 4 * key + 4]
        expected = np.nan if key > query else maps[0, 1, query, key]
        assert np.array_equal(square.filled(np.nan), np.full((4, 4), expected, np.float32), equal_nan=True)


def test_a_gap_is_paper():
    image = map_of(plots.plot_overview(weights(1, 1, 40, 40), [0])).images[0]
    assert to_rgb(image.cmap(image.norm(-1.0))[:3]) == (1, 1, 1)


def test_a_single_strong_weight_survives_in_a_smaller_tile():
    maps = weights(2, 3, 150, 150)
    figure = plots.plot_overview(maps, [0, 1])
    shown = map_of(figure).images[0].get_array()
    assert shown.shape == (2 * 52, 3 * 52)
    tile = shown[53:103, 105:155]  # layer 1, head 2
    for row, column in itertools.product(range(50), range(50)):
        if column > row:
            assert np.ma.is_masked(tile[row, column])
        else:
            assert tile[row, column] == maps[1, 2, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3].max()
    assert any("largest of 3 × 3 weights" in text.get_text() for text in figure.texts)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (6, 4, 7, 7), (12, 12, 100, 100), (48, 25, 65, 65)], ids=str)
def test_an_overview_is_one_image_with_legible_numbers(shape):
    figure = plots.plot_overview(weights(*shape), range(shape[0]))
    assert len(figure.axes) == 2  # with the scale's
    assert_nothing_overlaps_or_is_cut(figure)


def test_chosen_layers_keep_their_numbers(model):
    found = model.inspect(TEXT, outputs=["attentions"], layers=[4, 1])
    figure = found.plot_overview()
    left = [text for text in figure.texts if text.get_ha() == "right" and text.get_text().isdigit()]
    assert [text.get_text() for text in sorted(left, key=lambda text: -text.get_position()[1])] == ["4", "1"]
    figure = found.plot_attention(1, 2)
    assert figure.texts[0].get_text() == "Attention of layer 1, head 2"
    shown = map_of(figure).images[0].get_array()
    assert np.array_equal(shown.filled(0), found.attentions[1, 2])


def test_pictures_without_attentions_or_of_others_are_refused(model, refusal):
    bare = model.inspect("He", outputs="logits")
    for method, call in (("plot_attention", lambda: bare.plot_attention(0, 0)), ("plot_overview", bare.plot_overview)):
        expected = f"{method} needs attentions; ask for them: inspect(text, outputs=['attentions'])"
        assert refusal(ValueError, call) == expected
    found = model.inspect("He", layers=[2])
    assert "(2), got 0" in refusal(ValueError, found.plot_attention, 0, 0)
    assert "head must be" in refusal(ValueError, found.plot_attention, 2, 99)


def test_a_lens_says_what_each_layer_says(lens):
    figure = plots.plot_lens(lens)
    expected = [["·a", "b↵", "$c$"], [r"\u4e2d", "·the", "$c$"], ["·the", "·the", "·a"]]
    for (row, column), text in cells(figure).items():
        assert text.get_text() == expected[row][column]
    shown = map_of(figure).images[0].get_array()
    assert np.array_equal(shown, lens.probabilities[..., 0])
    left = [text for text in figure.texts if text.get_ha() == "right"]
    names = [text.get_text() for text in sorted(left, key=lambda text: -text.get_position()[1])]
    assert names == ["position", "token", "embedding", "layer 1", "output"]
    above = {text.get_text() for text in figure.texts if text.get_ha() == "center" and text.get_va() == "baseline"}
    assert above == {"0", "1", "2", "It", "·was", "↵"}


def test_a_lens_marks_the_final_answer(lens):
    figure = plots.plot_lens(lens)
    final = {(2, 0), (2, 1), (2, 2), (1, 1)}
    bold = {cell for cell, text in cells(figure).items() if "Bold" in text.get_fontproperties().get_file()}
    assert bold == final
    bars = map_of(figure).collections[-1].get_segments()
    assert {tuple(np.rint(bar.mean(axis=0)).astype(int)[::-1].tolist()) for bar in bars} == final


def test_a_lens_in_panels_goes_on_where_the_last_one_ended(model, seen):
    found = model.lens(model.decode(seen(50).token_ids))
    figure, first = found.plot(), 0
    for axes in (axes for axes in figure.axes if axes.texts):
        rows, columns = axes.images[0].get_array().shape
        final = (found.top_ids[:, first : first + columns, 0] == found.answers[first : first + columns]).nonzero()
        bars = [np.rint(bar.mean(axis=0)).astype(int).tolist() for bar in axes.collections[-1].get_segments()]
        assert bars == np.transpose(final)[:, ::-1].tolist()
        assert len(axes.texts) == rows * columns
        first += columns
    left = sorted(figure.texts, key=lambda text: -text.get_position()[1])
    names = [text.get_text() for text in left if text.get_ha() == "right"]
    panel = ["position", "token", "embedding", *(f"layer {number}" for number in range(1, 6)), "output"]
    assert names == panel * 4


def test_words_of_a_lens_are_legible_and_in_their_cells(model, seen):
    figure = model.lens(model.decode(seen(50).token_ids)).plot()
    drawn(figure)
    for axes in (axes for axes in figure.axes if axes.texts):
        image, (width, height) = axes.images[0], np.diff(axes.transData.transform([(0, 0), (1, -1)]), axis=0)[0]
        for text, (left, bottom, right, top) in zip(axes.texts, boxes(axes.texts), strict=True):
            column, row = map(int, text.get_position())
            assert contrast(text.get_color(), image.cmap(image.norm(image.get_array()[row, column]))[:3]) >= 4.5
            middle = axes.transData.transform(text.get_position())
            assert middle[0] - width / 2 < left < right < middle[0] + width / 2
            assert middle[1] - height / 2 <= bottom < top <= middle[1] + height / 2


@pytest.mark.parametrize(("count", "wide"), [(1, [1]), (7, [7]), (16, [16]), (17, [9, 8]), (50, [13, 13, 13, 11])])
def test_a_lens_wraps_into_panels(model, seen, count, wide):
    figure = model.lens(model.decode(seen(count).token_ids)).plot()
    assert [axes.images[0].get_array().shape[1] for axes in figure.axes if axes.texts] == wide
    assert_nothing_overlaps_or_is_cut(figure)


def test_panels_of_very_many_positions_are_wider():
    assert [len(span) for span in panels(512)] == [16] * 32
    assert [len(span) for span in panels(1024)] == [32] * 32
    assert [position for span in panels(1001) for position in span] == list(range(1001))


def test_a_lens_of_200_tokens_is_whole(model, seen):
    lens = model.lens(model.decode(seen(200).token_ids))
    figure = lens.plot()
    shown = np.hstack([axes.images[0].get_array() for axes in figure.axes if axes.texts])
    assert np.array_equal(shown, lens.probabilities[..., 0])
    assert_nothing_overlaps_or_is_cut(figure)


def hostile_inspection():
    count = len(HOSTILE)
    return Inspection(
        tokens=tuple(HOSTILE),
        token_ids=tuple(range(count)),
        logits=np.empty((0, count), np.float32),
        hidden_states=np.empty((0, count, 1), np.float32),
        attentions=weights(1, 1, count, count),
        layers=(0,),
        pieces=Names(HOSTILE),
    )


def hostile_lens():
    count = len(HOSTILE)
    ids = np.tile(np.arange(count)[:, None], (2, 1, 1))
    numbers = np.full(ids.shape, 0.5, np.float32)
    tokens = tuple(HOSTILE)
    return Lens(tokens, tuple(range(count)), ids, numbers, ids[0, :, 0], ids[..., 0], numbers[..., 0], Names(HOSTILE))


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
@pytest.mark.parametrize("make", [lambda: hostile_inspection().plot_attention(0, 0), lambda: hostile_lens().plot()])
def test_hostile_tokens_are_drawn_without_a_warning(kind, make):
    """Which would be an error here: of a missing glyph, or of a formula."""
    figure = make()
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind)
    assert buffer.getvalue().startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind])
    assert not any(text.get_parse_math() or text.get_usetex() for text in texts(figure))
    assert all("\n" not in text.get_text() and len(text.get_text()) <= 16 for text in queries(figure))
    assert_nothing_overlaps_or_is_cut(figure)


def saved(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="rgba")
    return buffer.getvalue()


@pytest.mark.parametrize("method", ["attention", "overview", "lens"])
def test_the_users_settings_change_nothing(seen, model, method):
    found, lens = seen(7), model.lens("He said")
    make = {"attention": lambda: found.plot_attention(0, 0), "overview": found.plot_overview, "lens": lens.plot}[method]
    expected = saved(make())
    with matplotlib.rc_context():
        style.use("dark_background")
        matplotlib.rcParams.update(UNUSUAL)
        assert saved(make()) == expected


def test_settings_stay_as_they_are_and_pyplot_away(run_python, bundle):
    code = """
        import sys
        import runtime
        model = runtime.load(sys.argv[1], device="cpu", threads=1, verify=False)
        seen, lens = model.inspect("He said"), model.lens("He said")
        assert "matplotlib" not in sys.modules
        import matplotlib
        before = matplotlib.rcParams.copy()
        for figure in (seen.plot_attention(0, 0), seen.plot_overview(), lens.plot()):
            figure.savefig("picture.png")
        assert dict.__eq__(matplotlib.rcParams, before)  # one that reads the backend would import pyplot
        assert "matplotlib.pyplot" not in sys.modules
        """
    done = run_python("-W", "error", "-c", dedent(code), str(bundle))
    assert (done.returncode, done.stderr) == (0, "")


def test_without_matplotlib_one_line_says_what_to_install(run_python):
    code = """
        import sys
        sys.modules["matplotlib"] = None
        import numpy as np
        from runtime.inside.inspection import Inspection
        empty = np.empty((0, 0), np.float32)
        seen = Inspection(("a",), (0,), empty, empty, np.ones((1, 1, 1, 1), np.float32), (0,), None)
        for plot in (lambda: seen.plot_attention(0, 0), seen.plot_overview):
            try:
                plot()
            except ImportError as error:
                print(error)
        """
    done = run_python("-c", dedent(code))
    assert done.stdout == 'pictures need matplotlib; install it: pip install "gpt2-onnx[plot]"\n' * 2, done.stderr


def test_a_notebook_shows_the_picture_at_its_own_size():
    figure = plots.plot_attention(weights(3, 3), ["a", "b", "c"], 0, 0)
    content, size = figure._repr_png_()
    assert content.startswith(b"\x89PNG")
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))  # of its IHDR
    assert (width / 2, height / 2) == pytest.approx((size["width"], size["height"]), abs=1)
