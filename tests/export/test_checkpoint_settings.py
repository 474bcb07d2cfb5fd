"""Settings that the runtime never reads do not stop an export; ids that it would read and that have no row do."""

import json

import pytest
from json_files import edit
from transformers import GenerationConfig, GPT2LMHeadModel

from export.bundle.writer import write_settings
from export.checkpoint import find_checkpoint
from export.errors import ExportError

LEGACY = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "length_penalty": 0.5, "num_return_sequences": 3}


def written(checkpoint, tmp_path):
    """(notes, the bundle's generation config as transformers reads it)."""
    found = find_checkpoint(str(checkpoint))
    (tmp_path / "bundle").mkdir()
    write_settings(found, tmp_path / "bundle")
    GPT2LMHeadModel.config_class.from_pretrained(tmp_path / "bundle")
    return found.notes, GenerationConfig.from_pretrained(tmp_path / "bundle")


def test_sampling_settings_in_a_legacy_config_are_carried(checkpoint, tmp_path):
    (checkpoint / "generation_config.json").unlink()
    edit(checkpoint / "config.json", **LEGACY)
    notes, generation = written(checkpoint, tmp_path)
    assert (generation.temperature, generation.top_p, generation.num_return_sequences) == (0.7, 0.9, 3)
    assert (generation.bos_token_id, generation.eos_token_id) == (0, 0)
    generation.validate(strict=True)
    assert notes == ["left out of its config.json: length_penalty (invalid for transformers)"]


@pytest.mark.parametrize(
    ("fields", "left_out"),
    [
        ({"temperature": 0.7, "top_p": 0.9}, "temperature, top_p"),
        ({"num_return_sequences": 3}, "num_return_sequences"),
        ({"length_penalty": 2.0, "early_stopping": True}, "early_stopping, length_penalty"),
        ({"max_new_tokens": -5, "temperature": "hot"}, "max_new_tokens, temperature"),
        ({"early_stopping": "perhaps", "num_beams": 4}, "early_stopping"),
        ({"pad_token_id": -1}, "pad_token_id"),
        ({"to_json_string": "shadowed"}, "to_json_string"),
    ],
)
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_what_transformers_finds_invalid_is_left_out_and_said(checkpoint, tmp_path, fields, left_out, file):
    if file == "config.json":
        (checkpoint / "generation_config.json").unlink()
        if "to_json_string" in fields:
            pytest.skip("it is no field of both")
    edit(checkpoint / file, **fields)
    notes, generation = written(checkpoint, tmp_path)
    assert f"left out of its {file}: {left_out} (invalid for transformers)" in notes
    assert generation.eos_token_id == 0
    generation.validate(strict=True)


def test_valid_settings_are_carried_whole(checkpoint, tmp_path):
    given = {"do_sample": True, "temperature": 0.7, "top_k": 10, "eos_token_id": [0, 5], "bos_token_id": 3}
    (checkpoint / "generation_config.json").write_text(json.dumps(given))
    notes, generation = written(checkpoint, tmp_path)
    assert notes == []
    assert json.loads((tmp_path / "bundle" / "generation_config.json").read_text()) == given
    assert generation.eos_token_id == [0, 5]


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("value", [8192, -1, "0", 3.5, True, [0, 9000]])
@pytest.mark.parametrize("name", ["bos_token_id", "eos_token_id"])
def test_an_id_without_a_row_is_refused(checkpoint, file, value, name):
    if file == "config.json":
        (checkpoint / "generation_config.json").unlink()
    edit(checkpoint / file, **{name: value})
    got = 9000 if isinstance(value, list) else value
    with pytest.raises(ExportError, match=rf"{name} must be from 0 to 8,191 \(the rows of wte\), got {got!r}"):
        find_checkpoint(str(checkpoint))


def test_the_ids_that_a_small_vocabulary_inherits_are_said(checkpoint):
    (checkpoint / "generation_config.json").unlink()
    edit(checkpoint / "config.json", bos_token_id=50256, eos_token_id=50256, pad_token_id=9000)
    assert find_checkpoint(str(checkpoint)).notes == [
        "its bos_token_id, 50256, has no row in wte (8,192 rows) and is never used",
        "its eos_token_id, 50256, has no row in wte (8,192 rows) and is never used",
        "its pad_token_id, 9000, has no row in wte (8,192 rows) and is never used",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_embd": "32"}, "n_embd"),
        ({"n_layer": None}, "n_layer must be an integer of at least 1, got None"),
        ({"layer_norm_epsilon": "small"}, "layer_norm_epsilon must be a number between 0 and 1, got 'small'"),
        ({"n_inner": -4}, "n_inner must be an integer of at least 1, or null, got -4"),
        ({"activation_function": ["gelu"]}, "activation_function must be one of"),
        ({"architectures": 5}, "architectures must be one of .*, got 5"),
        ({"id2label": 5}, "its config.json cannot be read"),
    ],
)
def test_a_field_of_the_wrong_type_is_one_line(checkpoint, changes, message):
    edit(checkpoint / "config.json", **changes)
    with pytest.raises(ExportError, match=message) as refused:
        find_checkpoint(str(checkpoint))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["{", "[]", "", "\xff"])
def test_a_damaged_file_is_named(checkpoint, name, content):
    (checkpoint / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(ExportError, match=name.replace(".", r"\.")):
        find_checkpoint(str(checkpoint))
