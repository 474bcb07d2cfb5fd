"""The doctor: gathers facts about this machine, finds what is wrong, and names the fix."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.diagnosis.report import Diagnosis


def doctor() -> "Diagnosis":
    """Check versions, the server's packages, providers (each runs a model), CUDA's libraries, GPUs, CPUs and telemetry.

    Returns:
        A `Diagnosis`: `facts`, `findings` with a fix for each, `healthy`, `as_dict()`; `str()` gives all of it as text.

    Example:
        >>> runtime.doctor().healthy
        True
    """
    from runtime.diagnosis.report import diagnose  # imported late: its imports take 30 ms

    return diagnose()
