"""What every side has in common: how it is asked, and how it answers. Standard library only, for any environment.

    python -m SIDE prepare CHECKPOINT BUNDLE FOLDER PRECISION     writes what it serves from, and says what that is
    python -m SIDE serve FOLDER PRECISION THREADS                 a task a line in, an answer a line out
    python -m SIDE first FOLDER PRECISION THREADS TEXT            the id of the first token after a text

All of them answer in JSON, a line each. A task is {"prompts": [[id, …], …], "new_tokens": n}: continue the prompts side
by side, greedily, past any end of text; the answer is {"seconds": s, "token_ids": [[id, …], …]} or {"error": why}.

A side is a module with three functions. `prepare(checkpoint, bundle, folder, precision)` gives {"folder": where it
serves from, "files": every path that it needs there, "weights": bytes that a decoded token reads}. `load(folder,
precision, threads)` gives a function of prompts and a count, which gives a function of nothing: that one is timed, so
that putting ids into a library's own form is not. `first(folder, precision, threads, text)` gives an id.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

Facts = dict[str, Any]
Work = Callable[[], list[list[int]]]  # what is timed
Take = Callable[[list[list[int]], int], Work]  # of prompts and a count of new tokens
Load = Callable[[str, str, int], Take]
First = Callable[[str, str, int, str], int]


def main(side: Any) -> None:
    """Do what the command line asks of this side."""
    answers = answer_channel()
    mode, *arguments = sys.argv[1:]
    if mode == "prepare":
        checkpoint, bundle, folder, precision = arguments
        facts = side.prepare(Path(checkpoint), Path(bundle), Path(folder), precision)
        tell(answers, summary(facts))
    elif mode == "serve":
        folder, precision, threads = arguments
        serve(side.load(folder, precision, int(threads)), answers)
    else:
        folder, precision, threads, text = arguments
        tell(answers, side.first(folder, precision, int(threads), text))


def answer_channel() -> TextIO:
    """Standard output for the answers alone: what libraries print there goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def tell(answers: TextIO, answer: Any) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def summary(facts: Facts) -> Facts:
    files = {Path(path) for path in facts["files"]}
    return {
        "folder": str(facts["folder"]),
        "bytes": sum(file.stat().st_size for file in files),
        "weights": facts["weights"],
    }


def serve(take: Take, answers: TextIO) -> None:
    for line in sys.stdin:
        tell(answers, answer_to(json.loads(line), take))


def answer_to(task: dict[str, Any], take: Take) -> dict[str, Any]:
    try:
        work = take(task["prompts"], task["new_tokens"])
        started = time.perf_counter()
        token_ids = work()
        return {"seconds": time.perf_counter() - started, "token_ids": token_ids}
    except Exception as error:  # whatever it is, it is this side's answer, and the others go on
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def left_padded(prompts: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Ids and attention mask, both rectangular."""
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
    return ids, [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]


def float32_weights(checkpoint: Path) -> int:
    """Bytes of a float32 GPT-2's weights that a token reads: all but the position embeddings, of which it reads a row.

    The token embeddings are read whole, by the language-modelling head that shares them.
    """
    with (checkpoint / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    left_out = ("wpe.weight", "lm_head.weight", ".attn.bias", ".attn.masked_bias")  # and what is tied, or no weight
    kept = [entry["shape"] for name, entry in header.items() if name != "__metadata__" and not name.endswith(left_out)]
    return sum(4 * math.prod(shape) for shape in kept)
