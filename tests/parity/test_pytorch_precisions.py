"""int8 and int4: what the files hold, what the graphs make of it, what that costs, and what an export lets through.

Logits are compared by `off`, the norm of the difference over that of PyTorch's, of logits less their mean: a number
added to all logits of a place says nothing. The bounds, and where they come from:

- INPUTS. The kernels round what they multiply to int8. Uniform rounding by steps of 1/127 of a row's largest value is
  off by 1/(127 √12) = 0.23 % of that, and the largest is 4 to 10 times the root mean square of a row: 0.9 to 2.3 % a
  product, of which the residual stream passes on a part. Three parts in a hundred are more than that and less than the
  smallest mistake worth finding, a scale that is off by 5 %.
- WEIGHTS. Rounding 256 weights of nearly normal distribution, whose largest is 3 times their root mean square, to 8
  bits is off by 3/(128 √12) = 0.7 %, less than the inputs are; to 4 bits by 3/(8 √12) = 11 %, and scales for blocks of
  128 and the inputs come on top.
- NATS. The logits of the shipped checkpoint have a standard deviation of 2.3 at a place. Three deviations of the error
  in the difference of two of them are 3 * √2 * 2.3 = 10 times `off`: as far behind PyTorch's best a token may be.
"""

import copy
import hashlib
import io
import json
import math
import shutil
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from rich.console import Console

import runtime
from export.cli import main as export_main
from export.errors import ExportError
from export.graphs.linear import IntegerLinear
from export.pipeline import export_bundle
from export.progress import Steps
from export.quantization.codes import QuantizedMatrix
from runtime.bundle.bundle import open_bundle
from runtime.cli.main import main
from runtime.errors import BundleError
from runtime.graphs.decode import DecodeGraph, open_decode_graph

PRECISIONS = ["int8", "int4"]
INPUTS = 0.03
WEIGHTS = {"int8": 0.03, "int4": 0.2}
NATS = {"int8": 0.3, "int4": 2.0}
COST = {"fp16": 0.002, "int8": 0.01, "int4": 0.1}  # of perplexity, as the recipes allow
AGREEMENT = {"int8": 0.95, "int4": 0.85}  # a token in forty and one in ten differ: where two are nearly as likely
MANY = 128  # tokens, from which on int8 has a graph of its own
EMMA = (
    "Emma Woodhouse, handsome, clever, and rich, with a comfortable home and happy disposition, seemed to unite some "
    "of the best blessings of existence; and had lived nearly twenty-one years in the world with very little to "
    "distress or vex her. She was the youngest of the two daughters of a most affectionate, indulgent father; and "
    "had, in consequence of her sister's marriage, been mistress of his house from a very early period. Her mother "
    "had died too long ago for her to have more than an indistinct remembrance of her caresses; and her place had "
    "been supplied by an excellent woman as governess, who had fallen little short of a mother in affection. Sixteen "
    "years had Miss Taylor been in Mr. Woodhouse's family, less as a governess than a friend, very fond of both "
    "daughters, but particularly of Emma. Between them it was more the intimacy of sisters."
)
WAR = (
    "No one would have believed in the last years of the nineteenth century that this world was being watched keenly "
    "and closely by intelligences greater than man's and yet as mortal as his own; that as men busied themselves "
    "about their various concerns they were scrutinised and studied, perhaps almost as narrowly as a man with a "
    "microscope might scrutinise the transient creatures that swarm and multiply in a drop of water. With infinite "
    "complacency men went to and fro over this globe about their little affairs, serene in their assurance of their "
    "empire over matter. It is possible that the infusoria under the microscope do the same. No one gave a thought to"
    " the older worlds of space as sources of human danger, or thought of them only to dismiss the idea of life upon "
    "them as impossible or improbable."
)
TEXTS = {"Emma": EMMA, "The War of the Worlds": WAR}  # two books that the checkpoint never saw
PROMPTS = ["Once upon a time there was a", "He opened the letter", EMMA[:300], "", WAR[:400], "The sea was calm, and"]


@pytest.fixture(params=PRECISIONS)
def precision(request):
    return request.param


@pytest.fixture(scope="module")
def models(precise_bundle):
    return {
        name: runtime.load(precise_bundle, precision=name, threads=1, verify=False) for name in ("fp32", *PRECISIONS)
    }


def centred(logits):
    array = np.asarray(logits, np.float64)
    return array - array.mean(axis=-1, keepdims=True)


def off(logits, expected):
    return np.linalg.norm(centred(logits) - centred(expected)) / np.linalg.norm(centred(expected))


def pytorch_logits(model, ids):
    """[S, V]"""
    with torch.no_grad():
        return model(torch.tensor([list(ids)])).logits[0].numpy()


def session_of(bundle, *kinds, precision, threads=1):
    """A session by these graphs of a precision alone: of one kind, or of decode and prefill."""
    opened = open_bundle(bundle, verify=False)
    paths = [opened.graph_path(kind, precision) for kind in kinds]
    prefill = paths[1] if paths[1:] else None
    return DecodeGraph(paths[0], opened.manifest.architecture, threads=threads, prefill_path=prefill)


def read_at_once(session, ids):
    """Logits [S, V]."""
    with session.sequence() as state:
        return state.read(ids, last=len(ids)).logits.copy()


def read_by_token(session, ids):
    with session.sequence() as state:
        return np.stack([state.step([token])[1].copy() for token in ids])


@pytest.fixture(scope="module")
def readings(precise, precise_bundle):
    """Every text in every precision: ids, PyTorch's float32 logits, and the graphs', at once and token by token."""
    opened, found = open_bundle(precise_bundle, verify=False), {}
    for title, text in TEXTS.items():
        ids = precise.ids(text)
        expected = pytorch_logits(precise.float32, ids)
        for name in PRECISIONS:
            session = open_decode_graph(opened, precision=name, threads=1)
            ways = {"at once": read_at_once(session, ids), "token by token": read_by_token(session, ids)}
            found[title, name] = SimpleNamespace(ids=ids, expected=expected, ways=ways)
    return found


def initializers(path):
    """The tensors of a graph by name, and where in which file each lies."""
    graph = onnx.load(path).graph
    places = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
        if tensor.external_data
    }
    return graph, {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}, places


def weights_by_definition(node, tensors):
    """[N, K] of a MatMulNBits or GatherBlockQuantized node: (code - 2^(bits - 1)) * scale, lower four bits first."""
    settings = {attribute.name: attribute.i for attribute in node.attribute}
    codes, scales = (tensors[node.input[place]] for place in ((1, 2) if node.op_type == "MatMulNBits" else (0, 2)))
    codes = codes.reshape(len(codes), -1).astype(np.int64)
    if settings["bits"] == 4:
        codes = np.stack([codes % 16, codes // 16], axis=-1).reshape(len(codes), -1)
    assert codes.shape[1] == scales.shape[1] * settings["block_size"]
    if node.op_type == "MatMulNBits":
        assert codes.shape == (settings["N"], settings["K"])
    weights = codes - 2 ** (settings["bits"] - 1)
    return torch.from_numpy(weights * np.repeat(scales.astype(np.float64), settings["block_size"], axis=1))


def as_stored(model, path):
    """A copy of a PyTorch model with the numbers that a graph's file holds: of matrices, and of all else."""
    model = copy.deepcopy(model)
    graph, tensors, _ = initializers(path)
    matrices = [node for node in graph.node if node.op_type in ("MatMulNBits", "GatherBlockQuantized")]
    assert len(matrices) == 4 * model.config.n_layer + 2
    found = {name: torch.tensor(tensors[name]) for name, _ in model.named_parameters() if name in tensors}
    for node in matrices:
        weights = weights_by_definition(node, tensors)
        name = {"wte": "transformer.wte"}.get(node.name, node.name)
        found[f"{name}.weight"] = weights if name in ("transformer.wte", "lm_head") else weights.T  # Conv1D's
    with torch.no_grad():
        for name, array in found.items():
            model.get_parameter(name).copy_(array)
    assert found.keys() >= {name for name, _ in model.named_parameters()}
    return model


# what an export writes


def test_a_bundle_in_every_precision_holds_these_files_and_its_manifest_lists_them(bundle, precise_bundle):
    added = {
        "onnx/decode_int4.onnx",
        "onnx/decode_int4.onnx_data",
        "onnx/decode_int8.onnx",
        "onnx/decode_int8.onnx_data",
        "onnx/int8_cache_int4.onnx",
        "onnx/int8_cache_int8.onnx",
        "onnx/prefill_int8.onnx",
        "onnx/ragged_int4.onnx",
        "onnx/ragged_int8.onnx",
        "onnx/ragged_prefill_int8.onnx",
    }
    files = {
        folder: {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        for folder in (bundle, precise_bundle)
    }
    assert files[precise_bundle] == files[bundle] | added
    manifest = json.loads((precise_bundle / "manifest.json").read_text())
    assert manifest["files"].keys() == files[precise_bundle] - {"manifest.json"}
    for name in added:
        content = (precise_bundle / name).read_bytes()
        assert manifest["files"][name] == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert {(graph["kind"], graph["precision"], graph["path"]) for graph in manifest["graphs"]} == {
        ("reference", "fp32", "onnx/model.onnx"),
        ("decode", "fp32", "onnx/decode.onnx"),
        ("ragged", "fp32", "onnx/ragged.onnx"),
        ("decode_cuda", "fp32", "onnx/decode_cuda.onnx"),
        ("lens", "fp32", "onnx/lens.onnx"),
        ("decode", "fp16", "onnx/decode_fp16.onnx"),
        ("decode", "int8", "onnx/decode_int8.onnx"),
        ("ragged", "int8", "onnx/ragged_int8.onnx"),
        ("prefill", "int8", "onnx/prefill_int8.onnx"),
        ("ragged_prefill", "int8", "onnx/ragged_prefill_int8.onnx"),
        ("decode", "int4", "onnx/decode_int4.onnx"),
        ("ragged", "int4", "onnx/ragged_int4.onnx"),
        ("int8_cache", "fp32", "onnx/int8_cache.onnx"),
        ("int8_cache", "int8", "onnx/int8_cache_int8.onnx"),
        ("int8_cache", "int4", "onnx/int8_cache_int4.onnx"),
    }


def test_the_float32_graphs_are_the_same_with_and_without_other_precisions(bundle, precise_bundle):
    for name in (
        "onnx/model.onnx",
        "onnx/lens.onnx",
        "onnx/decode.onnx",
        "onnx/ragged.onnx",
        "onnx/int8_cache.onnx",
        "onnx/model.onnx_data",
    ):
        assert (bundle / name).read_bytes() == (precise_bundle / name).read_bytes()


def test_the_manifest_and_the_card_say_what_each_precision_costs(precise_bundle):
    manifest, card = (precise_bundle / name for name in ("manifest.json", "README.md"))
    found = json.loads(manifest.read_text())["parity"]["precisions"]
    assert [quality["precision"] for quality in found] == ["fp16", *PRECISIONS]
    for quality in found:
        worst = max(quality["at_once"], quality["token_by_token"])
        assert quality["cost"] == pytest.approx(worst / quality["float32"] - 1)
        assert quality["cost"] <= COST[quality["precision"]] == quality["most_cost"]
        assert quality["passed"] is True
        assert 0 < quality["rounding"] <= INPUTS
        assert f"- {quality['precision']}: perplexity {quality['cost']:+.2%} over float32's" in card.read_text()


@pytest.mark.parametrize(
    "name", ["decode_int8", "prefill_int8", "decode_int4", "ragged_int8", "ragged_prefill_int8", "ragged_int4"]
)
def test_a_graph_is_valid_and_finds_all_its_weights_in_the_file_of_its_precision(precise_bundle, name):
    path = precise_bundle / "onnx" / f"{name}.onnx"
    _, _, places = initializers(path)
    file = f"decode_{name.rpartition('_')[2]}.onnx_data"
    assert {place["location"] for place in places.values()} == {file}
    size = (path.parent / file).stat().st_size
    assert all(int(place["offset"]) + int(place["length"]) <= size for place in places.values())
    assert all(int(place["offset"]) % 4096 == 0 for place in places.values())  # so that it can be mapped


def test_embedding_and_lm_head_are_the_same_bytes(precise_bundle, precision):
    """8,192 rows of 256 bytes, known as rows to the look-up and as blocks to the product, and one set of scales."""
    graph, tensors, places = initializers(precise_bundle / "onnx" / f"decode_{precision}.onnx")
    nodes = {node.name: node for node in graph.node}
    rows, look_up_scales = nodes["wte"].input[0], nodes["wte"].input[2]
    blocks, scales = nodes["lm_head"].input[1:3]
    assert rows != blocks
    assert places[rows] == places[blocks]
    assert look_up_scales == scales
    assert int(places[rows]["length"]) == tensors[rows].size == tensors[blocks].size == 8192 * 256


def test_both_int8_graphs_share_their_weights(precise_bundle):
    decode, prefill = (initializers(precise_bundle / "onnx" / f"{kind}_int8.onnx")[2] for kind in ("decode", "prefill"))
    matrices = {place["offset"] for name, place in decode.items() if name.endswith(".blocks")}
    assert len(matrices) == 4 * 6 + 1
    assert matrices <= {place["offset"] for place in prefill.values()}
    assert all(decode[name] == prefill[name] for name in decode.keys() & prefill.keys())


@pytest.mark.parametrize("damaged", ["model.onnx_data", "decode_int8.onnx_data", "decode_int4.onnx_data"])
def test_damaged_weights_are_refused_by_what_reads_them_and_by_nothing_else(precise_bundle, tmp_path, damaged):
    folder = tmp_path / "bundle"
    shutil.copytree(precise_bundle, folder, ignore=shutil.ignore_patterns(damaged))
    content = bytearray((precise_bundle / "onnx" / damaged).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "onnx" / damaged).write_bytes(content)
    readers = {"model.onnx_data": ["fp32"], "decode_int8.onnx_data": ["int8"], "decode_int4.onnx_data": ["int4"]}
    for precision in ("fp32", *PRECISIONS):
        if precision in readers[damaged]:
            with pytest.raises(runtime.BundleError, match=damaged):
                runtime.load(folder, precision=precision)
        else:
            runtime.load(folder, precision=precision)
    if damaged == "decode_int4.onnx_data":
        with pytest.raises(runtime.BundleError, match=damaged):
            runtime.load(folder, draft="int4")


@pytest.mark.parametrize(("name", "bits"), [("int8", 8), ("int4", 4)])
def test_the_file_is_as_small_as_the_codes_are(precise, precise_bundle, name, bits):
    """The blocks' matrices in so many bits, the embedding in 8, all else in float32; gaps of a page a tensor."""
    _, tensors, _ = initializers(precise_bundle / "onnx" / f"decode_{name}.onnx")
    transformer = precise.float32.transformer
    matrices = sum(parameter.numel() for parameter in transformer.h.parameters() if parameter.ndim == 2)
    codes = matrices * bits // 8 + transformer.wte.weight.numel()
    floats = sum(tensor.nbytes for tensor in tensors.values() if tensor.dtype == np.float32)
    size = (precise_bundle / "onnx" / f"decode_{name}.onnx_data").stat().st_size
    assert codes + floats <= size <= codes + 1.1 * floats + 4096 * (len(tensors) + 2 * 25)


# what the graphs compute


@pytest.mark.parametrize("way", ["at once", "token by token"])
@pytest.mark.parametrize("title", TEXTS)
def test_a_graph_computes_what_pytorch_does_with_the_numbers_in_its_file(
    precise, precise_bundle, readings, precision, title, way
):
    stored = as_stored(precise.float32, precise_bundle / "onnx" / f"decode_{precision}.onnx")
    reading = readings[title, precision]
    assert off(reading.ways[way], pytorch_logits(stored, reading.ids)) < INPUTS


@pytest.mark.parametrize("way", ["at once", "token by token"])
@pytest.mark.parametrize("title", TEXTS)
def test_logits_are_nearly_those_of_the_checkpoint(readings, precision, title, way):
    reading = readings[title, precision]
    assert off(reading.ways[way], reading.expected) < WEIGHTS[precision]


@pytest.mark.parametrize("way", ["at once", "token by token"])
def test_the_most_likely_token_is_nearly_always_the_checkpoints(readings, precision, way):
    same = [
        readings[title, precision].ways[way].argmax(-1) == readings[title, precision].expected.argmax(-1)
        for title in TEXTS
    ]
    assert np.concatenate(same).mean() > AGREEMENT[precision]


@pytest.mark.parametrize("way", ["at once", "token by token"])
def test_perplexity_is_that_of_the_checkpoint_within_what_the_recipe_allows(readings, precision, way):
    def surprise(logits, ids):
        """Of each token but the first."""
        return torch.nn.functional.cross_entropy(torch.tensor(logits[:-1]), torch.tensor(ids[1:]), reduction="none")

    given = [readings[title, precision] for title in TEXTS]
    found = torch.cat([surprise(reading.ways[way], reading.ids) for reading in given]).mean().item()
    expected = torch.cat([surprise(reading.expected, reading.ids) for reading in given]).mean().item()
    assert abs(math.exp(found - expected) - 1) < COST[precision]


@pytest.mark.parametrize("length", [32, MANY, MANY + 1, 190])
def test_the_int8_graphs_say_the_same_of_a_prompt(precise, precise_bundle, length):
    """They differ in how inputs are rounded, by row or by block, each with an error of its own: √2 times one."""
    ids = precise.ids(EMMA)[:length]
    found = {}
    for kind in ("decode", "prefill"):
        with session_of(precise_bundle, kind, precision="int8").sequence() as state:
            logits = state.read(ids, last=length).logits.copy()
            found[kind] = logits, {name: array.copy() for name, array in state.cache().items()}
    (decode, past), (prefill, other) = found["decode"], found["prefill"]
    assert not np.array_equal(decode, prefill)  # or it was one graph twice
    assert off(prefill, decode) < math.sqrt(2) * INPUTS
    for name in past:
        assert np.linalg.norm(other[name] - past[name]) < math.sqrt(2) * INPUTS * np.linalg.norm(past[name]), name


@pytest.mark.parametrize(("length", "kind"), [(MANY - 1, "decode"), (MANY, "prefill"), (180, "prefill")])
def test_int8_reads_128_tokens_and_more_by_the_prefill_graph(precise, precise_bundle, length, kind):
    ids = precise.ids(WAR)[:length]
    both = session_of(precise_bundle, "decode", "prefill", precision="int8")
    alone = session_of(precise_bundle, kind, precision="int8")
    np.testing.assert_array_equal(read_at_once(both, ids), read_at_once(alone, ids))


def test_a_loaded_int8_model_has_the_prefill_graph(precise, precise_bundle, models):
    ids = precise.ids(WAR)
    expected = read_at_once(session_of(precise_bundle, "decode", "prefill", precision="int8"), ids)
    np.testing.assert_array_equal(read_at_once(models["int8"].decode_graph, ids), expected)


# what a model in a precision does


def assert_likely(precise, prompt_ids, token_ids, precision):
    """Each token is one that PyTorch, after the same tokens, finds about as likely as its own choice."""
    assert token_ids
    logits = pytorch_logits(precise.float32, [*prompt_ids, *token_ids[:-1]])[len(prompt_ids) - 1 :]
    behind = logits.max(axis=-1) - logits[np.arange(len(token_ids)), list(token_ids)]
    assert behind.max() < NATS[precision], behind


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_a_completion_says_what_pytorch_might(precise, models, precision, prompt):
    completion = models[precision].complete(prompt, max_new_tokens=24, ignore_eos=True)
    assert completion.prompt_tokens == len(precise.ids(prompt))
    assert len(completion.token_ids) == 24
    assert_likely(precise, precise.ids(prompt), completion.token_ids, precision)


@pytest.mark.parametrize("batch_size", [2, 16])
def test_prompts_side_by_side_say_what_pytorch_might(precise, models, precision, batch_size):
    """Of 1 to 100 tokens, so that some are read by the prefill graph, while others are under way."""
    completions = models[precision].complete(PROMPTS, max_new_tokens=12, ignore_eos=True, batch_size=batch_size)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        assert len(completion.token_ids) == 12
        assert_likely(precise, precise.ids(prompt), completion.token_ids, precision)


@pytest.mark.parametrize("prompt", [PROMPTS[0], EMMA])
def test_a_stream_is_the_completion_in_pieces(models, precision, prompt):
    expected = models[precision].complete(prompt, max_new_tokens=16)
    stream = models[precision].stream(prompt, max_new_tokens=16)
    assert "".join(stream) == expected.text
    assert stream.completion.token_ids == expected.token_ids


def test_a_session_goes_on_with_what_it_has_read(precise, models, precision):
    """Over turns short and long, and back."""
    with models[precision].session() as session:
        for more, back in ((PROMPTS[0], 0), (" Then the rain came", 5), (f" {EMMA}", 0), (" She was", 0)):
            given = precise.ids(session.text + more)
            completion = session.complete(more, max_new_tokens=8, ignore_eos=True)
            assert list(session.token_ids) == [*given, *completion.token_ids]
            assert_likely(precise, given, completion.token_ids, precision)
            session.rewind(back)


@pytest.mark.parametrize("stride", [None, 64])
def test_a_score_is_the_checkpoints_within_what_the_recipe_allows(precise, models, precision, stride):
    text = f"{EMMA} {WAR}"
    ids = precise.ids(text)
    logprobs = torch.log_softmax(torch.tensor(pytorch_logits(precise.float32, ids[:-1])), -1)
    expected = math.exp(-logprobs[np.arange(len(ids) - 1), ids[1:]].mean())
    assert models[precision].score(text, stride=stride).perplexity == pytest.approx(expected, rel=COST[precision])


def test_a_model_says_its_precision(models):
    assert {name: model.precision for name, model in models.items()} == {name: name for name in models}
    assert "in int4 on cpu" in repr(models["int4"])


def test_complete_keeps_models_of_two_precisions_apart(precise_bundle, monkeypatch):
    loaded, load = [], runtime.load

    def note(path, **options):
        loaded.append((path, options["precision"]))
        return load(path, **options, prefix_cache=False)  # in int8 a prompt read anew is not rounded as one kept

    monkeypatch.setattr("runtime.api._loaded", {})
    monkeypatch.setattr("runtime.api.load", note)
    options = {"model": precise_bundle, "max_new_tokens": 24, "logprobs": 1}
    found = [runtime.complete(WAR, precision=name, **options) for name in ("int8", "fp32", "int8", "int4", "fp32")]
    assert found[0] == found[2]
    assert found[1] == found[4] == runtime.complete(WAR, **options)
    assert len({completion.logprobs[0] for completion in found}) == 3
    assert [name for _, name in loaded] == ["int8", "fp32", "int4"]  # which is the default on the CPU


def test_complete_keeps_the_default_precision_under_its_own_name_too(precise_bundle, models, monkeypatch):
    loaded = []
    monkeypatch.setattr("runtime.api._loaded", {})
    monkeypatch.setattr("runtime.api.load", lambda _, **options: loaded.append(options) or models["fp32"])
    for precision in (None, "fp32", None):
        runtime.complete(WAR, model=precise_bundle, precision=precision, max_new_tokens=1)
    assert [options["precision"] for options in loaded] == [None]


@pytest.mark.parametrize("name", ["decode_int8.onnx_data", "decode_int8.onnx", "prefill_int8.onnx"])
def test_a_damaged_file_of_a_precision_is_found(precise_bundle, tmp_path, name):
    folder = tmp_path / "bundle"
    (folder / "onnx").mkdir(parents=True)
    for path in precise_bundle.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(precise_bundle)).hardlink_to(path)
    content = bytearray((folder / "onnx" / name).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (folder / "onnx" / name).unlink()
    (folder / "onnx" / name).write_bytes(content)
    with pytest.raises(BundleError, match=name):
        runtime.load(folder, precision="int8")
    (folder / "onnx" / name).unlink()
    with pytest.raises(BundleError, match=name):
        runtime.load(folder, precision="int8", verify=False)


# the command line


@pytest.fixture
def cli(monkeypatch, capsys):
    """The runtime's command in this process: (exit code, standard output, lines of standard error)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gpt2-onnx", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        output, errors = capsys.readouterr()
        return ended.value.code, output, errors.splitlines()

    return run


def test_complete_and_score_take_a_precision(cli, precise_bundle, models, precision, tmp_path):
    (tmp_path / "text").write_text(WAR)
    options = ["--model", precise_bundle, "--precision", precision, "--json"]
    code, output, _ = cli("complete", PROMPTS[0], "--max-new-tokens", "8", "--logprobs", "1", *options)
    expected = models[precision].complete(PROMPTS[0], max_new_tokens=8, logprobs=1).as_dict()
    assert (code, json.loads(output)["token_ids"]) == (0, list(expected["token_ids"]))
    code, output, _ = cli("score", tmp_path / "text", *options)
    found = json.loads(output)["perplexity"]
    assert (code, found) == (0, pytest.approx(models[precision].score(WAR).perplexity, rel=1e-3))  # of other threads
    assert found != pytest.approx(models["fp32"].score(WAR).perplexity, rel=1e-5)


def test_a_batch_in_one_precision_is_not_gone_on_with_in_another(cli, precise_bundle, models, tmp_path):
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(f"{json.dumps({'prompt': prompt})}\n" for prompt in PROMPTS))
    options = [prompts, "--output", output, "--model", precise_bundle, "--max-new-tokens", "6"]
    written, before = {}, b""
    for name in ("fp32", "int8", "int4"):
        if written:
            code, _, errors = cli("batch", *options, "--precision", name)
            assert (code, len(errors)) == (2, 1)
            assert "is from another input, another model or other options" in errors[0]
            assert output.read_bytes() == before
        code, _, errors = cli("batch", *options, "--precision", name, "--force")
        assert code == 0, errors
        before = output.read_bytes()
        written[name] = [json.loads(line) for line in output.read_text().splitlines()]
        code, _, errors = cli("batch", *options, "--precision", name)  # all of it is there
        assert (code, output.read_bytes()) == (0, before)
        assert f"({len(PROMPTS)} by an earlier run)" in errors[-1]
    digests = [record["digest"] for records in written.values() for record in records]
    assert len(set(digests)) == 3 * len(PROMPTS)
    expected = models["fp32"].complete(PROMPTS, max_new_tokens=6)
    assert [record["text"] for record in written["fp32"]] == [completion.text for completion in expected]


# what an export lets through


GPT2S = [
    {"activation_function": "gelu_new", "n_inner": 48},
    {"activation_function": "gelu", "tie_word_embeddings": False},
    {"activation_function": "relu", "scale_attn_by_inverse_layer_idx": True},
    {"activation_function": "tanh", "n_embd": 80, "n_head": 2, "n_inner": 144, "layer_norm_epsilon": 1e-2},
    {"activation_function": "silu", "scale_attn_weights": False, "tie_word_embeddings": False, "n_positions": 33},
]


@pytest.fixture(scope="module", params=GPT2S, ids=str)
def tiny(request, tmp_path_factory, seeded_checkpoint):
    """(checkpoint, bundle, report) of a small GPT-2."""
    folder = tmp_path_factory.mktemp("tiny")
    checkpoint = seeded_checkpoint(folder / "checkpoint", **{"n_layer": 2, "n_positions": 40, **request.param})
    report = export_bundle(str(checkpoint), folder / "bundle", precisions=("int8", "int4"))
    return checkpoint, folder / "bundle", report


def test_a_gpt2_of_any_kind_is_exported(tiny, precise):
    """Every field that changes the arithmetic; logits against PyTorch's with the numbers in the file."""
    checkpoint, bundle, report = tiny
    assert report.passed
    original = type(precise.float32).from_pretrained(checkpoint, attn_implementation="eager").eval()
    ids = precise.ids(EMMA)[: original.config.n_positions]
    opened = open_bundle(bundle)
    for precision in PRECISIONS:
        session = open_decode_graph(opened, precision=precision, threads=1)
        stored = pytorch_logits(as_stored(original, bundle / "onnx" / f"decode_{precision}.onnx"), ids)
        for logits in (read_at_once(session, ids), read_by_token(session, ids)):
            assert off(logits, stored) < INPUTS
            assert off(logits, pytorch_logits(original, ids)) < WEIGHTS[precision]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, seeded_checkpoint):
    return seeded_checkpoint(tmp_path_factory.mktemp("defects") / "tiny", n_layer=2, n_positions=150)


@pytest.mark.parametrize("precisions", [("int8",), ("int4",), ("fp32", "int8", "int4")], ids=",".join)
@pytest.mark.parametrize(("field", "config"), [("n_embd", {"n_embd": 40, "n_head": 5}), ("n_inner", {"n_inner": 40})])
def test_a_width_that_no_kernel_takes_is_refused_by_name(tmp_path, seeded_checkpoint, field, config, precisions):
    folder = seeded_checkpoint(tmp_path / "odd", n_layer=1, **config)
    with pytest.raises(ExportError) as refused:
        export_bundle(str(folder), tmp_path / "out" / "bundle", precisions=precisions)
    wanted = ", ".join(name for name in precisions if name != "fp32")
    assert str(refused.value) == f"odd: for {wanted}, {field} must be a multiple of 16, got 40"
    assert not list(tmp_path.glob("out/*"))


def test_an_unknown_precision_is_refused_before_anything_is_written(checkpoint, tmp_path):
    with pytest.raises(ExportError, match=r"^precision must be among fp32, fp16, int8, int4, got 'int3'$"):
        export_bundle(str(checkpoint), tmp_path / "bundle", precisions=("int8", "int3"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("precision", "code", "message"),
    [("int8,int4", 0, ""), ("int3", 1, "gpt2-onnx-export: precision must be among fp32, fp16, int8, int4, got 'int3'")],
)
def test_the_command_takes_precisions_with_commas(checkpoint, tmp_path, monkeypatch, capsys, precision, code, message):
    """In this process, which is left as it was: a command sets its own signals and warnings."""
    monkeypatch.setattr("export.cli.set_up_libraries", lambda: None)
    monkeypatch.setattr("export.cli.signal.signal", lambda *_: None)
    arguments = [checkpoint, "--output", tmp_path / "bundle", "--json", "--precision", precision]
    monkeypatch.setattr(sys, "argv", ["gpt2-onnx-export", *map(str, arguments)])
    with nullcontext() if code == 0 else pytest.raises(SystemExit) as ended:
        export_main()
    output, errors = capsys.readouterr()
    if code == 0:
        report = json.loads(output)
        assert [quality["passed"] for quality in report["precisions"]] == [True, True]
        assert {row["graph"] for row in report["tensors"]} == {
            "reference",
            "lens",
            "decode",
            "ragged",
            "decode_cuda",
            "decode int8",
            "ragged int8",
            "decode int8 rounded",
            "ragged int8 rounded",
            "prefill int8 rounded",
            "ragged_prefill int8 rounded",
            "decode int4",
            "ragged int4",
            "decode int4 rounded",
            "ragged int4 rounded",
        }
    else:
        assert (ended.value.code, output, errors.splitlines()[-1]) == (code, "", message)
        assert "Traceback" not in errors
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("n_positions", "kinds"),
    [(MANY - 1, ["decode", "ragged"]), (MANY, ["decode", "ragged", "prefill", "ragged_prefill"])],
)
def test_a_prefill_graph_is_written_where_a_text_can_be_that_long(tmp_path, seeded_checkpoint, n_positions, kinds):
    folder = seeded_checkpoint(tmp_path / "short", n_layer=1, n_positions=n_positions)
    export_bundle(str(folder), tmp_path / "bundle", precisions="int8")
    graphs = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["graphs"]
    assert [graph["kind"] for graph in graphs if graph["precision"] == "int8"] == kinds


packed, kernel_scales = QuantizedMatrix.packed, QuantizedMatrix.kernel_scales


def swapped(matrix):
    """The upper four bits of a byte first."""
    codes = packed(matrix)
    return codes << np.uint8(4) | codes >> np.uint8(4) if matrix.bits == 4 else codes


def above_one(matrix):
    """Codes around 9 or 129 instead of 8 or 128."""
    return packed(matrix) + np.uint8(1 if matrix.bits == 8 else 0x11)


def without_bias(linear, nodes, hidden, name):
    """A product by which the bias is forgotten, in the graph for many tokens alone."""
    inputs = linear.matrices[f"{name}.weight"].codes.shape[1]
    rows = nodes.add("Reshape", f"{name}.rows", [hidden, nodes.constant(f"rows_of_{inputs}", [-1, inputs])])
    product = linear.two_sided(nodes, rows, name)
    shape = nodes.add(
        "Concat", "shape", [nodes.add("Shape", "ids", ["input_ids"]), nodes.constant("rest", [-1])], axis=0
    )
    return nodes.add("Reshape", f"{name}.unrolled", [product, shape])


two_sided = IntegerLinear.two_sided


def too_large(linear, nodes, rows, name):
    """A product off by a twentieth, in the graph for many tokens alone: perplexity hardly tells."""
    factor = nodes.scalar("factor", 1.05, np.float32)
    return nodes.add("Mul", f"{name}.too_large", [two_sided(linear, nodes, rows, name), factor])


@pytest.mark.parametrize(
    ("precision", "owner", "name", "defect", "seen"),
    [
        ("int4", QuantizedMatrix, "packed", swapped, "decode int4"),
        ("int4", QuantizedMatrix, "packed", above_one, "decode int4"),
        ("int8", QuantizedMatrix, "packed", above_one, "decode int8"),
        ("int4", QuantizedMatrix, "kernel_scales", lambda matrix: 1.05 * kernel_scales(matrix), "decode int4"),
        ("int8", QuantizedMatrix, "kernel_scales", lambda matrix: 1.05 * kernel_scales(matrix), "decode int8"),
        ("int8", QuantizedMatrix, "output_sums", lambda matrix: 0 * matrix.scales[:, 0], "int8: perplexity"),
        ("int8", IntegerLinear, "matmul", without_bias, "int8: perplexity"),
        ("int8", IntegerLinear, "two_sided", too_large, "int8: perplexity"),
    ],
    ids=[
        "nibbles",
        "zero of int4",
        "zero of int8",
        "scales of int4",
        "scales of int8",
        "zeros of inputs",
        "biases",
        "products",
    ],
)
def test_weights_that_are_written_wrongly_are_found(
    checkpoint, tmp_path, monkeypatch, precision, owner, name, defect, seen
):
    """Each in the writer alone: what PyTorch is given to compare with is right."""
    monkeypatch.setattr(owner, name, defect)
    said = io.StringIO()
    report = export_bundle(
        str(checkpoint), tmp_path / "bundle", precisions=(precision,), steps=Steps(Console(file=said, width=200))
    )
    assert any(seen in line and "FAIL" in line for line in said.getvalue().splitlines())
    assert [refusal.precision for refusal in report.refused] == [precision]
    assert not list((tmp_path / "bundle").rglob(f"*{precision}*"))
