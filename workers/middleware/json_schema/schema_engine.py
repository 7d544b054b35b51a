"""An engine whose answers are of the schema that was asked for, or are not given.

Whole answers that are not are asked for once more, with what was wrong. What is streamed has been sent before it can be
judged: a stream whose text is not of the schema ends in an error in place of its last event, and is not repeated.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import msgspec

from jobs.errors import InvalidRequest
from jobs.requests.endpoints import CHAT, RESPONSES
from workers.engines.port import Answer, Emit, Engine, Layer, Request, Usage, refusal
from workers.engines.refusals import is_too_long
from workers.middleware.context_window.shown import more
from workers.middleware.context_window.summaries import together
from workers.middleware.json_schema.checker import SPENT, TOO_LONG, BadSchema, Checker
from workers.middleware.json_schema.schema_fields import NO_JSON, invalid, param_of, schema_of, texts
from workers.middleware.patience import patiently

CODE: Final = "invalid_json_schema_output"
_QUOTED: Final = 4000  # characters of the first answer that the model is shown again
_AGAIN: Final = (
    "That is not what was asked for: {fault}\n"
    "Answer again, with nothing but JSON that is valid under this JSON schema:\n{schema}"
)


class Checked(Layer):
    def __init__(self, engine: Engine, checker: Checker) -> None:
        super().__init__(engine)
        self._checker = checker

    async def close(self) -> None:
        try:
            await self.engine.close()  # first: the checker may be at something for seconds
        finally:
            await self._checker.close()

    async def answer(self, request: Request) -> Answer:
        schema = await self._schema(request)
        if schema is None:
            return await self.engine.answer(request)
        if isinstance(schema, Answer):
            return schema
        first = await self.engine.answer(request)
        text, fault = await self._judged(request, schema, first)
        if fault is None:
            return first
        if fault in (TOO_LONG, SPENT):  # the next would be no quicker to check
            return replace(_failed(request, fault, "as far as can be told"), usage=first.usage)
        second = await self._again(request, schema, text, fault, first.usage)
        usage = together(first.usage, second.usage)
        if second.status == 200:
            fault = (await self._judged(request, schema, second))[1]
        if fault is not None:
            return replace(_failed(request, fault, "twice"), usage=usage)
        body = msgspec.json.decode(second.body)
        if isinstance(body.get("usage"), dict):
            body["usage"] = more(body["usage"], first.usage)
        return Answer(200, msgspec.json.encode(body), usage)

    async def stream(self, request: Request, emit: Emit) -> Answer:
        schema = await self._schema(request)
        if schema is None:
            return await self.engine.stream(request, emit)
        if isinstance(schema, Answer):
            return schema
        watched = _Watched(self._checker, request, schema, emit)
        answer = await self.engine.stream(request, watched.event)
        return answer if watched.fault is None else _failed(request, watched.fault, "and has been sent")

    async def _schema(self, request: Request) -> bytes | Answer | None:
        """The schema of the answer, which is one; None where there is none to look at; or a refusal."""
        try:
            schema = schema_of(request.url, request.body)
            if schema is not None:
                await self._checker.check(schema, request.tenant)
        except BadSchema as error:
            return _refused(invalid(request.url, error.why))
        except InvalidRequest as error:
            return _refused(error)
        return schema

    async def _judged(self, request: Request, schema: bytes, answer: Answer) -> tuple[str, str | None]:
        """The first text that is wrong, and what is wrong with it."""
        if answer.status != 200:
            return "", None
        found = texts(request.url, msgspec.json.decode(answer.body))
        return await _first_fault(self._checker, schema, found, request.tenant)

    async def _again(self, request: Request, schema: bytes, text: str, fault: str, paid: Usage) -> Answer:
        again = replace(request, request_id=f"{request.request_id}-2")
        told = replace(again, body=_asked_again(request, schema, text, fault))
        answer = await patiently(partial(self.engine.answer, told), lambda: paid)
        return await patiently(partial(self.engine.answer, again), lambda: paid) if is_too_long(answer) else answer


@dataclass(slots=True)
class _Watched:
    """A stream, up to the event that would end it."""

    checker: Checker
    request: Request
    schema: bytes
    emit: Emit
    fault: str | None = None
    said: dict[str, list[str]] = field(default_factory=dict)  # by choice
    other: dict[str, dict[str, Any]] = field(default_factory=dict)  # by choice: what makes it no JSON, once it was said

    async def event(self, chunk: bytes) -> None:
        if self.fault is not None:
            return  # what comes after it would say that it has ended well
        event = msgspec.json.decode(chunk)
        found = self._ended(event) if isinstance(event, dict) else []
        self.fault = (await _first_fault(self.checker, self.schema, found, self.request.tenant))[1]
        if self.fault is None:
            await self.emit(chunk)

    def _ended(self, event: Mapping[str, Any]) -> list[str]:
        """The texts that end with this event."""
        if self.request.url == RESPONSES:
            return texts(RESPONSES, event.get("response")) if event.get("type") == "response.completed" else []
        found: list[str] = []
        choices = event.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            delta = choice.get("delta") if isinstance(choice, dict) else None
            if not isinstance(delta, dict):
                continue
            index = str(choice.get("index"))
            said, other = self.said.setdefault(index, []), self.other.setdefault(index, {})
            said.append(str(delta.get("content") or ""))
            other |= {name: delta[name] for name in NO_JSON if delta.get(name)}
            message = {**delta, **other, "content": "".join(said)} if choice.get("finish_reason") else {}
            found += texts(CHAT, {"choices": [{**choice, "message": message}]})
        return found


async def _first_fault(checker: Checker, schema: bytes, found: list[str], tenant: str) -> tuple[str, str | None]:
    if not found:
        return "", None
    try:
        faults = await checker.faults(schema, found, tenant)
    except BadSchema as error:  # that it leads nowhere shows only with some texts
        faults = [f"the schema cannot be checked: {error.why}"]
    return next(((text, fault) for text, fault in zip(found, faults, strict=False) if fault), ("", None))


def _asked_again(request: Request, schema: bytes, text: str, fault: str) -> dict[str, Any]:
    """The request, its answer, and what was wrong with that."""
    name = "input" if request.url == RESPONSES else "messages"
    given = request.body.get(name)
    before = given if isinstance(given, list) else [{"role": "user", "content": given}]
    told = _AGAIN.format(fault=fault, schema=schema.decode())
    turn = [{"role": "assistant", "content": text[:_QUOTED]}, {"role": "user", "content": told}]
    return {**request.body, name: [*before, *turn]}


def _failed(request: Request, fault: str, when: str) -> Answer:
    message = f"The model's answer is not of the schema that was asked for, {when}: {fault}"
    return Answer(422, refusal(422, message, param=param_of(request.url), code=CODE).body, Usage())


def _refused(error: InvalidRequest) -> Answer:
    return refusal(400, error.message, param=error.param, code=error.code)
