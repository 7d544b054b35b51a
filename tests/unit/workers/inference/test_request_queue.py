"""A worker holds a part of a request queue for each project."""

import asyncio

from workers.inference.request_queue import ProjectLimiter


def test_project_slots_and_queue_are_independent_of_other_projects() -> None:
    limiter = ProjectLimiter(concurrent=2, waiting=1)

    assert [limiter.enter("a", 1) for _ in range(4)] == [True, True, True, False]
    assert [limiter.enter("b", 1) for _ in range(4)] == [True, True, True, False]
    limiter.leave("a", 1)
    assert limiter.enter("a", 1)


def test_request_bytes_are_limited_except_for_single_request() -> None:
    limiter = ProjectLimiter(concurrent=10, waiting=10, max_bytes=100)

    assert [limiter.enter("a", size) for size in (60, 41, 40, 1)] == [True, False, True, False]
    assert limiter.enter("b", 1000)
    limiter.leave("a", 60)
    assert limiter.enter("a", 60)


def test_it_is_known_whether_any_request_waits_for_a_place() -> None:
    limiter = ProjectLimiter(concurrent=1, waiting=5)
    states = []
    for project in "abab":
        limiter.enter(project, 1)
        states.append(limiter.none_waiting.is_set())
    for project in "abab":
        limiter.leave(project, 1)
        states.append(limiter.none_waiting.is_set())

    assert states == [True, True, False, False, False, True, True, True]


async def test_requests_of_a_project_get_its_places_in_their_order() -> None:
    limiter, order = ProjectLimiter(concurrent=1, waiting=5), list[str]()

    async def hold(project: str, name: str) -> None:
        limiter.enter(project, 1)
        async with limiter.turn(project):
            order.append(name)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        limiter.leave(project, 1)

    await asyncio.gather(*(hold(name[0], name) for name in ("a1", "a2", "a3", "b1")))

    assert order == ["a1", "b1", "a2", "a3"]
    assert not limiter._projects, "projects without requests are forgotten"
