"""The end of a decode graph, run by ONNX Runtime: its ids are those of all logits, shortlist or not."""

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from export.graphs.head import add_head
from export.graphs.linear import FloatLinear
from export.graphs.nodes import MICROSOFT, Nodes
from export.graphs.shortlist import CANDIDATES, certain_share, make_shortlist
from export.weights import external_tensor, write_quantized

VOCABULARY, WIDTH = 700, 96
OUTPUTS = ("next_token", "tied", "logits")
WATCHED = ("shortlist.upper/output", "doubts/output")


class Head:
    """A graph of nothing but the head."""

    def __init__(self, folder, weights, inputs=None):
        self.weights = weights
        nodes, stored = Nodes(), {}
        shortlist = None if inputs is None else make_shortlist(torch.from_numpy(weights), torch.from_numpy(inputs))
        if shortlist:
            stored = write_quantized(shortlist.weights(), folder / "shortlist.onnx_data")
        add_head(nodes, FloatLinear(), "hidden", "weight", shortlist)
        self.outputs = OUTPUTS + (WATCHED if shortlist else ())
        given = [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [None, weights.shape[1]])]
        given += [
            helper.make_tensor_value_info(f"{kind}_indices", TensorProto.INT64, [None]) for kind in ("logits", "token")
        ]
        graph = helper.make_graph(
            nodes.nodes,
            "head",
            given,
            [helper.make_empty_tensor_value_info(name) for name in self.outputs],
            [
                numpy_helper.from_array(weights, "weight"),
                *nodes.constants.values(),
                *(external_tensor(name, place) for name, place in stored.items() if used(nodes, name)),
            ],
        )
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)]
        path = folder / "head.onnx"
        path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(self, hidden, logits_indices, token_indices):
        indices = {"logits_indices": logits_indices, "token_indices": token_indices}
        feeds = {"hidden": hidden, **{name: np.array(given, np.int64) for name, given in indices.items()}}
        return dict(zip(self.outputs, self.session.run(list(self.outputs), feeds), strict=True))

    def tokens(self, hidden):
        return self.run(hidden, [], range(len(hidden)))

    def logits(self, hidden):
        """In float64."""
        return hidden.astype(np.float64) @ self.weights.astype(np.float64).T


def used(nodes, name):
    return any(name in node.input for node in nodes.nodes)


def gaussian(seed, rows, width=WIDTH):
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def outlying(seed, rows):
    """As in trained checkpoints: a column that all rows have large, and some heavy tails."""
    array = gaussian(seed, rows) * np.random.default_rng(seed + 1).gamma(0.5, 2.0, (rows, 1)).astype(np.float32)
    array[:, 5] += 40
    return array


@pytest.fixture(scope="module")
def make_head(tmp_path_factory):
    return lambda *args: Head(tmp_path_factory.mktemp("head"), *args)


@pytest.fixture(scope="module", params=["gaussian", "outliers", "a word twice", "all words alike", "narrow"])
def head(request, make_head):
    weights, inputs = gaussian(1, VOCABULARY), gaussian(2, 64)
    if request.param == "outliers":
        weights, inputs = outlying(1, VOCABULARY), outlying(2, 64)
    if request.param == "a word twice":
        weights[1::2] = weights[::2]
    if request.param == "all words alike":
        weights[:] = weights[0]
    if request.param == "narrow":
        weights, inputs = gaussian(1, CANDIDATES, 16), gaussian(2, 64, 16)
    return make_head(weights, inputs)


def kinds_of_input(width):
    """Such as the shortlist was made for, and such as nobody foresaw."""
    usual = gaussian(3, 40, width)
    return {
        "usual": usual,
        "large": usual * 1e4,
        "small": usual * 1e-4,
        "one large": np.where(np.arange(width) == 7, usual * 1000, usual),
        "one alone": np.where(np.arange(width) == 7, usual, 0),
        "nothing": np.zeros_like(usual),
    }


@pytest.mark.parametrize("kind", kinds_of_input(WIDTH))
def test_the_most_likely_id_is_that_of_all_logits(head, kind):
    hidden = kinds_of_input(head.weights.shape[1])[kind].astype(np.float32)
    found = head.tokens(hidden)
    asked = head.run(hidden, range(len(hidden)), [])
    assert found["next_token"].tolist() == asked["next_token"].tolist()
    assert found["tied"].tolist() == asked["tied"].tolist()
    assert asked["next_token"][:, 0].tolist() == asked["logits"].argmax(axis=1).tolist()
    assert found["logits"].shape == (0, len(head.weights))
    truth = head.logits(hidden)
    np.testing.assert_allclose(asked["logits"], truth, rtol=1e-5, atol=1e-5 * np.abs(truth).max())


@pytest.mark.parametrize("kind", kinds_of_input(WIDTH))
def test_no_logit_is_above_its_bound(head, kind):
    hidden = kinds_of_input(head.weights.shape[1])[kind].astype(np.float32)
    upper = head.tokens(hidden)["shortlist.upper/output"]
    centred = head.logits(hidden) - (hidden.astype(np.float64) @ head.weights.mean(axis=0, dtype=np.float64))[:, None]
    noise = 2**-16 * np.linalg.norm(hidden, axis=1) * np.linalg.norm(head.weights, axis=1).max()
    assert (centred <= upper + noise[:, None]).all()


def test_what_is_tied_is_found_and_looked_up_in_all_logits(make_head):
    weights = gaussian(1, VOCABULARY)
    weights[300] = weights[20]
    weights[301] = weights[21] * (1 + 1e-6)
    head = make_head(weights, gaussian(2, 64))
    hidden = np.stack([weights[20], weights[21], weights[22]]) / 10
    found = head.tokens(hidden)
    assert found["next_token"][0, 0] == 20
    assert found["tied"][:, 0].tolist() == [True, True, False]
    assert found["doubts/output"][:, 0].tolist() == [0, 1]


def test_where_words_differ_nothing_is_in_doubt(make_head):
    """Else every token would cost both products, and the tests here would prove nothing of the shortlist."""
    weights = gaussian(1, VOCABULARY)
    head = make_head(weights, gaussian(2, 64))
    hidden = weights[:200] + 0.3 * gaussian(4, 200)
    assert head.tokens(hidden)["next_token"][:, 0].tolist() == list(range(200))
    assert len(head.tokens(hidden)["doubts/output"]) == 0


def test_the_bounds_are_the_norms_of_what_is_left_out_and_of_what_is_kept():
    weights, inputs = outlying(1, VOCABULARY), outlying(2, 64)
    shortlist = make_shortlist(torch.from_numpy(weights), torch.from_numpy(inputs))
    typical = np.sqrt((inputs.astype(np.float64) ** 2).mean(axis=0))
    np.testing.assert_allclose(shortlist.scaling, 1 / typical, rtol=1e-6)
    centred = (weights - weights.mean(axis=0, dtype=np.float64)) * typical
    kept = shortlist.matrix.dequantized().double().numpy()
    expected = [np.linalg.norm(rows, axis=1) for rows in (centred - kept, kept)]
    np.testing.assert_allclose(shortlist.bounds, expected, rtol=1e-3)
    assert (expected[0] < 0.02 * expected[1]).all()
    assert shortlist.longest == pytest.approx(np.linalg.norm(weights, axis=1).max())


@pytest.mark.parametrize("difference", [1e-1, 1e-2, 1e-3, 1e-4])
def test_the_best_of_hundreds_that_the_codes_can_hardly_tell_apart(make_head, difference):
    weights = gaussian(1, VOCABULARY)
    weights[100:500] = weights[100] + difference * gaussian(5, 400)
    head, hidden = make_head(weights, gaussian(2, 64)), weights[100] + gaussian(6, 50) / 10
    found = head.tokens(hidden)
    assert found["next_token"][:, 0].tolist() == head.run(hidden, range(50), [])["logits"].argmax(axis=1).tolist()
    assert set(found["next_token"][:, 0]) <= set(range(100, 500))
    if difference < 1e-1:
        assert len(found["doubts/output"]) > 40


@pytest.mark.parametrize("make", [gaussian, outlying])
def test_the_part_in_doubt_is_as_export_reckons(make_head, make):
    weights, inputs = make(1, VOCABULARY), make(2, 64)
    head, hidden = make_head(weights, inputs), make(3, 400)
    shortlist = make_shortlist(torch.from_numpy(weights), torch.from_numpy(inputs))
    doubts = len(head.tokens(hidden)["doubts/output"])
    reckoned = 400 * (1 - certain_share(shortlist, torch.from_numpy(weights), torch.from_numpy(hidden)))
    assert abs(doubts - reckoned) <= 8


@pytest.mark.parametrize("shortlisted", [True, False])
@given(
    logits=st.lists(st.integers(0, 9), max_size=6), tokens=st.lists(st.integers(0, 9), max_size=6), seed=st.integers(0)
)
@settings(deadline=None, database=None, max_examples=60)
def test_any_places_in_any_order(two_heads, shortlisted, logits, tokens, seed):
    head = two_heads[shortlisted]
    hidden = gaussian(seed % 1000, 10)
    hidden[3:5] = 0  # all ids tied, and in doubt
    found, truth = head.run(hidden, logits, tokens), head.logits(hidden)
    expected = [0 if place in (3, 4) else int(truth[place].argmax()) for place in (*logits, *tokens)]
    assert found["next_token"][:, 0].tolist() == expected
    assert found["tied"][:, 0].tolist() == [place in (3, 4) for place in (*logits, *tokens)]
    assert found["logits"].shape == (len(logits), VOCABULARY)
    np.testing.assert_allclose(found["logits"], truth[logits].reshape(-1, VOCABULARY), rtol=1e-5, atol=1e-4)


@pytest.fixture(scope="module")
def two_heads(make_head):
    weights = gaussian(1, VOCABULARY)
    return make_head(weights), make_head(weights, gaussian(2, 64))


@pytest.mark.parametrize(
    ("pairs", "tied"),
    [
        ([1.0, 2.0, 3.0], False),
        ([3.0, 2.0, 3.0], True),
        ([-100.0, -100.001, -200.0], True),  # a thousandth is nothing where logits are that large
        ([-0.1, -0.101, -0.2], False),
        ([0.0, 0.0], True),
    ],
)
def test_a_tie_is_what_rounding_could_turn_round(make_head, pairs, tied):
    head = make_head(np.array(pairs, np.float32)[:, None])
    assert head.tokens(np.ones((1, 1), np.float32))["tied"].tolist() == [[tied]]
