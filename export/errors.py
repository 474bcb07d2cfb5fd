"""The errors of an export; each message is one line for the user."""

EXTRAS = 'pip install "gpt2-onnx[export5,cpu]" (transformers 5) or pip install "gpt2-onnx[export,cpu]" (optimum)'


class ExportError(ValueError):
    """A checkpoint or an output that cannot be used; the message is one line and names the next step."""


class ParityError(ExportError):
    """A bundle that does not compute what PyTorch computes."""


def first_line(error: BaseException) -> str:
    """The first line of a library's error."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
