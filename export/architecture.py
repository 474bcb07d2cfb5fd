"""Which GPT-2s are honoured: every field of GPT2Config that changes the arithmetic, or a refusal by name."""

from typing import Any

from transformers import GPT2Config

from export.errors import ExportError
from runtime.manifest import Architecture

# Every formula that GPT-2 checkpoints name, by the node that computes it. gelu_fast, gelu_accurate and
# gelu_pytorch_tanh write gelu_new's tanh approximation in other words.
ACTIVATIONS = {
    "gelu_new": "FastGelu",
    "gelu_fast": "FastGelu",
    "gelu_accurate": "FastGelu",
    "gelu_pytorch_tanh": "FastGelu",
    "gelu": "BiasGelu",
    "gelu_python": "BiasGelu",
    "relu": "Relu",
    "tanh": "Tanh",
    "silu": "Silu",
    "swish": "Silu",
}
CLASSES = {"GPT2LMHeadModel", "GPT2Model", "GPT2DoubleHeadsModel"}
HEAD_SIZE_STEP = 8


def check_architecture(name: str, config: dict[str, Any]) -> None:
    """Raise ExportError for the first thing in a config.json that the graphs would not honour."""
    if config.get("model_type") != "gpt2":
        raise ExportError(f"{name}: model_type must be 'gpt2', got {config.get('model_type')!r}")
    for problem in problems(config):
        raise ExportError(f"{name}: {problem}")


def problems(config: dict[str, Any]) -> list[str]:
    found = []
    classes = config.get("architectures") or ["GPT2LMHeadModel"]
    if not CLASSES.intersection(classes):
        found.append(f"architectures must be one of {', '.join(sorted(CLASSES))}, got {', '.join(classes)}")
    activation = config.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        found.append(f"activation_function must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    for field in ("add_cross_attention", "is_encoder_decoder", "pruned_heads", "quantization_config"):
        if config.get(field):
            found.append(f"{field} is not supported, got {config[field]!r}")
    n_embd, n_head = config.get("n_embd", 768), config.get("n_head", 12)
    if n_embd % n_head or (n_embd // n_head) % HEAD_SIZE_STEP:
        found.append(f"n_embd / n_head must be a multiple of {HEAD_SIZE_STEP}, got {n_embd} / {n_head}")
    return found


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


def inner_size(config: GPT2Config) -> int:
    return int(config.n_inner or 4 * config.n_embd)


def attention_scale(config: GPT2Config, layer: int) -> float:
    """What the products of queries and keys are multiplied by, as GPT2Attention does.

    `reorder_and_upcast_attn` changes where that happens and in which precision; in float32 nothing is left of it.
    """
    scale = (config.n_embd // config.n_head) ** -0.5 if config.scale_attn_weights else 1.0
    return float(scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale)
