"""One OpenAI-compatible server, as the HTTP engine sees it: where it is, what it serves, how it is doing."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from jobs.fleet.models_file import ANY_MODEL, is_internal
from jobs.requests.endpoints import base_of
from workers.engines.limits import Circuit, CircuitState, Clock, Window

RELIST_SECONDS: Final = 30.0  # a server may load other models
UNKNOWN_SECONDS: Final = 2.0


@dataclass(eq=False, slots=True)
class Endpoint:
    """`serves` maps our name of a model to the server's; None: ask the server what it has.

    `external`: whether prompts leave the deployment with it; None: as the host in its URL tells.
    """

    url: str
    api_key: str = ""
    serves: Mapping[str, str] | None = None
    concurrency: int = 256
    clock: Clock = time.monotonic
    external: bool | None = None
    found: frozenset[str] | None = None  # None: it never answered
    paused_until: float = 0.0
    doubtful: bool = False  # a connection broke: it may be dying
    refusing: dict[str, float] = field(default_factory=dict)  # models that our key is refused for; until when
    of_vllm: bool = False  # by its listing: its caches are kept apart by project
    of_tei: bool = False  # it re-ranks as text-embeddings-inference does
    unlisted_status: int = 0  # of the last answer to a listing that was no list; 0: the last one was
    proving: asyncio.Lock = field(default_factory=asyncio.Lock)
    circuit: Circuit = field(init=False)
    window: Window = field(init=False)
    _listed_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.url = base_of(self.url)
        if self.external is None:
            self.external = not is_internal(self.url)
        self.circuit = Circuit(self.clock)
        self.window = Window(self.concurrency)
        self._listed_at = float("-inf")

    @property
    def key(self) -> tuple[str, str, bool, bool | None]:
        """Two with the same are the same server, asked in the same way."""
        return self.url, self.api_key, self.serves is None, self.external

    @property
    def known(self) -> bool:
        return self.serves is not None or self.found is not None

    @property
    def models(self) -> frozenset[str]:
        return frozenset(self.serves) if self.serves is not None else (self.found or frozenset())

    def upstream(self, model: str) -> str | None:
        """The server's name of a model; None if it has none of that name."""
        if self.serves is not None:
            return self.serves.get(model)
        return model if model in (self.found or ()) else None

    @property
    def takes_any(self) -> bool:
        """Whether the server has no list of models: it is asked for names that no other server has."""
        return ANY_MODEL in self.models

    def refuses(self, model: str) -> float:
        """Seconds for which it is not asked for a model again, since it refused our key."""
        return max(0.0, self.refusing.get(model, 0.0) - self.clock())

    def refused(self, model: str, seconds: float) -> float:
        self.refusing[model] = self.clock() + seconds
        return seconds

    @property
    def pause(self) -> float:
        """Seconds that the server asked us to wait."""
        return max(0.0, self.paused_until - self.clock())

    def ready(self) -> bool:
        return self.circuit.closed and self.window.room > 0 and (not self.paused_until or self.pause == 0)

    def wait(self) -> float:
        """Seconds until it is worth asking again."""
        return self.pause if self.circuit.closed else max(self.pause, self.circuit.wait)

    def listing_due(self) -> bool:
        """Is it time to list its models: at first, to probe an open circuit, or as they may have changed?"""
        if not self.circuit.closed:
            return self.circuit.due()
        return self.clock() - self._listed_at >= (RELIST_SECONDS if self.known else UNKNOWN_SECONDS)

    def listing(self) -> None:
        """A listing is on its way."""
        self._listed_at = self.clock()
        if not self.circuit.closed:
            self.circuit.probe()

    def listed(self, names: frozenset[str] | None) -> None:
        """Note that the server answered a listing, with the `names` of its models; None: it did not show them."""
        self.circuit.close()
        self.doubtful = False
        self.found = self.found if names is None else names

    def unlisted(self) -> None:
        """The listing failed. A server that is busy may be slow to list, so only a probe is judged by it."""
        if self.circuit.state is CircuitState.HALF_OPEN:
            self.circuit.trip()
