"""Fakes that several tests use."""


class LetterTokenizer:
    """Each token is a letter."""

    joins = True

    def decode(self, ids):
        return "".join(chr(ord("a") + token) for token in ids)
