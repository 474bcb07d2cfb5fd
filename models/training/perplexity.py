"""Perplexity of a checkpoint on the two held-out books, by PyTorch in float32.

    python models/training/perplexity.py models/novelist --books FOLDER

Every token but a book's first is predicted once, from at least half a context of what comes before it where there is
that much: windows of the whole context, moved by half of it (the sliding window of the Hugging Face perplexity guide).
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from books import HELD_OUT, read_book
from rich.progress import track
from torch.nn.functional import cross_entropy
from transformers import GPT2LMHeadModel, GPT2TokenizerFast


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--books", type=Path, required=True, help="folder of Gutenberg texts named Title_NUMBER.txt")
    options = parser.parse_args()
    model = GPT2LMHeadModel.from_pretrained(options.checkpoint).eval()
    tokenizer = GPT2TokenizerFast.from_pretrained(options.checkpoint)
    total_loss, total_count = 0.0, 0
    for number, title in HELD_OUT.items():
        text = read_book(options.books, number)
        ids = tokenizer(tokenizer.eos_token + text, return_tensors="pt", verbose=False).input_ids
        loss, count = book_loss(model, ids, title)
        per_word = math.exp(loss / len(text.split()))
        print(
            f"{title:<24} {count:>8,} tokens  perplexity {math.exp(loss / count):8.2f} a token, {per_word:,.0f} a word"
        )
        total_loss, total_count = total_loss + loss, total_count + count
    print(f"{'both':<24} {total_count:>8,} tokens  perplexity {math.exp(total_loss / total_count):8.2f} a token")


@torch.no_grad()
def book_loss(model: GPT2LMHeadModel, ids: torch.Tensor, title: str) -> tuple[float, int]:
    """(summed negative log-likelihood, predicted tokens) of ids [1, tokens]."""
    total, count = 0.0, 0
    for start, end, new in track(list(windows(ids.shape[1], model.config.n_positions)), description=title):
        logits = model(ids[:, start : end - 1], use_cache=False).logits[0, -new:]  # [new, V]
        total += cross_entropy(logits, ids[0, end - new : end], reduction="sum").item()
        count += new
    return total, count


def windows(length: int, context: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, how many tokens before `end` are new) of each window."""
    done = 1  # the first token has nothing before it
    for start in range(0, length, context // 2):
        end = min(start + context + 1, length)
        if end > done:
            yield start, end, end - done
            done = end


if __name__ == "__main__":
    main()
