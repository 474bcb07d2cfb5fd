"""Checkpoints, their bundles, and PyTorch's outputs for both, worked out here and not by the code under test."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast, RepetitionPenaltyLogitsProcessor

import runtime
from export.majors import CACHE, cache_of
from export.pipeline import export_bundle
from runtime.bundle.bundle import open_bundle
from runtime.graphs.decode import DecodeGraph
from runtime.graphs.reference import ReferenceGraph

AXIS = {"logits": 1, "hidden_states": 1, "attentions": 2}  # of the positions
TEXT = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a "
    "wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, "
    "this truth is so well fixed in the minds of the surrounding families, that he is considered as the rightful "
    "property of some one or other of their daughters."
)


@dataclass
class Pair:
    """One checkpoint, as PyTorch runs it and as its bundle does."""

    checkpoint: Path
    bundle: Path

    def __post_init__(self) -> None:
        self.float32 = load_model(self.checkpoint, torch.float32)
        self.truth = load_model(self.checkpoint, torch.float64)
        self.tokenizer = GPT2TokenizerFast.from_pretrained(self.checkpoint)
        opened = open_bundle(self.bundle)
        self.architecture = opened.manifest.architecture
        self.reference = ReferenceGraph(opened.graph_path("reference"), self.architecture)
        self.decode = DecodeGraph(opened.graph_path("decode"), self.architecture)
        self.ragged_path = opened.graph_path("ragged")

    def text_ids(self, length: int) -> np.ndarray:
        """[1, length] ids of English text."""
        return np.resize(np.array(self.tokenizer(TEXT)["input_ids"]), (1, length))

    @cached_property
    def ragged(self) -> DecodeGraph:
        """Where this release of ONNX Runtime runs it."""
        return DecodeGraph(self.ragged_path, self.architecture)

    @cached_property
    def noise(self) -> dict[tuple[str, bool], float]:
        """The largest relative error of PyTorch's own float32 over texts of several lengths.

        By tensor, and by whether it is that of the whole tensor or of its worst single position: the errors of small
        tensors scatter more.
        """
        largest: dict[tuple[str, bool], float] = {}
        for length in (1, 2, 7, 16, 24, 31):
            float32, truth = (named(run_pytorch(model, self.text_ids(length))) for model in (self.float32, self.truth))
            for name, true in truth.items():
                axis = AXIS.get(name.partition(".")[0])
                single = [0.0] if axis is None else [relative(*pair) for pair in by_position(float32[name], true, axis)]
                for key, error in (((name, False), relative(float32[name], true)), ((name, True), max(single))):
                    largest[key] = max(largest.get(key, 0.0), error)
        return largest

    @cached_property
    def logprob_noise(self) -> float:
        """How far PyTorch's own float32 log-probabilities get from the truth, over all ids after each of 90 tokens."""
        ids = self.text_ids(90)[0]
        float32, truth = (torch.log_softmax(logits(model, ids), -1) for model in (self.float32, self.truth))
        return float((float32 - truth).abs().max())

    def ids(self, text: str) -> list[int]:
        """Of a prompt: an empty one starts from `<|endoftext|>`."""
        return self.tokenizer(text)["input_ids"] or [self.tokenizer.eos_token_id]

    def decoded(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def generate(self, prompt_ids: Sequence[int], count: int, **options: Any) -> list[int]:
        """transformers' own greedy decoding, ends of text ignored unless the options name one."""
        ids = torch.tensor([list(prompt_ids)])
        settings = {"do_sample": False, "max_new_tokens": count, "eos_token_id": None, **options}
        output = self.float32.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **settings)
        return output[0, ids.shape[1] :].tolist()

    def assert_same(
        self, tokens: Sequence[int], expected: Sequence[int], prompt_ids: Sequence[int], *, penalty: float = 1.0
    ) -> None:
        """Equal, or first different where PyTorch's two scores lie closer together than float32 can tell."""
        tokens, expected = list(tokens), list(expected)
        if tokens == expected:
            return
        at = next((n for n, (a, b) in enumerate(zip(tokens, expected, strict=False)) if a != b), None)
        assert at is not None, f"{len(tokens)} tokens of {prompt_ids}, not {len(expected)}"
        ids = torch.tensor([[*prompt_ids, *expected[:at]]])
        penalize = RepetitionPenaltyLogitsProcessor(penalty)
        truth, float32 = (penalize(ids, logits(model, ids[0])[-1:])[0] for model in (self.truth, self.float32))
        noise = 2 * (float32 - truth).abs().max()
        for token in (tokens[at], expected[at]):
            assert truth.max() - truth[token] < noise, f"token {at} of {prompt_ids}: {tokens[at]}, not {expected[at]}"

    def assert_close(self, outputs: dict[str, np.ndarray], truth: dict[str, np.ndarray], what: str) -> None:
        """Every tensor of the truth is there, at most twice as far from it as PyTorch's float32 gets (floor 1e-6)."""
        assert outputs.keys() == truth.keys()
        for name, true in truth.items():
            axis = AXIS.get(name.partition(".")[0])
            single = axis is not None and true.shape[axis] == 1
            error, bound = relative(outputs[name], true), max(2 * self.noise[name, single], 1e-6)
            assert error <= bound, f"{what}: {name} is off by {error:.2e}, allowed are {bound:.2e}"


def by_position(array: np.ndarray, truth: np.ndarray, axis: int) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    return zip(np.moveaxis(array, axis, 0), np.moveaxis(truth, axis, 0), strict=True)


def load_model(folder: Path, dtype: torch.dtype) -> GPT2LMHeadModel:
    """In float64 the attention must not go through float32, as reorder_and_upcast_attn would have it."""
    config = GPT2Config.from_pretrained(folder, attn_implementation="eager")
    if dtype == torch.float64:
        config.reorder_and_upcast_attn = False
    return GPT2LMHeadModel.from_pretrained(folder, config=config, dtype=dtype).eval()


def relative(array: np.ndarray, truth: np.ndarray) -> float:
    assert array.shape == truth.shape
    return float(np.linalg.norm(array - truth) / np.linalg.norm(truth))


def logits(model: GPT2LMHeadModel, ids: Sequence[int]) -> torch.Tensor:
    """[S, V]"""
    with torch.no_grad():
        return model(torch.as_tensor(ids)[None]).logits[0]


def run_pytorch(model: GPT2LMHeadModel, ids: np.ndarray, mask: np.ndarray | None = None, past: Any = None) -> Any:
    """One forward pass with everything that a model can return; a mask makes positions count real tokens only."""
    positions = None
    if mask is not None:
        mask = torch.from_numpy(mask)
        positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)[:, -ids.shape[1] :]
    flags = {"use_cache": True, "output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        return model(torch.from_numpy(ids), attention_mask=mask, position_ids=positions, **{CACHE: past}, **flags)


def named(result: Any) -> dict[str, np.ndarray]:
    """PyTorch's outputs under the names of the design."""
    arrays = {"logits": result.logits}
    for n, layer in enumerate(cache_of(result).layers):
        arrays[f"present.{n}.key"], arrays[f"present.{n}.value"] = layer.keys, layer.values
    arrays |= {f"hidden_states.{n}": state for n, state in enumerate(result.hidden_states)}
    arrays |= {f"attentions.{n}": attention for n, attention in enumerate(result.attentions)}
    return {name: array.numpy() for name, array in arrays.items()}


@pytest.fixture(scope="session")
def pytorch() -> Callable[..., Any]:
    return run_pytorch


@pytest.fixture(scope="session")
def names() -> Callable[[Any], dict[str, np.ndarray]]:
    return named


@pytest.fixture(scope="session")
def make_pair(make_once: Callable[..., Path], seeded_checkpoint: Callable[..., Path]) -> Callable[..., Pair]:
    """A seeded checkpoint and its bundle, made once for each set of overrides."""
    made: dict[str, Pair] = {}

    def make(**config: Any) -> Pair:
        key = repr(sorted(config.items()))

        def make_both(folder: Path) -> None:
            folder.mkdir()
            export_bundle(str(seeded_checkpoint(folder / "checkpoint", **config)), folder / "bundle")

        if key not in made:
            folder = make_once(f"pair-{hashlib.sha256(key.encode()).hexdigest()[:12]}", make_both)
            made[key] = Pair(folder / "checkpoint", folder / "bundle")
        return made[key]

    return make


@pytest.fixture(scope="session")
def shipped(novelist: Path, bundle: Path) -> Pair:
    return Pair(novelist, bundle)


@pytest.fixture(scope="session")
def precise(novelist: Path, precise_bundle: Path) -> Pair:
    """The shipped checkpoint and its bundle in every precision."""
    return Pair(novelist, precise_bundle)


@pytest.fixture(scope="session")
def model(shipped: Pair) -> runtime.Model:
    return runtime.load(shipped.bundle, device="cpu")


@pytest.fixture(scope="session")
def short_sentences(novelist: Path, make_once: Callable[..., Path]) -> Pair:
    """The shipped checkpoint, told that a full stop ends a text: greedy texts then end, and at different times."""

    def make(folder: Path) -> None:
        shutil.copytree(novelist, folder / "checkpoint")
        full_stop = GPT2TokenizerFast.from_pretrained(novelist)(".")["input_ids"]
        for name in ("config.json", "generation_config.json"):
            path = folder / "checkpoint" / name
            path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [0, *full_stop]}))
        export_bundle(str(folder / "checkpoint"), folder / "bundle")

    folder = make_once("short-sentences", make)
    return Pair(folder / "checkpoint", folder / "bundle")
