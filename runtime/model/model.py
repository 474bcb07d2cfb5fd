"""Model: a loaded bundle that completes, streams, scores and inspects text, and makes sessions."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Unpack, overload
from weakref import WeakSet

from runtime.checks import check_batch_size, check_count, check_ids, check_prompts, check_text
from runtime.engine.drafting import Drafting
from runtime.engine.loop import Loop
from runtime.engine.pieces import async_pieces, pieces
from runtime.engine.scoring import Score, score_ids
from runtime.engine.searching import search, search_async
from runtime.engine.texts import GeneratedText
from runtime.errors import BundleError
from runtime.forks import leave_alone, tell_children
from runtime.graphs.decode import DecodeGraph
from runtime.inside.inspection import OUTPUTS, Inspection, check_layers, check_outputs
from runtime.inside.inspector import Inspector
from runtime.inside.lens import Lens
from runtime.inside.summary import Summary, summarize
from runtime.model.parts import Loading, Parts
from runtime.session import Session
from runtime.text.beams import Beams, BeamSearch
from runtime.text.completion import Completion
from runtime.text.generation import Generation
from runtime.text.options import GenerationOptions, Settings, check_settings
from runtime.text.prompts import Prompting
from runtime.text.several import CompleteOptions, Several, check_several
from runtime.text.stream import AsyncStream, Stream

BATCH_SIZE = 16
Prompts = list[str] | tuple[str, ...]
Answers = Completion | list[Completion] | list[list[Completion]]
NO_FORKS = (
    "CUDA does not work in a process that was forked off one that has used it; load the model there alone, "
    "or start processes by spawn: multiprocessing.set_start_method('spawn')"
)
models: "WeakSet[Model]" = WeakSet()  # of this process


class Model:
    """GPT-2, ready to generate. Made by `load`; may be called from several threads at once.

    In a forked process it loads itself again at its first call; a pickled model loads where it is unpickled.

    Attributes:
        bundle: The bundle it was loaded from.
        device: Where it runs: "cpu", or "cuda:0" and so on.
        precision: The precision of its decode graph.
        loading: How it was loaded, to load it again.
    """

    def __init__(self, loading: Loading, parts: Parts) -> None:
        self.loading = loading
        self.bundle = loading.bundle
        self.device = str(loading.placement)
        self.precision = loading.precision
        self._parts: Parts | None = parts
        self._making = threading.Lock()
        tell_children(self, Model._forked)
        models.add(self)

    def _ready(self) -> Parts:
        """The parts of this process, made again if it was forked."""
        with self._making:
            if self._parts is None:
                if self.loading.placement.device == "cuda":
                    raise RuntimeError(NO_FORKS)
                self._parts = self.loading.again()
            return self._parts

    def _forked(self) -> None:
        """Drop the parent's parts in a child: their threads are gone, and their locks may be held forever."""
        self._making = threading.Lock()
        if self._parts is not None:
            leave_alone(self._parts)
            self._parts = None

    @property
    def prompting(self) -> Prompting:
        """The bundle's rules for prompts, for the other modules of this package."""
        return (self._parts or self._ready()).prompting

    @property
    def decode_graph(self) -> DecodeGraph:
        """The graph that generates, for the other modules of this package."""
        return (self._parts or self._ready()).decode_graph

    @property
    def loop(self) -> Loop:
        """The loop that all calls share, for the other modules of this package."""
        return (self._parts or self._ready()).loop

    @property
    def drafting(self) -> Drafting:
        """How it drafts, for the other modules of this package."""
        return (self._parts or self._ready()).drafting

    @property
    def inspector(self) -> Inspector:
        """What looks inside, for the other modules of this package."""
        return (self._parts or self._ready()).inspector

    def __repr__(self) -> str:
        return f"<Model {self.bundle.folder} in {self.precision} on {self.device}>"

    @overload
    def complete(
        self, prompt: str, *, batch_size: int = BATCH_SIZE, n: None = None, **options: Unpack[CompleteOptions]
    ) -> Completion: ...
    @overload
    def complete(
        self, prompt: Prompts, *, batch_size: int = BATCH_SIZE, n: None = None, **options: Unpack[CompleteOptions]
    ) -> list[Completion]: ...
    @overload
    def complete(
        self, prompt: str, *, batch_size: int = BATCH_SIZE, n: int, **options: Unpack[CompleteOptions]
    ) -> list[Completion]: ...
    @overload
    def complete(
        self, prompt: Prompts, *, batch_size: int = BATCH_SIZE, n: int, **options: Unpack[CompleteOptions]
    ) -> list[list[Completion]]: ...
    def complete(
        self,
        prompt: str | Prompts,
        *,
        batch_size: int = BATCH_SIZE,
        n: int | None = None,
        **options: Unpack[CompleteOptions],
    ) -> Answers:
        """Continue one prompt, or several in a batch; greedily, unless the options say otherwise.

        Args:
            prompt: Text, or a list of texts; an empty text starts from `<|endoftext|>`.
            batch_size: How many prompts of a list run at once, 1 to 1,024; each takes memory for its keys and values,
                2 * n_layer * n_embd * 4 bytes per token (74 kB for GPT-2 small).
            n: How many completions of each prompt, 1 to 1,024, which read it once. The first is the one of the same
                options without `n`; the others have seeds of their own, drawn from the caller's.
            options: See `CompleteOptions` and `GenerationOptions`.

        Returns:
            A completion; for a list of prompts, a list in the same order. With `n`, lists of completions instead.

        Raises:
            ValueError: An option out of its range, or a prompt that leaves no room in the context.

        Example:
            >>> model.complete("It was a bright cold day", max_new_tokens=8).finish_reason
            'length'
            >>> [len(text.token_ids) for text in model.complete(["It was", "She said that"], max_new_tokens=4)]
            [4, 4]
            >>> len(model.complete("It was", n=3, temperature=0.8, max_new_tokens=4))
            3
        """
        batch_size, several = check_batch_size(batch_size), check_several(n, options)
        if several.beams:
            searches = self._searches(prompt, several.asked, several.beams)
            for beams in searches:
                search(self.loop, beams)
            return self._found(prompt, searches, several)
        generations = self._generations(prompt, several.settings())
        for _ in generate(self, generations, at_once=batch_size):
            pass
        return answers(prompt, generations, several)

    def stream(self, prompt: str, **options: Unpack[GenerationOptions]) -> Stream:
        """Continue a prompt, yielding pieces of text once they are final.

        A piece never ends in the middle of a character, and never contains what may turn out to be a stop.

        Args:
            prompt: Text; an empty one starts from `<|endoftext|>`.
            options: See `GenerationOptions`.

        Returns:
            An iterator of pieces; joined, they are the completion's text. Its `completion` holds the whole result.

        Raises:
            ValueError: An option out of its range, or a prompt that leaves no room in the context.

        Example:
            >>> stream = model.stream("It was a bright cold day", max_new_tokens=8)
            >>> "".join(stream) == stream.completion.text
            True
        """
        (generation,) = self._generations(check_text("prompt", prompt), [check_settings(options)])
        return Stream(pieces(self.loop, text_of(self, generation, streamed=True)), generation)

    @overload
    async def acomplete(
        self, prompt: str, *, batch_size: int = BATCH_SIZE, n: None = None, **options: Unpack[CompleteOptions]
    ) -> Completion: ...
    @overload
    async def acomplete(
        self, prompt: Prompts, *, batch_size: int = BATCH_SIZE, n: None = None, **options: Unpack[CompleteOptions]
    ) -> list[Completion]: ...
    @overload
    async def acomplete(
        self, prompt: str, *, batch_size: int = BATCH_SIZE, n: int, **options: Unpack[CompleteOptions]
    ) -> list[Completion]: ...
    @overload
    async def acomplete(
        self, prompt: Prompts, *, batch_size: int = BATCH_SIZE, n: int, **options: Unpack[CompleteOptions]
    ) -> list[list[Completion]]: ...
    async def acomplete(
        self,
        prompt: str | Prompts,
        *,
        batch_size: int = BATCH_SIZE,
        n: int | None = None,
        **options: Unpack[CompleteOptions],
    ) -> Answers:
        """`complete` for asyncio: the event loop goes on meanwhile, and texts that are awaited at once share each step.

        A thread of the event loop's default executor runs the steps while somebody awaits. A task that is cancelled
        frees its slot within a step.

        Example:
            >>> asyncio.run(model.acomplete("It was a bright cold day", max_new_tokens=8)).finish_reason
            'length'
        """
        batch_size, several = check_batch_size(batch_size), check_several(n, options)
        if several.beams:
            searches = self._searches(prompt, several.asked, several.beams)
            for beams in searches:
                await search_async(self.loop, beams)
            return self._found(prompt, searches, several)
        generations = self._generations(prompt, several.settings())
        async for text in self.loop.run_all_async((text_of(self, each) for each in generations), batch_size):
            text.completion()  # raises what kept it from one
        return answers(prompt, generations, several)

    def astream(self, prompt: str, **options: Unpack[GenerationOptions]) -> AsyncStream:
        """`stream` for asyncio.

        Example:
            >>> async def read(prompt):
            ...     async with model.astream(prompt, max_new_tokens=8) as stream:
            ...         return "".join([piece async for piece in stream])
            >>> text = asyncio.run(read("It was a bright cold day"))
            >>> text == model.complete("It was a bright cold day", max_new_tokens=8).text
            True
        """
        (generation,) = self._generations(check_text("prompt", prompt), [check_settings(options)])
        return AsyncStream(async_pieces(self.loop, text_of(self, generation, streamed=True)), generation)

    def session(self) -> Session:
        """Begin an empty text that grows turn by turn; what was read before is cached.

        Example:
            >>> with model.session() as session:
            ...     answer = session.complete("It was a bright cold day", max_new_tokens=8)
            ...     session.rewind(8)
            >>> session.text
            'It was a bright cold day'
        """
        return Session(self.loop, self.prompting, self.drafting)

    def score(self, text: str, *, stride: int | None = None, progress: Callable[[int], object] | None = None) -> Score:
        """How likely the model finds a text, of any length from two tokens up.

        Args:
            text: The text; its first token has no context and is not scored.
            stride: Tokens from the start of one window to the start of the next, 1 to the context; by default half the
                context. A smaller one gives each token more context, and takes longer.
            progress: Called with the number of tokens scored since its last call.

        Raises:
            ValueError: A stride out of its range, or a text of less than two tokens.

        Example:
            >>> score = model.score("It was a bright cold day in April.")
            >>> score.scored_tokens == len(score.token_ids) - 1
            True
            >>> score.perplexity > 1
            True
        """
        context = self.prompting.context
        stride = max(1, context // 2) if stride is None else check_count("stride", stride, most=context)
        token_ids = self.encode(text)
        if len(token_ids) < 2:
            raise ValueError(f"text must be at least 2 tokens, as the first has none before it, got {len(token_ids)}")
        tell = progress or (lambda _: None)
        logprobs = score_ids(self.loop, token_ids, context=context, stride=stride, progress=tell)
        return Score(tuple(token_ids), logprobs, context, stride)

    @overload
    def inspect(
        self, text: str, *, outputs: Sequence[str] = OUTPUTS, layers: Iterable[int] | int | None = None
    ) -> Inspection: ...
    @overload
    def inspect(
        self, text: Prompts, *, outputs: Sequence[str] = OUTPUTS, layers: Iterable[int] | int | None = None
    ) -> list[Inspection]: ...
    def inspect(
        self, text: str | Prompts, *, outputs: Sequence[str] = OUTPUTS, layers: Iterable[int] | int | None = None
    ) -> Inspection | list[Inspection]:
        """Logits, hidden states and attention maps of a text, by the reference graph: float32 in any precision.

        Its session is made at the first call, and reads its weights memory-mapped from their file.

        Args:
            text: At most the context; an empty one is `<|endoftext|>`. A list of texts gives a list; texts do not
                affect one another.
            outputs: Some of `"logits"`, `"hidden_states"` and `"attentions"`, by default all of them: a text of 1,024
                tokens has 600 MB of attentions in GPT-2 small; those of one layer alone take 280 MB at most.
            layers: The layers whose attentions are wanted, from 0; by default all.

        Raises:
            BundleError: The bundle has no reference graph, or its weights are damaged.
            ValueError: A text over the context, or an option out of its range.

        Example:
            >>> seen = model.inspect("It was a bright cold day", layers=[0])
            >>> seen.attention(0, 1).shape == (len(seen.tokens), len(seen.tokens))
            True
            >>> len(seen.next_tokens(3))
            3
        """
        chosen = check_layers(layers, self.bundle.manifest.architecture.n_layer)
        return self.inspector.inspect(text, check_outputs(outputs), chosen)

    @overload
    def lens(self, text: str, *, k: int = 5, progress: Callable[[int], object] | None = None) -> Lens: ...
    @overload
    def lens(self, text: Prompts, *, k: int = 5, progress: Callable[[int], object] | None = None) -> list[Lens]: ...
    def lens(
        self, text: str | Prompts, *, k: int = 5, progress: Callable[[int], object] | None = None
    ) -> Lens | list[Lens]:
        """The logit lens: what each layer's hidden state would predict through `ln_f` and `lm_head`.

        Args:
            text: As in `inspect`.
            k: How many of the likeliest tokens, 1 to the vocabulary's size.
            progress: Called with the number of layers done since its last call; a text has one more than the model.

        Raises:
            BundleError: The bundle has no lens graph, or its weights are damaged.
            ValueError: A text over the context, or a k out of its range.

        Example:
            >>> lens = model.lens("It was a bright cold day", k=3)
            >>> lens.next_tokens(layer=2, position=0)[0].token_id == int(lens.top_ids[2, 0, 0])
            True
            >>> bool((lens.ranks[-1] == 1).all())
            True
        """
        k = check_count("k", k, most=self.bundle.manifest.architecture.vocab_size)
        return self.inspector.lens(text, k, progress or (lambda _: None))

    def summary(self) -> Summary:
        """The architecture, and every parameter counted by module.

        Example:
            >>> model.summary().total == model.bundle.manifest.architecture.parameters
            True
        """
        return summarize(self.bundle.manifest.architecture)

    def encode(self, text: str) -> list[int]:
        """The ids of a text.

        Example:
            >>> len(model.encode("It was"))
            2
        """
        return self.prompting.tokenizer.encode(check_text("text", text))

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of ids; bytes that make no character become U+FFFD.

        Example:
            >>> model.decode(model.encode("It was"))
            'It was'
        """
        return self.prompting.tokenizer.decode(check_ids(token_ids, self.bundle.manifest.architecture.vocab_size))

    def _generations(self, prompt: str | Prompts, several: Sequence[Settings]) -> list[Generation]:
        """Those of a prompt, or of each in a list, all checked before any begins."""
        return [self.prompting.begin(ids, settings) for ids in self._prompt_ids(prompt) for settings in several]

    def _searches(self, prompt: str | Prompts, settings: Settings, beams: Beams) -> list[BeamSearch]:
        return [self.prompting.begin_search(ids, settings, beams) for ids in self._prompt_ids(prompt)]

    def _found(self, prompt: str | Prompts, searches: Sequence[BeamSearch], several: Several) -> Answers:
        """What searches have found."""
        given = [
            [self.prompting.completion(beams.prompt_ids, ids, several.asked) for ids in beams.best(several.n or 1)]
            for beams in searches
        ]
        return shaped(prompt, given, several)

    def _prompt_ids(self, prompt: str | Prompts) -> list[list[int]]:
        if isinstance(prompt, list | tuple):
            named = [(text, f"prompt[{number}]") for number, text in enumerate(check_prompts(prompt))]
        elif isinstance(prompt, str):
            named = [(check_text("prompt", prompt), "prompt")]
        else:
            raise TypeError(f"prompt must be a string, or a list of strings, got {type(prompt).__name__}")
        return [self.prompting.encode(text, name) for text, name in named]


def generate(model: Model, generations: Iterable[Generation], *, at_once: int) -> Iterator[Generation]:
    """Generate side by side, and yield each generation when it has finished; raise what keeps one from that."""
    for generation, error in generate_each(model, generations, at_once=at_once):
        if error:
            raise error
        yield generation


def generate_each(
    model: Model, generations: Iterable[Generation], *, at_once: int
) -> Iterator[tuple[Generation, BundleError | None]]:
    """The same, but a graph that cannot be run for one text ends that text alone, with its error."""
    for text in model.loop.run_all((text_of(model, each) for each in generations), at_once):
        error = text.error if isinstance(text.error, BundleError) else None
        if error is None:
            text.completion()
        yield text.generation, error


def answers(prompt: str | Prompts, generations: Sequence[Generation], several: Several) -> Answers:
    made = iter([generation.completion() for generation in generations])
    return shaped(prompt, [several.given(each) for each in zip(*[made] * several.best_of, strict=True)], several)


def shaped(prompt: str | Prompts, given: list[list[Completion]], several: Several) -> Answers:
    """What a caller gets: a completion or, with `n`, a list of them, for a prompt or for each of a list."""
    if several.n is None:
        return given[0][0] if isinstance(prompt, str) else [completion for (completion,) in given]
    return given[0] if isinstance(prompt, str) else given


def text_of(model: Model, generation: Generation, *, streamed: bool = False) -> GeneratedText:
    return GeneratedText(generation, model.drafting.drafters(generation), streamed=streamed)
