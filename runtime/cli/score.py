"""`gpt2-onnx score FILE`: prints the perplexity of a text of any length."""

import argparse
import json
import time
from typing import Any

from runtime.cli.arguments import add_loading, kept, read_utf8
from runtime.cli.progress import progress_bar


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "score",
        help="the perplexity of a text",
        description="Print the perplexity of a text of any length, in windows of the model's context.",
    )
    parser.add_argument("file", metavar="FILE", help="a UTF-8 text; - reads standard input")
    add_loading(parser)
    parser.add_argument(
        "--stride", type=int, metavar="N", help="tokens from window to window (default: half the context)"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the perplexity and the number of tokens scored."""

    text = read_utf8(options.file)
    model = kept(options)
    started = time.perf_counter()
    with progress_bar("scoring", "token", len(model.encode(text)) - 1) as bar:
        score = model.score(text, stride=options.stride, progress=bar.update)
    findings = {
        "perplexity": score.perplexity,
        "tokens": len(score.token_ids),
        "scored_tokens": score.scored_tokens,
        "context": score.context,
        "stride": score.stride,
        "seconds": round(time.perf_counter() - started, 3),
    }
    if options.json:
        print(json.dumps({"file": options.file, **findings}))
    else:
        print(
            f"perplexity {score.perplexity:.4f} over {score.scored_tokens:,} tokens "
            f"(context {score.context:,}, stride {score.stride:,})"
        )
    return 0
