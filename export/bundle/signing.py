"""Signs a finished bundle with a private key, through OpenSSF's model-signing."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from export.errors import ExportError
from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import NAME, read_manifest
from runtime.bundle.signature import CURVES, EXTRA, SIGNATURE, check_signature, content_of, recorded
from runtime.errors import BundleError

MAKE = "make one: openssl ecparam -name prime256v1 -genkey -noout -out KEY"


class Signer:
    """Writes model.sig; made before the work, so that a key that is none is refused before it.

    Args:
        key: A PEM file with an elliptic-curve private key that is not encrypted.

    Raises:
        ExportError: The key cannot be read, or is not such a key.
        ImportError: model-signing is not installed.
    """

    def __init__(self, key: str | os.PathLike[str]) -> None:
        self._key = Path(key).expanduser()
        self._config = signing_config(self._key)

    def sign(self, folder: Path, name: str) -> None:
        """Sign all that the manifest in `folder` records, and itself, as a model of this name."""
        digests = content_of(read_manifest(folder), (folder / NAME).read_bytes())
        self._config.set_hashing_config(recorded(digests, name)).sign(folder, folder / SIGNATURE)

    def check(self, bundle: Bundle) -> None:
        """Raise ExportError unless the holder of the same key signed a bundle, all of it."""
        with TemporaryDirectory() as folder:
            public = Path(folder) / "public.pem"
            public.write_bytes(public_half(self._key))
            try:
                check_signature(bundle, public)
            except BundleError as error:
                told = str(error).replace(str(public), str(self._key))
                raise ExportError(f"nothing is added to a bundle that this key did not sign: {told}") from None


def public_half(key: Path) -> bytes:
    """The public key, in PEM, of a private one."""
    from cryptography.hazmat.primitives import serialization

    private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return private.public_key().public_bytes(serialization.Encoding.PEM, form)


def signing_config(key: Path) -> Any:
    try:
        from model_signing import signing
    except ImportError as error:
        raise ImportError(f"{EXTRA} ({error.name} is missing)") from None
    try:
        return signing.Config().use_elliptic_key_signer(private_key=key)
    except OSError as error:
        raise ExportError(f"the key {key} cannot be read: {error.strerror}") from None
    except Exception:  # encrypted keys, public ones, RSA, other curves and what is no PEM fail differently
        raise ExportError(
            f"{key} is not an elliptic-curve private key ({CURVES}) in PEM, without a password; {MAKE}"
        ) from None
