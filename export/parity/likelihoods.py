"""How likely PyTorch finds the greedy tokens: what any machine can hold its own graphs against, without PyTorch."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from export.checkpoint import Checkpoint
from export.parity.greedy import continuation_logits
from runtime.manifest import Continuation, Likelihoods

LONGEST = 16  # tokens of each continuation
IN_HALF = 2  # continuations: PyTorch's float16 is slow on a CPU


def judge_likelihoods(checkpoint: Checkpoint, continuations: Sequence[Continuation], *, half: bool) -> Likelihoods:
    """Log-probabilities of the tokens in float64, and how far PyTorch is from them in lower precisions at most."""
    short = [Continuation(probe.prompt_ids, probe.token_ids[:LONGEST]) for probe in continuations]
    model = checkpoint.load_model()
    found = {"fp32": read(model, short)}
    truth = read(as_truth(model), short)
    del model  # in float64 it is twice the checkpoint's size
    if half:
        found["fp16"] = read(checkpoint.load_model().half(), short[:IN_HALF])
    errors = {name: max_difference(logprobs, truth) for name, logprobs in found.items()}
    return Likelihoods([logprobs.tolist() for logprobs in truth], errors)


def as_truth(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """`model` itself in float64. Its attention must not go through float32, as reorder_and_upcast_attn would."""
    for block in model.transformer.h:
        block.attn.reorder_and_upcast_attn = False
    return model.to(torch.float64)


def read(model: GPT2LMHeadModel, continuations: Sequence[Continuation]) -> list[Tensor]:
    """Each continuation's log-probabilities [tokens], summed up in float64."""
    return [logprobs(model, continuation) for continuation in continuations]


def logprobs(model: GPT2LMHeadModel, continuation: Continuation) -> Tensor:
    logits = torch.from_numpy(continuation_logits(model, continuation).astype(np.float64))
    return logits.log_softmax(-1).gather(1, torch.tensor(continuation.token_ids)[:, None])[:, 0]


def max_difference(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """Over those that `found` has."""
    return max(float((one - other).abs().max()) for one, other in zip(found, truth, strict=False))
