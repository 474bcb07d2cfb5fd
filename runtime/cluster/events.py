"""Events of a stream whose replica may end: another one tells it anew, and the client hears only what it lacks."""

import json
from collections import defaultdict
from typing import Any

END = b"\n\n"
DATA = b"data: "


class DiffersError(Exception):
    """A stream that is told anew is not the one that a client has heard the beginning of."""


class Events:
    """Passes events on, and knows what has been told of each choice."""

    def __init__(self) -> None:
        self._told = defaultdict[int, str](str)
        self._ended = set[int]()
        self._first: dict[str, Any] = {}
        self._anew: defaultdict[int, str] | None = None  # what is told anew, until the client hears of it again
        self._rest = b""

    def begin_again(self) -> None:
        """The stream will come from its beginning."""
        self._anew, self._rest = defaultdict(str), b""

    def lacking(self, part: bytes) -> bytes:
        """Of a part of a stream what the client has not heard; DiffersError if it has heard something else."""
        *events, self._rest = (self._rest + part).split(END)
        return b"".join(self._lacking(event) for event in events)

    def _lacking(self, event: bytes) -> bytes:
        content = parsed(event)
        if content is None:
            return event + END
        self._first = self._first or {name: content[name] for name in ("id", "created") if name in content}
        if self._anew is None:
            for choice in content["choices"]:
                self._note(choice)
            return event + END
        given = content["choices"]
        content["choices"] = [choice for choice in given if self._has_more(choice)]
        if given and not content["choices"]:
            return b""
        return DATA + json.dumps(content | self._first).encode() + END

    def _note(self, choice: dict[str, Any]) -> None:
        self._told[choice["index"]] += choice["text"]
        if choice.get("finish_reason"):
            self._ended.add(choice["index"])

    def _has_more(self, choice: dict[str, Any]) -> bool:
        """Whether the client lacks something of a choice that is told anew, which then holds only that."""
        assert self._anew is not None
        index, text = choice["index"], choice["text"]
        start, heard = len(self._anew[index]), self._told[index]
        self._anew[index] += text
        known, anew = heard[: len(self._anew[index])], self._anew[index][: len(heard)]
        if known != anew or (index in self._ended and start + len(text) > len(heard)):
            raise DiffersError
        if index in self._ended:
            return False
        choice["text"] = text[max(0, len(heard) - start) :]
        if choice.get("logprobs"):
            choice["logprobs"] = from_place(choice["logprobs"], len(heard))
        if not choice["text"] and not choice.get("finish_reason"):
            return False
        self._note(choice)
        return True


def parsed(event: bytes) -> Any:
    """An event's content, if it tells of choices."""
    try:
        content = json.loads(event.removeprefix(DATA))
    except ValueError:  # [DONE]
        return None
    return content if isinstance(content, dict) and isinstance(content.get("choices"), list) else None


def from_place(logprobs: dict[str, Any], place: int) -> dict[str, Any]:
    """The log-probabilities of the tokens that begin at a place of the text or after it."""
    kept = [number for number, offset in enumerate(logprobs["text_offset"]) if offset >= place]
    return {name: [values[number] for number in kept] if values else values for name, values in logprobs.items()}
