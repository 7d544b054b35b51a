"""Queue inputs for an encoder, first for its tokenizer and then for a forward pass, fairly between projects.

    requests ──▶ Backlog, a queue for each flow ──slices──▶ tokenizer ──▶ Pool, sorted by length ──▶ micro-batches

A flow has the requests of one project, one rank and one size. Ranks are interactive clients, lines of batches from
another queue, and batches: a lower rank is always served first. Small requests, which fit into one forward pass, and
large ones are flows of their own. So a small request waits for the pass that runs now and for small ones before it,
and never behind a large request; large requests get their share whatever the number of small ones.

A flow with enough tokens in the pool gets no more from the tokenizer. The rest of it waits as text.
"""

import asyncio
import bisect
import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from jobs.inference.interactive import LINE_PRIORITY
from jobs.platform.limiters import VirtualTime
from workers.engines.port import Answer

PADDING_RATIO: Final = 1.25  # neighbours in a micro-batch differ by at most this factor
PADDING_TOKENS: Final = 8  # plus so many tokens: a forward pass of its own would cost more
TOKEN_CHARACTERS: Final = 4  # of a usual text: the estimate of a request's cost until its tokens are known


class Flow(NamedTuple):
    """Requests that are served in order. The flow with the lowest `rank` is served first."""

    rank: int
    large: bool
    project: str


@dataclass(eq=False, slots=True)
class EncoderTask:
    """One request in progress at an encoder (no job of the ledger). `sizes` are the characters of each input."""

    request: Any  # the checked request
    sizes: Sequence[int]
    flow: Flow
    priority: int
    answer: asyncio.Future[Answer]
    lengths: list[int] = field(default_factory=list)  # in tokens, of each tokenised input
    inputs: list[Any] = field(default_factory=list)  # their tokens, until all go into the pool
    truncated: list[int] = field(default_factory=list)  # indexes of the inputs that were cut off
    given: int = 0  # inputs that the tokenizer was given
    results: list[Any] = field(init=False)  # the result of each input, once computed
    missing: int = field(init=False)

    def __post_init__(self) -> None:
        self.missing = len(self.sizes)
        self.results = [None] * self.missing

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


def flow_of(project: str, priority: int, characters: int, batch_tokens: int) -> Flow:
    """Return the flow of a request with so many characters, for a model whose forward pass has `batch_tokens`."""
    rank = priority if priority <= LINE_PRIORITY else 0  # a batch's priority counts within its project
    return Flow(rank, characters > batch_tokens * TOKEN_CHARACTERS, project)


class TaskSlice(NamedTuple):
    """Consecutive inputs of a request: `job.request`'s from `first` up to, and without, `last`."""

    job: EncoderTask
    first: int
    last: int


Entry = tuple[int, int, EncoderTask, int, Any]  # length, order, job, index of the input, tokens


class Backlog:
    """The requests whose inputs are not all tokenised."""

    def __init__(self) -> None:
        self._flows: dict[Flow, list[tuple[int, int, EncoderTask]]] = defaultdict(list)
        self._order = itertools.count()

    def __len__(self) -> int:
        return sum(map(len, self._flows.values()))

    def jobs(self) -> list[EncoderTask]:
        return [job for waiting in self._flows.values() for _, _, job in waiting]

    def add(self, job: EncoderTask) -> None:
        bisect.insort(self._flows[job.flow], (job.priority, next(self._order), job))

    def slices(self, pooled: Counter[Flow], room: int, characters: int) -> list[TaskSlice]:
        """Return the next inputs to tokenise, about `characters` together, and at least one.

        `pooled` are the tokens of each flow that wait already: within a rank, the flow with the fewest comes first, and
        a flow with `room` tokens or more is left out.
        """
        self._drop_answered()
        pooled = pooled.copy()
        slices: list[TaskSlice] = []
        while characters > 0 and (open_flows := [flow for flow in self._flows if pooled[flow] < room]):
            flow = min(open_flows, key=lambda candidate: (candidate.rank, pooled[candidate], candidate.large))
            slices.append(self._next_slice(flow, characters))
            taken = sum(slices[-1].job.sizes[slices[-1].first : slices[-1].last])
            characters -= taken
            pooled[flow] += taken // TOKEN_CHARACTERS
        return slices

    def _next_slice(self, flow: Flow, characters: int) -> TaskSlice:
        job, first = self._flows[flow][0][2], self._flows[flow][0][2].given
        ends = itertools.accumulate(job.sizes[first:])
        job.given = first + max(1, sum(end <= characters for end in ends))
        if job.given == len(job.sizes):
            del self._flows[flow][0]
            if not self._flows[flow]:
                del self._flows[flow]
        return TaskSlice(job, first, job.given)

    def _drop_answered(self) -> None:
        """Drop requests that were cancelled or have failed."""
        for flow, waiting in list(self._flows.items()):
            waiting[:] = [item for item in waiting if not item[2].answer.done()]
            if not waiting:
                del self._flows[flow]


class InputPool:
    """The inputs that wait for a forward pass, sorted by length. `pooled` are the tokens of each flow."""

    def __init__(self) -> None:
        self.pooled: Counter[Flow] = Counter()
        self._sorted: list[Entry] = []
        self._flows: dict[Flow, list[tuple[int, int, Entry]]] = defaultdict(list)  # a heap for each flow, by order
        self._times: dict[int, VirtualTime[Flow]] = defaultdict(VirtualTime)  # of each rank
        self._order = itertools.count()
        self._left: set[int] = set()
        self._computed: Counter[Flow] = Counter()  # entries of each heap that do not wait any more

    def __len__(self) -> int:
        return len(self._left)

    def jobs(self) -> list[EncoderTask]:
        return [entry[2] for entry in self._sorted]

    def add(self, job: EncoderTask, which: int, tokens: Sized) -> None:
        entry = (len(tokens), next(self._order), job, which, tokens)
        bisect.insort(self._sorted, entry)
        heapq.heappush(self._flows[job.flow], (job.priority, entry[1], entry))
        self._left.add(entry[1])
        self.pooled[job.flow] += entry[0]

    def pick(self, budget: int) -> list[Entry]:
        """Return the next micro-batch, of at most `budget` padded tokens unless one input alone has more.

        The micro-batch is the input whose turn it is, with inputs of nearly its length from any request.
        """
        chosen = self._next()
        if chosen is None:
            return []
        first, last = self._window(chosen, budget)
        batch = self._sorted[first:last]
        del self._sorted[first:last]
        self._left.difference_update(entry[1] for entry in batch)
        self._times[chosen[2].flow.rank].advance(chosen[2].flow)
        for entry in batch:
            self._count_out(entry)
            self._times[entry[2].flow.rank].charge(entry[2].flow, max(1, entry[0]))
            self._computed[entry[2].flow] += 1
        for flow in {entry[2].flow for entry in batch}:
            self._compact(flow)
        return [entry for entry in batch if not entry[2].answer.done()]

    def _next(self) -> Entry | None:
        """Return the first input of the flow whose turn it is."""
        for flow in list(self._flows):
            self._clean(flow)
        if not self._flows:
            return None
        flow = min(self._flows, key=lambda flow: (flow.rank, self._times[flow.rank].start(flow), flow.large))
        return self._flows[flow][0][2]

    def _clean(self, flow: Flow) -> None:
        """Drop entries from the head of the flow that do not wait any more."""
        waiting = self._flows[flow]
        while waiting:
            order, entry = waiting[0][1:]
            if order in self._left and not entry[2].answer.done():
                return
            heapq.heappop(waiting)
            self._forget(entry)
        del self._flows[flow], self._computed[flow]

    def _forget(self, entry: Entry) -> None:
        if entry[1] not in self._left:
            self._computed[entry[2].flow] -= 1
            return
        self._left.discard(entry[1])
        del self._sorted[bisect.bisect_left(self._sorted, entry)]
        self._count_out(entry)

    def _compact(self, flow: Flow) -> None:
        """Rebuild the heap of a flow when more than half of its entries do not wait any more."""
        waiting = self._flows[flow]
        if self._computed[flow] * 2 > len(waiting):
            waiting[:] = [item for item in waiting if item[1] in self._left]
            heapq.heapify(waiting)
            del self._computed[flow]

    def _count_out(self, entry: Entry) -> None:
        flow = entry[2].flow
        self.pooled[flow] -= entry[0]
        if not self.pooled[flow]:
            del self.pooled[flow]

    def _window(self, chosen: Entry, budget: int) -> tuple[int, int]:
        """Return the micro-batch around `chosen`: shorter neighbours first, then longer ones while there is room."""
        length, index = chosen[0], bisect.bisect_left(self._sorted, chosen)
        last, size = index + 1, max(1, budget // max(1, length))
        first = max(last - size, bisect.bisect_left(self._sorted, _min_length(length), key=length_of), 0)
        while last < len(self._sorted):
            longer = self._sorted[last][0]
            if longer > _max_length(length) or (last + 1 - first) * longer > budget:
                break
            last += 1
        return first, last


def length_of(entry: Entry) -> int:
    """Return the tokens of an input in the pool."""
    return entry[0]


def _max_length(length: int) -> float:
    return length * PADDING_RATIO + PADDING_TOKENS


def _min_length(length: int) -> float:
    return (length - PADDING_TOKENS) / PADDING_RATIO
