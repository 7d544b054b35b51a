"""The HTTP engine against servers in this process that say exactly what a test tells them to."""

import asyncio
import contextlib
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from aiohttp import web

from jobs.logs import about
from jobs.requests.endpoints import COMPLETIONS, RESPONSES
from tests.support.scripted_server import CHAT, Server, engine_of, error_of, good, request, says, until, unused_url
from tests.support.server_answers import ANSWERS, ERRORS
from workers.engines.http.endpoints import Endpoint
from workers.engines.http.http_engine import HttpEngine
from workers.engines.port import Answer, EngineBusy, EngineFault, Request


@pytest.mark.parametrize("name", ANSWERS)
async def test_usage_is_read_from_each_server_format(server: Server, engine: HttpEngine, name: str) -> None:
    body, usage = ANSWERS[name]
    server.script = says(200, body)

    answer = await engine.answer(request())

    assert answer.usage == usage
    expected, told = msgspec.json.decode(body), msgspec.json.decode(answer.body)
    for choice in expected.get("choices", ()):
        choice["message"].setdefault("refusal", None)
        choice.setdefault("logprobs", None)
    assert told == expected
    assert b"\n" not in answer.body


@pytest.mark.parametrize("name", ERRORS)
async def test_errors_of_each_server_arrive_in_openais_shape(server: Server, engine: HttpEngine, name: str) -> None:
    body, expected = ERRORS[name]
    server.script = says(400, body)

    answer = await engine.answer(request())

    assert answer.status == 400
    assert error_of(answer).items() >= expected.items()


async def test_unprocessable_request_becomes_bad_request(server: Server, engine: HttpEngine) -> None:
    server.script = says(422, ERRORS["fastapi-validation"][0])

    answer = await engine.answer(request())

    assert (answer.status, error_of(answer)["type"]) == (400, "invalid_request_error")


async def _streamed(engine: HttpEngine, asked: Request) -> tuple[Answer, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []

    async def emit(event: bytes) -> None:
        events.append(msgspec.json.decode(event))

    return await engine.stream(asked, emit), events


SAID = {"output": [{"type": "message", "content": [{"type": "output_text", "text": "Hi."}]}]}


async def test_sparse_response_is_completed_from_request_fields(server: Server, engine: HttpEngine) -> None:
    server.script = says(200, msgspec.json.encode(SAID))

    answer = await engine.answer(Request(RESPONSES, {"model": "m", "input": "x", "temperature": 0.5}, "req_1"))

    told = msgspec.json.decode(answer.body)
    assert (told["model"], told["temperature"], told["top_p"], told["status"]) == ("m", 0.5, 1.0, "completed")
    assert told["output"][0]["content"][0] == {"type": "output_text", "text": "Hi.", "annotations": [], "logprobs": []}


@pytest.mark.parametrize("usage", [True, False])
async def test_non_streamed_chat_becomes_single_chunk(server: Server, engine: HttpEngine, usage: bool) -> None:
    server.script = says(200, ANSWERS["llama.cpp"][0])
    body = {"model": "m", "messages": [], "stream_options": {"include_usage": usage}}

    end, events = await _streamed(engine, Request(CHAT, body, "req_1"))

    assert (end.status, end.body, end.usage) == (200, b"", ANSWERS["llama.cpp"][1])
    assert server.asked[0]["stream"] is True
    [choice] = events[0]["choices"]
    assert choice["delta"] == {"role": "assistant", "content": "Paris.", "refusal": None}
    assert (choice["finish_reason"], events[0]["object"]) == ("stop", "chat.completion.chunk")
    assert [event.get("usage") and event["usage"]["total_tokens"] for event in events[1:]] == ([16] if usage else [])
    assert ("usage" in events[0]) == usage


async def test_calls_of_a_chat_that_comes_whole_are_numbered(server: Server, engine: HttpEngine) -> None:
    calls = [{"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}} for name in "ab"]
    server.script = says(200, msgspec.json.encode({"choices": [{"message": {"tool_calls": calls}}]}))

    _, events = await _streamed(engine, request())

    [choice] = events[0]["choices"]
    assert choice["delta"]["tool_calls"] == [{"index": n, **call} for n, call in enumerate(calls)]
    assert choice["finish_reason"] == "tool_calls"


async def test_non_streamed_text_completion_becomes_single_chunk(server: Server, engine: HttpEngine) -> None:
    said = {"id": "c", "object": "text_completion", "choices": [{"index": 0, "text": "Hi.", "finish_reason": "stop"}]}
    server.script = says(200, msgspec.json.encode({**said, "usage": {"total_tokens": 3}}))

    body = {"model": "m", "prompt": "x", "stream_options": {"include_usage": True}}
    _, events = await _streamed(engine, Request(COMPLETIONS, body, "req_1"))
    _, plain = await _streamed(engine, Request(COMPLETIONS, {"model": "m", "prompt": "x"}, "req_1"))

    assert events == [{**said, "usage": None}, {**said, "choices": [], "usage": {"total_tokens": 3}}]
    assert plain == [said]


async def test_a_response_that_comes_whole_is_written_out_as_its_events(server: Server, engine: HttpEngine) -> None:
    server.script = says(200, msgspec.json.encode(SAID))

    end, events = await _streamed(engine, Request(RESPONSES, {"model": "m", "input": "x"}, "req_1"))

    assert (end.status, end.body) == (200, b"")
    assert [event["type"] for event in events][::7] == ["response.created", "response.output_item.done"]
    assert "".join(event.get("delta", "") for event in events) == "Hi."
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "Hi."


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS, RESPONSES])
async def test_unrecognized_body_for_stream_is_returned_unchanged(server: Server, engine: HttpEngine, url: str) -> None:
    server.script = says(200, b'{"odd":1}')

    end, events = await _streamed(engine, Request(url, {"model": "m"}, "req_1"))

    assert (end.status, end.body, events) == (200, b'{"odd":1}', [])


async def test_single_line_body_is_forwarded_unchanged(server: Server, engine: HttpEngine) -> None:
    body = b'{ "usage": {"prompt_tokens":1},  "odd" : "\xc3\xa9\\u0000" }'
    server.script = says(200, body)

    answer = await engine.answer(request())

    assert answer.body == body


@pytest.mark.parametrize(
    "body", [b"<html>", b"", b"[]", b'"text"', b"null", b'{"a":1', b'{"a":"\xff"}', b'{"a":NaN}', b"{}{}"]
)
async def test_answer_that_is_no_json_object_is_a_fault(server: Server, engine: HttpEngine, body: bytes) -> None:
    server.script = says(200, body)

    with pytest.raises(EngineFault, match="not JSON"):
        await engine.answer(request())


async def test_answer_over_the_cap_is_a_fault_and_is_not_read_to_its_end(server: Server) -> None:
    sent = 0

    async def endless(http_request: web.BaseRequest) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(http_request)
        with contextlib.suppress(ConnectionError):
            while sent < 1000 << 20:
                await response.write(b" " * (1 << 20))
                sent += 1 << 20
        return response

    server.script = endless
    async with engine_of(Endpoint(server.url), max_answer_bytes=2 << 20) as engine:
        with pytest.raises(EngineFault, match="larger than 2097152 bytes"):
            await engine.answer(request())

    assert sent < 64 << 20


async def test_answer_in_pieces_under_the_cap_is_put_together(server: Server, engine: HttpEngine) -> None:
    async def piecemeal(http_request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(http_request)
        for piece in (b'{"choices":', b"[]", b"}"):
            await response.write(piece)
        return response

    server.script = piecemeal

    assert (await engine.answer(request())).body == b'{"choices":[]}'


async def test_declared_length_over_the_cap_is_a_fault(server: Server) -> None:
    server.script = says(200, b" " * 5000)
    async with engine_of(Endpoint(server.url), max_answer_bytes=4096) as engine:
        with pytest.raises(EngineFault, match="larger than 4096 bytes"):
            await engine.answer(request())


async def test_server_error_becomes_fault_with_server_message(server: Server, engine: HttpEngine) -> None:
    server.script = says(500, '{"object":"error","message":"CUDA error","type":"InternalServerError","code":500}')

    with pytest.raises(EngineFault) as caught:
        await engine.answer(request())

    assert caught.value.answer is not None
    assert caught.value.answer.status == 500
    assert error_of(caught.value.answer)["message"] == "CUDA error"


@pytest.mark.parametrize("status", [408, 409, 425])
async def test_transient_4xx_status_becomes_engine_fault(server: Server, engine: HttpEngine, status: int) -> None:
    server.script = says(status, '{"error": {"message": "later"}}')

    with pytest.raises(EngineFault) as caught:
        await engine.answer(request())

    assert caught.value.answer is not None
    assert caught.value.answer.status == status


async def test_redirects_are_not_followed(server: Server, engine: HttpEngine) -> None:
    server.script = says(307, "", Location=f"{server.url}/elsewhere")

    with pytest.raises(EngineFault, match="307"):
        await engine.answer(request())

    assert len(server.asked) == 1


async def test_request_that_takes_too_long_is_a_fault(server: Server) -> None:
    async def hang(_: web.BaseRequest) -> web.Response:
        await asyncio.sleep(60)
        return good()

    server.script = hang
    async with engine_of(Endpoint(server.url), timeout=0.2) as engine:
        with pytest.raises(EngineFault, match=r"no answer within 0\.2 s"):
            await engine.answer(request())


async def test_active_stream_may_exceed_answer_timeout(server: Server) -> None:
    async def slowly(http_request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(http_request)
        for _ in range(6):
            await asyncio.sleep(0.2)
            await response.write(b'data: {"choices": []}\n\n')
        await response.write(b"data: [DONE]\n\n")
        return response

    server.script = slowly
    async with engine_of(Endpoint(server.url), timeout=1.0) as engine:
        _, events = await _streamed(engine, request())

    assert len(events) == 6


async def test_reset_connection_is_a_fault_and_the_next_request_is_answered(server: Server, engine: HttpEngine) -> None:
    async def reset(http_request: web.BaseRequest) -> web.Response:
        assert http_request.transport
        http_request.transport.abort()
        return good()

    server.script = reset
    with pytest.raises(EngineFault, match="connection broke"):
        await engine.answer(request())
    server.script = None

    assert (await engine.answer(request())).status == 200


async def test_server_that_dies_of_a_request_takes_no_others_with_it_that_it_never_saw(
    server: Server, engine: HttpEngine
) -> None:
    async def die(http_request: web.BaseRequest) -> web.StreamResponse:
        assert http_request.transport
        http_request.transport.abort()
        return good()

    server.script = server.on_list = die
    with pytest.raises(EngineFault, match="connection broke"):
        await engine.answer(request())

    outcomes = await asyncio.gather(*(engine.answer(request()) for _ in range(5)), return_exceptions=True)

    assert all(isinstance(outcome, EngineBusy) for outcome in outcomes)
    assert len(server.asked) == 1
    server.script = server.on_list = None
    await until(lambda: engine.endpoints[0].circuit.is_closed)
    assert (await engine.answer(request())).status == 200


async def test_key_and_request_id_are_sent_and_no_proxy_of_the_environment_is_used(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", unused_url())
    async with engine_of(Endpoint(server.url, api_key="sk-1")) as engine:
        await engine.answer(request())

    assert server.heard[0]["Authorization"] == "Bearer sk-1"
    assert server.heard[0]["X-Request-Id"] == "req_1"


async def test_the_id_of_the_request_to_the_api_goes_on_to_the_server_and_stays_unique(server: Server) -> None:
    async with engine_of(Endpoint(server.url)) as engine:
        with about(request_id="ticket-4711"):
            await asyncio.gather(engine.answer(request()), engine.answer(replace(request(), request_id="req_2")))

    assert {heard["X-Request-Id"] for heard in server.heard} == {"ticket-4711-req_1", "ticket-4711-req_2"}


async def test_model_is_sent_under_the_servers_own_name(server: Server) -> None:
    async with engine_of(Endpoint(server.url, serves={"big": "org/big-70b"})) as engine:
        asked = request("big")
        await engine.answer(asked)

    assert server.asked[0]["model"] == "org/big-70b"
    assert asked.body["model"] == "big"


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_base_url_may_be_written_with_or_without_its_version(server: Server, suffix: str) -> None:
    async with engine_of(Endpoint(server.url + suffix)) as engine:
        assert (await engine.answer(request())).status == 200


async def test_start_and_close_are_idempotent(server: Server) -> None:
    engine = HttpEngine([Endpoint(server.url)], timeout=5)
    await engine.start()
    await engine.start()
    assert (await engine.answer(request())).status == 200
    await engine.close()
    await engine.close()


async def test_models_that_only_external_servers_have_are_marked(server: Server) -> None:
    outside = Endpoint("https://api.example.com")
    outside.listed_models = frozenset({"m", "far"})
    engine = HttpEngine([Endpoint(server.url, listed_models=frozenset({"m", "near"})), outside], timeout=5)

    assert engine.discovered_models == {"m": False, "near": False, "far": True}


async def test_control_fields_are_dropped_and_only_vllm_gets_cache_salt(server: Server) -> None:
    body = {"model": "m", "messages": [], "top_k": 5}
    asked = Request(CHAT, body | {"cache_salt": "another", "priority": -1000}, "req_1", 7, "proj_1")
    heard: list[dict[str, Any]] = []
    for owner in ("vllm", "sglang", 5):
        server.listing = web.json_response({"data": [{"id": "m", "owned_by": owner}]})
        async with engine_of(Endpoint(server.url)) as engine:
            await engine.answer(asked)
            heard.append(server.asked[-1])

    assert heard == [body | {"cache_salt": "proj_1"}, body, body]
