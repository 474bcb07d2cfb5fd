"""An adapter becomes part of the weights: what comes out is what peft computes with the adapter beside its base."""

import hashlib
import json
import pickle
import shutil
import sys

import peft
import pytest
import torch
from transformers import GPT2LMHeadModel, GPT2TokenizerFast

import runtime
from export.checkpoint import find_checkpoint
from export.errors import ExportError
from export.pipeline import export_bundle

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # peft's, of what it derives from a Conv1D

ALL = ["c_attn", "c_proj", "c_fc"]
KINDS = {
    "lora": peft.LoraConfig(r=4, target_modules=ALL, fan_in_fan_out=True, task_type="CAUSAL_LM"),
    "dora, rank-stabilized": peft.LoraConfig(
        r=4, target_modules=ALL, fan_in_fan_out=True, use_dora=True, use_rslora=True
    ),
    "pissa": peft.LoraConfig(r=4, target_modules=ALL, fan_in_fan_out=True, init_lora_weights="pissa"),
    "of the tied wte": peft.LoraConfig(r=4, target_modules=["wte", "c_attn"], fan_in_fan_out=True),
    "of the tied lm_head": peft.LoraConfig(r=4, target_modules=["lm_head", "c_attn"]),
    "with a head of its own": peft.LoraConfig(r=4, target_modules=["c_attn"], modules_to_save=["lm_head", "ln_f"]),
    "adalora": peft.AdaLoraConfig(total_step=10, target_modules=ALL, fan_in_fan_out=True),
    "ia3": peft.IA3Config(target_modules=ALL, feedforward_modules=["c_fc"], fan_in_fan_out=True),
    "vera": peft.VeraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True),
    "fourierft": peft.FourierFTConfig(n_frequency=50, target_modules=ALL, fan_in_fan_out=True),
    "layer norms": peft.LNTuningConfig(target_modules=["ln_1", "ln_f"]),
}
PROMPT = "The old house stood"


@pytest.fixture(scope="module")
def base(tmp_path_factory, seeded_checkpoint):
    return seeded_checkpoint(tmp_path_factory.mktemp("adapters") / "base")


def train(base, config):
    """peft's model of the base and an adapter that does something."""
    torch.manual_seed(1)
    model = peft.get_peft_model(GPT2LMHeadModel.from_pretrained(base, attn_implementation="eager"), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def lora(base, tmp_path_factory):
    """(peft's model, the folder of its adapter)."""
    folder = tmp_path_factory.mktemp("adapters") / "lora"
    model = train(base, KINDS["lora"])
    model.save_pretrained(folder)
    return model, folder


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_weights_compute_what_the_adapter_does(base, tmp_path, kind):
    model = train(base, KINDS[kind])
    model.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(20, 40)[None]
    expected, plain = model(ids).logits, GPT2LMHeadModel.from_pretrained(base)(ids).logits
    merged = find_checkpoint(str(base), adapter=str(tmp_path / "adapter")).load_model()
    error = (merged(ids).logits - expected).norm() / expected.norm()
    assert error < 2e-6  # float32 sums of another order
    assert (plain - expected).norm() / expected.norm() > 1e-3


@torch.no_grad()
def continue_greedily(model, base, count):
    """Ids by peft's model, the whole text read again for each."""
    ids = GPT2TokenizerFast.from_pretrained(base)(PROMPT, return_tensors="pt").input_ids
    start = ids.shape[1]
    for _ in range(count):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, start:].tolist()


def test_a_bundle_with_an_adapter_says_peft_s_tokens_and_both_hashes(base, lora, tmp_path):
    model, folder = lora
    report = export_bundle(str(base), tmp_path / "bundle", adapter=str(folder))
    assert report.passed
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    weights = hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest()
    files = (folder / "adapter_config.json").read_bytes() + (folder / "adapter_model.safetensors").read_bytes()
    assert manifest["source"] == {"id": "base", "revision": "", "weights_sha256": weights}
    assert manifest["adapter"] == {
        "id": "lora",
        "revision": "",
        "weights_sha256": hashlib.sha256(files).hexdigest(),
    }
    assert "with the adapter lora merged" in (tmp_path / "bundle" / "README.md").read_text()
    found = runtime.load(tmp_path / "bundle").complete(PROMPT, max_new_tokens=24, ignore_eos=True)
    assert list(found.token_ids) == continue_greedily(model, base, 24)


def test_an_adapter_beside_the_weights_is_merged_unasked(base, lora, tmp_path):
    folder = shutil.copytree(base, tmp_path / "both")
    shutil.copytree(lora[1], folder, dirs_exist_ok=True)
    found = find_checkpoint(str(folder))
    assert found.adapter is not None
    assert found.notes == ["LORA, r 4 of both merged into both"]


def test_a_folder_with_an_adapter_alone_finds_its_base(base, lora, tmp_path):
    folder = shutil.copytree(lora[1], tmp_path / "alone")
    edit(folder / "adapter_config.json", base_model_name_or_path=str(base))
    found = find_checkpoint(str(folder))
    assert (found.id, found.notes) == ("base", ["LORA, r 4 of alone merged into base"])
    edit(folder / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(ExportError, match=r"names no base; name it: python -m export BASE --adapter \S*alone --out"):
        find_checkpoint(str(folder))
    edit(folder / "adapter_config.json", base_model_name_or_path="/no/such/base")
    with pytest.raises(ExportError, match=r"no folder at /no/such/base"):
        find_checkpoint(str(folder))


def test_one_adapter_at_a_time(base, lora, tmp_path):
    folder = shutil.copytree(base, tmp_path / "both")
    shutil.copytree(lora[1], folder, dirs_exist_ok=True)
    with pytest.raises(ExportError, match=r"has an adapter of its own, and .* would be a second one"):
        find_checkpoint(str(folder), adapter=str(lora[1]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "peft_type must be one of LORA, .*, got 'PROMPT_TUNING'"),
        ({"peft_type": "XLORA"}, "peft_type must be one of LORA, .*, got 'XLORA'"),
        ({"peft_type": ["LORA"]}, "peft_type must be one of"),
        ({"task_type": "SEQ_CLS"}, "task_type must be CAUSAL_LM, got 'SEQ_CLS'"),
        ({"init_lora_weights": "corda"}, "init_lora_weights must be one of .*, got 'corda'"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is not supported"),
        ({"megatron_config": {"x": 1}, "megatron_core": "evil"}, "megatron_config is not supported"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens is not supported"),
        ({"target_modules": ["no_such_module"]}, "cannot be merged: Target modules"),
        ({"r": 8}, "cannot be merged: "),
        ({"r": "many"}, "cannot be merged: "),
        ({"no_such_field": 1}, "cannot be merged: .*no_such_field"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(base, lora, tmp_path, changes, message):
    folder = shutil.copytree(lora[1], tmp_path / "adapter")
    edit(folder / "adapter_config.json", **changes)
    with pytest.raises(ExportError, match=message) as refused:
        find_checkpoint(str(base), adapter=str(folder)).load_model()
    assert "\n" not in str(refused.value)


def test_tensors_without_a_place_are_named(base, lora, tmp_path):
    folder = shutil.copytree(lora[1], tmp_path / "adapter")
    edit(folder / "adapter_config.json", target_modules=["c_attn"])
    with pytest.raises(ExportError, match=r"no place for \d+ tensors, including .*lora_A"):
        find_checkpoint(str(base), adapter=str(folder)).load_model()
    edit(folder / "adapter_config.json", target_modules=[*ALL, "wpe"])
    with pytest.raises(ExportError, match=r"it lacks \d+ tensors, .*wpe"):
        find_checkpoint(str(base), adapter=str(folder)).load_model()


def test_a_pickled_adapter_runs_no_code(base, lora, tmp_path):
    class Touch:
        def __reduce__(self):
            import os

            return os.makedirs, (str(tmp_path / "ran"),)

    folder = shutil.copytree(lora[1], tmp_path / "adapter")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"x": Touch()}))
    with pytest.raises(ExportError, match="its weights cannot be loaded"):
        find_checkpoint(str(base), adapter=str(folder))
    assert not (tmp_path / "ran").exists()


def test_a_module_that_it_names_is_not_imported(base, lora, tmp_path, monkeypatch):
    folder = shutil.copytree(lora[1], tmp_path / "adapter")
    (tmp_path / "evil.py").write_text(f"import os; os.makedirs({str(tmp_path / 'ran')!r})\nclass Base: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    edit(
        folder / "adapter_config.json",
        auto_mapping={"parent_library": "evil", "base_model_class": "Base"},
        megatron_core="evil",
    )
    find_checkpoint(str(base), adapter=str(folder)).load_model()
    assert not (tmp_path / "ran").exists()


def test_without_peft_the_command_that_installs_it_is_named(base, lora, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        ExportError, match=r'merging an adapter needs peft; install it: pip install "gpt2-onnx\[adapter5?\]"'
    ):
        find_checkpoint(str(base), adapter=str(lora[1]))


def test_a_folder_without_an_adapter_is_refused(base):
    with pytest.raises(ExportError, match=r"is not an adapter: it has no adapter_config\.json"):
        find_checkpoint(str(base), adapter=str(base))
