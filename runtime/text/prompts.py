"""A bundle's rules for prompts: the id that an empty one starts from, the maximum length, the ids that end a text."""

from collections.abc import Sequence

from runtime.bundle.bundle import Bundle
from runtime.text.generation import Generation
from runtime.text.guide import Guides
from runtime.text.options import Settings
from runtime.text.tokenizer import Tokenizer


class Prompting:
    """Encodes prompts, checks that they fit the context, and begins their generations."""

    def __init__(self, bundle: Bundle) -> None:
        architecture = bundle.manifest.architecture
        self.tokenizer = Tokenizer(bundle.folder / "tokenizer.json")
        self.context, self._vocab_size = architecture.n_positions, architecture.vocab_size
        self._guides = Guides(self.tokenizer, self._vocab_size)
        self._bos_token_id = bundle.bos_token_id()
        self._eos_ids = bundle.eos_token_ids()

    def encode(self, prompt: str, name: str = "prompt") -> list[int]:
        """Ids of `prompt`, at least one, with room for one more in the context; the error calls it `name`."""
        return self.check_room(self.tokenizer.encode(prompt) or self._start(name), name)

    def encode_whole(self, text: str, name: str = "text") -> list[int]:
        """Ids of a text that is not continued: at least one, and at most the context."""
        ids = self.tokenizer.encode(text) or self._start(name)
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
        if settings.logprobs is not None and settings.logprobs > self._vocab_size:
            raise ValueError(f"logprobs must be at most {self._vocab_size:,}, all ids, got {settings.logprobs:,}")
        room = self.context - len(prompt_ids)
        grammar = settings.guided_by
        guide = self._guides.begin(grammar, self._eos_ids) if grammar else None
        return Generation(prompt_ids, settings, tokenizer=self.tokenizer, eos_ids=self._eos_ids, room=room, guide=guide)

    def _start(self, name: str) -> list[int]:
        if self._bos_token_id is None:
            raise ValueError(f"{name} must not be empty: this checkpoint names no bos_token_id to start from")
        return [self._bos_token_id]
