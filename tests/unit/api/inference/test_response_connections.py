"""Responses over WebSocket, on the app itself: an engine in this process stands where Redis and a worker would."""

import asyncio
import json
import signal
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import msgspec
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from openai.types.responses import ResponsesServerEvent
from pydantic import TypeAdapter
from starlette.testclient import WebSocketDenialResponse, WebSocketTestSession
from starlette.websockets import WebSocketDisconnect
from websockets.sync.client import connect as dial

from api.health.metrics import REGISTRY
from api.server import server
from jobs.clock import now
from jobs.errors import NoWorker, WorkerLost
from jobs.fleet import workers
from jobs.inference.answer_events import events_of_response
from jobs.inference.interactive import AnswerEntry, QueuedRequest
from jobs.queues import Queue
from jobs.security.keys import create_admin_key, revoke_key
from jobs.timings import Timings
from tests.support.web import hurry, make_key, served
from tests.support.worker_rows import worker_row
from workers.engines.port import refusal

MODEL = "m"
URL = "/v1/responses"
CREATE = {"type": "response.create", "model": MODEL, "input": "x"}
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponsesServerEvent)


class Engine:
    """Answer with the last words of the input, unless these say otherwise."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.running: list[str] = []
        self.most_running = 0
        self.left: list[str] = []
        self.may_end = False
        self.is_stopping: Callable[[], bool] = lambda: False

    async def submit(
        self, _queue: str, request: QueuedRequest, *_: Any, **_options: Any
    ) -> AsyncGenerator[AnswerEntry]:
        body = msgspec.json.decode(request.body)
        self.asked.append([said_in(item) for item in body["input"]])
        words = self.asked[-1][-1]
        position = f"{request.id}/1-0"
        if words.startswith("breaks"):
            raise ZeroDivisionError
        if words.startswith("nobody"):
            raise NoWorker
        if words.startswith("fails"):
            answer = refusal(400, "No.", code="invalid_value", param="input")
            yield AnswerEntry("end", answer.body, answer.status, position=position)
            return
        self.running.append(words)
        self.most_running = max(self.most_running, len(self.running))
        try:
            events = deque(events_of_response(answer_to(words, body["model"])))
            if words.startswith("stops"):
                events.pop()
            while events:
                yield AnswerEntry("chunk", msgspec.json.encode(events.popleft()), position=position)
                await self._wait(words)
        except (asyncio.CancelledError, GeneratorExit):
            self.left.append(words)
            raise
        finally:
            self.running.remove(words)
        yield AnswerEntry("end", position=position)

    async def _wait(self, words: str) -> None:
        while words.startswith("waits") and not self.may_end:
            await asyncio.sleep(0.01)
            if self.is_stopping():
                raise WorkerLost

    async def close(self) -> None:
        pass


def said_in(item: dict[str, Any]) -> str:
    content = item["content"]
    return content if isinstance(content, str) else str(content[0]["text"])


def answer_to(words: str, model: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": f"re {words}", "annotations": []}
    output = [{"type": "message", "role": "assistant", "id": "msg_1", "status": "completed", "content": [part]}]
    return {"id": "x", "object": "response", "created_at": 1, "model": model, "status": "completed", "output": output}


Connect = Callable[..., AbstractContextManager[WebSocketTestSession]]


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def make_connect(
    make_app: Callable[..., FastAPI], engine: Engine, tmp_path: Any
) -> Iterator[Callable[..., tuple[FastAPI, Connect]]]:
    """Yield a function that makes an app with a worker, and the function that connects to it."""
    with ExitStack() as stack:

        def make(timings: Timings = Timings(), **settings: Any) -> tuple[FastAPI, Connect]:
            models = tmp_path / "models.yaml"
            models.write_text(f'models:\n  {MODEL}: {{source: {{urls: ["http://127.0.0.1:9/v1"]}}, engine: http}}\n')
            app = make_app(models_file=str(models), timings=timings, **settings)
            app.state.services.inference = engine
            with app.state.services.db.write() as session:
                workers.register(session, worker_row("w", Queue.GENERATE, MODEL, created_at=now(), seen_at=now()))
            key = make_key(app)
            client = stack.enter_context(TestClient(app))  # one event loop for all connections

            def connect(token: str | None = key, url: str = URL) -> AbstractContextManager[WebSocketTestSession]:
                headers = {} if token is None else {"Authorization": f"Bearer {token}"}
                return client.websocket_connect(url, headers=headers)

            return app, connect

        yield make


@pytest.fixture
def connect(make_connect: Callable[..., tuple[FastAPI, Connect]]) -> Connect:
    return make_connect()[1]


def ask(session: WebSocketTestSession, said: Any = "hi", **fields: Any) -> None:
    session.send_json({**CREATE, "input": said, "store": False, **fields})


def events_of(session: WebSocketTestSession) -> list[dict[str, Any]]:
    """Return the events of one request."""
    events: list[dict[str, Any]] = []
    while not events or events[-1]["type"] not in ("response.completed", "response.failed", "error"):
        events.append(session.receive_json())
        EVENTS.validate_python(events[-1])
    return events


def response_of(session: WebSocketTestSession, said: Any = "hi", **fields: Any) -> dict[str, Any]:
    """Ask, and return the response, or the error."""
    ask(session, said, **fields)
    last = events_of(session)[-1]
    found: dict[str, Any] = last.get("response") or last
    return found


def test_sequential_responses_on_connection_are_answered(connect: Connect, engine: Engine) -> None:
    with connect() as session:
        for said in ("one", "two"):
            ask(session, said)
            events = events_of(session)

            assert events[0]["type"] == "response.created"
            assert [event["sequence_number"] for event in events] == list(range(len(events)))
            assert {event["response"]["id"] for event in events if "response" in event} == {events[0]["response"]["id"]}
            assert events[-1]["response"]["output"][0]["content"][0]["text"] == f"re {said}"
            assert all("stream_id" not in event for event in events)
    assert engine.asked == [["one"], ["two"]]


def test_a_response_that_is_not_stored_is_continued_on_its_connection_alone(connect: Connect, engine: Engine) -> None:
    with connect() as session:
        first = response_of(session, "one")
        second = response_of(session, "two", previous_response_id=first["id"])
        assert second["previous_response_id"] == first["id"]
        assert engine.asked[-1] == ["one", "re one", "two"]
        response_of(session, "three", previous_response_id=second["id"])
        assert engine.asked[-1] == ["one", "re one", "two", "re two", "three"]

        with connect() as other:
            elsewhere = response_of(other, previous_response_id=second["id"])
        gone = response_of(session, previous_response_id=first["id"])

    assert elsewhere["error"]["code"] == "previous_response_not_found"
    assert gone["error"] == {
        "message": f"Previous response with id '{first['id']}' not found.",
        "type": "invalid_request_error", "param": "previous_response_id", "code": "previous_response_not_found",
    }  # fmt: skip


def test_a_stored_response_is_continued_on_any_connection(connect: Connect, engine: Engine) -> None:
    with connect() as session:
        first = response_of(session, "one", store=True)
    with connect() as session:
        second = response_of(session, "two", previous_response_id=first["id"])

        assert engine.asked[-1] == ["one", "re one", "two"]
        assert response_of(session, "three", previous_response_id=second["id"])["status"] == "completed"


@pytest.mark.parametrize("wrong", [{"said": "fails"}, {"said": "nobody"}, {"temperature": "hot", "model": "none"}])
def test_a_continuation_that_fails_evicts_the_response_of_its_lane(connect: Connect, wrong: dict[str, Any]) -> None:
    with connect() as session:
        first = response_of(session, "one", stream_id="a")
        previous = {"previous_response_id": first["id"]}
        said = wrong.pop("said", "x")

        assert response_of(session, said, stream_id="b", **previous, **wrong)["type"] == "error"
        assert response_of(session, "fork", stream_id="b", **previous)["status"] == "completed"
        assert response_of(session, said, stream_id="a", **previous, **wrong)["type"] == "error"
        gone = response_of(session, "two", stream_id="a", **previous)

    assert (gone["error"]["code"], gone["stream_id"]) == ("previous_response_not_found", "a")


def test_the_output_of_a_function_needs_its_call(connect: Connect) -> None:
    output = {"type": "function_call_output", "call_id": "call_1", "output": "sunny"}
    with connect() as session:
        first = response_of(session)
        error = response_of(session, [output], previous_response_id=first["id"])

    message = "No tool call found for function call output with call_id call_1."
    assert error["error"] == {"message": message, "type": "invalid_request_error", "param": "input", "code": None}


def test_lanes_are_answered_side_by_side_and_each_in_order(connect: Connect, engine: Engine) -> None:
    with connect() as session:
        for said, lane in (("waits 1", "a"), ("2", "a"), ("3", "b"), ("4", None)):
            ask(session, said, **({"stream_id": lane} if lane else {}))
        early = [event for _ in range(2) for event in events_of_lanes(session)]
        engine.may_end = True
        late = [event for _ in range(2) for event in events_of_lanes(session)]

    def ended(events: list[dict[str, Any]]) -> set[tuple[Any, str]]:
        done = [event for event in events if event["type"] == "response.completed"]
        return {(event.get("stream_id"), event["response"]["output"][0]["content"][0]["text"]) for event in done}

    assert ended(early) == {("b", "re 3"), (None, "re 4")}
    assert [event for event in late if event.get("stream_id") != "a"] == []
    assert [text for _, text in sorted(ended(late), key=lambda lane: lane[1] != "re waits 1")] == ["re waits 1", "re 2"]
    assert engine.asked.index(["2"]) == 3


def events_of_lanes(session: WebSocketTestSession) -> Iterator[dict[str, Any]]:
    """Yield events, whatever their lane, until a response has ended."""
    while True:
        event = session.receive_json()
        yield event
        if event["type"] == "response.completed":
            return


def test_as_many_responses_are_in_progress_as_at_openai(connect: Connect, engine: Engine) -> None:
    with connect() as session:
        for n in range(20):
            ask(session, f"waits {n}", stream_id=f"lane-{n}")
        created = 0
        while created < 16:
            created += session.receive_json()["type"] == "response.created"
        assert engine.most_running == 16
        engine.may_end = True
        for _ in range(20):
            list(events_of_lanes(session))

    assert engine.most_running == 16
    assert len(engine.asked) == 20


def test_requests_that_wait_are_bounded(connect: Connect, engine: Engine) -> None:
    with connect() as session:
        for n in range(65):
            ask(session, f"waits {n}")
        error: dict[str, Any] = {}
        while error.get("type") != "error":
            error = session.receive_json()
        engine.may_end = True

    assert (error["status"], error["error"]["code"]) == (429, "rate_limit_exceeded")
    assert error["error"]["headers"] == {"retry-after": "5"}


def test_a_connection_has_as_many_lanes_as_at_openai(connect: Connect) -> None:
    with connect() as session:
        response_of(session)
        for n in range(32):
            response_of(session, stream_id=f"lane-{n}")
        error = response_of(session, stream_id="one-more")

        assert (error["status"], error["stream_id"]) == (400, "one-more")
        assert (error["error"]["code"], error["error"]["param"]) == ("websocket_stream_limit_reached", "stream_id")
        assert response_of(session, stream_id="lane-0")["status"] == "completed"


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ("{", "invalid_json", None),
        ('{"type": "response.create", "type": "x"}', "invalid_json", None),
        ("[" * 200 + "]" * 200, "invalid_json", None),
        ("[]", "invalid_type", None),
        ({}, "missing_required_parameter", "type"),
        ({"type": "response.steer", "input": "x", "previous_response_id": "resp_1"}, "invalid_value", "type"),
        ({"type": ["response.create"]}, "invalid_value", "type"),
        ({"type": "response.create"}, "missing_required_parameter", "model"),
        ({"type": "response.create", "model": 7}, "invalid_type", "model"),
        ({"type": "response.create", "model": "other", "input": "x"}, "model_not_found", "model"),
        ({"type": "response.create", "model": MODEL}, "missing_required_parameter", "input"),
        ({**CREATE, "input": [{"type": 1}]}, "invalid_value", "input[0]"),
        ({**CREATE, "input": ["x"] * 10_001}, "array_above_max_length", "input"),
        ({**CREATE, "stream_id": ""}, "invalid_stream_id", "stream_id"),
        ({**CREATE, "stream_id": 1}, "invalid_stream_id", "stream_id"),
        ({**CREATE, "stream_id": "é"}, "invalid_stream_id", "stream_id"),
        (
            {**CREATE, "stream_id": "a" * 257},
            "invalid_stream_id",
            "stream_id",
        ),
        ({**CREATE, "generate": "no"}, "invalid_type", "generate"),
        (
            {**CREATE, "background": True},
            "unsupported_value",
            "background",
        ),
        ({**CREATE, "stream": False}, "unsupported_value", "stream"),
        (
            {**CREATE, "previous_response_id": "a", "conversation": "b"},
            "mutually_exclusive_parameters",
            "previous_response_id",
        ),
    ],
)
def test_a_message_that_is_wrong_is_refused_and_the_next_is_answered(
    connect: Connect, engine: Engine, message: Any, code: str, param: str | None
) -> None:
    with connect() as session:
        session.send_text(message if isinstance(message, str) else json.dumps(message))
        [error] = events_of(session)

        assert error["status"] in (400, 404)
        assert error["error"]["type"] == "invalid_request_error"
        assert (error["error"]["code"], error["error"]["param"]) == (code, param)
        assert engine.asked == []
        assert response_of(session)["status"] == "completed"


def test_a_message_may_be_bytes(connect: Connect) -> None:
    with connect() as session:
        session.send_bytes(json.dumps({**CREATE, "stream": True}).encode())

        assert events_of(session)[-1]["type"] == "response.completed"


@pytest.mark.parametrize(
    ("said", "status", "code"),
    [
        ("fails", 400, "invalid_value"),
        ("nobody", 503, "no_worker"),
        ("breaks", 500, None),
        ("stops", 500, "engine_error"),
    ],
)
def test_a_request_that_fails_leaves_the_connection_open(
    connect: Connect, said: str, status: int, code: str | None
) -> None:
    with connect() as session:
        error = response_of(session, said)

        assert (error["status"], error["error"]["code"]) == (status, code)
        assert response_of(session)["status"] == "completed"


@pytest.mark.parametrize("store", [False, True])
def test_a_request_without_generation_prepares_the_next(connect: Connect, engine: Engine, store: bool) -> None:
    with connect() as session:
        ask(session, "one", instructions="Be brief.", generate=False, store=store)
        events = events_of(session)
        prepared = events[-1]["response"]
        assert engine.asked == []
        response_of(session, "two", previous_response_id=prepared["id"])
        unknown = response_of(session, generate=False, model="other")

    assert [event["type"] for event in events] == [
        f"response.{kind}" for kind in ("created", "in_progress", "completed")
    ]
    assert (prepared["status"], prepared["output"], prepared["instructions"]) == ("completed", [], "Be brief.")
    assert engine.asked == [["one", "two"]]
    assert unknown["error"]["code"] == "model_not_found"


def test_a_client_that_leaves_frees_the_engine(connect: Connect, engine: Engine) -> None:
    with connect() as session:
        ask(session, "waits")
        session.receive_json()

    assert engine.left == ["waits"]
    assert engine.running == []


def test_a_connection_ends_after_its_lifetime(
    make_connect: Callable[..., tuple[FastAPI, Connect]], engine: Engine
) -> None:
    app, connect = make_connect()
    hurry(app, connection_lifetime=0.5)
    with connect() as session:
        ask(session, "waits")
        last: dict[str, Any] = {}
        while last.get("type") != "error":
            last = session.receive_json()
        with pytest.raises(WebSocketDisconnect) as closed:
            session.receive_json()

    assert (last["status"], last["error"]["code"]) == (400, "websocket_connection_limit_reached")
    assert closed.value.code == 1001
    assert engine.left == ["waits"]


@pytest.mark.parametrize("in_time", [True, False])
def test_a_connection_of_a_process_that_stops_is_closed_after_its_answers(
    make_connect: Callable[..., tuple[FastAPI, Connect]], engine: Engine, in_time: bool
) -> None:
    app, _ = make_connect(shutdown_seconds=600 if in_time else 0.5)
    engine.is_stopping = app.state.services.stopping.is_set
    headers = {"Authorization": f"Bearer {make_key(app)}"}
    web = server(app, app.state.services.config)
    with served(web) as url, ExitStack() as stack:
        address = f"ws{url.removeprefix('http')}{URL}"
        idle, busy = (stack.enter_context(dial(address, additional_headers=headers)) for _ in range(2))
        busy.send(json.dumps({**CREATE, "input": "waits"}))
        assert json.loads(busy.recv(timeout=30))["type"] == "response.created"
        web.handle_exit(signal.SIGTERM, None)
        assert list(idle) == []
        engine.may_end = in_time
        rest = [json.loads(event)["type"] for event in busy]

    assert [connection.protocol.close_code for connection in (idle, busy)] == [1001, 1001]
    assert rest[-1] == ("response.completed" if in_time else "error")


def test_a_revoked_key_ends_the_connection(make_connect: Callable[..., tuple[FastAPI, Connect]]) -> None:
    app, connect = make_connect()
    key = make_key(app)
    with connect(key) as session:
        response_of(session)
        with app.state.services.db.write() as db:
            revoke_key(db, key.split("_")[1])
        error = response_of(session)
        with pytest.raises(WebSocketDisconnect) as closed:
            session.receive_json()

    assert (error["status"], error["error"]["code"]) == (401, "invalid_api_key")
    assert closed.value.code == 1008


def refusal_of(connection: AbstractContextManager[WebSocketTestSession]) -> tuple[int, str]:
    """Return status and code of the answer that refuses a connection."""
    with pytest.raises(WebSocketDenialResponse) as denied, connection:
        pass
    error = denied.value.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert denied.value.headers["x-request-id"]
    return denied.value.status_code, error["code"]


def test_a_connection_needs_a_key_of_a_project(make_connect: Callable[..., tuple[FastAPI, Connect]]) -> None:
    app, connect = make_connect(wrong_keys_per_minute=2)
    with app.state.services.db.write() as session:
        operator = create_admin_key(session)

    assert refusal_of(connect(operator)) == (403, "admin_key_not_allowed")
    assert refusal_of(connect(None)) == (401, "missing_api_key")
    assert refusal_of(connect("wrong")) == (401, "invalid_api_key")
    assert refusal_of(connect("wrong")) == (401, "invalid_api_key")
    assert refusal_of(connect("wrong")) == (429, "rate_limit_exceeded")


@pytest.mark.parametrize("url", ["/v1/chat/completions", "/v1/responses/resp_1", "/nothing", "/livez"])
def test_no_other_url_serves_a_websocket(connect: Connect, url: str) -> None:
    assert refusal_of(connect(url=url)) == (404, "unknown_url")


def test_a_url_with_a_nul_character_is_refusal_of(connect: Connect) -> None:
    assert refusal_of(connect(url=f"{URL}?a=%00")) == (400, "invalid_url")


def test_connections_of_a_project_are_bounded(make_connect: Callable[..., tuple[FastAPI, Connect]]) -> None:
    app, connect = make_connect(project_streams=1)
    other = make_key(app, "another")
    with connect() as session:
        assert refusal_of(connect()) == (429, "rate_limit_exceeded")
        with connect(other) as neighbour:
            assert response_of(neighbour)["status"] == "completed"
        assert response_of(session)["status"] == "completed"
    with connect() as session:
        assert response_of(session)["status"] == "completed"


def test_response_cache_of_project_connections_is_bounded(make_connect: Callable[..., tuple[FastAPI, Connect]]) -> None:
    _, connect = make_connect(project_body_bytes=4096, body_max_bytes=4096)
    with connect() as session, connect() as second:
        first = response_of(session, "x" * 950)  # cached with its answer, which is as long
        large = response_of(second, "y" * 950)

        assert response_of(session, "two", previous_response_id=first["id"])["status"] == "completed"
        gone = response_of(second, "two", previous_response_id=large["id"])
    assert gone["error"]["code"] == "previous_response_not_found"
    with connect() as session:
        first = response_of(session, "x" * 950)
        assert response_of(session, "two", previous_response_id=first["id"])["status"] == "completed"


def test_a_connection_has_a_request_id_and_its_requests_are_measured(connect: Connect) -> None:
    def counts() -> list[float]:
        labels = {"method": "WEBSOCKET", "route": URL}
        name = "nightmill_http_request_seconds_count"
        return [REGISTRY.get_sample_value(name, {**labels, "status": s}) or 0.0 for s in ("101", "200", "400")]

    before = counts()
    with connect() as session:
        response_of(session)
        response_of(session, "fails")
        headers: Any = session.extra_headers  # typed as None
        assert dict(headers)[b"x-request-id"]

    assert counts() == [count + 1 for count in before]
