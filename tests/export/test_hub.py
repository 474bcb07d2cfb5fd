"""What is fetched from a Hub id: all that the tokenizer's class needs, weights once, and nothing else.

The Hub is a server on the loopback address that answers as the Hub does; each case runs in a process of its own.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import peft
import pytest
import torch
from transformers import BertTokenizerFast, GPT2LMHeadModel

COMMIT = "1234567890123456789012345678901234567890"
LOAD = """
import json, sys
from export.checkpoint import find_checkpoint
found = find_checkpoint(sys.argv[1])
ids = found.load_tokenizer()(sys.argv[2]).input_ids
found.load_model()
adapter = found.adapter and [found.adapter.id, found.adapter.revision]
print(json.dumps([found.id, found.revision, ids, adapter, found.notes]))
"""


class Hub(BaseHTTPRequestHandler):
    """Models by id, each a folder; what is asked for is noted."""

    models: ClassVar[dict] = {}
    asked: ClassVar[list] = []

    def do_GET(self):
        path = self.path.partition("?")[0].strip("/")
        for name, folder in self.models.items():
            if path in (
                f"api/models/{name}",
                f"api/models/{name}/revision/main",
                f"api/models/{name}/revision/{COMMIT}",
            ):
                files = [
                    {"rfilename": file.relative_to(folder).as_posix()} for file in folder.rglob("*") if file.is_file()
                ]
                return self.answer(json.dumps({"id": name, "sha": COMMIT, "siblings": files}).encode())
            if path == f"api/models/{name}/tree/{COMMIT}":  # as huggingface-hub asks from 2.0 on
                files = [file for file in folder.rglob("*") if file.is_file()]
                content = [
                    {
                        "type": "file",
                        "path": file.relative_to(folder).as_posix(),
                        "size": file.stat().st_size,
                        "oid": "0",
                    }
                    for file in files
                ]
                return self.answer(json.dumps(content).encode())
            for revision in ("main", COMMIT):
                file = folder / path.removeprefix(f"{name}/resolve/{revision}/")
                if path.startswith(f"{name}/resolve/{revision}/") and file.is_file():
                    if self.command == "GET":
                        self.asked.append(file.name)
                    return self.answer(file.read_bytes())
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    do_HEAD = do_GET  # noqa: N815

    def answer(self, content):
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        """Nothing on standard error."""


@pytest.fixture
def hub():
    """(models by id, files that were fetched, the Hub's address)."""
    kind = type("OneHub", (Hub,), {"models": {}, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield kind.models, kind.asked, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def load(hub, tmp_path):
    """Find and load a checkpoint by a Hub id, in a new process with an empty cache."""

    def run(name, text="It was"):
        own = {
            "HF_ENDPOINT": hub[2],
            "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
        }
        command = [sys.executable, "-c", LOAD, name, text]
        environment = {**os.environ, **own, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    return run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, seeded_checkpoint):
    return seeded_checkpoint(tmp_path_factory.mktemp("hub") / "tiny")


def found(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_gpt2_is_fetched_without_what_is_not_read(hub, load, tiny, tmp_path):
    folder = hub[0]["somebody/tiny"] = shutil.copytree(tiny, tmp_path / "tiny")
    for name in ("pytorch_model.bin", "training_args.bin", "tf_model.h5", "modeling.py", "flax_model.msgpack"):
        (folder / name).write_bytes(b"not to be read")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text("raise SystemExit(9)")
    name, revision, ids, adapter, notes = found(load("somebody/tiny"))
    assert (name, revision, adapter, notes) == ("somebody/tiny", COMMIT, None, [])
    assert ids == [777, 308]  # of the shipped tokenizer, by transformers
    assert sorted(hub[1]) == sorted(set(hub[1]))  # each file once
    assert "model.safetensors" in hub[1]
    assert not {name for name in hub[1] if name.endswith((".bin", ".h5", ".py", ".msgpack"))}


def test_the_vocabulary_of_another_class_is_fetched_by_its_own_names(hub, load, tiny, tmp_path):
    folder = hub[0]["somebody/bert"] = shutil.copytree(tiny, tmp_path / "bert")
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "old", "house"]))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tokenizer_class": "BertTokenizer"}))
    expected = BertTokenizerFast.from_pretrained(folder)("the old house").input_ids[:-1]
    assert found(load("somebody/bert", "the old house"))[2] == expected == [2, 5, 6, 7]
    assert "vocab.txt" in hub[1]


def test_pickles_are_fetched_where_there_are_no_safetensors(hub, load, tiny, tmp_path):
    folder = hub[0]["somebody/old"] = shutil.copytree(tiny, tmp_path / "old")
    (folder / "model.safetensors").unlink()
    torch.save(GPT2LMHeadModel.from_pretrained(tiny).state_dict(), folder / "pytorch_model.bin")
    assert found(load("somebody/old"))[0] == "somebody/old"
    assert "pytorch_model.bin" in hub[1]


def test_an_adapter_alone_finds_its_base_on_the_hub(hub, load, tiny, tmp_path):
    hub[0]["somebody/tiny"] = tiny
    model = peft.get_peft_model(
        GPT2LMHeadModel.from_pretrained(tiny), peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True)
    )
    model.save_pretrained(tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "somebody/tiny"}))
    hub[0]["somebody/lora"] = tmp_path / "lora"
    name, revision, _, adapter, notes = found(load("somebody/lora"))
    assert (name, revision, adapter) == ("somebody/tiny", COMMIT, ["somebody/lora", COMMIT])
    assert notes == ["LORA, r 4 of somebody/lora merged into somebody/tiny"]


def test_what_the_hub_has_not_is_one_line(load):
    done = load("somebody/nothing")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        "no folder at somebody/nothing, and no such model on the Hub (or it is private)"
    )
