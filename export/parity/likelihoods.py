"""PyTorch's log-probabilities of the greedy tokens, with which any machine can compare its graphs without PyTorch."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from export.checkpoint import Checkpoint
from export.parity.greedy import continuation_logits
from export.parity.memory import give_back
from runtime.bundle.manifest import Continuation, Likelihoods

LONGEST = 16  # tokens of each continuation
IN_HALF = 2  # continuations: PyTorch's float16 is slow on a CPU


def judge_likelihoods(checkpoint: Checkpoint, probes: Sequence[Continuation]) -> tuple[Likelihoods, Likelihoods]:
    """Log-probabilities of the probes' tokens in float64, and the largest error of PyTorch's float32.

    The second result is the same for the first probe in each layer, through the lens.
    """
    model, short = checkpoint.load_model(), shortened(probes)
    found, lens = read(model, short), read_lens(model, short[:1])
    model = as_truth(model)
    truth, true_lens = read(model, short), read_lens(model, short[:1])
    return make_likelihoods(truth, found), make_likelihoods(true_lens, lens)


def with_half(checkpoint: Checkpoint, probes: Sequence[Continuation], likelihoods: Likelihoods) -> Likelihoods:
    """The same likelihoods, with the largest error of PyTorch's float16 beside that of float32."""
    found = read(checkpoint.load_model().half(), shortened(probes)[:IN_HALF])
    truth = [torch.tensor(logprobs, dtype=torch.float64) for logprobs in likelihoods.logprobs]
    errors = {**likelihoods.pytorch_errors, "fp16": max_difference(found, truth)}
    return replace(likelihoods, pytorch_errors=errors)


def shortened(probes: Sequence[Continuation]) -> list[Continuation]:
    return [Continuation(probe.prompt_ids, probe.token_ids[:LONGEST]) for probe in probes]


def make_likelihoods(truth: Sequence[Tensor], found: Sequence[Tensor]) -> Likelihoods:
    return Likelihoods([logprobs.tolist() for logprobs in truth], {"fp32": max_difference(found, truth)})


def as_truth(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """Convert `model` to float64. Its attention must not pass through float32, as with reorder_and_upcast_attn.

    Block by block: the memory of float32's tensors is too small in each place for those of float64.
    """
    for block in model.transformer.h:
        block.attn.reorder_and_upcast_attn = False
        block.to(torch.float64)
        give_back()
    return model.to(torch.float64)


def read(model: GPT2LMHeadModel, continuations: Sequence[Continuation]) -> list[Tensor]:
    """Each continuation's log-probabilities [tokens], with the softmax in float64."""
    return [logprobs(model, continuation) for continuation in continuations]


@torch.no_grad()
def read_lens(model: GPT2LMHeadModel, continuations: Sequence[Continuation]) -> list[Tensor]:
    """The same for each layer of each continuation except the last layer, whose hidden states are already normed."""
    found = []
    for continuation in continuations:
        ids = torch.tensor([continuation.prompt_ids + continuation.token_ids[:-1]])
        states = model.transformer(ids, use_cache=False, output_hidden_states=True).hidden_states[:-1]
        for state in states:
            logits = model.lm_head(model.transformer.ln_f(state[0, len(continuation.prompt_ids) - 1 :]))
            found.append(chosen(logits, continuation))
    return found


def logprobs(model: GPT2LMHeadModel, continuation: Continuation) -> Tensor:
    return chosen(torch.from_numpy(continuation_logits(model, continuation)), continuation)


def chosen(logits: Tensor, continuation: Continuation) -> Tensor:
    """The log-probabilities of a continuation's tokens under logits [tokens, V]."""
    return logits.double().log_softmax(-1).gather(1, torch.tensor(continuation.token_ids)[:, None])[:, 0]


def max_difference(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """The largest absolute difference, over the continuations in `found`."""
    return max(float((one - other).abs().max()) for one, other in zip(found, truth, strict=False))
