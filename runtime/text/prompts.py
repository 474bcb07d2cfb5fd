"""A bundle's rules for prompts: the id that an empty one starts from, the maximum length, the ids that end a text."""

from collections.abc import Sequence

from runtime.bundle.bundle import Bundle
from runtime.checks import check_count
from runtime.text.beams import Beams, BeamSearch
from runtime.text.completion import Completion
from runtime.text.generation import NO_LOGITS, Generation, ends_of_text
from runtime.text.guide import Guides
from runtime.text.options import Settings
from runtime.text.processors import Processors, bad_word_ids
from runtime.text.tokenizer import Tokenizer


class Prompting:
    """Encodes prompts, checks that they fit the context, and begins their generations."""

    def __init__(self, bundle: Bundle) -> None:
        architecture = bundle.manifest.architecture
        self.tokenizer = Tokenizer(bundle.path("tokenizer.json"), architecture.vocab_size)
        self.context, self._vocab_size = architecture.n_positions, architecture.vocab_size
        self._guides = Guides(self.tokenizer, self._vocab_size)
        self._bos_token_id = bundle.bos_token_id()
        self._eos_ids = bundle.eos_token_ids()

    def encode(self, prompt: str, name: str = "prompt") -> list[int]:
        """Ids of `prompt`, at least one, with room for one more in the context; the error calls it `name`."""
        return self.check_room(self.encode_any(prompt, name), name)

    def encode_any(self, text: str, name: str) -> list[int]:
        """Ids of a text of any length, at least one."""
        return self.tokenizer.encode(text) or self._start(name)

    def encode_whole(self, text: str, name: str = "text") -> list[int]:
        """Ids of a text that is not continued: at least one, and at most the context."""
        ids = self.encode_any(text, name)
        if len(ids) > self.context:
            raise ValueError(f"{name} must be at most {self.context:,} tokens, the context, got {len(ids):,}")
        return ids

    def check_room(self, prompt_ids: list[int], name: str) -> list[int]:
        """`prompt_ids`, if the context has room for one more."""
        if len(prompt_ids) >= self.context:
            raise ValueError(
                f"{name} must be at most {self.context - 1:,} tokens, to leave room in the context of "
                f"{self.context:,}, got {len(prompt_ids):,}"
            )
        return prompt_ids

    def begin(self, prompt_ids: Sequence[int], settings: Settings) -> Generation:
        self.check_vocabulary(settings)
        room = self.context - len(prompt_ids)
        grammar = settings.guided_by
        guide = self._guides.begin(grammar, ends_of_text(settings, self._eos_ids)) if grammar else None
        return Generation(prompt_ids, settings, tokenizer=self.tokenizer, eos_ids=self._eos_ids, room=room, guide=guide)

    def begin_search(self, prompt_ids: Sequence[int], settings: Settings, beams: Beams) -> BeamSearch:
        self.check_vocabulary(settings)
        eos_ids = ends_of_text(settings, self._eos_ids)
        processors = Processors(settings, prompt_ids, eos_ids, bad_word_ids(settings.bad_words, self.tokenizer))
        limit = min(settings.max_new_tokens, self.context - len(prompt_ids))
        return BeamSearch(prompt_ids, beams, processors, eos_ids=eos_ids, limit=limit)

    def completion(self, prompt_ids: Sequence[int], token_ids: Sequence[int], settings: Settings) -> Completion:
        """That of ids which were generated already."""
        ends = {name: getattr(settings, name) for name in ("max_new_tokens", "ignore_eos", "eos_token_id")}
        generation = self.begin(prompt_ids, Settings(**ends))
        for token in token_ids:
            generation.take(token, NO_LOGITS)
        return generation.completion()

    def check_vocabulary(self, settings: Settings) -> None:
        """Raise ValueError unless all ids, and counts of them, are of this vocabulary."""
        for name, wanted in (("logprobs", settings.logprobs), ("prompt_logprobs", settings.prompt_logprobs)):
            if wanted is not None and wanted > self._vocab_size:
                raise ValueError(f"{name} must be at most {self._vocab_size:,}, all ids, got {wanted:,}")
        for name, ids in (("logit_bias", dict(settings.logit_bias)), ("eos_token_id", settings.eos_token_id)):
            for token in ids:
                check_count(f"an id of {name}", token, least=0, most=self._vocab_size - 1)

    def _start(self, name: str) -> list[int]:
        if self._bos_token_id is None:
            raise ValueError(f"{name} must not be empty: this checkpoint names no bos_token_id to start from")
        return [self._bos_token_id]
