"""What a front reads of a request: the beginning of its prompt, and whether it can be asked again."""

import hashlib
import json
import secrets
from typing import Any

CHARACTERS = 4  # of a token, about


class Asked:
    """A request's body; what is wrong with it is told by the replica.

    Attributes:
        body: As it came, but for a seed: a text that is sampled without one could not be told anew.
        repeatable: Whether the same body gives the same text.
    """

    def __init__(self, body: bytes) -> None:
        self._content = parsed(body)
        self.body, self.repeatable = self._seeded(body)

    def beginning(self, most: int) -> str | None:
        """What requests have in common whose first prompts begin with the same characters; None without a prompt."""
        prompt = self._content.get("prompt") if most else None
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list)):
            prompt = prompt[0]
        if not isinstance(prompt, (str, list)) or not prompt:
            return None
        start = prompt[:most] if isinstance(prompt, str) else json.dumps(prompt[: max(1, most // CHARACTERS)])
        return hashlib.sha256(start.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def _seeded(self, body: bytes) -> tuple[bytes, bool]:
        if self._content.get("temperature", 1) == 0 or isinstance(self._content.get("seed"), int):
            return body, True
        prompt = self._content.get("prompt")
        several = isinstance(prompt, list) and not all(isinstance(each, int) for each in prompt)
        if "seed" in self._content or several or self._content.get("stream") is not True:
            return body, False  # prompts that are equal would get one text by one seed
        return body.replace(b"{", b'{"seed": %d, ' % secrets.randbits(31), 1), True


def parsed(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
