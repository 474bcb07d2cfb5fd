"""Quantizes a model block by block, each with the inputs that it gets from the quantized blocks before it."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GPT2LMHeadModel

from export.architecture import LM_HEAD, WTE, inner_size
from export.checkpoint import Checkpoint
from export.errors import ExportError
from export.majors import run_block
from export.progress import Progress
from export.quantization.balance import balance
from export.quantization.codes import LEAST_BLOCK, QuantizedMatrix, QuantizedWeights, largest_block
from export.quantization.gptq import gptq
from export.quantization.inputs import gram_of, measure_inputs
from export.quantization.recipe import DAMPING, Recipe

CHUNK = 4  # texts in one run


def check_quantizable(checkpoint: Checkpoint, recipes: Collection[Recipe]) -> None:
    """Raise ExportError unless every matrix's number of inputs is a multiple of the kernels' smallest block."""
    config = checkpoint.config
    for name, size in (("n_embd", config.n_embd), ("n_inner", inner_size(config))):
        if recipes and size % LEAST_BLOCK:
            wanted = ", ".join(recipe.precision for recipe in recipes)
            raise ExportError(f"{checkpoint.id}: for {wanted}, {name} must be a multiple of {LEAST_BLOCK}, got {size}")


@dataclass(frozen=True)
class Calibration:
    """What a checkpoint is quantized by, whatever the recipe: texts, and what its head is given for them.

    Attributes:
        texts: Ids [B, S].
        head: The sum of x^T x [C, C] over the inputs of `lm_head`.
    """

    texts: Tensor
    head: Tensor


@torch.no_grad()
def calibrate(checkpoint: Checkpoint, texts: NDArray[np.int64]) -> Calibration:
    """Run the checkpoint over texts [B, S], without its `lm_head`."""
    model, ids = checkpoint.load_model(), torch.from_numpy(texts)
    rows = [model.transformer(part, use_cache=False)[0].flatten(0, -2) for part in torch.split(ids, CHUNK)]
    return Calibration(ids, torch.stack([gram_of(part) for part in rows]).sum(0))


def quantize_checkpoint(
    checkpoint: Checkpoint, calibration: Calibration, recipe: Recipe, progress: Progress
) -> QuantizedWeights:
    """Quantize the weights of a checkpoint by a recipe."""
    layers = checkpoint.config.n_layer
    progress("the embedding")
    model = checkpoint.load_model()
    matrices = quantize(model, calibration, recipe, lambda done: progress.count(done, layers, "blocks"))
    tensors = {name: tensor.detach() for name, tensor in model.named_parameters() if name not in matrices}
    return QuantizedWeights(matrices, tensors)


@torch.no_grad()
def quantize(
    model: GPT2LMHeadModel, calibration: Calibration, recipe: Recipe, progress: Callable[[int], object]
) -> dict[str, QuantizedMatrix]:
    """Codes for every matrix, by the checkpoint's names; `model` is left with the dequantized weights.

    Args:
        model: The model in float32.
        progress: Called with the number of blocks done.
    """
    matrices = quantize_embedding(model, calibration.head, recipe)
    hidden = [embed(model, part) for part in torch.split(calibration.texts, CHUNK)]
    for layer, block in enumerate(model.transformer.h):
        inputs = measure_inputs(block, hidden)
        if recipe.integer_prefill:
            inputs = balance(block, inputs)
        for name, given in inputs.items():
            linear = block.get_submodule(name)
            matrix = quantize_matrix(linear.weight.T, given.gram, recipe.bits, recipe.block)
            linear.weight.copy_(matrix.dequantized().T)
            matrices[f"transformer.h.{layer}.{name}.weight"] = matrix
        hidden = [run_block(block, part) for part in hidden]
        progress(layer + 1)
    return matrices


def quantize_matrix(weights: Tensor, gram: Tensor, bits: int, block: int | None) -> QuantizedMatrix:
    """Quantize weights [N, K] with GPTQ."""
    inputs = weights.shape[1]
    return gptq(weights, gram, bits=bits, block=largest_block(inputs, block) if block else inputs, damping=DAMPING)


def embed(model: GPT2LMHeadModel, ids: Tensor) -> Tensor:
    """The inputs [B, S, C] of the first block."""
    transformer = model.transformer
    hidden: Tensor = transformer.wte(ids) + transformer.wpe(torch.arange(ids.shape[1]))
    return hidden


def quantize_embedding(model: GPT2LMHeadModel, gram: Tensor, recipe: Recipe) -> dict[str, QuantizedMatrix]:
    """Quantize `wte` and, if it is not tied, `lm_head`; `gram` [C, C] is that of the head's inputs."""
    matrices = {}
    for name in embedding_names(model):
        weights, inputs = model.get_parameter(name), embedding_gram(model, name, gram)
        matrices[name] = quantize_matrix(weights, inputs, recipe.embedding_bits, recipe.embedding_block)
        weights.copy_(matrices[name].dequantized())
    return matrices


def embedding_names(model: GPT2LMHeadModel) -> list[str]:
    return [WTE] if model.config.tie_word_embeddings else [WTE, LM_HEAD]


def embedding_gram(model: GPT2LMHeadModel, name: str, gram: Tensor) -> Tensor:
    """The gram matrix of `lm_head`'s inputs; the identity for a `wte` that is only looked up, as all weights count."""
    looked_up = name == WTE and not model.config.tie_word_embeddings
    return torch.eye(model.config.n_embd) if looked_up else gram
