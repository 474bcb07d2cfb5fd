"""llama.cpp, through the C interface that llama-cpp-python gives to Python, without that package's own loop around it.

Its defaults but for the threads: memory-mapped weights, repacked for the processor, a float16 key/value cache, flash
attention where it finds it of use. (With a float32 cache it says nearly the same, at two thirds of the speed.)
Sequences side by side share one cache, as in its server: a few per cent faster than one each.
"""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers.sides import protocol

TYPES: dict[str, str | None] = {"fp32": None, "int8": "MOSTLY_Q8_0", "int4": "MOSTLY_Q4_0"}
TRANSPOSED = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")  # stored as (in, out), wanted as (out, in)
LEFT_OUT = (".attn.bias", ".attn.masked_bias", "lm_head.weight")  # masks, and what is tied to wte
POSITIONS = "position_embd.weight"


def prepare(checkpoint: Path, _bundle: Path, folder: Path, precision: str) -> protocol.Facts:
    written, path = folder / "float32.gguf", folder / "model.gguf"
    write_gguf(checkpoint, written)
    if kind := TYPES[precision]:
        quantize(written, path, kind)
        written.unlink()
    else:
        written.rename(path)
    return {"folder": folder, "files": [path], "weights": token_bytes(path)}


def write_gguf(checkpoint: Path, path: Path) -> None:
    """A checkpoint in float32, as llama.cpp's own converter would lay it out."""
    import gguf

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


def add_architecture(writer: Any, config: dict[str, Any]) -> None:
    import gguf

    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(config.get("n_inner") or 4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def add_vocabulary(writer: Any, checkpoint: Path, size: int) -> None:
    import gguf

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


def add_tensors(writer: Any, checkpoint: Path, layers: int) -> None:
    import gguf
    from safetensors import safe_open

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
    import gguf

    return sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors if tensor.name != POSITIONS)


def quantize(source: Path, target: Path, kind: str) -> None:
    """By llama.cpp's own quantizer, with its own choice of a type for each tensor."""
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_{kind}")
    if llama_cpp.llama_model_quantize(bytes(source), bytes(target), settings):
        sys.exit(f"llama.cpp could not quantize to {kind}")


class Model:
    """A GGUF file, and a context for each number of sequences that have been asked for."""

    def __init__(self, folder: str, threads: int) -> None:
        import llama_cpp

        self.library, self.threads = llama_cpp, threads
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(bytes(Path(folder) / "model.gguf"), settings)
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.vocabulary_size = llama_cpp.llama_vocab_n_tokens(self.vocabulary)
        self.contexts: dict[int, Any] = {}

    def context(self, sequences: int) -> Any:
        if sequences not in self.contexts:
            settings = self.library.llama_context_default_params()
            settings.n_ctx = sequences * self.library.llama_model_n_ctx_train(self.model)
            settings.n_seq_max, settings.kv_unified = sequences, sequences > 1
            settings.n_threads = settings.n_threads_batch = self.threads
            self.contexts[sequences] = self.library.llama_init_from_model(self.model, settings)
        return self.contexts[sequences]

    def generate(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        context = self.context(len(prompts))
        self.library.llama_memory_clear(self.library.llama_get_memory(context), False)
        batch = self.library.llama_batch_init(sum(map(len, prompts)), 0, 1)
        texts: list[list[int]] = [[] for _ in prompts]
        lengths = [0 for _ in prompts]
        pieces = prompts
        for _ in range(new_tokens):
            ends = fill(batch, pieces, lengths)
            if self.library.llama_decode(context, batch):
                raise RuntimeError("llama_decode failed")
            lengths = [length + len(piece) for length, piece in zip(lengths, pieces, strict=True)]
            pieces = [[self.likeliest(context, end)] for end in ends]
            for text, piece in zip(texts, pieces, strict=True):
                text += piece
        self.library.llama_batch_free(batch)
        return texts

    def likeliest(self, context: Any, position: int) -> int:
        import numpy

        logits = self.library.llama_get_logits_ith(context, position)
        return int(numpy.ctypeslib.as_array(logits, (self.vocabulary_size,)).argmax())

    def tokenize(self, text: str) -> list[int]:
        encoded = text.encode()
        ids = (self.library.llama_token * len(encoded))()
        count = self.library.llama_tokenize(self.vocabulary, encoded, len(encoded), ids, len(encoded), False, False)
        return list(ids[:count])


def fill(batch: Any, pieces: list[list[int]], lengths: list[int]) -> list[int]:
    """Put each sequence's next ids into the batch; where each of them ends there, its logits are asked for."""
    slot, ends = 0, []
    for sequence, (piece, length) in enumerate(zip(pieces, lengths, strict=True)):
        for offset, number in enumerate(piece):
            batch.token[slot], batch.pos[slot], batch.n_seq_id[slot] = number, length + offset, 1
            batch.seq_id[slot][0], batch.logits[slot] = sequence, False
            slot += 1
        batch.logits[slot - 1] = True
        ends.append(slot - 1)
    batch.n_tokens = slot
    return ends


def load(folder: str, _precision: str, threads: int) -> protocol.Take:
    model = Model(folder, threads)

    def take(prompts: list[list[int]], new_tokens: int) -> protocol.Work:
        model.context(len(prompts))
        return lambda: model.generate(prompts, new_tokens)

    return take


def first(folder: str, _precision: str, threads: int, text: str) -> int:
    model = Model(folder, threads)
    return model.generate([model.tokenize(text)], 1)[0][0]


if __name__ == "__main__":
    protocol.main(sys.modules[__name__])
