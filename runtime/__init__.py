"""Complete text with a GPT-2 bundle on ONNX Runtime, without PyTorch.

    import runtime

    print(runtime.complete("It was a bright cold day", max_new_tokens=32))

    model = runtime.load("models/gpt2")
    completion = model.complete("It was a bright cold day", temperature=0.8, seed=1)
    completions = model.complete(["It was a bright", "She said"])
    pieces = model.stream("It was a bright cold day", stop=".")
    coroutine = model.acomplete("It was a bright cold day")
    perplexity = model.score("It was a bright cold day in April.").perplexity
    session = model.session()
    likeliest = model.inspect("It was a bright cold day").next_tokens(5)
    layers = model.lens("It was a bright cold day")
    print(runtime.doctor())

What can be raised, all the way down:

    ImportError        no usable ONNX Runtime is installed; the message names the command that fixes it
    TypeError          an argument of the wrong type
    RuntimeError       a session that is closed, or in use elsewhere
    ValueError         an option out of its range, or a prompt that does not fit the context
      └ BundleError    a bundle that is missing, damaged, or not a bundle
"""

import os
import sys

_home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120  (pathlib may be shadowed)
if sys.argv[:1] == ["-m"] and sys.path[0] == os.getcwd() != _home:  # noqa: PTH109
    del sys.path[0]  # -m puts the current folder first; it may be a bundle with a numpy.py in it

from runtime.errors import BundleError
from runtime.ort.install import ensure_onnxruntime, started_as_command

__version__ = "0.1.0"
__all__ = [
    "AsyncStream",
    "BundleError",
    "CompleteOptions",
    "Completion",
    "GenerationOptions",
    "Inspection",
    "Lens",
    "Model",
    "Score",
    "Session",
    "Stream",
    "Summary",
    "TokenLogprob",
    "complete",
    "doctor",
    "load",
]

if not started_as_command():  # a command reports the same in one line, without a traceback
    ensure_onnxruntime()

from runtime.api import complete, load
from runtime.diagnosis import doctor
from runtime.engine.scoring import Score
from runtime.inside.inspection import Inspection
from runtime.inside.lens import Lens
from runtime.inside.summary import Summary
from runtime.model import Model
from runtime.session import Session
from runtime.text.completion import Completion
from runtime.text.logprobs import TokenLogprob
from runtime.text.options import GenerationOptions
from runtime.text.several import CompleteOptions
from runtime.text.stream import AsyncStream, Stream
