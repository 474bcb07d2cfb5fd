"""A GPT-2 checkpoint as a GGUF file in float32, as llama.cpp's own converter would lay it out."""

import json
from pathlib import Path

import gguf
from safetensors import safe_open

TRANSPOSED = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")  # stored as (in, out), wanted as (out, in)
LEFT_OUT = (".attn.bias", ".attn.masked_bias", "lm_head.weight")  # masks, and what is tied to wte
POSITIONS = "position_embd.weight"


def write_gguf(checkpoint: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    config = json.loads((checkpoint / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "gpt2")
    add_architecture(writer, config)
    add_vocabulary(writer, checkpoint, config["vocab_size"])
    add_tensors(writer, checkpoint, config["n_layer"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_architecture(writer: gguf.GGUFWriter, config: dict) -> None:
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(config.get("n_inner") or 4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def add_vocabulary(writer: gguf.GGUFWriter, checkpoint: Path, size: int) -> None:
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    texts = {number: text for text, number in (tokenizer["model"]["vocab"] | special).items()}
    control, ordinary, unused = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL, gguf.TokenType.UNUSED
    kinds = [unused if n not in texts else control if texts[n] in special else ordinary for n in range(size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([texts.get(number, f"[PAD{number}]") for number in range(size)])
    writer.add_token_types(kinds)
    gguf.SpecialVocab(checkpoint, load_merges=True).add_to_gguf(writer, quiet=True)


def add_tensors(writer: gguf.GGUFWriter, checkpoint: Path, layers: int) -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, layers)
    with safe_open(checkpoint / "model.safetensors", "numpy") as weights:
        for name in weights.keys():  # noqa: SIM118 - a file, not a dictionary
            if name.endswith(LEFT_OUT):
                continue
            tensor = weights.get_tensor(name).astype("float32")
            tensor = tensor.T.copy() if name.endswith(TRANSPOSED) else tensor
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), tensor)


def token_bytes(path: Path) -> int:
    """Bytes of the weights that a token reads whole."""
    return sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors if tensor.name != POSITIONS)
