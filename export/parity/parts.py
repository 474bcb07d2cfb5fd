"""The parts of a verification: each is named as it begins, with the time that is left."""

from collections.abc import Mapping

from export.parity.memory import give_back
from export.progress import Progress


class Parts:
    """Parts in the order in which they run, and how long each takes beside the others."""

    def __init__(self, progress: Progress, costs: Mapping[str, float]) -> None:
        self._progress, self._costs, self._done = progress, costs, 0.0

    def begin(self, part: str) -> None:
        """Name the next part, after giving back the memory of the last one."""
        give_back()
        self._progress.share(part, self._done / sum(self._costs.values()))
        self._done += self._costs[part]
