"""Writes genai_config.json, from which onnxruntime-genai loads the reference graph."""

import json
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, GPT2Config


def write_genai_config(config: GPT2Config, generation: GenerationConfig, folder: Path) -> None:
    content = {"model": model_section(config, generation), "search": search_section(config)}
    (folder / "genai_config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def model_section(config: GPT2Config, generation: GenerationConfig) -> dict[str, Any]:
    end = generation.eos_token_id
    pad = generation.pad_token_id
    first_end = end[0] if isinstance(end, list) else end
    return {
        "type": "decoder",
        "bos_token_id": generation.bos_token_id,
        "eos_token_id": end,
        "pad_token_id": first_end if pad is None else pad,
        "context_length": config.n_positions,
        "vocab_size": config.vocab_size,
        "decoder": {
            "filename": "onnx/model.onnx",
            "session_options": {"provider_options": []},
            "head_size": config.n_embd // config.n_head,
            "hidden_size": config.n_embd,
            "num_attention_heads": config.n_head,
            "num_key_value_heads": config.n_head,
            "num_hidden_layers": config.n_layer,
            "inputs": {
                "input_ids": "input_ids",
                "attention_mask": "attention_mask",
                "position_ids": "position_ids",
                "past_key_names": "past_key_values.%d.key",
                "past_value_names": "past_key_values.%d.value",
            },
            "outputs": {
                "logits": "logits",
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
            },
        },
    }


def search_section(config: GPT2Config) -> dict[str, Any]:
    """Greedy; the reference graph returns a new cache, so past and present are two buffers."""
    return {"do_sample": False, "num_beams": 1, "max_length": config.n_positions, "past_present_share_buffer": False}
