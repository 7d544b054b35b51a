"""The consumer of interactive requests, with a server of streams that a test controls."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from jobs import logs
from jobs.clock import now
from jobs.inference.admission import BLOCK
from jobs.inference.interactive import (
    AnswerEntry,
    QueuedRequest,
    answer_key,
    client_key,
    pack,
    queue_key,
    shadow_queue,
    unpack_entry,
)
from jobs.timings import Timings
from tests.support.fake_engine import FakeEngine
from tests.support.system import eventually
from workers.engines.port import Answer, Emit, Request, Usage
from workers.inference import consumer
from workers.inference.consumer import ConsumerLimits, InteractiveConsumer
from workers.runtime.engine_host import EngineHost

BODY = msgspec.json.encode({"model": "fake-model", "messages": [{"role": "user", "content": "Hi"}]})


class Streams:
    """A server. In `line` wait questions, and errors in place of them; `awaited` are those whose clients are there."""

    def __init__(self) -> None:
        self.line: deque[bytes | Exception] = deque()
        self.awaited: set[str] = set()
        self.pieces: dict[str, list[AnswerEntry]] = {}
        self.looks = 0
        self.breaks: Exception | None = None
        self.used = 1  # percent of its memory
        self.evaluated: list[tuple[object, ...]] = []
        self.blocks = 1000  # of the streams of a project, so many are counted
        self.dropped_at = 0  # pieces of a stream, of which a client then drops the oldest; 0: it drops none

    def length(self, pieces: list[AnswerEntry]) -> int:
        """Of a stream, less what its client has read and dropped."""
        return min(len(pieces), self.dropped_at or len(pieces))

    def ask(self, queued: QueuedRequest, *, awaited: bool = True) -> None:
        self.pieces[queued.id] = []
        if awaited:
            self.awaited.add(client_key(queued.id))
        self.line.append(msgspec.msgpack.encode(queued))

    def kinds(self, queued: QueuedRequest) -> list[str]:
        return [piece.kind for piece in self.pieces[queued.id]]

    def end(self, queued: QueuedRequest) -> tuple[int, str]:
        """Its status, and its code where it is an error."""
        last = self.pieces[queued.id][-1]
        assert last.kind == "end"
        return last.status, (msgspec.json.decode(last.body or b"{}").get("error") or {}).get("code", "")

    async def __aenter__(self) -> "Streams":
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def blpop(self, names: list[str], **_: float) -> tuple[str, bytes] | None:
        has_request = bool(self.line) and names != [queue_key(shadow_queue("gpu.generate"))]
        await asyncio.sleep(0 if has_request else 0.01)
        if not (has_request and self.line):
            return None
        found = self.line.popleft()
        if isinstance(found, Exception):
            raise found
        return names[0], found

    async def lpop(self, _name: str, count: int) -> list[bytes] | None:
        found = [self.line.popleft() for _ in range(min(count, len(self.line)))]
        assert not any(isinstance(one, Exception) for one in found)
        return [one for one in found if isinstance(one, bytes)] or None

    async def mget(self, names: list[str]) -> list[bytes | None]:
        self.looks += 1
        if self.breaks:
            raise self.breaks
        return [b"1" if name in self.awaited else None for name in names]

    async def info(self, section: str) -> dict[str, int]:
        assert section == "memory"
        return {"used_memory": self.used, "maxmemory": 100}

    async def eval(self, *arguments: object) -> int:
        self.evaluated.append(arguments)
        return len(self.evaluated) <= self.blocks

    def pipeline(self, *, transaction: bool) -> "Pipe":
        assert not transaction
        return Pipe(self)


class Pipe:
    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self.results: list[Any] = []

    async def __aenter__(self) -> "Pipe":
        return self

    async def __aexit__(self, *_: object) -> None: ...

    def exists(self, name: str) -> None:
        self.results.append(int(name in self.streams.awaited))

    def hdel(self, _name: str, _field: str) -> None:
        self.results.append(1)

    def xadd(self, name: str, fields: dict[bytes, bytes]) -> None:
        self._of(name).append(unpack_entry(next(iter(fields.values()))))
        self.results.append(b"0-1")

    def expire(self, _name: str, _seconds: int) -> None:
        self.results.append(1)

    def xlen(self, name: str) -> None:
        self.results.append(self.streams.length(self._of(name)))

    async def execute(self) -> list[Any]:
        await asyncio.sleep(0)
        return self.results

    def _of(self, name: str) -> list[AnswerEntry]:
        return next(pieces for key, pieces in self.streams.pieces.items() if answer_key(key) == name)


class Hanging(FakeEngine):
    """Answers nothing until it is stopped, and then swallows that so often."""

    swallows = 0

    def __init__(self) -> None:
        super().__init__()
        self.began = self.stopped = 0

    async def answer(self, request: Request) -> Answer:
        self.began += 1
        for _ in range(self.swallows):
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        try:
            await asyncio.Event().wait()
        finally:
            self.stopped += 1
        raise AssertionError

    async def stream(self, request: Request, emit: Emit) -> Answer:
        self.began += 1
        try:
            for n in range(1000):
                await emit(b'{"n": %d}' % n)
        finally:
            self.stopped += 1
        return Answer(200, b"")


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    made = Streams()
    monkeypatch.setattr(consumer, "connect", lambda _url: made)
    return made


@pytest.fixture
def engine() -> Hanging:
    return Hanging()


@pytest.fixture
def host(engine: Hanging) -> Iterator[EngineHost]:
    made = EngineHost(engine, lambda: None)
    made.start()
    yield made
    made.close()


@pytest.fixture
def quick() -> Iterator[EngineHost]:
    made = EngineHost(FakeEngine(), lambda: None)
    made.start()
    yield made
    made.close()


class Serving:
    """Run a consumer while the block lasts."""

    def __init__(self, host: EngineHost, usage: Any = None, **facts: Any) -> None:
        timings = replace(Timings(), interactive_look=0.01, interactive_retry=0.01)
        self.host, limits = host, ConsumerLimits(**facts)
        self.consumer = InteractiveConsumer(host, "redis://nowhere", "gpu.generate", limits, timings, usage=usage)

    def __enter__(self) -> InteractiveConsumer:
        self.serving = self.host.call(self.consumer.serve())
        return self.consumer

    def __exit__(self, *_: object) -> None:
        self.host.call(self.consumer.close()).result(30)


def queued(name: str = "req_1", seconds: float = 60.0, project: str = "p", **facts: Any) -> QueuedRequest:
    return QueuedRequest(name, "/v1/chat/completions", BODY, project, now() + seconds, **facts)


def test_consumer_without_redis_stops_and_logs_event(quick: EngineHost, caplog: pytest.LogCaptureFixture) -> None:
    consumer = InteractiveConsumer(quick, "", "gpu.generate")

    assert quick.call(consumer.serve()).result(30) is None
    quick.call(consumer.close()).result(30)

    assert caplog.messages == ["interactive_without_redis"]


def test_expired_or_abandoned_request_is_not_started(host: EngineHost, engine: Hanging, streams: Streams) -> None:
    late, left = queued("late", seconds=-1), queued("left")
    streams.ask(late)
    streams.ask(left, awaited=False)

    with Serving(host):
        eventually(lambda: streams.kinds(left) == ["taken"], 10, "the consumer has looked")

    assert (streams.kinds(late), engine.began) == ([], 0)


def test_timed_out_request_ends_with_408_and_frees_engine(host: EngineHost, engine: Hanging, streams: Streams) -> None:
    asked = queued(seconds=0.3)
    streams.ask(asked)

    with Serving(host):
        eventually(lambda: "end" in streams.kinds(asked), 10, "it has ended")

    assert streams.end(asked) == (408, "timeout")
    assert (engine.began, engine.stopped) == (1, 1)


@pytest.mark.parametrize("swallows", [0, 2])
def test_client_disconnect_frees_engine_despite_swallowed_cancellation(
    host: EngineHost, engine: Hanging, streams: Streams, swallows: int
) -> None:
    engine.swallows = swallows
    asked = queued()
    streams.ask(asked)

    with Serving(host):
        eventually(lambda: engine.began, 10, "it is being answered")
        streams.awaited.clear()
        eventually(lambda: engine.stopped, 10, "the engine is free")

    assert streams.kinds(asked) == ["taken"], "nobody is there to be told"


class Counter:
    """Record what is counted."""

    def __init__(self) -> None:
        self.counted: list[Usage] = []

    def add(self, _key: object, usage: Usage) -> None:
        self.counted.append(usage)

    def add_answer(self, key: object, answer: Answer) -> None:
        self.add(key, answer.usage)


@pytest.mark.parametrize("leaves", [True, False])
def test_prompt_of_a_client_that_left_or_waited_too_long_is_counted(
    host: EngineHost, engine: Hanging, streams: Streams, leaves: bool
) -> None:
    asked, counter = queued(seconds=60 if leaves else 0.3), Counter()
    streams.ask(asked)

    with Serving(host, counter):
        eventually(lambda: engine.began, 10, "it is being answered")
        if leaves:
            streams.awaited.clear()
        eventually(lambda: counter.counted, 10, "it is counted")

    assert counter.counted == [Usage(-(-len(BODY) // 4))]


@pytest.mark.parametrize("begun", [False, True])
def test_resumable_stream_of_disconnected_client_frees_reserved_bytes(
    host: EngineHost, engine: Hanging, streams: Streams, begun: bool
) -> None:
    asked = queued(linger=60)
    streams.ask(asked, awaited=begun)

    with Serving(host):
        if begun:
            eventually(lambda: engine.began, 10, "the request is being answered")
            streams.awaited.clear()
        eventually(lambda: streams.evaluated, 10, "the stream is counted as ended")

    *_, stream_id, freed = streams.evaluated[0]
    assert (stream_id, freed) == (asked.id, -ConsumerLimits().unread_bytes)


def test_unavailable_server_does_not_count_clients_as_disconnected(
    host: EngineHost, engine: Hanging, streams: Streams
) -> None:
    streams.breaks = ConnectionError("away")
    streams.ask(queued())

    with Serving(host):
        eventually(lambda: streams.looks > 3, 10, "the consumer has looked for its clients")
        stopped = engine.stopped

    assert (engine.began, stopped) == (1, 0)


def test_unavailable_server_is_logged_once_per_outage_and_retried(
    quick: EngineHost, streams: Streams, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = queued("first"), queued("second")
    away = [ConnectionError("away")] * 2
    streams.line.extend(away)
    streams.ask(first)

    with Serving(quick):
        eventually(lambda: "end" in streams.kinds(first), 10, "the first is answered")
        once = caplog.messages.count("interactive_broker_unavailable")
        streams.line.extend(away)
        streams.ask(second)
        eventually(lambda: "end" in streams.kinds(second), 10, "the second is answered")

    assert (once, caplog.messages.count("interactive_broker_unavailable")) == (1, 2)


def test_unreadable_request_does_not_block_next_request(
    quick: EngineHost, streams: Streams, caplog: pytest.LogCaptureFixture
) -> None:
    asked = queued()
    streams.line.append(b"\xc1 no message")
    streams.ask(asked)

    with Serving(quick):
        eventually(lambda: "end" in streams.kinds(asked), 10, "the next is answered")

    assert streams.end(asked) == (200, "")
    assert "interactive_request_unreadable" in caplog.messages


def test_a_consumer_that_is_closed_for_now_leaves_requests_queued(quick: EngineHost, streams: Streams) -> None:
    asked = queued()

    with Serving(quick) as consumer:
        consumer.listen(False)
        quick.call(asyncio.sleep(0.1)).result(30)  # the look that it was in is over
        streams.ask(asked)
        quick.call(asyncio.sleep(0.1)).result(30)
        waiting = len(streams.line)
        consumer.listen(True)
        eventually(lambda: "end" in streams.kinds(asked), 10, "it is answered")

    assert waiting == 1


def test_a_project_has_so_many_places_and_its_other_questions_wait(
    host: EngineHost, engine: Hanging, streams: Streams
) -> None:
    asked = [queued(name) for name in "abc"]
    for one in asked:
        streams.ask(one)

    with Serving(host, concurrent=2):
        eventually(lambda: all(streams.kinds(one) == ["taken"] for one in asked), 10, "all are in the worker")
        host.call(asyncio.sleep(0.1)).result(30)
        began = engine.began
        streams.awaited.discard(client_key("a"))
        eventually(lambda: engine.began == 3, 10, "the place that is free is taken")

    assert began == 2


def test_a_question_does_not_wait_for_those_of_another_project_before_it(
    host: EngineHost, engine: Hanging, streams: Streams
) -> None:
    flood, other = [queued(f"a{n}") for n in range(20)], queued("b", project="other")
    for one in (*flood, other):
        streams.ask(one)

    with Serving(host, concurrent=2):
        eventually(lambda: engine.began == 3, 10, "the other project's request is asked")

    assert len(streams.line) == 0


def test_queue_limit_refuses_only_overloaded_project(host: EngineHost, engine: Hanging, streams: Streams) -> None:
    flood, other = [queued(f"a{n}") for n in range(6)], queued("b", project="other")
    for one in (*flood, other):
        streams.ask(one)

    with Serving(host, concurrent=2, waiting=3):
        eventually(lambda: "end" in streams.kinds(flood[5]), 10, "the last one is refused")
        eventually(lambda: engine.began == 3, 10, "the other project's request is asked")
        kinds = [streams.kinds(one) for one in flood[:5]]

    assert streams.end(flood[5]) == (503, "too_many_waiting")
    assert streams.pieces["a5"][-1].retry_after == 2
    assert kinds == [["taken"]] * 5


def test_client_disconnect_frees_slot_of_waiting_request(host: EngineHost, engine: Hanging, streams: Streams) -> None:
    for name in "ab":
        streams.ask(queued(name))

    with Serving(host, concurrent=1, waiting=1) as consumer:
        eventually(lambda: len(streams.kinds(queued("b"))) == 1 and engine.began == 1, 10, "one runs and one waits")
        streams.awaited.discard(client_key("b"))
        eventually(lambda: len(consumer.queues[0].tasks) == 1, 10, "the one that waited has gone")
        streams.ask(queued("c"))
        eventually(lambda: streams.kinds(queued("c")) == ["taken"], 10, "there is room for another one")

    assert engine.began == 1


def test_slow_stream_reader_gets_client_too_slow_and_frees_engine(
    host: EngineHost, engine: Hanging, streams: Streams
) -> None:
    asked = queued(stream=True)
    streams.ask(asked)

    with Serving(host, unread=20):
        eventually(lambda: "end" in streams.kinds(asked), 10, "it has ended")

    assert streams.end(asked) == (408, "client_too_slow")
    assert (engine.began, engine.stopped) == (1, 1)
    assert streams.kinds(asked).count("chunk") == 20, "with what says that it was taken one too many"


class Talking(FakeEngine):
    """Streams chunks of some bytes; an answer that is not a stream has as many."""

    def __init__(self, size: int, count: int = 100) -> None:
        super().__init__()
        self.size, self.count = size, count

    async def answer(self, request: Request) -> Answer:
        return Answer(200, bytes(self.size))

    async def stream(self, request: Request, emit: Emit) -> Answer:
        for _ in range(self.count):
            await emit(bytes(self.size))
        return Answer(200, b"")


@pytest.fixture
def talking() -> Iterator[Callable[..., EngineHost]]:
    with ExitStack() as stack:

        def make(size: int, count: int = 100) -> EngineHost:
            host = EngineHost(Talking(size, count), lambda: None)
            host.start()
            stack.callback(host.close)
            return host

        yield make


@pytest.mark.parametrize(("linger", "chunks"), [(0, 10), (60, 10)])
def test_stream_with_too_many_unread_bytes_is_ended(
    talking: Callable[..., EngineHost], streams: Streams, linger: int, chunks: int
) -> None:
    asked = queued(stream=True, linger=linger)
    streams.ask(asked)

    with Serving(talking(10_000), unread_bytes=95_000):
        eventually(lambda: "end" in streams.kinds(asked), 10, "it has ended")

    assert streams.end(asked) == (408, "client_too_slow")
    assert streams.kinds(asked).count("chunk") == chunks


def test_unread_chunks_of_all_streams_of_a_project_are_bounded(
    talking: Callable[..., EngineHost], streams: Streams
) -> None:
    asked = queued(stream=True)
    streams.ask(asked)
    streams.blocks = 3

    with Serving(talking(10_000, 400)):
        eventually(lambda: "end" in streams.kinds(asked), 10, "it has ended")

    assert streams.end(asked) == (408, "client_too_slow")
    assert len(streams.evaluated) == 4
    assert streams.kinds(asked).count("chunk") * 10_000 // BLOCK == 4, "one is not counted"


def test_chunks_that_were_read_count_no_more(talking: Callable[..., EngineHost], streams: Streams) -> None:
    asked = queued(stream=True)
    streams.ask(asked)
    streams.dropped_at = 5

    with Serving(talking(10_000), unread_bytes=95_000):
        eventually(lambda: "end" in streams.kinds(asked), 10, "it has ended")

    assert (streams.end(asked), streams.evaluated) == ((200, ""), [])


@pytest.mark.parametrize(
    ("size", "linger", "end"),
    [
        (1000, 0, (200, "")),
        (10_000, 0, (503, "broker_full")),
        (10_000, 60, (200, "")),  # a part of these was read, and stays for whoever comes back
        (30_000, 60, (503, "broker_full")),
        (300_000, 60, (503, "broker_full")),  # the first already
    ],
)
def test_while_the_server_is_full_a_stream_goes_on_as_long_as_little_of_it_is_unread(
    talking: Callable[..., EngineHost], streams: Streams, size: int, linger: int, end: tuple[int, str]
) -> None:
    asked = queued(stream=True, linger=linger)
    streams.ask(asked)
    streams.used = 61

    with Serving(talking(size)):
        eventually(lambda: "end" in streams.kinds(asked), 10, "it has ended")

    assert streams.end(asked) == end
    assert sum(len(piece.body) for piece in streams.pieces[asked.id]) < (2 << 20 if linger else 0) + 300_000


@pytest.mark.parametrize(("used", "size", "status"), [(59, 300_000, 200), (61, 300_000, 503), (61, 200_000, 200)])
def test_while_the_server_is_full_no_large_answer_is_put_there(
    talking: Callable[..., EngineHost], streams: Streams, used: int, size: int, status: int
) -> None:
    asked = queued()
    streams.ask(asked)
    streams.used = used

    with Serving(talking(size)):
        eventually(lambda: "end" in streams.kinds(asked), 10, "it has ended")

    last = streams.pieces[asked.id][-1]
    assert last.status == status
    assert (last.retry_after is not None) == (status == 503)


def test_worker_shutdown_ends_running_request_with_worker_lost(
    host: EngineHost, engine: Hanging, streams: Streams
) -> None:
    asked = queued()
    streams.ask(asked)

    with Serving(host):
        eventually(lambda: engine.began, 10, "it is being answered")

    assert streams.end(asked) == (503, "worker_lost")
    assert engine.stopped == 1


class Finishing(FakeEngine):
    """Answers when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_end, self.began = threading.Event(), 0

    async def answer(self, request: Request) -> Answer:
        self.began += 1
        while not self.may_end.is_set():  # noqa: ASYNC110 (set in another thread)
            await asyncio.sleep(0.01)
        return await super().answer(request)


def test_hand_over_finishes_running_and_requeues_waiting_requests(streams: Streams) -> None:
    engine = Finishing()
    host = EngineHost(engine, lambda: None)
    host.start()
    running, *waiting = asked = [queued(name) for name in "abc"]
    late = queued("d")
    for one in asked:
        streams.ask(one)
    serving = Serving(host, concurrent=1)
    consumer = serving.__enter__()
    eventually(lambda: engine.began == 1 and streams.kinds(waiting[1]) == ["taken"], 10, "one runs, two wait")

    host.loop.call_soon_threadsafe(consumer.hand_over)
    eventually(lambda: len(streams.evaluated) == 2, 10, "what waits is put back")
    streams.ask(late)
    ended = host.call(consumer.close(30))
    engine.may_end.set()
    ended.result(30)
    host.close()

    assert streams.end(running)[0] == 200
    assert [raw for *_, raw, _ in streams.evaluated] == [pack(one) for one in waiting]
    assert {key for _, _, key, *_ in streams.evaluated} == {queue_key("gpu.generate")}
    assert [streams.kinds(one) for one in (*waiting, late)] == [["taken"], ["taken"], []]
    assert (engine.began, serving.serving.done()) == (1, True)


def test_a_worker_that_has_nothing_to_finish_stops_at_once(host: EngineHost, streams: Streams) -> None:
    with Serving(host) as consumer:
        eventually(lambda: consumer._serving is not None, 10, "it serves")

        host.call(consumer.close(3600)).result(30)


def test_the_id_of_the_request_to_the_api_is_known_while_the_engine_answers(streams: Streams) -> None:
    seen: set[tuple[str, str | None]] = set()

    class Traced(FakeEngine):
        async def answer(self, request: Request) -> Answer:
            seen.add((request.request_id, logs.request_id()))
            return await super().answer(request)

    host = EngineHost(Traced(), lambda: None)
    host.start()
    traced, untraced = queued("req_1", request_id="ticket-4711"), queued("req_2")
    streams.ask(traced)
    streams.ask(untraced)

    with Serving(host):
        eventually(lambda: "end" in streams.kinds(traced) + streams.kinds(untraced), 10, "both are answered")
        eventually(lambda: len(seen) == 2, 10, "the engine has seen both")
    host.close()

    assert seen == {("req_1", "ticket-4711"), ("req_2", None)}


def test_engine_loop_call_inherits_request_id_of_calling_thread(quick: EngineHost) -> None:
    async def traced() -> str | None:
        async with asyncio.TaskGroup() as group:
            return await group.create_task(_request_id())

    with logs.about(job_id="batch_1", request_id="ticket-4711"):
        assert quick.call(traced()).result(30) == "ticket-4711"
    assert quick.call(traced()).result(30) is None


async def _request_id() -> str | None:
    return logs.request_id()
