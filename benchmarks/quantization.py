"""What rounding costs: how int4 and int8 are made, how many bits inputs get, and the scales of int8 keys and values.

    pip install onnx-ir==1.1.0                      # for ONNX Runtime's own quantizers
    python -m benchmarks.quantization weights       # the shipped checkpoint; about ten minutes
    python -m benchmarks.quantization cache         # three minutes
    python -m benchmarks.quantization inputs

`weights` tells what each method loses on the two held-out books. Every row is a decode graph that is really run, inputs
rounded to int8 as in serving. ONNX Runtime's quantizers leave embedding and `lm_head` in float32, and so does the row
of ours that stands beside them. Perplexity decides little, as noise may improve it; the Kullback-Leibler divergence
from float32's distribution tells how much is lost.

`cache` tells the same of int8 keys and values beside float32 weights, for other scales than the largest size of a
channel in the model's own texts, divided by 127.

`inputs` tells what seven bits instead of eight would cost for the inputs of int8's prompts, worked out in PyTorch: a
pair of products of seven and eight bits fits in 16 bits, on any processor. Texts are the model's own; weights are the
checkpoint's, so that rounding inputs is all that is measured. `lm_head` gets its inputs as they are.
"""

import argparse
import logging
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor
from transformers import GPT2LMHeadModel

from benchmarks.common.kept import NOVELIST, ROOT
from benchmarks.common.study import OneLineParser
from benchmarks.common.turns import empty_table, print_results
from export.architecture import describe
from export.bundle.writer import copy_weights
from export.checkpoint import Checkpoint, find_checkpoint
from export.graphs.decode import DecodeGraph as DecodeNodes
from export.graphs.int8_cache import write_int8_cache
from export.graphs.linear import BlockLinear, FloatLinear, IntegerLinear, Linear
from export.graphs.nodes import write_graph
from export.graphs.ragged import RaggedGraph as RaggedNodes
from export.progress import Progress
from export.quantization.cache_scales import calibrate_cache
from export.quantization.calibration import CALIBRATION, own_texts
from export.quantization.codes import QuantizedWeights
from export.quantization.quantize import calibrate, quantize_checkpoint
from export.quantization.recipe import DAMPING, RECIPES, Recipe
from export.weights import write_quantized
from runtime.arrays import log_softmax
from runtime.bundle.architecture import Architecture
from runtime.graphs.decode import DecodeGraph
from runtime.text.tokenizer import Tokenizer

BOOKS = ("The-War-of-the-Worlds_36", "Emma_158")
TOKENS = 16_000  # of each
PLAIN_ROUNDING = 1e9  # as damping: nothing is made good
SHARES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25)  # of what the largest of a channel asks for; less clips the largest
LENGTH, TEXTS, SEED = 160, 8, 1  # of the texts whose inputs are rounded


class FloatEmbedding(BlockLinear):
    """Blocks in codes, embedding and `lm_head` in float32."""

    embed = FloatLinear.embed
    lm_head = FloatLinear.lm_head


def main() -> None:
    parser = OneLineParser("python -m benchmarks.quantization", __doc__)
    weights, cache, inputs = parser.add_studies(
        weights="what each method, block and embedding loses on the two held-out books",
        cache="what int8 keys and values lose there, by their scales",
        inputs="what seven bits instead of eight would cost for the inputs of int8's prompts",
    )
    weights.set_defaults(study=study_weights)
    cache.set_defaults(study=study_cache)
    for study in (weights, cache):
        study.add_json()
    inputs.set_defaults(study=study_inputs)
    for study in (weights, cache, inputs):
        study.add_checkpoint(default=NOVELIST)
    options = parser.parse_args()
    options.study(options)


def study_weights(options: argparse.Namespace) -> None:
    compare_all(options, Bench.graphs)


def study_cache(options: argparse.Namespace) -> None:
    compare_all(options, Bench.caches)


def compare_all(options: argparse.Namespace, graphs: Callable[["Bench"], Iterator[tuple[str, Path]]]) -> None:
    """Each graph on each book, one after the other."""
    checkpoint = find_checkpoint(str(options.checkpoint))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(checkpoint, Path(folder))
        rows: list[dict[str, Any]] = []
        for name, path in graphs(bench):
            rows.append({"method": name, "books": bench.compare(path)})
            print(rows[-1], file=sys.stderr)
    print_results(options.checkpoint.name, {"rows": rows}, [make_table(rows)], as_json=options.json)


class Bench:
    """A checkpoint, its calibration texts, the held-out books, and graphs made in a folder."""

    def __init__(self, checkpoint: Checkpoint, folder: Path) -> None:
        self.checkpoint, self.folder = checkpoint, folder
        self.stored, parameters = copy_weights(checkpoint, folder)
        self.architecture: Architecture = describe(checkpoint.config, parameters)
        write_graph(DecodeNodes(checkpoint.config, FloatLinear()), self.stored, self.float32())
        self.calibration = calibrate(checkpoint, own_texts(checkpoint, self.float32(), Progress())[:CALIBRATION])
        tokenizer = Tokenizer(checkpoint.folder / "tokenizer.json")
        books = [ROOT.parent / "shared" / "corpus" / f"{book}.txt" for book in BOOKS]
        texts = [book.read_text(encoding="utf-8-sig") for book in books]
        self.books = [tokenizer.encode(text[len(text) // 8 :])[:TOKENS] for text in texts]  # after title and contents
        self.true = self.session(self.float32())

    def float32(self) -> Path:
        return self.folder / "onnx" / "decode.onnx"

    def session(self, path: Path) -> DecodeGraph:
        return DecodeGraph(path, self.architecture)

    def compare(self, path: Path) -> list[dict[str, float]]:
        """Of each book: what it costs of perplexity, the divergence, and how often the likeliest token is the same."""
        session = self.session(path)
        return [compare(self.true, session, ids, self.architecture.n_positions) for ids in self.books]

    def graphs(self) -> Iterator[tuple[str, Path]]:
        """(what was done, the graph) one after the other, each in the place of the one before."""
        int4, int8 = RECIPES["int4"], RECIPES["int8"]
        for block in (32, 128):
            yield f"int4, ONNX Runtime's RTN, block {block}, embedding fp32", self.library("rtn", block)
            yield f"int4, ONNX Runtime's HQQ, block {block}, embedding fp32", self.library("hqq", block)
        yield "int4, ONNX Runtime's k-quant, block 32, embedding fp32", self.library("k_quant", 32)
        for block in (32, 128):
            recipe = replace(int4, block=block, embedding_block=block)
            yield f"int4, GPTQ, block {block}, embedding fp32", self.ours(recipe, linear=FloatEmbedding)
        for block in (32, 128):
            for bits in (4, 8):
                recipe = replace(int4, block=block, embedding_block=block, embedding_bits=bits)
                yield f"int4, fitted rounding, block {block}, embedding int{bits}", self.ours(recipe, PLAIN_ROUNDING)
                yield f"int4, GPTQ, block {block}, embedding int{bits}", self.ours(recipe)
        for block in (32, 128):
            yield (
                f"int8, GPTQ, block {block}, embedding int8",
                self.ours(replace(int8, block=block, embedding_block=block)),
            )
        yield "int8, GPTQ, a scale an output, embedding int8", self.ours(int8)
        yield "int8, the same, integer products", self.ours(int8, linear=IntegerLinear)

    def caches(self) -> Iterator[tuple[str, Path]]:
        """Of float32 weights, by scales: a scale of its own for each channel, or one for each head."""
        ragged, path = self.float32().with_name("ragged.onnx"), self.float32().with_name("cache.onnx")
        write_graph(RaggedNodes(self.checkpoint.config, FloatLinear()), self.stored, ragged)
        scales = calibrate_cache(self.checkpoint, self.float32(), Progress()).scales
        for share in SHARES:
            write_int8_cache(ragged, {name: share * scale for name, scale in scales.items()}, path)
            yield f"a scale a channel, {share:g} of the largest / 127", path
        by_head = {name: scale.max(axis=2, keepdims=True) for name, scale in scales.items()}
        by_head = {name: np.broadcast_to(scale, scales[name].shape) for name, scale in by_head.items()}
        write_int8_cache(ragged, by_head, path)
        yield "a scale a head, the largest / 127", path

    def ours(self, recipe: Recipe, damping: float = DAMPING, linear: Callable[..., Linear] = BlockLinear) -> Path:
        with patch("export.quantization.quantize.DAMPING", damping):
            weights: QuantizedWeights = quantize_checkpoint(self.checkpoint, self.calibration, recipe, Progress())
        if linear is FloatEmbedding:
            wte = self.checkpoint.load_model().transformer.wte.weight.detach()
            weights = replace(weights, tensors={**weights.tensors, "transformer.wte.weight": wte})
        path = self.folder / "ours.onnx"
        stored = write_quantized(weights, self.folder / "ours.onnx_data")
        write_graph(DecodeNodes(self.checkpoint.config, linear(weights.matrices)), stored, path)
        return path

    def library(self, method: str, block: int) -> Path:
        """One of ONNX Runtime's own, on the float32 graph."""
        from onnxruntime.quantization import matmul_nbits_quantizer as library

        settings = {
            "rtn": library.DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=True, accuracy_level=4),
            "hqq": library.HQQWeightOnlyQuantConfig(block_size=block),
            "k_quant": library.KQuantWeightOnlyQuantConfig(),
        }
        quantizer = library.MatMulNBitsQuantizer(
            onnx.load(self.float32()), block_size=block, accuracy_level=4, algo_config=settings[method]
        )
        quantizer.process()
        path = self.folder / "library.onnx"
        quantizer.model.save_model_to_file(str(path), use_external_data_format=False)
        set_accuracy_level(path)
        return path


def set_accuracy_level(path: Path) -> None:
    """Some of the library's methods leave it out, and with it int8 arithmetic."""
    proto = onnx.load(path)
    for node in proto.graph.node:
        if node.op_type == "MatMulNBits" and not any(known.name == "accuracy_level" for known in node.attribute):
            node.attribute.append(onnx.helper.make_attribute("accuracy_level", 4))
    onnx.save(proto, path)


def compare(true: DecodeGraph, session: DecodeGraph, ids: list[int], context: int) -> dict[str, float]:
    """In windows of one context, without overlap."""
    parts = [compare_window(true, session, ids[start : start + context]) for start in range(0, len(ids) - 1, context)]
    lost, divergence, same = (np.concatenate(part) for part in zip(*parts, strict=True))
    cost = math.exp(lost.mean()) - 1
    return {"cost": cost, "divergence": float(divergence.mean()), "same": float(same.mean())}


def compare_window(true: DecodeGraph, session: DecodeGraph, ids: list[int]) -> tuple[NDArray[Any], ...]:
    """Of each token: what it lost of log-probability, the divergence, and whether the likeliest is the same."""
    expected, found = (read(one, ids) for one in (true, session))
    targets = np.arange(len(ids) - 1), ids[1:]
    divergence = (np.exp(expected) * (expected - found)).sum(axis=1)
    return expected[targets] - found[targets], divergence, expected.argmax(axis=1) == found.argmax(axis=1)


def read(session: DecodeGraph, ids: list[int]) -> NDArray[Any]:
    """Log-probabilities [S - 1, V]."""
    with session.sequence() as state:
        return log_softmax(state.read(ids[:-1], last=len(ids) - 1).logits)


def make_table(rows: list[dict[str, Any]]) -> Table:
    perplexities = [f"{book.partition('_')[0].replace('-', ' ')}\nperplexity" for book in BOOKS]
    table = empty_table("", *perplexities, "divergence\nin millinats", "same likeliest\ntoken")
    for row in rows:
        costs = [f"{book['cost']:+.2%}" for book in row["books"]]
        divergence, same = (np.mean([book[name] for book in row["books"]]) for name in ("divergence", "same"))
        table.add_row(row["method"], *costs, f"{1000 * divergence:.2f}", f"{same:.1%}")
    return table


def study_inputs(options: argparse.Namespace) -> None:
    for bits, logits, cache in input_errors(options.checkpoint):
        print(f"{bits} bits: logits {logits:.2%} off, keys and values {cache:.2%} at worst")


def input_errors(checkpoint: Path) -> Iterator[tuple[int, float, float]]:
    """(bits, how far logits are off, and the worst keys or values), relative, the mean over the texts."""
    model = GPT2LMHeadModel.from_pretrained(checkpoint, attn_implementation="eager").eval()
    torch.manual_seed(SEED)
    start = torch.full((TEXTS, 1), model.config.eos_token_id)
    lengths = {"min_new_tokens": LENGTH, "max_new_tokens": LENGTH}
    texts = model.generate(start, attention_mask=torch.ones_like(start), pad_token_id=1, do_sample=True, **lengths)
    model.double()
    for bits in (8, 7):
        off = [distances(model, text[None], bits) for text in texts]
        yield bits, sum(logits for logits, _ in off) / TEXTS, sum(cache for _, cache in off) / TEXTS


def distances(model: GPT2LMHeadModel, ids: Tensor, bits: int) -> tuple[float, float]:
    truth = outputs(model, ids)
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if name.endswith(("c_attn", "c_fc", "c_proj")):
                rounding = one_sided if name.endswith("mlp.c_proj") else two_sided
                hook = module.register_forward_pre_hook(lambda _, given, rounding=rounding: rounding(given[0], bits))
                hooks.callback(hook.remove)
        found = outputs(model, ids)
    off = [float((one - true).norm() / true.norm()) for one, true in zip(found, truth, strict=True)]
    return off[0], max(off[1:])


def outputs(model: GPT2LMHeadModel, ids: Tensor) -> list[Tensor]:
    """Logits less their mean, which no probability sees, then keys and values."""
    result = model(ids, use_cache=True)
    logits = result.logits - result.logits.mean(-1, keepdim=True)
    return [logits, *(array for layer in result.past_key_values.layers for array in (layer.keys, layer.values))]


def two_sided(rows: Tensor, bits: int) -> Tensor:
    return rounded(rows, rows.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1))


def one_sided(rows: Tensor, bits: int) -> Tensor:
    """A zero of its own is a code among them, and moves none of the others."""
    return rounded(rows, (rows.amax(-1, keepdim=True) - rows.amin(-1, keepdim=True)) / (2**bits - 1))


def rounded(rows: Tensor, step: Tensor) -> Tensor:
    codes: Tensor = (rows / step).round()
    return codes * step


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    logging.disable(logging.INFO)  # the library's, a line a node
    main()
