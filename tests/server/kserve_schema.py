"""KServe's own types, as the schema of a manifest: its models come out of a wheel, which is fetched and not installed.

KServe's wheel cannot be installed beside this project's tools, as it wants an older pandas. Its models need six alone.
"""

import hashlib
import importlib
import re
import subprocess
import sys
import types
import zipfile
from pathlib import Path

RELEASE = "0.21.0"
SHA256 = "df9bc5888704d9085015e08f1a8fced5ff0698f3becc6212d4e7b8234c71623b"  # of the wheel, as its code is run
SCALARS = {"str": str, "int": int, "bool": bool, "object": dict}
QUANTITIES = ("V1beta1MetricQuantity", "ResourceQuantity")
QUANTITY = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([numkKMGTPE]i?|[eE][+-]?[0-9]+)?")
KUBERNETES = re.compile("V1[A-Z]")  # KServe's are V1alpha1… and V1beta1…


class WheelError(Exception):
    """The wheel cannot be had here."""


def fetch(folder: Path) -> None:
    """Unpack KServe's wheel into a new folder."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--ignore-requires-python", "--retries", "1"]
    try:
        done = subprocess.run(
            [*command, "--disable-pip-version-check", "--dest", folder, f"kserve=={RELEASE}"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise WheelError("pip download did not end in 120 seconds") from None
    if done.returncode:
        raise WheelError(done.stderr.strip().splitlines()[-1])
    (wheel,) = folder.glob("*.whl")
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == SHA256
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)


class Schema:
    """What a manifest of KServe's may hold.

    Args:
        folder: Where `fetch` has unpacked the wheel.
    """

    def __init__(self, folder: Path) -> None:
        package = types.ModuleType("kserve")  # without its __init__, which imports the whole server
        package.__path__ = [str(folder / "kserve")]
        sys.modules["kserve"] = package
        try:
            self._models = vars(importlib.import_module("kserve.models"))
        finally:
            for name in [name for name in sys.modules if name.partition(".")[0] == "kserve"]:
                del sys.modules[name]

    def check(self, manifest: dict) -> dict[str, list]:
        """Refuse what does not fit; give the parts that are Kubernetes' own, by their type, as their schema is another.

        Raises:
            ValueError: It names the first place that does not fit.
        """
        version = manifest["apiVersion"].partition("/")[2]
        parts: dict[str, list] = {}
        self._read(f"{version.capitalize()}{manifest['kind']}", manifest, manifest["kind"], parts)
        return parts

    def _read(self, kind: str, value: object, path: str, parts: dict[str, list]) -> object:
        if kind in SCALARS:
            if type(value) is not SCALARS[kind]:
                raise ValueError(f"{path} must be {kind}, got {value!r}")
            return value
        if inner := re.fullmatch(r"list\[(.+)\]", kind):
            if not isinstance(value, list):
                raise ValueError(f"{path} must be a list, got {value!r}")
            return [self._read(inner[1], each, f"{path}[{number}]", parts) for number, each in enumerate(value)]
        if inner := re.fullmatch(r"dict\(str, (.+)\)", kind):
            if not isinstance(value, dict):
                raise ValueError(f"{path} must be a mapping, got {value!r}")
            return {str(key): self._read(inner[1], each, f"{path}.{key}", parts) for key, each in value.items()}
        if kind in QUANTITIES:
            if type(value) is not int and not (isinstance(value, str) and QUANTITY.fullmatch(value)):
                raise ValueError(f"{path} must be a quantity, got {value!r}")
            return value
        if KUBERNETES.match(kind):
            parts.setdefault(kind, []).append(value)
            return value
        if kind not in self._models:
            raise ValueError(f"{path}: KServe has no {kind}")
        return self._made(self._models[kind], value, path, parts)

    def _made(self, model: type, value: object, path: str, parts: dict[str, list]) -> object:
        """The generated classes refuse what lacks a field that they require."""
        if not isinstance(value, dict):
            raise ValueError(f"{path} must be a mapping, got {value!r}")
        attributes = {key: attribute for attribute, key in model.attribute_map.items()}
        if unknown := value.keys() - attributes.keys():
            raise ValueError(f"{path} has no field {min(unknown)}")
        given = {
            attributes[key]: self._read(model.openapi_types[attributes[key]], each, f"{path}.{key}", parts)
            for key, each in value.items()
        }
        try:
            return model(**given)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
