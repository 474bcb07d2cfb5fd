"""Writes a bundle's files in order of dependency: weights, graphs, settings, manifest."""

import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import runtime
from export.architecture import describe
from export.bundle.genai_config import write_genai_config
from export.checkpoint import Checkpoint
from export.checkpoint.tokenizer import TOKENIZER, TOKENIZER_CONFIG, cleaned
from export.errors import ParityError
from export.graphs.decode import DecodeGraph
from export.graphs.device import Float32Graph, HalfGraph
from export.graphs.int8_cache import write_int8_cache
from export.graphs.lens import LensGraph
from export.graphs.linear import BlockLinear, FloatLinear, IntegerLinear, Linear
from export.graphs.nodes import write_graph
from export.graphs.ragged import RaggedGraph
from export.graphs.reference import build_reference_graph
from export.graphs.shortlist import FILE, find_shortlist
from export.graphs.tracing.choice import find_tracer
from export.quantization.codes import QuantizedWeights, Scales
from export.quantization.recipe import Recipe
from export.weights import StoredTensor, write_quantized, write_weights
from runtime.bundle.architecture import Architecture
from runtime.bundle.bundle import file_sha256
from runtime.bundle.manifest import NAME, FileRecord, Graph, Kind, Manifest, Source
from runtime.graphs.kinds import runs
from runtime.graphs.work import MANY
from runtime.ort.install import load_onnxruntime

WEIGHTS = "model.onnx_data"
REFERENCE = Graph("onnx/model.onnx", "reference", "fp32")
LENS = Graph("onnx/lens.onnx", "lens", "fp32")
DECODE = Graph("onnx/decode.onnx", "decode", "fp32")
RAGGED = Graph("onnx/ragged.onnx", "ragged", "fp32")
DECODE_CUDA = Graph("onnx/decode_cuda.onnx", "decode_cuda", "fp32")
DECODE_HALF = Graph("onnx/decode_fp16.onnx", "decode", "fp16")
GRAPHS: dict[Kind, type[DecodeGraph]] = {
    "decode": DecodeGraph,
    "prefill": DecodeGraph,
    "ragged": RaggedGraph,
    "ragged_prefill": RaggedGraph,
}
TOKENIZER_FILES = {TOKENIZER, TOKENIZER_CONFIG, "chat_template.jinja"}
MADE_WITH = ("torch", "transformers", "onnx", "tokenizers")


def copy_weights(checkpoint: Checkpoint, folder: Path) -> tuple[dict[str, StoredTensor], int]:
    """Write the float32 weights file; return where each tensor is in it, and the number of parameters."""
    (folder / "onnx").mkdir()
    model = checkpoint.load_model()
    tensors: dict[str, torch.Tensor] = model.state_dict()
    return write_weights(tensors, folder / "onnx" / WEIGHTS), model.num_parameters()


def write_graphs(checkpoint: Checkpoint, weights: dict[str, StoredTensor], folder: Path) -> list[Graph]:
    """Write the reference graph, the lens, and the float32 decode graphs for the CPU and for CUDA."""
    build_reference_graph(checkpoint.config, weights, folder / REFERENCE.path)
    write_graph(LensGraph(checkpoint.config), weights, folder / LENS.path)
    decoding = write_decode_graphs(checkpoint, weights, folder)
    write_graph(Float32Graph(checkpoint.config, FloatLinear()), weights, folder / DECODE_CUDA.path)
    return [REFERENCE, *decoding, DECODE_CUDA, LENS]


def write_half_graph(checkpoint: Checkpoint, folder: Path) -> Graph:
    """Write the decode graph in float16, with its own weights; ParityError if float16 cannot hold them."""
    model = checkpoint.load_model()
    largest = max(tensor.abs().max().item() for tensor in model.parameters())
    if largest > torch.finfo(torch.float16).max:
        raise ParityError(f"it holds weights up to 65,504, but the largest here is {largest:,.0f}")
    stored = write_weights(model.half().state_dict(), folder / f"{DECODE_HALF.path}_data")
    write_graph(HalfGraph(checkpoint.config, FloatLinear()), stored, folder / DECODE_HALF.path)
    return DECODE_HALF


def write_decode_graphs(checkpoint: Checkpoint, weights: dict[str, StoredTensor], folder: Path) -> list[Graph]:
    """Write the decode graphs in float32, with a shortlist in its own file if that is faster."""
    shortlist = find_shortlist(checkpoint.load_model())
    listed = write_quantized(shortlist.weights(), folder / "onnx" / FILE) if shortlist else {}
    graphs = [graph for graph in (DECODE, RAGGED) if runs(graph.kind)]
    for graph in graphs:
        nodes = GRAPHS[graph.kind](checkpoint.config, FloatLinear(), shortlist)
        write_graph(nodes, {**weights, **listed}, folder / graph.path)
    return graphs


def write_quantized_graphs(
    checkpoint: Checkpoint, recipe: Recipe, weights: QuantizedWeights, folder: Path
) -> list[Graph]:
    """Write a precision's decode graphs and, if the context is long enough, its prefill graphs, on one weights file."""
    precision = recipe.precision
    stored = write_quantized(weights, folder / "onnx" / f"decode_{precision}.onnx_data")
    block, integer = BlockLinear(weights.matrices), IntegerLinear(weights.matrices)
    linears: dict[Kind, Linear] = {"decode": block, "ragged": block}
    if recipe.integer_prefill and checkpoint.config.n_positions >= MANY:
        linears |= {"prefill": integer, "ragged_prefill": integer}
    graphs = [Graph(f"onnx/{kind}_{precision}.onnx", kind, precision) for kind in linears if runs(kind)]
    for graph in graphs:
        write_graph(GRAPHS[graph.kind](checkpoint.config, linears[graph.kind]), stored, folder / graph.path)
    return graphs


def write_cached_graphs(graphs: Iterable[Graph], scales: Scales, folder: Path) -> list[Graph]:
    """Write each ragged graph again with int8 keys and values, on the same weights."""
    written = []
    for graph in graphs:
        if graph.kind == "ragged":
            path = graph.path.replace("ragged", "int8_cache")
            write_int8_cache(folder / graph.path, scales, folder / path)
            written.append(Graph(path, "int8_cache", graph.precision))
    return written


def write_settings(checkpoint: Checkpoint, folder: Path) -> None:
    """Write config.json, generation_config.json, tokenizer files and genai_config.json."""
    write_json(folder / "config.json", config_content(checkpoint))
    save_tokenizer(checkpoint, folder)
    write_json(folder / "generation_config.json", checkpoint.settings.generation)
    write_genai_config(checkpoint.config, checkpoint.generation_config(), folder)


def config_content(checkpoint: Checkpoint) -> dict[str, Any]:
    """The checkpoint's config, and the key by which Transformers.js finds the weights file."""
    content: dict[str, Any] = checkpoint.config.to_dict()
    content["architectures"] = ["GPT2LMHeadModel"]
    content["transformers.js_config"] = {"use_external_data_format": True}
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """Save the fast tokenizer's files, which transformers 4 and 5 both read; the slow one's add nothing."""
    for path in map(Path, checkpoint.load_tokenizer().save_pretrained(folder)):
        if path.name not in TOKENIZER_FILES:
            path.unlink(missing_ok=True)
    path = folder / TOKENIZER_CONFIG
    staged, saved = (json.loads(where.read_text(encoding="utf-8")) for where in (checkpoint.folder / path.name, path))
    write_json(path, {**cleaned(saved), "tokenizer_class": staged["tokenizer_class"]})


def make_manifest(checkpoint: Checkpoint, parameters: int, graphs: Iterable[Graph], folder: Path) -> Manifest:
    """A manifest of the files that are in `folder` now."""
    architecture: Architecture = describe(checkpoint.config, parameters)
    source = Source(checkpoint.id, checkpoint.revision, checkpoint.weights_sha256())
    merged = checkpoint.adapter
    adapter = Source(merged.id, merged.revision, merged.sha256()) if merged else None
    return Manifest(source, architecture, tuple(graphs), record_files(folder), versions(), adapter=adapter)


def without(manifest: Manifest, refused: str, folder: Path) -> Manifest:
    """Remove the graphs and weights of a precision, or of a kind, from `folder`; return the manifest without them."""
    graphs = tuple(graph for graph in manifest.graphs if refused not in (graph.precision, graph.kind))
    gone = {graph.path for graph in manifest.graphs if graph not in graphs}
    gone |= {name for name in manifest.files if name.endswith(f"_{refused}.onnx_data")}
    for name in gone:
        (folder / name).unlink()
    files = {name: record for name, record in manifest.files.items() if name not in gone}
    return replace(manifest, files=files, graphs=graphs)


def record_files(folder: Path) -> dict[str, FileRecord]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
    return {path.relative_to(folder).as_posix(): record_file(path) for path in paths}


def record_file(path: Path) -> FileRecord:
    return FileRecord(path.stat().st_size, file_sha256(path))


def versions() -> dict[str, str]:
    """Versions of the packages that made the bundle, and which of them traced; ONNX Runtime has two wheels.

    PyTorch's threads are among them: sums in other portions end in other digits.
    """
    tracer = find_tracer()
    found = {name: metadata.version(name) for name in (*MADE_WITH, *tracer.beside)}
    onnxruntime = {"onnxruntime": load_onnxruntime().__version__}
    return {
        "gpt2-onnx": runtime.__version__,
        "python": platform.python_version(),
        **found,
        **onnxruntime,
        "tracer": tracer.package,
        "threads": str(torch.get_num_threads()),
    }
