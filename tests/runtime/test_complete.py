"""Completions: PyTorch's tokens from a prompt's text, where a text ends, and what the callers' options do."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from fakes import SERVED

import runtime

# what PyTorch says


def test_every_probe_gives_pytorchs_tokens(model, probes):
    for probe in probes:
        completion = model.complete(probe.prompt, max_new_tokens=len(probe.token_ids))
        assert completion.token_ids == probe.token_ids
        assert completion.text == probe.text
        assert completion.prompt_tokens == len(probe.prompt_ids)
        assert completion.finish_reason == "length"


def test_the_module_function_gives_the_same(bundle, probe):
    completion = runtime.complete(probe.prompt, model=bundle, max_new_tokens=len(probe.token_ids))
    assert completion.token_ids == probe.token_ids
    assert completion.text == probe.text


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_changes_no_token(bundle, probe, threads):
    model = runtime.load(bundle, threads=threads)
    assert model.complete(probe.prompt, max_new_tokens=len(probe.token_ids)).token_ids == probe.token_ids


# what a completion is


def test_a_completion_is_frozen(model, probe):
    completion = model.complete(probe.prompt, max_new_tokens=1)
    with pytest.raises(FrozenInstanceError):
        completion.text = "other"


def test_a_completion_as_a_string_is_its_text(model, probe):
    completion = model.complete(probe.prompt, max_new_tokens=8)
    assert str(completion) == f"{completion}" == completion.text


def test_the_text_is_the_continuation_alone(model, probe, vocabulary):
    completion = model.complete(probe.prompt, max_new_tokens=8)
    whole = vocabulary.decode([*probe.prompt_ids, *probe.token_ids[:8]], skip_special_tokens=False)
    assert probe.prompt + completion.text == whole


def test_the_default_is_64_tokens(endless, probe, context):
    assert len(endless.complete(probe.prompt).token_ids) == min(64, context - len(probe.prompt_ids))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_max_new_tokens_ends_a_text_with_length(model, probe, count):
    completion = model.complete(probe.prompt, max_new_tokens=count)
    assert completion.token_ids == probe.token_ids[:count]
    assert completion.finish_reason == "length"


# the context


@pytest.mark.parametrize("count", [4, 64, 10**30])
def test_the_end_of_the_context_ends_a_text_with_length(endless, exactly, context, count):
    completion = endless.complete(exactly(context - 3), max_new_tokens=count)
    assert len(completion.token_ids) == 3
    assert completion.prompt_tokens == context - 3
    assert completion.finish_reason == "length"


def test_a_prompt_that_leaves_one_place_gets_one_token(endless, exactly, context):
    completion = endless.complete(exactly(context - 1), max_new_tokens=64)
    assert len(completion.token_ids) == 1
    assert completion.finish_reason == "length"


@pytest.mark.parametrize("over", [0, 5, 100])
def test_a_prompt_that_leaves_no_place_is_refused_with_both_counts(model, exactly, context, refusal, over):
    message = refusal(ValueError, model.complete, exactly(context + over))
    assert "prompt" in message
    assert f"{context - 1:,}" in message
    assert f"{context + over:,}" in message


def test_a_refused_prompt_leaves_the_model_as_it_was(model, probe, exactly, context, refusal):
    refusal(ValueError, model.complete, exactly(context))
    assert model.complete(probe.prompt, max_new_tokens=16).token_ids == probe.token_ids[:16]


# the empty prompt


def test_an_empty_prompt_starts_from_the_end_of_text(model):
    completion = model.complete("", max_new_tokens=8)
    assert completion.prompt_tokens == 1
    assert completion.token_ids == model.complete("<|endoftext|>", max_new_tokens=8).token_ids


def test_an_empty_prompt_starts_from_the_id_that_the_checkpoint_names(bundle_copy, vocabulary):
    bundle_copy.configure(bos_token_id=vocabulary.token_to_id("A"))
    model = runtime.load(bundle_copy.folder)
    assert model.complete("", max_new_tokens=8).token_ids == model.complete("A", max_new_tokens=8).token_ids


def test_an_empty_prompt_is_refused_where_nothing_is_named(bundle_copy, refusal):
    bundle_copy.configure(bos_token_id=None)
    message = refusal(ValueError, runtime.load(bundle_copy.folder).complete, "")
    assert "prompt" in message
    assert "empty" in message


# the end of a text


def test_a_stop_id_ends_a_text_and_is_not_in_it(stopping, probe, turn, vocabulary):
    completion = stopping(probe.token_ids[turn]).complete(probe.prompt, max_new_tokens=len(probe.token_ids))
    assert completion.token_ids == probe.token_ids[: turn + 1]
    assert completion.text == vocabulary.decode(list(probe.token_ids[:turn]))
    assert completion.finish_reason == "stop"


def test_any_of_several_stop_ids_ends_a_text(stopping, probe, turn, end_of_text):
    completion = stopping([end_of_text, probe.token_ids[turn]]).complete(probe.prompt, max_new_tokens=64)
    assert completion.token_ids == probe.token_ids[: turn + 1]
    assert completion.finish_reason == "stop"


def test_a_text_that_ends_at_once_is_empty(stopping, probe):
    completion = stopping(probe.token_ids[0]).complete(probe.prompt)
    assert completion == runtime.Completion("", probe.token_ids[:1], "stop", len(probe.prompt_ids))


def test_a_stop_id_as_the_last_allowed_token_is_a_stop(stopping, probe, turn):
    completion = stopping(probe.token_ids[turn]).complete(probe.prompt, max_new_tokens=turn + 1)
    assert completion.token_ids == probe.token_ids[: turn + 1]
    assert completion.finish_reason == "stop"


def test_a_text_cut_before_its_stop_id_has_its_length(stopping, probe, turn):
    completion = stopping(probe.token_ids[turn]).complete(probe.prompt, max_new_tokens=turn)
    assert completion.token_ids == probe.token_ids[:turn]
    assert completion.finish_reason == "length"


def test_the_next_text_after_a_stop_is_whole(stopping, probes, probe, turn):
    model = stopping(probe.token_ids[turn])
    model.complete(probe.prompt)
    for other in probes:
        if probe.token_ids[turn] not in other.token_ids[:5]:
            assert model.complete(other.prompt, max_new_tokens=5).token_ids == other.token_ids[:5]


# options


@pytest.mark.parametrize("call", ["runtime.complete", "model.complete", "runtime.load"])
def test_options_are_keyword_only(model, bundle, call):
    function = {"runtime.complete": runtime.complete, "model.complete": model.complete, "runtime.load": runtime.load}
    with pytest.raises(TypeError, match="positional argument"):
        function[call](str(bundle), 8)


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_out_of_their_range_are_refused(bundle, refusal, threads):
    message = refusal(ValueError, runtime.load, bundle, threads=threads)
    assert "threads" in message
    assert "at least 1" in message
    assert str(threads) in message


@pytest.mark.parametrize("threads", [True, 1.5, "2"])
def test_threads_of_another_type_are_refused(bundle, refusal, threads):
    message = refusal(TypeError, runtime.load, bundle, threads=threads)
    assert "threads" in message
    assert "integer" in message
    assert repr(threads) in message


def test_threads_that_no_machine_has_are_refused(bundle, refusal):
    message = refusal(ValueError, runtime.load, bundle, threads=2**40)
    assert "threads" in message
    assert str(2**40) in message


@pytest.mark.parametrize("device", ["gpu", "CPU", "", None, 0, "cuda:", "cuda:-1", "cuda:one", "cuda:0 ", "cuda:99999"])
def test_a_device_that_does_not_exist_is_refused(bundle, refusal, device):
    for call in (runtime.load, lambda folder, device: runtime.complete("x", model=folder, device=device)):
        message = refusal(ValueError, call, bundle, device=device)
        assert "device" in message
        assert "'auto', 'cpu', 'cuda' or 'cuda:N'" in message
        assert repr(device) in message


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_model_says_where_it_runs(bundle, device):
    assert runtime.load(bundle, device=device, verify=False).device == "cpu"


# which model


def test_a_string_names_a_model_as_well_as_a_path(bundle):
    assert runtime.load(str(bundle)).bundle.folder == runtime.load(bundle).bundle.folder


def test_the_environment_names_the_model(bundle, probe, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPT2_ONNX_MODEL", str(bundle))
    assert runtime.complete(probe.prompt, max_new_tokens=3).token_ids == probe.token_ids[:3]
    assert runtime.load().bundle.folder == bundle


def test_the_argument_is_asked_before_the_environment(bundle, probe, monkeypatch, tmp_path):
    monkeypatch.setenv("GPT2_ONNX_MODEL", str(tmp_path / "nothing"))
    assert runtime.complete(probe.prompt, model=bundle, max_new_tokens=3).token_ids == probe.token_ids[:3]
    assert runtime.load(bundle).bundle.folder == bundle


def test_the_environment_is_asked_before_the_current_folder(bundle_copy, refusal, monkeypatch, tmp_path):
    (tmp_path / "models").mkdir()
    bundle_copy.folder.rename(tmp_path / "models" / "gpt2")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPT2_ONNX_MODEL", str(tmp_path / "nothing"))
    assert "nothing" in refusal(runtime.BundleError, runtime.load)


def test_the_current_folder_has_the_model_under_models_gpt2(bundle_copy, probe, monkeypatch, tmp_path):
    (tmp_path / "models").mkdir()
    bundle_copy.folder.rename(tmp_path / "models" / "gpt2")
    monkeypatch.chdir(tmp_path)
    assert runtime.complete(probe.prompt, max_new_tokens=3).token_ids == probe.token_ids[:3]
    assert runtime.load().complete(probe.prompt, max_new_tokens=3).token_ids == probe.token_ids[:3]


@pytest.mark.parametrize("call", [lambda: runtime.complete("x"), runtime.load], ids=["complete", "load"])
def test_no_model_anywhere_is_an_error_that_names_the_export_command(call, refusal, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    message = refusal(runtime.BundleError, call)
    assert "python -m export" in message
    assert str(Path("models", "gpt2")) in message


def test_the_current_folder_is_looked_at_in_each_call(bundle_copy, probe, refusal, monkeypatch, tmp_path):
    (tmp_path / "models").mkdir()
    bundle_copy.folder.rename(tmp_path / "models" / "gpt2")
    monkeypatch.chdir(tmp_path)
    runtime.complete(probe.prompt, max_new_tokens=1)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    refusal(runtime.BundleError, runtime.complete, probe.prompt)


def test_the_model_of_the_module_function_is_loaded_once_and_kept(bundle_copy, probe):
    first = runtime.complete(probe.prompt, model=bundle_copy.folder, max_new_tokens=5)
    for name in ("manifest.json", "tokenizer.json", SERVED):
        (bundle_copy.folder / name).unlink()
    again = runtime.complete(probe.prompt, model=str(bundle_copy.folder), max_new_tokens=5)
    assert again == first
    assert again.token_ids == probe.token_ids[:5]


def test_a_model_that_could_not_be_loaded_is_tried_again(bundle_copy, probe, refusal):
    manifest = bundle_copy.read("manifest.json")
    bundle_copy.write("manifest.json", b"{")
    refusal(runtime.BundleError, runtime.complete, probe.prompt, model=bundle_copy.folder)
    bundle_copy.write("manifest.json", manifest)
    completion = runtime.complete(probe.prompt, model=bundle_copy.folder, max_new_tokens=5)
    assert completion.token_ids == probe.token_ids[:5]


# several threads


def test_eight_threads_at_once_get_what_one_after_the_other_gets(model, probes):
    lengths = [5, 9, 14, 20, 27, 35, 44, 54]
    work = [(probes[n % len(probes)], lengths[n % 8]) for n in range(24)]
    together = threading.Barrier(8)

    def complete(task):
        probe, length = task
        together.wait(timeout=60)
        return model.complete(probe.prompt, max_new_tokens=length).token_ids

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(complete, work))
    assert found == [probe.token_ids[:length] for probe, length in work]


def test_threads_that_ask_for_the_same_model_first_get_it_loaded_once(bundle_copy, probe, monkeypatch):
    loads, load = [], runtime.api.load
    monkeypatch.setattr(runtime.api, "load", lambda *args, **kw: loads.append(args) or load(*args, **kw))
    together = threading.Barrier(4)

    def complete(_):
        together.wait(timeout=60)
        return runtime.complete(probe.prompt, model=bundle_copy.folder, max_new_tokens=3).token_ids

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(complete, range(4))) == [probe.token_ids[:3]] * 4
    assert len(loads) == 1
