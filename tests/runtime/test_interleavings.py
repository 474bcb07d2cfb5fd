"""Texts of a real model that join, leave and are read in chunks of any size: each is what it is alone."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import runtime.engine.scheduler
from runtime.engine.drafts import PromptLookup
from runtime.engine.scheduler import Scheduler
from runtime.engine.texts import GeneratedText
from runtime.text.generation import Generation
from runtime.text.options import Settings

LONGEST = 24  # new tokens
TIE = 2.0**-16  # of the largest logit: sums in another order may swap tokens that are nearer to each other
PROMPTS = (
    "It was a bright cold day in April, and the clocks were striking thirteen.",
    "It was a bright cold day in April, and the clocks were striking thirteen. The old house stood",
    "She said that",
    "He opened the letter slowly and read it, and read it again, and then he opened the letter slowly and",
    "a",
    "The old man, the old man, the old man, the old man, " * 6,
)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, len(PROMPTS) - 1), st.integers(1, LONGEST), st.booleans()),
        st.tuples(st.just("step"), st.integers(1, 10)),
        st.tuples(st.just("cancel"), st.integers(0, 20)),
    ),
    min_size=2,
    max_size=24,
)
CASES = {"events": EVENTS, "size": st.integers(1, 6), "chunk": st.sampled_from([1, 2, 5, 17, 60, 500])}


@pytest.fixture(scope="module")
def alone(model):
    """The ids after each prompt, one at a time, and how near the second one came each time, relative to the largest."""
    found = []
    for prompt in PROMPTS:
        ids, leads = list(model.encode(prompt)), []
        with model.decode_graph.sequence() as state:
            token, logits = state.step(ids)
            for _ in range(LONGEST):
                second, first = np.sort(logits)[-2:]
                leads.append(float((first - second) / np.abs(logits).max()))
                ids.append(token)
                token, logits = state.step([token])
        found.append((ids[: -LONGEST or None], ids[-LONGEST:], leads))
    return found


def check(model, alone, events, size, chunk):
    scheduler, texts, cancelled = Scheduler(model.decode_graph.slots(size)), [], set()

    def begin(prompt, count, drafted):
        ids, *_ = alone[prompt]
        options = Settings(max_new_tokens=count, ignore_eos=True)
        generation = Generation(ids, options, tokenizer=model.prompting.tokenizer, eos_ids=(), room=count)
        texts.append((prompt, count, GeneratedText(generation, [PromptLookup()] if drafted else [])))
        scheduler.add(texts[-1][2])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime.engine.scheduler, "prompt_tokens", lambda _: chunk)
        for name, *values in events:
            if name == "add":
                begin(*values)
            elif name == "step":
                for _ in range(values[0]):
                    scheduler.step()
            elif texts:
                scheduler.cancel(texts[values[0] % len(texts)][2])
                cancelled.add(values[0] % len(texts))
        while not all(text.finished for n, (_, _, text) in enumerate(texts) if n not in cancelled):
            scheduler.step()
    for n, (prompt, count, text) in enumerate(texts):
        _, expected, leads = alone[prompt]
        said = text.generation.token_ids
        differing = [place for place, (one, other) in enumerate(zip(said, expected, strict=False)) if one != other]
        assert not differing or leads[differing[0]] <= TIE
        assert len(said) == count or n in cancelled


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(**CASES)
def test_a_text_is_what_it_is_alone_whatever_runs_beside_it(model, alone, events, size, chunk):
    check(model, alone, events, size, chunk)


@pytest.mark.wide
@settings(deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
@given(**CASES)
def test_a_text_is_what_it_is_alone_in_a_thousand_interleavings(model, alone, events, size, chunk):
    check(model, alone, events, size, chunk)
