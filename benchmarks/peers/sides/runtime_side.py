"""This runtime: a bundle, at one of its precisions."""

import json
import sys
from pathlib import Path
from typing import Any

import runtime
from benchmarks.peers.sides import protocol

LOOKUPS = {"Gather", "GatherBlockQuantized"}  # read the rows that are asked for, not the whole
SHORTLISTED = "lm_head"  # is multiplied with only where a shortlist is in doubt
SERVED = ("manifest.json", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def prepare(_checkpoint: Path, bundle: Path, _folder: Path, precision: str) -> protocol.Facts:
    import onnx

    graph = decode_graph(bundle, precision)
    tensors = external_tensors(onnx.load(graph, load_external_data=False).graph)
    data = {graph.parent / location for (location, _), _ in tensors.items()}
    return {
        "folder": bundle,
        "files": [graph, *data, *(bundle / name for name in SERVED)],
        "weights": sum(tensors.values()),
    }


def decode_graph(bundle: Path, precision: str) -> Path:
    for graph in json.loads((bundle / "manifest.json").read_text())["graphs"]:
        if (graph["kind"], graph["precision"]) == ("decode", precision):
            return bundle / str(graph["path"])
    sys.exit(f"the bundle has no decode graph of precision {precision}")


def external_tensors(graph: Any) -> dict[tuple[str, str], int]:
    """{(file, offset): bytes} of the initializers that a step reads whole, each once however many share it."""
    shortlisted = any(tensor.name.startswith("shortlist.") for tensor in graph.initializer)
    nodes = [node for node in graph.node if not (shortlisted and node.name == SHORTLISTED)]
    read_whole = {name for node in nodes if node.op_type not in LOOKUPS for name in node.input}
    found = {}
    for tensor in graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place and tensor.name in read_whole:
            found[place["location"], place["offset"]] = int(place["length"])
    return found


def loaded(folder: str, precision: str, threads: int) -> runtime.Model:
    """Without the cache of beginnings, in which each prompt would be after its first turn."""
    return runtime.load(
        folder, threads=threads, precision=None if precision == "fp32" else precision, prefix_cache=False
    )


def load(folder: str, precision: str, threads: int) -> protocol.Take:
    """Its own tokenizer counts: the public interface takes text."""
    model = loaded(folder, precision, threads)

    def take(prompts: list[list[int]], new_tokens: int) -> protocol.Work:
        texts = [model.decode(ids) for ids in prompts]
        if [model.encode(text) for text in texts] != prompts:
            raise ValueError("the prompts' texts have other ids")
        settings: dict[str, Any] = {"max_new_tokens": new_tokens, "ignore_eos": True}
        settings["draft"] = False  # which `python -m benchmarks.generating drafts` measures
        if len(texts) == 1:
            return lambda: [list(model.complete(texts[0], **settings).token_ids)]
        return lambda: [list(done.token_ids) for done in model.complete(texts, batch_size=len(texts), **settings)]

    return take


def first(folder: str, precision: str, threads: int, text: str) -> int:
    return loaded(folder, precision, threads).complete(text, max_new_tokens=1, ignore_eos=True).token_ids[0]


if __name__ == "__main__":
    protocol.main(sys.modules[__name__])
