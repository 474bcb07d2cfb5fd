"""Signs a finished bundle with a private key, through OpenSSF's model-signing."""

import os
from pathlib import Path
from typing import Any

from export.errors import ExportError
from runtime.bundle.manifest import NAME, read_manifest
from runtime.bundle.signature import CURVES, EXTRA, SIGNATURE, content_of, recorded

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
        self._config = signing_config(Path(key).expanduser())

    def sign(self, folder: Path, name: str) -> None:
        """Sign all that the manifest in `folder` records, and itself, as a model of this name."""
        digests = content_of(read_manifest(folder), (folder / NAME).read_bytes())
        self._config.set_hashing_config(recorded(digests, name)).sign(folder, folder / SIGNATURE)


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
