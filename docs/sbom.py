"""The bill of materials in the wheel (docs/sbom.cdx.json, CycloneDX), and the licences in docs/licences.md.

python docs/sbom.py            # writes both anew, from the versions in constraints.txt that are installed here
python docs/sbom.py --check    # exit code 1, and what to do, where they are not as those are: make check

It lists what `pip install "gpt2-onnx[…]"` brings by each extra. A licence that is not among PERMISSIVE ends it: it is
read by a person first, then added.
"""

import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
BILL, PAGE = ROOT / "docs" / "sbom.cdx.json", ROOT / "docs" / "licences.md"
OURS = "gpt2-onnx"
EXTRAS = ("", "cpu", "cli", "plot", "guide", "serve", "cluster", "signing", "export", "adapter")
TARGET = {"python_version": "3.11", "python_full_version": "3.11.9", "sys_platform": "linux", "os_name": "posix"}
TARGET |= {"platform_machine": "x86_64", "platform_system": "Linux", "implementation_name": "cpython"}
PERMISSIVE = {"0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "HPND", "ISC", "MIT", "MIT-0", "MIT-CMU"}
PERMISSIVE |= {"BSL-1.0", "CNRI-Python", "MPL-2.0", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib"}
READ = {  # where the metadata has no expression of SPDX's: what its licence file says
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "Apache": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "BSD": "BSD-3-Clause",
    "3-Clause BSD License": "BSD-3-Clause",
    "MIT License": "MIT",
    "ISC License (ISCL)": "ISC",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}
UNSAID = {"sigstore-models": "MIT"}  # only their LICENSE files say it
INTRODUCTION = """# Licences

What `pip install "gpt2-onnx[…]"` brings, each with the version that the tests run with, and by which extra it comes.
gpt2-onnx itself is Apache-2.0, and its wheel holds no code but its own.
`python docs/sbom.py` writes this page and the wheel's bill of materials ([sbom.cdx.json](sbom.cdx.json), CycloneDX, in
`*.dist-info/sboms/`) and refuses a licence that is not permissive. `export5`, `adapter5` and `gpu` bring other versions
of the same, of onnxruntime-gpu, onnx-ir and onnxscript, which are MIT.

| package | version | licence | extra |
|---|---|---|---|
"""


def main() -> int:
    try:
        found = closures()
    except metadata.PackageNotFoundError as error:
        print(f"docs/sbom.py: {error.name} is not installed here, so nothing was checked", file=sys.stderr)
        return 0
    written = {BILL: make_bill(found) + "\n", PAGE: INTRODUCTION + "".join(rows(found))}
    if "--check" in sys.argv[1:]:
        stale = [path.name for path, text in written.items() if not path.exists() or path.read_text("utf-8") != text]
        if stale:
            print(f"{', '.join(stale)}: not what is installed; write anew: python docs/sbom.py", file=sys.stderr)
        return int(bool(stale))
    for path, text in written.items():
        path.write_text(text, encoding="utf-8")
    return 0


def closures() -> dict[str, list[str]]:
    """By which extras each package comes; the empty one is none."""
    found: dict[str, list[str]] = {}
    for extra in EXTRAS:
        for name in sorted(closure(OURS, extra) - {OURS}):
            found.setdefault(name, []).append(extra)
    return dict(sorted(found.items()))


def closure(name: str, *extras: str) -> set[str]:
    """A package and all that it brings with some extras."""
    seen, waiting = set[tuple[str, str]](), [(name, extra) for extra in {"", *extras}]
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            waiting += needed(*one)
    return {name for name, _ in seen}


def needed(name: str, extra: str) -> Iterator[tuple[str, str]]:
    for line in metadata.requires(name) or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({**TARGET, "extra": extra}):
            yield from ((plain(requirement.name), each) for each in {"", *requirement.extras})


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def make_bill(found: dict[str, list[str]]) -> str:
    bill = Bom()
    bill.metadata.timestamp = None  # type: ignore[assignment]  # the same content is the same bytes, and has no number of its own
    bill.metadata.component = ours = Component(name=OURS, type=ComponentType.LIBRARY, bom_ref=OURS)
    ours.licenses.add(LicenseFactory().make_from_string("Apache-2.0"))
    components = {name: component_of(name, extras) for name, extras in found.items()}
    bill.components.update(components.values())
    bill.register_dependency(ours, components.values())
    for name, component in components.items():
        brought = {each for each, _ in needed(name, "") if each != name}
        bill.register_dependency(component, [components[each] for each in sorted(brought)])
    text: str = JsonV1Dot6(bill).output_as_string(indent=2)
    return re.sub(r'\n *"serialNumber": "[^"]*",', "", text)


def component_of(name: str, extras: list[str]) -> Component:
    version = metadata.version(name)
    purl = PackageURL("pypi", None, name, version)
    found = Component(name=name, version=version, type=ComponentType.LIBRARY, bom_ref=name, purl=purl)
    found.licenses.add(LicenseFactory().make_from_string(licence_of(name)))
    found.properties.add(Property(name=f"{OURS}:extras", value="none" if "" in extras else " ".join(extras)))
    return found


def rows(found: dict[str, list[str]]) -> Iterator[str]:
    for name, extras in found.items():
        by = "always" if "" in extras else ", ".join(extras)
        yield f"| {name} | {metadata.version(name)} | {licence_of(name)} | {by} |\n"


def licence_of(name: str) -> str:
    """A package's licence as an expression of SPDX's; exits where it is unknown, or not permissive."""
    about: Any = metadata.metadata(name)
    classifiers = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier", []) if line.startswith("License")]
    said = [
        UNSAID.get(name),
        about.get("License-Expression"),
        *classifiers,
        (about.get("License") or "").strip().partition("\n")[0],
    ]
    for each in filter(None, said):
        expression: str = READ.get(each, each)
        if set(re.findall(r"[\w.-]+", expression)) - {"AND", "OR", "WITH", "LLVM-exception"} <= PERMISSIVE:
            return expression
    sys.exit(f"{name}: its licence is {said}; read it, then add it to docs/sbom.py")


if __name__ == "__main__":
    sys.exit(main())
