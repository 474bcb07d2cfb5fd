"""What can go wrong with an export, each as one line for its user."""


class ExportError(ValueError):
    """A checkpoint or an output that cannot be used; the message is one line and names the next step."""


class ParityError(ExportError):
    """A bundle that does not compute what PyTorch computes."""


def first_line(error: BaseException) -> str:
    """What a library's error says first."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
