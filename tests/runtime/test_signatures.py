"""Signatures: a bundle is refused unless the key that is asked for signed all that is in it.

The signatures are made by model-signing's own command, not by this project.
"""

import base64
import json
import os
import shutil
import subprocess
import sys

import pytest

import runtime
from runtime import BundleError
from runtime.bundle.bundle import open_bundle
from runtime.proof.graphs import note_proof

pytest.importorskip("model_signing", reason="the extra `signing` is not installed here")

from signing_keys import encrypted, key_pair, public_pem


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """A private and a public key, as openssl writes them."""
    return key_pair(tmp_path_factory.mktemp("keys"), "secp256r1")


def sign(folder, private, *options):
    """model-signing's own command."""
    command = [sys.executable, "-m", "model_signing", "sign", "key", folder, "--private_key", private]
    command += ["--signature", folder / "model.sig", "--ignore-paths", folder / "proofs.json", *options]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="session")
def signature(bundle, keys, tmp_path_factory):
    """The signature of the bundle."""
    folder = tmp_path_factory.mktemp("signed") / "bundle"
    shutil.copytree(bundle, folder)
    sign(folder, keys.private)
    return (folder / "model.sig").read_bytes()


@pytest.fixture
def signed(bundle_copy, signature):
    bundle_copy.write("model.sig", signature)
    return bundle_copy


def load(folder, key, **options):
    return runtime.load(folder, device="cpu", threads=1, public_key=key, **options)


def names(manifest):
    return ["manifest.json", *manifest["files"]]


def test_what_model_signing_signed_is_loaded_and_says_the_same(signed, keys, probe):
    model = load(signed.folder, keys.public)
    assert model.complete(probe.prompt, max_new_tokens=8).token_ids == probe.token_ids[:8]


@pytest.mark.parametrize("curve", ["secp384r1", "secp521r1"])
def test_the_other_curves_of_model_signing(bundle_copy, tmp_path, curve):
    pair = key_pair(tmp_path, curve)
    sign(bundle_copy.folder, pair.private)
    assert load(bundle_copy.folder, pair.public).precision == "fp32"


def test_the_files_may_be_links_as_in_the_hubs_cache(signed, keys, tmp_path):
    """huggingface_hub: a snapshot of a revision is a folder of links to blobs, which are named by their content."""
    repository = tmp_path / "models--me--gpt2"
    snapshot = repository / "snapshots" / "5e8d14"
    (repository / "blobs").mkdir(parents=True)
    (snapshot / "onnx").mkdir(parents=True)
    for number, path in enumerate(path for path in signed.folder.rglob("*") if path.is_file()):
        blob, name = repository / "blobs" / str(number), path.relative_to(signed.folder)
        shutil.copyfile(path, blob)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    assert load(snapshot, keys.public).precision == "fp32"


def test_without_a_key_nothing_is_asked_for(bundle_copy, run_python):
    done = run_python(
        "-c",
        "import sys, runtime; runtime.load(sys.argv[1], device='cpu'); print('model_signing' in sys.modules)",
        str(bundle_copy.folder),
    )
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


def test_a_bundle_without_a_signature(bundle_copy, keys, refusal):
    message = refusal(BundleError, load, bundle_copy.folder, keys.public)
    assert message.startswith(f"{bundle_copy.folder} is not signed: it has no model.sig; ")
    assert "python -m export CHECKPOINT --sign KEY --output DIR" in message


def test_a_byte_of_any_file(signed, keys, refusal, manifest, cli_here):
    """Loading refuses what it reads; `verify` refuses all."""
    for name in [*names(manifest), "model.sig"]:
        before = signed.read(name)
        signed.flip_byte(name)
        done = cli_here("verify", "--model", str(signed.folder), "--public-key", str(keys.public))
        assert done.returncode == 1, name
        assert done.stdout == ""
        assert done.stderr.splitlines()[-1].startswith("gpt2-onnx: "), name
        if not name.endswith(".onnx_data") or name == "onnx/model.onnx_data":
            assert str(signed.folder / name) in refusal(BundleError, load, signed.folder, keys.public)
        signed.write(name, before)
    load(signed.folder, keys.public)


def test_a_change_that_the_manifest_was_brought_up_to_date_with(signed, keys, refusal, manifest):
    """As whoever may write in the folder would do it; without a key it passes."""
    whole = signed.read("manifest.json")
    for name in manifest["files"]:
        if name.endswith((".onnx", ".onnx_data")):
            continue  # a damaged one could not be loaded anyway
        before = signed.read(name)
        signed.replace(name, before + b"\n")
        assert load(signed.folder, None).precision == "fp32"
        message = refusal(BundleError, load, signed.folder, keys.public)
        assert f"what was signed is another {', '.join(sorted([name, 'manifest.json']))}; " in message
        signed.write(name, before)
        signed.write("manifest.json", whole)


def test_weights_that_the_manifest_was_brought_up_to_date_with(signed, keys, refusal):
    content = bytearray(signed.read("onnx/model.onnx_data"))
    content[: len(content) // 2] = content[: len(content) // 2][::-1]
    signed.replace("onnx/model.onnx_data", bytes(content))
    load(signed.folder, None)
    assert "what was signed is another manifest.json, onnx/model.onnx_data; " in refusal(
        BundleError, load, signed.folder, keys.public
    )


def test_a_manifest_that_says_other_things_of_the_same_files(signed, keys, refusal):
    with signed.changed_manifest() as content:
        content["parity"]["passed"] = not content["parity"]["passed"]
    assert "what was signed is another manifest.json; " in refusal(BundleError, load, signed.folder, keys.public)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("name", ["modeling_gpt2.py", "onnx/more.onnx", "tokenizer/vocab.json"])
def test_a_file_that_was_added(signed, keys, refusal, name, recorded):
    (signed.folder / name).parent.mkdir(exist_ok=True)
    if recorded:
        signed.replace(name, b"print('hello')")
    else:
        signed.write(name, b"print('hello')")
    message = refusal(BundleError, load, signed.folder, keys.public)
    assert message.startswith(f"{signed.folder / name} is not covered by model.sig")


def test_a_file_that_the_signature_leaves_out(bundle_copy, keys, refusal):
    sign(bundle_copy.folder, keys.private, "--ignore-paths", bundle_copy.folder / "tokenizer.json")
    message = refusal(BundleError, load, bundle_copy.folder, keys.public)
    assert message.startswith(f"{bundle_copy.folder / 'tokenizer.json'} is not covered by model.sig; sign it")


def test_a_file_that_was_signed_and_is_gone(bundle_copy, keys, refusal):
    bundle_copy.write("LICENSE", b"as is")
    sign(bundle_copy.folder, keys.private)
    load(bundle_copy.folder, keys.public)
    (bundle_copy.folder / "LICENSE").unlink()
    assert f"{bundle_copy.folder / 'LICENSE'} cannot be read" in refusal(
        BundleError, load, bundle_copy.folder, keys.public
    )


def test_what_tools_keep_beside_a_bundle_is_not_looked_at(signed, keys):
    for name in (".gitattributes", ".cache/huggingface/download/config.json.lock"):
        (signed.folder / name).parent.mkdir(parents=True, exist_ok=True)
        signed.write(name, b"")
    load(signed.folder, keys.public)


def test_another_key(signed, refusal, tmp_path):
    other = key_pair(tmp_path, "secp256r1").public
    message = refusal(BundleError, load, signed.folder, other)
    assert message.startswith(f"{signed.folder / 'model.sig'} does not hold with the key {other}: Key mismatch")


def test_the_signature_of_another_bundle(signed, keys, refusal, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in names(json.loads(signed.read("manifest.json"))):
        (other / name).parent.mkdir(exist_ok=True)
        (other / name).write_bytes(b"another")
    sign(other, keys.private)
    signed.write("model.sig", (other / "model.sig").read_bytes())
    assert "what was signed is another" in refusal(BundleError, load, signed.folder, keys.public)


def forged(signature, change):
    """The signature with another payload."""
    content = json.loads(signature)
    payload = json.loads(base64.b64decode(content["dsseEnvelope"]["payload"]))
    change(payload)
    content["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    return json.dumps(content).encode()


def test_a_payload_that_nobody_signed(signed, keys, refusal):
    def change(payload):
        payload["predicate"]["resources"][0]["digest"] = "0" * 64

    signed.write("model.sig", forged(signed.read("model.sig"), change))
    assert "it was not made with this key" in refusal(BundleError, load, signed.folder, keys.public)


def test_a_forged_hint_of_the_key_does_not_help(signed, refusal, tmp_path, keys):
    """Only the signature decides, not what the file says of the key."""
    import hashlib

    other = key_pair(tmp_path, "secp256r1").public
    content = json.loads(signed.read("model.sig"))
    content["verificationMaterial"]["publicKey"]["hint"] = hashlib.sha256(other.read_bytes()).hexdigest()
    signed.write("model.sig", json.dumps(content).encode())
    assert "it was not made with this key" in refusal(BundleError, load, signed.folder, other)
    assert "Key mismatch" in refusal(BundleError, load, signed.folder, keys.public)


def changed_signature(**changes):
    def make(signature):
        return json.dumps(json.loads(signature) | changes).encode()

    return make


@pytest.mark.parametrize(
    "make",
    [
        lambda _: b"",
        lambda _: b"\xff\xfe",
        lambda _: b"[]",
        lambda _: b"{}",
        lambda _: b'{"verificationMaterial": 7}',
        lambda _: b"[" * 100_000,
        lambda signature: signature[: len(signature) // 2],
        changed_signature(mediaType="application/vnd.dev.sigstore.bundle.v0.1+json"),
        changed_signature(dsseEnvelope=None),
        changed_signature(dsseEnvelope={"payload": "", "payloadType": "", "signatures": []}),
        changed_signature(verificationMaterial={}),
    ],
)
def test_what_is_no_signature(signed, keys, refusal, make):
    signed.write("model.sig", make(signed.read("model.sig")))
    message = refusal(BundleError, load, signed.folder, keys.public)
    assert message.startswith(f"{signed.folder / 'model.sig'} does not hold with the key")


def test_a_signature_in_another_format(bundle_copy, keys, refusal):
    """What openssl would sign: the bytes of the manifest, without an envelope."""
    command = ["openssl", "dgst", "-sha256", "-sign", keys.private, "-out", bundle_copy.folder / "model.sig"]
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    subprocess.run([*map(str, command), str(bundle_copy.folder / "manifest.json")], check=True)
    assert "does not hold with the key" in refusal(BundleError, load, bundle_copy.folder, keys.public)


def test_hashes_of_another_algorithm(bundle_copy, keys, refusal):
    script = (
        "import sys\nfrom model_signing import hashing, signing\n"
        "folder, key = sys.argv[1:]\n"
        "hashes = hashing.Config().use_file_serialization(hashing_algorithm='blake2')\n"
        "signing.Config().use_elliptic_key_signer(private_key=key).set_hashing_config(hashes)"
        ".sign(folder, folder + '/model.sig')"
    )
    subprocess.run([sys.executable, "-c", script, str(bundle_copy.folder), str(keys.private)], check=True)
    assert "what was signed is another" in refusal(BundleError, load, bundle_copy.folder, keys.public)


@pytest.mark.parametrize("kind", ["private", "rsa", "ed25519", "secp256k1", "text", "empty", "binary", "certificate"])
def test_a_file_that_is_no_public_key(signed, keys, refusal, tmp_path, kind):
    written = {"text": b"hello", "empty": b"", "binary": bytes(range(256)), "private": keys.private.read_bytes()}
    path = tmp_path / "key.pem"
    path.write_bytes(written[kind] if kind in written else public_pem(kind))
    message = refusal(ValueError, load, signed.folder, path)
    assert message.startswith("public_key must be a PEM file with an elliptic-curve public key")
    assert f"{path} is not; from a private one: openssl ec -in PRIVATE -pubout -out PUBLIC" in message


def test_a_key_that_cannot_be_read(signed, refusal, tmp_path):
    for path, why in ((tmp_path / "nothing.pem", "No such file or directory"), (tmp_path, "Is a directory")):
        assert refusal(ValueError, load, signed.folder, path) == f"public_key {path} cannot be read: {why}"


def test_a_name_that_was_left_empty(signed, refusal, monkeypatch):
    assert refusal(ValueError, load, signed.folder, "") == "public_key must name a file, got ''"
    monkeypatch.setenv("GPT2_ONNX_PUBLIC_KEY", "")
    message = refusal(ValueError, load, signed.folder, None)
    assert message == "GPT2_ONNX_PUBLIC_KEY must name a file, got ''"


def test_hashes_cannot_be_left_out_where_a_signature_is_asked_for(signed, keys, refusal, monkeypatch):
    assert "verify must be True" in refusal(ValueError, load, signed.folder, keys.public, verify=False)
    monkeypatch.setenv("GPT2_ONNX_PUBLIC_KEY", str(keys.public))
    assert "verify must be True" in refusal(ValueError, load, signed.folder, None, verify=False)


# every way in


def test_the_environment_asks_for_a_signature_too(bundle_copy, signature, keys, refusal, monkeypatch, probe):
    monkeypatch.setenv("GPT2_ONNX_PUBLIC_KEY", str(keys.public))
    assert "is not signed" in refusal(BundleError, load, bundle_copy.folder, None)
    options = {"model": bundle_copy.folder, "device": "cpu", "max_new_tokens": 4}
    assert "is not signed" in refusal(BundleError, runtime.complete, probe.prompt, **options)
    bundle_copy.write("model.sig", signature)
    assert runtime.complete(probe.prompt, **options).token_ids == probe.token_ids[:4]


def test_a_model_that_was_loaded_without_a_key_does_not_answer_where_one_is_asked_for(bundle_copy, keys, refusal):
    options = {"model": bundle_copy.folder, "device": "cpu", "max_new_tokens": 2}
    runtime.complete("It", **options)
    assert "is not signed" in refusal(BundleError, runtime.complete, "It", public_key=keys.public, **options)
    runtime.complete("It", **options)


def test_what_takes_the_place_of_a_signed_bundle_must_be_signed_too(signed, keys, refusal, tmp_path):
    options = {"model": signed.folder, "device": "cpu", "max_new_tokens": 2, "public_key": keys.public}
    runtime.complete("It", **options)
    forged = shutil.copytree(signed.folder, tmp_path / "forged", copy_function=shutil.copyfile)
    content = json.loads((forged / "manifest.json").read_text())
    (forged / "manifest.json").write_text(json.dumps(content | {"made_with": {}}))
    signed.folder.rename(tmp_path / "before")
    forged.rename(signed.folder)
    assert "what was signed is another manifest.json; " in refusal(BundleError, runtime.complete, "It", **options)


@pytest.mark.parametrize("arguments", [["complete", "It"], ["inspect", "It"], ["score", "text.txt"]])
def test_the_commands_take_a_key(cli_here, bundle_copy, signature, keys, arguments, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("It was a bright cold day")
    command = [*arguments, "--model", str(bundle_copy.folder), "--device", "cpu", "--public-key", str(keys.public)]
    done = cli_here(*command)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"gpt2-onnx: {bundle_copy.folder} is not signed: ")
    bundle_copy.write("model.sig", signature)
    assert cli_here(*command).returncode == 0


def test_the_server_takes_a_key(cli, bundle_copy, keys):
    pytest.importorskip("starlette", reason="the extra `serve` is not installed here")
    command = ["serve", "--model", str(bundle_copy.folder), "--device", "cpu", "--port", "0"]
    for how in ({"env": {"GPT2_ONNX_PUBLIC_KEY": str(keys.public)}}, {}):
        done = cli(*command, *([] if how else ["--public-key", str(keys.public)]), **how)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(f"gpt2-onnx: {bundle_copy.folder} is not signed: ")


def test_verify_says_who_signed(cli_here, signed, keys):
    command = ["verify", "--model", str(signed.folder), "--public-key", str(keys.public)]
    done = cli_here(*command)
    assert done.returncode == 0, done.stderr
    assert f"all of them signed by the key {keys.public}" in done.stderr
    assert f"signed by {keys.public}, " in done.stdout.replace(";", ",")
    assert json.loads(cli_here(*command, "--json").stdout)["signed_by"] == str(keys.public)


def test_without_the_extra_one_line_says_which(cli, signed, keys, tmp_path):
    """A module that raises stands for one that is not installed."""
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "model_signing.py").write_text(
        "raise ModuleNotFoundError('No module', name='model_signing')"
    )
    command = ["complete", "It", "--model", str(signed.folder), "--public-key", str(keys.public)]
    done = cli(*command, path=(tmp_path / "absent",))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "gpt2-onnx: signatures need the extra `signing`: pip install 'gpt2-onnx[signing]' (model_signing is missing)\n"
    )


# proofs that come later


def test_a_proof_that_is_added_breaks_no_signature(signed, keys):
    note_proof(open_bundle(signed.folder), {"card": "NVIDIA H200"})
    load(signed.folder, keys.public)
    command = [sys.executable, "-m", "model_signing", "verify", "key", signed.folder]
    command += ["--signature", signed.folder / "model.sig", "--public_key", keys.public]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_proof_that_anybody_wrote_is_believed_by_nothing(cli_here, signed, keys):
    """PyTorch's numbers are signed; a file beside them cannot turn a failure into a success."""
    with signed.changed_manifest() as content:
        content["parity"]["passed"] = False
    sign(signed.folder, keys.private)
    signed.write("proofs.json", b'{"proofs": [{"card": "NVIDIA H200", "passed": true}], "parity": {"passed": true}}')
    done = cli_here("verify", "--model", str(signed.folder), "--public-key", str(keys.public))
    assert done.returncode == 1
    assert "is NOT verified" in done.stdout


@pytest.mark.parametrize("content", [b"", b"[]", b'{"proofs": 7}', b"\xff"])
def test_a_damaged_file_of_proofs_harms_nothing(signed, keys, refusal, content):
    signed.write("proofs.json", content)
    load(signed.folder, keys.public)
    assert str(signed.folder / "proofs.json") in refusal(
        BundleError, note_proof, open_bundle(signed.folder), {"card": "NVIDIA H200"}
    )


def test_an_encrypted_private_key_is_no_public_one(signed, refusal, tmp_path):
    path = tmp_path / "key.pem"
    path.write_bytes(encrypted())
    assert f"{path} is not" in refusal(ValueError, load, signed.folder, path)
