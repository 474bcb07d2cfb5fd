"""The diagnosis, each branch of it by made-up facts; and the facts, by made-up machines and by this one."""

import json
import os
import re
import stat
import sys
import tomllib
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

import runtime
from runtime.diagnosis import facts as gathering
from runtime.diagnosis.facts import Facts
from runtime.diagnosis.findings import find
from runtime.diagnosis.machine import Gpu, find_gpus, find_libraries, wanted_libraries
from runtime.diagnosis.probe import probe_providers
from runtime.diagnosis.processor import find_processor
from runtime.diagnosis.report import Diagnosis
from runtime.diagnosis.serving import NEEDED, ServerPackages, find_server_packages
from runtime.ort.one_node import one_node_model

H200 = Gpu("NVIDIA H200", 143_771, 143_000, "580.65.06", 9.0)
HERE = "/usr/lib/here"
ON_CPU = Facts(
    python="3.12.1 (/usr/bin/python)",
    platform="Linux",
    packages={"gpt2-onnx": "0.1.0", "numpy": "2.4.6", "tokenizers": "0.22.2"},
    wheels={"onnxruntime": "1.31.1"},
    providers={"CPUExecutionProvider": None},
    no_gpu="nvidia-smi is not installed",
    cpus=8,
    threads=8,
)
ON_GPU = replace(
    ON_CPU,
    wheels={"onnxruntime-gpu": "1.31.1"},
    cuda="13.0",
    providers={"CUDAExecutionProvider": None, "CPUExecutionProvider": None},
    libraries=dict.fromkeys(wanted_libraries(13), HERE),
    gpus=(H200,),
    no_gpu=None,
)
NO_CUDA = {"CUDAExecutionProvider": "it fell back", "CPUExecutionProvider": None}
LATEST = {  # of the extra serve's packages, when it was made
    "httptools": "0.9.0",
    "llguidance": "1.9.1",
    "msgspec": "0.22.0",
    "prometheus-client": "0.26.0",
    "starlette": "1.10.0",
    "uvicorn": "0.54.0",
    "uvloop": "0.23.0",
}
SERVER = ServerPackages(LATEST, missing=())
PROBLEMS = {
    "no wheel": (
        replace(ON_CPU, wheels={}, providers={}, import_error="No module named 'onnxruntime'"),
        "no ONNX Runtime is installed",
        'pip install "gpt2-onnx[cpu]"',
    ),
    "both wheels": (
        replace(ON_CPU, wheels={"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}),
        "onnxruntime and onnxruntime-gpu are installed over one another",
        'pip uninstall -y onnxruntime onnxruntime-gpu && pip install "gpt2-onnx[cpu]"',
    ),
    "a broken wheel": (
        replace(ON_CPU, providers={}, import_error="libstdc++.so.6: version not found"),
        "onnxruntime cannot be imported: libstdc++.so.6: version not found",
        "pip install --force-reinstall --no-deps onnxruntime==1.31.1",
    ),
    "an old wheel": (
        replace(ON_CPU, wheels={"onnxruntime": "1.26.3"}),
        "onnxruntime 1.26.3 is older than 1.27",
        'pip install --upgrade "onnxruntime>=1.27"',
    ),
    "a CPU provider that fails": (
        replace(ON_CPU, providers={"CPUExecutionProvider": "illegal instruction"}),
        "the CPU provider does not work: illegal instruction",
        "reinstall",
    ),
    "no CPU provider": (
        replace(ON_CPU, providers={}),
        "the CPU provider does not work: it is not in this build",
        "reinstall",
    ),
    "products that are wrong": (
        replace(ON_CPU, wrong_products=("MatMulNBits of 4 bits: 4 instead of 8",)),
        "int8 and int4 are computed wrongly on this processor: MatMulNBits of 4 bits: 4 instead of 8",
        "precision='fp32'",
    ),
    "no driver": (
        replace(ON_GPU, providers=NO_CUDA, gpus=(), no_gpu="nvidia-smi is not installed"),
        "there is no NVIDIA driver, or no card: nvidia-smi is not installed",
        "580 or newer; in a container: docker run --gpus all",
    ),
    "an old driver": (
        replace(ON_GPU, providers=NO_CUDA, gpus=(replace(H200, driver="535.183.01"),)),
        "the NVIDIA driver is 535.183.01; CUDA 13, for which this wheel is built, needs 580",
        "update the driver to 580",
    ),
    "an old card": (
        replace(ON_GPU, providers=NO_CUDA, gpus=(replace(H200, name="Tesla V100", compute_capability=7.0),)),
        "Tesla V100 has compute capability 7.0; CUDA 13 needs 7.5",
        "device='cpu'",
    ),
    "no cuDNN": (
        replace(ON_GPU, providers=NO_CUDA, libraries={**ON_GPU.libraries, "libcudnn.so.9": None}),
        "libraries of CUDA 13 and cuDNN 9 are missing: libcudnn.so.9",
        'pip install "onnxruntime-gpu[cuda,cudnn]"',
    ),
    "no CUDA libraries": (
        replace(ON_GPU, providers=NO_CUDA, libraries=dict.fromkeys(ON_GPU.libraries)),
        "libcublasLt.so.13, libcublas.so.13, libcudart.so.13, libcurand.so.10, libcufft.so.12, libcudnn.so.9",
        'pip install "onnxruntime-gpu[cuda,cudnn]"',
    ),
    "something else": (
        replace(ON_GPU, providers=NO_CUDA),
        "CUDA does not run: it fell back",
        'pip install --force-reinstall "gpt2-onnx[gpu]"',
    ),
    "an old package of the server's": (
        replace(ON_CPU, server=replace(SERVER, versions=LATEST | {"starlette": "0.49.3"})),
        "starlette 0.49.3 is older than 0.50, which the server needs",
        'pip install --upgrade "starlette>=0.50"',
    ),
    "a package of the server's that is broken": (
        replace(ON_CPU, server=replace(SERVER, import_errors={"uvloop": "undefined symbol: uv_loop_init"})),
        "uvloop cannot be imported: undefined symbol: uv_loop_init",
        "pip install --force-reinstall --no-deps uvloop==0.23.0",
    ),
    "a build without the provider": (
        replace(ON_GPU, providers={"CPUExecutionProvider": None}),
        "CUDA does not run: the provider is not in this build",
        'pip install --force-reinstall "gpt2-onnx[gpu]"',
    ),
}
WARNINGS = {
    "a card and a CPU-only wheel": (
        replace(ON_CPU, gpus=(H200,), no_gpu=None),
        "NVIDIA H200 is not used: onnxruntime is built without CUDA",
        'pip uninstall -y onnxruntime && pip install "gpt2-onnx[gpu]"',
    ),
    "half a server": (
        replace(ON_CPU, server=ServerPackages({"starlette": "1.10.0"}, ("msgspec", "uvicorn"))),
        "the extra serve is incomplete, without msgspec and uvicorn",
        'pip install "gpt2-onnx[serve]"',
    ),
    "a server without grammars": (
        replace(ON_CPU, server=replace(SERVER, missing=("llguidance",))),
        "the extra serve is incomplete, without llguidance",
        'pip install "gpt2-onnx[serve]"',
    ),
    "telemetry": (replace(ON_CPU, telemetry=True), "may send telemetry", "export ORT_DISABLE_TELEMETRY=1"),
    "a quota": (replace(ON_CPU, threads=2), "a quota leaves 2 of 8 CPUs", "raise the container's CPU limit"),
}


@pytest.mark.parametrize("facts", [ON_CPU, ON_GPU], ids=["CPU", "CUDA"])
def test_nothing_is_found_where_all_is_well(facts):
    assert find(facts) == ()
    assert Diagnosis(facts, ()).healthy
    assert str(Diagnosis(facts, ())).endswith("all is well")


@pytest.mark.parametrize(
    ("level", "facts", "what", "fix"),
    [
        pytest.param(level, *case, id=name)
        for level, cases in (("problem", PROBLEMS), ("warning", WARNINGS))
        for name, case in cases.items()
    ],
)
def test_each_thing_is_found_alone_with_what_mends_it(level, facts, what, fix):
    (found,) = find(facts)
    assert found.level == level
    assert what in found.what
    assert fix in found.fix
    diagnosis = Diagnosis(facts, (found,))
    assert diagnosis.healthy is (level == "warning")
    assert found.what in str(diagnosis)
    assert found.fix in str(diagnosis)
    assert json.loads(json.dumps(diagnosis.as_dict()))["findings"] == [
        {"level": level, "what": found.what, "fix": found.fix}
    ]


def test_everything_that_is_wrong_is_found_at_once():
    facts = replace(
        ON_GPU,
        providers=NO_CUDA,
        gpus=(replace(H200, driver="470.1", compute_capability=6.1),),
        libraries=dict.fromkeys(ON_GPU.libraries),
        telemetry=True,
    )
    assert [found.level for found in find(facts)] == ["problem", "problem", "problem", "warning"]


def test_an_older_wheels_cuda_has_limits_of_its_own():
    older = replace(ON_GPU, cuda="12.8", providers=NO_CUDA)
    assert "525" in find(replace(older, gpus=(replace(H200, driver="470.1"),)))[0].what
    old_card = replace(H200, name="GTX 1080", driver="550.1", compute_capability=6.1)
    assert [found.what for found in find(replace(older, gpus=(old_card,)))] == ["CUDA does not run: it fell back"]
    assert "libcufft.so.11" in wanted_libraries(12)


# the server


@pytest.mark.parametrize("server", [SERVER, ServerPackages(), ServerPackages({"llguidance": "1.9.1"})])
def test_a_server_that_works_or_that_nobody_wants_is_no_finding(server):
    """llguidance comes with the extra guide, too."""
    facts = replace(ON_CPU, server=server)
    assert find(facts) == ()
    said = "works: httptools 0.9.0, " if server is SERVER else "not installed (extra serve)"
    assert f"\nserver                    {said}" in str(Diagnosis(facts, ()))
    assert Diagnosis(facts, ()).as_dict()["server"]["versions"] == server.versions


def test_the_server_needs_what_pyproject_says():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert "gpt2-onnx[guide]" in extras["serve"]
    wanted = [re.match(r"([\w-]+)>=(\d+)\.(\d+)", each) for each in (*extras["serve"][1:], *extras["guide"])]
    assert {found[1]: (int(found[2]), int(found[3])) for found in wanted} == NEEDED


def test_the_servers_packages_are_those_that_are_installed():
    found = find_server_packages()
    assert set(found.versions) | set(found.missing) == set(NEEDED)
    assert all(version(name) == told for name, told in found.versions.items())
    assert found.import_errors == {}


@pytest.mark.parametrize("content", ["raise OSError('a broken\\n binary')", "import nothing_of_that_name"])
def test_a_package_of_the_servers_that_cannot_be_imported_is_told(run_python, tmp_path, content):
    pytest.importorskip("msgspec", reason="the server needs the extra serve")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "msgspec.py").write_text(content)
    done = run_python("-m", "runtime", "doctor", path=(tmp_path / "broken",))
    assert done.returncode == 1
    assert "\nserver                    does not work: " in done.stdout
    reason = "a broken binary" if "OSError" in content else "No module named 'nothing_of_that_name'"
    assert f"problem: msgspec cannot be imported: {reason}" in done.stdout
    assert f"--no-deps msgspec=={version('msgspec')}" in done.stdout


# the machine


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A PATH of its own, to put commands there."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def command(name, script):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return command


@pytest.mark.skipif(os.name == "nt", reason="made of shell scripts")
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo NVIDIA-SMI has failed because it could not talk to the driver; exit 9", "could not talk to the driver"),
        ("exit 3", "exit code 3"),
        ("echo some, other, thing", "gave unexpected output: 'some, other, thing'"),
        ("true", "lists no card"),
        (None, "nvidia-smi is not installed"),
    ],
)
def test_why_there_is_no_gpu(machine, script, reason):
    if script:
        machine("nvidia-smi", script)
    cards, no_gpu = find_gpus()
    assert cards == ()
    assert reason in no_gpu


@pytest.mark.skipif(os.name == "nt", reason="made of shell scripts")
def test_cards_are_what_nvidia_smi_says(machine):
    rows = ("NVIDIA H200, 143771, 143000, 580.65.06, 9.0", "Tesla T4, 15360, 15101, 580.65.06, 7.5")
    machine("nvidia-smi", f"printf '%s\\n' {' '.join(map(repr, rows))}")
    assert find_gpus() == ((H200, Gpu("Tesla T4", 15_360, 15_101, "580.65.06", 7.5)), None)


@pytest.mark.skipif(sys.platform != "linux", reason="the loader's cache is Linux's")
def test_libraries_are_found_in_wheels_on_the_path_and_in_the_loaders_cache(machine, tmp_path, monkeypatch):
    wheel, path = tmp_path / "site" / "nvidia" / "cu13" / "lib", tmp_path / "path"
    for folder, name in ((wheel, "libcublas.so.13"), (path, "libcudart.so.13"), (path, "libcublas.so.13")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    machine("ldconfig", "printf '2 libs found\\n\\tlibcufft.so.12 (libc6,x86-64) => /lib/libcufft.so.12\\n'")
    monkeypatch.setattr(sys, "path", ["", str(tmp_path / "site")])
    monkeypatch.setenv("LD_LIBRARY_PATH", str(path))
    assert find_libraries(["libcublas.so.13", "libcudart.so.13", "libcufft.so.12", "libcudnn.so.9"]) == {
        "libcublas.so.13": str(wheel / "libcublas.so.13"),
        "libcudart.so.13": str(path / "libcudart.so.13"),
        "libcufft.so.12": "/lib/libcufft.so.12",
        "libcudnn.so.9": None,
    }


def test_the_libraries_of_a_cuda_wheel_are_looked_for_and_those_of_another_wheel_are_not(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    assert list(gathering.with_libraries(replace(ON_CPU, cuda="13.0")).libraries) == list(wanted_libraries(13))
    assert gathering.with_libraries(ON_CPU).libraries == {}
    monkeypatch.setattr(sys, "platform", "win32")
    assert gathering.with_libraries(replace(ON_CPU, cuda="13.0")).libraries == {}


def test_the_probe_is_a_model_that_negates():
    session = onnxruntime.InferenceSession(one_node_model("Neg"), providers=["CPUExecutionProvider"])
    for value in (3.0, -0.5):
        (output,) = session.run(None, {"x": np.array([value], np.float32)})
        assert output.tolist() == [-value]


def fake_onnxruntime(*, got=None, output=-2.0, error=None):
    """With a CUDA provider whose sessions are as told."""

    def session(_model, _options, providers):
        if error:
            raise RuntimeError(error)
        return SimpleNamespace(
            get_providers=lambda: got or [*(name for name, _ in providers), "CPUExecutionProvider"],
            run=lambda *_: [np.array([output])],
        )

    return SimpleNamespace(
        get_available_providers=lambda: ["CUDAExecutionProvider", "AzureExecutionProvider"],
        preload_dlls=lambda **_: print("Failed to load libcudnn.so.9"),
        SessionOptions=SimpleNamespace,
        InferenceSession=session,
    )


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ({}, None),
        ({"got": ["CPUExecutionProvider"]}, "a session for it runs on CPUExecutionProvider instead"),
        ({"output": 2.0}, "-(2) is [2.0] there"),
        ({"error": "CUDA failure 100:\n no device"}, "CUDA failure 100: no device"),
    ],
)
def test_a_provider_works_if_a_session_that_has_it_computes(behaviour, reason, capsys):
    assert probe_providers(fake_onnxruntime(**behaviour)) == {"CUDAExecutionProvider": reason}
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("content", ["raise OSError('a broken\\n binary')", ""])
def test_an_onnxruntime_that_cannot_be_imported_is_a_fact(run_python, tmp_path, content):
    """The second is the folder that an uninstalled wheel leaves behind."""
    (tmp_path / "broken" / "onnxruntime").mkdir(parents=True)
    (tmp_path / "broken" / "onnxruntime" / "__init__.py").write_text(content)
    done = run_python("-m", "runtime", "doctor", "--json", path=(tmp_path / "broken",))
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert found["import_error"] == "a broken binary" if content else "get_available_providers" in found["import_error"]
    assert found["findings"][0]["what"].startswith("onnxruntime cannot be imported: ")
    assert found["providers"] == {}


def test_wheels_over_one_another_are_told_where_nothing_else_runs(run_python, tmp_path):
    record = tmp_path / "other" / "onnxruntime_gpu-1.31.1.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.31.1\n")
    done = run_python("-m", "runtime", "doctor", path=(record.parent,))
    assert done.returncode == 1
    assert "problem: onnxruntime and onnxruntime-gpu are installed over one another" in done.stdout
    assert "Traceback" not in done.stderr


# the processor

HASWELL = """processor : 0
vendor_id : GenuineIntel
model name\t: Intel(R) Core(TM) i7-4770 CPU @ 3.40GHz
flags\t\t: fpu sse4_2 avx fma avx2 bmi2

processor : 1
model name\t: another
flags\t\t: avx512f avx512_vnni
"""
NEOVERSE = """processor : 0
BogoMIPS : 2100.00
Features : fp asimd aes asimddp sve asimdfhm i8mm bf16
CPU part : 0xd40
"""


def cpuinfo(flags):
    return f"model name : A\nflags : fpu {flags}\n"


@pytest.mark.parametrize(
    ("text", "said", "meaning"),
    [
        (HASWELL, "Intel(R) Core(TM) i7-4770 CPU @ 3.40GHz: AVX2", "exact, but slower than with VNNI"),
        (cpuinfo("avx2 avx512f avx512bw"), "A: AVX2, AVX-512", "exact, but slower than with VNNI"),
        (cpuinfo("avx2 avx512f avx512_vnni"), "A: AVX2, AVX-512, VNNI", "exact in one instruction, by VNNI"),
        (cpuinfo("avx2 avx_vnni"), "A: AVX2, VNNI", "exact in one instruction, by VNNI"),
        (
            cpuinfo("avx2 avx512f avx512_vnni amx_int8 amx_tile"),
            "A: AVX2, AVX-512, VNNI, AMX",
            "exact in one instruction, by AMX",
        ),
        (cpuinfo("avx sse4_2"), "A: none of AVX2, AVX-512, VNNI, AMX, dot products, i8mm", "exact, but slow:"),
        (NEOVERSE, ": dot products, i8mm", "exact in one instruction, by i8mm"),
        (NEOVERSE.replace(" i8mm", ""), ": dot products", "exact in one instruction, by dot products"),
        ("nothing of the kind\n", ", instruction sets unknown", "unknown"),
        (None, ", instruction sets unknown", "unknown"),
    ],
)
def test_the_instruction_sets_that_matter_and_what_they_mean(tmp_path, text, said, meaning):
    """Flags as Linux has them in arch/x86/include/asm/cpufeatures.h and arch/arm64/kernel/cpuinfo.c."""
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    found = find_processor(tmp_path / "cpuinfo")
    assert str(found).endswith(said)
    assert str(found).startswith(":") is False
    assert found.meaning.startswith(meaning)
    report = str(Diagnosis(replace(ON_CPU, processor=found), ()))
    assert f"\nprocessor                 {found}\n" in report
    assert f"\nint8 and int4 products    {found.meaning}\n" in report


def test_products_that_are_wrong_are_not_called_exact():
    report = str(Diagnosis(replace(ON_CPU, processor=find_processor(), wrong_products=("4 instead of 8",)), ()))
    assert "\nint8 and int4 products    WRONG\n" in report


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux tells so")
def test_the_processor_here_is_named():
    name = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    facts = runtime.doctor().facts
    assert name is None or facts.processor.name == name[1].strip()
    assert facts.wrong_products == ()


# here


def test_this_installation_is_healthy():
    diagnosis = runtime.doctor()
    assert diagnosis.healthy
    facts = diagnosis.facts
    assert facts.providers["CPUExecutionProvider"] is None
    assert facts.packages["numpy"] == version("numpy")
    assert list(facts.wheels.values()) == [onnxruntime.__version__]
    assert facts.telemetry is False
    assert facts.threads <= facts.cpus


def test_the_command_says_it_as_text_and_as_json(cli):
    text, as_json = cli("doctor"), cli("doctor", "--json")
    assert (text.returncode, as_json.returncode, text.stderr, as_json.stderr) == (0, 0, "", "")
    assert text.stdout.splitlines()[-1] == "all is well"
    assert "\nCPUExecutionProvider      works\n" in text.stdout
    assert json.loads(as_json.stdout)["healthy"] is True


def test_telemetry_that_a_user_has_turned_on_is_told(cli):
    done = cli("doctor", env={"ORT_DISABLE_TELEMETRY": "0"})
    assert "warning: ONNX Runtime may send telemetry" in done.stdout
    assert done.returncode == 0
