"""Sessions: a text that grows turn by turn; its keys and values stay cached between turns."""

import threading
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NoReturn, Unpack

from runtime.checks import check_count, check_text
from runtime.engine.decoding import decode_alone
from runtime.engine.drafting import Drafting
from runtime.engine.drafts import common_length
from runtime.forks import owner
from runtime.graphs.state import DecodeState
from runtime.text.completion import Completion
from runtime.text.generation import Generation
from runtime.text.options import GenerationOptions, check_settings
from runtime.text.prompts import Prompting
from runtime.text.stream import Stream


class Session:
    """A text of prompts and completions that the next completion continues. Made by `Model.session`.

    The output is what `Model.complete` gives for the whole text, up to rounding in int8 and int4; only ids that are not
    cached yet are run.
    Close it, or leave its `with` block, to give its cache back. A session serves one thread; a model serves many.

    Example:
        >>> with model.session() as session:
        ...     first = session.complete("It was a bright cold day", max_new_tokens=8)
        ...     second = session.complete(" Then the rain came", max_new_tokens=8)
        >>> second == model.complete(f"It was a bright cold day{first} Then the rain came", max_new_tokens=8)
        True
    """

    def __init__(self, lease: AbstractContextManager[DecodeState], prompting: Prompting, drafting: Drafting) -> None:
        self._lease = lease
        self._state = lease.__enter__()
        self._closed = self._given_back = False
        self._prompting = prompting
        self._drafting = drafting
        self._busy = threading.Lock()
        self._check_owner = owner("session", "make one here: model.session()")
        self._turn = 0
        self._text = ""
        self._ids: list[int] = []  # of the text
        self._read: list[int] = []  # of the tokens in the cache

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
        """Give the cache back once no stream uses it; the text can still be read."""
        self._closed = True
        self._give_back()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a session cannot be pickled, as its cache is in this process; pass its text: session.text")

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _used(self) -> Iterator[DecodeState]:
        """Lend the state to one user at a time."""
        self._check_owner()
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("this session is in use: close its stream first, and give each thread a session")
        try:
            if self._closed:
                raise RuntimeError("this session is closed; make another: model.session()")
            yield self._state
        finally:
            self._busy.release()
            self._give_back()

    def _give_back(self) -> None:
        """Give the cache back once, if the session is closed and the cache is not in use."""
        if not self._closed or not self._busy.acquire(blocking=False):
            return
        try:
            if not self._given_back:
                self._given_back = True
                self._lease.__exit__(None, None, None)
        finally:
            self._busy.release()

    def _ids_with(self, more_text: str) -> list[int]:
        """Encode the whole text again, as `more_text` may merge with the last token; without any, keep the ids."""
        name = "the session's text"
        if self._ids and not more_text:
            return self._prompting.check_room(self._ids, name)
        return self._prompting.encode(self._text + more_text, name)

    def _pieces(self, generation: Generation, turn: int) -> Generator[str]:
        """Generate, running only ids that are not cached; keep what was generated, however it ends."""
        ids = generation.prompt_ids
        with self._used() as state:
            if turn != self._turn:
                raise RuntimeError("the session has continued since this stream was made; make another")
            self._turn += 1
            known = min(common_length(self._read, ids), len(ids) - 1)
            state.rewind(known)
            try:
                with self._drafting.step(state, generation, ids[:known]) as step:
                    yield from decode_alone(step, generation, ids[known:])
            finally:
                self._read = [*ids, *generation.token_ids][: state.length]
                self._keep(generation)

    def _keep(self, generation: Generation) -> None:
        """Keep the text that a reader has seen: without the stop or end that finished it, or the rest of its token.

        The text is decoded as a whole, because a turn may have ended in the middle of a character.
        """
        tokenizer = self._prompting.tokenizer
        ids = [*generation.prompt_ids, *generation.token_ids]
        text = tokenizer.decode_after_start(ids)
        hidden = len(tokenizer.decode(generation.token_ids)) - len(generation.text)
        self._text = text[: len(text) - hidden]
        self._ids = tokenizer.encode(self._text) if hidden else ids
