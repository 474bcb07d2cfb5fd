"""Which packages are installed, by their records: the modules themselves may be broken, or one another's."""

from importlib.metadata import PackageNotFoundError, version

LIBRARIES = ("gpt2-onnx", "numpy", "tokenizers")
# each of them holds a module `onnxruntime`
ONNX_RUNTIMES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-rocm",
    "onnxruntime-training",
)


def installed(names: tuple[str, ...]) -> dict[str, str]:
    """The versions of those that are."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
