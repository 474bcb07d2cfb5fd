"""Every session asks for products that are right on any processor, and the corners say whether it gets them."""

import numpy as np
import pytest

import runtime.ort.corners
from runtime.bundle.bundle import open_bundle
from runtime.ort.corners import Corner, corners, inexact_products, judge
from runtime.ort.placement import CPU
from runtime.ort.sessions import make_session

OPTION = "session.x64quantprecision"  # ONNX Runtime's onnxruntime_session_options_config_keys.h
CORNERS = list(corners())


# sessions


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("kind", ["decode", "reference", "lens"])
def test_every_session_asks_for_exact_products_of_bytes(bundle, kind, mapped):
    path = open_bundle(bundle, verify=False).graph_path(kind)
    session = make_session(path, placement=CPU, threads=1, mapped=mapped)
    assert session.get_session_options().get_session_config_entry(OPTION) == "1"


# corners


def test_products_at_the_corners_are_exact_here():
    assert inexact_products() == []


@pytest.mark.parametrize("corner", CORNERS, ids=lambda corner: corner.name)
def test_the_corners_are_as_far_out_as_bytes_go(corner):
    """Of two neighbouring products: beyond 32,767 where inputs are unsigned, and as near to it as signed ones get."""
    products = corner.given[:, None] * corner.weights.T[None]  # [M, N, K], of what the kernel is given
    pairs = products.reshape(*products.shape[:2], -1, 2).sum(-1)
    largest = {"MatMulNBits of 8 bits": 127 * 128, "MatMulNBits of 4 bits": 127 * 8}.get(corner.name, 255 * 128)
    assert np.abs(pairs).max() == 2 * largest


@pytest.mark.parametrize("corner", CORNERS, ids=lambda corner: corner.name)
def test_a_wrong_sum_is_found_and_said(corner):
    weights = corner.weights.copy()
    weights[:, 3] = weights[:, 3] // 2  # as if half of the sum were lost
    said = judge(Corner(*corner[:5], weights, corner.off))
    assert said.startswith(f"{corner.name}: ")
    assert " instead of " in said


def test_what_is_wrong_is_listed(monkeypatch):
    wrong = "4 instead of 8"
    monkeypatch.setattr(runtime.ort.corners, "judge", lambda corner: wrong if "zero 0" in corner.name else None)
    assert inexact_products() == [wrong]
