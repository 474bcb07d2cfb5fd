"""Loads a checkpoint's tokenizer in its fast form, and removes what it would add after a text."""

import inspect
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer
from transformers import GPT2Config, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from export.checkpoint.staging import StagingFolder
from export.errors import ExportError, first_line
from export.majors import REBUILDS
from runtime.bundle.tokenizer_parts import check_tokenizer

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
OF_EVERY_CLASS = (TOKENIZER, SPECIAL_TOKENS, "added_tokens.json", "chat_template.jinja")
VERSIONED = re.compile(r"tokenizer\.\d[\w.]*\.json")
READ = {".json", ".txt", ".model", ".bpe", ".spm", ".vocab", ".tiktoken"}  # a vocabulary may be a pickle elsewhere
PATHS = re.compile(r".*_files?")  # settings that name files to read
OF_LOADING = {"backend", "is_local", "local_files_only", "name_or_path"}
UNREAD = {"auto_map", "tokenizer_object", "add_eos_token", "vocab", "merges", *OF_LOADING}
PROBES = ("It was", "\u4e00", "1")


def tokenizer_files(config: GPT2Config | None, settings: dict[str, Any]) -> list[str]:
    """The names of all files that `from_pretrained` may read for the tokenizer."""
    known = vocabulary_files(fast_class(class_name(config, settings)))
    return [TOKENIZER_CONFIG, *OF_EVERY_CLASS, *versioned(settings), *known]


def class_name(config: GPT2Config | None, settings: dict[str, Any]) -> str:
    return str(settings.get("tokenizer_class") or getattr(config, "tokenizer_class", None) or "GPT2Tokenizer")


def fast_class(name: str) -> type[PreTrainedTokenizerFast] | None:
    """transformers' fast class of a name; None if it has none, as transformers 4 for names from 5."""
    for candidate in (name, f"{name}Fast"):
        try:
            found = tokenizer_class_from_name(candidate)
        except ImportError:  # of a library that only the slow form needs
            continue
        if isinstance(found, type) and issubclass(found, PreTrainedTokenizerFast):
            return found
    return None


def vocabulary_files(kind: type[PreTrainedTokenizerFast] | None) -> list[str]:
    names = [] if kind is None else [str(name) for name in kind.vocab_files_names.values()]
    return [name for name in names if Path(name).suffix in READ and name != TOKENIZER]


def needed_files(kind: type[PreTrainedTokenizerFast]) -> list[str]:
    """What a class reads where there is no tokenizer.json; transformers 5 would go on without, with an empty one."""
    return [
        str(kind.vocab_files_names[part]) for part in ("vocab_file", "merges_file") if part in kind.vocab_files_names
    ]


def versioned(settings: dict[str, Any]) -> list[str]:
    """The versions of tokenizer.json for particular releases of transformers."""
    given = settings.get("fast_tokenizer_files")
    return [name for name in given if VERSIONED.fullmatch(str(name))] if isinstance(given, list) else []


def stage_tokenizer(staging: StagingFolder, config: GPT2Config) -> type[PreTrainedTokenizerFast]:
    """Stage the tokenizer's files; return the class that reads them."""
    settings = staging.read_json(TOKENIZER_CONFIG) or {}
    staging.add(name for name in tokenizer_files(config, settings) if name != TOKENIZER_CONFIG)
    name = class_name(config, settings)
    found = fast_class(name)
    kind = PreTrainedTokenizerFast if found is None or (REBUILDS and staging.has(TOKENIZER)) else found
    content = {**cleaned(settings), "tokenizer_class": common_name(found)}
    if found and found is not kind:
        content.pop("add_bos_token", None)  # the file's post-processor says that, and would be replaced
        given = staging.read_json(SPECIAL_TOKENS) or {}
        content = {part: token for part, token in special_tokens(found).items() if part not in given} | content
    staging.write_json(TOKENIZER_CONFIG, content)
    if found is None and not staging.has(TOKENIZER):
        raise ExportError(
            f"{staging.name}: its tokenizer cannot be loaded: tokenizer_class {name!r} has no fast form in "
            f"transformers, and there is no {TOKENIZER}"
        )
    lacking = [] if staging.has(TOKENIZER) else [name for name in needed_files(kind) if not staging.has(name)]
    if lacking:
        raise ExportError(
            f"{staging.name}: its tokenizer cannot be loaded: there is neither {TOKENIZER} nor {' nor '.join(lacking)}"
        )
    return kind


def special_tokens(kind: type[PreTrainedTokenizerFast]) -> dict[str, str]:
    """The special tokens that a class has where no file names others."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    return {
        part.name: part.default for part in parameters if part.name.endswith("_token") and type(part.default) is str
    }


def common_name(kind: type[PreTrainedTokenizerFast] | None) -> str:
    """The name by which transformers 4 and 5 both know a class."""
    if kind is None or kind is PreTrainedTokenizerFast:
        return "PreTrainedTokenizerFast"
    return kind.__name__.removesuffix("Fast")


def cleaned(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without code and paths, under names that transformers 4 and 5 read."""
    kept = {name: value for name, value in settings.items() if name not in UNREAD and not PATHS.fullmatch(name)}
    if isinstance(extra := kept.get("extra_special_tokens"), list):  # transformers 5's name
        kept["additional_special_tokens"] = [*kept.get("additional_special_tokens", []), *extra]
        del kept["extra_special_tokens"]
    return {**kept, "fast_tokenizer_files": names} if (names := versioned(settings)) else kept


def load_tokenizer(
    name: str, folder: Path, kind: type[PreTrainedTokenizerFast], config: GPT2Config
) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """The tokenizer, and notes; ExportError if it cannot be read, or has ids without a row in `wte`."""
    check_staged(name, folder)
    try:
        tokenizer = kind.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise ExportError(f"{name}: its tokenizer cannot be loaded: {first_line(error)}") from None
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1], default=("", -1))
    if largest >= config.vocab_size:
        raise ExportError(
            f"{name}: its tokenizer has the id {largest:,} ({token!r}), but wte has only {config.vocab_size:,} rows"
        )
    if not tokenizer.get_vocab():
        raise ExportError(f"{name}: its tokenizer has no tokens")
    notes = [without_dropout(tokenizer.backend_tokenizer)]
    check_parts(name, json.loads(tokenizer.backend_tokenizer.to_str()))
    after = ", ".join(end_with_the_text(name, tokenizer.backend_tokenizer))
    told = f"left out of its tokenizer: {after} after a text (a completion would begin after it)"
    return cast(PreTrainedTokenizerBase, tokenizer), [*filter(None, notes), *([told] if after else [])]


def check_staged(name: str, folder: Path) -> None:
    """Check each tokenizer.json before the library reads it: some parts of one would abort the process."""
    for path in folder.glob("tokenizer*.json"):
        if path.name == TOKENIZER or VERSIONED.fullmatch(path.name):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError) as error:
                raise ExportError(f"{name}: its tokenizer cannot be loaded: {first_line(error)}") from None
            check_parts(name, content)


def check_parts(name: str, content: Any) -> None:
    """Raise ExportError for a part that the runtime would not read; dropout is left out later."""
    try:
        model = content["model"]
        check_tokenizer({**content, "model": {**model, "dropout": None}})
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ExportError(f"{name}: its tokenizer cannot be loaded: {first_line(error)}") from None


def without_dropout(tokenizer: Tokenizer) -> str | None:
    """Stop `tokenizer`, in place, from leaving out merges at random; return what is said of it."""
    dropout = getattr(tokenizer.model, "dropout", None)
    if not dropout:
        return None
    tokenizer.model.dropout = None
    return f"left out of its tokenizer: BPE's dropout of {dropout:g} (the ids of a text would be random)"


def end_with_the_text(name: str, tokenizer: Tokenizer) -> list[str]:
    """Stop `tokenizer`, in place, from adding tokens after a text; return those tokens.

    Tokens that it adds before a text stay: the model was trained with them.
    """
    added = trailing(tokenizer)
    if added:
        state = json.loads(tokenizer.to_str())
        state["post_processor"] = leading_only(state["post_processor"])
        tokenizer.post_processor = Tokenizer.from_str(json.dumps(state)).post_processor
        if trailing(tokenizer):
            raise ExportError(f"{name}: its tokenizer adds {', '.join(added)} after a text, which cannot be left out")
    return added


def trailing(tokenizer: Tokenizer) -> list[str]:
    """The tokens that `tokenizer` adds after a text."""
    for text in PROBES:
        bare = tokenizer.encode(text, add_special_tokens=False).ids
        tokens, ids = (found := tokenizer.encode(text)).tokens, found.ids
        starts = [start for start in range(len(ids) - len(bare) + 1) if ids[start : start + len(bare)] == bare]
        if bare and starts and starts[-1] + len(bare) < len(ids):
            return list(dict.fromkeys(tokens[starts[-1] + len(bare) :]))
    return []


def leading_only(processor: dict[str, Any]) -> dict[str, Any]:
    """A post-processor of tokenizer.json, changed to add nothing after a text."""
    kind = processor.get("type")
    if kind == "Sequence":
        return {**processor, "processors": [leading_only(part) for part in processor["processors"]]}
    if kind in ("BertProcessing", "RobertaProcessing"):
        token, token_id = processor["cls"]
        special = {token: {"id": token, "ids": [token_id], "tokens": [token]}}
        single = [piece("SpecialToken", token), piece("Sequence", "A")]
        pair = [*single, piece("Sequence", "B", 1)]
        return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}
    if kind == "TemplateProcessing":
        return {**processor, **{name: up_to_the_text(processor[name]) for name in ("single", "pair")}}
    return processor


def piece(kind: str, name: str, type_id: int = 0) -> dict[str, Any]:
    return {kind: {"id": name, "type_id": type_id}}


def up_to_the_text(pieces: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    found = list(pieces)
    last = max((n for n, part in enumerate(found) if "Sequence" in part), default=-1)
    return found[: last + 1]
