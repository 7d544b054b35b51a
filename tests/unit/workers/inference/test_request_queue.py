"""What one worker holds of a request queue for each project."""

import asyncio

from workers.inference.request_queue import ProjectPlaces


def test_a_project_has_its_places_and_its_waiting_requests_whatever_another_one_has() -> None:
    places = ProjectPlaces(places=2, waiting=1)

    assert [places.enter("a", 1) for _ in range(4)] == [True, True, True, False]
    assert [places.enter("b", 1) for _ in range(4)] == [True, True, True, False]
    places.leave("a", 1)
    assert places.enter("a", 1)


def test_large_requests_are_bounded_by_their_bytes_and_a_single_one_is_not() -> None:
    places = ProjectPlaces(places=10, waiting=10, held_bytes=100)

    assert [places.enter("a", size) for size in (60, 41, 40, 1)] == [True, False, True, False]
    assert places.enter("b", 1000)
    places.leave("a", 60)
    assert places.enter("a", 60)


def test_it_is_known_whether_any_request_waits_for_a_place() -> None:
    places = ProjectPlaces(places=1, waiting=5)
    states = []
    for project in "abab":
        places.enter(project, 1)
        states.append(places.nobody_waits.is_set())
    for project in "abab":
        places.leave(project, 1)
        states.append(places.nobody_waits.is_set())

    assert states == [True, True, False, False, False, True, True, True]


async def test_requests_of_a_project_get_its_places_in_their_order() -> None:
    places, order = ProjectPlaces(places=1, waiting=5), list[str]()

    async def hold(project: str, name: str) -> None:
        places.enter(project, 1)
        async with places.place(project):
            order.append(name)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        places.leave(project, 1)

    await asyncio.gather(*(hold(name[0], name) for name in ("a1", "a2", "a3", "b1")))

    assert order == ["a1", "b1", "a2", "a3"]
    assert not places._projects, "projects without requests are forgotten"
