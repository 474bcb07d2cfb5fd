"""Model, the loaded bundle, and what rebuilds it in another process."""

import runtime.model.pickled  # noqa: F401  so that models can be pickled
from runtime.model.model import BATCH_SIZE as BATCH_SIZE
from runtime.model.model import Answers as Answers
from runtime.model.model import Model as Model
from runtime.model.model import Prompts as Prompts
from runtime.model.model import generate as generate
from runtime.model.model import generate_each as generate_each
from runtime.model.parts import Loading as Loading
