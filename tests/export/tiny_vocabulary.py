"""A checkpoint whose bundle loads in milliseconds: a byte-level vocabulary of 300 ids, and one layer."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

SIZES = {"vocab_size": 300, "n_positions": 160, "n_embd": 16, "n_layer": 1, "n_head": 2}
TEXT = ["It was a bright cold day in April, and the clocks were striking thirteen."] * 8


def make_tiny(folder: Path) -> Path:
    """Write the checkpoint to `folder`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    torch.manual_seed(7)
    model = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **SIZES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder
