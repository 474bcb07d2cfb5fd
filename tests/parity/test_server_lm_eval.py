"""The evaluation harness, as released, against the server: every score it reports is PyTorch's.

It scores an answer by its log-probability behind the question, and calls it greedy if each of its tokens has exactly
the largest value of its position.
"""

import json
import os
import subprocess
import sys
import time
import venv
from contextlib import contextmanager

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.wide  # installing the harness takes a minute
HARNESS = "lm-eval[api]==0.4.13"
CONTEXT = 512
QUESTIONS = [
    "It was a bright cold day",
    "“Où est-il?” she said; “à Genève,”",
    "The captain looked at the sea — the grey, grey sea —",
    "He wrote 日本 in the sand,",
    "She laughed 😀 and",
    "My dear Miss Pym,",
    "CHAPTER II\n\nThe next day",
]
OTHER_ANSWERS = [" and the naïve café", " of the", " banana — Ω", ", and then", " 語", "!", " 🙂🙂"]
SENTENCE = "In the year 18{} the house stood {} miles off; nobody — not even Mrs. Pym — knew “why”. "
TASKS = {
    "choose": """
        output_type: multiple_choice
        doc_to_text: "{{question}}"
        doc_to_choice: "{{choices}}"
        doc_to_target: "{{answer}}"
        target_delimiter: ""
        metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
    """,
    "continue": """
        output_type: loglikelihood
        doc_to_text: "{{question}}"
        doc_to_target: "{{choices[answer]}}"
        target_delimiter: ""
        metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
    """,
    "roll": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{text}}"
        metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
    """,
    "generate": """
        output_type: generate_until
        doc_to_text: "{{question}}"
        doc_to_target: "{{choices[answer]}}"
        generation_kwargs: {until: ["."], max_gen_toks: 12, do_sample: false}
        metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
    """,
}
WAYS = {
    "concurrently": {"batch": 4, "tokenizer_backend": "remote", "num_concurrent": 3},
    "in turn": {"batch": 2, "tokenizer_backend": "auto", "num_concurrent": 1},
}


@pytest.fixture(scope="module")
def harness(make_once):
    """The Python of an environment of its own: the harness needs a later huggingface_hub than transformers 4.57."""

    def make(folder):
        venv.create(folder, with_pip=True)
        python = folder / "bin" / "python"
        install = [python, "-m", "pip", "install", "--quiet"]
        found = subprocess.run([*install, "--no-deps", HARNESS], capture_output=True, text=True, check=False)
        if found.returncode:
            pytest.skip(f"{HARNESS} cannot be had: {found.stderr.splitlines()[-1]}")
        subprocess.run([*install, HARNESS], check=True)
        assert subprocess.run([python, "-c", "import torch"], capture_output=True, check=False).returncode  # no need

    return make_once("lm-eval", make) / "bin" / "python"


@contextmanager
def serving(bundle, log):
    """The address of `gpt2-onnx serve`, which logs JSON to a file."""
    command = [sys.executable, "-m", "runtime", "serve", "--model", str(bundle), "--served-name", "novelist"]
    with log.open("w") as stderr:
        server = subprocess.Popen([*command, "--port", "0", "--slots", "4", "--log-format", "json"], stderr=stderr)
    try:
        while "serving novelist at" not in (told := log.read_text()):
            assert server.poll() is None, told
            time.sleep(0.1)
        yield told.partition("serving novelist at ")[2].split()[0]
    finally:
        server.terminate()
        assert server.wait(30) == 0


@pytest.fixture(scope="module")
def documents(shipped):
    """Questions with answers of which the first is the model's own greedy one, and texts, one longer than the context.

    Every second question says that another answer is the right one.
    """
    made = []
    for number, question in enumerate(QUESTIONS):
        own = shipped.decoded(shipped.generate(shipped.ids(question), 3 + number % 2))
        others = [OTHER_ANSWERS[number], OTHER_ANSWERS[(number + 3) % 7]]
        text = "".join(SENTENCE.format(11 + n, 3 * n) for n in range(25 if number == 2 else number + 1))
        made.append({"question": question, "choices": [own, *others], "answer": number % 2, "text": text})
    assert len(shipped.ids(made[2]["text"])) > CONTEXT
    return made


@pytest.fixture(scope="module", params=WAYS)
def report(request, harness, documents, bundle, tmp_path_factory):
    """(each task's samples, each task's results) of one run of the harness's command."""
    folder, way = tmp_path_factory.mktemp("harness"), WAYS[request.param]
    (folder / "documents.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in documents))
    for name, task in TASKS.items():
        data = f"{{data_files: {{test: {folder / 'documents.jsonl'}}}}}"
        lines = [f"task: {name}", "dataset_path: json", f"dataset_kwargs: {data}", "test_split: test"]
        (folder / f"{name}.yaml").write_text("\n".join([*lines, *(line.strip() for line in task.splitlines())]))
    with serving(bundle, folder / "log") as url:
        model = {"model": "novelist", "base_url": f"{url}/v1/completions", "max_length": CONTEXT, **way}
        batch = str(model.pop("batch"))
        command = [harness, "-m", "lm_eval", "run", "--model", "local-completions", "--batch_size", batch]
        command += ["--model_args", ",".join(f"{name}={value}" for name, value in model.items())]
        command += ["--tasks", ",".join(TASKS), "--include_path", folder, "--log_samples", "--output_path", folder]
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | offline, cwd=folder, check=False
        )
    assert done.returncode == 0, done.stderr
    said_by_server = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
    assert {line["status"] for line in said_by_server if "status" in line} == {200}
    assert max(line.get("texts", 0) for line in said_by_server) == int(batch)
    told = done.stderr.splitlines()
    assert any("Using remote tokenizer" in line for line in told)
    assert [line for line in told if "Retry" in line or ("WARNING" in line and "Batch size > 1" not in line)] == []
    samples = {}
    for name in TASKS:
        (path,) = folder.glob(f"novelist/samples_{name}_*.jsonl")
        found = [json.loads(line) for line in path.read_text().splitlines()]
        samples[name] = [each["resps"] for each in sorted(found, key=lambda each: each["doc_id"])]
    (path,) = folder.glob("novelist/results_*.json")
    return samples, json.loads(path.read_text())["results"]


@pytest.fixture(scope="module")
def scored(shipped):
    """[(log-probability, whether it is the largest)] of the last tokens of some ids, by PyTorch in float64."""

    def score(ids, count):
        with torch.no_grad():
            rows = torch.log_softmax(shipped.truth(torch.tensor([ids])).logits[0], -1)[-count - 1 : -1]
        best, second = rows.topk(2).values.T
        assert (best - second).min() > 2 * shipped.logprob_noise  # else float32 could not tell which is the largest
        return [(float(row[token]), int(row.argmax()) == token) for row, token in zip(rows, ids[-count:], strict=True)]

    return score


@pytest.fixture(scope="module")
def expected(shipped, documents, scored):
    """[documents, choices] of (log-probability, greedy or not, number of tokens): what the harness defines them as."""

    def answer(question, choice):
        whole, behind = shipped.ids(question + choice), len(shipped.ids(question))
        tokens = scored(whole, len(whole) - behind)
        return sum(logprob for logprob, _ in tokens), all(largest for _, largest in tokens), len(tokens)

    made = [[answer(each["question"], choice) for choice in each["choices"]] for each in documents]
    flags = [greedy for each in made for _, greedy, _ in each]
    assert 5 <= sum(flags) <= len(flags) - 5  # both are there
    return made


def assert_as_pytorch(shipped, found, answer):
    """A sum of log-probabilities may be off by as many float32 errors as it has tokens, all in one direction."""
    logprob, greedy, tokens = answer
    assert float(found[0]) == pytest.approx(logprob, rel=0, abs=2 * shipped.logprob_noise * tokens)
    assert found[1] == str(greedy)


def test_each_answer_of_a_multiple_choice(report, shipped, documents, expected):
    samples, results = report
    for found, answers in zip(samples["choose"], expected, strict=True):
        for (one,), answer in zip(found, answers, strict=True):
            assert_as_pytorch(shipped, one, answer)
    best = [int(np.argmax([logprob for logprob, _, _ in answers])) for answers in expected]
    right = [choice == each["answer"] for choice, each in zip(best, documents, strict=True)]
    assert 0 < sum(right) < len(right)
    assert results["choose"]["acc,none"] == pytest.approx(np.mean(right))


def test_one_answer(report, shipped, documents, expected):
    samples, results = report
    answers = [made[each["answer"]] for made, each in zip(expected, documents, strict=True)]
    for ((found,),), answer in zip(samples["continue"], answers, strict=True):
        assert_as_pytorch(shipped, found, answer)
    assert results["continue"]["acc,none"] == pytest.approx(np.mean([greedy for _, greedy, _ in answers]))


def test_whole_texts(report, shipped, documents, scored):
    """The first window begins with `<|endoftext|>`; those after it are full, and count what is new."""
    samples, results = report
    window, bits, size = CONTEXT - 2, 0.0, 0
    for ((found,),), document in zip(samples["roll"], documents, strict=True):
        ids = [shipped.tokenizer.eos_token_id, *shipped.ids(document["text"])]
        total, end = 0.0, 1
        while end < len(ids):
            new = min(window, len(ids) - end)
            end += new
            total += sum(logprob for logprob, _ in scored(ids[max(0, end - window - 1) : end], new))
        (logprob,) = found if isinstance(found, list) else [found]
        assert float(logprob) == pytest.approx(total, rel=0, abs=2 * shipped.logprob_noise * len(ids))
        bits, size = bits - total / np.log(2), size + len(document["text"].encode())
    assert results["roll"]["bits_per_byte,none"] == pytest.approx(bits / size, rel=1e-5)


def test_generated_texts(report, shipped):
    samples, _ = report
    expected = [shipped.decoded(shipped.generate(shipped.ids(question), 12)).split(".")[0] for question in QUESTIONS]
    assert [found for ((found,),) in samples["generate"]] == expected
