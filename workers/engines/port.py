"""The engine port: one request in, one answer out.

    Request ──▶ Engine.answer ──▶ Answer          the engine judged it (any HTTP status)
                     ├─ EngineBusy                 it never got in: nothing counts, come back later
                     ├─ EngineFault                this request broke in transport: it counts one try
                     └─ EngineDead                 the engine is gone: every request in flight is suspect

Engines of this deployment also answer what evaluations ask: `vllm` how likely a text is, `embed` a BERTScore.

Adapters: `vllm` (in process), `http` (any OpenAI-compatible server), `embed` and `rerank` (sentence-transformers).
`router` picks one by model. The tests have a fake.
"""

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import msgspec


@dataclass(frozen=True, slots=True)
class Adapter:
    """The weights that turn a base model into a tuned one, as files in `folder`.

    `name` is made from `sha256` and is never given to other bytes: engines key their prefix cache by it. Where
    it is `whole`, it replaces the weights of the base; otherwise it is added to them. `trial` counts how often an
    operator has decided about its probe; an `accepted` one is served whatever the probe says.
    """

    name: str
    sha256: str
    folder: Path
    whole: bool = False
    trial: int = 0
    accepted: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One request, ready for an engine.

    `url` is the OpenAI path (`/v1/chat/completions`), `body` its JSON with the model already resolved to the engine's
    own name. A lower `priority` is served first. A shared engine does not share cached prefixes between tenants.
    `job_id` is the job of a batch's line, `key_id` the key that the usage belongs to. The answer to a request that is
    not `cacheable` is not cached (see `workers.middleware.cache`). With an `adapter` the model of the body is its base.
    """

    url: str
    body: dict[str, Any]
    request_id: str
    priority: int = 0
    tenant: str = ""
    job_id: str | None = None
    cacheable: bool = True
    adapter: Adapter | None = None
    key_id: str = ""


class Usage(msgspec.Struct, frozen=True, gc=False):
    """The tokens of one answer; `cached_tokens` are part of the input's, `reasoning_tokens` of the output's.

    A struct, because each line makes several, and a frozen dataclass takes ten times as long to make.
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
    """An engine's answer: an HTTP status, the JSON body as bytes, and the tokens that it cost.

    For `status >= 400` the body is OpenAI's `{"error": {...}}`. `tokens` are the tokens of each input of an embedding,
    where the engine counts them for each input. `is_cached`: no engine was asked, and the tokens cost nothing.
    """

    status: int
    body: bytes
    usage: Usage = field(default_factory=Usage)
    tokens: tuple[int, ...] = ()
    is_cached: bool = False


def refusal(status: int, message: str, *, code: str | None = None, param: str | None = None) -> Answer:
    """Return an answer in OpenAI's error shape."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": param, "code": code}
    return Answer(status, msgspec.json.encode({"error": error}))


def unknown_model(name: str) -> Answer:
    return refusal(404, f"The model `{name}` does not exist.", code="model_not_found", param="model")


Emit = Callable[[bytes], Awaitable[None]]  # takes one event of a stream, as JSON


@dataclass(frozen=True, slots=True)
class Length:
    """The tokens of a prompt, and the `limit` for prompt and answer together; None where the limit is unknown.

    An engine that has the model's tokenizer and chat template counts; otherwise the number is an estimate.
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
    """No engine here has the model now: a request that waits for it would hold up the others."""


class EngineFault(EngineError):
    """This request was sent and broke: reset, timeout, a 5xx, an answer that is not JSON or is too large.

    `answer` is the server's answer, if it gave one: it becomes the line's result after the last try. `unreachable` says
    that the server could not be reached afterwards, so that any request in flight may have killed it.
    """

    def __init__(self, message: str, answer: Answer | None = None, *, unreachable: bool = False) -> None:
        super().__init__(message)
        self.answer = answer
        self.unreachable = unreachable


class AdapterRefused(EngineError):
    """The engine will never take this adapter: it does not fit the model, or answers unlike its trainer.

    `failed_probe` says that it was the second.
    """

    def __init__(self, message: str, *, failed_probe: bool = False) -> None:
        super().__init__(message)
        self.failed_probe = failed_probe


class EngineDead(EngineError):
    """The engine process has ended; `start()` builds a new one. `models` are the models that it served, where known."""

    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Suspect:
    """A line or request that was in flight when an engine died, and how often it was in flight at deaths before."""

    name: str
    model: str
    times: int = 0


class EngineHealth(Protocol):
    """Decide whether an engine that died is built again. Called on the engines' loop."""

    async def note_start(self, models: tuple[str, ...]) -> None:
        """Note that the engine of `models` is started now, unless it runs."""

    async def note_death(
        self, models: tuple[str, ...], error: Exception, suspects: Sequence[Suspect], *, starting: bool
    ) -> bool:
        """Note a death; return whether the engine is not to be built again."""

    async def came_up(self, models: tuple[str, ...]) -> None: ...


@runtime_checkable
class Phased(Protocol):
    """An engine that reports its phase while it starts."""

    @property
    def phase(self) -> str:
        """Return the current step of `start`, such as "reading the weights". May be read from any thread."""


class Engine(Protocol):
    """The port that a worker asks. All methods run on the event loop that called `start`."""

    @property
    def models(self) -> tuple[str, ...]: ...

    async def start(self) -> None:
        """Load, or load again after `EngineDead`. May take minutes. Idempotent."""

    async def answer(self, request: Request) -> Answer:
        """Answer one request; cancelling the awaiting task aborts it in the engine.

        Raises EngineBusy, EngineFault, EngineDead.
        """

    async def stream(self, request: Request, emit: Emit) -> Answer:
        """Hand each event of the answer to `emit`. Return 200 without a body, or a refusal.

        Raises EngineBusy, EngineFault, EngineDead, the last two perhaps after some events.
        """

    async def close(self) -> None: ...


@runtime_checkable
class BatchLimited(Protocol):
    """An engine that limits the lines of batches that it runs at once."""

    def batch_limits(self, while_interactive: int) -> tuple[int, int] | None:
        """Return the limit of lines while an interactive client waits, and while none does; None: no limit.

        `while_interactive` is the first limit as the operator has set it; 0: the engine chooses.
        """


@dataclass(frozen=True, slots=True)
class Passage:
    """A chat, and tokens that may follow it."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None
    continuation: Sequence[int]


@dataclass(frozen=True, slots=True)
class Score:
    """The tokens of a passage's chat as the model reads them, and the log-probability of each token that follows."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


def likelihood_answer(model: str, score: Score) -> Answer:
    """Return the answer of an engine that was asked, at the path LIKELIHOOD, how likely a text is.

    `tokens` counts the tokens that were predicted: all but the first.

    Raises EngineFault where a log-probability is not a finite number.
    """
    tokens, log_likelihood = len(score.logprobs), math.fsum(score.logprobs)
    if not tokens:
        return refusal(400, "A text needs two tokens at least to have a likelihood.", param="input")
    if not math.isfinite(log_likelihood):
        raise EngineFault("The engine gave a log-probability that is not a finite number.")
    prompt_tokens = len(score.token_ids) + tokens
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 0, "total_tokens": prompt_tokens}
    body = {"object": "likelihood", "model": model, "tokens": tokens, "log_likelihood": log_likelihood, "usage": usage}
    return Answer(200, msgspec.json.encode(body), Usage(prompt_tokens))


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
        """Return how many adapters the engine holds at once; 0 where it takes none."""

    async def score(self, model: str, passages: Sequence[Passage], adapter: Adapter | None) -> list[Score]:
        """Return how the model, with the adapter or without one, reads and continues each passage.

        Raises AdapterRefused, EngineFault, EngineDead.
        """
