"""Every tokenizer that transformers reads in its fast form is read, and none adds anything after a text."""

import json
import shutil

import pytest
from json_files import edit
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer, BertTokenizerFast, GPT2LMHeadModel, PreTrainedTokenizerFast

import runtime
from export.checkpoint import find_checkpoint
from export.errors import ExportError
from export.pipeline import export_bundle

TEXT = "The old house stood at the end"
START, END = "<|endoftext|>", "Ġthe"  # any two tokens do


def add_template(checkpoint, make):
    """A post-processor made of (token, id) of START and of END."""
    path = str(checkpoint / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.post_processor = make(*((token, tokenizer.token_to_id(token)) for token in (START, END)))
    tokenizer.save(path)


def template(single):
    pair = f"{single} $B"
    return lambda *tokens: processors.TemplateProcessing(single=single, pair=pair, special_tokens=list(tokens))


TEMPLATES = {
    "template": template(f"{START} $A {END} {END}"),
    "template without a start": template(f"$A {END}"),
    "template with a start alone": template(f"{START} {START} $A"),
    "BERT's": lambda start, end: processors.BertProcessing(end, start),
    "RoBERTa's": lambda start, end: processors.RobertaProcessing(end, start),
    "a sequence": lambda start, end: processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), template(f"{START} $A {END}")(start, end)]
    ),
}
STARTS = {"template without a start": 0, "template with a start alone": 2}  # tokens; of the others 1


@pytest.mark.parametrize("kind", TEMPLATES)
def test_what_comes_before_a_text_stays_and_what_comes_after_goes(checkpoint, original, kind):
    add_template(checkpoint, TEMPLATES[kind])
    bare = AutoTokenizer.from_pretrained(original)(TEXT).input_ids
    theirs = AutoTokenizer.from_pretrained(checkpoint)(TEXT).input_ids
    found = find_checkpoint(str(checkpoint))
    ours = found.load_tokenizer()(TEXT).input_ids
    starts = STARTS.get(kind, 1)
    assert ours == theirs[: starts + len(bare)]  # transformers', up to the text's last token
    assert ours[starts:] == bare
    said = ["left out of its tokenizer: Ġthe after a text (a completion would begin after it)"]
    assert found.notes == (said if len(theirs) > len(ours) else [])


def test_a_template_that_is_no_template_is_left_alone(checkpoint, original):
    add_template(checkpoint, lambda *_: processors.ByteLevel(trim_offsets=False))
    found = find_checkpoint(str(checkpoint))
    assert found.load_tokenizer()(TEXT).input_ids == AutoTokenizer.from_pretrained(original)(TEXT).input_ids
    assert found.notes == []


@pytest.fixture(scope="module")
def begun(original, tmp_path_factory):
    """(checkpoint, bundle) whose texts begin with a token, and ended with one."""
    folder = shutil.copytree(original, tmp_path_factory.mktemp("begun") / "checkpoint")
    add_template(folder, TEMPLATES["template"])
    export_bundle(str(folder), folder.parent / "bundle")
    return folder, folder.parent / "bundle"


def test_its_bundle_completes_as_transformers_does_after_the_text(begun):
    checkpoint, bundle = begun
    model = GPT2LMHeadModel.from_pretrained(checkpoint)
    inputs = AutoTokenizer.from_pretrained(checkpoint)(TEXT, return_tensors="pt").input_ids[:, :-2]
    options = {"attention_mask": inputs >= 0, "eos_token_id": None, "pad_token_id": 0}  # the start's id is the pad's
    said = model.generate(inputs, do_sample=False, max_new_tokens=12, **options)
    found = runtime.load(bundle).complete(TEXT, max_new_tokens=12, ignore_eos=True)
    assert list(found.token_ids) == said[0, inputs.shape[1] :].tolist()
    assert found.prompt_tokens == inputs.shape[1]
    assert AutoTokenizer.from_pretrained(bundle)(TEXT).input_ids == inputs[0].tolist()


def test_a_session_begins_once(begun):
    model = runtime.load(begun[1])
    with model.session() as session:
        first = session.complete(TEXT, max_new_tokens=4, ignore_eos=True)
        second = session.complete(" and then", max_new_tokens=4, ignore_eos=True)
        whole = f"{TEXT}{first} and then"
        assert second == model.complete(whole, max_new_tokens=4, ignore_eos=True)
        assert session.text == f"{whole}{second}"
        assert session.token_ids.count(model.encode("")[0]) == 1
        session.rewind(4)
        assert session.text == whole
        assert session.complete(max_new_tokens=4, ignore_eos=True) == second
    assert model.complete("", max_new_tokens=2, ignore_eos=True).prompt_tokens == 1


def test_a_tokenizer_saved_by_transformers_5_is_read(checkpoint, original):
    (checkpoint / "special_tokens_map.json").unlink(missing_ok=True)
    (checkpoint / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "backend": "tokenizers",
                "tokenizer_class": "TokenizersBackend",
                "extra_special_tokens": ["Ġold", "Ġhouse"],
                "is_local": True,
                "bos_token": START,
                "eos_token": START,
                "model_max_length": 96,
            }
        )
    )
    found = find_checkpoint(str(checkpoint)).load_tokenizer()
    assert isinstance(found, PreTrainedTokenizerFast)
    assert found(TEXT).input_ids == AutoTokenizer.from_pretrained(original)(TEXT).input_ids
    assert {"Ġold", "Ġhouse"} <= {*found.all_special_tokens}
    assert found.eos_token == START


@pytest.mark.parametrize("name", ["NoSuchTokenizer", "GPT2Model", "CTRLTokenizer", 5, ["GPT2Tokenizer"]])
def test_tokenizer_json_serves_whatever_class_is_named(checkpoint, original, name):
    edit(checkpoint / "tokenizer_config.json", tokenizer_class=name)
    found = find_checkpoint(str(checkpoint)).load_tokenizer()
    assert found(TEXT).input_ids == AutoTokenizer.from_pretrained(original)(TEXT).input_ids
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(ExportError, match=r"tokenizer_class .* has no fast form in transformers, and there is no tok"):
        find_checkpoint(str(checkpoint))


def test_the_vocabulary_of_another_class_is_read_by_its_own_file_names(checkpoint):
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json"):
        (checkpoint / name).unlink(missing_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "old", "house", "##s"]
    (checkpoint / "vocab.txt").write_text("\n".join(words))
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    found = find_checkpoint(str(checkpoint))
    theirs = BertTokenizerFast.from_pretrained(checkpoint)("the old houses").input_ids
    assert found.load_tokenizer()("the old houses").input_ids == theirs[:-1] == [2, 5, 6, 7, 8]
    assert found.notes == ["left out of its tokenizer: [SEP] after a text (a completion would begin after it)"]


def test_an_id_beyond_wte_is_named_though_the_vocabulary_is_small(checkpoint):
    path = checkpoint / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"].append(
        {"id": 9000, "content": "<far>", "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    )
    content["model"]["vocab"].pop("Ġthirteen", None)
    path.write_text(json.dumps(content))
    found = find_checkpoint(str(checkpoint))
    with pytest.raises(ExportError, match=r"tokenizer has the id \d,\d+ \('<far>'\), but wte has only 8,192 rows"):
        found.load_tokenizer()


def test_dropout_is_left_out_and_said(checkpoint, original):
    path = checkpoint / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["dropout"] = 0.5
    path.write_text(json.dumps(content))
    found = find_checkpoint(str(checkpoint))
    ours = found.load_tokenizer()
    expected = AutoTokenizer.from_pretrained(original)(TEXT).input_ids
    assert all(ours(TEXT).input_ids == expected for _ in range(20))
    assert found.notes == ["left out of its tokenizer: BPE's dropout of 0.5 (the ids of a text would be random)"]


@pytest.mark.parametrize(
    ("name", "part", "words"),
    [
        (
            "normalizer",
            {"type": "Precompiled", "precompiled_charsmap": "/P///wAAAAAAAAAA"},
            "'Precompiled' is not one of",
        ),
        ("pre_tokenizer", {"type": "FixedLength", "length": 0}, "'FixedLength' is not one of"),
        ("normalizer", {"type": "Replace", "pattern": {"String": ""}, "content": "x"}, "which may not end"),
        (
            "pre_tokenizer",
            {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
            "which may not end",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_part_that_the_runtime_would_refuse_is_refused_by_name(checkpoint, name, part, words):
    edit(checkpoint / "tokenizer.json", **{name: part})
    with pytest.raises(ExportError, match=words):
        find_checkpoint(str(checkpoint)).load_tokenizer()


REALISTIC = {
    "Llama's, as many fine-tunes have it": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
    },
    "GPT-2's words, spelled out": {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {
                        "Regex": "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
                    },
                    "behavior": "Isolated",
                    "invert": False,
                },
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        }
    },
    "spaces made one": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFKC"},
                {"type": "Lowercase"},
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
                {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "},
                {"type": "Replace", "pattern": {"Regex": "[\u201c\u201d]"}, "content": '"'},
            ],
        }
    },
}


@pytest.mark.parametrize("kind", REALISTIC)
def test_what_fine_tunes_use_is_read(checkpoint, kind):
    edit(checkpoint / "tokenizer.json", **REALISTIC[kind])
    expected = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(TEXT).ids
    assert find_checkpoint(str(checkpoint)).load_tokenizer()(TEXT).input_ids == expected


def test_a_damaged_tokenizer_is_one_line(checkpoint):
    (checkpoint / "tokenizer.json").write_text('{"model": 5}')
    with pytest.raises(ExportError, match="its tokenizer cannot be loaded") as refused:
        find_checkpoint(str(checkpoint)).load_tokenizer()
    assert "\n" not in str(refused.value)
