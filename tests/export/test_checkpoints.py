"""Every way a GPT-2 is stored is read; what is no GPT-2, or more than one, is refused by name."""

import json
import shutil

import pytest
import torch
from transformers import GPT2LMHeadModel, GPT2Model, GPT2TokenizerFast

from export.checkpoint import find_checkpoint
from export.errors import ExportError


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def assert_same_weights(folder, original):
    expected = GPT2LMHeadModel.from_pretrained(original).state_dict()
    loaded = find_checkpoint(str(folder)).load_model().state_dict()
    assert loaded.keys() == expected.keys()
    assert all(loaded[name].dtype == torch.float32 and torch.equal(loaded[name], expected[name]) for name in expected)


def test_a_folder_is_known_by_its_name(original):
    found = find_checkpoint(str(original))
    assert (found.id, found.revision, found.staging.source) == ("gpt2-tiny", "", original)


def test_safetensors_are_read(original):
    assert_same_weights(original, original)


def test_shards_are_read(checkpoint, original):
    (checkpoint / "model.safetensors").unlink()
    GPT2LMHeadModel.from_pretrained(original).save_pretrained(checkpoint, max_shard_size="400KB")
    assert len(list(checkpoint.glob("model-*.safetensors"))) > 1
    assert_same_weights(checkpoint, original)


def test_a_pickle_of_weights_alone_is_read(checkpoint, original):
    (checkpoint / "model.safetensors").unlink()
    torch.save(GPT2LMHeadModel.from_pretrained(original).state_dict(), checkpoint / "pytorch_model.bin")
    assert_same_weights(checkpoint, original)


def test_names_without_the_prefix_transformer_are_read_as_the_released_gpt2_has_them(checkpoint, original):
    (checkpoint / "model.safetensors").unlink()
    GPT2Model.from_pretrained(original).save_pretrained(checkpoint)
    assert_same_weights(checkpoint, original)


def test_half_precision_becomes_float32(checkpoint, original):
    model = GPT2LMHeadModel.from_pretrained(original, dtype=torch.bfloat16)
    model.save_pretrained(checkpoint)
    loaded = find_checkpoint(str(checkpoint)).load_model()
    assert loaded.transformer.wte.weight.dtype == torch.float32
    assert torch.equal(loaded.transformer.wte.weight, model.transformer.wte.weight.float())


def test_a_weight_that_is_missing_is_named(checkpoint, original):
    model = GPT2LMHeadModel.from_pretrained(original)
    weights = model.state_dict()
    del weights["transformer.h.1.mlp.c_fc.weight"]
    model.save_pretrained(checkpoint, state_dict=weights)
    with pytest.raises(ExportError, match=r"lack 1 tensor, transformer\.h\.1\.mlp\.c_fc\.weight"):
        find_checkpoint(str(checkpoint)).load_model()


def test_a_truncated_weights_file_is_refused(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ExportError, match="its weights cannot be loaded"):
        find_checkpoint(str(checkpoint)).load_model()


def test_a_tokenizer_larger_than_wte_is_refused(checkpoint):
    tokenizer = GPT2TokenizerFast.from_pretrained(checkpoint)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(checkpoint)
    with pytest.raises(ExportError, match=r"tokenizer has the id 8,192 \('<extra>'\), but wte has only 8,192 rows"):
        find_checkpoint(str(checkpoint)).load_tokenizer()


def test_a_missing_tokenizer_is_refused(checkpoint):
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (checkpoint / name).unlink(missing_ok=True)
    with pytest.raises(ExportError, match="its tokenizer cannot be loaded"):
        find_checkpoint(str(checkpoint)).load_tokenizer()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type must be 'gpt2', got 'llama'"),
        ({"model_type": None}, "model_type must be 'gpt2', got None"),
        ({"architectures": ["GPT2ForSequenceClassification"]}, "architectures must be one of .*, got GPT2ForSequence"),
        ({"activation_function": "mish"}, "activation_function must be one of gelu_new, .*, got 'mish'"),
        ({"add_cross_attention": True}, "add_cross_attention is not supported, got True"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads is not supported, got {'0': \\[1\\]}"),
        ({"n_layer": 0}, "n_layer must be an integer of at least 1, got 0"),
        ({"n_layer": 10**5}, "n_layer must be at most 4,096, got 100000"),
        ({"n_layer": 4000}, "its config.json makes .* parameters, far more than .* bytes can hold"),
        ({"num_labels": 10**7}, "num_labels must be at most 10,000, got 10000000"),
        ({"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon must be a number between 0 and 1, got '1e-5'"),
        ({"architectures": 5}, "architectures must be one of .*, got 5"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is not supported"),
        ({"n_head": 8}, "n_embd / n_head must be a multiple of 8, got 32 / 8"),
        ({"n_head": 5}, "n_embd / n_head must be a multiple of 8, got 32 / 5"),
    ],
)
def test_a_setting_that_is_not_honoured_is_refused_by_name(checkpoint, changes, message):
    edit_config(checkpoint, **changes)
    with pytest.raises(ExportError, match=message):
        find_checkpoint(str(checkpoint))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./no/such/folder", "no folder at ./no/such/folder, and it is not a Hub id"),
        ("/no/such/folder", "no folder at /no/such/folder, and it is not a Hub id"),
        ("nobody/no-such-model", "nobody/no-such-model is not in the local cache and the Hub cannot be reached"),
    ],
)
def test_what_is_nowhere_is_said_so(name, message):
    with pytest.raises(ExportError, match=message):
        find_checkpoint(name)


def test_a_hub_id_is_found_in_the_cache(original, tmp_path, monkeypatch):
    commit = "1234567890123456789012345678901234567890"
    snapshot = tmp_path / "models--somebody--gpt2-tuned" / "snapshots" / commit
    shutil.copytree(original, snapshot)
    (tmp_path / "models--somebody--gpt2-tuned" / "refs").mkdir()
    (tmp_path / "models--somebody--gpt2-tuned" / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    found = find_checkpoint("somebody/gpt2-tuned")
    assert (found.id, found.revision, found.staging.source) == ("somebody/gpt2-tuned", commit, snapshot)


def test_a_revision_needs_a_hub_id(original):
    with pytest.raises(ExportError, match="revision v2 needs a Hub id"):
        find_checkpoint(str(original), revision="v2")


def test_a_folder_without_config_or_weights_is_refused(checkpoint, tmp_path):
    with pytest.raises(ExportError, match=r"it has no config\.json"):
        find_checkpoint(str(tmp_path))
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ExportError, match=r"no model\.safetensors or pytorch_model\.bin"):
        find_checkpoint(str(checkpoint))
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(ExportError, match="is not JSON"):
        find_checkpoint(str(checkpoint))
