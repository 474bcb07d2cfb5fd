"""The parts of a model (tokenizer, decode graph, drafting, inspector), loaded here, or again in another process."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from runtime.bundle.bundle import Bundle
from runtime.bundle.same_files import check_untouched, names_read, reopen
from runtime.engine.drafting import Drafting
from runtime.engine.loop import Loop
from runtime.engine.scheduler import Scheduler
from runtime.exits import native
from runtime.graphs.decode import DecodeGraph, open_decode_graph
from runtime.graphs.work import Slots
from runtime.inside.inspector import Inspector
from runtime.ort.placement import Placement
from runtime.text.prompts import Prompting

DRAFT_THREADS = 1  # those of another session spin for a while after its runs, in the way of the next one's
EXACT = {"fp32"}  # MatMulNBits rounds the inputs of one id otherwise than those of several; so may an int8 cache


@dataclass(frozen=True)
class Parts:
    """The parts that a model uses in one process."""

    prompting: Prompting
    decode_graph: DecodeGraph
    loop: Loop
    drafting: Drafting
    inspector: Inspector


@dataclass(frozen=True)
class Loading:
    """The bundle and the options that a model is loaded with."""

    bundle: Bundle
    precision: str
    placement: Placement
    threads: int | None = None
    draft: str | None = None
    verify: bool = False
    slots: int | None = None
    prefix_cache: bool = True
    cache: str = "float32"

    @property
    def precisions(self) -> list[str]:
        """The precisions whose weights are read."""
        return [each for each in (self.precision, self.draft) if each]

    def make(self) -> Parts:
        with native():
            return self._make()

    def _make(self) -> Parts:
        open_graph = partial(open_decode_graph, self.bundle, placement=self.placement, own=self.verify)
        with ThreadPoolExecutor(max_workers=1) as beside:  # the tokenizer takes 0.1 s, ONNX Runtime's sessions more
            reading = beside.submit(Prompting, self.bundle)
            decode_graph = open_graph(precision=self.precision, cache=self.cache, threads=self.threads)
        prompting = reading.result()
        drafts = open_graph(precision=self.draft, threads=DRAFT_THREADS) if self.draft else None
        hashed = not self.verify or self.precision == "fp32"
        inspector = Inspector(
            self.bundle, prompting, placement=self.placement, threads=self.threads, hash_weights=not hashed
        )
        exact = self.precision in EXACT and self.cache == "float32" and not self.placement.on_device
        loop = Loop(Scheduler(make_slots(decode_graph, self.slots), prefix_cache=self.prefix_cache))
        return Parts(prompting, decode_graph, loop, Drafting(exact=exact, drafter=drafts), inspector)

    def again(self) -> Parts:
        """Make the same parts in another process, from the same files, hashed only if they may have changed."""
        bundle = reopen(self.bundle, self.precisions)
        parts = replace(self, bundle=bundle).make()
        check_untouched(bundle, names_read(bundle, self.precisions))
        return parts


def make_slots(graph: DecodeGraph, asked: int | None) -> Slots:
    """As many slots as were asked for; by default fewer where the system promises no memory that it may not have."""
    count = graph.slots_for(asked)
    while True:
        try:
            return graph.slots(count)
        except MemoryError:
            if asked or count == 1:
                raise
            count = max(1, count // 4)
