"""docs/serving.md: its commands run as they stand, and its tables name all that there is."""

import argparse
import doctest
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import runtime
from runtime.cli import serve
from runtime.cli.main import make_parser
from runtime.server import ServerSettings, create_app
from runtime.server.bodies import CompletionBody, EmbeddingBody
from runtime.server.endpoints import ENDPOINTS

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
CLUSTERS = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
SIZES = {"small": (12, 768), "medium": (24, 1024), "large": (36, 1280), "xl": (48, 1600)}


def blocks(language, page=PAGE):
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def joined(block):
    """Commands of a block, continued lines joined, without remarks."""
    lines = re.sub(r"\\\n\s*", "", block).splitlines()
    return [re.sub(r"\s{2,}# .*", "", line) for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def demo(bundle, serving, tmp_path_factory):
    """A server of a bundle in models/novelist-onnx, where `make demo` makes one."""
    folder = tmp_path_factory.mktemp("demo") / "models" / "novelist-onnx"
    shutil.copytree(bundle, folder)  # not a link, whose own name a model does not have
    with serving(create_app(runtime.load(folder, device="cpu", slots=4), ServerSettings())) as found:
        yield found


def as_pattern(expected):
    """What is expected, where … stands for anything of one line."""
    return "[^\n]*?".join(re.escape(part) for part in expected.strip().split("…"))


EXAMPLES = [
    pytest.param(*example, id=f"{name} {number}")
    for name, page in (("serving.md", PAGE), ("README.md", README))
    for number, block in enumerate(blocks("console", page))
    for example in re.findall(r"^\$ (curl (?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
]


@pytest.mark.parametrize(("command", "expected"), EXAMPLES)
def test_a_curl_answers_what_the_page_says(demo, command, expected):
    assert "http://localhost:8000/" in command
    here = command.replace("http://localhost:8000", demo.url)
    done = subprocess.run(["bash", "-c", here], capture_output=True, text=True, check=True)
    assert re.fullmatch(as_pattern(expected), done.stdout.strip()), done.stdout


def test_there_are_curls_on_both_pages():
    assert {each.id.split()[0] for each in EXAMPLES} == {"serving.md", "README.md"}


def test_openais_client_says_what_the_page_says(demo):
    text = "".join(blocks("python")).replace("http://localhost:8000", demo.url)
    test = doctest.DocTestParser().get_doctest(text, {}, "serving.md", None, 0)
    runner = doctest.DocTestRunner()
    runner.run(test, clear_globs=False)
    test.globs["client"].close()
    assert len(test.examples) >= 6
    assert runner.summarize(verbose=False).failed == 0


def test_each_command_that_serves_is_one_that_the_command_line_takes():
    commands = [shlex.split(line) for block in blocks("sh") for line in joined(block)]
    serving = [part[part.index("runtime") + 1 :] for part in commands if "serve" in part and "runtime" in part]
    assert len(serving) >= 4
    for arguments in serving:
        assert make_parser().parse_args(arguments).run is serve.run
    (factory,) = [part for part in commands if "uvicorn" in part]
    assert factory[factory.index("--factory") + 1] == "runtime.server:create_app"
    (docker,) = [part for part in commands if part[0] == "docker"]
    assert docker[-1] == "gpt2-onnx"


STARTS = [line for block in blocks("sh") for line in joined(block) if re.search("runtime serve|uvicorn", line)]


@pytest.mark.parametrize("line", STARTS)
def test_each_command_that_serves_does(start, bundle, tmp_path, line):
    """At a port and with a bundle of the tests', which has no int8."""
    (tmp_path / "keys.txt").write_text("first-long-key\n")
    here = line.replace("models/novelist-onnx", str(bundle)).replace("keys.txt", str(tmp_path / "keys.txt"))
    here = here.replace(" --precision int8 --cache int8", "").replace(" --port 8000", "")
    server = start(command=("bash", "-c", f"PATH={Path(sys.executable).parent}:$PATH exec env {here} --port 0"))
    headers = {"Authorization": "Bearer first-long-key"}
    answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "It", "max_tokens": 2}, headers=headers)
    assert answer.json()["usage"]["completion_tokens"] <= 2
    assert httpx.get(f"{server.url}/v1/models").status_code == (401 if "key" in line else 200)


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_line_of_the_log_is_as_on_the_page(start, form):
    server = start("--log-format", form)
    body = {"prompt": "The old house stood", "max_tokens": 10, "temperature": 0}
    httpx.post(f"{server.url}/v1/completions", json=body)
    (told,) = [block.rstrip() for block in blocks(form) if "POST" in block]
    changing = re.compile(r'\d\d:\d\d:\d\d|"time": "[^"]*"|id=?"?:? ?"\w+"|seconds"?[=:] ?[\d.]+')
    assert changing.sub("", server.logged("POST")) == changing.sub("", told)


def test_the_sums_of_slots_and_callers():
    rows = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if re.match(r"\| (fp32|int8) \|", line)]
    numbers = [[float(cell.replace(",", "")) for cell in row[1:]] for row in rows]
    for _, eight, of_eight, sixteen, of_sixteen in numbers[:2]:
        assert (of_eight, of_sixteen) == pytest.approx((eight / 8, sixteen / 16), abs=0.051)
    for read, decoded, *told in numbers[2:]:
        seconds = 128 / read + 64 / decoded
        assert told == [round(seconds, 2), round(1 / seconds, 1), round(0.7 * 60 / seconds)]
    assert len(numbers) == 4


def test_all_fields_are_named():
    for body in (CompletionBody, EmbeddingBody):
        assert not [name for name in body.__struct_fields__ if f"`{name}`" not in PAGE]


def test_all_endpoints_are_named():
    assert not [each.path for each in ENDPOINTS if f"{each.path}`" not in PAGE]


def test_all_flags_are_named_with_their_defaults():
    commands = argparse.ArgumentParser().add_subparsers()
    serve.add_to(commands)
    flags = set(re.findall(r"--[a-z-]+", commands.choices["serve"].format_help())) - {"--help", "--gpu-mem-limit"}
    elsewhere = {"--device", "--threads"}  # how a model is loaded: docs/deploying.md
    clusters = {f"--{name}" for name in (*serve.CLUSTER, "cluster")}
    assert not [flag for flag in clusters if f"{flag}`" not in CLUSTERS and f"{flag} " not in CLUSTERS]
    flags -= clusters
    assert not [flag for flag in flags - elsewhere if f"{flag}`" not in PAGE and f"{flag} " not in PAGE]
    rows = dict(re.findall(r"^\| `--([a-z-]+)` \|[^|]+\| ([\d,]+) \|$", PAGE, re.MULTILINE))
    assert len(rows) >= 6
    for name, value in rows.items():
        found = getattr(ServerSettings(), name.replace("-", "_"), 30)
        assert float(value.replace(",", "")) == found


def test_all_codes_of_errors_are_named():
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "runtime" / "server").glob("*.py"))
    codes = set(re.findall(r'code="(\w+)"', sources)) | {"method_not_allowed", "unknown_url"}
    assert len(codes) > 10
    assert not [code for code in codes if f"`{code}`" not in PAGE]


def test_each_metric_of_the_page_is_one_that_the_server_has(demo):
    demo.complete(prompt="It", max_tokens=2)
    there = set(re.findall(r"^(gpt2_onnx_\w+)", demo.client.get("/metrics").text, re.MULTILINE))
    named = set(re.findall(r"gpt2_onnx_\w+", "".join(blocks("promql"))))
    assert len(named) > 8
    assert named <= there


def test_the_sums_of_memory():
    rows = {
        name: cells for name, *cells in (line.strip("| ").split(" | ") for line in PAGE.splitlines() if " | " in line)
    }
    for row, tokens, digits in (
        ("a token", 1, 3),
        ("a slot that fills the context of 1,024", 1024, 1),
        ("32 slots", 32768, 0),
    ):
        for cell, (layers, width) in zip(rows[row], SIZES.values(), strict=True):
            calculated = 2 * layers * width * 4 * tokens / 1e6
            assert float(cell.replace(",", "")) == pytest.approx(
                calculated, abs=0.51 if "." not in cell else 10**-digits * 0.51
            )


def test_each_link_leads_somewhere():
    for place in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGE):
        assert (ROOT / "docs" / place).exists(), place
    for anchor in re.findall(r"\]\(#([\w-]+)\)", PAGE):
        assert anchor in {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)}
