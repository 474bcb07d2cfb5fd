"""llama.cpp, through the C interface that llama-cpp-python gives to Python, without that package's own loop around it.

Its defaults but for the threads: memory-mapped weights, repacked for the processor, a float16 key/value cache, flash
attention where it finds it of use. (With a float32 cache it says nearly the same, at two thirds of the speed.)
Sequences side by side share one cache, as in its server: a few per cent faster than one each.
"""

import sys
from pathlib import Path

import side_protocol

TYPES = {"fp32": None, "int8": "MOSTLY_Q8_0", "int4": "MOSTLY_Q4_0"}


def prepare(checkpoint: Path, _bundle: Path, folder: Path, precision: str) -> dict:
    from gguf_writer import token_bytes, write_gguf

    written, path = folder / "float32.gguf", folder / "model.gguf"
    write_gguf(checkpoint, written)
    if TYPES[precision]:
        quantize(written, path, TYPES[precision])
        written.unlink()
    else:
        written.rename(path)
    return {"folder": folder, "files": [path], "weights": token_bytes(path)}


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
        self.contexts: dict[int, object] = {}

    def context(self, sequences: int):
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
        texts, lengths = [[] for _ in prompts], [0 for _ in prompts]
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

    def likeliest(self, context, position: int) -> int:
        import numpy

        logits = self.library.llama_get_logits_ith(context, position)
        return int(numpy.ctypeslib.as_array(logits, (self.vocabulary_size,)).argmax())

    def tokenize(self, text: str) -> list[int]:
        encoded = text.encode()
        ids = (self.library.llama_token * len(encoded))()
        count = self.library.llama_tokenize(self.vocabulary, encoded, len(encoded), ids, len(encoded), False, False)
        return list(ids[:count])


def fill(batch, pieces: list[list[int]], lengths: list[int]) -> list[int]:
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


def load(folder: str, _precision: str, threads: int):
    model = Model(folder, threads)

    def take(prompts: list[list[int]], new_tokens: int):
        model.context(len(prompts))
        return lambda: model.generate(prompts, new_tokens)

    return take


def first(folder: str, _precision: str, threads: int, text: str) -> int:
    model = Model(folder, threads)
    return model.generate([model.tokenize(text)], 1)[0][0]


if __name__ == "__main__":
    side_protocol.main(sys.modules[__name__])
