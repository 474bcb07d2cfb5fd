"""The numbers that the server answers with, of embeddings and of scored prompts, are PyTorch's."""

import base64
from functools import cache

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from runtime.server import ServerSettings, create_app

TEXTS = [
    "It was a bright cold day",
    "It",
    "“Où est-il?” she said; “à Genève.”",
    "日本の海",
    "She laughed 😀 and went out.\n\nCHAPTER II",
    " ".join(f"{word} stood {n} miles off;" for n, word in enumerate(["She", "He", "They"] * 9)),
    "<|endoftext|>A new text",
    "    four spaces\tand a tab",
    "e\u0301 and ﬁ and ½",
]
N_LAYER = 6


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """PyTorch and ONNX Runtime must not spin on each other's CPUs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def client(model):
    with TestClient(create_app(model, ServerSettings(served_name="novelist"))) as found:
        yield found


@pytest.fixture(scope="module")
def posted(client):
    def post(path, **body):
        answer = client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    return post


# embeddings


@pytest.fixture(scope="module")
def hidden(shipped):
    """transformers' hidden states of some ids, in float64 or float32: 0 is the embedding, n_layer the last."""

    @cache
    def states(ids, precision):
        with torch.no_grad():
            found = getattr(shipped, precision).transformer(torch.tensor([ids]), output_hidden_states=True)
        return [each[0] for each in found.hidden_states]

    return lambda text, precision: states(tuple(shipped.ids(text)), precision)


def pooled(states, pooling, normalize):
    """[S, C]: the vectors of a text's first token, of its first two, and so on to the whole text."""
    counts = torch.arange(1, len(states) + 1, dtype=states.dtype)[:, None]
    found = states.cumsum(0) / counts if pooling == "mean" else states
    return found / found.norm(dim=1, keepdim=True) if normalize else found


def relative(found, truth):
    """The largest of the vectors' errors."""
    return float(((found.double() - truth).norm(dim=-1) / truth.norm(dim=-1)).max())


@pytest.fixture(scope="module")
def assert_as_pytorch(hidden):
    """At most twice as far from float64 as PyTorch's own float32 gets over all beginnings of the texts."""

    def check(vectors, layer=N_LAYER, pooling="mean", normalize=True, texts=TEXTS):
        def of(text, precision):
            return pooled(hidden(text, precision)[layer], pooling, normalize)

        noise = max(relative(of(text, "float32"), of(text, "truth")) for text in texts)
        bound = max(2 * noise, np.finfo(np.float32).eps)
        for vector, text in zip(vectors, texts, strict=True):
            assert relative(torch.tensor(vector, dtype=torch.float64), of(text, "truth")[-1]) <= bound

    return check


def vectors_of(answer):
    assert [each["index"] for each in answer["data"]] == list(range(len(answer["data"])))
    return [each["embedding"] for each in answer["data"]]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("layer", range(N_LAYER + 1))
def test_embeddings_are_pytorchs_hidden_states(posted, assert_as_pytorch, layer, pooling, normalize):
    answer = posted("/v1/embeddings", input=TEXTS, layer=layer, pooling=pooling, normalize=normalize)
    assert_as_pytorch(vectors_of(answer), layer, pooling, normalize)


def test_by_default_they_are_the_last_layers_mean_of_length_1(posted, assert_as_pytorch, shipped):
    assert shipped.float32.config.n_layer == N_LAYER
    found = vectors_of(posted("/v1/embeddings", input=TEXTS))
    assert_as_pytorch(found)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)


def test_embeddings_of_ids_are_those_of_their_text(posted, shipped):
    ids = [shipped.ids(text) for text in TEXTS]
    answer = posted("/v1/embeddings", input=ids)
    assert vectors_of(answer) == vectors_of(posted("/v1/embeddings", input=TEXTS))
    assert vectors_of(posted("/v1/embeddings", input=ids[0])) == vectors_of(answer)[:1]
    assert vectors_of(posted("/v1/embeddings", input=TEXTS[0])) == vectors_of(answer)[:1]
    count = sum(map(len, ids))
    assert answer["usage"] == {"prompt_tokens": count, "total_tokens": count}


def test_base64_holds_the_same_floats(posted):
    numbers = vectors_of(posted("/v1/embeddings", input=TEXTS, encoding_format="float"))
    texts = vectors_of(posted("/v1/embeddings", input=TEXTS, encoding_format="base64"))
    for text, vector in zip(texts, numbers, strict=True):
        assert np.frombuffer(base64.b64decode(text), "<f4").tolist() == vector


def test_a_text_that_fills_the_context_has_one(posted, assert_as_pytorch, shipped):
    text = shipped.decoded(shipped.text_ids(512)[0])
    assert len(shipped.ids(text)) == 512
    assert_as_pytorch(vectors_of(posted("/v1/embeddings", input=text)), texts=[text])


# scored prompts


@pytest.fixture(scope="module")
def texts(shipped):
    """A text beside the others whose second half is the model's own greedy continuation."""
    return [*TEXTS, TEXTS[0] + shipped.decoded(shipped.generate(shipped.ids(TEXTS[0]), 12))]


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("form", ["texts", "ids"])
def test_scored_prompts_have_pytorchs_log_probabilities(posted, shipped, texts, form, count):
    """Within twice what PyTorch's own float32 is off. The likeliest token is known by equality, as clients do it."""
    bound, prompts = 2 * shipped.logprob_noise, [shipped.ids(text) for text in texts]
    body = {"prompt": texts if form == "texts" else prompts, "max_tokens": 0, "echo": True, "logprobs": count}
    choices = posted("/v1/completions", **body, temperature=0)["choices"]
    greedy = []
    for choice, text, ids in zip(choices, texts, prompts, strict=True):
        assert (choice["text"], choice["finish_reason"]) == (text, "length")
        told = choice["logprobs"]
        assert {len(values) for values in told.values()} == {len(ids)}
        assert (told["token_logprobs"][0], told["top_logprobs"][0]) == (None, None)
        with torch.no_grad():
            truth = torch.log_softmax(shipped.truth(torch.tensor([ids])).logits[0], -1).numpy()
        for token, logprob, top, row in zip(
            ids[1:], told["token_logprobs"][1:], told["top_logprobs"][1:], truth[:-1], strict=True
        ):
            best = np.sort(row)[::-1]
            assert logprob == pytest.approx(row[token], rel=0, abs=bound)
            largest = sorted(top.values(), reverse=True)[: max(count, 1)]
            assert largest[:count] == pytest.approx(best[:count], rel=0, abs=bound)
            if count:
                assert best[0] - best[1] > bound  # else float32 could not tell which is the largest
                assert (logprob == max(top.values())) == (token == row.argmax())
                greedy.append(token == row.argmax())
    if count:
        assert 12 <= sum(greedy) <= len(greedy) - 12  # both are there


def test_a_text_that_ends_at_once_still_has_the_token_that_ended_it(posted, shipped):
    """Clients that score an answer with max_tokens 1 leave out the last token, whichever it is."""
    ids, end = shipped.ids(TEXTS[0]), shipped.tokenizer.eos_token_id
    body = {"prompt": ids, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    (choice,) = posted("/v1/completions", **body, logit_bias={str(end): 100})["choices"]
    assert (choice["text"], choice["finish_reason"]) == (TEXTS[0], "stop")
    assert {len(values) for values in choice["logprobs"].values()} == {len(ids) + 1}
    (other,) = posted("/v1/completions", **body)["choices"]
    assert choice["logprobs"]["token_logprobs"][:-1] == other["logprobs"]["token_logprobs"][:-1]
