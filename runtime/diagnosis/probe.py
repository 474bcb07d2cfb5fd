"""Whether a provider computes: a model of one node is run by it.

What ONNX Runtime lists as available only says what it was built for; a session says what it got.
"""

from contextlib import redirect_stdout
from io import StringIO
from types import ModuleType

REMOTE = {"AzureExecutionProvider"}  # computes nothing here


def probe_providers(onnxruntime: ModuleType) -> dict[str, str | None]:
    """By name, why it does not work; None where it does."""
    names = [name for name in onnxruntime.get_available_providers() if name not in REMOTE]
    if "CUDAExecutionProvider" in names and hasattr(onnxruntime, "preload_dlls"):
        with redirect_stdout(StringIO()):  # it prints what it does not find; the findings say so too
            onnxruntime.preload_dlls(directory="")
    return {name: probe(onnxruntime, name) for name in names}


def probe(onnxruntime: ModuleType, provider: str) -> str | None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # the answer is what matters
    try:
        session = onnxruntime.InferenceSession(one_node_model(), options, providers=[provider])
        got = session.get_providers()
        if got[:1] != [provider]:
            return f"a session for it runs on {', '.join(got) or 'nothing'} instead"
        (output,) = session.run(None, {"x": [2.0]})
        return None if output.tolist() == [-2.0] else f"-(2) is {output.tolist()} there"
    except Exception as error:  # ONNX Runtime's own share no public base
        return " ".join(str(error).split()) or type(error).__name__


def one_node_model() -> bytes:
    """y = -x, one float each, in protobuf's wire format: the onnx package is not here."""
    float_of_one = message(1, number(1, 1) + message(2, message(1, number(1, 1))))
    node = message(1, b"x") + message(2, b"y") + message(4, b"Neg")
    graph = message(1, node) + message(2, b"probe")
    graph += message(11, message(1, b"x") + message(2, float_of_one))
    graph += message(12, message(1, b"y") + message(2, float_of_one))
    return number(1, 8) + message(7, graph) + message(8, number(2, 13))


def message(field: int, payload: bytes) -> bytes:
    """A length-delimited field, of less than 128 bytes."""
    return bytes([field << 3 | 2, len(payload)]) + payload


def number(field: int, value: int) -> bytes:
    """A field with a number below 128."""
    return bytes([field << 3, value])
