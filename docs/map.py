"""The map in docs/architecture.md, from the first lines of the modules' docstrings.

python docs/map.py            # writes it anew: make map
python docs/map.py --check    # exit code 1, and what to do, where it is not as the modules are: make check
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- map -->\n```\n", "```\n<!-- end of map -->"
WIDTH = 26  # of the column of names


def main() -> int:
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    drawn = before + BEGIN + draw() + END + rest.split(END)[1]
    if "--check" in sys.argv[1:]:
        if drawn != page:
            print("docs/architecture.md: the map is not as the modules are; write it anew: make map", file=sys.stderr)
        return int(drawn != page)
    PAGE.write_text(drawn, encoding="utf-8")
    return 0


def draw() -> str:
    return "".join(f"{line}\n" for package in ("export", "runtime") for line in lines(ROOT / package, 0))


def lines(folder: Path, depth: int) -> Iterator[str]:
    """A package's own line, its modules', then its rooms'."""
    yield line(f"{folder.name}/", folder / "__init__.py", depth)
    for module in sorted(folder.glob("*.py")):
        if not module.name.startswith("__"):
            yield line(module.name, module, depth + 1)
    for room in sorted(path.parent for path in folder.glob("*/__init__.py")):
        yield from lines(room, depth + 1)


def line(name: str, module: Path, depth: int) -> str:
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))
    if not docstring:
        sys.exit(f"{module.relative_to(ROOT)} has no docstring; its first line is what the map says of it")
    return f"{'  ' * depth + name:<{WIDTH}}{docstring.splitlines()[0]}"


if __name__ == "__main__":
    sys.exit(main())
