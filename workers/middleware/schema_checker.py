"""Check texts against JSON Schemas in one child process, which is replaced when it takes too long or dies.

One thread talks to the child, one request at a time: the kernel ends the child with the thread that started it. Tenants
take turns, and a tenant whose schemas took too long is refused for a while.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from typing import Final

import msgspec

from jobs.platform.limiters import FairQueue
from jobs.timings import Timings
from workers.engines.port import EngineBusy
from workers.middleware.schema_checker_protocol import (
    MAX_ANSWER,
    MAX_TEXT,
    CheckRequest,
    CheckResult,
    InvalidSchema,
    decode_answer,
    encode,
)
from workers.sandbox.child import Child, Died, TimeUp
from workers.sandbox.confinement import Policy

log = logging.getLogger(__name__)

_MINUTE: Final = 60.0
_SLOW_SECONDS: Final = 60.0
_GOOD: Final = 1024  # how many valid schemas are remembered
_MAX_REFERENCES: Final = 1000
TOO_LONG: Final = f"it could not be checked within {Timings().schema_check:g} seconds and its memory."

SPENT: Final = "it is not checked now: others of this project took too long to be. Try again in a minute."

_Answer = CheckResult | InvalidSchema | None


class BadSchema(Exception):
    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class SchemaChecker:
    """Run checks in the child, fairly among tenants."""

    def __init__(self, timings: Timings = Timings()) -> None:
        self._seconds = timings.schema_check
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="schemas")
        self._queue = FairQueue[tuple[str, bytes, bytes, Future[_Answer]]]()
        self._budget = SlownessBudget(timings)
        self._child: Child | None = None
        self._good: OrderedDict[bytes, None] = OrderedDict()  # hashes of valid schemas
        self._slow: dict[bytes, float] = {}  # schemas that took too long, and until when they are refused

    async def check(self, schema: bytes, tenant: str = "") -> None:
        """Check that a schema is one.

        Raises: BadSchema, and EngineBusy if no child can be started.
        """
        if self._budget.is_spent(tenant):
            raise BadSchema(SPENT)
        if self._is_slow(schema):
            raise BadSchema(TOO_LONG)
        if schema.count(b'"$ref"') > _MAX_REFERENCES:
            raise BadSchema(f"it has more than {_MAX_REFERENCES} references.")
        name = sha256(schema).digest()
        if name not in self._good:
            await self.faults(schema, [], tenant)
            self._good[name] = None
            while len(self._good) > _GOOD:
                self._good.popitem(last=False)

    async def faults(self, schema: bytes, texts: Sequence[str], tenant: str = "") -> list[str | None]:
        """Return the error of each text; None if it matches.

        Raises: BadSchema, EngineBusy.
        """
        if sum(len(text.encode(errors="replace")) for text in texts) > MAX_TEXT:
            return ["it is too large to be checked."] * len(texts)
        ask = encode(CheckRequest(schema, [text.encode(errors="replace").decode() for text in texts]))
        future: Future[_Answer] = Future()
        self._queue.add(tenant, (tenant, schema, ask, future))
        self._thread.submit(self._next)
        answer = await asyncio.wrap_future(future)
        if isinstance(answer, InvalidSchema):
            raise BadSchema(answer.why)
        if answer is not None:
            return answer.faults
        why = TOO_LONG if self._is_slow(schema) or not self._budget.is_spent(tenant) else SPENT
        if not texts:
            raise BadSchema(why)
        return [why] * len(texts)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._end)

    def _next(self) -> None:
        """Answer the next request of the queue; called once for each that was added."""
        question = self._queue.pop()
        assert question is not None
        tenant, schema, ask, future = question
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(None if self._budget.is_spent(tenant) else self._ask(tenant, schema, ask))
        except Exception as error:  # noqa: BLE001 (the caller of `faults` gets it)
            future.set_exception(error)

    def _ask(self, tenant: str, schema: bytes, ask: bytes, tries: int = 2) -> _Answer:
        """Return the child's answer; None if the request was too much for the child.

        A child that died may have been killed from outside, so a second one is tried. A schema that was too much before
        is not tried again.
        """
        if self._is_slow(schema):
            return None
        child = self._ensure_child()
        try:
            return self._exchange(child, tenant, ask)
        except (Died, TimeUp, msgspec.MsgspecError) as error:
            log.warning("schema_child_replaced", extra={"reason": type(error).__name__})
            self._end()
            if isinstance(error, Died) and tries > 1:
                return self._ask(tenant, schema, ask, tries - 1)
            at = time.monotonic()
            self._slow = {slow_schema: until for slow_schema, until in self._slow.items() if until > at} | {
                schema: at + _SLOW_SECONDS
            }
            return None

    def _exchange(self, child: Child, tenant: str, ask: bytes) -> CheckResult | InvalidSchema:
        began = time.monotonic()
        try:
            child.send(ask)
            return decode_answer(child.receive(self._seconds, MAX_ANSWER))
        finally:
            self._budget.charge(tenant, time.monotonic() - began)

    def _is_slow(self, schema: bytes) -> bool:
        return self._slow.get(schema, 0.0) > time.monotonic()

    def _ensure_child(self) -> Child:
        if self._child is None:
            self._child = Child(Policy("workers.middleware.schema_checker_child"))
            try:
                self._child.begin()
            except (Died, TimeUp) as error:
                self._end()
                raise EngineBusy("Answers cannot be checked now.", retry_after=1.0) from error
        return self._child

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()


class SlownessBudget:
    """The slow seconds of each tenant; they are forgiven at a constant rate."""

    def __init__(self, timings: Timings = Timings(), clock: Callable[[], float] = time.monotonic) -> None:
        self._slow, self._share = timings.schema_slow, timings.schema_budget
        self._clock = clock
        self._spent: dict[str, tuple[float, float]] = {}  # seconds, and as of when

    def is_spent(self, tenant: str) -> bool:
        return self._debt(tenant) > self._share

    def charge(self, tenant: str, seconds: float) -> None:
        if seconds >= self._slow:
            spent = {name: known for name, known in self._spent.items() if self._debt(name)}
            self._spent = spent | {tenant: (self._debt(tenant) + seconds, self._clock())}

    def _debt(self, tenant: str) -> float:
        spent, at = self._spent.get(tenant, (0.0, 0.0))
        return max(spent - (self._clock() - at) * self._share / _MINUTE, 0.0)
