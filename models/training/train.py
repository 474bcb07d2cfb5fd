"""Train `models/novelist`: a seven-million-parameter GPT-2, from nothing, on two dozen novels.

    python models/training/train.py --books FOLDER --output models/novelist

Killed at any moment it goes on from its last saved step when called again. The order of the data follows from the
seed and the step alone, so an interrupted run sees what an uninterrupted one would have seen.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from books import HELD_OUT, TRAINING, read_book
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast
from vocabulary import END_OF_TEXT, save_vocabulary, train_vocabulary

CONTEXT = 512
VOCABULARY = 8192
BATCH = 8
WARMUP_STEPS = 60
DECAY_SHARE = 0.35
SAVE_EVERY = 50
EVALUATE_EVERY = 200


@dataclass
class Run:
    """Everything that a saved step must bring back."""

    model: GPT2LMHeadModel
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def restore(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]


def main() -> None:
    options = parse_arguments()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    tokenizer, tokens, held_out = prepare_tokens(options.books, options.work)
    run = new_run(tokenizer, options)
    saved = options.work / "run.pt"
    if saved.exists():
        run.restore(saved)
    print(f"{len(tokens):,} training tokens, {run.model.num_parameters():,} parameters, from step {run.step}")
    train(run, tokens, held_out, options, saved)
    save_checkpoint(run, tokenizer, options.output)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--books", type=Path, required=True, help="folder of Gutenberg texts named Title_NUMBER.txt")
    parser.add_argument("--output", type=Path, default=Path("models/novelist"), help="where the checkpoint goes")
    parser.add_argument("--work", type=Path, default=Path("models/.training"), help="where a run keeps its state")
    parser.add_argument("--steps", type=int, default=1500, help="optimizer steps of 4,096 tokens")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args()


def prepare_tokens(books: Path, work: Path) -> tuple[GPT2TokenizerFast, np.ndarray, np.ndarray]:
    """The vocabulary, the training ids [tokens] and the held-out ids [tokens]; made once, then read back."""
    if not (work / "tokens.npz").exists():
        texts = [read_book(books, number) for number in TRAINING]
        tokenizer = train_vocabulary(texts, VOCABULARY, CONTEXT)
        save_vocabulary(tokenizer, work)
        held_out = [read_book(books, number) for number in HELD_OUT]
        np.savez(work / "part.npz", training=encode(tokenizer, texts), held_out=encode(tokenizer, held_out))
        (work / "part.npz").replace(work / "tokens.npz")
    arrays = np.load(work / "tokens.npz")
    return GPT2TokenizerFast.from_pretrained(work), arrays["training"], arrays["held_out"]


def encode(tokenizer: GPT2TokenizerFast, texts: list[str]) -> np.ndarray:
    """All texts as one array of ids, each begun by `<|endoftext|>`."""
    joined = [token for text in texts for token in tokenizer(END_OF_TEXT + text, verbose=False)["input_ids"]]
    return np.array(joined, dtype=np.int32)


def new_run(tokenizer: GPT2TokenizerFast, options: argparse.Namespace) -> Run:
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        n_embd=256,
        n_layer=6,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = GPT2LMHeadModel(config)
    return Run(model, new_optimizers(model, options.lr))


def new_optimizers(model: GPT2LMHeadModel, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings, norms and biases."""
    blocks = [p for p in model.transformer.h.parameters() if p.ndim == 2]
    inside = {id(p) for p in blocks}
    rest = [p for p in model.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(blocks, lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(run: Run, tokens: np.ndarray, held_out: np.ndarray, options: argparse.Namespace, saved: Path) -> None:
    with progress_display() as progress:
        task = progress.add_task("", total=options.steps, completed=run.step, loss=float("nan"), speed=0.0)
        for rows in batches(tokens, options.seed, run.step, options.steps):
            started = time.perf_counter()
            loss = train_step(run, torch.from_numpy(rows).long(), options)
            run.step += 1
            run.seconds += time.perf_counter() - started
            speed = rows.size / (time.perf_counter() - started)
            progress.update(task, advance=1, loss=loss, speed=speed)
            if run.step % SAVE_EVERY == 0 or run.step == options.steps:
                run.save(saved)
                if not progress.console.is_terminal:
                    print(f"step {run.step:5}  loss {loss:.3f}  {speed:,.0f} tokens/s", flush=True)
            if run.step % EVALUATE_EVERY == 0 or run.step == options.steps:
                progress.console.print(f"step {run.step:5}  held-out loss {evaluate(run.model, held_out):.4f}")


def progress_display() -> Progress:
    return Progress(
        TextColumn("step {task.completed:.0f} of {task.total:.0f}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:,.0f} tokens/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        disable=not sys.stdout.isatty(),
    )


def batches(tokens: np.ndarray, seed: int, first: int, last: int) -> Iterator[np.ndarray]:
    """Rows [BATCH, CONTEXT + 1] for each step from `first` up to `last`; every epoch in an order of its own."""
    per_epoch = len(tokens) // (BATCH * CONTEXT) - 1
    for step in range(first, last):
        epoch, within = divmod(step, per_epoch)
        random = np.random.default_rng([seed, epoch])
        offset = random.integers(CONTEXT)
        starts = random.permutation(per_epoch * BATCH)[within * BATCH : (within + 1) * BATCH] * CONTEXT + offset
        yield np.stack([tokens[start : start + CONTEXT + 1] for start in starts])


def train_step(run: Run, rows: torch.Tensor, options: argparse.Namespace) -> float:
    factor = schedule(run.step, options.steps)
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = options.lr * factor
    loss = next_token_loss(run.model, rows)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    for optimizer in run.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def schedule(step: int, steps: int) -> float:
    """Warm up, hold, then fall in a straight line: only the fall depends on where the run ends."""
    warm = (step + 1) / WARMUP_STEPS
    fall = (steps - step) / (DECAY_SHARE * steps)
    return min(1.0, warm, fall)


def next_token_loss(model: GPT2LMHeadModel, rows: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(rows[:, :-1], use_cache=False).logits  # [B, S, V]
    return cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: GPT2LMHeadModel, held_out: np.ndarray) -> float:
    """Mean loss over 64 windows spread evenly over the held-out books."""
    starts = np.linspace(0, len(held_out) - CONTEXT - 1, 64).astype(int)
    rows = np.stack([held_out[start : start + CONTEXT + 1] for start in starts])
    parts = torch.from_numpy(rows).long().split(BATCH)
    return sum(next_token_loss(model, part).item() for part in parts) / len(parts)


def save_checkpoint(run: Run, tokenizer: GPT2TokenizerFast, output: Path) -> None:
    run.model.save_pretrained(output, safe_serialization=True)
    save_vocabulary(tokenizer, output)
    print(f"{run.step} steps in {run.seconds / 60:.0f} minutes; checkpoint in {output}")


if __name__ == "__main__":
    main()
