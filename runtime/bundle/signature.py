"""Signatures: who made a bundle, by model.sig in the format of OpenSSF's model-signing.

What is signed are names and SHA-256 of the manifest and of every file in it. As loading compares the files with the
manifest anyway, a signature costs no second hashing. The proofs that `verify` adds later are in a file of their own:
no signature covers it, and nothing is decided by them.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from runtime.bundle.bundle import Bundle, file_sha256
from runtime.bundle.manifest import NAME, Manifest, parse
from runtime.errors import BundleError, command

SIGNATURE, PROOFS = "model.sig", "proofs.json"
KEY_VARIABLE = "GPT2_ONNX_PUBLIC_KEY"
EXTRA = "signatures need the extra `signing`: pip install 'gpt2-onnx[signing]'"
CURVES = "P-256, P-384 or P-521"


def check_signature(bundle: Bundle, public_key: str | os.PathLike[str]) -> None:
    """Check that the holder of a key signed all files of an open bundle, as its manifest records them, and no others.

    Args:
        public_key: A PEM file with the elliptic-curve key whose private half signed.

    Raises:
        BundleError: The signature is missing, does not hold, or is one of other files.
        ValueError: The key cannot be read, or is not such a key.
        ImportError: model-signing is not installed.
    """
    config = verifier(public_key)
    signature = bundle.folder / SIGNATURE
    if not signature.is_file():
        raise BundleError(f"{bundle.folder} is not signed: it has no {SIGNATURE}; {how_to_sign()}")
    config.set_hashing_config(recorded(signed_content(bundle), bundle.folder.name))
    config.set_ignore_unsigned_files(True)  # so that `recorded` is told which files are signed
    try:
        config.verify(bundle.folder, signature)
    except BundleError:
        raise
    except Exception as error:  # a damaged or forged signature fails in JSON, pydantic or cryptography
        raise BundleError(
            f"{signature} does not hold with the key {os.fspath(public_key)}: {reason(error)}; "
            "get the bundle again from whom you trust"
        ) from None


def reason(error: Exception) -> str:
    """Why model-signing refused a signature, without the bytes of digests that it shows."""
    text = " ".join(str(error).split())
    changed = re.findall(r"Hash mismatch for '([^']+)'", text.replace("\\'", "'"))
    if changed:
        return f"what was signed is another {', '.join(changed)}"
    return text or "it was not made with this key"


def verifier(public_key: str | os.PathLike[str]) -> Any:
    """model-signing's verifier with a key."""
    path = Path(public_key).expanduser()
    try:
        from model_signing import verifying
    except ImportError as error:
        raise ImportError(f"{EXTRA} ({error.name} is missing)") from None
    try:
        return verifying.Config().use_elliptic_key_verifier(public_key=path)
    except OSError as error:
        raise ValueError(f"public_key {path} cannot be read: {error.strerror}") from None
    except Exception:  # RSA keys, private ones, other curves and what is no PEM fail differently
        make = command("openssl", "ec", "-in", "PRIVATE", "-pubout", "-out", "PUBLIC")
        raise ValueError(
            f"public_key must be a PEM file with an elliptic-curve public key ({CURVES}), {path} is not; "
            f"from a private one: {make}"
        ) from None


def find_public_key(given: str | os.PathLike[str] | None) -> str | None:
    """The public key that is asked for, by a caller or by the environment; None if no signature is."""
    key = os.environ.get(KEY_VARIABLE) if given is None else os.fspath(given)
    if key == "":  # of a shell variable that was meant to hold something: nothing may pass as unsigned by mistake
        raise ValueError(f"{KEY_VARIABLE if given is None else 'public_key'} must name a file, got ''")
    return key


def signed_content(bundle: Bundle) -> dict[str, str]:
    """SHA-256 by name, of the manifest as it is and of the files as it records them."""
    content = (bundle.folder / NAME).read_bytes()
    if parse(json.loads(content)) != bundle.manifest:  # read from another file than that which is hashed here
        raise BundleError(f"{bundle.folder / NAME} was changed while it was loaded; load it again when it is whole")
    return content_of(bundle.manifest, content)


def content_of(manifest: Manifest, written: bytes) -> dict[str, str]:
    return {NAME: hashlib.sha256(written).hexdigest()} | {name: file.sha256 for name, file in manifest.files.items()}


def recorded(digests: Mapping[str, str], model: str) -> Any:
    """A hashing configuration of model-signing's that knows these files' SHA-256 and need not read them.

    Its `hash(folder)` is of these files. Its `hash(folder, files_to_hash=…)` is of those and refuses, by BundleError, a
    folder with files that are not among them.
    """
    from model_signing import hashing, manifest

    class Recorded(hashing.Config):  # type: ignore[misc]
        def hash(self, model_path: Path, *, files_to_hash: Iterable[Path] | None = None) -> Any:
            found = digests
            if files_to_hash is not None:
                signed = {path.relative_to(model_path).as_posix() for path in files_to_hash}
                refuse_unsigned(model_path, signed, digests)
                found = {name: digests.get(name) or file_sha256(model_path / name) for name in signed}
            algorithm = manifest.hashing.Digest
            items = [
                manifest.FileManifestItem(path=PurePosixPath(name), digest=algorithm("sha256", bytes.fromhex(digest)))
                for name, digest in found.items()
            ]
            return manifest.Manifest(model, items, manifest.SerializationType.from_args(SERIALIZATION))

    return Recorded()


SERIALIZATION = {
    "method": "files",
    "hash_type": "sha256",
    "allow_symlinks": False,
    "ignore_paths": [SIGNATURE, PROOFS],
}


def refuse_unsigned(folder: Path, signed: set[str], digests: Mapping[str, str]) -> None:
    """Raise BundleError if a file of the bundle is not signed, or if there are files that are neither."""
    for name in digests:
        if name not in signed:
            raise BundleError(f"{folder / name} is not covered by {SIGNATURE}; {how_to_sign()}")
    for name in files_in(folder):
        if name not in signed and name not in (SIGNATURE, PROOFS):
            raise BundleError(f"{folder / name} is not covered by {SIGNATURE}: it was added later; remove it")


def files_in(folder: Path) -> Iterator[str]:
    """Names of all files, but for hidden ones at the top, which are git's, download tools' and exports' under way."""
    for place, folders, files in os.walk(folder):
        if Path(place) == folder:
            folders[:] = [name for name in folders if not name.startswith(".")]
            files = [name for name in files if not name.startswith(".")]
        yield from ((Path(place) / name).relative_to(folder).as_posix() for name in files)


def how_to_sign() -> str:
    return f"sign it: {command('python', '-m', 'export', 'CHECKPOINT', '--sign', 'KEY', '--output', 'DIR')}"
