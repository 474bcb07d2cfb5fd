"""Which GPT-2 configs are supported: a field that changes the arithmetic is honoured or refused by name."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from transformers import GPT2Config

from export.errors import ExportError, first_line
from runtime.bundle.architecture import LARGEST, Architecture
from runtime.bundle.json_files import shown

# The node that computes each activation function that GPT-2 checkpoints name. gelu_fast, gelu_accurate and
# gelu_pytorch_tanh are other ways to write gelu_new's tanh approximation.
ACTIVATIONS = {
    "gelu_new": "FastGelu",
    "gelu_fast": "FastGelu",
    "gelu_accurate": "FastGelu",
    "gelu_pytorch_tanh": "FastGelu",
    "gelu": "Gelu",
    "gelu_python": "Gelu",
    "relu": "Relu",
    "tanh": "Tanh",
    "silu": "Silu",
    "swish": "Silu",
}
CLASSES = {"GPT2LMHeadModel", "GPT2Model", "GPT2DoubleHeadsModel"}
HEAD_SIZE_STEP = 8
MOST_LABELS = 10_000
WTE = "transformer.wte.weight"
LM_HEAD = "lm_head.weight"


class Given(SimpleNamespace):
    """GPT-2's fields as a config.json gives them, of whatever type, under GPT-2's own names; absent ones by default."""


def check_config(name: str, content: dict[str, Any]) -> Given:
    """The fields in a config.json; ExportError for the first that the graphs do not support."""
    if content.get("model_type") != "gpt2":
        raise ExportError(f"{name}: model_type must be 'gpt2', got {content.get('model_type')!r}")
    own = {GPT2Config.attribute_map.get(field, field): value for field, value in content.items()}
    given = Given(**{**GPT2Config().to_dict(), **own})
    for problem in problems(given):
        raise ExportError(f"{name}: {problem}")
    return given


def make_config(name: str, content: dict[str, Any]) -> GPT2Config:
    """The config of checked fields; ExportError if transformers cannot read another of them."""
    try:
        return GPT2Config.from_dict(content)
    except Exception as error:  # any type of any field may be wrong
        raise ExportError(f"{name}: its config.json cannot be read: {first_line(error)}") from None


def problems(config: Given) -> Iterator[str]:
    classes = config.architectures or ["GPT2LMHeadModel"]
    if not isinstance(classes, list) or not CLASSES.intersection(map(str, classes)):
        got = ", ".join(map(str, classes)) if isinstance(classes, list) else shown(classes)
        yield f"architectures must be one of {', '.join(sorted(CLASSES))}, got {got}"
    if not isinstance(config.activation_function, str) or config.activation_function not in ACTIVATIONS:
        yield f"activation_function must be one of {', '.join(ACTIVATIONS)}, got {config.activation_function!r}"
    for field in ("add_cross_attention", "is_encoder_decoder", "pruned_heads", "quantization_config"):
        if value := getattr(config, field, None):
            yield f"{field} is not supported, got {value!r}"
    sizes = {field: getattr(config, field) for field in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")}
    for field, value in sizes.items():
        least = 2 if field == "vocab_size" else 1
        if type(value) is not int or value < least:
            yield f"{field} must be an integer of at least {least}, got {shown(value)}"
    most = {**LARGEST, "num_labels": MOST_LABELS}  # transformers gives each label a name
    for field in most:
        value = getattr(config, field, None)
        if isinstance(value, int | float) and not value <= most[field]:
            yield f"{field} must be at most {most[field]:,}, got {shown(value)}"
    if not isinstance(config.layer_norm_epsilon, float | int) or not 0 < config.layer_norm_epsilon < 1:
        yield f"layer_norm_epsilon must be a number between 0 and 1, got {config.layer_norm_epsilon!r}"
    if config.n_inner is not None and (type(config.n_inner) is not int or config.n_inner < 1):
        yield f"n_inner must be an integer of at least 1, or null, got {config.n_inner!r}"
    if config.n_embd % config.n_head or (config.n_embd // config.n_head) % HEAD_SIZE_STEP:
        yield f"n_embd / n_head must be a multiple of {HEAD_SIZE_STEP}, got {config.n_embd} / {config.n_head}"


def describe(config: GPT2Config, parameters: int) -> Architecture:
    return Architecture(
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_embd=config.n_embd,
        n_inner=inner_size(config),
        n_positions=config.n_positions,
        vocab_size=config.vocab_size,
        activation_function=config.activation_function,
        tie_word_embeddings=config.tie_word_embeddings,
        parameters=parameters,
    )


def start_id(config: GPT2Config) -> int:
    """The id that a text sampled from the model begins with."""
    return config.bos_token_id if config.bos_token_id in range(config.vocab_size) else 0


def head_weight(config: GPT2Config) -> str:
    """The name of the weights [V, C] that the last hidden states are multiplied with."""
    return WTE if config.tie_word_embeddings else LM_HEAD


def inner_size(config: GPT2Config) -> int:
    return int(config.n_inner or 4 * config.n_embd)


def attention_scale(config: GPT2Config, layer: int) -> float:
    """The factor of the products of queries and keys, as in GPT2Attention.

    `reorder_and_upcast_attn` changes where and in which precision it is applied; in float32 that makes no difference.
    """
    scale = (config.n_embd // config.n_head) ** -0.5 if config.scale_attn_weights else 1.0
    return float(scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale)
