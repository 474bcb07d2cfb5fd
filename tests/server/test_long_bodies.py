"""Bodies that take long to understand are understood in a thread, so that all others' streams go on meanwhile."""

import threading

import pytest

import runtime.server.completions
import runtime.server.tokens
from runtime.server.bodies import MOST_ITEMS

LONG_BODIES = {
    "a text": {"prompt": "It was " * 700},
    "texts": {"prompt": ["It was a bright cold day"] * 60 + ["It was " * 400]},
    "ids": {"prompt": [5] * 5000},
    "lists of ids": {"prompt": [[5] * 500] * 10},
    "words": {"bad_words": [f"word {number}" for number in range(MOST_ITEMS)]},
    "biases": {"logit_bias": {str(number): 1 for number in range(8192)}},
    "a regex": {"regex": "[a-z]{3}"},
}


@pytest.fixture
def threads(server, monkeypatch):
    """(the thread in which short bodies are understood, those in which the bodies after that are)."""
    found = []

    def noted(work):
        def note(*args, **options):
            found.append(threading.get_ident())
            return work(*args, **options)

        return note

    for module, names in (
        (runtime.server.completions, ("understand", "text_of")),
        (runtime.server.tokens, ("encoded", "decoded")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, noted(getattr(module, name)))
    server.complete(prompt="It", max_tokens=1)
    (serving,) = set(found)
    found.clear()
    return serving, found


@pytest.mark.parametrize("what", LONG_BODIES)
def test_a_long_body_holds_nobody_up(server, threads, what):
    serving, found = threads
    answer = server.complete(**{"prompt": "It", "max_tokens": 1, **LONG_BODIES[what]})
    assert answer.status_code in (200, 400)  # some are longer than the context
    assert found
    assert serving not in found


@pytest.mark.parametrize(("path", "body"), [("/tokenize", {"prompt": "It"}), ("/detokenize", {"tokens": [5]})])
def test_the_tokenizers_work_is_done_in_a_thread(server, threads, path, body):
    serving, found = threads
    assert server.client.post(path, json=body).status_code == 200
    assert found
    assert serving not in found
