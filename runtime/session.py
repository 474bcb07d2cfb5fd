"""Sessions: a text that grows turn by turn; its slot keeps its keys and values between turns."""

import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn, Unpack

from runtime.checks import check_count, check_text
from runtime.engine.drafting import Drafting
from runtime.engine.loop import Loop
from runtime.engine.pieces import pieces
from runtime.engine.texts import GeneratedText
from runtime.forks import owner
from runtime.text.completion import Completion
from runtime.text.generation import Generation
from runtime.text.options import GenerationOptions, check_settings
from runtime.text.prompts import Prompting
from runtime.text.stream import Stream


class Session:
    """A text of prompts and completions that the next completion continues. Made by `Model.session`.

    The output is what `Model.complete` gives for the whole text, up to rounding in int8 and int4. Only ids that no slot
    has read are run: those of the last turns, unless so many other texts ran since that their slot was needed.
    A session serves one thread; a model serves many.

    Example:
        >>> with model.session() as session:
        ...     first = session.complete("It was a bright cold day", max_new_tokens=8)
        ...     second = session.complete(" Then the rain came", max_new_tokens=8)
        >>> second == model.complete(f"It was a bright cold day{first} Then the rain came", max_new_tokens=8)
        True
    """

    def __init__(self, loop: Loop, prompting: Prompting, drafting: Drafting) -> None:
        self._loop = loop
        self._closed = False
        self._prompting = prompting
        self._drafting = drafting
        self._busy = threading.Lock()
        self._check_owner = owner("session", "make one here: model.session()")
        self._turn = 0
        self._text = ""
        self._ids: list[int] = []  # of the text

    @property
    def text(self) -> str:
        """All prompts and completions so far. A text that an empty prompt began starts with `<|endoftext|>`."""
        return self._text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The ids of `text`."""
        return tuple(self._ids)

    def complete(self, more_text: str = "", **options: Unpack[GenerationOptions]) -> Completion:
        """Append `more_text` to the text and continue it; without any, continue where the last completion stopped.

        Args:
            more_text: The text to append.
            options: See `GenerationOptions`.

        Raises:
            ValueError: An option out of its range, or a text that leaves no room in the context; nothing is added.
            RuntimeError: The session is closed, or in use by a stream or another thread.
        """
        stream = self.stream(more_text, **options)
        for _ in stream:
            pass
        assert stream.completion is not None
        return stream.completion

    def stream(self, more_text: str = "", **options: Unpack[GenerationOptions]) -> Stream:
        """Like `complete`, but yield pieces of text once they are final. An early `close` keeps the text so far."""
        settings, more_text = check_settings(options), check_text("more_text", more_text)
        with self._used():
            ids = self._ids_with(more_text)
            generation = self._prompting.begin(ids, settings)
            return Stream(self._pieces(generation, self._turn), generation)

    def rewind(self, tokens: int) -> None:
        """Forget the last `tokens` of the session's `token_ids`, from 0 to all of them.

        To return to a point, note `len(session.token_ids)` there: a completion's own `token_ids` also include the stop
        or `<|endoftext|>` that ended it, which the text does not.

        Raises:
            ValueError: More tokens than there are.
            RuntimeError: The session is closed, or in use by a stream or another thread.
        """
        with self._used():
            kept = len(self._ids) - check_count("tokens", tokens, least=0, most=len(self._ids))
            self._turn += 1
            self._ids = self._ids[:kept]
            self._text = self._prompting.tokenizer.decode_after_start(self._ids)

    def close(self) -> None:
        """End the session; the text can still be read."""
        self._closed = True

    def __reduce__(self) -> NoReturn:
        raise TypeError("a session cannot be pickled, as its cache is in this process; pass its text: session.text")

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _used(self) -> Iterator[None]:
        """Let one caller at a time use the session."""
        self._check_owner()
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("this session is in use: close its stream first, and give each thread a session")
        try:
            if self._closed:
                raise RuntimeError("this session is closed; make another: model.session()")
            yield
        finally:
            self._busy.release()

    def _ids_with(self, more_text: str) -> list[int]:
        """Encode the whole text again, as `more_text` may merge with the last token; without any, keep the ids."""
        name = "the session's text"
        if self._ids and not more_text:
            return self._prompting.check_room(self._ids, name)
        return self._prompting.encode(self._text + more_text, name)

    def _pieces(self, generation: Generation, turn: int) -> Generator[str]:
        """Generate, and keep what was generated, however it ends."""
        with self._used():
            if turn != self._turn:
                raise RuntimeError("the session has continued since this stream was made; make another")
            self._turn += 1
            text = GeneratedText(generation, self._drafting.drafters(generation), streamed=True)
            try:
                yield from pieces(self._loop, text)
            finally:
                self._keep(generation.prompt_ids, *text.told)

    def _keep(self, prompt_ids: Sequence[int], token_ids: Sequence[int], shown: str) -> None:
        """Keep the text that a reader has seen: without the stop or end that finished it, or the rest of its token.

        The text is decoded as a whole, because a turn may have ended in the middle of a character.
        """
        tokenizer = self._prompting.tokenizer
        ids = [*prompt_ids, *token_ids]
        text = tokenizer.decode_after_start(ids)
        hidden = len(tokenizer.decode(token_ids)) - len(shown)
        self._text = text[: len(text) - hidden]
        self._ids = tokenizer.encode(self._text) if hidden else ids
