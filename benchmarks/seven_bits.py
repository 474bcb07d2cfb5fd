"""What codes of seven bits for the inputs of int8's prompts would cost, worked out in PyTorch.

    python -m benchmarks.seven_bits                         # models/novelist
    python -m benchmarks.seven_bits --checkpoint DIR

A pair of products of seven and eight bits fits in 16 bits, on any processor. Texts are the model's own; weights are the
checkpoint's, so that rounding inputs is all that is measured. `lm_head` gets its inputs as they are.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from benchmarks.common.kept import NOVELIST
from benchmarks.common.study import OneLineParser

TOKENS, TEXTS, SEED = 160, 8, 1


def main() -> None:
    parser = OneLineParser("python -m benchmarks.seven_bits", __doc__)
    parser.add_checkpoint(default=NOVELIST)
    for bits, logits, cache in measure(parser.parse_args().checkpoint):
        print(f"{bits} bits: logits {logits:.2%} off, keys and values {cache:.2%} at worst")


@torch.no_grad()
def measure(checkpoint: Path) -> Iterator[tuple[int, float, float]]:
    """(bits, how far logits are off, and the worst keys or values), relative, the mean over the texts."""
    model = GPT2LMHeadModel.from_pretrained(checkpoint, attn_implementation="eager").eval()
    torch.manual_seed(SEED)
    start = torch.full((TEXTS, 1), model.config.eos_token_id)
    lengths = {"min_new_tokens": TOKENS, "max_new_tokens": TOKENS}
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
    main()
