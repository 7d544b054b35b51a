"""The engine port: one request in, one answer out.

    Request ──▶ Engine.answer ──▶ Answer          the engine judged it (any HTTP status)
                     ├─ EngineBusy                 it never got in: nothing counts, come back later
                     ├─ EngineFault                this request broke in transport: it counts one try
                     └─ EngineDead                 the engine is gone: every request in flight is suspect

Adapters: `vllm` (in process), `http` (any OpenAI-compatible server), `embed` and `rerank` (sentence-transformers),
`fake` (tests and fault injection). `router` picks one by model.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import msgspec


@dataclass(frozen=True, slots=True)
class Adapter:
    """The weights that turn a base model into a tuned one, as files in `folder`.

    `name` is made from `sha256` and is never given to other bytes: engines key their prefix cache by it.
    """

    name: str
    sha256: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Request:
    """One line of a batch, ready for an engine.

    `url` is the OpenAI path (`/v1/chat/completions`), `body` its JSON with the model already resolved to
    the engine's own name. A lower `priority` is served first. What tenants send to a shared engine is kept apart:
    a prefix that one of them has cached is no faster for another. `job_id` is whose line it is; what is not `kept`
    leaves nothing in the cache (see `workers.middleware.caching`). With an `adapter` the model of the body is its base.
    """

    url: str
    body: dict[str, Any]
    request_id: str
    priority: int = 0
    tenant: str = ""
    job_id: str | None = None
    cacheable: bool = True
    adapter: Adapter | None = None


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens of one answer; `cached_tokens` are among the input's, `reasoning_tokens` among the output's.

    Not a dataclass, for each line makes some: a frozen one takes ten times as long to make.
    """

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input_tokens + other.input_tokens,
            self.cached_tokens + other.cached_tokens,
            self.output_tokens + other.output_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What the engine said: an HTTP status, the JSON body as bytes, and what it cost.

    For `status >= 400` the body is OpenAI's `{"error": {...}}`. `tokens` are those of each input of an embedding, where
    the engine counts them so.
    """

    status: int
    body: bytes
    usage: Usage = field(default_factory=Usage)
    tokens: tuple[int, ...] = ()


def refusal(status: int, message: str, *, code: str | None = None, param: str | None = None) -> Answer:
    """An answer in OpenAI's error shape."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": param, "code": code}
    return Answer(status, msgspec.json.encode({"error": error}))


def unknown_model(name: str) -> Answer:
    return refusal(404, f"The model `{name}` does not exist.", code="model_not_found", param="model")


Emit = Callable[[bytes], Awaitable[None]]  # takes one event of a stream, as JSON


@dataclass(frozen=True, slots=True)
class Length:
    """How many tokens a prompt has, and how many its model takes with its answer; None where nobody knows.

    Engines that have the model's tokenizer and chat template count; of others it is an estimate.
    """

    tokens: int
    limit: int | None
    exact: bool = True


class EngineError(Exception):
    """An engine gave no answer."""


class EngineBusy(EngineError):
    """The request never reached the model: refused connection, open circuit, 503, 429.

    `retry_after` is in seconds; None where the engine gave no hint.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unserved(EngineBusy):
    """Nobody here has the model now: to wait for it in place is to keep others from theirs."""


class EngineFault(EngineError):
    """This request was sent and broke: reset, timeout, a 5xx, an answer that is not JSON or is too large.

    `answer` is what the server said, if it said something: the item's line when its tries are used up.
    `gone`: the server was not there any more afterwards, so that whoever was in flight may have taken it down.
    """

    def __init__(self, message: str, answer: Answer | None = None, *, unreachable: bool = False) -> None:
        super().__init__(message)
        self.answer = answer
        self.unreachable = unreachable


class AdapterRefused(EngineError):
    """The engine does not take this adapter, now or later: it does not fit the model, or answers unlike its trainer.

    `failed_probe` is the latter.
    """

    def __init__(self, message: str, *, failed_probe: bool = False) -> None:
        super().__init__(message)
        self.failed_probe = failed_probe


class EngineDead(EngineError):
    """The engine process is gone; `start()` builds a new one. `models` are those it served, where that is known."""

    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Suspect:
    """What was in flight when an engine died: a line or a question as it is told, and how often that was so before."""

    name: str
    model: str
    times: int = 0


class EngineHealth(Protocol):
    """Decide whether an engine that died is built again. Called on the engines' loop."""

    async def builds(self, models: tuple[str, ...]) -> None:
        """It is started now, unless it runs."""

    async def died(
        self, models: tuple[str, ...], error: Exception, suspects: Sequence[Suspect], *, starting: bool
    ) -> bool:
        """Whether it is to be left alone from now on."""

    async def came_up(self, models: tuple[str, ...]) -> None: ...


@runtime_checkable
class Phased(Protocol):
    """An engine that says what it is doing while it starts."""

    @property
    def phase(self) -> str:
        """Return what `start` is doing, such as "reading the weights". May be read from any thread."""


class Engine(Protocol):
    """What a worker needs of an engine. All methods run on the event loop that called `start`."""

    @property
    def models(self) -> tuple[str, ...]: ...

    async def start(self) -> None:
        """Load, or load again after `EngineDead`. May take minutes. Idempotent."""

    async def answer(self, request: Request) -> Answer:
        """Answer one request; cancelling the awaiting task aborts it in the engine.

        Raises EngineBusy, EngineFault, EngineDead.
        """

    async def stream(self, request: Request, emit: Emit) -> Answer:
        """Answer in pieces, each handed to `emit`. The Answer says how it ended: 200 without a body, or a refusal.

        Raises EngineBusy, EngineFault, EngineDead, the last two after some pieces perhaps.
        """

    async def close(self) -> None: ...


@runtime_checkable
class Crowded(Protocol):
    """An engine that says how much of a batch it takes beside a request that somebody waits for."""

    def crowd(self, beside: int) -> tuple[int, int] | None:
        """The most requests of a batch while somebody waits, and while nobody does; None: all. `beside` is set."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A chat, and tokens that may follow it."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None
    continuation: Sequence[int]


@dataclass(frozen=True, slots=True)
class Score:
    """The tokens of a passage's chat as the model is shown them, and the log-probability of each that follows."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@runtime_checkable
class AdapterEngine(Protocol):
    """An engine that answers with an adapter where a request names one.

    An adapter is loaded when a request names it for the first time, while the engine runs nothing else. A request whose
    adapter is not taken raises AdapterRefused.
    """

    @property
    def version(self) -> str:
        """Return the engine's name and version, such as `vllm-0.32.0`."""

    @property
    def adapters(self) -> int:
        """Return how many adapters it holds at once; 0 where it takes none."""

    async def score(self, model: str, passages: Sequence[Passage], adapter: Adapter | None) -> list[Score]:
        """Return how the model, with the adapter or without one, reads and continues each passage.

        Raises AdapterRefused, EngineFault, EngineDead.
        """
