"""Ask the shadow of an alias what a client has asked, once the client has its answer.

    client ◀── answer ◀── target of the alias
                 └─ it ended ─▶ a task ─▶ the shadow's queue, behind all other work ─▶ compared and counted, not stored
                                  └─ too many in flight: dropped, and counted

The client waits for none of this, and meets no error of it. A request whose answer failed, or whose client left, is not
asked again. It takes nothing of the rate limits; its tokens are used and paid as those of any request. An alias whose
shadow is compared by graders keeps both answers for its online evaluations, unless the project keeps nothing.
"""

import random
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, Final

import msgspec

from api.deps import CallContext
from api.inference import spending
from api.inference.targets import find_target, rules_of_project, worker_check
from jobs.clock import now
from jobs.errors import (
    BrokerFull,
    NightmillError,
    Overloaded,
    RequestTimeout,
    SpendLimitReached,
    TooManyRequests,
    WorkerLost,
)
from jobs.fleet.access import Work
from jobs.ids import new_id
from jobs.inference import shadow_answers
from jobs.inference.interactive import SHADOW_PRIORITY, AnswerEntry, QueuedRequest, shadow_queue
from jobs.inference.request_counts import ShadowCounts
from jobs.inference.responses import COUNT_URL
from jobs.registry.aliases import WHOLE, AliasRouting, Shadow
from jobs.requests.endpoints import CHAT, COMPLETIONS, RESPONSES

#: The endpoints whose requests are asked again, and the field with the input.
_INPUTS: Final[Mapping[str, str]] = {CHAT: "messages", COMPLETIONS: "prompt", RESPONSES: "input"}
#: The fields of a client that reads a stream, or waits.
_OF_CLIENT: Final = frozenset({"service_tier", "stream", "stream_options"})
#: The tier of the usage: a shadow runs after the requests of all clients.
_TIER: Final = "flex"
_MAX_TEXT: Final = 1 << 20  # characters of an answer that is compared


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    """A choice of a completion or a chat, whole or in a chunk."""

    index: int = 0
    text: str | None = None
    message: _Message | None = None
    delta: _Message | None = None


class _Part(msgspec.Struct):
    text: str | None = None


class _Item(msgspec.Struct):
    type: str = ""
    content: list[_Part] | None = None


class _Answer(msgspec.Struct):
    """An answer, a chunk of a stream, or the event of a response, which has the response so far."""

    choices: list[_Choice] = []
    output: list[_Item] | None = None
    response: "_Answer | None" = None


_decode = msgspec.json.Decoder(_Answer).decode


class AnswerText:
    """The text of an answer, from its entries, up to a length: all choices, or the messages of a response."""

    def __init__(self) -> None:
        self._texts: dict[int, list[str]] = {}
        self._length = 0

    def add(self, entry: AnswerEntry) -> None:
        """Add an entry. One without text, and one that is no answer, has none."""
        if not entry.body or entry.kind not in ("chunk", "end") or self._length > _MAX_TEXT:
            return
        try:
            answer = _decode(entry.body)
        except msgspec.MsgspecError:
            return
        for choice in answer.choices:
            message = choice.message or choice.delta
            self._add(choice.index, choice.text or (message.content if message else None))
        response = answer.response or answer
        if response.output is not None:
            self._texts, self._length = {}, 0  # the last event of a stream has the whole response
            parts = (part for item in response.output if item.type == "message" for part in item.content or ())
            for part in parts:
                self._add(0, part.text)

    def _add(self, index: int, text: str | None) -> None:
        if text:
            self._length += len(text)
            self._texts.setdefault(index, []).append(text)

    def whole(self) -> str | None:
        """Return the text; None where there is none, or more than is compared."""
        texts = ["".join(texts) for _, texts in sorted(self._texts.items())]
        return "\n".join(texts) if texts and self._length <= _MAX_TEXT else None


def ask_shadow(
    entries: AsyncGenerator[AnswerEntry],
    alias: AliasRouting | None,
    call: CallContext,
    work: Work,
    url: str,
    body: Mapping[str, Any],
    size: int,
) -> AsyncGenerator[AnswerEntry]:
    """Return the entries of an answer. Once it has ended, the shadow of the alias is asked its share of requests.

    `work` names the alias. `body` has `size` bytes.
    """
    shadow = alias.shadow if alias else None
    if shadow is None or url == COUNT_URL or random.random() * WHOLE >= shadow.share:  # noqa: S311
        return entries
    return _ShadowRequest(call, work, shadow, url, body, size).follow(entries)


@dataclass(slots=True)
class _ShadowRequest:
    """A request of a client that the shadow of the alias `work.model` is asked too. `size` is in bytes."""

    call: CallContext
    work: Work
    shadow: Shadow
    url: str
    body: Mapping[str, Any]
    size: int
    _text: AnswerText = field(default_factory=AnswerText)

    async def follow(self, entries: AsyncGenerator[AnswerEntry]) -> AsyncGenerator[AnswerEntry]:
        """Yield the entries of the client's answer as they come; begin once it has ended well."""
        is_answered = False
        try:
            async with aclosing(entries):
                async for entry in entries:
                    if self.shadow.compare:
                        self._text.add(entry)
                    is_answered = entry.kind == "end" and entry.status == HTTPStatus.OK
                    yield entry
        finally:
            if is_answered:
                self._begin()

    def _begin(self) -> None:
        self._count(ShadowCounts(requests=1))
        alias, limit = (self.call.project_id, self.work.model), self.shadow.max_in_flight
        if self.url in _INPUTS and not self.call.services.shadow_tasks.start(alias, limit, self.size, self._run):
            self._count(ShadowCounts(dropped=1))

    async def _run(self) -> None:
        """Ask the shadow, and count what becomes of that."""
        try:
            text = await self._ask()
        except (BrokerFull, Overloaded, SpendLimitReached, TooManyRequests):
            self._count(ShadowCounts(dropped=1))
        except NightmillError:
            self._count(ShadowCounts(failed=1))
        else:
            answer = self._text.whole()
            if answer and text:
                self._count(_compare(answer, text))
                if self.shadow.compare == "grader" and not (await rules_of_project(self.call)).keeps_nothing:
                    self._keep(answer, text)

    def _keep(self, answer: str, text: str) -> None:
        pair = shadow_answers.pair_of(
            self.call.project_id,
            self.work.model,
            given=self.body.get(_INPUTS[self.url]),
            answer=answer,
            model=self.shadow.model,
            output_text=text,
        )
        if pair is not None:
            self.call.services.requests.keep(pair)

    async def _ask(self) -> str | None:
        """Return the text of the shadow's answer. Raises NightmillError."""
        call = self.call
        model, queue, *_ = await find_target(call, replace(self.work, model=self.shadow.model, fallbacks=()))
        body = {name: value for name, value in self.body.items() if name not in _OF_CLIENT} | {"model": model}
        request = QueuedRequest(
            id=new_id("req_"),
            url=self.url,
            body=msgspec.json.encode(body),
            tenant=call.project_id,
            deadline=now() + call.config.interactive_seconds,
            priority=SHADOW_PRIORITY,
            request_id=call.request_id,
            key_id=call.caller.key_id,
            tier=_TIER,
        )

        async def check() -> None:
            if call.services.stopping.is_set():
                raise WorkerLost
            if now() > request.deadline:
                raise RequestTimeout

        spend = await spending.reserve(call, request, body)
        entries = call.services.inference.submit(
            shadow_queue(queue),
            request,
            worker_check(call, queue, model),
            check,
            of_shadow=(self.work.model, self.shadow.max_in_flight),
        )
        return await self._read(spend.follow(entries) if spend else entries)

    async def _read(self, entries: AsyncGenerator[AnswerEntry]) -> str | None:
        is_sent, text = False, AnswerText()
        async with aclosing(entries):
            async for entry in entries:
                if not is_sent:
                    is_sent = True
                    self._count(ShadowCounts(sent=1))
                if entry.kind == "end" and entry.status != HTTPStatus.OK:
                    raise WorkerLost
                text.add(entry)
        return text.whole()

    def _count(self, counts: ShadowCounts) -> None:
        self.call.services.requests.record_shadow(self.call.project_id, self.work.model, self.shadow.model, counts)


def _compare(answer: str, text: str) -> ShadowCounts:
    """Return the counts of a comparison of texts."""
    return ShadowCounts(compared=1, equal=int(text == answer), length_ratio=len(text) / len(answer))
