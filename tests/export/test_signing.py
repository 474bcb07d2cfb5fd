"""`--sign KEY`: a bundle appears signed or not at all, and model-signing's own command accepts it."""

import shutil
import subprocess
import sys

import pytest

import export.bundle.staging
import runtime
from export.addition import add_precisions
from export.bundle.signing import Signer
from export.errors import ExportError
from export.pipeline import export_bundle
from runtime import BundleError

pytest.importorskip("model_signing", reason="the extra `signing` is not installed here")

from signing_keys import encrypted, key_pair, public_pem

SMALL = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 32}


@pytest.fixture(scope="module")
def checkpoint(make_once, seeded_checkpoint):
    return make_once("checkpoint-to-sign", lambda folder: seeded_checkpoint(folder, **SMALL))


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return key_pair(tmp_path_factory.mktemp("keys"), "secp256r1")


@pytest.fixture
def signed(tmp_path, checkpoint, keys):
    export_bundle(str(checkpoint), tmp_path / "gpt2", sign=keys.private)
    return tmp_path / "gpt2"


def make_folder(path):
    path.mkdir()
    return path


def verify(folder, public, *options):
    """model-signing's own command."""
    command = [sys.executable, "-m", "model_signing", "verify", "key", folder]
    command += ["--signature", folder / "model.sig", "--public_key", public, *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def test_model_signings_own_command_accepts_the_bundle_and_refuses_any_other(signed, keys, tmp_path):
    assert verify(signed, keys.public) == (0, "Verification succeeded\n")
    assert runtime.load(signed, device="cpu", public_key=keys.public).precision == "fp32"
    moved = signed.rename(tmp_path / "elsewhere")  # a signature is of files, not of a folder's name
    assert verify(moved, keys.public)[0] == 0
    (moved / "proofs.json").write_text("{}")
    assert verify(moved, keys.public)[0] == 0
    assert verify(moved, key_pair(tmp_path, "secp256r1").public)[0] == 1
    for path in [path for path in moved.rglob("*") if path.is_file() and path.name not in ("model.sig", "proofs.json")]:
        before = path.read_bytes()
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        code, said = verify(moved, keys.public)
        assert code == 1
        assert f"Hash mismatch for '{path.relative_to(moved).as_posix()}'" in said.replace("\\'", "'")
        path.write_bytes(before)
    (moved / "more.py").write_text("")
    assert "Extra files found in model" in verify(moved, keys.public)[1]


def test_the_signature_is_there_before_the_bundle_appears(tmp_path, checkpoint, keys, monkeypatch):
    place, placed = export.bundle.staging.place, []

    def placing(stage, output, *, force):
        placed.append(
            sorted(path.name for path in (stage / "new").iterdir() if path.name in ("manifest.json", "model.sig"))
        )
        assert verify(stage / "new", keys.public)[0] == 0
        place(stage, output, force=force)

    monkeypatch.setattr(export.bundle.staging, "place", placing)
    export_bundle(str(checkpoint), tmp_path / "gpt2", sign=keys.private)
    assert placed == [["manifest.json", "model.sig"]]


def test_a_bundle_that_cannot_be_signed_does_not_appear(tmp_path, checkpoint, keys, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Signer, "sign", fails)
    with pytest.raises(OSError, match="No space left"):
        export_bundle(str(checkpoint), tmp_path / "gpt2", sign=keys.private)
    assert list(tmp_path.iterdir()) == []


def test_no_signature_outlives_its_bundle(signed, checkpoint, keys):
    export_bundle(str(checkpoint), signed, force=True)
    assert not (signed / "model.sig").exists()
    with pytest.raises(BundleError, match="is not signed"):
        runtime.load(signed, device="cpu", public_key=keys.public)


@pytest.mark.parametrize("kind", ["public", "rsa", "secp256k1", "encrypted", "text", "empty"])
def test_a_file_that_is_no_private_key_is_refused_before_the_work(tmp_path, keys, kind):
    written = {"text": b"hello", "empty": b"", "public": keys.public.read_bytes(), "encrypted": encrypted()}
    path = tmp_path / "key.pem"
    path.write_bytes(written[kind] if kind in written else public_pem(kind))
    with pytest.raises(ExportError) as refused:
        export_bundle("nothing", tmp_path / "gpt2", sign=path)
    assert str(refused.value) == (
        f"{path} is not an elliptic-curve private key (P-256, P-384 or P-521) in PEM, without a password; "
        "make one: openssl ecparam -name prime256v1 -genkey -noout -out KEY"
    )
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("curve", ["prime256v1", "secp384r1", "secp521r1"])
def test_the_key_that_the_message_tells_how_to_make(tmp_path, curve, signed):
    """openssl's older form of keys, SEC1, and the public key as the runtime's message makes it."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    made = f"openssl ecparam -name {curve} -genkey -noout -out {private}"
    subprocess.run(made.split(), check=True, capture_output=True)
    subprocess.run(f"openssl ec -in {private} -pubout -out {public}".split(), check=True, capture_output=True)
    Signer(private).sign(signed, "gpt2")
    assert runtime.load(signed, device="cpu", public_key=public).precision == "fp32"


def test_a_key_that_cannot_be_read(tmp_path):
    with pytest.raises(ExportError, match=r"nothing\.pem cannot be read: No such file or directory"):
        export_bundle("nothing", tmp_path / "gpt2", sign=tmp_path / "nothing.pem")


def test_the_command(tmp_path, checkpoint, keys):
    command = [sys.executable, "-m", "export", checkpoint, "--output", tmp_path / "gpt2", "--sign"]
    done = subprocess.run([*map(str, command), ""], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "gpt2-onnx-export: --sign must name a file, got ''")
    done = subprocess.run(
        [*map(str, command), str(keys.private)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert verify(tmp_path / "gpt2", keys.public)[0] == 0


def test_without_the_extra_one_line_says_which(tmp_path, monkeypatch, keys):
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(ImportError, match=r"^signatures need the extra `signing`: pip install 'gpt2-onnx\[signing\]'"):
        export_bundle("nothing", tmp_path / "gpt2", sign=keys.private)


def test_a_signed_bundle_gains_nothing_that_is_not_signed(signed, keys):
    with pytest.raises(ExportError, match="is signed, and what is added must be, too: add --sign KEY"):
        add_precisions(signed, "int4")
    runtime.load(signed, public_key=keys.public, device="cpu")
    with pytest.raises(ExportError, match=r"this key did not sign: .*does not hold with the key .*other/private"):
        add_precisions(signed, "int4", sign=key_pair(make_folder(signed.parent / "other"), "secp256r1").private)
    command = [sys.executable, "-m", "export", "--add", "int4", "--output", signed, "--sign", keys.private]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    model = runtime.load(signed, public_key=keys.public, precision="int4", device="cpu")
    assert len(model.complete("He", max_new_tokens=3).token_ids) == 3
