"""Which device it becomes, why it is not CUDA, and what ONNX Runtime is told: by made-up modules and made-up facts."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest

import runtime
from runtime.api import load
from runtime.checks import check_device
from runtime.diagnosis.choice import find_placement
from runtime.diagnosis.facts import Facts
from runtime.diagnosis.machine import Gpu, wanted_libraries
from runtime.errors import BundleError
from runtime.ort.placement import Placement
from runtime.ort.sessions import captures, make_session

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
H200 = Gpu("NVIDIA H200", 143_771, 143_000, "580.65.06", 9.0)
ON_GPU = Facts(
    python="3.12.1 (/usr/bin/python)",
    platform="Linux",
    packages={},
    wheels={"onnxruntime-gpu": "1.31.1"},
    cuda="13.0",
    libraries=dict.fromkeys(wanted_libraries(13), "/usr/lib/here"),
    gpus=(H200, H200),
)
LIMIT = f"an integer of at least {2**20} and at most {2**50:,}"
DOCTOR = "python -m runtime doctor"
has_cuda = CUDA in onnxruntime.get_available_providers()
without_cuda = pytest.mark.skipif(has_cuda, reason="of an ONNX Runtime without CUDA")


class FakeOnnxRuntime:
    """With a CUDA provider. `error(options)` is what a session with these options raises, if anything."""

    __version__ = "1.31.1"

    def __init__(self, *, error=lambda _: None, got=None, available=(CUDA, CPU)):
        self.error, self.got, self.available = error, got, list(available)
        self.sessions = []  # (model, provider, its options) of each that was asked for
        self.SessionOptions = partial(SimpleNamespace, add_session_config_entry=lambda *_: None)

    def get_available_providers(self):
        return self.available

    def InferenceSession(self, model, _options, providers):  # noqa: N802
        ((provider, options),) = providers
        self.sessions.append((model, provider, options))
        if error := self.error(options):
            raise error
        return SimpleNamespace(
            get_providers=lambda: self.got or [provider, CPU],
            get_provider_options=lambda: {provider: options},
            run=lambda *_: [SimpleNamespace(tolist=lambda: [-2.0])],
        )


@pytest.fixture
def machine(monkeypatch):
    """Put an ONNX Runtime and facts there."""

    def make(facts=ON_GPU, **behaviour):
        fake = FakeOnnxRuntime(**behaviour)
        for module in ("diagnosis.choice", "ort.sessions"):
            monkeypatch.setattr(f"runtime.{module}.load_onnxruntime", lambda: fake)
        monkeypatch.setattr("runtime.diagnosis.findings.gather", lambda **_: facts)
        return fake

    return make


@pytest.fixture
def loads(monkeypatch, bundle):
    """Load the bundle, but for the model: what it would be loaded with."""
    monkeypatch.setattr("runtime.model.parts.Loading.make", lambda _: None)
    monkeypatch.setattr("runtime.api.Model", lambda loading, _: loading)
    return lambda path=bundle, **options: load(path, verify=False, **options)


def refuses(said):
    return lambda _: RuntimeError(said)


# which device


@pytest.mark.parametrize(
    ("device", "kind", "index"), [("cuda", "cuda", 0), ("cuda:1", "cuda", 1), ("auto", "cuda", 0), ("cpu", "cpu", 0)]
)
def test_a_device_that_computes_is_taken(machine, device, kind, index):
    asked = Placement(gpu_mem_limit=2**30, arena_extend_strategy="kSameAsRequested", cuda_graph=False)
    fake = machine()
    placement, why = find_placement(device, asked)
    assert placement == replace(asked, device=kind, index=index, on_device=kind == "cuda")
    assert why == (", as CUDA works" if device == "auto" else "")
    assert len(fake.sessions) == (kind == "cuda")


def test_cuda_is_tried_with_the_settings_that_it_will_have_but_captures_nothing(machine):
    fake = machine()
    find_placement("cuda:1", Placement(gpu_mem_limit=2**30))
    ((_, provider, options),) = fake.sessions
    assert provider == CUDA
    assert (options["device_id"], options["gpu_mem_limit"], options["enable_cuda_graph"]) == ("1", "1073741824", "0")


@pytest.mark.parametrize(
    "device", ["gpu", "CUDA", "cuda:", "cuda:-1", "cuda:x", "cuda:0 ", "cuda:12345", "cpu:0", "", None, 0, b"cuda"]
)
def test_another_device_is_refused_before_anything_is_tried(machine, refusal, device):
    fake = machine()
    message = f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', N from 0 up, got {device!r}"
    assert refusal(ValueError, find_placement, device, Placement()) == message
    assert refusal(ValueError, load, "no such folder", device=device) == message
    assert fake.sessions == []


@pytest.mark.parametrize(
    ("device", "found"), [("auto", ("auto", 0)), ("cpu", ("cpu", 0)), ("cuda", ("cuda", 0)), ("cuda:12", ("cuda", 12))]
)
def test_a_device_has_a_kind_and_a_number(device, found):
    assert check_device(device) == found


# why it is not CUDA

CAUSES = {
    "no driver": (
        {"gpus": (), "no_gpu": "nvidia-smi is not installed"},
        "there is no NVIDIA driver, or no card: nvidia-smi is not installed; "
        "install NVIDIA's driver, 580 or newer; in a container: docker run --gpus all",
    ),
    "missing libraries": (
        {"libraries": {**ON_GPU.libraries, "libcublas.so.13": None, "libcudnn.so.9": None}},
        "libraries of CUDA 13 and cuDNN 9 are missing: libcublas.so.13, libcudnn.so.9; "
        'pip install "onnxruntime-gpu[cuda,cudnn]"',
    ),
    "an unsupported card": (
        {"gpus": (replace(H200, name="Tesla V100", compute_capability=7.0),)},
        "Tesla V100 has compute capability 7.0; CUDA 13 needs 7.5; use a newer card, or device='cpu'",
    ),
    "an old driver": (
        {"gpus": (replace(H200, driver="570.86.10"),)},
        "the NVIDIA driver is 570.86.10; CUDA 13, for which this wheel is built, needs 580; "
        "update the driver to 580 or newer",
    ),
    "an old driver for an older wheel": (
        {"gpus": (replace(H200, driver="510.1"),), "cuda": "12.8"},
        "the NVIDIA driver is 510.1; CUDA 12, for which this wheel is built, needs 525; update the driver to 525 or "
        "newer",
    ),
    "anything else": ({}, f"CUDA failure 999: unknown error; {DOCTOR}"),
    "a quiet nvidia-smi": ({"gpus": ()}, f"CUDA failure 999: unknown error; {DOCTOR}"),
}


@pytest.mark.parametrize(("change", "reason"), CAUSES.values(), ids=CAUSES.keys())
def test_cuda_that_does_not_compute_has_its_cause_and_what_mends_it_in_one_line(machine, refusal, change, reason):
    machine(replace(ON_GPU, **change), error=refuses("CUDA failure 999:\n unknown error"))
    asked = f"device must be one that works here, got 'cuda': {reason}"
    assert refusal(RuntimeError, find_placement, "cuda", Placement()) == asked
    assert refusal(RuntimeError, load, "no such folder", device="cuda") == asked
    assert find_placement("auto", Placement()) == (Placement(), f", as CUDA does not: {reason}")


def test_of_several_causes_the_first_is_told_and_how_many_more(machine):
    facts = replace(ON_GPU, gpus=(replace(H200, driver="470.1", compute_capability=6.1),), libraries={"libx.so": None})
    machine(facts, error=refuses("CUDA failure 35"))
    _, why = find_placement("auto", Placement())
    assert "the NVIDIA driver is 470.1" in why
    assert why.endswith(f"update the driver to 580 or newer (2 more: {DOCTOR})")


@pytest.mark.parametrize(("index", "cards", "last"), [(1, 1, 0), (7, 4, 3), (4, 4, 3)])
def test_a_card_that_is_not_there_is_told_with_those_that_are(machine, refusal, index, cards, last):
    machine(replace(ON_GPU, gpus=(H200,) * cards), error=refuses("CUDA failure 101: invalid device ordinal"))
    message = refusal(RuntimeError, find_placement, f"cuda:{index}", Placement())
    assert message.endswith(f"got 'cuda:{index}': there is no card {index}, only 0 to {last}; choose one of those")


def test_a_session_that_fell_back_is_no_cuda(machine):
    machine(got=[CPU])
    _, why = find_placement("auto", Placement())
    assert why == f", as CUDA does not: a session for it runs on {CPU} instead; {DOCTOR}"


def test_an_onnx_runtime_without_cuda_is_told_with_the_command_that_changes_it(machine, refusal):
    fake = machine(available=[CPU])
    mends = 'this ONNX Runtime is built without CUDA; pip uninstall -y onnxruntime && pip install "gpt2-onnx[gpu]"'
    assert refusal(RuntimeError, find_placement, "cuda", Placement()).endswith(f"got 'cuda': {mends}")
    assert find_placement("auto", Placement()) == (Placement(), f", as CUDA does not: {mends}")
    assert fake.sessions == []


# what a session is told

MODEL = Path("decode.onnx")
ON_CUDA = Placement("cuda", 2, on_device=True)
TOLD = {
    "device_id": "2",
    "use_tf32": "0",
    "enable_skip_layer_norm_strict_mode": "1",
    "enable_cuda_graph": "0",
}


@pytest.mark.parametrize(
    ("placement", "capture", "told"),
    [
        (ON_CUDA, False, {}),
        (ON_CUDA, True, {"enable_cuda_graph": "1"}),
        (replace(ON_CUDA, cuda_graph=False), True, {}),
        (replace(ON_CUDA, gpu_mem_limit=2**31), False, {"gpu_mem_limit": "2147483648"}),
        (
            replace(ON_CUDA, arena_extend_strategy="kSameAsRequested"),
            False,
            {"arena_extend_strategy": "kSameAsRequested"},
        ),
    ],
)
def test_cuda_is_told_to_compute_exactly_and_to_capture_only_where_asked(machine, placement, capture, told):
    fake = machine()
    session = make_session(MODEL, placement=placement, threads=1, capture=capture)
    ((model, provider, options),) = fake.sessions
    unified = options.pop("use_ep_level_unified_stream", None)  # how streams are kept apart is no matter of results
    assert unified in (None, "1")
    assert (model, provider, options) == ("decode.onnx", CUDA, TOLD | told)
    assert captures(session) == (told.get("enable_cuda_graph") == "1")


@pytest.mark.parametrize("placement", [Placement(), Placement(on_device=True, gpu_mem_limit=2**30)])
def test_the_cpu_is_told_nothing(machine, placement):
    fake = machine()
    session = make_session(MODEL, placement=placement, threads=1, capture=True)
    assert fake.sessions == [("decode.onnx", CPU, {})]
    assert not captures(session)


def test_a_graph_that_cannot_be_captured_runs_without_and_one_line_says_so(machine, caplog):
    caplog.set_level(logging.INFO, "runtime")
    fake = machine(
        error=lambda options: {"1": RuntimeError("This session cannot use CUDA Graph\nas asked")}.get(
            options["enable_cuda_graph"]
        )
    )
    session = make_session(MODEL, placement=ON_CUDA, threads=1, capture=True)
    assert [options["enable_cuda_graph"] for *_, options in fake.sessions] == ["1", "0"]
    assert not captures(session)
    assert [record.getMessage() for record in caplog.records] == [
        "without CUDA graphs: ONNX Runtime 1.31.1 cannot load decode.onnx: This session cannot use CUDA Graph"
    ]


@pytest.mark.parametrize("capture", [False, True])
def test_a_graph_that_cannot_be_loaded_at_all_is_the_bundles_fault(machine, refusal, capture):
    fake = machine(error=refuses("Type Error: no such node\nand more"))
    message = refusal(BundleError, make_session, MODEL, placement=ON_CUDA, threads=1, capture=capture)
    assert message == "ONNX Runtime 1.31.1 cannot load decode.onnx: Type Error: no such node"
    assert len(fake.sessions) == 1 + capture


@pytest.mark.parametrize("capture", [False, True])
def test_a_session_that_silently_runs_on_the_cpu_is_an_error(machine, refusal, capture):
    machine(got=[CPU])
    message = refusal(RuntimeError, make_session, MODEL, placement=ON_CUDA, threads=1, capture=capture)
    assert message == f"decode.onnx should run on cuda:2, but runs on {CPU}"


def test_a_card_without_room_for_the_weights_is_a_memory_error_and_not_tried_again(machine, refusal):
    fake = machine(error=refuses("CUDA failure 2: out of memory"))
    placement = replace(ON_CUDA, gpu_mem_limit=2**20)
    message = refusal(MemoryError, make_session, MODEL, placement=placement, threads=1, capture=True)
    assert message.startswith("cuda:2 has no memory left; gpu_mem_limit is 1,048,576 bytes; ")
    assert len(fake.sessions) == 1


# what a model is loaded with


@pytest.mark.parametrize(
    ("device", "said"), [("auto", " on cuda:0, as CUDA works"), ("cuda:1", " on cuda:1"), ("cpu", " on cpu")]
)
def test_the_log_says_in_one_line_where_a_model_runs_and_for_auto_why(machine, loads, bundle, caplog, device, said):
    caplog.set_level(logging.INFO, "runtime")
    machine()
    model = loads(device=device)
    assert [record.getMessage() for record in caplog.records] == [f"{bundle} runs in {model.precision}{said}"]
    assert said.split()[1].startswith(str(model.placement))


def test_auto_logs_why_it_is_the_cpu(machine, loads, bundle, caplog):
    caplog.set_level(logging.INFO, "runtime")
    machine(replace(ON_GPU, gpus=(), no_gpu="nvidia-smi is not installed"), error=refuses("CUDA failure 35"))
    assert loads().placement == Placement()
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(f"{bundle} runs in fp32 on cpu, as CUDA does not: there is no NVIDIA driver, or no card: ")


@pytest.mark.parametrize(
    ("device", "halves", "precision"), [("cuda", 1, "fp16"), ("cuda", 0, "fp32"), ("cpu", 1, "fp32")]
)
def test_the_default_precision_on_cuda_is_float16_where_the_bundle_has_it(
    machine, loads, bundle_copy, device, halves, precision
):
    machine()
    with bundle_copy.changed_manifest() as manifest:
        half = {"path": "onnx/decode.onnx", "kind": "decode", "precision": "fp16"}
        others = [graph for graph in manifest["graphs"] if graph["precision"] != "fp16"]
        manifest["graphs"] = others + [half] * halves
    assert loads(bundle_copy.folder, device=device).precision == precision
    assert loads(bundle_copy.folder, device=device, precision="fp32").precision == "fp32"


def test_settings_of_a_card_reach_its_placement(machine, loads):
    machine()
    options = {"gpu_mem_limit": 2**20, "arena_extend_strategy": "kNextPowerOfTwo", "cuda_graph": False}
    assert loads(device="cuda:1", **options).placement == Placement("cuda", 1, on_device=True, **options)
    assert loads(device="cuda").placement == Placement("cuda", on_device=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "precision must be 'fp16' or 'fp32' on CUDA, got 'int8'"),
        ({"precision": "int4"}, "precision must be 'fp16' or 'fp32' on CUDA, got 'int4'"),
        ({"draft": "int4"}, "draft must be None on CUDA, got 'int4'"),
        ({"draft": "int8", "precision": "fp16"}, "draft must be None on CUDA, got 'int8'"),
    ],
    ids=str,
)
def test_what_cuda_has_no_graphs_for_is_refused(machine, refusal, options, message):
    machine()
    assert refusal(ValueError, load, "no such folder", device="cuda", **options) == message


@pytest.mark.parametrize(
    ("kind", "name", "values", "allowed"),
    [
        (ValueError, "gpu_mem_limit", (0, -1, 2**20 - 1, 2**50 + 1, 2**70), LIMIT),
        (TypeError, "gpu_mem_limit", (1.5, True, "1", 2e9), LIMIT),
        (
            ValueError,
            "arena_extend_strategy",
            ("", "kSame", 1, ["kSameAsRequested"]),
            "None or 'kNextPowerOfTwo' or 'kSameAsRequested'",
        ),
        (TypeError, "cuda_graph", (1, 0, None, "yes"), "True or False"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "cuda", "auto"])
def test_a_setting_out_of_its_range_is_refused_on_any_device(refusal, kind, name, values, allowed, device):
    for value in values:
        message = refusal(kind, load, "no such folder", device=device, **{name: value})
        assert message == f"{name} must be {allowed}, got {value!r}"


# the command line, here

COMMANDS = (["complete", "It was"], ["score", "FILE"], ["batch", "FILE", "--output", "OUT"], ["verify"])


def arguments(command, folder, *more):
    file, output = folder / "file", folder / "out"
    file.write_text('{"prompt": "It was"}\n')
    return [*(str({"FILE": file, "OUT": output}.get(part, part)) for part in command), *map(str, more)]


@without_cuda
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_command_that_is_to_run_on_cuda_says_why_it_does_not_and_what_mends_it(cli_here, bundle, tmp_path, command):
    done = cli_here(*arguments(command, tmp_path, "--model", bundle, "--device", "cuda"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "gpt2-onnx: device must be one that works here, got 'cuda': this ONNX Runtime is built without CUDA; "
        'pip uninstall -y onnxruntime && pip install "gpt2-onnx[gpu]"\n'
    )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_command_refuses_another_device(cli_here, bundle, tmp_path, command):
    done = cli_here(*arguments(command, tmp_path, "--model", bundle, "--device", "gpu"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "gpt2-onnx: device must be 'auto', 'cpu', 'cuda' or 'cuda:N', N from 0 up, got 'gpu'\n"


@pytest.mark.parametrize("command", COMMANDS[:3], ids=lambda command: command[0])
def test_a_command_refuses_a_limit_out_of_range(cli_here, bundle, tmp_path, command):
    done = cli_here(*arguments(command, tmp_path, "--model", bundle, "--device", "cpu", "--gpu-mem-limit", 5))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"gpt2-onnx: gpu_mem_limit must be {LIMIT}, got 5\n"


@pytest.mark.parametrize(
    ("options", "what"),
    [({"precision": "int8"}, "int8"), ({"precision": "int4"}, "int4"), ({"draft": "int8"}, "drafts")],
    ids=str,
)
def test_auto_is_the_cpu_for_what_only_the_cpu_has(machine, loads, caplog, options, what):
    fake = machine()
    caplog.set_level(logging.INFO, "runtime")
    made = loads(device="auto", **options)
    assert (str(made.placement), made.placement.on_device, fake.sessions) == ("cpu", False, [])
    (record,) = caplog.records
    assert record.getMessage().endswith(f"on cpu, the only device with {what}")


@pytest.mark.parametrize(
    ("shown", "card", "message"),
    [
        ("1", "cuda:1", "there is no card 1, only 0 to 0; choose one of those"),
        ("1,0", "cuda:2", "there is no card 2, only 0 to 1; choose one of those"),
        ("GPU-8932f937", "cuda:1", "invalid device ordinal; python -m runtime doctor"),
    ],
)
def test_cards_are_counted_as_cuda_is_shown_them(machine, refusal, monkeypatch, shown, card, message):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    machine(error=refuses("invalid device ordinal"))
    assert refusal(RuntimeError, find_placement, card, Placement()).endswith(message)


@without_cuda
def test_auto_is_the_cpu_here(bundle, probe):
    model = runtime.load(bundle, verify=False)
    assert (model.device, model.precision) == ("cpu", "fp32")
    assert model.complete(probe.prompt, max_new_tokens=4).token_ids == probe.token_ids[:4]
