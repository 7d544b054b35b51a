"""Check answers against their JSON Schema, ask the model once more, and then fail with a code.

    request ──▶ middleware ──▶ engine ──▶ answer ──▶ SchemaChecker ══pipe══▶ child: jsonschema
                    ▲      invalid schema: 400            │ answer does not match
                    └────── the error, once ────────────────┘ then: invalid_json_schema_output

vLLM enforces the schema while it decodes. HTTP servers may ignore it. A stream has been sent before it can be checked:
if its text does not match, it ends with an error instead of its last event, and is not repeated.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import msgspec

from jobs.errors import InvalidRequest
from jobs.requests.answer_schemas import asks_for_schema, form_of, invalid, param_of, schema_of
from jobs.requests.endpoints import CHAT, RESPONSES
from workers.engines.port import Answer, Emit, Engine, Request, Usage, refusal
from workers.engines.refusals import is_too_long
from workers.middleware.base import Middleware, add_usage, retry_while_busy
from workers.middleware.schema_checker import SPENT, TOO_LONG, BadSchema, SchemaChecker

CODE: Final = "invalid_json_schema_output"
_QUOTED: Final = 4000  # characters of the first answer in the second request
_AGAIN: Final = (
    "That is not what was asked for: {fault}\n"
    "Answer again, with nothing but JSON that is valid under this JSON schema:\n{schema}"
)


class JsonSchemaMiddleware(Middleware):
    """Hold answers to the JSON Schema of their request."""

    def __init__(self, engine: Engine, checker: SchemaChecker) -> None:
        super().__init__(engine)
        self._checker = checker

    async def close(self) -> None:
        try:
            await self.engine.close()  # first: the checker may be busy for seconds
        finally:
            await self._checker.close()

    def concerns(self, request: Request) -> bool:
        return asks_for_schema(form_of(request.url, request.body))

    async def handle(self, request: Request) -> Answer:
        schema = await self._schema(request)
        if schema is None:
            return await self.engine.answer(request)
        if isinstance(schema, Answer):
            return schema
        first = await self.engine.answer(request)
        text, fault = await self._first_fault_of(request, schema, first)
        if fault is None:
            return first
        if fault in (TOO_LONG, SPENT):  # a second answer would take as long to check
            return replace(_mismatch_answer(request, fault, "as far as can be told"), usage=first.usage)
        second = await self._ask_for_correction(request, schema, text, fault, first.usage)
        usage = first.usage + second.usage
        if second.status == 200:
            fault = (await self._first_fault_of(request, schema, second))[1]
        if fault is not None:
            return replace(_mismatch_answer(request, fault, "twice"), usage=usage)
        body = msgspec.json.decode(second.body)
        if isinstance(body.get("usage"), dict):
            body["usage"] = add_usage(body["usage"], first.usage)
        return Answer(200, msgspec.json.encode(body), usage)

    async def handle_stream(self, request: Request, emit: Emit) -> Answer:
        schema = await self._schema(request)
        if schema is None:
            return await self.engine.stream(request, emit)
        if isinstance(schema, Answer):
            return schema
        stream = _CheckedStream(self._checker, request, schema, emit)
        answer = await self.engine.stream(request, stream.event)
        return answer if stream.fault is None else _mismatch_answer(request, stream.fault, "and has been sent")

    async def _schema(self, request: Request) -> bytes | Answer | None:
        """Return the request's schema, checked; None if it has none; or a refusal."""
        try:
            schema = schema_of(request.url, request.body)
            if schema is not None:
                await self._checker.check(schema, request.tenant)
        except BadSchema as error:
            return _refusal(invalid(request.url, error.why))
        except InvalidRequest as error:
            return _refusal(error)
        return schema

    async def _first_fault_of(self, request: Request, schema: bytes, answer: Answer) -> tuple[str, str | None]:
        """Return the first invalid text of the answer and its error."""
        if answer.status != 200:
            return "", None
        found_texts = texts(request.url, msgspec.json.decode(answer.body))
        return await _first_fault(self._checker, schema, found_texts, request.tenant)

    async def _ask_for_correction(self, request: Request, schema: bytes, text: str, fault: str, paid: Usage) -> Answer:
        """Ask again with the error in the prompt, or, if that is too long, with the unchanged prompt."""
        again = replace(request, request_id=f"{request.request_id}-2")
        corrected = replace(again, body=_correction_body(request, schema, text, fault))
        answer = await retry_while_busy(partial(self.engine.answer, corrected), lambda: paid)
        return (
            await retry_while_busy(partial(self.engine.answer, again), lambda: paid) if is_too_long(answer) else answer
        )


@dataclass(slots=True)
class _CheckedStream:
    """Pass on a stream up to the event that would end it, and check its text."""

    checker: SchemaChecker
    request: Request
    schema: bytes
    emit: Emit
    fault: str | None = None
    contents: dict[str, list[str]] = field(default_factory=dict)  # by choice
    other: dict[str, dict[str, Any]] = field(default_factory=dict)  # by choice: fields that exempt it from the schema

    async def event(self, chunk: bytes) -> None:
        if self.fault is not None:
            return  # later events would report success
        event = msgspec.json.decode(chunk)
        completed = self._completed_texts(event) if isinstance(event, dict) else []
        self.fault = (await _first_fault(self.checker, self.schema, completed, self.request.tenant))[1]
        if self.fault is None:
            await self.emit(chunk)

    def _completed_texts(self, event: Mapping[str, Any]) -> list[str]:
        """Return the texts that this event completes."""
        if self.request.url == RESPONSES:
            return texts(RESPONSES, event.get("response")) if event.get("type") == "response.completed" else []
        completed: list[str] = []
        choices = event.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            delta = choice.get("delta") if isinstance(choice, dict) else None
            if not isinstance(delta, dict):
                continue
            index = str(choice.get("index"))
            contents, other = self.contents.setdefault(index, []), self.other.setdefault(index, {})
            contents.append(str(delta.get("content") or ""))
            other |= {name: delta[name] for name in NO_JSON if delta.get(name)}
            message = {**delta, **other, "content": "".join(contents)} if choice.get("finish_reason") else {}
            completed += texts(CHAT, {"choices": [{**choice, "message": message}]})
        return completed


async def _first_fault(checker: SchemaChecker, schema: bytes, texts: list[str], tenant: str) -> tuple[str, str | None]:
    if not texts:
        return "", None
    try:
        faults = await checker.faults(schema, texts, tenant)
    except BadSchema as error:  # a $ref without a target may show only with some texts
        faults = [f"the schema cannot be checked: {error.why}"]
    return next(((text, fault) for text, fault in zip(texts, faults, strict=False) if fault), ("", None))


def _correction_body(request: Request, schema: bytes, text: str, fault: str) -> dict[str, Any]:
    """Return the body of the second request: the first, its answer, and the error."""
    name = "input" if request.url == RESPONSES else "messages"
    given = request.body.get(name)
    messages = given if isinstance(given, list) else [{"role": "user", "content": given}]
    correction = _AGAIN.format(fault=fault, schema=schema.decode())
    turn = [{"role": "assistant", "content": text[:_QUOTED]}, {"role": "user", "content": correction}]
    return {**request.body, name: [*messages, *turn]}


def _mismatch_answer(request: Request, fault: str, when: str) -> Answer:
    message = f"The model's answer does not match the requested schema, {when}: {fault}"
    return Answer(422, refusal(422, message, param=param_of(request.url), code=CODE).body, Usage())


def _refusal(error: InvalidRequest) -> Answer:
    return refusal(400, error.message, param=error.param, code=error.code)


# The texts of an answer that the schema of its request applies to.

#: Fields of a message that is exempt from the schema.
NO_JSON: Final = ("tool_calls", "function_call", "refusal")


def texts(url: str, body: Any) -> list[str]:
    """Return the texts that must match the schema: none that was cut off, refused, filtered or is a tool call."""
    if not isinstance(body, dict):
        return []
    if url == CHAT:
        choices = body.get("choices")
        contents = (
            [_of_choice(choice) for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
        )
        return [text for text in contents if text is not None]
    return _of_response(body)


def _of_choice(choice: Mapping[str, Any]) -> str | None:
    message = choice.get("message")
    if choice.get("finish_reason") != "stop" or not isinstance(message, dict):
        return None
    if any(message.get(name) for name in NO_JSON):
        return None
    return str(message.get("content") or "")


def _of_response(body: Mapping[str, Any]) -> list[str]:
    output = body.get("output")
    if body.get("status") != "completed" or not isinstance(output, list):
        return []
    items = [item for item in output if isinstance(item, dict)]
    messages = [item for item in items if item.get("type") == "message"]
    if not messages and any(str(item.get("type")).endswith("_call") for item in items):
        return []
    contents = [item["content"] for item in messages if isinstance(item.get("content"), list)]
    parts = [part for content in contents for part in content if isinstance(part, dict)]
    if any(part.get("type") == "refusal" for part in parts):
        return []
    return ["".join(str(part.get("text") or "") for part in parts if part.get("type") == "output_text")]
