"""The HTTP engine against servers in this process that say exactly what a test tells them to."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from jobs.fleet.models_file import Registry
from jobs.requests.endpoints import COMPLETIONS, RESPONSES
from jobs.settings import Settings
from jobs.timings import Timings
from tests.support.server_shapes import ANSWERS, ERRORS
from tests.support.system import free_port
from workers.engines import wire
from workers.engines.build_engines import build
from workers.engines.http import http_engine
from workers.engines.http.endpoints import (
    FAULTS,
    FIRST_DELAY_SECONDS,
    FIRST_WINDOW,
    Circuit,
    CircuitState,
    Endpoint,
    Window,
)
from workers.engines.http.http_engine import HttpEngine
from workers.engines.port import Answer, EngineBusy, EngineFault, Request
from workers.engines.router import Router

CHAT = "/v1/chat/completions"
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Server:
    """Answers each POST with what `script` says, or with an echo; counts them."""

    def __init__(self, name: str = "m") -> None:
        self.name = name
        self.asked: list[dict[str, Any]] = []
        self.heard: list[Mapping[str, str]] = []
        self.script: Handler | None = None
        self.listing: web.Response | None = None
        self.on_list: Handler | None = None
        self.at_once = 0
        self.most_at_once = 0
        self.url = ""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "GET" and self.on_list:
            return await self.on_list(request)
        if request.method == "GET":
            return self.listing or web.json_response({"object": "list", "data": [{"id": self.name}]})
        self.heard.append(request.headers)
        self.asked.append(msgspec.json.decode(await request.read()))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self.script(request) if self.script else good()
        finally:
            self.at_once -= 1


def good(**more: Any) -> web.Response:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    return web.json_response({"id": "c", "choices": [], "usage": usage, **more})


def says(status: int, body: bytes | str = b"{}", **headers: str) -> Handler:
    data = body.encode() if isinstance(body, str) else body

    async def answer(_: web.BaseRequest) -> web.Response:
        return web.Response(status=status, body=data, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return answer


@contextlib.asynccontextmanager
async def serving(server: Server, port: int = 0) -> AsyncIterator[Server]:
    runner = web.ServerRunner(web.Server(server.handle, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def engine_of(*endpoints: Endpoint, **options: Any) -> AsyncIterator[HttpEngine]:
    engine = HttpEngine(endpoints, **{"timeout": 5.0, **options})
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving(Server()) as running:
        yield running


@pytest.fixture
async def engine(server: Server) -> AsyncIterator[HttpEngine]:
    async with engine_of(Endpoint(server.url)) as running:
        yield running


def request(model: str = "m", prompt: str = "hello", priority: int = 0) -> Request:
    return Request(CHAT, {"model": model, "messages": [{"role": "user", "content": prompt}]}, "req_1", priority)


def unused_url() -> str:
    return f"http://127.0.0.1:{free_port()}"


async def until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110  what is awaited has no event of its own
            await asyncio.sleep(0.01)


def error_of(answer: Answer) -> dict[str, Any]:
    error: dict[str, Any] = msgspec.json.decode(answer.body)["error"]
    return error


@pytest.mark.parametrize("name", ANSWERS)
async def test_usage_is_read_from_what_each_server_says(server: Server, engine: HttpEngine, name: str) -> None:
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


async def test_what_a_server_cannot_process_is_a_bad_request(server: Server, engine: HttpEngine) -> None:
    server.script = says(422, ERRORS["fastapi-validation"][0])

    answer = await engine.answer(request())

    assert (answer.status, error_of(answer)["type"]) == (400, "invalid_request_error")


async def _streamed(engine: HttpEngine, asked: Request) -> tuple[Answer, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []

    async def emit(event: bytes) -> None:
        events.append(msgspec.json.decode(event))

    return await engine.stream(asked, emit), events


SAID = {"output": [{"type": "message", "content": [{"type": "output_text", "text": "Hi."}]}]}


async def test_a_sparse_response_is_completed_with_what_was_asked(server: Server, engine: HttpEngine) -> None:
    server.script = says(200, msgspec.json.encode(SAID))

    answer = await engine.answer(Request(RESPONSES, {"model": "m", "input": "x", "temperature": 0.5}, "req_1"))

    told = msgspec.json.decode(answer.body)
    assert (told["model"], told["temperature"], told["top_p"], told["status"]) == ("m", 0.5, 1.0, "completed")
    assert told["output"][0]["content"][0] == {"type": "output_text", "text": "Hi.", "annotations": [], "logprobs": []}


@pytest.mark.parametrize("usage", [True, False])
async def test_a_chat_that_comes_whole_is_one_chunk(server: Server, engine: HttpEngine, usage: bool) -> None:
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


async def test_a_text_completion_that_comes_whole_is_one_chunk(server: Server, engine: HttpEngine) -> None:
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
async def test_what_comes_instead_of_a_stream_and_is_no_answer_stays(
    server: Server, engine: HttpEngine, url: str
) -> None:
    server.script = says(200, b'{"odd":1}')

    end, events = await _streamed(engine, Request(url, {"model": "m"}, "req_1"))

    assert (end.status, end.body, events) == (200, b'{"odd":1}', [])


async def test_body_on_one_line_is_passed_on_untouched(server: Server, engine: HttpEngine) -> None:
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


async def test_server_error_is_a_fault_that_carries_what_the_server_said(server: Server, engine: HttpEngine) -> None:
    server.script = says(500, '{"object":"error","message":"CUDA error","type":"InternalServerError","code":500}')

    with pytest.raises(EngineFault) as caught:
        await engine.answer(request())

    assert caught.value.answer is not None
    assert caught.value.answer.status == 500
    assert error_of(caught.value.answer)["message"] == "CUDA error"


@pytest.mark.parametrize("status", [408, 409, 425])
async def test_what_is_no_fault_of_the_request_is_tried_again(server: Server, engine: HttpEngine, status: int) -> None:
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
    await until(lambda: engine.endpoints[0].circuit.closed)
    assert (await engine.answer(request())).status == 200


async def test_key_and_request_id_are_sent_and_no_proxy_of_the_environment_is_used(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", unused_url())
    async with engine_of(Endpoint(server.url, api_key="sk-1")) as engine:
        await engine.answer(request())

    assert server.heard[0]["Authorization"] == "Bearer sk-1"
    assert server.heard[0]["X-Request-Id"] == "req_1"


async def test_model_is_sent_under_the_servers_own_name(server: Server) -> None:
    async with engine_of(Endpoint(server.url, serves={"big": "org/big-70b"})) as engine:
        asked = request("big")
        await engine.answer(asked)

    assert server.asked[0]["model"] == "org/big-70b"
    assert asked.body["model"] == "big"


# Which server gets a request.


async def test_requests_go_to_the_server_with_the_fewest_in_flight() -> None:
    async def slowly(_: web.BaseRequest) -> web.Response:
        await asyncio.sleep(0.05)
        return good()

    async with (
        serving(Server()) as one,
        serving(Server()) as two,
        engine_of(Endpoint(one.url), Endpoint(two.url)) as engine,
    ):
        one.script = two.script = slowly
        await asyncio.gather(*(engine.answer(request()) for _ in range(40)))

    assert (len(one.asked), len(two.asked)) == (20, 20)


async def test_request_only_goes_where_its_model_is() -> None:
    async with (
        serving(Server("a")) as one,
        serving(Server("b")) as two,
        engine_of(Endpoint(one.url), Endpoint(two.url)) as engine,
    ):
        await asyncio.gather(*(engine.answer(request("b")) for _ in range(5)))

        assert engine.models == ("a", "b")
        assert (len(one.asked), len(two.asked)) == (0, 5)


async def test_another_server_answers_when_one_refuses_the_connection(server: Server) -> None:
    dead = Endpoint(unused_url(), serves={"m": "m"})
    async with engine_of(dead, Endpoint(server.url)) as engine:
        answers = [await engine.answer(request()) for _ in range(3)]

    assert [answer.status for answer in answers] == [200, 200, 200]
    assert dead.circuit.state is CircuitState.OPEN


async def test_another_server_answers_when_one_is_loading() -> None:
    async with (
        serving(Server()) as one,
        serving(Server()) as two,
        engine_of(Endpoint(one.url), Endpoint(two.url)) as engine,
    ):
        one.script = says(503, '{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}')
        answers = await asyncio.gather(*(engine.answer(request()) for _ in range(10)))

    assert {answer.status for answer in answers} == {200}
    assert len(two.asked) == 10


async def test_engine_is_busy_when_every_server_refuses() -> None:
    endpoint = Endpoint(unused_url(), serves={"m": "m"})
    async with engine_of(endpoint) as engine:
        endpoint.listed(None)  # as if it had been there a moment ago
        with pytest.raises(EngineBusy) as first:
            await engine.answer(request())
        with pytest.raises(EngineBusy, match="takes requests now") as second:
            await engine.answer(request())

    assert "not reachable" in str(first.value)
    assert second.value.retry_after == pytest.approx(FIRST_DELAY_SECONDS, abs=0.3)


async def test_a_server_that_cannot_be_reached_is_away_before_any_request_is_sent_to_it() -> None:
    endpoint = Endpoint(unused_url(), serves={"m": "m"})
    server = Server()
    async with engine_of(endpoint) as engine:
        router = Router([engine], Registry({}, {}, Path("models.yaml")))
        before = router.there
        async with serving(server, int(endpoint.url.rpartition(":")[2])):
            await until(lambda: endpoint.circuit.closed, 30)
            after = router.there

    assert (before, after) == (frozenset(), frozenset({"m"}))
    assert server.asked == []


async def test_unknown_model_is_an_answer_once_every_server_has_shown_its_models(engine: HttpEngine) -> None:
    answer = await engine.answer(request("other"))

    assert answer.status == 404
    assert error_of(answer)["code"] == "model_not_found"


async def test_unknown_model_may_still_turn_up_while_a_server_is_away(server: Server) -> None:
    async with engine_of(Endpoint(server.url), Endpoint(unused_url())) as engine:
        with pytest.raises(EngineBusy, match="No reachable endpoint"):
            await engine.answer(request("other"))


# What a server's answers do to it.


async def test_retry_after_of_a_503_reaches_the_worker(server: Server, engine: HttpEngine) -> None:
    server.script = says(503, Retry_After="7")

    with pytest.raises(EngineBusy) as caught:
        await engine.answer(request())

    assert caught.value.retry_after == 7


async def test_limited_request_is_tried_again_after_the_pause_that_was_asked_for(
    server: Server, engine: HttpEngine
) -> None:
    loop = asyncio.get_running_loop()
    times: list[float] = []

    async def limited_once(_: web.BaseRequest) -> web.Response:
        times.append(loop.time())
        return good() if len(times) > 1 else web.Response(status=429, headers={"Retry-After": "1"})

    server.script = limited_once
    answer = await engine.answer(request())

    assert answer.status == 200
    assert times[1] - times[0] >= 1.0


async def test_request_that_stays_limited_goes_back_to_the_worker(server: Server) -> None:
    server.script = says(429)
    async with engine_of(Endpoint(server.url), timings=replace(Timings(), http_first_backoff=0.001)) as engine:
        with pytest.raises(EngineBusy, match="429"):
            await engine.answer(request())

    assert len(server.asked) == http_engine.TRIES_WHEN_LIMITED


@pytest.mark.parametrize("status", [401, 402, 407])
async def test_a_refused_key_is_no_fault_of_the_request_that_is_sent_with_it(
    server: Server, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    at = 100.0
    server.script = says(status, b'{"error": {"message": "Incorrect API key provided: sk-live*****1234."}}')
    async with engine_of(Endpoint(server.url, clock=lambda: at)) as engine:
        with pytest.raises(EngineBusy, match="refuses our key") as caught:
            await engine.answer(request())
        with pytest.raises(EngineBusy, match="takes our key") as again:
            await engine.answer(request())

        assert len(server.asked) == 1
        at += http_engine.CLOSED_SECONDS
        server.script = says(200)
        assert (await engine.answer(request())).status == 200

    assert caught.value.retry_after == again.value.retry_after == http_engine.CLOSED_SECONDS
    told = [vars(record)["status"] for record in caplog.records if record.message == "engine.refuses_our_key"]
    assert told == [status]
    assert "sk-live" not in f"{caught.value} {again.value} {caplog.text}"


async def test_where_one_endpoint_refuses_our_key_another_answers(server: Server) -> None:
    server.script = says(401)
    async with serving(Server()) as other, engine_of(Endpoint(server.url), Endpoint(other.url)) as engine:
        answers = [await engine.answer(request()) for _ in range(4)]

    assert [answer.status for answer in answers] == [200] * 4
    assert len(server.asked) == 1  # it is not the emptiest for being the one that refuses
    assert len(other.asked) == 4


async def test_long_pause_is_the_workers_to_wait_for_those_in_line_too(server: Server) -> None:
    proceed = asyncio.Event()

    async def limited(_: web.BaseRequest) -> web.Response:
        await proceed.wait()
        return web.Response(status=429, headers={"Retry-After": "60"})

    server.script = limited
    async with engine_of(Endpoint(server.url, concurrency=1)) as engine:
        tasks = [asyncio.create_task(engine.answer(request())) for _ in range(3)]
        await until(lambda: len(server.asked) == 1)
        proceed.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes if not isinstance(outcome, Answer)] != []
    assert all(isinstance(outcome, EngineBusy) and (outcome.retry_after or 0) > 55 for outcome in outcomes)
    assert len(server.asked) == 1


async def test_no_more_requests_are_in_flight_than_the_endpoint_may_have(server: Server) -> None:
    async def slowly(_: web.BaseRequest) -> web.Response:
        await asyncio.sleep(0.01)
        return good()

    server.script = slowly
    async with engine_of(Endpoint(server.url, concurrency=4)) as engine:
        answers = await asyncio.gather(*(engine.answer(request()) for _ in range(40)))

    assert len(answers) == 40
    assert server.most_at_once == 4


async def test_overload_halves_the_window_once_per_burst(server: Server, engine: HttpEngine) -> None:
    window = engine.endpoints[0].window
    server.script = says(503)

    await asyncio.gather(*(engine.answer(request()) for _ in range(20)), return_exceptions=True)

    assert window.limit == FIRST_WINDOW / 2
    assert engine.endpoints[0].slots.used == 0


async def test_lower_priority_number_is_served_first_in_the_line(server: Server) -> None:
    gate = asyncio.Event()

    async def gated(_: web.BaseRequest) -> web.Response:
        await gate.wait()
        return good()

    server.script = gated
    async with engine_of(Endpoint(server.url, concurrency=1)) as engine:
        order = [("first", 0), ("later", 5), ("soon", -1), ("middle", 0)]
        tasks = []
        for prompt, priority in order:
            tasks.append(asyncio.create_task(engine.answer(request(prompt=prompt, priority=priority))))
            await asyncio.sleep(0)
        await until(lambda: len(server.asked) == 1)
        gate.set()
        await asyncio.gather(*tasks)

    assert [asked["messages"][0]["content"] for asked in server.asked] == ["first", "soon", "middle", "later"]


async def test_cancelled_requests_free_their_slots_and_places(server: Server) -> None:
    async def hang(_: web.BaseRequest) -> web.Response:
        await asyncio.sleep(60)
        return good()

    server.script = hang
    async with engine_of(Endpoint(server.url, concurrency=2)) as engine:
        tasks = [asyncio.create_task(engine.answer(request())) for _ in range(6)]
        await until(lambda: len(server.asked) == 2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        server.script = None

        async with asyncio.timeout(2):
            assert (await engine.answer(request())).status == 200
        assert engine.endpoints[0].slots.used == 0


async def test_circuit_opens_after_faults_in_a_row_and_closes_when_the_server_lists_its_models(
    server: Server, engine: HttpEngine
) -> None:
    server.script = says(502)
    await asyncio.gather(*(engine.answer(request()) for _ in range(FAULTS)), return_exceptions=True)
    circuit = engine.endpoints[0].circuit

    assert circuit.state is CircuitState.OPEN
    with pytest.raises(EngineBusy):
        await engine.answer(request())

    server.script = None
    await until(lambda: circuit.closed)
    assert (await engine.answer(request())).status == 200


async def test_poisonous_requests_between_answers_leave_the_circuit_closed(server: Server, engine: HttpEngine) -> None:
    for _ in range(FAULTS):
        server.script = says(504)
        with pytest.raises(EngineFault):
            await engine.answer(request())
        server.script = None
        await engine.answer(request())

    assert engine.endpoints[0].circuit.closed


async def test_server_that_starts_later_is_found() -> None:
    url = unused_url()
    async with engine_of(Endpoint(url), timings=replace(Timings(), http_first_list=0.1)) as engine:
        assert engine.models == ()
        async with serving(Server("late"), port=int(url.rsplit(":", 1)[1])):
            await until(lambda: engine.models == ("late",))
            assert (await engine.answer(request("late"))).status == 200


@pytest.mark.parametrize(
    "listing",
    [
        web.Response(text="<html>"),
        web.json_response({"data": [{"name": "m"}]}),
        web.Response(text='{"data":[{"id":"m","owned_by":' + "[" * 5000 + "]" * 5000 + "}]}"),
    ],
    ids=["not-json", "no-ids", "too-deep"],
)
async def test_server_without_a_usable_list_has_not_shown_its_models(server: Server, listing: web.Response) -> None:
    server.listing = listing
    async with engine_of(Endpoint(server.url)) as engine:
        assert engine.models == ()
        with pytest.raises(EngineBusy, match="No reachable endpoint"):
            await engine.answer(request("whatever"))


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


# The parts alone.


def test_retry_after_is_a_number_or_a_date_and_never_absurd() -> None:
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)

    assert wire.retry_after("1.5") == 1.5
    assert wire.retry_after(in_a_minute) == pytest.approx(60, abs=2)
    assert wire.retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert wire.retry_after("-3") == 0
    assert wire.retry_after("1e9") == wire.LONGEST_RETRY_SECONDS
    long = ("Mon, 01 Jan 2024 00:00:00 +99999999999999999999", "Mon, 01 Jan 99999999999999999999 00:00:00 GMT")
    assert [wire.retry_after(odd) for odd in (None, "", "soon", "nan", *long)] == [None] * 6


def test_circuit_waits_twice_as_long_after_each_failed_probe() -> None:
    time = 0.0
    circuit = Circuit(clock=lambda: time)
    waits = []

    circuit.trip()
    for _ in range(7):
        waits.append(circuit.wait)
        time += circuit.wait
        assert circuit.due()
        circuit.probe()
        assert not circuit.due()
        circuit.trip()

    assert waits == [1, 2, 4, 8, 16, 30, 30]


def test_late_failures_of_an_open_circuit_do_not_keep_it_open_for_longer() -> None:
    time = 0.0
    circuit = Circuit(clock=lambda: time)
    circuit.trip()
    first = circuit.wait

    time += first / 2
    circuit.trip()

    assert circuit.wait == first / 2


def test_late_answers_of_an_open_circuit_do_not_close_it() -> None:
    circuit = Circuit(clock=lambda: 0.0)
    circuit.trip()

    circuit.succeed()

    assert circuit.state is CircuitState.OPEN


def test_window_grows_by_one_per_window_of_answers_and_only_while_full() -> None:
    window = Window(100)
    window.grow(63)
    assert window.limit == 64

    for _ in range(64):
        window.grow(64)

    assert 64.9 < window.limit <= 65


def test_window_never_leaves_its_bounds() -> None:
    window = Window(2)
    for _ in range(10):
        window.grow(2)
    assert window.limit == 2

    for _ in range(10):
        window.cut(window.cuts)
    assert window.limit == 1


async def test_turn_of_a_request_that_is_cancelled_as_it_comes_goes_to_the_next(server: Server) -> None:
    gate = asyncio.Event()

    async def gated(_: web.BaseRequest) -> web.Response:
        await gate.wait()
        return good()

    server.script = gated
    async with engine_of(Endpoint(server.url, concurrency=1)) as engine:
        first = asyncio.create_task(engine.answer(request()))
        await until(lambda: len(server.asked) == 1)
        second, third = [asyncio.create_task(engine.answer(request())) for _ in range(2)]
        await asyncio.sleep(0)
        first.add_done_callback(lambda _: second.cancel())
        gate.set()

        async with asyncio.timeout(2):
            outcomes = await asyncio.gather(first, second, third, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [Answer, asyncio.CancelledError, Answer]


async def test_server_that_refuses_to_list_stays_shut_out_for_longer(server: Server, engine: HttpEngine) -> None:
    circuit = engine.endpoints[0].circuit
    server.listing = web.Response(status=503)
    circuit.trip()
    first = circuit.wait

    await until(lambda: circuit.wait > first)

    assert circuit.state is CircuitState.OPEN
    assert circuit.wait == pytest.approx(2 * FIRST_DELAY_SECONDS, abs=0.3)


async def test_busy_server_that_is_slow_to_list_keeps_its_circuit(server: Server) -> None:
    async with engine_of(Endpoint(server.url), timings=replace(Timings(), http_relist=0.0)) as engine:
        server.listing = web.Response(status=500)

        await engine.discover()

        assert engine.endpoints[0].circuit.closed
        assert engine.models == ("m",)


async def test_models_that_only_external_servers_have_are_marked(server: Server) -> None:
    outside = Endpoint("https://api.example.com")
    outside.listed_models = frozenset({"m", "far"})
    engine = HttpEngine([Endpoint(server.url, listed_models=frozenset({"m", "near"})), outside], timeout=5)

    assert engine.discovered == {"m": False, "near": False, "far": True}


async def test_what_steers_a_server_is_left_out_and_its_cache_is_kept_apart_if_it_is_a_vllm(server: Server) -> None:
    body = {"model": "m", "messages": [], "top_k": 5}
    asked = Request(CHAT, body | {"cache_salt": "another", "priority": -1000}, "req_1", 7, "proj_1")
    heard: list[dict[str, Any]] = []
    for owner in ("vllm", "sglang", 5):
        server.listing = web.json_response({"data": [{"id": "m", "owned_by": owner}]})
        async with engine_of(Endpoint(server.url)) as engine:
            await engine.answer(asked)
            heard.append(server.asked[-1])

    assert heard == [body | {"cache_salt": "proj_1"}, body, body]


async def test_other_servers_are_asked_from_now_on_and_those_that_stay_go_on_as_they_are(server: Server) -> None:
    answered = asyncio.Event()

    async def slowly(_: web.BaseRequest) -> web.StreamResponse:
        await answered.wait()
        return good()

    server.script = slowly
    async with serving(Server("new")) as new:
        away = Endpoint(unused_url(), serves={"away": "x"})
        async with engine_of(Endpoint(server.url, serves={"m": "m"}, concurrency=1), away) as engine:
            with pytest.raises(EngineBusy):
                await engine.answer(request("away"))
            in_flight, in_line = (asyncio.create_task(engine.answer(request())) for _ in range(2))
            await until(lambda: server.at_once == 1)

            engine.adopt(
                [Endpoint(new.url, serves={"m": "new"}), Endpoint(away.url, serves={"away": "y", "also": "z"})], {}
            )
            answered.set()

            assert (await in_flight).status == 200
            with pytest.raises(EngineBusy):
                await in_line
            assert (await engine.answer(request())).status == 200
            assert (len(server.asked), [body["model"] for body in new.asked]) == (1, ["new"])
            assert engine.endpoints[1] is away
            assert not away.circuit.closed
            assert engine.models == ("also", "away", "m")


async def test_a_server_that_has_come_to_be_asked_is_watched_and_one_that_went_is_not(server: Server) -> None:
    async with engine_of() as engine:
        engine.adopt([Endpoint(server.url)], {})
        await until(lambda: engine.models == ("m",))

        engine.adopt([], {})

        assert engine.models == ()
        assert (await engine.answer(request())).status == 404


async def test_a_request_in_line_gets_its_server_though_another_has_come_to_list_the_model(server: Server) -> None:
    """Keep a request to the servers of its arrival, and give their slots to those that wait for them."""
    gates = {"any": asyncio.Event(), "named": asyncio.Event()}

    def gated(name: str) -> Handler:
        async def answer(_: web.BaseRequest) -> web.Response:
            await gates[name].wait()
            return good()

        return answer

    server.on_list, server.script = says(404), gated("any")
    async with serving(Server("other")) as named:
        named.script = gated("named")
        endpoints = Endpoint(server.url, concurrency=1), Endpoint(named.url, concurrency=1)
        async with engine_of(*endpoints) as engine:
            running = [asyncio.create_task(engine.answer(request(model))) for model in ("m", "other")]
            await until(lambda: server.at_once == named.at_once == 1)
            in_line = []
            for model in ("other", "m"):
                in_line.append(asyncio.create_task(engine.answer(request(model))))
                await until(lambda: sum(one.slots.waiting for one in endpoints) == len(in_line))
            endpoints[1].listed_models = frozenset({"other", "m"})
            gates["any"].set()

            assert (await asyncio.wait_for(in_line[1], 30)).status == 200
            assert not in_line[0].done()
            gates["named"].set()
            await asyncio.gather(*running, *in_line)

    assert [len(one.asked) for one in (server, named)] == [2, 2]


async def test_the_engines_of_a_worker_have_its_timings(server: Server, tmp_path: Path) -> None:
    timings = replace(Timings(), http_watch=0.01, http_relist=0.0)
    config = Settings(data_dir=tmp_path, engine_urls=[server.url], vllm_enabled=False)
    router = build(config, Registry.load(config), "gpu.generate", timings=timings)
    await router.start()
    try:
        server.name = "another"
        await until(lambda: "another" in router.models)  # half a minute by default
        assert "another" in router.models
    finally:
        await router.close()
