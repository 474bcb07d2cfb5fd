"""The server's embeddings and scores against PyTorch's: what goes through JSON and base64 is still float32's."""

import base64
from functools import cache

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from runtime.server import ServerSettings, create_app

TEXTS = ("It was a bright cold day", "Ω — “no”, naïve façades", "It")
LONG = "She looked out of the window, and the old house stood miles off; " * 8


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """For PyTorch, whose threads and those of ONNX Runtime would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def client(model):
    with TestClient(create_app(model, ServerSettings(served_name="novelist"))) as found:
        yield found


@pytest.fixture(scope="module")
def states(shipped):
    """Hidden states [n_layer + 1, S, C] of PyTorch, in float32 and in float64."""

    @cache
    def compute(*ids):
        with torch.no_grad():
            runs = [model(torch.tensor([ids]), output_hidden_states=True) for model in (shipped.float32, shipped.truth)]
        return [np.stack([state[0].numpy() for state in run.hidden_states]) for run in runs]

    return compute


def pooled(states, pooling, *, normalize):
    """[S, C] as [C], in the type of the states."""
    found = states[-1] if pooling == "last" else states.mean(axis=0)
    return found / np.linalg.norm(found) if normalize else found


def embed(client, **body):
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    return [each["embedding"] for each in answer.json()["data"]]


def assert_as_pytorch(shipped, found, float32, truth):
    """At most twice as far from the truth as PyTorch's float32 gets with any layer and way of pooling of any text.

    The floor is what one rounding to float32 is off, 2**-24, for each of the few operations after the last layer.
    """
    error = np.linalg.norm(np.array(found) - truth) / np.linalg.norm(truth)
    noise = max(shipped.noise[f"hidden_states.{n}", True] for n in range(shipped.architecture.n_layer + 1))
    own = np.linalg.norm(float32.astype(np.float64) - truth) / np.linalg.norm(truth)
    assert error <= max(2 * own, 2 * noise, 1e-6)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("layer", range(7))
def test_embeddings_are_pooled_hidden_states(client, shipped, states, layer, pooling, normalize):
    texts = [*TEXTS, LONG]
    found = embed(client, input=texts, layer=layer, pooling=pooling, normalize=normalize)
    for text, vector in zip(texts, found, strict=True):
        both = [pooled(each[layer], pooling, normalize=normalize) for each in states(*shipped.ids(text))]
        assert_as_pytorch(shipped, vector, *both)


def test_by_default_they_are_the_last_layers_mean_of_length_1(client, shipped, states):
    for text, vector in zip(TEXTS, embed(client, input=list(TEXTS)), strict=True):
        assert_as_pytorch(
            shipped, vector, *(pooled(each[-1], "mean", normalize=True) for each in states(*shipped.ids(text)))
        )
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)  # 256 roundings of 2**-24 add up to less


@pytest.mark.parametrize("layer", [0, 3, 6])
def test_texts_ids_bytes_and_numbers_are_one(client, shipped, layer):
    texts, ids = list(TEXTS), [shipped.ids(text) for text in TEXTS]
    numbers = embed(client, input=texts, layer=layer, encoding_format="float")
    assert embed(client, input=ids, layer=layer, encoding_format="float") == numbers
    assert embed(client, input=texts[0], layer=layer) == numbers[:1]
    assert embed(client, input=ids[0], layer=layer) == numbers[:1]
    for told in (texts, ids):
        encoded = embed(client, input=told, layer=layer, encoding_format="base64")
        decoded = [np.frombuffer(base64.b64decode(each), "<f4") for each in encoded]
        np.testing.assert_array_equal(decoded, np.array(numbers, np.float32))
        assert [each.astype(float).tolist() for each in decoded] == numbers


def test_the_empty_text_is_the_beginning_of_one(client, shipped, states):
    (vector,) = embed(client, input="")
    both = states(shipped.tokenizer.bos_token_id)
    assert_as_pytorch(shipped, vector, *(pooled(each[-1], "mean", normalize=True) for each in both))


@pytest.fixture(scope="module")
def rows(shipped):
    """Log-probabilities [S, V] after each token, in float64."""

    @cache
    def compute(*ids):
        with torch.no_grad():
            return shipped.truth(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()

    return compute


def greedy_ids(rows, ids, count):
    for _ in range(count):
        ids = [*ids, int(rows(*ids)[-1].argmax())]
    return ids


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("form", ["texts", "ids"])
def test_prompts_are_scored(client, shipped, rows, form, count):
    """Within twice what PyTorch's own float32 is off; which token is the likeliest is exact."""
    bound = 2 * shipped.logprob_noise
    prompts = [shipped.ids(text) for text in (*TEXTS, LONG)]
    prompts.append(greedy_ids(rows, prompts[0], 12))
    given = prompts if form == "ids" else [shipped.decoded(ids) for ids in prompts]
    body = {"prompt": given, "max_tokens": 0, "echo": True, "logprobs": count, "temperature": 0}
    answer = client.post("/v1/completions", json=body).json()
    assert answer["usage"]["completion_tokens"] == 0
    flags = []
    for ids, choice in zip(prompts, answer["choices"], strict=True):
        told, expected = choice["logprobs"], rows(*ids)[:-1]
        assert choice["text"] == shipped.decoded(ids)
        for token, spelled in zip(ids, told["tokens"], strict=True):
            assert spelled == shipped.decoded([token]) or "\ufffd" in shipped.decoded([token])  # part of a character
        assert (len(told["token_logprobs"]), told["token_logprobs"][0], told["top_logprobs"][0]) == (
            len(ids),
            None,
            None,
        )
        np.testing.assert_allclose(
            told["token_logprobs"][1:], expected[np.arange(len(ids) - 1), ids[1:]], rtol=0, atol=bound
        )
        for row, token, logprob, top in zip(
            expected, ids[1:], told["token_logprobs"][1:], told["top_logprobs"][1:], strict=True
        ):
            best = np.sort(row)[::-1]
            np.testing.assert_allclose(sorted(top.values(), reverse=True)[:count], best[:count], rtol=0, atol=bound)
            if count and best[0] - best[1] > 2 * bound:  # else even PyTorch cannot tell which is the likeliest
                greedy = logprob == max(top.values())  # as lm-eval and others ask
                assert greedy == (int(row.argmax()) == token)
                flags.append(greedy)
    assert not count or (flags.count(True) > 12 and flags.count(False) > 50)


def test_generated_tokens_are_scored_too(client, shipped, rows):
    ids = shipped.ids(TEXTS[0])
    expected = greedy_ids(rows, ids, 8)
    body = {"prompt": ids, "max_tokens": 8, "echo": True, "logprobs": 1, "temperature": 0, "ignore_eos": True}
    (choice,) = client.post("/v1/completions", json=body).json()["choices"]
    assert choice["text"] == shipped.decoded(expected)
    found = choice["logprobs"]["token_logprobs"][1:]
    truth = rows(*expected)[np.arange(len(expected) - 1), expected[1:]]
    np.testing.assert_allclose(found, truth, rtol=0, atol=2 * shipped.logprob_noise)
