"""Fakes and names that several tests use."""

from runtime.graphs.kinds import runs

SERVED = f"onnx/{'ragged' if runs('ragged') else 'decode'}.onnx"  # the float32 graph that generates on the CPU


class LetterTokenizer:
    """Each token is a letter."""

    joins = True

    def decode(self, ids):
        return "".join(chr(ord("a") + token) for token in ids)
