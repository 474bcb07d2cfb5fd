"""What transformers 4 and 5 do differently with a GPT-2 and its tokenizer."""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import GPT2LMHeadModel
from transformers.utils import logging

MAJOR = int(transformers.__version__.partition(".")[0])
NAMES = ("cache", "past_key_values")  # of the argument and of the result, the newer first
CACHE = next(name for name in NAMES if name in inspect.signature(GPT2LMHeadModel.forward).parameters)


# Most tokenizer classes of 5 build what a tokenizer.json says of its normalizer and pre-tokenizer anew; the nameless
# one, `PreTrainedTokenizerFast`, takes the file as it is.
REBUILDS = MAJOR >= 5


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep the progress bar away that 5 draws whenever it loads weights; other bars come back afterwards."""
    shown = logging.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the environment may say that there shall be bars
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def cache_of(result: Any) -> Any:
    """The keys and values that a run returned."""
    return getattr(result, CACHE)


def run_block(block: nn.Module, hidden: Tensor) -> Tensor:
    """The output [B, S, C] of one block over whole texts, each position attending to those up to its own.

    A block of transformers 4 masks by itself and returns a tuple; one of 5 does neither.
    """
    length = hidden.shape[1]
    mask = torch.full((length, length), torch.finfo(hidden.dtype).min, dtype=hidden.dtype).triu(1)
    found = block(hidden, attention_mask=mask[None, None])
    output: Tensor = found[0] if isinstance(found, tuple) else found
    return output
