"""One OpenAI-compatible server: its URL, models, circuit breaker and concurrency window.

    closed ──FAULTS in a row, or one refused connection──▶ open ──delay──▶ half-open: one probe
      ▲                                                     ▲                  │      │
      └──────────────────── the probe was answered ─────────┼──────────────────┘      │
                                                            └── it failed: 2x delay ──┘

The probe is a listing of models, never a user's request, so a poisonous request can't keep the circuit open.
The window is AIMD: one more slot per window of answers while it is full, half at a 429 or 503 (once per
window, since the refusals of one burst arrive together).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from jobs.fleet.models_file import ANY_MODEL, is_internal
from jobs.platform.limiters import Limit
from jobs.requests.endpoints import base_of
from jobs.timings import Timings

FAULTS: Final = 8  # in a row
FIRST_DELAY_SECONDS: Final = 1.0
LAST_DELAY_SECONDS: Final = 30.0
FIRST_WINDOW: Final = 64
MAX_PAUSE_SECONDS: Final = 5.0  # after a longer Retry-After the request goes back to its worker

Clock = Callable[[], float]
log = logging.getLogger(__name__)


class CircuitState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(slots=True)
class Circuit:
    clock: Clock = time.monotonic
    state: CircuitState = CircuitState.CLOSED
    _faults: int = 0
    _delay: float = FIRST_DELAY_SECONDS
    _until: float = 0.0

    @property
    def is_closed(self) -> bool:
        return self.state is CircuitState.CLOSED

    @property
    def wait(self) -> float:
        """Return the seconds until the next probe."""
        return max(0.0, self._until - self.clock())

    def is_due(self) -> bool:
        return self.state is CircuitState.OPEN and self.wait == 0

    def probe(self) -> None:
        self.state = CircuitState.HALF_OPEN

    def succeed(self) -> None:
        """Forget the faults before an answered request. Only a probe closes an open circuit."""
        self._faults = 0

    def close(self) -> None:
        self.state, self._faults, self._delay = CircuitState.CLOSED, 0, FIRST_DELAY_SECONDS

    def fault(self) -> None:
        self._faults += 1
        if self._faults >= FAULTS:
            self.trip()

    def trip(self) -> None:
        """Open the circuit, or double its delay if the probe failed."""
        if self.state is CircuitState.OPEN:
            return
        if self.state is CircuitState.HALF_OPEN:
            self._delay = min(self._delay * 2, LAST_DELAY_SECONDS)
        self.state, self._until = CircuitState.OPEN, self.clock() + self._delay


@dataclass(slots=True)
class RequestWindow:
    """The number of requests that a server takes at once, as found by AIMD; at most `maximum`."""

    maximum: int
    limit: float = field(init=False)
    cuts: int = 0  # a refusal counts only if its request was sent after the last cut

    def __post_init__(self) -> None:
        self.limit = float(min(FIRST_WINDOW, self.maximum))

    def grow(self, in_flight: float) -> None:
        """Add one slot for each `limit` answers, if the slots are used."""
        if in_flight >= int(self.limit):
            self.limit = min(float(self.maximum), self.limit + 1 / self.limit)

    def cut(self, cuts_when_sent: int) -> None:
        """Halve the window for a refused request, unless that was done since the request was sent."""
        if cuts_when_sent == self.cuts:
            self.limit = max(1.0, self.limit / 2)
            self.cuts += 1


@dataclass(eq=False, slots=True)
class Endpoint:
    """One server. `serves` maps our name of a model to the server's; None: ask the server what it has.

    `external` says whether its prompts leave the deployment; None: the host in its URL decides. `slots` are those of
    the window while the circuit is closed and the server asked for no pause, else none.
    """

    url: str
    api_key: str = ""
    serves: Mapping[str, str] | None = None
    concurrency: int = 256
    clock: Clock = time.monotonic
    external: bool | None = None
    listed_models: frozenset[str] | None = None  # None: the server has never answered
    paused_until: float = 0.0
    doubtful: bool = False  # a connection broke: the server may be dying
    refusing: dict[str, float] = field(default_factory=dict)  # models that the key is refused for; until when
    of_vllm: bool = False  # known from its listing: caches are separated by project
    of_tei: bool = False  # known from its answers: it has the re-ranking API of text-embeddings-inference
    unlisted_status: int = 0  # of the last listing that was no list; 0: it was one
    proving: asyncio.Lock = field(default_factory=asyncio.Lock)
    circuit: Circuit = field(init=False)
    window: RequestWindow = field(init=False)
    slots: Limit = field(init=False)
    _listed_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.url = base_of(self.url)
        if self.external is None:
            self.external = not is_internal(self.url)
        self.circuit = Circuit(self.clock)
        self.window = RequestWindow(self.concurrency)
        self.slots = Limit(int(self.window.limit))
        self._listed_at = float("-inf")

    @property
    def key(self) -> tuple[str, str, bool, bool | None]:
        """Return a key of this server and of how it is asked."""
        return self.url, self.api_key, self.serves is None, self.external

    # -- models

    @property
    def has_models(self) -> bool:
        return self.serves is not None or self.listed_models is not None

    @property
    def models(self) -> frozenset[str]:
        return frozenset(self.serves) if self.serves is not None else (self.listed_models or frozenset())

    def upstream(self, model: str) -> str | None:
        """Return the server's name of a model; None if it has none of that name."""
        if self.serves is not None:
            return self.serves.get(model)
        return model if model in (self.listed_models or ()) else None

    @property
    def takes_any(self) -> bool:
        """Return whether the server has no list of models: it is asked for names that no other server has."""
        return ANY_MODEL in self.models

    def refuses(self, model: str) -> float:
        """Return the seconds for which the server is not asked for a model, because it refused the key."""
        return max(0.0, self.refusing.get(model, 0.0) - self.clock())

    def note_refusal(self, model: str, seconds: float) -> float:
        self.refusing[model] = self.clock() + seconds
        return seconds

    # -- slots

    @property
    def pause(self) -> float:
        """Return the seconds that the server still asks us to wait."""
        return max(0.0, self.paused_until - self.clock())

    @property
    def takes_requests(self) -> bool:
        return self.circuit.is_closed and (not self.paused_until or self.pause == 0)

    def wait(self) -> float:
        """Return the seconds until the server may take requests again."""
        return self.pause if self.circuit.is_closed else max(self.pause, self.circuit.wait)

    def admit(self) -> None:
        """Bring the number of slots up to date, and give the free ones to requests that wait."""
        self.slots.resize(self._size())

    def release(self) -> None:
        """Return the slot of a request that has ended."""
        self.slots.size = self._size()
        self.slots.release()

    def refuse_waiting(self) -> None:
        """Take no more requests, so that those that wait look for another server."""
        self.admit()
        self.slots.refuse_waiting()

    def _size(self) -> int:
        return int(self.window.limit) if self.takes_requests else 0

    # -- health

    def fail(self, reason: object, *, unreachable: bool = False) -> None:
        """Count a fault; one of a server that is `unreachable` opens the circuit at once."""
        was_closed = self.circuit.is_closed
        if unreachable:
            self.circuit.trip()
        else:
            self.circuit.fault()
        if was_closed and not self.circuit.is_closed:
            log.warning("engine.circuit_opened", extra={"endpoint": self.url, "reason": str(reason)})
            self.refuse_waiting()

    def slow_down(self, cuts_when_sent: int, retry_after: float | None) -> None:
        """Send fewer requests at once, and none for as many seconds as the server asked for. On the event loop."""
        self.window.cut(cuts_when_sent)
        if not retry_after:
            return
        self.paused_until = max(self.paused_until, self.clock() + retry_after)
        # A little later than the pause: a timer may fire a clock tick early.
        asyncio.get_running_loop().call_later(retry_after + 0.01, self.admit)
        if retry_after > MAX_PAUSE_SECONDS:
            self.refuse_waiting()

    # -- the list of models, which is the probe of an open circuit too

    def is_listing_due(self, timings: Timings) -> bool:
        """Return whether to list the models: at first, to probe an open circuit, or as they may have changed."""
        if not self.circuit.is_closed:
            return self.circuit.is_due()
        return self.clock() - self._listed_at >= (timings.http_relist if self.has_models else timings.http_first_list)

    def begin_listing(self) -> None:
        """Note that a listing is on its way."""
        self._listed_at = self.clock()
        if not self.circuit.is_closed:
            self.circuit.probe()

    def finish_listing(self, names: frozenset[str] | None) -> None:
        """Note that the server answered a listing with the `names` of its models; None: with no list."""
        if not self.circuit.is_closed:
            log.info("engine.circuit_closed", extra={"endpoint": self.url})
        self.circuit.close()
        self.doubtful = False
        self.listed_models = self.listed_models if names is None else names
        self.admit()

    def fail_listing(self) -> None:
        """Note that a listing failed. A busy server may be slow to list, so only a probe is judged by it."""
        if self.circuit.state is CircuitState.HALF_OPEN:
            self.circuit.trip()
