"""Interactive clients: the official SDK, the real API and its Redis, and the worker's consumer over the fake engine."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import openai
import pytest
import redis
from sqlalchemy import select

from jobs.clock import now
from jobs.ids import new_id
from jobs.inference import interactive
from jobs.inference.client import InferenceClient, last_entry
from jobs.inference.interactive import AnswerEntry, QueuedRequest
from jobs.ledger import pauses
from jobs.ledger.pauses import Paused, Scope
from jobs.queues import Queue
from jobs.security.tables import Project
from jobs.settings import Settings
from jobs.timings import Timings
from tests.support.interactive_api import HELLO, MODEL, Shop
from tests.support.system import eventually, pause
from workers.engines.port import EngineDead, EngineFault
from workers.runtime.heartbeat import UnderWay


@pytest.fixture
def closed(make_shop: Callable[..., Shop]) -> Shop:
    """Return a shop without a worker."""
    return make_shop()


def test_a_chat_is_answered_at_once_and_only_once(shop: Shop) -> None:
    said = shop.client.chat.completions.create(model=MODEL, messages=HELLO)

    assert said.choices[0].message.content
    assert said.choices[0].finish_reason == "stop"
    assert said.usage
    assert said.usage.total_tokens == said.usage.prompt_tokens + said.usage.completion_tokens
    assert shop.asked == ["Hello"]


def test_stream_equals_answer_and_has_usage_if_included(shop: Shop) -> None:
    whole = shop.client.chat.completions.create(model=MODEL, messages=HELLO)
    pieces = list(
        shop.client.chat.completions.create(
            model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )

    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == whole.choices[0].message.content
    assert len([piece for piece in pieces if piece.choices]) > 2
    assert pieces[0].choices[0].delta.role == "assistant"
    assert [piece.usage for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].choices == []
    assert pieces[-1].usage == whole.usage


def test_completions_and_embeddings_are_served_too(shop: Shop) -> None:
    text = shop.client.completions.create(model=MODEL, prompt="Hello")
    streamed = list(shop.client.completions.create(model=MODEL, prompt="Hello", stream=True))
    vectors = shop.client.embeddings.create(model=MODEL, input=["one", "two"])  # base64 on the wire

    assert "".join(piece.choices[0].text for piece in streamed) == text.choices[0].text
    assert [len(one.embedding) for one in vectors.data] == [8, 8]
    assert vectors.data[0].embedding != vectors.data[1].embedding


def test_project_sees_times_tokens_and_errors_of_its_requests(shop: Shop) -> None:
    chats = shop.client.chat.completions
    chats.create(model=MODEL, messages=HELLO)
    list(chats.create(model=MODEL, messages=HELLO, stream=True))
    with pytest.raises(openai.NotFoundError):
        chats.create(model="nobody", messages=HELLO)
    eventually(lambda: sum(row["requests"] for row in _interactive(shop)) == 3, 60, "the requests are counted")

    requests, others = _interactive(shop)
    assert (requests["model"], requests["errors"]) == (MODEL, {})
    assert (others["model"], others["errors"]) == ("other", {"model_not_found": 1})
    assert requests["first_token"]["p50"] <= requests["duration"]["p95"]
    assert requests["output_tokens"] > 0


def _interactive(shop: Shop) -> Any:
    return shop.client.get("/throughput", cast_to=object)["interactive"]


def test_many_at_once_get_each_their_own_answer(make_shop: Callable[..., Shop]) -> None:
    shop = make_shop(interactive_waiting=300)

    async def all_of_them() -> list[str]:
        client = openai.AsyncOpenAI(
            base_url=str(shop.client.base_url), api_key=shop.client.api_key, max_retries=0, timeout=30
        )
        async with client:
            answers = await asyncio.gather(
                *(client.completions.create(model=MODEL, prompt=f"number {n}") for n in range(100))
            )
        return [answer.choices[0].text for answer in answers]

    with shop.open(concurrent=16):
        said = asyncio.run(all_of_them())
        alone = [shop.client.completions.create(model=MODEL, prompt=f"number {n}").choices[0].text for n in (0, 99)]

    assert len(set(said)) == 100
    assert [said[0], said[99]] == alone


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "nobody", "messages": HELLO}, 404, "model"),
        ({"messages": HELLO}, 400, "model"),
        ({"model": MODEL, "messages": []}, 400, "messages"),
        ({"model": MODEL}, 400, "messages"),
        ({"model": 3, "messages": HELLO}, 400, "model"),
        ({"model": MODEL, "messages": HELLO, "stream": "yes"}, 400, "stream"),
    ],
)
def test_invalid_request_is_refused_before_engine_call(
    shop: Shop, body: dict[str, Any], status: int, param: str
) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        shop.client.post("/chat/completions", body=body, cast_to=object)

    assert (refused.value.status_code, refused.value.param) == (status, param)
    assert shop.asked == []


def test_engine_failure_has_openai_error_shape(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shop.engine, "_fault", lambda _: EngineFault("connection reset"))

    with pytest.raises(openai.InternalServerError) as told:
        shop.client.chat.completions.create(model=MODEL, messages=HELLO)

    assert told.value.code == "engine_error"


def test_dead_engine_is_rebuilt_for_next_request(make_shop: Callable[..., Shop]) -> None:
    deaths = [EngineDead("gone")]
    shop = make_shop({"fault": lambda _: deaths.pop() if deaths else None})

    with shop.open():
        with pytest.raises(openai.InternalServerError) as told:
            shop.client.chat.completions.create(model=MODEL, messages=HELLO)
        patient = shop.client.with_options(max_retries=5)
        assert patient.chat.completions.create(model=MODEL, messages=HELLO).choices

    assert told.value.status_code == 503
    assert told.value.response.headers["retry-after"]


def test_without_a_live_worker_the_answer_is_503_at_once(closed: Shop) -> None:
    with pytest.raises(openai.InternalServerError) as told:
        closed.client.chat.completions.create(model=MODEL, messages=HELLO)

    assert (told.value.status_code, told.value.code) == (503, "no_worker")


def test_request_survives_worker_leaving_before_claim(
    make_shop: Callable[..., Shop],
) -> None:
    shop = make_shop(timings=replace(Timings(), interactive_taken=0.4))
    shop.announce("gpu-1")  # says that it serves, and takes nothing
    threading.Timer(0.6, shop.leave).start()

    with pytest.raises(openai.InternalServerError) as told:
        shop.client.chat.completions.create(model=MODEL, messages=HELLO)

    assert told.value.code == "no_worker"


def test_a_worker_that_goes_down_sends_its_clients_to_another(make_shop: Callable[..., Shop]) -> None:
    shop = make_shop({"delay": 30.0})
    told: list[openai.InternalServerError] = []

    def ask() -> None:
        with pytest.raises(openai.InternalServerError) as refused:
            shop.client.chat.completions.create(model=MODEL, messages=HELLO)
        told.append(refused.value)

    client = threading.Thread(target=ask)
    with shop.open():
        client.start()
        eventually(lambda: shop.host._in_flight, 10, "it is asked")
    client.join(30)

    assert [(error.status_code, error.code) for error in told] == [(503, "worker_lost")]
    assert told[0].response.headers["retry-after"] == "1"


def test_an_answer_that_takes_too_long_is_given_up_and_frees_the_engine(make_shop: Callable[..., Shop]) -> None:
    shop = make_shop({"delay": 300.0}, interactive_seconds=1.0)

    with shop.open():
        with pytest.raises(openai.APIStatusError) as told:
            shop.client.chat.completions.create(model=MODEL, messages=HELLO)

        shop.wait_until_free()
    assert (told.value.status_code, told.value.code) == (408, "timeout")


async def _nothing(*_: object) -> None: ...


@pytest.mark.parametrize("who", ["api", "worker"])
def test_sdk_does_not_repeat_timed_out_request(
    make_shop: Callable[..., Shop], monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """Whichever of the two tells it first."""
    if who == "api":
        monkeypatch.setattr("workers.inference.consumer.now", lambda: now() - 5)
    else:
        monkeypatch.setattr("api.inference.interactive._client_check", lambda *_: _nothing)
    shop = make_shop({"delay": 30.0}, interactive_seconds=1.0)

    with shop.open(), pytest.raises(openai.APIStatusError) as told:
        shop.client.with_options(max_retries=2).chat.completions.create(model=MODEL, messages=HELLO)

    assert (told.value.status_code, told.value.code) == (408, "timeout")
    assert told.value.response.headers["x-should-retry"] == "false"
    assert shop.asked == ["Hello"]


def test_full_queue_refuses_with_retry_after(make_shop: Callable[..., Shop]) -> None:
    shop = make_shop(interactive_waiting=1)
    shop.announce("gpu-1")
    first = threading.Thread(target=_ask_in_vain, args=(shop,))
    first.start()
    eventually(lambda: _refused(shop), 10, "the line is full")
    shop.leave()
    first.join(30)
    assert not first.is_alive(), "who waited in the line is told, too"


def _ask_in_vain(shop: Shop) -> None:
    with pytest.raises(openai.InternalServerError):
        shop.client.chat.completions.create(model=MODEL, messages=HELLO)


def _refused(shop: Shop) -> bool:
    try:
        shop.client.with_options(timeout=1).chat.completions.create(model=MODEL, messages=HELLO)
    except openai.InternalServerError as error:
        return error.code == "too_many_waiting" and bool(error.response.headers["retry-after"])
    except openai.APITimeoutError:
        return False
    return False


def test_a_paused_model_answers_503(closed: Shop) -> None:
    with closed.open():
        with closed.app.state.services.db.write() as session:
            pauses.pause(session, pauses.Scope.MODEL, MODEL, actor="test")

        with pytest.raises(openai.InternalServerError) as told:
            closed.client.chat.completions.create(model=MODEL, messages=HELLO)

    assert told.value.code == "paused"


def test_model_paused_during_request_answers_503(closed: Shop) -> None:
    def paused() -> bool:
        try:
            closed.client.with_options(max_retries=0).chat.completions.create(model=MODEL, messages=HELLO)
        except openai.InternalServerError as error:
            return error.code == "paused"
        return False

    with closed.open():
        assert not paused()
        with closed.app.state.services.db.write() as session:
            pauses.pause(session, pauses.Scope.MODEL, MODEL, actor="test")

        eventually(paused, 5, "it is refused")


def _said(shop: Shop, *, stream: bool = False) -> str:
    """Return the text of the answer, or the code of the refusal."""
    asked: Any = {"model": MODEL, "messages": HELLO}
    try:
        if not stream:
            return shop.client.chat.completions.create(**asked).choices[0].message.content or ""
        pieces = shop.client.chat.completions.create(**asked, stream=True)
        return "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    except openai.InternalServerError as error:
        return str(error.code)


def _in_line(shop: Shop) -> int:
    with redis.Redis.from_url(shop.redis_url) as server:
        return int(server.llen(interactive.queue_key(Queue.GENERATE)))  # type: ignore[arg-type]


@pytest.mark.parametrize("stream", [False, True])
def test_request_counts_as_other_work_until_its_answer_ends(make_shop: Callable[..., Shop], stream: bool) -> None:
    shop, under_way = make_shop({"delay": 1.0}), UnderWay()
    project = _project(shop)
    with ThreadPoolExecutor(1) as threads, shop.open(under_way=under_way) as consumer:
        asking = threads.submit(_said, shop, stream=stream)
        eventually(under_way.counts, 10, "it is taken")
        told = under_way.counts()
        consumer.listen(False)
        text = asking.result(30)

        assert told == [[Queue.GENERATE, MODEL, project, 1]]
        assert text, "what runs goes on to its end"
        eventually(lambda: not under_way.counts(), 5, "it has ended")


def _project(shop: Shop) -> str:
    with shop.app.state.services.db.read() as session:
        return session.scalars(select(Project.id)).one()


def test_a_paused_worker_leaves_the_line_to_others(closed: Shop) -> None:
    with ThreadPoolExecutor(1) as threads, closed.open("gpu-1") as paused:
        threading.Event().wait(0.3)  # it is waiting for a request
        paused.listen(False)
        asking = threads.submit(_said, closed)
        eventually(lambda: _in_line(closed), 10, "it waits")
        threading.Event().wait(1.5)
        left = (_in_line(closed), closed.asked[:])
        with closed.open("gpu-2"):
            text = asking.result(30)

    assert left == (1, []), "it is put back"
    assert text
    assert closed.asked == ["Hello"]


def test_paused_only_worker_answers_that_no_worker_serves(closed: Shop) -> None:
    with ThreadPoolExecutor(1) as threads, closed.open("gpu-1") as consumer:
        threading.Event().wait(0.3)
        consumer.listen(False)
        asking = threads.submit(_said, closed)
        eventually(lambda: _in_line(closed), 10, "it waits")
        with closed.app.state.services.db.write() as session:
            pauses.pause(session, Scope.WORKER, "gpu-1", actor="test")
        before = asking.result(30)
        eventually(lambda: _said(closed) == "no_worker", 10, "whoever comes now is told at once")

    assert before == "no_worker"
    assert closed.asked == []


@pytest.mark.parametrize("scope", [Scope.QUEUE, Scope.MODEL, Scope.PROJECT])
def test_queued_clients_of_a_paused_target_get_an_error(closed: Shop, scope: Scope) -> None:
    name = {Scope.QUEUE: Queue.GENERATE.value, Scope.MODEL: MODEL, Scope.PROJECT: _project(closed)}[scope]
    closed.announce("gpu-1")
    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(_said, closed)
        eventually(lambda: _in_line(closed), 10, "it waits")
        with closed.open("gpu-1", paused=lambda: Paused({scope: frozenset({name})})):
            code = asking.result(30)

    assert (code, closed.asked) == ("paused", [])


def test_missing_redis_error_names_setting(make_shop: Callable[..., Shop]) -> None:
    shop = make_shop(streams_url="", broker_url="amqp://guest@127.0.0.1//")
    shop.announce("gpu-1")

    with pytest.raises(openai.InternalServerError) as told:
        shop.client.chat.completions.create(model=MODEL, messages=HELLO)

    assert told.value.code == "streams_unavailable"
    assert "NIGHTMILL_STREAMS_URL" in str(told.value)


def test_nothing_of_an_answered_question_is_left_behind(closed: Shop) -> None:
    with closed.open(), redis.Redis.from_url(closed.redis_url) as server:
        before = set(server.keys())  # what earlier clients left when they hung up ends by itself
        closed.client.chat.completions.create(model=MODEL, messages=HELLO)
        list(closed.client.chat.completions.create(model=MODEL, messages=HELLO, stream=True))

        eventually(lambda: set(server.keys()) <= before, 5, "no key is left")
        sizes = interactive.streams_key("").encode()  # no words of anybody's
        left = {name: server.ttl(name) for name in before if server.exists(name) and not name.startswith(sizes)}
        assert all(0 < seconds <= 60 for seconds in left.values()), left


async def test_unconsumed_queue_expires_after_latest_deadline(redis_url: str) -> None:
    """Whoever asked may have been killed, with nobody left who takes its request out of the line."""
    queue, client = "test.abandoned", InferenceClient(Settings(streams_url=redis_url))
    name = interactive.queue_key(queue)

    async def is_served() -> bool:
        return True

    async def ask(server: Any, seconds: float) -> int:
        queued = QueuedRequest(new_id("req_"), "/", b"{}", "t", now() + seconds)
        before = await server.llen(name)
        asked.append(asyncio.create_task(last_entry(client.submit(queue, queued, is_served))))
        while await server.llen(name) == before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return int(await server.ttl(name))

    asked: list[asyncio.Task[AnswerEntry]] = []
    async with interactive.connect(redis_url) as server:
        ends = [await ask(server, seconds) for seconds in (100, 500, 20)]
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    await client.close()

    assert [round(end, -1) for end in ends] == [160, 560, 560]


def test_a_question_that_a_paused_worker_puts_back_has_an_end_too(closed: Shop) -> None:
    queued = QueuedRequest(new_id("req_"), "/", b"{}", "t", now() + 40)
    with closed.open() as consumer, redis.Redis.from_url(closed.redis_url) as server:
        pause(0.1)  # it waits for a request
        consumer.listen(False)
        server.rpush(interactive.queue_key(Queue.GENERATE), interactive.pack(queued))
        eventually(lambda: server.ttl(interactive.queue_key(Queue.GENERATE)) > 0, 5, "it is put back")
        end = server.ttl(interactive.queue_key(Queue.GENERATE))
        server.delete(interactive.queue_key(Queue.GENERATE))

    assert 90 <= end <= 100


def test_waiting_requests_exceed_default_connection_pool(redis_url: str) -> None:
    """And each of them is answered: nobody takes the questions until all are in the line."""
    count, queue = 150, "test.many"
    client = InferenceClient(Settings(streams_url=redis_url))

    async def is_served() -> bool:
        return True

    async def ask(n: int) -> AnswerEntry:
        queued = QueuedRequest(f"req_many{n}", "/v1/chat/completions", b"{}", f"tenant{n % 2}", now() + 30)
        return await last_entry(client.submit(queue, queued, is_served))

    async def all_of_them() -> list[AnswerEntry | BaseException]:
        asked = asyncio.gather(*map(ask, range(count)), return_exceptions=True)
        async with interactive.connect(redis_url) as server:
            while await server.llen(interactive.queue_key(queue)) < count and not asked.done():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            while raw := await server.lpop(interactive.queue_key(queue)):
                name = interactive.answer_key(interactive.unpack_request(raw).id)
                await server.xadd(name, {interactive.ENTRY_FIELD: interactive.pack(AnswerEntry("end", b"{}"))})
            said = await asked
        await client.close()
        return said

    said = asyncio.run(asyncio.wait_for(all_of_them(), 30))

    assert [one for one in said if not isinstance(one, AnswerEntry)] == []
    assert len(said) == count


async def test_slow_reader_counts_as_present_until_it_disconnects(
    redis_url: str,
) -> None:
    """Of ten pieces it takes longer over one than a client is there for, and than a worker may be silent."""
    timings = replace(Timings(), interactive_present=1, interactive_renew=0.2, interactive_silence=1.5)
    client = InferenceClient(Settings(streams_url=redis_url), timings)
    queued = QueuedRequest("req_slow", "/", b"{}", "t", now() + 60)
    name = interactive.answer_key(queued.id)

    async def is_served() -> bool:
        return True

    async with interactive.connect(redis_url) as server:
        async with aclosing(client.submit("test.slow", queued, is_served)) as pieces:
            for kind in ("taken", *["chunk"] * 8):
                await server.xadd(name, {interactive.ENTRY_FIELD: interactive.pack(AnswerEntry(kind))})
            seen = [(await anext(pieces)).kind for _ in range(9)]
            await asyncio.sleep(2.5)
            there = await server.exists(interactive.client_key(queued.id))
            ends = asyncio.create_task(anext(pieces))  # looks, before there is more
            await asyncio.sleep(0.5)
            await server.xadd(name, {interactive.ENTRY_FIELD: interactive.pack(AnswerEntry("chunk"))})
            seen.append((await ends).kind)
        left = await server.exists(interactive.client_key(queued.id), name)
    await client.close()

    assert (seen, there, left) == (["taken", *["chunk"] * 9], 1, 0)
