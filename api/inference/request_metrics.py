"""Measures of interactive requests by model, as their clients see them: for Prometheus, and for the project's own view.

    RequestMetrics ──▶ queued ──▶ taken by a worker ──▶ first chunk ──▶ end, or an error
                         └─ waiting ─┘                       └─ time to first token

Prometheus reads those of each process; `record` counts them by project, in the database. A stream whose connection
breaks is measured up to there, whether it is resumed or not.
"""

import re
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from http import HTTPStatus
from typing import Final

import msgspec
from prometheus_client import Counter, Gauge, Histogram

from api.health.metrics import OTHER, REGISTRY
from jobs.errors import NightmillError
from jobs.inference.interactive import AnswerEntry
from jobs.inference.request_counts import ERRORS, SECONDS, SPEEDS, TOKEN_TYPES, TOKENS, bucket_of

#: The events of a response before its first token.
_BEGINNING: Final = re.compile(rb'"type": ?"response\.(created|queued|in_progress)"')
_CODE: Final = re.compile(r"[a-z0-9_.-]{1,64}")
_MAX_CODES: Final = 100
_codes = set[str]()  # that engines have answered with
_SECONDS = Histogram(
    "nightmill_interactive_seconds",
    "Time from an interactive request to the end of its answer, where it has one.",
    ("model",),
    registry=REGISTRY,
    buckets=SECONDS,
)
_FIRST_TOKEN = Histogram(
    "nightmill_interactive_first_token_seconds",
    "Time from an interactive request to the first chunk of its stream.",
    ("model",),
    registry=REGISTRY,
    buckets=SECONDS,
)
_SPEED = Histogram(
    "nightmill_interactive_tokens_per_second",
    "Output tokens a second of a stream, from its first chunk to its end; of another answer, from its request.",
    ("model",),
    registry=REGISTRY,
    buckets=SPEEDS,
)
_USED = Counter(
    "nightmill_interactive_tokens", "Tokens of answered interactive requests.", ("model", "type"), registry=REGISTRY
)
_ERRORS = Counter(
    "nightmill_interactive_errors",
    "Interactive requests that ended with an error, whosesoever fault it was.",
    ("model", "code"),
    registry=REGISTRY,
)
_WAITING = Gauge(
    "nightmill_interactive_waiting",
    "Interactive requests in queues that no worker has taken yet.",
    ("model",),
    registry=REGISTRY,
)


class RequestMetrics:
    """Measure one request. `model` is a name of the models file, of a tuned model, or `OTHER`.

    `record(model, measure, bucket, total, count)` counts values by project.
    """

    def __init__(self, model: str = OTHER, record: Callable[[str, str, str, float, int], None] | None = None) -> None:
        self.model = model
        self._record = record
        self._began = time.perf_counter()
        self._generating_since = self._began
        self._waits = self._has_chunk = False

    @contextmanager
    def counting_errors(self) -> Iterator[None]:
        """Count an error that the block raises, by its code."""
        try:
            yield
        except NightmillError as error:
            self._count_error(error.code or error.type)
            raise

    async def follow(self, entries: AsyncGenerator[AnswerEntry]) -> AsyncGenerator[AnswerEntry]:
        """Yield the entries of the answer as they come, and measure them."""
        self._waits = True
        _WAITING.labels(self.model).inc()
        try:
            async with aclosing(entries):
                with self.counting_errors():
                    async for entry in entries:
                        self._measure(entry)
                        yield entry
        finally:
            self._stop_waiting()

    def _measure(self, entry: AnswerEntry) -> None:
        if entry.kind != "late":
            self._stop_waiting()
        if entry.kind == "chunk" and not self._has_chunk and not _BEGINNING.search(entry.body):
            self._has_chunk = True
            self._generating_since = time.perf_counter()
            self._observe(_FIRST_TOKEN, "first_token", self._generating_since - self._began)
        elif entry.kind == "end" and entry.status < HTTPStatus.BAD_REQUEST:
            ended = time.perf_counter()
            self._observe(_SECONDS, "duration", ended - self._began)
            used = dict(zip(TOKEN_TYPES, entry.usage, strict=False))
            for kind, tokens in used.items():
                self._count(_USED, TOKENS, kind, tokens)
            if (output := used.get("output", 0)) and (seconds := ended - self._generating_since) > 0:
                self._observe(_SPEED, "speed", output / seconds)
        elif entry.kind == "end":
            self._count_error(_code_of(entry))

    def _stop_waiting(self) -> None:
        if self._waits:
            self._waits = False
            _WAITING.labels(self.model).dec()

    def _count_error(self, code: str) -> None:
        self._count(_ERRORS, ERRORS, code, 1)

    def _observe(self, histogram: Histogram, measure: str, value: float) -> None:
        histogram.labels(self.model).observe(value)
        if self._record:
            self._record(self.model, measure, bucket_of(measure, value), value, 1)

    def _count(self, counter: Counter, measure: str, word: str, number: int) -> None:
        counter.labels(self.model, word).inc(number)
        if self._record and number:
            self._record(self.model, measure, word, number, number)


class _Error(msgspec.Struct):
    code: str | None = None


class _Failed(msgspec.Struct):
    error: _Error


def _code_of(entry: AnswerEntry) -> str:
    """Return the code of an error, else its status. Servers behind a URL choose codes: form and number are bounded."""
    try:
        code = msgspec.json.decode(entry.body, type=_Failed).error.code or ""
    except msgspec.MsgspecError:
        code = ""
    if not _CODE.fullmatch(code) or (code not in _codes and len(_codes) == _MAX_CODES):
        return str(entry.status)
    _codes.add(code)
    return code
