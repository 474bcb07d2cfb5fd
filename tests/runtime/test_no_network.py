"""The runtime asks no network for anything: with Python's sockets forbidden, all main paths work as ever.

Python tells an audit hook (PEP 578) of each socket before it is made. Pairs within the process are all that may be.
"""

import json

import pytest

FORBIDDEN = """
import socket, sys

def forbid(event, arguments):
    within = event == "socket.__new__" and arguments[1] == socket.AF_UNIX
    if event.startswith("socket.") and not within:
        raise RuntimeError(f"the network was asked for: {event} {arguments[1:]}")

sys.addaudithook(forbid)
"""
COMMAND = f"""{FORBIDDEN}
from runtime.cli.main import main
main()
"""
CALLS = f"""{FORBIDDEN}
import asyncio, runtime
path, prompt = sys.argv[1:]
model = runtime.load(path, device="cpu")
asked = dict(max_new_tokens=5)
texts = [model.complete(prompt, **asked).text, "".join(model.stream(prompt, **asked))]
texts.append(runtime.complete(prompt, model=path, **asked).text)
texts += [each.text for each in model.complete([prompt] * 3, **asked)]
texts.append(asyncio.run(model.acomplete(prompt, **asked)).text)
with model.session() as session:
    texts.append(session.complete(prompt, **asked).text)
assert set(texts) == {{texts[0]}}, texts
model.complete(prompt, temperature=1.0, seed=1, n=2, **asked)
model.complete(prompt, num_beams=2, **asked)
model.score(prompt)
model.inspect(prompt)
print(texts[0])
"""


def test_the_hook_sees_what_it_forbids(run_python):
    done = run_python("-c", f"{FORBIDDEN}\nimport http.client; http.client.HTTPConnection('127.0.0.1', 9).connect()")
    assert "the network was asked for: socket." in done.stderr
    assert done.returncode == 1


def test_the_callers_paths(run_python, bundle, model, probe):
    done = run_python("-c", CALLS, str(bundle), probe.prompt)
    assert done.returncode == 0, done.stderr
    assert done.stdout == model.complete(probe.prompt, max_new_tokens=5).text + "\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["complete", "It was", "--max-new-tokens", "3"],
        ["inspect", "It was", "--html", "page.html"],
        ["summary"],
        ["verify"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_the_commands(run_python, bundle, arguments):
    done = run_python("-c", COMMAND, *arguments, "--model", str(bundle))
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr


def test_a_score_and_the_doctor(run_python, bundle):
    done = run_python("-c", COMMAND, "score", "-", "--model", str(bundle), stdin=b"It was a bright cold day")
    assert done.returncode == 0, done.stderr
    done = run_python("-c", COMMAND, "doctor")
    assert "the network was asked for" not in done.stdout + done.stderr
    assert done.stdout


def test_a_batch(run_python, bundle, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in ("It was", "He")))
    output = tmp_path / "completions.jsonl"
    done = run_python("-c", COMMAND, "batch", str(prompts), "--output", str(output), "--model", str(bundle))
    assert done.returncode == 0, done.stderr
    assert len(output.read_text().splitlines()) == 2
