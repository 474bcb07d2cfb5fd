"""The examples in the docstrings run and say what they say, and whatever a caller may call is in one of them."""

import ast
import asyncio
import doctest
import importlib
import importlib.util
import inspect
import os
import pkgutil

import pytest

import runtime


def modules():
    """All that can be imported here: pictures need the extra `plot`, the server `serve`, a cluster `cluster`."""
    names = [found.name for found in pkgutil.walk_packages(runtime.__path__, "runtime.")]
    extras = {"runtime.inside.plots": "matplotlib", "runtime.server": "starlette", "runtime.cluster": "ray"}
    absent = tuple(room for room, needed in extras.items() if not importlib.util.find_spec(needed))
    wanted = [name for name in names if not name.endswith("__main__") and not name.startswith(absent)]
    return [runtime, *map(importlib.import_module, wanted)]


def documented():
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for module in modules() for test in finder.find(module, module.__name__) if test.examples]
    return {test.name: test for test in found}


EXAMPLES = documented()


def callables():
    """Each function that is exported, and each method of a class that a caller holds."""
    exported = [getattr(runtime, name) for name in runtime.__all__]
    functions = [each for each in exported if inspect.isfunction(each)]
    classes = [each for each in exported if inspect.isclass(each) and not issubclass(each, BaseException | dict)]
    methods = [
        method for kind in classes for name, method in inspect.getmembers(kind, callable) if not name.startswith("_")
    ]
    return [*functions, *methods]


def called_in_examples():
    """The names of what is called; leaving a `with` block calls `close` or `aclose`."""
    source = "".join(example.source for test in EXAMPLES.values() for example in test.examples)
    nodes = list(ast.walk(ast.parse(source)))
    calls = [node.func for node in nodes if isinstance(node, ast.Call)]
    names = {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls}
    closed = {"close": ast.With, "aclose": ast.AsyncWith}
    return names | {name for name, kind in closed.items() if any(isinstance(node, kind) for node in nodes)}


def test_there_are_examples():
    assert {"runtime.api.complete", "runtime.model.model.Model.complete", "runtime.api.load"} <= set(EXAMPLES)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_example_says_what_comes_out(name, bundle, model, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPT2_ONNX_MODEL", str(bundle))
    test, output = EXAMPLES[name], []
    if any(".plot" in example.source for example in test.examples):
        pytest.importorskip("matplotlib", reason="pictures need the extra plot")
    test.globs = {"runtime": runtime, "os": os, "asyncio": asyncio, "model": model}
    result = doctest.DocTestRunner().run(test, out=output.append, clear_globs=False)
    assert result.attempted == len(test.examples)
    assert result.failed == 0, "".join(output)


@pytest.mark.parametrize("called", callables(), ids=lambda called: called.__qualname__)
def test_whatever_is_to_be_called_is_in_an_example(called):
    points_to_one = "As `" in inspect.getdoc(called)
    assert points_to_one or called.__name__ in called_in_examples()


def test_the_packages_own_example_is_python_that_names_what_exists():
    """It is not run: it speaks of a folder that may not be there."""
    lines = [line[4:] for line in runtime.__doc__.splitlines() if line.startswith("    ")]
    source = "\n".join(lines[: next(n for n, line in enumerate(lines) if "Error" in line)])
    attributes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
    used = {node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "runtime"}
    assert used
    assert all(hasattr(runtime, name) for name in used)
    used = {node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "model"}
    assert used
    assert all(hasattr(runtime.Model, name) for name in used)
