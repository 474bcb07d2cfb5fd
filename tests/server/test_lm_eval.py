"""EleutherAI's lm-evaluation-harness against a live server: what it measures is what PyTorch gives."""

import json
import os
import subprocess
import venv

import numpy as np
import pytest

VERSION = "0.4.13"
pytestmark = pytest.mark.wide  # it takes a minute to install
CONTEXTS = (  # after each of which the model says first a word that a space precedes, as the harness has it
    "In the garden of the château there was",
    "She looked out of the window, and",
    "“Oh!” said he,",
    "The house on the hill was",
    "He knew that Ω would",
    "In the café they had",
    "When the rain came, my father",
    "He never",
)
OTHERS = ("the old house", "naïve façades — “no”", "of of of", "日本")
TEXTS = (" ".join(CONTEXTS), "It is a truth universally acknowledged — “not” by me — that Ω is not α. " * 8, "Oh!")
UNREACHABLE = ("NewConnectionError", "Connection refused", "Failed to resolve", "timed out", "Max retries exceeded")
COMMON = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
"""
TASKS = {
    "choices": """
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "texts": """
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
""",
    "continued": """
doc_to_text: "{{context}}"
doc_to_target: "{{continuation}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 6, temperature: 0}
metric_list: [{metric: exact_match}]
""",
}
KINDS = {"choices": "multiple_choice", "texts": "loglikelihood_rolling", "continued": "generate_until"}


@pytest.fixture(scope="module")
def lm_eval(make_once):
    """The harness's command, in an environment of its own: it needs another huggingface_hub than the export does."""

    def install(folder):
        venv.create(folder, with_pip=True)
        command = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", f"lm-eval[api]=={VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode and any(sign in done.stderr for sign in UNREACHABLE):
            pytest.skip(f"lm-eval {VERSION} cannot be installed, as PyPI is out of reach")
        assert done.returncode == 0, done.stderr

    return make_once("lm-eval", install) / "bin" / "lm_eval"


@pytest.fixture(scope="module")
def pytorch(novelist):
    """The checkpoint in PyTorch, in float32 and in float64, and its tokenizer."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.GPT2TokenizerFast.from_pretrained(novelist)
    load = transformers.GPT2LMHeadModel.from_pretrained
    return Scorer(tokenizer, *(load(novelist, dtype=dtype).eval() for dtype in (torch.float32, torch.float64)))


class Scorer:
    """Log-probabilities by PyTorch, and how far those in float32 get from the truth."""

    def __init__(self, tokenizer, float32, truth):
        self.tokenizer, self.float32, self.truth = tokenizer, float32, truth
        self.noise = 0.0

    def logprobs(self, ids):
        """[S, V] in float64; what float32 is off is noted on the way."""
        import torch

        given = torch.tensor([ids])
        with torch.no_grad():
            float32, truth = (model(given).logits[0].log_softmax(-1) for model in (self.float32, self.truth))
        self.noise = max(self.noise, float((float32 - truth).abs().max()))
        return truth.numpy()

    def score(self, context_ids, ids):
        """(the sum over the tokens of `ids` after the context, whether each is the likeliest)."""
        rows = self.logprobs([*context_ids, *ids])[len(context_ids) - 1 : -1]
        found = rows[np.arange(len(ids)), ids]
        best = np.sort(rows, -1)
        sure = np.abs(best[:, -1] - np.where(found == best[:, -1], best[:, -2], found)) > 1e-3
        assert sure.all(), "a token nearly as likely as the likeliest proves nothing"
        return float(found.sum()), bool((found == best[:, -1]).all())

    def greedy(self, context, count):
        ids = self.tokenizer(context)["input_ids"]
        for _ in range(count):
            ids = [*ids, int(self.logprobs(ids)[-1].argmax())]
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False).removeprefix(context)


@pytest.fixture(scope="module")
def documents(pytorch):
    """The documents of each task. A choice comes after a space, and a right answer may be the greedy one or not."""
    choices = []
    for number, context in enumerate(CONTEXTS):
        greedy = pytorch.greedy(context, 3).removeprefix(" ")
        answers = [greedy, *OTHERS[number % 2 :: 2]]
        choices.append({"context": context, "choices": answers, "label": number % 3})
    continued = [{"context": each, "continuation": pytorch.greedy(each, 6).split("\n")[0]} for each in CONTEXTS]
    return {"choices": choices, "texts": [{"text": text} for text in TEXTS], "continued": continued}


@pytest.fixture(scope="module")
def measured(lm_eval, documents, server, tmp_path_factory):
    """({task: results}, {task: samples}, what the harness said)."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, rest in TASKS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(f"{json.dumps(each)}\n" for each in documents[name]), encoding="utf-8")
        task = COMMON.format(name=name, data=data, kind=KINDS[name]) + rest
        (folder / f"{name}.yaml").write_text(task, encoding="utf-8")
    model = f"model=novelist,base_url={server.url}/v1/completions,tokenizer_backend=remote,max_length=512"
    command = [lm_eval, "run", "--model", "local-completions", "--model_args", f"{model},num_concurrent=4"]
    command += ["--batch_size", "4", "--tasks", ",".join(TASKS), "--include_path", folder]
    command += ["--output_path", folder / "out", "--log_samples"]
    own = {"HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**kept, **own}, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (results,) = (folder / "out").rglob("results_*.json")
    samples = {}
    for name in TASKS:
        (path,) = (folder / "out").rglob(f"samples_{name}_*.jsonl")
        read = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        samples[name] = sorted(read, key=lambda each: each["doc_id"])
    return json.loads(results.read_text())["results"], samples, done.stdout + done.stderr


def test_choices_are_as_likely_as_in_pytorch(pytorch, documents, measured):
    results, samples, _ = measured
    flags, right, right_by_length = [], [], []
    for document, sample in zip(documents["choices"], samples["choices"], strict=True):
        context_ids = pytorch.tokenizer(document["context"])["input_ids"]
        scores = []
        for choice, (found, greedy) in zip(document["choices"], sample["filtered_resps"], strict=True):
            ids = pytorch.tokenizer(f"{document['context']} {choice}")["input_ids"]
            assert ids[: len(context_ids)] == context_ids
            expected, is_greedy = pytorch.score(context_ids, ids[len(context_ids) :])
            # each token within twice what PyTorch's own float32 is off from float64, as in tests/parity
            bound = 2 * pytorch.noise * (len(ids) - len(context_ids))
            assert float(found) == pytest.approx(expected, rel=0, abs=bound)
            assert (greedy in (True, "True")) == is_greedy
            flags.append(is_greedy)
            scores.append(expected)
        lengths = [len(choice) for choice in document["choices"]]
        right.append(int(np.argmax(scores)) == document["label"])
        right_by_length.append(int(np.argmax(np.divide(scores, lengths))) == document["label"])
    assert flags.count(True) == len(CONTEXTS)
    assert len(flags) == 3 * len(CONTEXTS)
    assert results["choices"]["acc,none"] == pytest.approx(np.mean(right))
    assert results["choices"]["acc_norm,none"] == pytest.approx(np.mean(right_by_length))
    assert 0 < np.mean(right) < 1


def test_whole_texts_are_as_likely_as_in_pytorch(pytorch, documents, measured):
    results, samples, _ = measured
    total = 0.0
    for document, sample in zip(documents["texts"], samples["texts"], strict=True):
        ids = pytorch.tokenizer(document["text"])["input_ids"]
        rows = pytorch.logprobs([0, *ids])  # the harness begins a text with the bos token
        expected = float(rows[np.arange(len(ids)), ids].sum())
        ((found,),) = (np.ravel(sample["filtered_resps"]),)
        assert float(found) == pytest.approx(expected, rel=0, abs=2 * pytorch.noise * len(ids))
        total += expected
    size = sum(len(text.encode()) for text in TEXTS)
    assert results["texts"]["bits_per_byte,none"] == pytest.approx(-total / size / np.log(2), rel=1e-6)


def test_greedy_continuations_are_pytorchs(documents, measured):
    results, samples, _ = measured
    for document, sample in zip(documents["continued"], samples["continued"], strict=True):
        assert sample["resps"] == [[document["continuation"]]]
    assert results["continued"]["exact_match,none"] == 1


def test_the_harness_needed_no_second_try(measured):
    said = measured[2]
    assert "Using remote tokenizer" in said
    for sign in ("etry", "failed", "fallback", "Traceback", "truncat", "ERROR"):
        assert sign not in said
