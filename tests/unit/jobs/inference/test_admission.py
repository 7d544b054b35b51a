"""Bounds on interactive requests, on a real Valkey: one project leaves room for others, and Celery's messages fit."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import redis

from jobs.clock import now
from jobs.errors import BrokerFull, NightmillError, NoWorker, Overloaded, TooManyRequests, WorkerLost
from jobs.ids import new_id
from jobs.inference import admission, interactive
from jobs.inference.admission import is_any_full, read_memory
from jobs.inference.client import InferenceClient, last_entry
from jobs.inference.interactive import AnswerEntry, QueuedRequest, Resumable, pack
from jobs.setting_groups import MB
from jobs.settings import Settings
from jobs.timings import Timings
from tests.support.interactive_api import running_broker
from workers.dispatcher.publisher import CeleryPublisher

QUEUE = "gpu.generate"
END = pack(AnswerEntry("end", b"{}"))
CHUNK = pack(AnswerEntry("chunk", b"{}"))


@pytest.fixture(autouse=True)
def _small_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_WAITING_BYTES", 12 * MB)


@pytest.fixture
def _small_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_UNREAD_BYTES", MB)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_broker(tmp_path_factory.mktemp("broker")) as url:
        yield url


@pytest.fixture
def url(broker: str) -> str:
    """Return the URL of an empty server with 64 MB."""
    with redis.Redis.from_url(broker) as server:
        server.flushall()
        server.config_set("maxmemory", 64 * MB)
    return broker


def settings(url: str, **changes: int) -> Settings:
    given: dict[str, Any] = {"interactive_waiting": 9, **changes}
    return Settings(streams_url=url, broker_url=url.replace("unix:", "redis+socket:"), **given)


class Clients:
    """Clients who wait for answers that no worker gives."""

    def __init__(self, config: Settings, **seconds: float) -> None:
        self.client = InferenceClient(config, replace(Timings(), **seconds))
        self.pending: list[tuple[QueuedRequest, asyncio.Task[AnswerEntry]]] = []

    async def ask(self, tenant: str, size: int = 10, queue: str = QUEUE, linger: int = 0) -> QueuedRequest:
        """Return the request once it is in its queue. Raises what refuses it."""
        queued = QueuedRequest(new_id("req_"), "/", bytes(size), tenant, now() + 60, stream=bool(linger), linger=linger)
        kept = Resumable(tenant, "/", queued.deadline, linger, b"shown") if linger else None
        asked = asyncio.ensure_future(last_entry(self.client.submit(queue, queued, _served, resumable=kept)))
        while not asked.done():
            if await self.client._server().exists(interactive.client_key(queued.id)):
                self.pending.append((queued, asked))
                return queued
            await asyncio.sleep(0.01)
        asked.result()
        raise AssertionError("answered by nobody")

    async def ask_until_refused(self, tenant: str, size: int = 10, **facts: Any) -> tuple[int, NightmillError]:
        """How many requests were admitted, and why the next one was not."""
        for count in range(100):
            try:
                await self.ask(tenant, size, **facts)
            except (BrokerFull, Overloaded, TooManyRequests) as refused:
                return count, refused
        raise AssertionError("there is no bound")

    async def answer(self) -> None:
        """Answer all that still wait."""
        for queued, _ in self.pending:
            await self.client._server().xadd(interactive.answer_key(queued.id), {interactive.ENTRY_FIELD: END})
        await asyncio.gather(*(task for _, task in self.pending), return_exceptions=True)


async def _fill(server: Any) -> None:
    """Take 40 MB, in pieces: the server has what is being sent twice."""
    for _ in range(40):
        await server.rpush("filled", bytes(MB))


async def _served() -> bool:
    return True


async def _stay() -> None:
    """No client leaves."""


async def _go_down() -> None:
    raise WorkerLost


def _stream(shown: bytes = b"shown") -> tuple[QueuedRequest, Resumable]:
    queued = QueuedRequest(new_id("req_"), "/", b"{}", "one", now() + 60, stream=True, linger=600)
    return queued, Resumable("one", "/", queued.deadline, 600, shown)


@asynccontextmanager
async def clients(config: Settings, **seconds: float) -> AsyncIterator[Clients]:
    made = Clients(config, **seconds)
    yield made
    await made.answer()
    await made.client.close()


async def test_a_project_has_a_third_of_the_places_of_a_queue(url: str) -> None:
    async with clients(settings(url)) as some:
        first = await some.ask_until_refused("one")
        second = await some.ask_until_refused("two")
        third = await some.ask_until_refused("three")
        fourth = await some.ask_until_refused("four")
        elsewhere = await some.ask_until_refused("one", queue="another")

    assert [count for count, _ in (first, second, third, fourth, elsewhere)] == [3, 3, 3, 0, 3]
    refused = first[1]
    assert (refused.status, refused.type, refused.code) == (429, "rate_limit_error", "rate_limit_exceeded")
    assert refused.retry_after
    assert isinstance(fourth[1], Overloaded), "the queue is full for everybody"


async def test_the_waiting_requests_of_a_project_have_a_third_of_the_bytes_of_a_queue_in_all_queues(url: str) -> None:
    async with clients(settings(url, interactive_waiting=90)) as some:
        first, refused = await some.ask_until_refused("one", MB)
        with pytest.raises(TooManyRequests):
            await some.ask("one", MB, queue="another")
        await some.ask("one", 1000)
        second, _ = await some.ask_until_refused("two", MB)

    assert (first, second, refused.code) == (3, 3, "rate_limit_exceeded"), "of 4 MB each, and some bytes around each"


async def test_queued_bytes_per_queue_are_bounded(url: str) -> None:
    async with clients(settings(url, interactive_waiting=90)) as some:
        counts = [await some.ask_until_refused(str(n), 3 * MB) for n in range(5)]

    assert sum(count for count, _ in counts) == 3, "of 12 MB, and some bytes around each"
    assert isinstance(counts[-1][1], Overloaded)


async def test_a_request_that_is_larger_than_a_third_waits_where_nothing_else_does(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "MAX_WAITING_BYTES", 3 * MB)
    async with clients(settings(url)) as some:
        counts = [await some.ask_until_refused(tenant, 2 * MB) for tenant in ("one", "two")]

    assert [count for count, _ in counts] == [1, 0]


async def test_claimed_requests_and_requests_of_dead_clients_are_not_counted(url: str) -> None:
    async with clients(settings(url)) as some, interactive.connect(url) as server:
        taken, dead, _ = [await some.ask("one") for _ in range(3)]
        with pytest.raises(TooManyRequests):
            await some.ask("one")
        await server.hdel(interactive.waiting_key("one"), taken.id)  # as a worker does
        await server.delete(interactive.client_key(dead.id))  # as it expires
        more, _ = await some.ask_until_refused("one")

    assert more == 2


async def test_a_client_that_leaves_takes_its_request_along(url: str) -> None:
    async with clients(settings(url)) as some, interactive.connect(url) as server:
        await some.ask_until_refused("one")
        for _, task in some.pending:
            task.cancel()
        await asyncio.gather(*(task for _, task in some.pending), return_exceptions=True)

        assert await server.keys("*") == []


async def test_unfinished_resumable_streams_per_project_are_bounded(url: str) -> None:
    config = settings(url, interactive_waiting=300, interactive_resumable=4)
    async with clients(config) as some, interactive.connect(url) as server:
        first, refused = await some.ask_until_refused("one", linger=60)
        second, _ = await some.ask_until_refused("two", linger=60)
        await some.ask("one")
        ended = [queued for queued, _ in some.pending][:2]
        await admission.count_end(server, ended[0], admission.MAX_UNREAD_BYTES, MB)
        await some.client.stop(ended[1].id, "one")
        more, _ = await some.ask_until_refused("one", linger=60)

    assert (first, second, more, refused.code) == (4, 4, 2, "rate_limit_exceeded")


async def test_a_stopped_stream_frees_its_place_and_its_bytes_at_once(url: str) -> None:
    config = settings(url, interactive_waiting=300, interactive_resumable=2)
    async with clients(config) as some, interactive.connect(url) as server:
        await some.ask_until_refused("one", linger=600)
        for queued, task in some.pending:
            for _ in range(3):
                await server.xadd(interactive.answer_key(queued.id), {interactive.ENTRY_FIELD: CHUNK})
            await some.client.stop(queued.id, "one")
            assert (await task).status == 408
        held = [await server.xlen(interactive.answer_key(queued.id)) for queued, _ in some.pending]
        more, _ = await some.ask_until_refused("one", linger=600)

    assert more == 2
    assert max(held) <= 1, "only what says that it was stopped"


@pytest.mark.parametrize("resumed", [False, True])
async def test_stream_of_dead_worker_frees_its_slot(url: str, resumed: bool) -> None:
    queued, kept = _stream()
    async with (
        clients(settings(url, interactive_resumable=1), interactive_silence=0.0) as some,
        interactive.connect(url) as server,
    ):
        pieces = some.client.submit(QUEUE, queued, _served, resumable=kept)
        await server.xadd(interactive.answer_key(queued.id), {interactive.ENTRY_FIELD: CHUNK})
        assert (await anext(pieces)).kind == "chunk"
        if resumed:
            await pieces.aclose()
            pieces = some.client.resume(queued.id, "0-0", kept, _stay, _served)
        with pytest.raises(WorkerLost):
            await last_entry(pieces)
        await some.ask("one", linger=600)


@pytest.mark.parametrize("resumed", [False, True])
async def test_a_stream_that_no_worker_takes_frees_its_place(url: str, resumed: bool) -> None:
    queued, kept = _stream()
    workers = ["gpu-1"]

    async def served() -> bool:
        return bool(workers)

    async with clients(settings(url, interactive_resumable=1), interactive_taken=0.0) as some:
        pieces = some.client.submit(QUEUE, queued, served, resumable=kept, patience=0.0)
        assert (await anext(pieces)).kind == "late"
        if resumed:
            await pieces.aclose()
            pieces = some.client.resume(queued.id, "0-0", kept, _stay, served)
        workers.clear()
        with pytest.raises(NoWorker):
            await last_entry(pieces)
        await some.ask("one", linger=600)


async def test_stream_can_be_resumed_after_api_shutdown(url: str) -> None:
    queued, kept = _stream()
    async with clients(settings(url)) as some, interactive.connect(url) as server:
        pieces = some.client.submit(QUEUE, queued, _served, _go_down, kept)
        await server.xadd(interactive.answer_key(queued.id), {interactive.ENTRY_FIELD: CHUNK})
        with pytest.raises(WorkerLost):
            await last_entry(pieces)
        await server.xadd(interactive.answer_key(queued.id), {interactive.ENTRY_FIELD: END})
        rest = some.client.resume(queued.id, "0-0", kept, _stay, _served)
        kinds = [piece.kind async for piece in rest]

    assert kinds == ["chunk", "end"]


@pytest.mark.usefixtures("_small_streams")
async def test_stored_bytes_of_finished_streams_are_bounded(url: str) -> None:
    config = settings(url, interactive_waiting=300, interactive_resumable=2)
    async with clients(config) as some, interactive.connect(url) as server:
        for count in range(10):  # noqa: B007
            try:
                stream = await some.ask("one", linger=60)
            except TooManyRequests:
                break
            await admission.count_end(server, stream, MB, MB // 2)

    assert count == 6, "3 MB, and a fourth for the one that is to come"


@pytest.mark.usefixtures("_small_streams")
async def test_finished_stream_with_large_request_counts_as_finished(url: str) -> None:
    config = settings(url, interactive_resumable=2)
    queued, kept = _stream(shown=bytes(MB // 2))
    async with clients(config) as some, interactive.connect(url) as server:
        pieces = some.client.submit(QUEUE, queued, _served, resumable=kept, patience=0.0)
        await anext(pieces)
        for _ in range(2):  # the second time, nothing is left to subtract
            await admission.count_end(server, queued, MB, MB * 3 // 4)
        counted = int(await server.hget(interactive.streams_key("one"), queued.id))
        more, _ = await some.ask_until_refused("one", linger=60)
        await pieces.aclose()

    assert more == 2
    assert counted == MB * 3 // 4 + len(pack(kept))


@pytest.mark.usefixtures("_small_streams")
async def test_events_of_responses_in_the_background_are_counted_too(url: str) -> None:
    most = admission.max_stream_bytes(settings(url, interactive_resumable=2))
    async with interactive.connect(url) as server:
        for name in ("resp_1", "resp_2", "resp_3"):
            await server.xadd(interactive.answer_key(name), {b"p": b""})
        counted = [await admission.count_block(server, "one", f"resp_{n % 3 + 1}", most) for n in range(17)]
        other = await admission.count_block(server, "two", "resp_3", most)
        await server.delete(interactive.answer_key("resp_1"))
        again = await admission.count_block(server, "one", "resp_2", most)

    assert counted == [True] * 16 + [False], "4 MB in blocks of 256 KiB"
    assert (other, again) == (True, True)


async def test_a_full_server_refuses_requests_and_takes_the_dispatcher_s_messages(url: str) -> None:
    config = settings(url)
    async with clients(config) as some, interactive.connect(url) as server:
        await _fill(server)
        refused = await some.ask_until_refused("one")
        publisher = CeleryPublisher(config)
        with publisher._app:  # closes its connections
            for n in range(500):
                publisher.publish("run", QUEUE, ["batch_1", n])
        published = await server.llen(f"nightmill:{QUEUE}")
        full = read_memory(url).is_full, is_any_full(config)
        await server.delete("filled")
        some.client._memory._until = 0.0
        await some.ask("one")

    assert (refused[0], refused[1].status, refused[1].code) == (0, 503, "broker_full")
    assert refused[1].retry_after
    assert (published, full) == (500, (True, True))


async def test_concurrent_large_prompts_keep_server_memory_bounded(url: str) -> None:
    """200 MB of one project, by two processes of the API."""
    config = settings(url, interactive_waiting=300)
    sides, peak = [InferenceClient(config), InferenceClient(config)], 0
    questions = [QueuedRequest(new_id("req_"), "/", bytes(2 * MB), "one", now() + 60) for _ in range(100)]
    async with interactive.connect(url) as server:
        asked = [
            asyncio.ensure_future(last_entry(sides[n % 2].submit(QUEUE, one, _served)))
            for n, one in enumerate(questions)
        ]
        while sum(task.done() for task in asked) < 99:
            peak = max(peak, (await server.info("memory"))["used_memory"])
        for one in questions:
            await server.xadd(interactive.answer_key(one.id), {interactive.ENTRY_FIELD: END})
        ends = await asyncio.gather(*asked, return_exceptions=True)
    for client in sides:
        await client.close()

    assert {type(end) for end in ends} <= {TooManyRequests, BrokerFull, AnswerEntry}
    assert peak < 48 * MB


async def test_a_server_without_maxmemory_is_never_full(url: str) -> None:
    async with clients(settings(url)) as some, interactive.connect(url) as server:
        await server.config_set("maxmemory", 0)
        await _fill(server)
        await some.ask("one")

    assert not is_any_full(settings(url))


def test_a_server_that_hangs_is_given_up_soon_and_is_not_full(monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts: list[float | None] = []
    set_timeout = socket.socket.settimeout

    def record(self: socket.socket, seconds: float | None) -> None:
        timeouts.append(seconds)
        set_timeout(self, seconds)

    monkeypatch.setattr(socket.socket, "settimeout", record)
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections and never answers
        name = f"redis://127.0.0.1:{server.getsockname()[1]}/0"
        assert not is_any_full(Settings(streams_url=name, broker_url=name))

    assert timeouts
    assert all(seconds is not None and seconds <= 0.2 for seconds in timeouts)


@pytest.mark.usefixtures("_small_streams")
@pytest.mark.parametrize("linger", [0, 60])
async def test_delivered_chunks_are_trimmed_by_bytes(url: str, linger: int) -> None:
    """Of a stream that can be resumed a part stays."""
    config = settings(url)
    queued = QueuedRequest(new_id("req_"), "/", b"{}", "one", now() + 60, stream=True, linger=linger)
    name, chunk = interactive.answer_key(queued.id), pack(AnswerEntry("chunk", bytes(1000)))
    async with interactive.connect(url) as server:
        client = InferenceClient(config)
        pieces = client.submit(QUEUE, queued, _served)
        for _ in range(40):
            await server.xadd(name, {interactive.ENTRY_FIELD: chunk})
        await anext(pieces)
        for _ in range(30):
            for _ in range(20):
                await server.xadd(name, {interactive.ENTRY_FIELD: chunk})
                await anext(pieces)
        held = await server.xlen(name) * len(chunk)
        await pieces.aclose()
        await client.close()

    behind = MB // 4 if linger else 0
    assert behind < held < behind + 4 * 64 * 1024


async def test_a_request_that_a_stopping_worker_has_requeued_waits_for_another_worker(url: str) -> None:
    seconds = {"interactive_silence": 0.0, "interactive_taken": 0.0}
    async with clients(settings(url), **seconds) as some, interactive.connect(url) as server:
        queued = await some.ask("one")
        answer, key = interactive.answer_key(queued.id), interactive.queue_key(QUEUE)
        await server.xadd(answer, {interactive.ENTRY_FIELD: pack(AnswerEntry("taken"))})
        await asyncio.sleep(1.0)  # longer than a read of the answer
        raw = await server.lpop(key)
        await server.xadd(answer, {interactive.ENTRY_FIELD: END})
        [(_, asked)] = some.pending

        assert raw == pack(queued)
        assert (await asked).kind == "end"


async def test_unqueued_request_of_silent_worker_is_lost(url: str) -> None:
    async with clients(settings(url), interactive_silence=0.0) as some, interactive.connect(url) as server:
        queued = await some.ask("one")
        await server.lpop(interactive.queue_key(QUEUE))
        await server.xadd(interactive.answer_key(queued.id), {interactive.ENTRY_FIELD: pack(AnswerEntry("taken"))})
        [(_, asked)] = some.pending

        with pytest.raises(WorkerLost):
            await asked


# ── shadows ──


async def ask_shadow(some: Clients, alias: str = "bot", limit: int = 2, tenant: str = "one", size: int = 10) -> str:
    """Return the id of a request for the shadow of an alias once it is in its queue. Raises TooManyRequests."""
    request = QueuedRequest(new_id("req_"), "/", bytes(size), tenant, now() + 60)
    entries = some.client.submit(interactive.shadow_queue(QUEUE), request, _served, of_shadow=(alias, limit))
    asked = asyncio.ensure_future(last_entry(entries))
    while not asked.done():
        if await some.client._server().exists(interactive.client_key(request.id)):
            some.pending.append((request, asked))
            return request.id
        await asyncio.sleep(0.01)
    asked.result()
    raise AssertionError("answered by nobody")


async def test_requests_in_flight_of_a_shadow_are_counted_over_all_processes(url: str) -> None:
    async with clients(settings(url, interactive_waiting=90)) as one, clients(settings(url)) as two:
        first = await ask_shadow(one)
        await ask_shadow(two)
        for each in (one, two):
            with pytest.raises(TooManyRequests):
                await ask_shadow(each)
        await ask_shadow(one, alias="other")
        await ask_shadow(two, tenant="two")

        async with interactive.connect(url) as server:
            await server.delete(interactive.client_key(first))  # as that of a dead process expires

        await ask_shadow(two)


async def test_shadows_take_nothing_of_the_queues_of_clients(url: str) -> None:
    async with clients(settings(url)) as some:
        for _ in range(3):
            await ask_shadow(some, limit=64, size=MB)
        with pytest.raises(TooManyRequests):
            await ask_shadow(some, limit=64)  # a third of the queue

        count, _ = await some.ask_until_refused("one", MB)

    assert count == 3
