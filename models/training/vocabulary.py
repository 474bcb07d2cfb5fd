"""A byte-level BPE in GPT-2's manner, small enough for a small model."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2TokenizerFast

END_OF_TEXT = "<|endoftext|>"


def train_vocabulary(texts: Iterable[str], size: int, context: int) -> GPT2TokenizerFast:
    """Learn `size` entries, the 256 bytes and `<|endoftext|>` (id 0) among them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return GPT2TokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def save_vocabulary(tokenizer: GPT2TokenizerFast, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`; the older files say nothing more."""
    for name in tokenizer.save_pretrained(folder):
        if Path(name).name not in {"tokenizer.json", "tokenizer_config.json"}:
            Path(name).unlink(missing_ok=True)
