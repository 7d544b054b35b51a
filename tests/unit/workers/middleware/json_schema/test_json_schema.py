"""Answers that are to be of a schema: whole ones, streams, and what is nobody's fault."""

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from workers.engines.port import Answer, Emit, EngineBusy, EngineFault, Request, Usage, refusal
from workers.middleware.json_schema import JsonSchemaMiddleware
from workers.middleware.schema_checker import SPENT, TOO_LONG, SchemaChecker

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
GOOD, BAD = '{"n": 4}', '{"n": "four"}'


@pytest.fixture(scope="module")
def checker() -> Iterator[SchemaChecker]:
    made = SchemaChecker()
    yield made
    asyncio.run(made.close())


class Saying:
    """Says one thing after the other."""

    models = ("m",)

    def __init__(self, *says: str | Answer, finish: str = "stop", **message: Any) -> None:
        self.says, self.finish, self.message = list(says), finish, message
        self.asked: list[Request] = []

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def answer(self, request: Request) -> Answer:
        self.asked.append(request)
        said = self.says.pop(0)
        return said if isinstance(said, Answer) else Answer(200, self.body(request.url, said), Usage(10, 2, 5, 1))

    async def stream(self, request: Request, emit: Emit) -> Answer:
        self.asked.append(request)
        said = str(self.says.pop(0))
        if request.url == CHAT:
            head = {"index": 0, "finish_reason": None}
            for word in said.split(" "):
                await emit(msgspec.json.encode({"choices": [head | {"delta": {"content": word}}]}))
            await emit(msgspec.json.encode({"choices": [head | {"delta": {}, "finish_reason": self.finish}]}))
            await emit(msgspec.json.encode({"choices": [], "usage": {}}))
        else:
            await emit(msgspec.json.encode({"type": "response.output_text.delta", "delta": said}))
            whole = msgspec.json.decode(self.body(request.url, said))
            await emit(msgspec.json.encode({"type": "response.completed", "response": whole}))
        return Answer(200, b"")

    def body(self, url: str, said: str) -> bytes:
        if url == CHAT:
            message = {"role": "assistant", "content": said, **self.message}
            details = {"prompt_tokens_details": {"cached_tokens": 2}}
            usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15, **details}
            choice = {"index": 0, "message": message, "finish_reason": self.finish}
            return msgspec.json.encode({"choices": [choice], "usage": usage})
        part = {"type": "output_text", "text": said}
        usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
        status = "completed" if self.finish == "stop" else "incomplete"
        output = [{"type": "reasoning", "content": []}, {"type": "message", "content": [part]}]
        return msgspec.json.encode({"status": status, "output": output, "usage": usage})


def asked(url: str, schema: Any = SCHEMA) -> Request:
    if url == CHAT:
        told = {"type": "json_schema", "json_schema": {"name": "number", "schema": schema, "strict": True}}
        body = {"model": "m", "messages": [{"role": "user", "content": "Two and two?"}], "response_format": told}
    else:
        told = {"type": "json_schema", "name": "number", "schema": schema}
        body = {"model": "m", "input": "Two and two?", "text": {"format": told}}
    return Request(url, body, "req_1")


async def test_valid_answer_is_passed_on_unchanged(checker: SchemaChecker) -> None:
    for url in (CHAT, RESPONSES):
        engine = Saying(GOOD)
        answer = await JsonSchemaMiddleware(engine, checker).answer(asked(url))
        assert answer.body == engine.body(url, GOOD)
        assert len(engine.asked) == 1


@pytest.mark.parametrize(("url", "name"), [(CHAT, "messages"), (RESPONSES, "input")])
async def test_invalid_answer_is_retried_with_its_fault(checker: SchemaChecker, url: str, name: str) -> None:
    engine = Saying(BAD, GOOD)

    answer = await JsonSchemaMiddleware(engine, checker).answer(asked(url))

    first, second = engine.asked
    question, said, told = second.body[name]
    assert question == {"role": "user", "content": "Two and two?"}
    assert said == {"role": "assistant", "content": BAD}
    assert "$.n: 'four' is not of type 'integer'" in told["content"]
    assert '{"type":"object"' in told["content"]
    assert second.request_id != first.request_id
    assert answer.usage == Usage(20, 4, 10, 2)
    usage = msgspec.json.decode(answer.body)["usage"]
    assert usage["total_tokens"] == 30
    assert GOOD.replace('"', '\\"').encode() in answer.body


@pytest.mark.parametrize(("url", "param"), [(CHAT, "response_format"), (RESPONSES, "text.format.schema")])
async def test_twice_wrong_it_fails_with_a_code_and_is_paid_for(checker: SchemaChecker, url: str, param: str) -> None:
    engine = Saying(BAD, "Four.")

    answer = await JsonSchemaMiddleware(engine, checker).answer(asked(url))

    error = msgspec.json.decode(answer.body)["error"]
    assert (answer.status, error["code"], error["param"]) == (422, "invalid_json_schema_output", param)
    assert answer.usage == Usage(20, 4, 10, 2)


@pytest.mark.parametrize("fault", [TOO_LONG, SPENT])
async def test_check_over_time_budget_is_not_retried(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    checker, engine = SchemaChecker(), Saying(GOOD)

    async def slow(_schema: bytes, found: list[str], _tenant: str) -> list[str | None]:
        return [fault for _ in found]

    monkeypatch.setattr(checker, "faults", slow)

    answer = await JsonSchemaMiddleware(engine, checker).answer(asked(CHAT))

    assert (answer.status, answer.usage) == (422, Usage(10, 2, 5, 1))
    assert len(engine.asked) == 1


async def test_busy_engine_does_not_discard_first_answer(checker: SchemaChecker) -> None:
    class Filling(Saying):
        async def answer(self, request: Request) -> Answer:
            if self.says[0] == "busy":
                self.says.pop(0)
                raise EngineBusy("full", retry_after=0.001)
            return await super().answer(request)

    engine = Filling(BAD, "busy", "busy", GOOD)

    assert (await JsonSchemaMiddleware(engine, checker).answer(asked(CHAT))).usage == Usage(20, 4, 10, 2)
    with pytest.raises(EngineFault):
        await JsonSchemaMiddleware(Filling(BAD, *["busy"] * 9), checker).answer(asked(CHAT))
    with pytest.raises(EngineBusy):
        await JsonSchemaMiddleware(Filling("busy"), checker).answer(asked(CHAT))


async def test_oversized_correction_falls_back_to_original_request(checker: SchemaChecker) -> None:
    engine = Saying(BAD, refusal(400, "Too long.", code="context_length_exceeded"), GOOD)

    answer = await JsonSchemaMiddleware(engine, checker).answer(asked(CHAT))

    assert answer.status == 200
    assert engine.asked[2].body == engine.asked[0].body


@pytest.mark.parametrize("url", [CHAT, RESPONSES])
async def test_truncated_answer_is_returned_without_retry(checker: SchemaChecker, url: str) -> None:
    engine = Saying('{"n', finish="length")

    assert (await JsonSchemaMiddleware(engine, checker).answer(asked(url))).status == 200
    assert len(engine.asked) == 1


async def test_calls_and_refusals_are_no_json(checker: SchemaChecker) -> None:
    for said in ({"tool_calls": [{"id": "c"}], "content": None}, {"refusal": "No.", "content": None}):
        engine = Saying("", **said)
        assert (await JsonSchemaMiddleware(engine, checker).answer(asked(CHAT))).status == 200
        assert len(engine.asked) == 1


@pytest.mark.parametrize(
    "delta", [{"tool_calls": [{"index": 0, "id": "c"}]}, {"function_call": {"name": "f"}}, {"refusal": "No."}]
)
async def test_calls_and_refusals_are_none_in_a_stream_either(checker: SchemaChecker, delta: Any) -> None:
    class Calling(Saying):
        async def stream(self, request: Request, emit: Emit) -> Answer:
            for said, finish in ((delta, None), ({}, "stop")):
                choice = {"index": 0, "delta": said, "finish_reason": finish}
                await emit(msgspec.json.encode({"choices": [choice]}))
            return Answer(200, b"")

    events: list[bytes] = []

    async def emit(chunk: bytes) -> None:
        events.append(chunk)

    answer = await JsonSchemaMiddleware(Calling(), checker).stream(asked(CHAT), emit)

    assert (answer.status, len(events)) == (200, 2)


@pytest.mark.parametrize(
    "schema", [{"type": "thing"}, "text", 5, {"$ref": "http://127.0.0.1:9/x"}, {"a": "x" * 140_000}]
)
@pytest.mark.parametrize("url", [CHAT, RESPONSES])
async def test_invalid_schema_is_refused_before_any_request(checker: SchemaChecker, url: str, schema: Any) -> None:
    engine = Saying()
    checked = JsonSchemaMiddleware(engine, checker)

    async def nowhere(chunk: bytes) -> None:
        raise AssertionError

    for answer in (await checked.answer(asked(url, schema)), await checked.stream(asked(url, schema), nowhere)):
        error = msgspec.json.decode(answer.body)["error"]
        assert (answer.status, error["code"]) == (400, "invalid_json_schema")
    assert engine.asked == []


@pytest.mark.parametrize("url", [CHAT, RESPONSES])
async def test_a_stream_that_is_of_it_comes_through_and_another_ends_in_an_error(
    checker: SchemaChecker, url: str
) -> None:
    events: list[bytes] = []

    async def emit(chunk: bytes) -> None:
        events.append(chunk)

    good = await JsonSchemaMiddleware(Saying(GOOD), checker).stream(asked(url), emit)
    many, last = len(events), events[-1]
    events.clear()
    bad = await JsonSchemaMiddleware(Saying(BAD), checker).stream(asked(url), emit)

    assert (good.status, bad.status) == (200, 422)
    assert (many, len(events)) == ((4, 2) if url == CHAT else (2, 1))
    assert (b"usage" in last) or (b"completed" in last)
    assert b'"stop"' not in b"".join(events)


@pytest.mark.parametrize(
    "odd", [{}, {"choices": 5}, {"choices": [{"delta": "x"}, 5]}, {"choices": [{"index": [], "delta": {}}]}]
)
async def test_malformed_chat_is_forwarded(checker: SchemaChecker, odd: Any) -> None:
    class Odd(Saying):
        async def stream(self, request: Request, emit: Emit) -> Answer:
            await emit(msgspec.json.encode(odd))
            return Answer(200, b"")

    events: list[bytes] = []

    async def emit(chunk: bytes) -> None:
        events.append(chunk)

    for engine in (Odd(), Saying(Answer(200, msgspec.json.encode(odd)))):
        checked = JsonSchemaMiddleware(engine, checker)
        answer = await (checked.stream(asked(CHAT), emit) if isinstance(engine, Odd) else checked.answer(asked(CHAT)))
        assert answer.status == 200
    assert events == [msgspec.json.encode(odd)]


async def test_without_a_schema_nothing_is_looked_at(checker: SchemaChecker) -> None:
    for body in ({}, {"response_format": {"type": "json_object"}}, {"response_format": 5}, {"text": []}):
        for url in (CHAT, RESPONSES, "/v1/embeddings"):
            engine = Saying("free")
            assert (
                await JsonSchemaMiddleware(engine, checker).answer(Request(url, {"model": "m", **body}, "req_1"))
            ).status == 200


async def test_close_closes_engine_before_checker() -> None:
    ended: list[str] = []

    class Ending(Saying):
        async def close(self) -> None:
            ended.append("engine")

    class Busy(SchemaChecker):
        async def close(self) -> None:
            ended.append("checker")
            await super().close()

    await JsonSchemaMiddleware(Ending(), Busy()).close()

    assert ended == ["engine", "checker"]


async def test_engine_refusal_is_returned_without_check(checker: SchemaChecker) -> None:
    no = refusal(400, "No.", code="model_not_found")
    engine = Saying(no)

    assert await JsonSchemaMiddleware(engine, checker).answer(asked(CHAT)) == no
    assert len(engine.asked) == 1


async def test_refused_retry_reports_fault_of_first_answer(checker: SchemaChecker) -> None:
    answer = await JsonSchemaMiddleware(Saying(BAD, refusal(400, "No.", code="model_not_found")), checker).answer(
        asked(CHAT)
    )

    error = msgspec.json.decode(answer.body)["error"]
    assert (answer.status, error["code"]) == (422, "invalid_json_schema_output")
    assert "'four' is not of type 'integer'" in error["message"]


async def test_a_second_answer_without_its_usage_is_passed_on_and_both_are_paid_for(checker: SchemaChecker) -> None:
    body = {name: value for name, value in msgspec.json.decode(Saying().body(CHAT, GOOD)).items() if name != "usage"}
    second = Answer(200, msgspec.json.encode(body), Usage(10, 2, 5, 1))

    answer = await JsonSchemaMiddleware(Saying(BAD, second), checker).answer(asked(CHAT))

    assert msgspec.json.decode(answer.body) == body
    assert answer.usage == Usage(20, 4, 10, 2)
