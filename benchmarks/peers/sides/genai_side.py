"""OpenVINO GenAI: its continuous batching with paged attention, on the conversion and the settings of OpenVINO's side.

Its prefix cache is off, as this runtime's is, and its key/value cache grows as it needs.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers.sides import openvino_side, protocol

COPIED = ("config.json", "generation_config.json")
BATCHED_TOKENS = 2048  # of a step, where the default is 256: the prompts of a batch in one step


def prepare(checkpoint: Path, _bundle: Path, folder: Path, precision: str) -> protocol.Facts:
    import openvino

    model = openvino_side.converted(checkpoint, precision)
    folder.mkdir(parents=True, exist_ok=True)
    openvino.save_model(model, folder / "openvino_model.xml", compress_to_fp16=False)
    convert_tokenizer(checkpoint, folder)
    for name in COPIED:
        shutil.copy(checkpoint / name, folder)
    return {"folder": folder, "files": list(folder.iterdir()), "weights": sum(openvino_side.read_whole(model))}


def convert_tokenizer(checkpoint: Path, folder: Path) -> None:
    import openvino
    import openvino_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    there, back = openvino_tokenizers.convert_tokenizer(tokenizer, with_detokenizer=True)
    openvino.save_model(there, folder / "openvino_tokenizer.xml")
    openvino.save_model(back, folder / "openvino_detokenizer.xml")


def loaded(folder: str, precision: str, threads: int, **more: str) -> Any:
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching, scheduler.max_num_batched_tokens = False, BATCHED_TOKENS
    settings = openvino_side.compiling(precision, threads, **more)
    return openvino_genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", settings)


def generate(pipeline: Any, inputs: list[Any], new_tokens: int) -> list[list[int]]:
    import openvino_genai

    greedy = openvino_genai.GenerationConfig(max_new_tokens=new_tokens, ignore_eos=True, do_sample=False)
    results = pipeline.generate(inputs, [greedy] * len(inputs))
    return [list(result.m_generation_ids[0]) for result in results]


def load(folder: str, precision: str, threads: int) -> protocol.Take:
    import numpy
    import openvino

    pipeline = loaded(folder, precision, threads)

    def take(prompts: list[list[int]], new_tokens: int) -> protocol.Work:
        inputs = [openvino.Tensor(numpy.array([prompt])) for prompt in prompts]
        return lambda: generate(pipeline, inputs, new_tokens)

    return take


def first(folder: str, precision: str, threads: int, text: str) -> int:
    cache = str(Path(folder) / "cache")  # compiled once, in the round that is not counted: its setting for quick starts
    pipeline = loaded(folder, precision, threads, CACHE_DIR=cache)
    return generate(pipeline, [pipeline.get_tokenizer().encode(text).input_ids], 1)[0][0]


if __name__ == "__main__":
    protocol.main(sys.modules[__name__])
