"""Code from a checkpoint never runs, wherever it lies; and a checkpoint reads no file but its own."""

import os
import pickle
import subprocess
import sys

import pytest
import torch
from json_files import edit
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel

from export.checkpoint import find_checkpoint
from export.errors import ExportError
from export.majors import MAJOR

PLANTED = "import os; os.makedirs({marker!r}, exist_ok=True)\n"
LIBRARIES = ("torch", "numpy", "transformers", "tokenizers", "optimum", "onnx", "safetensors", "rich", "peft", "json")
CALLS_OUT = (
    "{{% for x in ().__class__.__base__.__subclasses__() %}}{{% if 'Popen' in x.__name__ %}}"
    "{{{{ x('mkdir -p {marker}', shell=True) }}}}{{% endif %}}{{% endfor %}}"
)


class Touch:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.makedirs, (self.path,)


def plant(checkpoint, markers):
    """Code in every place that transformers, optimum, peft, tokenizers and Python itself look at."""

    def write(name, marker, extra=""):
        path = checkpoint / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(PLANTED.format(marker=str(markers / marker)) + extra)

    write("custom_generate/generate.py", "custom_generate", "def generate(*a, **k): ...\n")
    write("custom_generate/__init__.py", "custom_generate_package")
    for name in ("modeling_gpt2", "configuration_gpt2", "tokenization_gpt2", "generation_gpt2", "processing_gpt2"):
        classes = "class Model: ...\nclass Config: ...\nclass Tokenizer: ...\n"
        write(f"{name}.py", name, classes)
    for library in (*LIBRARIES, "__init__", "conftest", "setup", "sitecustomize", "evil"):
        write(f"{library}.py", f"beside_{library}")
    edit(
        checkpoint / "config.json",
        auto_map={"AutoConfig": "configuration_gpt2.Config", "AutoModelForCausalLM": "modeling_gpt2.Model"},
        custom_pipelines={"text-generation": {"impl": "evil.Pipeline", "pt": ["AutoModelForCausalLM"]}},
        _attn_implementation="somebody/evil-kernels",
        attn_implementation="somebody/evil-kernels",
        to_dict="shadowed",
    )
    edit(
        checkpoint / "generation_config.json",
        auto_map={"AutoConfig": "configuration_gpt2.Config"},
        custom_generate=str(checkpoint),
        validate="shadowed",
    )
    edit(
        checkpoint / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["tokenization_gpt2.Tokenizer", "tokenization_gpt2.Tokenizer"]},
        tokenizer_file="/etc/hostname",
        vocab_file="/etc/hostname",
        chat_template=CALLS_OUT.format(marker=markers / "chat_template"),
    )
    (checkpoint / "chat_template.jinja").write_text(CALLS_OUT.format(marker=markers / "chat_template_file"))
    pickles = ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "vocab.pkl", "vocab.bin", "spiece.pkl")
    for name in (*pickles, "flax_model.msgpack", "tf_model.h5", "model.ckpt.index", "rng_state.pth"):
        (checkpoint / name).write_bytes(pickle.dumps({"wte.weight": Touch(markers / name)}))


@pytest.mark.parametrize("inside", [False, True], ids=["from elsewhere", "from its own folder"])
def test_no_planted_code_runs_in_a_whole_export(checkpoint, tmp_path, inside):
    markers = tmp_path / "markers"
    markers.mkdir()
    plant(checkpoint, markers)
    source, cwd = (".", checkpoint) if inside else (str(checkpoint), tmp_path)
    command = [sys.executable, "-m", "export", source, "--output", str(tmp_path / "bundle")]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "left out of its config.json: auto_map, custom_pipelines (code from a checkpoint never runs)" in done.stderr
    assert sorted(markers.iterdir()) == []
    bundle = tmp_path / "bundle"
    assert not {*bundle.rglob("*.py"), *bundle.rglob("*.bin"), *bundle.rglob("*.pkl")}
    assert all("auto_map" not in path.read_text() for path in bundle.glob("*.json"))
    serve = [sys.executable, "-m", "runtime", "complete", "--model", str(bundle), "It was", "--max-new-tokens", "2"]
    done = subprocess.run(serve, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(markers.iterdir()) == []


def test_the_plants_are_alive(checkpoint, tmp_path):
    """transformers 4 does run custom_generate, and Python what lies beside; else the test above could not fail."""
    markers = tmp_path / "markers"
    markers.mkdir()
    plant(checkpoint, markers)
    for name in ("torch.py", "json.py", "config.json"):
        (checkpoint / name).unlink()
    GPT2LMHeadModel.from_pretrained(checkpoint, config=find_config())
    subprocess.run([sys.executable, "-c", "import evil"], cwd=checkpoint, check=True, timeout=60)
    alive = {"custom_generate", "beside_evil"} if MAJOR < 5 else {"beside_evil"}
    assert alive <= {path.name for path in markers.iterdir()}


def find_config():
    from transformers import GPT2Config

    return GPT2Config(vocab_size=8192, n_positions=96, n_embd=32, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(checkpoint, shards, protocol):
    (checkpoint / "model.safetensors").unlink()
    name = "pytorch_model-00001-of-00001.bin" if shards else "pytorch_model.bin"
    (checkpoint / name).write_bytes(
        pickle.dumps({"transformer.wte.weight": Touch(checkpoint / "ran")}, protocol=protocol)
    )
    if shards:
        edit(checkpoint / "pytorch_model.bin.index.json", weight_map={"transformer.wte.weight": name})
    with pytest.raises(ExportError, match="its weights cannot be loaded"):
        find_checkpoint(str(checkpoint))
    assert not (checkpoint / "ran").exists()


def test_a_zipped_pickle_that_runs_code_is_refused_too(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": Touch(checkpoint / "ran")}, checkpoint / "pytorch_model.bin")
    with pytest.raises(ExportError, match="its weights cannot be loaded"):
        find_checkpoint(str(checkpoint))
    assert not (checkpoint / "ran").exists()


@pytest.mark.parametrize(
    "form", ["../elsewhere.safetensors", "{absolute}", "sub/../../elsewhere.safetensors", "..\\x.safetensors"]
)
def test_a_shard_elsewhere_is_refused_though_it_is_there(checkpoint, form):
    elsewhere = checkpoint.parent / "elsewhere.safetensors"
    (checkpoint / "model.safetensors").rename(elsewhere)
    (checkpoint / "sub").mkdir()
    shard = form.format(absolute=elsewhere)
    edit(checkpoint / "model.safetensors.index.json", weight_map=dict.fromkeys(load_file(elsewhere), shard))
    with pytest.raises(ExportError, match="must be the name of a file in the checkpoint's own folder"):
        find_checkpoint(str(checkpoint))


def test_a_safetensors_index_names_no_pickles(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "evil.bin").write_bytes(pickle.dumps(Touch(checkpoint / "ran")))
    edit(checkpoint / "model.safetensors.index.json", weight_map={"transformer.wte.weight": "evil.bin"})
    with pytest.raises(ExportError, match=r"names 'evil\.bin', which is not a \.safetensors file"):
        find_checkpoint(str(checkpoint))
    assert not (checkpoint / "ran").exists()


def test_only_files_known_by_name_are_staged(checkpoint, tmp_path):
    (tmp_path / "markers").mkdir()
    plant(checkpoint, tmp_path / "markers")
    found = find_checkpoint(str(checkpoint))
    staged = {path.name for path in found.folder.iterdir()}
    known = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert staged <= known | {"vocab.json", "merges.txt", "chat_template.jinja"}


def test_the_staging_folder_goes_with_its_last_holder(original):
    found = find_checkpoint(str(original))
    folder = found.folder
    assert folder.is_dir()
    del found
    assert not folder.exists()
    assert (original / "model.safetensors").exists()  # links go, not what they lead to


def test_what_lies_in_the_current_folder_is_not_imported_by_the_runtime(tmp_path):
    (tmp_path / "numpy.py").write_text(PLANTED.format(marker=str(tmp_path / "ran")))
    done = subprocess.run([sys.executable, "-m", "runtime", "--version"], cwd=tmp_path, check=False, timeout=60)
    assert done.returncode == 0
    assert not (tmp_path / "ran").exists()
