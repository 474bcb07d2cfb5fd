"""Whether a graph says here what PyTorch said where the bundle was made, and the note of it in the manifest."""

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import onnxruntime
import pytest

import runtime
import runtime.cli.verify
import runtime.proof.graphs
from runtime.bundle.bundle import open_bundle
from runtime.diagnosis.machine import Gpu
from runtime.errors import BundleError
from runtime.ort.placement import Placement
from runtime.proof.graphs import Proof, agreement, note_proof, prove, prove_lens, prove_reference

CPU, REHEARSED, CARD = Placement(), Placement(on_device=True), Placement("cuda", 1, on_device=True)
GPUS = tuple(Gpu(name, 143_771, 143_000, "580.65.06", 9.0) for name in ("NVIDIA A100", "NVIDIA H200"))
PLACES = [("fp32", CPU), ("fp32", REHEARSED), ("fp16", CPU)]
UNNEAR = {"fp32": 1e-4, "fp16": 1e-2}  # how far a log-probability may be from float64's, generously


@pytest.fixture
def likelihoods(manifest):
    return manifest["parity"]["likelihoods"]


@pytest.fixture
def changed(bundle_copy):
    """A copy of the bundle with other likelihoods."""

    def change(do):
        with bundle_copy.changed_manifest() as manifest:
            do(manifest["parity"])
        return open_bundle(bundle_copy.folder, verify=False)

    return change


def content(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


# the verdict


@pytest.mark.parametrize(
    ("precision", "tokens", "replayed", "error", "allowed", "passed"),
    [
        ("fp32", 9, 9, None, None, True),
        ("fp32", 9, 9, 1e-5, 2e-5, True),
        ("fp32", 9, 9, 2e-5, 2e-5, True),
        ("fp32", 9, 9, 3e-5, 2e-5, False),
        ("fp32", 9, 8, 1e-5, 2e-5, False),
        ("fp32", 9, 8, None, None, False),
        ("fp32", 0, 0, None, None, False),
        ("fp16", 9, 9, 1e-3, 1e-2, True),
        ("fp16", 9, 7, 1e-3, 1e-2, True),
        ("fp16", 9, 9, 2e-2, 1e-2, False),
        ("fp16", 9, 9, float("nan"), 1e-2, False),
        ("fp32", 9, 9, float("inf"), 2e-5, False),
        ("fp16", 0, 0, 1e-3, 1e-2, False),
    ],
)
def test_what_passes(precision, tokens, replayed, error, allowed, passed):
    assert Proof(precision, tokens, replayed, error, allowed).passed is passed


@pytest.mark.parametrize(
    ("proof", "words"),
    [
        (Proof("fp32", 9, 8, None, None), "decode fp32: 8 of 9 greedy tokens as PyTorch's"),
        (
            Proof("fp16", 9, 9, 0.00123, 0.01),
            "decode fp16: 9 of 9 greedy tokens as PyTorch's, "
            "log-probabilities within 1.2e-03 of float64's (at most 1.0e-02)",
        ),
    ],
)
def test_what_it_says(proof, words):
    assert str(proof) == words


@pytest.mark.parametrize(
    ("tokens", "expected", "count"), [([1, 2, 3], [1, 2, 3], 3), ([1, 9, 3], [1, 2, 3], 1), ([9, 2], [1, 2], 0)]
)
def test_a_text_agrees_up_to_its_first_difference(tokens, expected, count):
    assert agreement(tokens, expected) == count


# here


@pytest.mark.parametrize(("precision", "placement"), PLACES)
def test_every_graph_of_the_bundle_passes_here(bundle, manifest, likelihoods, precision, placement):
    proof = prove(open_bundle(bundle, verify=False), precision, placement)
    tokens = sum(len(probe["token_ids"]) for probe in manifest["parity"]["greedy"]["probes"])
    assert proof.passed
    assert (proof.precision, proof.tokens) == (precision, tokens)
    assert proof.allowed == max(2 * likelihoods["pytorch_errors"][precision], 2e-5)
    assert 0 < proof.error <= proof.allowed
    assert proof.replayed == tokens or precision == "fp16"


@pytest.mark.parametrize(("precision", "placement"), PLACES)
@pytest.mark.parametrize(("text", "place"), [(0, 0), (0, -1), (1, 3), (-1, 0), (-1, -1)])
def test_a_log_probability_that_is_wrong_anywhere_is_found(changed, precision, placement, text, place):
    def worsen(parity):
        parity["greedy"]["probes"] = parity["greedy"]["probes"][:2]
        del parity["likelihoods"]["logprobs"][2:]
        parity["likelihoods"]["logprobs"][text][place] += 0.25

    proof = prove(changed(worsen), precision, placement)
    assert proof.error == pytest.approx(0.25, abs=UNNEAR[precision])
    assert not proof.passed
    assert proof.replayed == proof.tokens or precision == "fp16"


def test_verify_fails_on_log_probabilities_that_are_not_pytorchs(cli_here, changed):
    def worsen(parity):
        del parity["greedy"]["probes"][1:]
        parity["likelihoods"]["logprobs"][0][5] -= 0.001

    bundle = changed(worsen)
    done = cli_here("verify", "--model", str(bundle.folder), "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["passed"]) == (1, False)
    half = [graph for graph in found["graphs"] if graph["precision"] == "fp32"]
    assert half[0]["error"] == pytest.approx(0.001, abs=UNNEAR["fp32"])
    assert half[0]["tokens"] == half[0]["replayed"]
    assert "is NOT verified on cpu" in cli_here("verify", "--model", str(bundle.folder)).stdout


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_bundle_made_before_likelihoods_were_noted_is_held_to_its_tokens(changed, precision):
    proof = prove(changed(lambda parity: parity.pop("likelihoods")), precision, CPU)
    assert (proof.error, proof.allowed) == (None, None)
    assert proof.passed
    assert proof.replayed >= 0.9 * proof.tokens


def test_verify_passes_a_bundle_made_before_likelihoods_were_noted(cli_here, changed):
    def before(parity):
        del parity["greedy"]["probes"][1:], parity["likelihoods"], parity["lens"]

    done = cli_here("verify", "--model", str(changed(before).folder))
    assert done.returncode == 0
    assert "log-probabilities" not in done.stdout


def test_a_precision_that_pytorch_was_not_measured_in_is_held_to_its_tokens(changed):
    bundle = changed(lambda parity: parity["likelihoods"]["pytorch_errors"].pop("fp16"))
    assert prove(bundle, "fp16", CPU).error is None
    assert prove(bundle, "fp32", CPU).error is not None


DAMAGED = [
    3,
    [],
    {},
    None,
    {"logprobs": [[-1.0]]},
    {"logprobs": None, "pytorch_errors": {"fp32": 1e-6}},
    {"logprobs": {"0": [-1.0]}, "pytorch_errors": {"fp32": 1e-6}},
    {"logprobs": [[-1.0]], "pytorch_errors": [1e-6]},
    {"logprobs": [], "pytorch_errors": {"fp32": 1e-6}},
    {"logprobs": [[]], "pytorch_errors": {"fp32": 1e-6}},
    {"logprobs": [3], "pytorch_errors": {"fp32": 1e-6}},
    {"logprobs": ["text"], "pytorch_errors": {"fp32": 1e-6}},
    {"logprobs": [["-1"]], "pytorch_errors": {"fp32": 1e-6}},
    {"logprobs": [[-1.0, None]], "pytorch_errors": {"fp32": 1e-6}},
    {"logprobs": [[-1.0]], "pytorch_errors": {"fp32": "1e-6"}},
    {"logprobs": [[-1.0]], "pytorch_errors": {"fp32": None}},
]


@pytest.mark.parametrize("value", DAMAGED, ids=str)
def test_damaged_likelihoods_are_the_bundles_fault(changed, refusal, value):
    def damage(parity):
        del parity["greedy"]["probes"][1:]
        parity["likelihoods"] = value

    message = refusal(BundleError, prove, changed(damage), "fp32", CPU)
    assert message.startswith("parity.likelihoods of manifest.json is damaged (")
    assert message.endswith("); export the bundle again")


@pytest.mark.parametrize("text", [0, 1])
@pytest.mark.parametrize("place", [0, 7])
def test_a_graph_whose_log_probabilities_are_no_numbers_does_not_pass(changed, monkeypatch, text, place):
    """As where float16 overflows: in one text, and from one token on."""
    judge, texts = runtime.proof.graphs.target_logprobs, []

    def overflowing(*given):
        texts.append(judge(*given))
        return [nan if len(texts) == text + 1 and n >= place else one for n, one in enumerate(texts[-1])]

    nan, bundle = float("nan"), changed(lambda parity: parity["greedy"]["probes"].pop())
    monkeypatch.setattr("runtime.proof.graphs.target_logprobs", overflowing)
    assert not prove(bundle, "fp16", CPU).passed


@pytest.mark.parametrize("text", [0, 1])
def test_a_noted_log_probability_that_is_no_number_does_not_pass(changed, text):
    """JSON as Python reads it knows NaN."""

    def spoil(parity):
        del parity["greedy"]["probes"][2:], parity["likelihoods"]["logprobs"][2:]
        parity["likelihoods"]["logprobs"][text][7] = float("nan")

    with suppress(BundleError):  # as good
        assert not prove(changed(spoil), "fp16", CPU).passed


# the note beside the manifest


PROOF = {"card": "NVIDIA H200", "provider": "CUDAExecutionProvider", "made_with": {"gpt2-onnx": "1"}, "graphs": []}


def noted(folder):
    path = folder / "proofs.json"
    return json.loads(path.read_text(encoding="utf-8"))["proofs"] if path.exists() else []


def test_a_note_is_added_and_everything_else_stays(bundle_copy):
    def files():
        found = [path for path in bundle_copy.folder.rglob("*") if path.is_file() and path.name != "proofs.json"]
        return {path: path.read_bytes() for path in found}

    before, opened = files(), open_bundle(bundle_copy.folder, verify=False)
    for count in (1, 2):
        note_proof(opened, {**PROOF, "number": count})
        assert noted(bundle_copy.folder) == [{**PROOF, "number": n + 1} for n in range(count)]
    assert files() == before
    open_bundle(bundle_copy.folder)


def test_the_reference_graph_is_proved_by_what_it_says_behind_each_token(bundle_copy, manifest):
    probes, noted = manifest["parity"]["greedy"]["probes"], manifest["parity"]["likelihoods"]["logprobs"]
    proof = prove_reference(open_bundle(bundle_copy.folder, verify=False), Placement())
    assert (proof.graph, proof.tokens, proof.passed) == ("reference", sum(map(len, noted)), True)
    with bundle_copy.changed_manifest() as changed:
        changed["parity"]["greedy"]["probes"][0]["token_ids"][2] += 1
    wrong = prove_reference(open_bundle(bundle_copy.folder, verify=False), Placement())
    assert wrong.tokens == proof.tokens
    assert wrong.replayed < proof.replayed
    assert not wrong.passed
    assert len(probes) == len(noted)


def test_a_bundle_without_a_reference_graph_or_likelihoods_has_no_proof_of_it(bundle_copy):
    with bundle_copy.changed_manifest() as changed:
        changed["graphs"] = [graph for graph in changed["graphs"] if graph["kind"] != "reference"]
    opened = open_bundle(bundle_copy.folder, verify=False)
    assert prove_reference(opened, Placement()) is prove_lens(opened, Placement()) is None


def test_the_lens_is_proved_by_how_likely_its_layers_find_a_text(bundle, manifest):
    noted = manifest["parity"]["lens"]
    proof = prove_lens(open_bundle(bundle, verify=False), CPU)
    assert len(noted["logprobs"]) == manifest["architecture"]["n_layer"]
    assert proof.tokens == proof.replayed == sum(map(len, noted["logprobs"]))
    assert proof.allowed == max(2 * noted["pytorch_errors"]["fp32"], 2e-5)
    assert 0 < proof.error <= proof.allowed
    assert proof.passed
    assert str(proof).startswith(f"lens fp32: {proof.tokens} of {proof.tokens} likelihoods in its layers as PyTorch's")


@pytest.mark.parametrize(("layer", "place"), [(0, 0), (2, 7), (-1, -1)])
def test_a_likelihood_that_is_wrong_in_any_layer_is_found(changed, layer, place):
    def worsen(parity):
        parity["lens"]["logprobs"][layer][place] += 0.25

    proof = prove_lens(changed(worsen), CPU)
    assert proof.error == pytest.approx(0.25, abs=UNNEAR["fp32"])
    assert proof.replayed == proof.tokens - 1
    assert not proof.passed


def test_a_bundle_from_before_the_lens_has_no_proof_of_it(changed):
    assert prove_lens(changed(lambda parity: parity.pop("lens")), CPU) is None


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"logprobs": [[-1.0]], "pytorch_errors": {"fp32": 1e-6}},
        {"logprobs": [[-1.0]] * 12, "pytorch_errors": {"fp32": 1e-6}},
        {"logprobs": [[-1.0]] * 6, "pytorch_errors": {}},
        {"logprobs": [[-1.0]] * 6, "pytorch_errors": {"fp32": -1e-6}},
    ],
    ids=str,
)
def test_damaged_likelihoods_of_the_lens_are_the_bundles_fault(changed, refusal, value):
    message = refusal(BundleError, prove_lens, changed(lambda parity: parity.update(lens=value)), CPU)
    assert message.startswith("parity.lens of manifest.json is damaged (")


@pytest.fixture
def on_a_card(monkeypatch):
    """`verify` believes to run on the second of two cards; what it proves there is made up."""

    def make(*, replayed=9, card=CARD):
        proofs = {name: Proof(name, 9, replayed, 1e-6, 2e-5) for name in ("fp32", "fp16")}
        monkeypatch.setattr("runtime.diagnosis.choice.find_placement", lambda *_: (card, ""))
        monkeypatch.setattr("runtime.proof.graphs.prove", lambda _bundle, precision, _placement: proofs[precision])
        reference = Proof("fp32", 9, replayed, 1e-6, 2e-5, "reference")
        lens = Proof("fp32", 9, 9, 1e-6, 2e-5, "lens")
        monkeypatch.setattr("runtime.proof.graphs.prove_reference", lambda _bundle, _placement: reference)
        monkeypatch.setattr("runtime.proof.graphs.prove_lens", lambda _bundle, _placement: lens)
        monkeypatch.setattr("runtime.diagnosis.machine.find_gpus", lambda: (GPUS, None))
        return [asdict(proof) for proof in (*proofs.values(), reference, lens)]

    return make


def test_verify_notes_card_versions_and_graphs_where_it_ran_on_a_card(cli_here, bundle_copy, on_a_card):
    graphs = on_a_card()
    done = cli_here("verify", "--model", str(bundle_copy.folder), "--device", "cuda:1")
    assert done.returncode == 0
    assert f"{bundle_copy.folder} is verified on cuda:1: " in done.stdout
    assert noted(bundle_copy.folder) == [
        {
            "card": "NVIDIA H200",
            "provider": "CUDAExecutionProvider",
            "made_with": {"gpt2-onnx": runtime.__version__, "onnxruntime": onnxruntime.__version__},
            "graphs": graphs,
        },
    ]


@pytest.mark.parametrize(
    ("behaviour", "code"), [({"replayed": 8}, 1), ({"card": CPU}, 0), ({"card": REHEARSED}, 0)], ids=str
)
def test_verify_notes_nothing_where_it_failed_or_ran_on_the_cpu(cli_here, bundle_copy, on_a_card, behaviour, code):
    on_a_card(**behaviour)
    assert cli_here("verify", "--model", str(bundle_copy.folder)).returncode == code
    assert not (bundle_copy.folder / "proofs.json").exists()


def read_only(*_, **__):
    raise PermissionError(13, "Permission denied", "somewhere")


def full(*_, **__):
    raise OSError("no room")


@pytest.mark.parametrize("method", ["write_text", "replace"])
@pytest.mark.parametrize(("failure", "reason"), [(read_only, "Permission denied"), (full, "no room")])
def test_a_note_that_cannot_be_written_is_one_line_and_no_failure(
    cli_here, bundle_copy, on_a_card, monkeypatch, method, failure, reason
):
    on_a_card()
    monkeypatch.setattr(Path, method, failure)
    done = cli_here("verify", "--model", str(bundle_copy.folder), "--device", "cuda:1")
    assert done.returncode == 0
    assert f"{bundle_copy.folder} is verified on cuda:1: " in done.stdout
    assert done.stderr.splitlines()[-1] == f"  not noted in proofs.json: {reason}"
    assert not (bundle_copy.folder / "proofs.json").exists()


def test_a_card_that_nvidia_smi_does_not_know_is_named_by_its_number(bundle_copy, on_a_card):
    on_a_card()
    bundle = open_bundle(bundle_copy.folder, verify=False)
    runtime.cli.verify.note(bundle, Placement("cuda", 7, on_device=True), [Proof("fp32", 9, 9, None, None)])
    assert noted(bundle_copy.folder)[-1]["card"] == "cuda:7"
