"""`gpt2-onnx inspect TEXT`: shows attention maps and the logit lens as a table, a picture or an HTML page."""

import argparse
import json
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

from runtime.cli import inspect_report as inside
from runtime.cli.arguments import add_loading, kept, text
from runtime.cli.complete import read_prompt
from runtime.cli.progress import progress_bar
from runtime.errors import command
from runtime.files import whole_file

DESCRIPTION = """\
Show what each layer would predict after a text. With --output, draw attention maps or the lens; with --html, write a
page that shows all of it."""
PICTURES = (".png", ".svg", ".pdf")
PAGES = (".html", ".htm")
TOP = 5


def add_to(commands: Any) -> None:
    parser = commands.add_parser("inspect", help="show attentions and the logit lens", description=DESCRIPTION)
    parser.add_argument("text", type=text, metavar="TEXT", help="a text of at most the context; - reads standard input")
    parser.add_argument("--layer", type=int, metavar="N", help="layer of the attention map to draw, from 0")
    parser.add_argument("--head", type=int, metavar="N", help="head of the attention map to draw, from 0")
    parser.add_argument("--lens", action="store_true", help="draw the lens instead: what each layer would predict")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="a .png, .svg or .pdf: one head, or all without --layer"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="a page with everything; it needs no network")
    parser.add_argument("--top", type=int, default=TOP, metavar="K", help=f"next tokens per layer (default: {TOP})")
    parser.add_argument("--json", action="store_true", help="print the lens as JSON, and the map if one is chosen")
    add_loading(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the files asked for, or print the lens after the last token."""

    check(options)
    looked_at = read_prompt(options.text)
    model = kept(options)
    check_sizes(options, model.bundle.manifest.architecture)
    look = Look(model, looked_at, options)
    if options.output:
        write_picture(options, look)
    if options.html:
        write_page(options.html, look)
    if options.json:
        print(json.dumps(inside.as_dict(look.lens, look.chosen_map())))
    elif not (options.output or options.html):
        print(inside.report(look.lens, model.bundle.manifest.architecture))
    return 0


def check(options: argparse.Namespace) -> None:
    """Check what can be checked before a model is loaded."""
    check_file("--output", options.output, PICTURES)
    check_file("--html", options.html, PAGES)
    if (options.layer is None) != (options.head is None):
        raise ValueError("--layer and --head choose a map together; give both, or neither for all of them")
    if options.layer is not None and options.lens:
        raise ValueError("--lens is a picture of its own; leave out --layer and --head, or --lens")
    if options.lens and not options.output:
        raise ValueError("--lens draws a picture; name its file: --output lens.png")
    if options.layer is not None and not (options.output or options.json):
        raise ValueError("--layer and --head choose the map to draw; name its file: --output head.png")
    if options.output:
        import runtime.inside.plots  # noqa: F401  raises ImportError without matplotlib


def check_file(flag: str, path: Path | None, suffixes: tuple[str, ...]) -> None:
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{flag} must end in {' or '.join(suffixes)}, got {path}")
    if not path.parent.is_dir():
        make = command("mkdir", "-p", path.parent)
        raise ValueError(f"{flag} must be in an existing folder, got {path}; make it: {make}")


def check_sizes(options: argparse.Namespace, sizes: Any) -> None:
    from runtime.checks import check_count

    check_count("--top", options.top, most=sizes.vocab_size)
    if options.layer is not None:
        check_count("--layer", options.layer, least=0, most=sizes.n_layer - 1)
        check_count("--head", options.head, least=0, most=sizes.n_head - 1)


class Look:
    """What a model computes for one text; each part is computed once, on first use."""

    def __init__(self, model: Any, text: str, options: argparse.Namespace) -> None:
        self.model, self.text = model, text
        self.layer, self.head, self.top = options.layer, options.head, options.top
        self.every_layer = bool(options.html) or options.layer is None

    @cached_property
    def lens(self) -> Any:
        with progress_bar("looking", "layer", self.model.bundle.manifest.architecture.n_layer + 1) as bar:
            return self.model.lens(self.text, k=self.top, progress=bar.update)

    @cached_property
    def maps(self) -> Any:
        """Attention maps of all layers, or only of the chosen one."""
        layers = None if self.every_layer else self.layer
        return self.model.inspect(self.text, outputs=["attentions"], layers=layers)

    def chosen_map(self) -> inside.Map | None:
        if self.layer is None:
            return None
        return inside.Map(self.layer, self.head, self.maps.attention(self.layer, self.head))


def write_picture(options: argparse.Namespace, look: Look) -> None:
    if options.lens:
        figure = look.lens.plot()
    elif options.layer is None:
        figure = look.maps.plot_overview()
    else:
        figure = look.maps.plot_attention(options.layer, options.head)
    with whole_file(options.output) as path, progress_bar("drawing", "picture", 1) as bar:
        figure.savefig(path)  # a lens of 200 tokens takes some seconds
        bar.update(1)
    say_written(options.output)


def write_page(output: Path, look: Look) -> None:
    from runtime.inside.page import make_page

    page = make_page(look.maps, look.lens, model=look.model.bundle.manifest.source.id)
    with whole_file(output) as path:
        path.write_text(page, encoding="utf-8")
    say_written(output)


def say_written(path: Path) -> None:
    print(f"gpt2-onnx: {path}, {path.stat().st_size / 1e6:,.2f} MB", file=sys.stderr)
