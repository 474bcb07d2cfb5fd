"""Prompts side by side: this runtime against transformers and CTranslate2, on the same checkpoint, in one run.

    python benchmarks/batch.py                  # a seeded GPT-2 small, batches of 1, 8 and 16

Float32, greedy, prompts of 8 to 120 tokens, the same number of new tokens for each. CTranslate2 is installed into
build/benchmarks the first time; where that fails, the table is without it, and standard error says why.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from seeded import WORK, exported, seeded_checkpoint
from turns import machine, make_parser, ratios, serve, spread, take_turns

OURS = "gpt2-onnx"
SIDES = (OURS, "transformers", "CTranslate2")
PEER = WORK / "ctranslate2"  # its packages
REQUIREMENTS = Path(__file__).with_name("requirements-ctranslate2.txt")
TEXT = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a "
    "wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, this "
    "truth is so well fixed in the minds of the surrounding families, that he is considered as the rightful property "
    "of some one or other of their daughters. My dear Mr. Bennet, said his lady to him one day, have you heard that "
    "Netherfield Park is let at last?"
)
FEWEST, MOST = 5, 75  # words in a prompt


def main() -> None:
    options = parse_arguments()
    if options.worker:
        side, folder, batch = options.worker
        serve(MAKERS[side](folder, prompts(int(batch)), options))
        return
    checkpoint = options.checkpoint or seeded_checkpoint("small")
    folders = {OURS: exported(checkpoint), "transformers": checkpoint, **peer_folder(checkpoint)}
    results = {batch: measure(folders, batch, options) for batch in options.batches}
    title = f"{checkpoint.name}, float32, {options.tokens} greedy tokens a prompt, {options.threads} threads"
    versions = machine("onnxruntime", "torch", "transformers", REQUIREMENTS.read_text().strip().replace("==", " "))
    if options.json:
        print(json.dumps({"title": title, "machine": versions, "results": results}, indent=2))
        return
    console = Console(width=120)
    console.print(f"{title}\n{versions}\n")
    console.print(make_table(results))


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0], tokens=64, rounds=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16], help="prompts side by side")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def prompts(batch: int) -> list[str]:
    """Of lengths evenly from the fewest words to the most."""
    words = TEXT.split()
    return [" ".join(words[: FEWEST + n * (MOST - FEWEST) // max(1, batch - 1)]) for n in range(batch)]


def peer_folder(checkpoint: Path) -> dict[str, Path]:
    """Nothing, if the peer cannot be had."""
    try:
        return {"CTranslate2": converted(checkpoint)}
    except subprocess.CalledProcessError as error:
        print(f"CTranslate2 is left out: {error}", file=sys.stderr)
        return {}


def converted(checkpoint: Path) -> Path:
    """The checkpoint as CTranslate2 wants it, by its own converter."""
    if not PEER.exists():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", PEER, "-r", REQUIREMENTS]
        subprocess.run(install, check=True)
    folder = WORK / f"{checkpoint.name}-ctranslate2"
    if not folder.exists():
        script = "from ctranslate2.converters import TransformersConverter; import sys; "
        script += "TransformersConverter(sys.argv[1], copy_files=['tokenizer.json']).convert(sys.argv[2])"
        subprocess.run([sys.executable, "-c", script, checkpoint, folder], check=True, env=peer_environment())
    return folder


def peer_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PEER)}


def runtime_side(folder: str, texts: list[str], options: argparse.Namespace):
    import runtime

    model = runtime.load(folder, threads=options.threads)
    settings = {"max_new_tokens": options.tokens, "ignore_eos": True}
    return lambda: [list(done.token_ids) for done in model.complete(texts, batch_size=len(texts), **settings)]


def transformers_side(folder: str, texts: list[str], options: argparse.Namespace):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", pad_token="<|endoftext|>")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.eos_token_id = None
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    settings = {"do_sample": False, "max_new_tokens": options.tokens, "pad_token_id": 0}
    return lambda: model.generate(**inputs, **settings)[:, inputs.input_ids.shape[1] :].tolist()


def ctranslate2_side(folder: str, texts: list[str], options: argparse.Namespace):
    sys.path.insert(0, str(PEER))
    import ctranslate2
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    prompts = [tokenizer.encode(text).tokens for text in texts]
    generator = ctranslate2.Generator(folder, intra_threads=options.threads, inter_threads=1, compute_type="float32")
    settings = {"max_length": options.tokens, "min_length": options.tokens, "include_prompt_in_result": False}
    settings |= {"max_batch_size": len(texts), "sampling_topk": 1, "end_token": []}
    return lambda: [result.sequences_ids[0] for result in generator.generate_batch(prompts, **settings)]


MAKERS = dict(zip(SIDES, (runtime_side, transformers_side, ctranslate2_side), strict=True))


def measure(folders: dict[str, Path], batch: int, options: argparse.Namespace) -> dict[str, dict]:
    """Tokens per second of each side's turns, and whether its tokens are ours."""
    common = ["--tokens", options.tokens, "--threads", options.threads]
    commands = {
        side: [sys.executable, __file__, "--worker", side, folder, batch, *common] for side, folder in folders.items()
    }
    turns = take_turns(commands, options.rounds, f"batch of {batch}")
    ours = turns[OURS][-1][1]
    return {
        side: {
            "tokens_per_second": [sum(map(len, tokens)) / seconds for seconds, tokens in answers],
            "same_rows": sum(row == our_row for row, our_row in zip(answers[-1][1], ours, strict=True)),
        }
        for side, answers in turns.items()
    }


def make_table(results: dict[int, dict[str, dict]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    headings = ("batch", "side", "tokens per second, median (min to max)", "gpt2-onnx is faster by", "rows the same")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "side" else "right")
    for batch, sides in results.items():
        ours = sides[OURS]["tokens_per_second"]
        for side, found in sides.items():
            faster = "" if side == OURS else spread(ratios(ours, found["tokens_per_second"]))
            same = "" if side == OURS else f"{found['same_rows']} of {batch}"
            table.add_row(str(batch), side, spread(found["tokens_per_second"]), faster, same)
    return table


if __name__ == "__main__":
    main()
