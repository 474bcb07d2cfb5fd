"""Quantizes a model block by block, each with the inputs that it gets from the quantized blocks before it."""

from collections.abc import Callable, Collection

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from export.architecture import LM_HEAD, WTE, inner_size
from export.checkpoint import Checkpoint
from export.errors import ExportError
from export.majors import run_block
from export.progress import Progress
from export.quantization.balance import balance
from export.quantization.codes import LEAST_BLOCK, QuantizedMatrix, QuantizedWeights, largest_block
from export.quantization.gptq import gptq
from export.quantization.recipe import DAMPING, Recipe
from export.quantization.watching import watching

MATRICES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")  # those of a block, each a Conv1D
CHUNK = 4  # texts in one run


def check_quantizable(checkpoint: Checkpoint, recipes: Collection[Recipe]) -> None:
    """Raise ExportError unless every matrix's number of inputs is a multiple of the kernels' smallest block."""
    config = checkpoint.config
    for name, size in (("n_embd", config.n_embd), ("n_inner", inner_size(config))):
        if recipes and size % LEAST_BLOCK:
            wanted = ", ".join(recipe.precision for recipe in recipes)
            raise ExportError(f"{checkpoint.id}: for {wanted}, {name} must be a multiple of {LEAST_BLOCK}, got {size}")


def quantize_checkpoint(
    checkpoint: Checkpoint, texts: NDArray[np.int64], recipe: Recipe, progress: Progress
) -> QuantizedWeights:
    """Quantize the weights of a checkpoint by a recipe."""
    layers = checkpoint.config.n_layer
    progress("the embedding")
    model = checkpoint.load_model()
    matrices = quantize(model, torch.from_numpy(texts), recipe, lambda done: progress.count(done, layers, "blocks"))
    tensors = {name: tensor.detach() for name, tensor in model.named_parameters() if name not in matrices}
    return QuantizedWeights(matrices, tensors)


@torch.no_grad()
def quantize(
    model: GPT2LMHeadModel, texts: Tensor, recipe: Recipe, progress: Callable[[int], object]
) -> dict[str, QuantizedMatrix]:
    """Codes for every matrix, by the checkpoint's names; `model` is left with the dequantized weights.

    Args:
        model: The model in float32.
        texts: Ids [B, S] to calibrate with.
        progress: Called with the number of blocks done.
    """
    matrices = quantize_embedding(model, texts, recipe)
    hidden = [embed(model, part) for part in torch.split(texts, CHUNK)]
    for layer, block in enumerate(model.transformer.h):
        if recipe.integer_prefill:
            balance(block, hidden)
        for name, gram in input_grams(block, hidden).items():
            linear = block.get_submodule(name)
            matrix = quantize_matrix(linear.weight.T, gram, recipe.bits, recipe.block)
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


def input_grams(block: nn.Module, hidden: list[Tensor]) -> dict[str, Tensor]:
    """The sum of x^T x [K, K] over the inputs x of each matrix of a block."""
    grams = {name: torch.zeros(()) for name in MATRICES}

    def add(name: str, rows: Tensor) -> None:
        grams[name] = grams[name] + rows.T @ rows

    with watching({name: block.get_submodule(name) for name in MATRICES}, add):
        for part in hidden:
            run_block(block, part)
    return grams


def quantize_embedding(model: GPT2LMHeadModel, texts: Tensor, recipe: Recipe) -> dict[str, QuantizedMatrix]:
    """Quantize `wte` and, if it is not tied, `lm_head`."""
    gram = head_gram(model, texts)
    matrices = {}
    for name in embedding_names(model):
        weights, inputs = model.get_parameter(name), embedding_gram(model, name, gram)
        matrices[name] = quantize_matrix(weights, inputs, recipe.embedding_bits, recipe.embedding_block)
        weights.copy_(matrices[name].dequantized())
    return matrices


def head_gram(model: GPT2LMHeadModel, texts: Tensor) -> Tensor:
    """The sum of x^T x [C, C] over the inputs of `lm_head`, which is not run."""
    rows = [model.transformer(part, use_cache=False)[0].flatten(0, -2) for part in torch.split(texts, CHUNK)]
    return torch.stack([part.T @ part for part in rows]).sum(0)


def embedding_names(model: GPT2LMHeadModel) -> list[str]:
    return [WTE] if model.config.tie_word_embeddings else [WTE, LM_HEAD]


def embedding_gram(model: GPT2LMHeadModel, name: str, gram: Tensor) -> Tensor:
    """The gram matrix of `lm_head`'s inputs; the identity for a `wte` that is only looked up, as all weights count."""
    looked_up = name == WTE and not model.config.tie_word_embeddings
    return torch.eye(model.config.n_embd) if looked_up else gram
