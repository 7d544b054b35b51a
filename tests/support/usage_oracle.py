"""Judge usage, costs and limits after a run, when nothing is pending any more.

    batches       their usage is what their jobs took, to the token
    other work    its usage is at least what its jobs took, and at most what the engine gave
    costs         each row costs its tokens at their prices, and the spend of a month is the sum of its costs
    spend limits  what was spent at each look is at most the limit and one shard, and nothing stays reserved
    rate limits   no more is answered than the limit admits

Each function yields violations in words. Money is in millionths of a US dollar, so a price of a million tokens in
dollars is that of one token.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

from jobs.usage.minutes import CACHE, TRAINING
from tests.support.fake_engine import usage_of
from tests.support.oracle import TERMINAL, Job
from tests.support.system import CACHED_MODEL, EMBED_MODEL, MODEL

PRICES = {"input": 100, "cached": 50, "output": 200}
PRICED_MODELS = (MODEL, EMBED_MODEL, CACHED_MODEL)
MICROS_PER_CENT = 10_000
#: Tokens of the answer to a line, at most: `Job.body` asks for no more.
_ANSWER_TOKENS = 16
#: Interactive requests that a fault may interrupt, each of which stays reserved until its deadline.
_INTERRUPTED = 8


class Tokens(NamedTuple):
    """The sums of tokens of some work."""

    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0

    def is_within(self, other: "Tokens") -> bool:
        """Return whether no sum is above that of the other."""
        return all(count <= limit for count, limit in zip(self, other, strict=True))

    @property
    def cost(self) -> int:
        uncached = self.input - self.cached
        return uncached * PRICES["input"] + self.cached * PRICES["cached"] + self.output * PRICES["output"]


@dataclass(slots=True)
class LimitedBatch(Job):
    """A batch of a project with limits, and the status that its client saw last."""

    status: str = ""

    @property
    def id(self) -> str:
        return self.batch_id

    @property
    def ended(self) -> bool:
        return self.status in TERMINAL


class UsageRow(NamedTuple):
    """A row of `usage_minute`, as far as its cost depends on it. `month` is the beginning of its month."""

    project_id: str
    month: int
    model: str
    endpoint: str
    subject: str
    tokens: Tokens
    cost: int | None


class SpendSample(NamedTuple):
    """What a project had spent in a month while a limit held."""

    limit: int
    spent: int


def tokens_of(prompt: str) -> Tokens:
    """Return what the stub engine takes for a prompt."""
    usage = usage_of(prompt, sha256(prompt.encode()).digest())
    return Tokens(usage.input_tokens, usage.cached_tokens, usage.output_tokens, usage.reasoning_tokens)


def sum_tokens(parts: Iterable[Tokens]) -> Tokens:
    return Tokens._make(map(sum, zip(Tokens(), *parts, strict=True)))


def shard_cost(batch: Job, lines: int) -> int:
    """Return the most that a shard of so many lines of a batch may cost: by this much a limit may be passed."""
    size = max(map(len, batch.jsonl().splitlines(keepends=True)))
    return lines * Tokens(input=size // 4 + 1, output=_ANSWER_TOKENS).cost


def usage_differences(jobs: Mapping[Any, Tokens], usage: Mapping[Any, Tokens]) -> Iterator[str]:
    """Yield the owners of batches whose usage is not what their jobs took."""
    for owner in sorted(jobs.keys() | usage.keys()):
        pair = jobs.get(owner, Tokens()), usage.get(owner, Tokens())
        if pair[0] != pair[1]:
            yield f"usage: the batches of {owner} took {pair[0]}, and {pair[1]} are recorded"


def missing_usage(jobs: Mapping[Any, Tokens], usage: Mapping[Any, Tokens]) -> Iterator[str]:
    """Yield the owners of jobs that took more than is recorded, where interactive clients may have taken more."""
    for owner, tokens in sorted(jobs.items()):
        if not tokens.is_within(usage.get(owner, Tokens())):
            yield f"usage: the jobs of {owner} took {tokens}, and {usage.get(owner, Tokens())} are recorded"


def usage_outside(name: str, usage: Tokens, *, least: Tokens, given: Tokens) -> Iterator[str]:
    """Yield why usage is less than answers that no fault has lost, or more than the engine gave."""
    if not least.is_within(usage):
        yield f"usage: {name} has {usage}, and answers before the first fault took {least}"
    if not usage.is_within(given):
        yield f"usage: {name} has {usage}, and the engine gave {given}: something is counted twice"


def wrong_costs(rows: Sequence[UsageRow], spend: Mapping[tuple[str, int], int]) -> Iterator[str]:
    """Yield rows that do not cost their tokens, and months whose spend is not the sum of the costs of their rows."""
    sums: dict[tuple[str, int], int] = {}
    for row in rows:
        if row.cost != (cost := _cost_of(row)):
            yield f"costs: {row} costs {row.cost}, not {cost}"
        owner = row.project_id, row.month
        sums[owner] = sums.get(owner, 0) + (cost or 0)
    for owner in sorted(sums.keys() | spend.keys()):
        if sums.get(owner, 0) != spend.get(owner, 0):
            yield f"costs: {owner} has spent {spend.get(owner, 0)}, and its usage costs {sums.get(owner, 0)}"


def _cost_of(row: UsageRow) -> int | None:
    if row.subject == CACHE or not row.model:
        return 0
    return row.tokens.cost if row.model in PRICED_MODELS and row.endpoint != TRAINING else None


def excess_spending(samples: Sequence[SpendSample], bound: int) -> Iterator[str]:
    """Yield the looks at which more was spent than a limit and the bound of what may pass it."""
    for limit, spent in samples:
        if spent > limit + bound:
            yield f"spend limit: {spent} were spent where {limit} and at most {bound} more were allowed"


def leftover_reservations(reserved: int, requests: int, faults: int) -> Iterator[str]:
    """Yield what stays reserved: of batches that have ended, and of more requests than faults can have interrupted."""
    if reserved:
        yield f"reservations: {reserved} are reserved for batches that have ended"
    if requests > _INTERRUPTED * faults:
        yield f"reservations: {requests} requests stay reserved after {faults} faults"


def excess_answers(answers: int, seconds: float, rate: int, resets: int) -> Iterator[str]:
    """Yield why more requests were answered than a rate admits that began anew `resets` times."""
    limit = rate * (1 + seconds / 60 + resets)
    if answers > limit:
        yield f"rate limit: {answers} requests were answered in {seconds:.0f} s, and {limit:.0f} may be"


def wrong_cancellation(batch: LimitedBatch, codes: Sequence[str | None]) -> Iterator[str]:
    """Yield why a batch whose key was revoked was cancelled for another reason."""
    if batch.status == "cancelled" and list(codes) != ["key_revoked"]:
        yield f"{batch.key}: its key was revoked, and {batch.id} was cancelled with {list(codes)}"
