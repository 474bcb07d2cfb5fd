"""Guides: which ids may come next in a text that follows a grammar, and which must, through llguidance."""

import threading
from collections import OrderedDict
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import Ids
from runtime.text.grammars import Grammar, deeply, limits, llguidance, reason
from runtime.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MOST_KEPT = 4  # grammars that wait for their next text
MOST_COPIES = 64  # of one matcher: they share what they have found out, which grows


class Guides:
    """Begins the guides of one model's texts, in any thread.

    Args:
        tokenizer: Its ids are read when the first text is guided, which takes 0.3 s for GPT-2.
        vocab_size: How many logits there are; an id beyond them is never allowed.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._ids: LLTokenizer | None = None
        self._making = threading.Lock()
        self._kept: OrderedDict[Grammar, tuple[LLMatcher, int]] = OrderedDict()  # and how often each was copied

    def begin(self, grammar: Grammar, eos_ids: Collection[int]) -> "Guide":
        """The guide of a new text, which one of `eos_ids` may end.

        Raises:
            ValueError: The grammar allows nothing but the empty text, if that, or takes more than llguidance's limits.
        """
        with self._making:
            matcher = self._copy(grammar)
            assert self._ids is not None
            guide = Guide(matcher, self._ids, grammar, eos_ids=eos_ids, vocab_size=self._vocab_size)
        if guide.over:
            raise ValueError(f"{grammar.option} must allow a text of one token or more, got {grammar.shown}")
        return guide

    def _copy(self, grammar: Grammar) -> "LLMatcher":
        """A copy of the grammar's matcher: it takes a fiftieth of the time, and shares its memory."""
        matcher, copies = self._kept.pop(grammar, (None, 0))
        if matcher is None or copies == MOST_COPIES:
            matcher, copies = self._make(grammar), 0
        self._kept[grammar] = matcher, copies + 1
        if len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        return matcher.deep_copy()

    def _make(self, grammar: Grammar) -> "LLMatcher":
        library, ids = llguidance(), self._read_ids()
        matcher: LLMatcher = deeply(lambda: library.LLMatcher(ids, grammar.source, log_level=0, limits=limits()))
        check(matcher, grammar)
        return matcher

    def _read_ids(self) -> "LLTokenizer":
        """llguidance's tokenizer, with an end of its own after all ids: which ids end a text is each text's affair."""
        if self._ids is None:
            written, end = self._tokenizer.with_end()
            self._ids = llguidance().LLTokenizer(written, eos_token=end)
        return self._ids


class Guide:
    """Follows one text through its grammar.

    Args:
        matcher: llguidance's, at the beginning of the text.
        ids: llguidance's tokenizer.
        eos_ids: Ids that end the text, allowed where it is whole and nowhere else.

    Attributes:
        allowed: The ids that may come next [K], in ascending order.
        whole: Whether the text may end here.
        over: Whether nothing but an end may follow.

    Raises:
        ValueError: The grammar leaves no way on, or takes more than llguidance's limits.
    """

    def __init__(
        self,
        matcher: "LLMatcher",
        ids: "LLTokenizer",
        grammar: Grammar,
        *,
        eos_ids: Collection[int],
        vocab_size: int,
    ) -> None:
        self._matcher = matcher
        self._ids = ids
        self._grammar = grammar
        self._eos_ids = [token for token in eos_ids if token < vocab_size]
        self._vocab_size = vocab_size
        self._look()

    def forced(self, most: int) -> list[int]:
        """Ids that come next whatever the logits are, at most `most`: each is the only one allowed in its turn."""
        forced = self._matcher.compute_ff_tokens()[: max(0, most)]
        ends = (n for n, token in enumerate(forced) if token >= self._vocab_size or token in self._eos_ids)
        return forced[: next(ends, len(forced))]

    def take(self, token: int) -> None:
        """Go on after an id that was allowed."""
        if token in self._eos_ids:
            return
        self._matcher.consume_token(token)
        self._look()
        if self.over and not self.whole:
            raise ValueError(f"{self._grammar.option} leaves no id to go on with, got {self._grammar.shown}")

    def accepts(self, text: str) -> bool:
        """Whether this text alone would be whole, whatever was taken so far."""
        matcher, ids = self._matcher.deep_copy(), self._ids.tokenize_str(text)
        matcher.reset()
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    def _look(self) -> None:
        mask = self._mask()
        check(self._matcher, self._grammar)
        self.whole = self._matcher.is_accepting()
        mask[self._eos_ids] = False
        self.over = not mask.any()
        mask[self._eos_ids] = self.whole
        self.allowed: Ids = np.flatnonzero(mask)

    def _mask(self) -> NDArray[np.bool_]:
        """Which ids [V] the grammar allows; llguidance knows those of the tokenizer, which may be more or fewer."""
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        mask = np.zeros(self._vocab_size, np.bool_)
        known = min(len(mask), self._ids.vocab_size)
        mask[:known] = bits[:known]
        mask[self._ids.eos_token : self._ids.eos_token + 1] = False
        return mask


def check(matcher: "LLMatcher", grammar: Grammar) -> None:
    """Raise ValueError if a matcher has met a limit, or cannot be made; that nothing may follow is no error."""
    told = reason(matcher.get_error())
    if told and not told.startswith("NoExtension"):
        raise ValueError(f"{grammar.option} takes more than llguidance can do: {told}, got {grammar.shown}")
