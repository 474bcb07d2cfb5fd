"""OpenVINO: optimum-intel's stateful conversion, nncf's weight compression, and a loop on the inference request itself.

The language-modelling head is given the last position alone, as OpenVINO's own text generation does it.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers.sides import protocol

MODES = {"int8": "INT8_SYM", "int4": "INT4_SYM"}  # faster than the asymmetric ones that optimum-cli takes by itself
GROUP = 128  # optimum-cli's group size for int4
LEAST = 1000  # bytes: smaller constants are shapes and scalars


def prepare(checkpoint: Path, _bundle: Path, folder: Path, precision: str) -> protocol.Facts:
    import openvino

    model = converted(checkpoint, precision)
    head_reads_last_position(model)
    folder.mkdir(parents=True, exist_ok=True)
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    shutil.copy(checkpoint / "tokenizer.json", folder)
    return {
        "folder": folder,
        "files": [folder / name for name in ("model.xml", "model.bin", "tokenizer.json")],
        "weights": sum(read_whole(model)),
    }


def converted(checkpoint: Path, precision: str) -> Any:
    import transformers.utils.import_utils as found

    found._torchvision_available = False  # comes with optimum-intel, of another build than torch; text needs none of it
    from optimum.intel import OVModelForCausalLM

    options = {"export": True, "compile": False, "stateful": True, "load_in_8bit": False}
    model = OVModelForCausalLM.from_pretrained(str(checkpoint), **options).model
    if precision in MODES:
        compress(model, precision)
    return model


def compress(model: Any, precision: str) -> None:
    import nncf

    grouped: dict[str, Any] = {"ratio": 1.0, "group_size": GROUP} if precision == "int4" else {}
    nncf.compress_weights(model, mode=nncf.CompressWeightsMode[MODES[precision]], **grouped)


def head_reads_last_position(model: Any) -> None:
    from openvino import opset13 as operators

    product = model.output("logits").get_node().input_value(0).get_node()
    hidden = product.input_value(0)
    ends = [operators.constant([number]) for number in (-1, -2, -1)]  # start, stop, step
    last = operators.slice(hidden, *ends, operators.constant([1]))
    product.input(0).replace_source_output(last.output(0))
    model.validate_nodes_and_infer_types()


def read_whole(model: Any) -> list[int]:
    """Bytes of each weight that a token reads whole: not of those of which only rows are gathered."""
    return [
        node.get_byte_size()
        for node in model.get_ops()
        if node.get_type_name() == "Constant" and node.get_byte_size() >= LEAST and not only_gathered(node)
    ]


def only_gathered(node: Any) -> bool:
    """Whether a weight, decompressed or not, goes nowhere but into a gather."""
    readers = [target.get_node() for output in node.outputs() for target in output.get_target_inputs()]
    passing = {"Convert", "Subtract", "Multiply", "Reshape"}
    return all(
        reader.get_type_name() == "Gather" or (reader.get_type_name() in passing and only_gathered(reader))
        for reader in readers
    )


def request(folder: str, precision: str, threads: int, **more: str) -> Any:
    import openvino

    settings = compiling(precision, threads, **more)
    return openvino.Core().compile_model(Path(folder) / "model.xml", "CPU", settings).create_infer_request()


def compiling(precision: str, threads: int, **more: str) -> dict[str, Any]:
    settings: dict[str, Any] = {
        **more,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    if precision == "fp32":
        settings["KV_CACHE_PRECISION"] = "f32"  # as fast as its float16, and its tokens are then PyTorch's
    return settings


def generate(request: Any, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    import numpy

    ids, mask = map(numpy.array, protocol.left_padded(prompts))
    positions = numpy.maximum(mask.cumsum(axis=1) - 1, 0)
    rows, texts = numpy.arange(len(prompts), dtype=numpy.int32), []
    request.reset_state()
    for _ in range(new_tokens):
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "beam_idx": rows}
        request.infer(inputs, share_inputs=True)
        ids = request.get_output_tensor().data[:, -1].argmax(axis=-1, keepdims=True)
        texts.append(ids[:, 0])
        mask, positions = numpy.pad(mask, ((0, 0), (0, 1)), constant_values=1), positions[:, -1:] + 1
    token_ids: list[list[int]] = numpy.stack(texts, axis=1).tolist()
    return token_ids


def load(folder: str, precision: str, threads: int) -> protocol.Take:
    ready = request(folder, precision, threads)
    return lambda prompts, new_tokens: lambda: generate(ready, prompts, new_tokens)


def first(folder: str, precision: str, threads: int, text: str) -> int:
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(Path(folder) / "tokenizer.json")).encode(text).ids
    cache = str(Path(folder) / "cache")  # compiled once, in the round that is not counted: its setting for quick starts
    return generate(request(folder, precision, threads, CACHE_DIR=cache), [ids], 1)[0][0]


if __name__ == "__main__":
    protocol.main(sys.modules[__name__])
