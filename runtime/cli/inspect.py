"""`gpt2-onnx inspect TEXT`: what a model computes of a text, in words, as a picture or as a page."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from runtime.cli import inside
from runtime.cli.arguments import add_loading
from runtime.cli.complete import read_prompt
from runtime.cli.progress import progress_bar

DESCRIPTION = """\
Show what each layer would have said behind a text; with --output draw attentions or the lens, with --html write a page
that shows all of it."""
PICTURES = (".png", ".svg", ".pdf")
PAGES = (".html", ".htm")
TOP = 5


def add_to(commands: Any) -> None:
    parser = commands.add_parser("inspect", help="look inside: attentions and the logit lens", description=DESCRIPTION)
    parser.add_argument("text", metavar="TEXT", help="at most the context; - reads standard input")
    parser.add_argument("--layer", type=int, metavar="N", help="of the attention map to draw, from 0")
    parser.add_argument("--head", type=int, metavar="N", help="of the attention map to draw, from 0")
    parser.add_argument("--lens", action="store_true", help="draw the lens instead: what each layer would have said")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="a .png, .svg or .pdf: one head, or without --layer all of them"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="one page with everything, which needs no network")
    parser.add_argument("--top", type=int, default=TOP, metavar="K", help=f"next tokens of a layer (default: {TOP})")
    parser.add_argument("--json", action="store_true", help="print the lens as JSON, and the map if one is chosen")
    add_loading(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write what was asked for, or print the lens behind the last token."""
    from runtime.default_model import kept_model
    from runtime.loading import find_model

    check(options)
    text = read_prompt(options.text)
    model = kept_model(find_model(options.model), options.precision, options.device, options.gpu_mem_limit)
    check_map(options, model)
    if options.output:
        write_picture(options, model, text)
    if options.html:
        write_page(options, model, text)
    if options.json:
        print(json.dumps(inside.as_dict(look(options, model, text), chosen_map(options, model, text))))
    elif not (options.output or options.html):
        print(inside.report(look(options, model, text), model.bundle.manifest.architecture))
    return 0


def check(options: argparse.Namespace) -> None:
    """What can be known to be wrong before a model is loaded."""
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
        import runtime.plots  # noqa: F401  it says what is missing


def check_file(flag: str, path: Path | None, suffixes: tuple[str, ...]) -> None:
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{flag} must end in {' or '.join(suffixes)}, got {path}")
    if not path.parent.is_dir():
        raise ValueError(f"{flag} must be in a folder that is there, got {path}; make it: mkdir -p {path.parent}")


def check_map(options: argparse.Namespace, model: Any) -> None:
    from runtime.options import check_count

    if options.layer is not None:
        sizes = model.bundle.manifest.architecture
        check_count("--layer", options.layer, least=0, most=sizes.n_layer - 1)
        check_count("--head", options.head, least=0, most=sizes.n_head - 1)


def look(options: argparse.Namespace, model: Any, text: str) -> Any:
    """The lens of the text."""
    with progress_bar("looking", "layer", model.bundle.manifest.architecture.n_layer + 1) as bar:
        return model.lens(text, k=options.top, progress=bar.update)


def chosen_map(options: argparse.Namespace, model: Any, text: str) -> inside.Map | None:
    if options.layer is None:
        return None
    seen = model.inspect(text, outputs=["attentions"], layers=options.layer)
    return inside.Map(options.layer, options.head, seen.attention(options.layer, options.head))


def write_picture(options: argparse.Namespace, model: Any, text: str) -> None:
    if options.lens:
        figure = look(options, model, text).plot()
    elif options.layer is None:
        figure = model.inspect(text, outputs=["attentions"]).plot_overview()
    else:
        seen = model.inspect(text, outputs=["attentions"], layers=options.layer)
        figure = seen.plot_attention(options.layer, options.head)
    with progress_bar("drawing", "picture", 1) as bar:  # a lens of 200 tokens takes some seconds
        figure.savefig(options.output)
        bar.update(1)
    say_written(options.output)


def write_page(options: argparse.Namespace, model: Any, text: str) -> None:
    from runtime.page import make_page

    seen = model.inspect(text, outputs=["attentions"])
    page = make_page(seen, look(options, model, text), model=model.bundle.manifest.source.id)
    options.html.write_text(page, encoding="utf-8")
    say_written(options.html)


def say_written(path: Path) -> None:
    print(f"gpt2-onnx: {path}, {path.stat().st_size / 1e6:,.2f} MB", file=sys.stderr)
