"""What is installed here, what of it works, and what would mend the rest."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.diagnosis.report import Diagnosis


def doctor() -> "Diagnosis":
    """Look at versions, wheels, providers (each runs a model), CUDA's libraries, GPUs, CPUs and telemetry.

    Returns:
        A `Diagnosis`: `facts`, `findings` with what mends each, `healthy`, `as_dict()`; `str()` is all of it as text.

    Example:
        >>> runtime.doctor().healthy
        True
    """
    from runtime.diagnosis.report import diagnose  # not for those who only complete: its imports take 30 ms

    return diagnose()
