"""`python -m runtime batch --engine ray`: a record for a row, whichever process dies, and as on one machine."""

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="the extra `cluster` is not installed here")
import pyarrow.parquet

from runtime.cluster.parts import room_by_cpus, room_by_gpus

WORDS = "It was a bright cold day and the old house stood at the end of the lane in April".split()  # noqa: SIM905
OPTIONS = ("--max-new-tokens", "24", "--batch-size", "8", "--top-k", "40")
ON_RAY = ("--engine", "ray", "--workers", "2")
ENDS = 120  # seconds that a run may take on a busy machine


def some_lines(count: int) -> list[dict[str, Any]]:
    """Prompts with seeds, without which a sampled text is another each time."""
    draw = random.Random(4)
    prompts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 30))) for _ in range(count)]
    return [{"id": f"p{number}", "prompt": prompt, "seed": number} for number, prompt in enumerate(prompts)]


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster that stays, as starting one takes seconds; its workers find this checkout."""
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus", "2"]
    port = ["--port", address.split(":")[1], "--include-dashboard", "false", "--disable-usage-stats"]
    with (
        (tmp_path_factory.mktemp("ray") / "log").open("wb") as log,
        subprocess.Popen([*command, *port], stdout=log, stderr=log, env=environment(), start_new_session=True) as head,
    ):
        try:
            wait_for(lambda: reachable(address))
            yield address
        finally:
            os.killpg(head.pid, signal.SIGKILL)  # Ray's own processes of it end with it
            head.wait(30)


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def reachable(address: str) -> bool:
    import socket

    try:
        socket.create_connection(("127.0.0.1", int(address.split(":")[1])), timeout=1).close()
    except OSError:
        return False
    return True


TOKEN = secrets.token_hex(32)


def environment(**changes: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent.parent.parent), os.environ.get("PYTHONPATH")]))
    own = {
        name: value for name, value in os.environ.items() if not name.startswith("RAY_") and name != "GPT2_ONNX_MODEL"
    }
    own |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}
    return {**own, "PYTHONPATH": path, **changes}


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[Any] | None = None) -> Any:
    end = time.monotonic() + ENDS
    while not (found := condition()):
        assert process is None or process.poll() is None, "it ended too early"
        assert time.monotonic() < end
        time.sleep(0.002)
    return found


class Batch:
    """The command over one file, on one engine or the other."""

    def __init__(self, bundle: Path, folder: Path, address: str = "") -> None:
        self.folder, self.source = folder, folder / "in.jsonl"
        self._bundle, self._environment = bundle, environment(**({"RAY_ADDRESS": address} if address else {}))

    def begin(self, output: str, *options: str, source: Path | None = None) -> subprocess.Popen[str]:
        names = [str(source or self.source), "--output", str(self.folder / output), "--model", str(self._bundle)]
        return subprocess.Popen(
            [sys.executable, "-m", "runtime", "batch", *names, *options],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, output: str, *options: str, source: Path | None = None) -> subprocess.CompletedProcess[str]:
        return ended(self.begin(output, *options, source=source))

    def write(self, lines: list[Any]) -> None:
        written = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        self.source.write_text("".join(f"{line}\n" for line in written))

    def begun(self, output: str, first: int) -> list[int]:
        """The process ids of the workers that have begun a part, in order."""
        folder = self.folder / f"{output}.parts"
        return [int(line.split()[0]) for file in folder.glob(f"{first:012}.*.tries") for line in lines_of(file)]


def lines_of(file: Path) -> list[str]:
    """The whole lines."""
    try:
        return [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    except FileNotFoundError:
        return []


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    output, errors = process.communicate(timeout=ENDS)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


@pytest.fixture
def batch(bundle: Path, tmp_path: Path, cluster: str) -> Batch:
    return Batch(bundle, tmp_path, cluster)


@pytest.fixture
def alone(bundle: Path, tmp_path: Path) -> Batch:
    """Without a cluster that is there already."""
    return Batch(bundle, tmp_path)


LINES = [*some_lines(50), "", '{"id": "bad"', *some_lines(50)]


def test_a_worker_that_is_killed_costs_no_row(batch: Batch) -> None:
    batch.write(LINES)
    here = batch.run("here.jsonl", *OPTIONS)
    process = batch.begin("out.jsonl", *OPTIONS, *ON_RAY)
    first = wait_for(lambda: batch.begun("out.jsonl", 0), process)[0]
    os.kill(first, signal.SIGKILL)
    again = wait_for(lambda: batch.begun("out.jsonl", 0)[1:], process)
    done = ended(process)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == here.stderr.replace("here.jsonl", "out.jsonl"), "one bad line, and nothing of Ray's own"
    assert again != [first]
    assert (batch.folder / "out.jsonl").read_bytes() == (batch.folder / "here.jsonl").read_bytes()
    assert {file.name for file in batch.folder.iterdir()} == {"in.jsonl", "here.jsonl", "out.jsonl"}


def test_rows_that_kill_each_worker_are_named_and_the_same_command_goes_on(batch: Batch) -> None:
    batch.write(LINES)
    batch.run("here.jsonl", *OPTIONS)
    process = batch.begin("out.jsonl", *OPTIONS, *ON_RAY)
    for number in range(3):
        os.kill(wait_for(lambda number=number: batch.begun("out.jsonl", 0)[number:], process)[0], signal.SIGKILL)
    done = ended(process)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "lines 1 and after (8 of them) have ended the process of their worker 3 times" in done.stderr
    assert batch.run("out.jsonl", *OPTIONS, *ON_RAY).returncode == 1, "the bad line"
    assert (batch.folder / "out.jsonl").read_bytes() == (batch.folder / "here.jsonl").read_bytes()


def test_a_job_that_is_killed_goes_on_with_the_parts_that_are_there(alone: Batch) -> None:
    """The command, its Ray and its workers, by SIGKILL, while a finished part waits for an earlier one."""
    import psutil

    alone.write(LINES)
    alone.run("here.jsonl", *OPTIONS)
    process = alone.begin("out.jsonl", *OPTIONS, *ON_RAY)
    stopped = wait_for(lambda: alone.begun("out.jsonl", 0), process)[0]
    os.kill(stopped, signal.SIGSTOP)  # so that the other worker's parts wait in the folder
    parts = alone.folder / "out.jsonl.parts"
    wait_for(lambda: len(list(parts.glob("*.jsonl"))) >= 3, process)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for each in family:
        each.kill()
    process.communicate()
    psutil.wait_procs(family, timeout=30)
    waiting = {file.name: file.stat().st_ino for file in parts.glob("*.jsonl")}
    made = sum(len(lines_of(parts / name)) for name in waiting)
    first = int(min(waiting).partition(".")[0])
    mark = {**json.loads(lines_of(parts / min(waiting))[0]), "text": "of the first run"}
    written = lines_of(parts / min(waiting))
    (parts / min(waiting)).write_text("".join([json.dumps(mark) + "\n", *written[1:]]))

    done = alone.run("out.jsonl", *OPTIONS, *ON_RAY)
    assert done.returncode == 1
    assert f"({made:,} by an earlier run)" in done.stderr
    expected = records(alone.folder / "here.jsonl")
    expected[first]["text"] = "of the first run"
    assert records(alone.folder / "out.jsonl") == expected
    assert not parts.exists()


def test_an_output_that_was_cut_anywhere_is_made_whole(batch: Batch) -> None:
    """A kill while a part's records are added: what is left of the part is added, by either engine."""
    batch.write(LINES)
    batch.run("here.jsonl", *OPTIONS)
    whole = (batch.folder / "here.jsonl").read_bytes()
    rows = whole.splitlines(keepends=True)
    parts = batch.folder / "out.jsonl.parts"
    parts.mkdir()
    (parts / f"{8:012}.jsonl").write_bytes(b"".join(rows[8:16]))
    (batch.folder / "out.jsonl").write_bytes(b"".join(rows[:11]) + rows[11][:20])
    done = batch.run("out.jsonl", *OPTIONS, *ON_RAY)
    assert "(16 by an earlier run)" in done.stderr
    assert (batch.folder / "out.jsonl").read_bytes() == whole
    (batch.folder / "out.jsonl").write_bytes(b"".join(rows[:30]))
    assert "(30 by an earlier run)" in batch.run("out.jsonl", *OPTIONS).stderr
    assert (batch.folder / "out.jsonl").read_bytes() == whole


def test_parts_of_other_options_are_refused_and_kept(batch: Batch) -> None:
    batch.write(some_lines(20))
    batch.run("here.jsonl", *OPTIONS)
    parts = batch.folder / "out.jsonl.parts"
    parts.mkdir()
    waiting = parts / f"{8:012}.jsonl"
    waiting.write_bytes(b"".join((batch.folder / "here.jsonl").read_bytes().splitlines(keepends=True)[8:16]))
    done = batch.run("out.jsonl", *OPTIONS, "--temperature", "0.5", *ON_RAY)
    refused(done, str(waiting), "other options", "--force")
    assert waiting.exists()


def test_an_output_of_other_options_is_refused_and_kept(alone: Batch) -> None:
    alone.write(some_lines(3))
    alone.run("out.jsonl", *OPTIONS)
    before = (alone.folder / "out.jsonl").read_bytes()
    refused(alone.run("out.jsonl", *OPTIONS, "--temperature", "0.5", *ON_RAY), "line 1 of", "other options", "--force")
    assert (alone.folder / "out.jsonl").read_bytes() == before
    assert "(3 by an earlier run)" in alone.run("out.jsonl", *OPTIONS, *ON_RAY).stderr


def test_parquet_has_the_same_records(batch: Batch) -> None:
    """A row is the line of its columns, so its record is that line's."""
    lines = some_lines(20)
    lines[3]["prompt"], lines[4]["max_new_tokens"] = None, 3
    batch.write(lines)
    batch.run("here.jsonl", *OPTIONS)
    table = pyarrow.Table.from_pylist([{"max_new_tokens": None, **line} for line in lines])
    pyarrow.parquet.write_table(table, batch.folder / "in.parquet", row_group_size=6)
    done = batch.run("out.parquet", *OPTIONS, *ON_RAY, source=batch.folder / "in.parquet")
    assert done.returncode == 1
    assert "line 4: prompt must be a string, got NoneType" in done.stderr
    found = pyarrow.parquet.read_table(batch.folder / "out.parquet").to_pylist()
    expected = records(batch.folder / "here.jsonl")
    given = [{name: value for name, value in row.items() if value is not None} for row in found]
    for row in (*given, *expected):
        row.pop("digest")  # of the line's bytes
    assert given == expected
    assert {file.name for file in batch.folder.iterdir()} == {"in.jsonl", "in.parquet", "here.jsonl", "out.parquet"}


def test_a_model_that_only_the_workers_find_bad_is_one_line(batch: Batch, tmp_path: Path) -> None:
    """The command reads the manifest; the weights are hashed where they are loaded."""
    import shutil

    copy = tmp_path / "bundle"
    shutil.copytree(batch._bundle, copy)
    weights = copy / "onnx" / "model.onnx_data"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 0xFF
    weights.write_bytes(content)
    damaged = Batch(copy, tmp_path, batch._environment["RAY_ADDRESS"])
    damaged.write(some_lines(3))
    done = damaged.run("out.jsonl", *ON_RAY)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "model.onnx_data" in done.stderr
    assert "a worker on " in done.stderr


# refusals, before Ray is begun


def refused(done: subprocess.CompletedProcess[str], *parts: str, code: int = 2) -> None:
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for part in parts:
        assert part in done.stderr


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--engine", "ray", "--device", "cuda:1"), ("--device", "cuda:1")),
        (("--engine", "ray", "--workers", "0"), ("--workers", "0")),
        (("--workers", "2"), ("--workers", "--engine ray")),
    ],
    ids=["a card", "no worker", "workers without Ray"],
)
def test_options_that_make_no_sense_are_refused(alone: Batch, options: tuple[str, ...], parts: tuple[str, ...]) -> None:
    alone.write(some_lines(1))
    refused(alone.run("out.jsonl", *options), *parts)


def test_standard_input_is_refused(alone: Batch) -> None:
    refused(alone.run("out.jsonl", *ON_RAY, source=Path("-")), "standard input", "--engine ray")


def test_without_ray_the_extra_is_named(alone: Batch, tmp_path: Path) -> None:
    alone.write(some_lines(1))
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['ray'] = None\n")
    alone._environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{alone._environment['PYTHONPATH']}"
    done = alone.run("out.jsonl", *ON_RAY)
    refused(done, "--engine ray needs the extra `cluster`: pip install 'gpt2-onnx[cluster]'", code=1)


def test_a_cluster_that_is_not_there_is_named(alone: Batch) -> None:
    alone.write(some_lines(1))
    alone._environment["RAY_ADDRESS"] = address = f"127.0.0.1:{free_port()}"
    refused(alone.run("out.jsonl", *ON_RAY), f"there is no Ray cluster at RAY_ADDRESS, {address}", code=1)


@pytest.mark.parametrize(
    ("cpus", "workers", "expected"),
    [
        ([8], None, (1, 8)),
        ([8, 8, 8], None, (3, 8)),
        ([8, 8], 4, (4, 4)),
        ([8, 8], 3, (3, 4)),
        ([2, 32], None, (2, 16)),
        ([0, 4], None, (1, 4)),
        ([2], 2, (2, 1)),
    ],
)
def test_workers_share_the_cpus(cpus: list[int], workers: int | None, expected: tuple[int, int]) -> None:
    assert room_by_cpus([{"CPU": float(count)} for count in cpus], workers) == expected


def test_more_workers_than_the_cluster_has_room_for_are_refused() -> None:
    with pytest.raises(ValueError, match="workers must be at most 3, the CPUs of the cluster, got 4"):
        room_by_cpus([{"CPU": 2.0}, {"CPU": 1.0}], 4)
    with pytest.raises(ValueError, match="workers must be at most 1, the GPUs of the cluster, got 2"):
        room_by_gpus([{"CPU": 2.0, "GPU": 1.0}], 2)
    with pytest.raises(ValueError, match="workers must be at most 0, the GPUs of the cluster, got 1"):
        room_by_gpus([{"CPU": 2.0}], None)
    assert room_by_gpus([{"CPU": 2.0, "GPU": 4.0}, {"GPU": 2.0}], None) == (6, 1)
