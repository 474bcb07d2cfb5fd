"""What a run over new ids says."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Answer(NamedTuple):
    """Behind P places; the next run overwrites it.

    Attributes:
        next_ids: The most likely ids [P].
        logits: [P, V], or [P, 0] where nobody asked.
        tied: [P], whether another id is as likely, as far as sums in another order could tell.
    """

    next_ids: NDArray[np.int64]
    logits: NDArray[np.float32]
    tied: NDArray[np.bool_]
