"""The OpenAPI document is true: schemathesis makes right and wrong requests from it, and reads the answers."""

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import GenerationMode, checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from runtime.server import ServerSettings, create_app
from runtime.server.endpoints import ENDPOINTS

CHECKS = [
    checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
LIMITS = {"max_tokens": 4, "max_n": 2, "max_prompts": 3, "max_logprobs": 2, "timeout": 60.0}
GOOD, BAD = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
POSTS = [("POST", each.path, mode) for each in ENDPOINTS if each.method == "POST" for mode in (GOOD, BAD)]
GETS = [
    ("GET", each.path, GOOD) for each in ENDPOINTS if each.method == "GET"
]  # in which nothing can be of a wrong type
# the same examples in each run, and nothing is kept of one run for another; a failure is not shrunk, which takes long
SETTINGS = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "phases": [Phase.generate],
    "suppress_health_check": list(HealthCheck),
}


@pytest.fixture(scope="module")
def document(model):
    """The document of a server that allows little, so that no request takes long."""
    app = create_app(model, ServerSettings(served_name="novelist", **LIMITS))
    return schemathesis.openapi.from_asgi("/openapi.json", app)


def assert_true(document, method, path, mode, examples):
    operation, statuses = document[path][method], set()

    @hypothesis.settings(max_examples=examples, **SETTINGS)
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def check(case):
        statuses.add(case.call_and_validate(checks=CHECKS).status_code)

    check()
    if path == "/v1/completions" and mode is GOOD:  # a schema cannot say what a grammar is, or what goes together
        assert statuses == {200, 400}
    else:
        assert (statuses == {200}) if mode is GOOD else (200 not in statuses)


@pytest.mark.parametrize(("method", "path", "mode"), [*POSTS, *GETS], ids=str)
def test_it_says_what_comes(document, method, path, mode):
    assert_true(document, method, path, mode, 40 if method == "POST" else 5)


@pytest.mark.wide
@pytest.mark.parametrize(("method", "path", "mode"), POSTS, ids=str)
def test_it_says_what_comes_of_many_more(document, method, path, mode):
    assert_true(document, method, path, mode, 300)


def test_it_is_an_openapi_document(document):
    document.validate()
