"""Stop strings: matched across token boundaries; text that may begin one is held back."""

from collections.abc import Sequence


class StopFilter:
    """Takes text piece by piece, and returns it once no stop can begin in it."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The text that certainly precedes any stop; once a stop is found, the last text before it."""
        if not self._stops:
            return text
        text = self._held + text
        ends = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        self.found = bool(ends)
        certain = min(ends)[1] if ends else len(text) - self._possible_beginning(text)
        self._held = "" if ends else text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """The text held back, once nothing follows it."""
        held, self._held = self._held, ""
        return held

    def _possible_beginning(self, text: str) -> int:
        """How many characters at the end of `text` are the beginning of a stop."""
        longest = min(len(text), max(map(len, self._stops)) - 1)
        return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in self._stops)), 0)
