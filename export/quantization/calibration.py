"""Samples calibration texts from the model itself, so that every checkpoint has some and none need to be shipped."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.architecture import describe, start_id
from export.checkpoint import Checkpoint
from export.progress import Progress
from runtime.graphs.decode import DecodeGraph
from runtime.graphs.work import Slots, Work
from runtime.text.options import Settings
from runtime.text.sampling import Sampler

TEXTS = 20
LONGEST = 256
CALIBRATION = 16  # of the texts; the others judge the result


def own_texts(checkpoint: Checkpoint, path: Path, progress: Progress) -> NDArray[np.int64]:
    """Texts [TEXTS, S] from the checkpoint's decode graph at `path`."""
    config = checkpoint.config
    architecture = describe(config, parameters=1)
    slots = DecodeGraph(path, architecture).slots(TEXTS)
    length = min(LONGEST, config.n_positions)
    return sample_texts(slots, start_id(config), length, lambda done: progress.count(done, length, "tokens"))


def sample_texts(slots: Slots, start_id: int, length: int, progress: Callable[[int], object]) -> NDArray[np.int64]:
    """A text in each of B empty slots: [B, length], drawn from the model's own distribution after `start_id`.

    They are always the same ones. `progress` is called repeatedly with the number of tokens in each text.
    """
    samplers = [Sampler(Settings(temperature=1.0, seed=seed), ()) for seed in range(slots.count)]
    texts = [[start_id] for _ in samplers]
    while True:
        works = [Work(slot, text[-1:], len(text) - 1, logits=True) for slot, text in enumerate(texts)]
        for text, sampler, answer in zip(texts, samplers, slots.run(works), strict=True):
            text.append(sampler.choose(answer.logits[0]))
        progress(len(texts[0]))
        if len(texts[0]) >= length:
            return np.array(texts)
