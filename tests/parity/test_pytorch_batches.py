"""Prompts of many lengths side by side, each as PyTorch continues it alone."""

import numpy as np
import pytest
import torch

import runtime
from runtime.graphs.kinds import runs
from runtime.graphs.work import Work

COUNT = 32
SHORT = ["", "I", "She", "Call me", "It was a bright cold day", "“Well,” said", "CHAPTER I", "In the year 1897"]
LENGTHS = [2, 9, 20, 33, 64, 65, 120, 121, 199, 200]
STORY = (
    "The old house stood at the end of the lane, and nobody had lived in it for years. Every evening, when the clock "
    "struck six, the doctor walked past its gate; and every evening he looked up at the dark windows, and thought of "
    "the child whom he had seen there. “It is nothing,” he said to himself, “a trick of the light.” But he went home "
    "by another way. His sister had the tea ready, and the lamp was lit. She did not ask him where he had been. They "
    "spoke of the weather, of the price of coal, of the new curate, who sang so loudly; of everything, in short, but "
    "what was in their minds. At last she put down her work. “John,” she said, “who was it that rang the bell?”"
)


@pytest.fixture(scope="module")
def prompts(shipped):
    """The short ones, and others that begin anywhere in a story, in no order of length."""
    ids = shipped.tokenizer(STORY)["input_ids"]
    cuts = [shipped.decoded((ids * 3)[7 * n : 7 * n + length]) for n, length in enumerate(LENGTHS)]
    return [prompt for pair in zip(cuts, [*SHORT, "My dear sir,", "At last"], strict=True) for prompt in pair]


@pytest.fixture(scope="module")
def alone(shipped, prompts):
    """What transformers continues each prompt with, whatever ends a text."""
    return [shipped.generate(shipped.ids(prompt), COUNT) for prompt in prompts]


def shortest_with(pair, tokens, stops):
    """As many tokens as it takes until a stop is complete in their text, that text without it, and why it ended."""
    for count in range(1, len(tokens) + 1):
        text = pair.decoded(tokens[:count])
        if found := [text.index(stop) for stop in stops if stop in text]:
            return tokens[:count], text[: min(found)], "stop"
    return tokens, pair.decoded(tokens), "length"


def test_the_prompts_are_ragged(shipped, prompts):
    lengths = [len(shipped.ids(prompt)) for prompt in prompts]
    assert lengths.count(1) >= 2
    assert max(lengths) > 190
    assert len(set(lengths)) > 12


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_every_prompt_is_continued_as_if_alone(model, shipped, prompts, alone, batch_size):
    completions = model.complete(prompts, batch_size=batch_size, max_new_tokens=COUNT, ignore_eos=True)
    for prompt, expected, completion in zip(prompts, alone, completions, strict=True):
        prompt_ids = shipped.ids(prompt)
        assert completion.prompt_tokens == len(prompt_ids)
        assert completion.finish_reason == "length"
        assert completion.text == shipped.decoded(completion.token_ids)
        shipped.assert_same(completion.token_ids, expected, prompt_ids)


@pytest.mark.parametrize("batch_size", [1, 3, 5, 16])
@pytest.mark.parametrize("stops", [[","], [" was", ".", "\n"]], ids=repr)
def test_rows_leave_at_their_stops_and_others_join(model, shipped, prompts, alone, batch_size, stops):
    completions = model.complete(prompts, batch_size=batch_size, max_new_tokens=COUNT, stop=stops, ignore_eos=True)
    cut = [shortest_with(shipped, tokens, stops) for tokens in alone]
    assert len({len(tokens) for tokens, _, _ in cut}) > 5
    for prompt, expected, completion in zip(prompts, cut, completions, strict=True):
        tokens, *outcome = expected
        shipped.assert_same(completion.token_ids, tokens, shipped.ids(prompt))
        if list(completion.token_ids) == tokens:  # and no near-tie has led elsewhere
            assert [completion.text, completion.finish_reason] == outcome


@pytest.fixture(scope="module")
def sentences(short_sentences, prompts):
    """What transformers continues each prompt with where a full stop ends a text."""
    ends = short_sentences.float32.generation_config.eos_token_id
    return [short_sentences.generate(short_sentences.ids(prompt), COUNT, eos_token_id=ends) for prompt in prompts]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_rows_leave_at_their_ends_of_text_and_others_join(short_sentences, prompts, sentences, batch_size):
    pair, model = short_sentences, runtime.load(short_sentences.bundle, device="cpu")
    assert len({len(tokens) for tokens in sentences}) > 5
    completions = model.complete(prompts, batch_size=batch_size, max_new_tokens=COUNT)
    for prompt, expected, completion in zip(prompts, sentences, completions, strict=True):
        pair.assert_same(completion.token_ids, expected, pair.ids(prompt))
        ended = completion.token_ids[-1] in pair.float32.generation_config.eos_token_id
        assert completion.finish_reason == ("stop" if ended else "length")
        assert completion.text == pair.decoded(completion.token_ids[: -1 if ended else None])
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}


def test_each_row_has_its_own_penalty_history(model, shipped, prompts):
    completions = model.complete(prompts[:7], batch_size=4, max_new_tokens=24, repetition_penalty=1.4, ignore_eos=True)
    for prompt, completion in zip(prompts, completions, strict=False):
        prompt_ids = shipped.ids(prompt)
        expected = shipped.generate(prompt_ids, 24, repetition_penalty=1.4)
        shipped.assert_same(completion.token_ids, expected, prompt_ids, penalty=1.4)


def test_rows_reach_the_end_of_the_context(model, shipped):
    """One prompt leaves room for a single token, one for five, and one for more than is asked for."""
    story = shipped.tokenizer(STORY)["input_ids"] * 5
    texts = [shipped.decoded(story[:length]) for length in (511, 507, 30, 1)]
    lengths = [len(shipped.ids(text)) for text in texts]
    assert lengths[:2] == [511, 507]
    completions = model.complete(texts, batch_size=3, max_new_tokens=12, ignore_eos=True)
    for text, length, completion in zip(texts, lengths, completions, strict=True):
        prompt_ids = shipped.ids(text)
        expected = shipped.generate(prompt_ids, min(12, 512 - length))
        shipped.assert_same(completion.token_ids, expected, prompt_ids)
        assert completion.finish_reason == "length"


class Texts:
    """Slots and, for each of them, the ids it must have read; every run is judged against the truth."""

    def __init__(self, pair, slots):
        self.pair, self.slots, self.ids = pair, slots, {}

    def run(self, more):
        """Append ids to slots."""
        works = [Work(slot, ids, len(self.ids.get(slot, ())), logits=True) for slot, ids in more.items()]
        for work in works:
            self.ids[work.slot] = [*self.ids.get(work.slot, ()), *work.token_ids]
        answers = self.slots.run(works)
        assert len(answers) == len(works)
        what = f"{[len(work.token_ids) for work in works]} after {[work.past_length for work in works]}"
        for work, answer in zip(works, answers, strict=True):
            self.check(self.ids[work.slot], answer, f"{what}: slot {work.slot}")

    def step(self, *token_ids):
        """Append one id to each slot, in their order."""
        self.run({slot: [token] for slot, token in zip(sorted(self.ids), token_ids, strict=True)})

    def leave(self, *slots):
        for slot in slots:
            del self.ids[slot]

    def check(self, ids, answer, what):
        with torch.no_grad():
            truth = self.pair.truth(torch.tensor([ids])).logits[:, -1:].numpy()
        assert answer.logits.shape == truth.shape[1:]
        self.pair.assert_close({"logits": answer.logits[None]}, {"logits": truth}, what)
        assert answer.next_ids.tolist() == [truth.argmax()]


@pytest.fixture(params=["ragged", "decode"])
def kind(request):
    """Which of the decode graphs runs."""
    if not runs(request.param):
        pytest.skip("this ONNX Runtime has no query_seqlens")
    return request.param


@pytest.fixture(params=["shipped", "tiny"])
def texts(request, make_pair, kind):
    """Five slots."""
    pair = request.getfixturevalue("shipped") if request.param == "shipped" else make_pair()
    return Texts(pair, (pair.ragged if kind == "ragged" else pair.decode).slots(5))


def test_texts_grow_leave_and_join_with_pytorchs_logits(texts):
    story = texts.pair.tokenizer(STORY)["input_ids"]
    texts.run({0: story[:80], 1: story[5:6], 2: story[10:47], 3: story[20:22]})
    texts.step(11, 22, 33, 44)
    texts.step(55, 66, 77, 88)
    texts.leave(0)
    texts.step(101, 102, 103)
    texts.run({0: story[40:49], 4: story[3:80]})
    for token in range(200, 204):
        texts.step(token, token + 10, token + 20, token + 30, token + 40)
    texts.leave(1, 4)
    texts.step(301, 302, 303)
    texts.run({1: story[:1]})
    texts.step(401, 402, 403, 404)
    texts.leave(*list(texts.ids)[:4])
    texts.run({0: story[60:70], 4: story[:3], 2: story[:90], 3: story[1:2], 1: story[50:60]})
    texts.step(501, 502, 503, 504, 505)


def test_parts_of_prompts_drafts_and_single_ids_share_a_run(texts):
    """And slots that have nothing to run lie between those that have."""
    story = texts.pair.tokenizer(STORY)["input_ids"]
    texts.run({0: story[:9], 2: story[5:30], 4: story[10:11]})
    texts.run({0: story[9:40], 2: story[30:31], 4: story[11:15]})
    texts.run({1: story[:5], 4: story[15:16]})
    texts.run({0: story[40:41], 4: story[16:17]})
    texts.run({1: story[5:6], 2: story[31:32], 3: story[:1]})
    texts.run({4: story[17:22], 0: story[41:42], 3: story[1:30], 2: story[32:33], 1: story[6:9]})
    texts.run({0: story[42:43], 1: story[9:10], 2: story[33:34], 3: story[30:31], 4: story[22:23]})


def test_one_text_alone_in_slots_for_more(texts):
    story = texts.pair.tokenizer(STORY)["input_ids"]
    texts.run({0: story[:33]})
    texts.step(7)
    texts.run({1: story[2:12]})
    texts.leave(0)
    texts.step(8)


def test_a_text_fills_the_context_beside_a_short_one(texts):
    context = texts.pair.architecture.n_positions
    story = (texts.pair.tokenizer(STORY)["input_ids"] * 4)[: context - 2]
    texts.run({1: story, 0: story[:2], 2: story[:1]})
    texts.step(9, 10, 11)
    texts.step(12, 13, 14)
    assert {slot: len(ids) for slot, ids in texts.ids.items()} == {1: context, 0: 4, 2: 3}
    full = texts.slots.cache(1, context)
    full = {name: array.copy() for name, array in full.items()}
    texts.leave(1)
    texts.step(15, 16)
    texts.step(17, 18)
    for name, array in texts.slots.cache(1, context).items():
        assert np.array_equal(array, full[name])
