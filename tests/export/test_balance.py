"""Balancing changes nothing of what a block computes, and makes its channels alike."""

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from export.majors import run_block
from export.quantization.balance import balance
from export.quantization.inputs import measure_inputs

WIDTH = 32
CHANNELS = {"ln_1": "attn.c_attn", "ln_2": "mlp.c_fc"}  # of GPT-2: a norm, and what reads it


@pytest.fixture
def block():
    """Of a GPT-2 in float64, every parameter different, two channels far larger than the others."""
    torch.manual_seed(3)
    config = GPT2Config(n_embd=WIDTH, n_head=4, n_layer=1, vocab_size=50, attn_implementation="eager")
    model = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for norm in CHANNELS:
            model.transformer.h[0].get_parameter(f"{norm}.weight")[[5, 17]] *= 60
    return model.transformer.h[0]


@pytest.fixture
def texts():
    """Hidden states [B, S, C] of two runs, the second larger."""
    draw = torch.Generator().manual_seed(4)
    return [size * torch.randn(2, 9, WIDTH, dtype=torch.float64, generator=draw) for size in (1, 3)]


@torch.no_grad()
def outputs(block, texts):
    return torch.cat([run_block(block, text) for text in texts])


@torch.no_grad()
def largest_inputs(block, texts):
    """The largest absolute value [C] of each channel that each matrix after a norm is given."""
    seen = {linear: [] for linear in CHANNELS.values()}
    handles = [
        block.get_submodule(linear).register_forward_pre_hook(lambda _, given, rows=rows: rows.append(given[0]))
        for linear, rows in seen.items()
    ]
    outputs(block, texts)
    for handle in handles:
        handle.remove()
    return {linear: torch.cat(rows).abs().amax(dim=(0, 1)) for linear, rows in seen.items()}


def spread(sizes):
    return (sizes.max() / sizes.min()).item()


@pytest.fixture
def balanced(block, texts):
    other = copy.deepcopy(block)
    with torch.no_grad():
        balance(other, measure_inputs(other, texts))
    return other


def test_a_block_computes_what_it_computed(block, balanced, texts):
    fresh = [torch.randn(1, 5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(9))]
    for given in (texts, fresh):
        before, after = outputs(block, given), outputs(balanced, given)
        assert torch.linalg.norm(after - before) < 1e-10 * torch.linalg.norm(before)


@pytest.mark.parametrize(("norm", "linear"), CHANNELS.items())
def test_channels_become_alike(block, balanced, texts, norm, linear):
    before, after = (largest_inputs(each, texts)[linear] for each in (block, balanced))
    assert spread(after) < spread(before) / 4
    assert not torch.equal(block.get_parameter(f"{norm}.weight"), balanced.get_parameter(f"{norm}.weight"))


@pytest.mark.parametrize("linear", CHANNELS.values())
def test_inputs_and_weights_of_a_channel_meet_at_their_geometric_mean(block, balanced, texts, linear):
    """SmoothQuant's s_j = max|X_j|^0.5 / max|W_j|^0.5 makes X_j / s_j and W_j * s_j equally large."""
    weights = {each: each.get_parameter(f"{linear}.weight").abs().amax(dim=1) for each in (block, balanced)}
    mean = (largest_inputs(block, texts)[linear] * weights[block]).sqrt()
    torch.testing.assert_close(largest_inputs(balanced, texts)[linear], mean)
    torch.testing.assert_close(weights[balanced], mean)


def test_only_norms_and_what_reads_them_are_changed(block, balanced):
    changed = {
        name for name, parameter in block.named_parameters() if not torch.equal(parameter, balanced.get_parameter(name))
    }
    norms = {f"{norm}.{part}" for norm in CHANNELS for part in ("weight", "bias")}
    assert changed == norms | {f"{linear}.weight" for linear in CHANNELS.values()}


@torch.no_grad()
def test_a_channel_that_gives_nothing_and_one_that_nobody_reads_do_no_harm(block, texts):
    for norm, linear in CHANNELS.items():
        block.get_parameter(f"{norm}.weight")[3] = block.get_parameter(f"{norm}.bias")[3] = 0
        block.get_parameter(f"{linear}.weight")[7] = 0
    before = outputs(block, texts)
    balance(block, measure_inputs(block, texts))
    assert all(torch.isfinite(parameter).all() for parameter in block.parameters())
    assert torch.linalg.norm(outputs(block, texts) - before) < 1e-10 * torch.linalg.norm(before)


@torch.no_grad()
def test_the_inputs_that_it_returns_are_those_of_the_balanced_block(block, texts):
    found = balance(block, measure_inputs(block, texts))
    for name, measured in measure_inputs(block, texts).items():
        torch.testing.assert_close(found[name].gram, measured.gram)
        torch.testing.assert_close(found[name].largest, measured.largest)
