"""Damage is named in one line before the long work: pointers, NaN, shapes, layers too many, tensors of another kind."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

from export.checkpoint import find_checkpoint
from export.errors import ExportError

POINTER = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1\nsize 12345\n"
)
C_FC = "transformer.h.1.mlp.c_fc.weight"


def change(checkpoint, change):
    path = checkpoint / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def refusal(checkpoint):
    with pytest.raises(ExportError) as refused:
        find_checkpoint(str(checkpoint))
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "tokenizer_config.json"])
def test_a_pointer_of_git_lfs_is_named(checkpoint, name):
    (checkpoint / name).write_text(POINTER)
    assert refusal(checkpoint) == f"checkpoint: {name} is a git-lfs pointer, not the file; fetch it: git lfs pull"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_an_empty_file_is_named(checkpoint, name):
    (checkpoint / name).write_bytes(b"")
    assert refusal(checkpoint) == f"checkpoint: {name} is empty; download the checkpoint again"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("form", ["safetensors", "pickle", "old pickle", "bfloat16"])
def test_numbers_that_are_not_finite_are_found(checkpoint, value, form):
    def damage(tensors):
        tensors[C_FC][3, 5] = tensors[C_FC][0, 0] = value
        if form == "bfloat16":
            tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})

    change(checkpoint, damage)
    path = checkpoint / "model.safetensors"
    if "pickle" in form:
        zipped = form == "pickle"
        torch.save(load_file(path), checkpoint / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        path.unlink()
    assert refusal(checkpoint) == f"checkpoint: {C_FC} holds 2 numbers that are NaN or infinite"


def test_an_old_pickle_is_read(checkpoint, original):
    expected = GPT2LMHeadModel.from_pretrained(original).state_dict()
    torch.save(expected, checkpoint / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (checkpoint / "model.safetensors").unlink()
    loaded = find_checkpoint(str(checkpoint)).load_model().state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_the_layout_of_linear_layers_is_recognized(checkpoint):
    change(checkpoint, lambda tensors: tensors.update({C_FC: tensors[C_FC].T.contiguous()}))
    assert refusal(checkpoint) == (
        f"checkpoint: {C_FC} has shape [128, 32], but its config.json says [32, 128]; "
        "it is transposed, as for nn.Linear, but GPT-2 uses Conv1D"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vocab_size": 9000},
            r"transformer\.wte\.weight has shape \[8192, 32\], but its config.json says \[9000, 32\]",
        ),
        ({"n_positions": 64}, r"transformer\.wpe\.weight has shape \[96, 32\], but its config.json says \[64, 32\]"),
        ({"n_embd": 64}, r"c_attn\.bias has shape \[96\], but its config.json says \[192\]"),
        ({"n_inner": 64}, r"mlp\.c_\w+\.\w+ has shape"),
        ({"n_layer": 2}, r"its weights include transformer\.h\.2\..*, but its config.json has n_layer 2"),
        ({"n_layer": 4}, r"its weights lack 12 tensors, including transformer\.h\.3\.attn\.c_attn\.bias"),
    ],
)
def test_a_config_of_other_sizes_is_named(checkpoint, changes, message):
    path = checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert re.search(message, refusal(checkpoint))


def test_a_kind_of_number_that_is_not_read_is_named(checkpoint):
    change(checkpoint, lambda tensors: tensors.update({C_FC: tensors[C_FC].to(torch.int8)}))
    assert refusal(checkpoint) == f"checkpoint: {C_FC} is int8; readable dtypes are float32, float16, bfloat16, float64"


def test_tensors_of_a_value_head_are_left_out_and_said(checkpoint, original):
    change(checkpoint, lambda tensors: tensors.update({"v_head.summary.weight": torch.ones(1, 32)}))
    found = find_checkpoint(str(checkpoint))
    assert found.notes == ["left out of its weights: 1 tensor, v_head.summary.weight (unknown to GPT-2)"]
    expected = GPT2LMHeadModel.from_pretrained(original).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.load_model().state_dict().items())


def test_a_shard_that_is_missing_is_named(checkpoint, original):
    (checkpoint / "model.safetensors").unlink()
    GPT2LMHeadModel.from_pretrained(original).save_pretrained(checkpoint, max_shard_size="400KB")
    next(checkpoint.glob("model-00002-*")).unlink()
    assert re.search(r"names model-00002-of-\d+\.safetensors, which is missing; download it again", refusal(checkpoint))
