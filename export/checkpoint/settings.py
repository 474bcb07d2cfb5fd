"""Reads config.json and generation_config.json: keeps the fields that are understood, and notes what is left out."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig, GPT2Config

from export.architecture import Given, check_config, make_config
from export.checkpoint.staging import StagingFolder
from export.errors import ExportError

CONFIG, GENERATION = "config.json", "generation_config.json"
CODE = {"auto_map", "custom_pipelines", "custom_generate"}  # fields that name Python files of the checkpoint
KERNELS = {"_attn_implementation", "_attn_implementation_internal", "attn_implementation", "experts_implementation"}
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
OF_BOTH = {
    *IDS,
    "use_cache",
    "decoder_start_token_id",
    "output_attentions",
    "output_hidden_states",
    "transformers_version",
}
SAMPLING_FIELDS = {*GPT2Config().to_dict(), *GenerationConfig().to_dict()} & {*GenerationConfig().to_dict()} - OF_BOTH
DECIDING = ("do_sample", "num_beams", "num_beam_groups")  # whether others are valid depends on these
UNCHOSEN = 50256  # GPT2Config's default bos and eos, which a config with a small vocabulary inherits


@dataclass(frozen=True)
class Settings:
    """The checked content of the two files; `generation` is written to generation_config.json."""

    config: GPT2Config
    generation: dict[str, Any]
    notes: tuple[str, ...]


def read_settings(staging: StagingFolder) -> Settings:
    """Read and check both files; ExportError if they are not a GPT-2's, or name ids without a row in `wte`."""
    content = staging.read_json(CONFIG)
    if content is None:
        raise ExportError(f"{staging.name} is not a checkpoint: it has no config.json")
    ours, sampling, code = split(content)
    staging.write_json(CONFIG, ours)
    fields = check_config(staging.name, ours)
    given = staging.read_json(GENERATION)
    wanted = given if given is not None else {**own_ids(fields), **sampling}
    generation, dropped = valid_part(wanted)
    notes = list(check_ids(staging.name, fields, generation))
    if dropped:
        source = CONFIG if given is None else GENERATION
        notes.append(f"left out of its {source}: {', '.join(dropped)} (invalid for transformers)")
    if code:
        notes.append(f"left out of its config.json: {', '.join(code)} (code from a checkpoint never runs)")
    return Settings(make_config(staging.name, ours), generation, tuple(notes))


def own_ids(config: Given) -> dict[str, Any]:
    return {name: value for name in IDS if (value := getattr(config, name)) is not None}


def split(content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """(fields of the architecture, fields of generation, names of fields that would run code)."""
    methods = {name for name in content if callable(getattr(GPT2Config, name, None))}
    code = sorted(CODE.intersection(content))
    sampling = {name: value for name, value in content.items() if name in SAMPLING_FIELDS and value is not None}
    ours = {k: v for k, v in content.items() if k not in {*CODE, *KERNELS, *methods, *SAMPLING_FIELDS}}
    return ours, sampling, code


def valid_part(fields: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The fields that together make a valid GenerationConfig, and the names of the rest."""
    methods = {name for name in fields if name in CODE or callable(getattr(GenerationConfig, name, None))}
    wanted = {name: value for name, value in fields.items() if name not in methods}
    if is_valid(wanted):
        return wanted, sorted(methods)
    kept: dict[str, Any] = {}
    for name in sorted(wanted, key=deciding_first):
        if is_valid({**kept, name: wanted[name]}):
            kept[name] = wanted[name]
    return kept, sorted({*fields} - {*kept})


def deciding_first(name: str) -> tuple[bool, str]:
    return name not in DECIDING, name


def is_valid(fields: Mapping[str, Any]) -> bool:
    try:
        GenerationConfig(**fields).validate(strict=True)
    except Exception:  # any type of any field may be wrong
        return False
    return True


def check_ids(name: str, config: Given, generation: dict[str, Any]) -> Iterator[str]:
    """A note on each id without a row in `wte`; ExportError if the runtime uses it and it is not a default."""
    for field in IDS:
        stray = [*strays(generation.get(field), config), *strays(getattr(config, field, None), config)]
        if not stray:
            continue
        if field != "pad_token_id" and not only_unchosen(stray):
            last = config.vocab_size - 1
            raise ExportError(f"{name}: {field} must be from 0 to {last:,} (the rows of wte), got {stray[0]!r}")
        yield f"its {field}, {stray[0]!r}, has no row in wte ({config.vocab_size:,} rows) and is never used"


def strays(value: object, config: Given) -> list[object]:
    """The ids in `value` (an id, a list of ids or None) that have no row in `wte`."""
    values: Iterable[object] = () if value is None else value if isinstance(value, list) else (value,)
    return [one for one in values if type(one) is not int or not 0 <= one < config.vocab_size]


def only_unchosen(stray: Collection[object]) -> bool:
    return all(one == UNCHOSEN for one in stray)
