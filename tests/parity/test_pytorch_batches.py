"""Prompts of many lengths side by side, each as PyTorch continues it alone."""

import pytest
import torch

import runtime

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


class Rows:
    """A DecodeBatch and, for each of its rows, the ids it must have read; every run is judged against the truth."""

    def __init__(self, pair, size):
        self.pair, self.batch, self.ids = pair, pair.decode.batch(size), []

    def admit(self, *prompts):
        result = self.batch.admit(prompts)
        self.check(result, prompts, f"{[len(prompt) for prompt in prompts]} admitted")
        self.ids += [list(prompt) for prompt in prompts]

    def step(self, *token_ids):
        for row, token in zip(self.ids, token_ids, strict=True):
            row.append(token)
        self.check(self.batch.step(token_ids), self.ids, f"a step to {[len(row) for row in self.ids]}")

    def remove(self, row):
        self.batch.remove(row)
        self.ids[row] = self.ids[-1]
        self.ids.pop()

    def check(self, result, rows, what):
        tokens, logits = result
        assert len(tokens) == len(logits) == len(rows)
        for number, row in enumerate(rows):
            with torch.no_grad():
                truth = self.pair.truth(torch.tensor([list(row)])).logits[:, -1:].numpy()
            self.pair.assert_close(
                {"logits": logits[None, number : number + 1]}, {"logits": truth}, f"{what}: {number}"
            )
            assert tokens[number] == truth.argmax()


@pytest.fixture(params=["shipped", "tiny"])
def rows(request, make_pair):
    """A batch of five rows."""
    return Rows(request.getfixturevalue("shipped") if request.param == "shipped" else make_pair(), 5)


def test_ragged_rows_grow_leave_and_join_with_pytorchs_logits(rows):
    story = rows.pair.tokenizer(STORY)["input_ids"]
    rows.admit(story[:80], story[5:6], story[10:47], story[20:22])
    rows.step(11, 22, 33, 44)
    rows.step(55, 66, 77, 88)
    rows.remove(0)  # the last one, shorter, takes the place of the longest
    rows.step(101, 102, 103)
    rows.admit(story[40:49], story[3:80])
    for token in range(200, 204):
        rows.step(token, token + 10, token + 20, token + 30, token + 40)
    rows.remove(4)  # the last one itself
    rows.remove(1)
    rows.step(301, 302, 303)
    rows.admit(story[:1])
    rows.step(401, 402, 403, 404)
    for _ in range(4):
        rows.remove(0)
    rows.admit(story[60:70], story[:3], story[:90], story[1:2], story[50:60])
    rows.step(501, 502, 503, 504, 505)


def test_one_row_alone_in_a_batch_of_more(rows):
    story = rows.pair.tokenizer(STORY)["input_ids"]
    rows.admit(story[:33])
    rows.step(7)
    rows.admit(story[2:12])
    rows.remove(0)
    rows.step(8)


def test_a_row_fills_the_context_beside_a_short_one(rows):
    context = rows.pair.architecture.n_positions
    story = (rows.pair.tokenizer(STORY)["input_ids"] * 4)[: context - 2]
    rows.admit(story, story[:2])
    rows.step(9, 10)
    rows.step(11, 12)
    assert [len(row) for row in rows.ids] == [context, 4]
