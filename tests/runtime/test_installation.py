"""What is installed next to the package, and what the package says and does about it."""

import inspect
import json
import textwrap

import pytest

import runtime

ABSENT = ("torch", "transformers", "optimum", "onnx", "export")
NAMES = [
    "AsyncStream",
    "BundleError",
    "CompleteOptions",
    "Completion",
    "GenerationOptions",
    "Inspection",
    "Lens",
    "Model",
    "Score",
    "Session",
    "Stream",
    "Summary",
    "TokenLogprob",
    "complete",
    "doctor",
    "load",
]

# Python as it would be without ONNX Runtime: neither its modules nor what pip wrote down about them are found.
WITHOUT_ONNX_RUNTIME = """
    import sys
    from importlib.machinery import PathFinder

    class Without(PathFinder):
        @classmethod
        def find_spec(cls, name, path=None, target=None):
            return None if name.split(".")[0] == "onnxruntime" else super().find_spec(name, path, target)

        @classmethod
        def find_distributions(cls, context):
            found = PathFinder.find_distributions(context)
            return (each for each in found if not each.metadata["Name"].replace("_", "-").startswith("onnxruntime"))

    sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""

# An ONNX Runtime that only remembers whether telemetry was off when it was imported.
REMEMBERS = """
    import os
    SEEN = os.environ.get("ORT_DISABLE_TELEMETRY")
    __version__ = "0"
"""


@pytest.fixture
def no_onnxruntime(tmp_path):
    folder = tmp_path / "without"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(textwrap.dedent(WITHOUT_ONNX_RUNTIME))
    return (folder,)


@pytest.fixture
def both_wheels(tmp_path):
    for name in ("onnxruntime", "onnxruntime_gpu"):
        record = tmp_path / "both" / f"{name}-1.0.dist-info"
        record.mkdir(parents=True)
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
    return (tmp_path / "both",)


@pytest.fixture
def remembering_onnxruntime(tmp_path):
    package = tmp_path / "remembering" / "onnxruntime"
    (package / "capi").mkdir(parents=True)
    (package / "__init__.py").write_text(textwrap.dedent(REMEMBERS))
    (package / "capi" / "__init__.py").write_text("")
    return (package.parent,)


@pytest.fixture
def script(run_python):
    """Run a script elsewhere; it must succeed, and what it prints is JSON."""

    def run(source, **options):
        done = run_python("-c", textwrap.dedent(source), **options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


# the import boundary


def test_nothing_of_the_export_side_is_imported(script, bundle):
    source = f"""
        import json, sys
        import runtime
        runtime.load({str(bundle)!r}).complete("It was", max_new_tokens=2)
        runtime.complete("It was", model={str(bundle)!r}, max_new_tokens=2)
        print(json.dumps(sorted({{name.split(".")[0] for name in sys.modules}})))
    """
    imported = script(source)
    assert "onnxruntime" in imported
    assert not set(ABSENT) & set(imported)


# the public names


def test_the_exported_names_are_the_documented_ones():
    assert runtime.__all__ == NAMES


def test_a_star_import_gives_the_documented_names(script):
    source = """
        import json
        before = set(dir())
        from runtime import *
        print(json.dumps(sorted(set(dir()) - before - {"before"})))
    """
    assert script(source) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_exported_name_has_a_docstring_of_its_own(name):
    documented = vars(getattr(runtime, name)).get("__doc__") or getattr(runtime, name).__doc__
    assert documented
    assert documented not in {base.__doc__ for base in getattr(getattr(runtime, name), "__mro__", [])[1:]}
    assert not documented.startswith(f"{name}(")  # what a dataclass writes for itself


@pytest.mark.parametrize("kind", [runtime.Model, runtime.Session, runtime.Stream])
def test_every_public_method_of_a_class_has_a_docstring(kind):
    methods = [method for name, method in inspect.getmembers(kind) if not name.startswith("_")]
    assert methods
    assert all(method.__doc__ for method in methods)


def test_a_bundle_error_is_a_value_error():
    assert issubclass(runtime.BundleError, ValueError)


# telemetry


def seen_by_onnxruntime(script, **options):
    source = """
        import json, os
        import runtime
        after_import = os.environ.get("ORT_DISABLE_TELEMETRY")
        from runtime.ort.install import load_onnxruntime
        print(json.dumps([after_import, load_onnxruntime().SEEN]))
    """
    return script(source, **options)


def test_telemetry_is_off_before_onnx_runtime_is_imported(script, remembering_onnxruntime):
    _, seen = seen_by_onnxruntime(script, path=remembering_onnxruntime, env={"ORT_DISABLE_TELEMETRY": None})
    assert seen == "1"


def test_telemetry_is_off_once_the_package_is_imported(script, remembering_onnxruntime):
    """So it is off too for a caller who imports onnxruntime next."""
    after_import, _ = seen_by_onnxruntime(script, path=remembering_onnxruntime, env={"ORT_DISABLE_TELEMETRY": None})
    assert after_import == "1"


@pytest.mark.parametrize("own", ["0", "1", ""])
def test_a_users_own_setting_of_telemetry_wins(script, remembering_onnxruntime, own):
    env = {"ORT_DISABLE_TELEMETRY": own}
    assert seen_by_onnxruntime(script, path=remembering_onnxruntime, env=env) == [own, own]


def test_a_command_turns_telemetry_off_too(run_python, remembering_onnxruntime, bundle):
    package = remembering_onnxruntime[0] / "onnxruntime" / "__init__.py"
    package.write_text(package.read_text() + "raise SystemExit(f'seen: {SEEN}')\n")
    command = ["-m", "runtime", "complete", "x", "--model", str(bundle)]
    done = run_python(*command, path=remembering_onnxruntime, env={"ORT_DISABLE_TELEMETRY": None})
    assert done.stderr == "seen: 1\n"


# no ONNX Runtime, or two


def assert_one_line(done, *parts):
    """Exit code 1 and one line on standard error that has these parts."""
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for part in parts:
        assert part in done.stderr


def import_error(script, path):
    source = """
        import json
        try:
            import runtime
        except ImportError as error:
            print(json.dumps(str(error)))
        else:
            print(json.dumps("no error"))
    """
    message = script(source, path=path)
    assert len(message.splitlines()) == 1, message
    return message


def test_an_import_without_onnx_runtime_names_the_command_that_installs_it(script, no_onnxruntime):
    assert 'pip install "gpt2-onnx[cpu]"' in import_error(script, no_onnxruntime)


def test_a_command_without_onnx_runtime_says_so_in_one_line(run_python, no_onnxruntime, bundle):
    done = run_python("-m", "runtime", "complete", "x", "--model", str(bundle), path=no_onnxruntime)
    assert_one_line(done, 'pip install "gpt2-onnx[cpu]"')


def test_a_command_without_onnx_runtime_and_without_a_model_says_one_of_the_two(run_python, no_onnxruntime):
    assert_one_line(run_python("-m", "runtime", "complete", "x", path=no_onnxruntime), "gpt2-onnx: ")


def test_what_an_uninstalled_wheel_left_behind_is_no_onnx_runtime(script, no_onnxruntime):
    """pip leaves a folder that it did not make all of, and Python imports such a folder as an empty package."""
    source = """
        import json, sys, importlib.machinery
        spec = importlib.machinery.ModuleSpec("onnxruntime", None, is_package=True)

        class Leftover:
            @staticmethod
            def find_spec(name, path=None, target=None):
                return spec if name == "onnxruntime" else None

        sys.meta_path.insert(0, Leftover)
        try:
            import runtime
        except ImportError as error:
            print(json.dumps(str(error)))
    """
    assert 'pip install "gpt2-onnx[cpu]"' in script(source, path=no_onnxruntime)


def test_an_import_next_to_both_wheels_names_the_command_that_mends_it(script, both_wheels):
    message = import_error(script, both_wheels)
    assert "both installed" in message
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in message


def test_a_command_next_to_both_wheels_says_so_in_one_line(run_python, both_wheels, bundle):
    done = run_python("-m", "runtime", "complete", "x", "--model", str(bundle), path=both_wheels)
    assert_one_line(done, "both installed", "pip uninstall -y onnxruntime onnxruntime-gpu")


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_a_command_that_needs_no_onnx_runtime_works_without(run_python, no_onnxruntime, option):
    done = run_python("-m", "runtime", option, path=no_onnxruntime)
    assert (done.returncode, done.stderr) == (0, "")
    assert "gpt2-onnx" in done.stdout
