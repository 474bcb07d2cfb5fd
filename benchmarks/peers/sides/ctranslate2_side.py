"""CTranslate2, by its own converter."""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers.sides import protocol

TYPES = {"fp32": "float32", "int8": "int8"}
POSITION_BYTES = 4  # an element; it keeps the position embeddings in float32


def prepare(checkpoint: Path, _bundle: Path, folder: Path, precision: str) -> protocol.Facts:
    from ctranslate2.converters import TransformersConverter

    converter = TransformersConverter(str(checkpoint), copy_files=["tokenizer.json"])
    converter.convert(str(folder), quantization=TYPES[precision], force=True)
    config = json.loads((checkpoint / "config.json").read_text())
    positions = POSITION_BYTES * config["n_positions"] * config["n_embd"]
    return {
        "folder": folder,
        "files": list(folder.iterdir()),
        "weights": (folder / "model.bin").stat().st_size - positions,
    }


def loaded(folder: str, precision: str, threads: int) -> Any:
    import ctranslate2

    return ctranslate2.Generator(folder, intra_threads=threads, inter_threads=1, compute_type=TYPES[precision])


def load(folder: str, precision: str, threads: int) -> protocol.Take:
    generator = loaded(folder, precision, threads)
    vocabulary = json.loads((Path(folder) / "vocabulary.json").read_text())  # it takes tokens as text

    def take(prompts: list[list[int]], new_tokens: int) -> protocol.Work:
        tokens = [[vocabulary[number] for number in prompt] for prompt in prompts]
        return lambda: [result.sequences_ids[0] for result in generate(generator, tokens, new_tokens)]

    return take


def generate(generator: Any, tokens: list[list[str]], new_tokens: int) -> Any:
    settings: dict[str, Any] = {"max_length": new_tokens, "min_length": new_tokens, "include_prompt_in_result": False}
    settings |= {"max_batch_size": len(tokens), "beam_size": 1, "sampling_topk": 1, "end_token": []}
    return generator.generate_batch(tokens, **settings)


def first(folder: str, precision: str, threads: int, text: str) -> int:
    from tokenizers import Tokenizer

    tokens = Tokenizer.from_file(str(Path(folder) / "tokenizer.json")).encode(text).tokens
    return int(generate(loaded(folder, precision, threads), [tokens], 1)[0].sequences_ids[0][0])


if __name__ == "__main__":
    protocol.main(sys.modules[__name__])
