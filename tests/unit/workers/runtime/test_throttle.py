"""Lines of batches make room while somebody waits, in order, and none is lost."""

import asyncio

from jobs.inference.interactive import LINE_PRIORITY, QueuedRequest, routed_queue, shadow_queue
from tests.support.fake_engine import FakeEngine
from workers.engines.port import Answer
from workers.inference.consumer import MAX_REQUESTS, ROUTED_LINES, InteractiveConsumer
from workers.runtime.engine_host import EngineHost
from workers.runtime.throttle import BatchThrottle


class Lines:
    """Lines that stay inside until they are let go."""

    def __init__(self, throttle: BatchThrottle) -> None:
        self._throttle = throttle
        self.inside: list[int] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._go: dict[int, asyncio.Event] = {}

    async def begin(self, count: int) -> None:
        self.tasks += [asyncio.create_task(self._one(len(self.tasks) + n)) for n in range(count)]
        await _turns()

    async def end(self, *numbers: int) -> None:
        for number in numbers:
            self._go[number].set()
        await _turns()

    async def _one(self, number: int) -> None:
        self._go[number] = asyncio.Event()
        await self._throttle.acquire()
        self.inside.append(number)
        try:
            await self._go[number].wait()
        finally:
            self.inside.remove(number)
            self._throttle.release()


async def _turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_without_a_bound_everybody_is_inside() -> None:
    lines = Lines(BatchThrottle())
    await lines.begin(500)

    assert len(lines.inside) == 500
    await lines.end(*range(500))
    await asyncio.gather(*lines.tasks)


async def test_without_clients_lines_fill_limit_in_order() -> None:
    lines = Lines(BatchThrottle(lambda: (1, 3)))
    await lines.begin(6)
    assert lines.inside == [0, 1, 2]

    await lines.end(1)

    assert lines.inside == [0, 2, 3]
    await lines.end(*range(6))
    assert all(task.done() for task in lines.tasks)


async def test_throttle_shrinks_for_waiting_client_and_recovers_after_delay() -> None:
    throttle = BatchThrottle(lambda: (1, 3), seconds=0.1)
    lines = Lines(throttle)
    await lines.begin(6)
    with throttle.client():
        await lines.end(0, 1)
        assert lines.inside == [2]
        await lines.end(2)
        assert lines.inside == [3]
    await lines.end(3)
    assert lines.inside == [4], "the next question may come soon"

    await asyncio.sleep(0.15)

    assert lines.inside == [4, 5]
    await lines.end(4, 5)
    assert all(task.done() for task in lines.tasks)


async def test_a_line_that_is_cancelled_gives_its_place_to_the_next() -> None:
    lines = Lines(BatchThrottle(lambda: (1, 1)))
    await lines.begin(4)
    lines.tasks[1].cancel()  # it waits
    lines.tasks[0].cancel()  # it is inside
    await _turns()

    assert lines.inside == [2]
    await lines.end(2)
    assert lines.inside == [3]
    await lines.end(3)


async def test_called_up_and_cancelled_in_the_same_moment_it_holds_no_place() -> None:
    lines = Lines(BatchThrottle(lambda: (1, 1)))
    await lines.begin(3)
    lines._go[0].set()
    await asyncio.sleep(0)  # the first leaves and calls up the second,
    await asyncio.sleep(0)
    lines.tasks[1].cancel()  # who is cancelled before it runs
    await _turns()

    assert lines.inside == [2]
    await lines.end(2)


async def test_lines_of_other_queues_batches_have_no_more_places_than_there_is_room_for() -> None:
    for limits, most in (((2, 8), 8), ((2, 99), ROUTED_LINES), ((0, 0), 1), (None, ROUTED_LINES)):
        host = EngineHost(FakeEngine(), lambda: None, throttle=BatchThrottle(lambda limits=limits: limits, seconds=0.0))
        consumer = InteractiveConsumer(host, "", "here", handlers={"/own": _never})
        queue_limits = {queue.name: queue.limit for queue in consumer.queues}
        assert queue_limits[routed_queue("here", LINE_PRIORITY)]() == most
        assert queue_limits[routed_queue("here")]() == queue_limits["here"]() == MAX_REQUESTS
        assert queue_limits[shadow_queue("here")]() == most
        if limits == (2, 8):
            with host.throttle.client():
                assert queue_limits[routed_queue("here", LINE_PRIORITY)]() == 2


async def _never(queued: QueuedRequest, priority: int) -> Answer:
    raise AssertionError
