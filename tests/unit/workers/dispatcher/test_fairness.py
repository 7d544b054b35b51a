"""Who is served next: a table of cases."""

from collections.abc import Sequence
from dataclasses import replace
from math import inf

import pytest

from jobs.ledger.outbox import DueMessage
from jobs.queues import largest_share
from workers.dispatcher.publisher import FairSchedule, SlotShare, choose


def _messages(project: str, count: int) -> list[DueMessage]:
    return [DueMessage(n, "run", "gpu.generate", f"{project}-job", n, project) for n in range(count)]


@pytest.mark.parametrize(
    ("waiting", "load", "weights", "room", "expected"),
    [
        ({"a": 5}, {}, {}, 3, "aaa"),
        ({"a": 100, "b": 2}, {}, {}, 4, "abab"),
        ({"a": 100, "b": 2}, {"a": 4}, {}, 3, "bba"),
        ({"a": 9, "b": 9}, {}, {"a": 2.0, "b": 1.0}, 6, "abaaba"),
        ({"a": 0, "b": 1}, {}, {}, 5, "b"),
        ({"a": 3}, {}, {}, 0, ""),
        ({}, {"a": 1}, {}, 4, ""),
    ],
)
def test_least_loaded_project_per_weight_comes_first(
    waiting: dict[str, int], load: dict[str, int], weights: dict[str, float], room: int, expected: str
) -> None:
    messages = {project: _messages(project, count) for project, count in waiting.items()}

    chosen = choose(messages, load, weights, room)

    assert "".join(message.project_id for message in chosen) == expected


@pytest.mark.parametrize(
    ("waiting", "taken", "share", "expected"),
    [
        ("a1 a1 a1 a1 b1", {}, 2, "a1 b1 a1"),
        ("a1 b1", {"a": 2}, 2, "b1"),
        ("a1 a1 b1", {"a": 1, "b": 2}, 2, "a1"),
        ("a1 a1 a1", {}, inf, "a1 a1 a1"),
        ("a⅛ a⅛ a⅛", {"a": 1}, 1, "a⅛ a⅛ a⅛"),  # small ones go ahead
        ("a⅛ a⅛ a⅛", {"a": 1.75}, 1, "a⅛ a⅛"),
        ("a⅛ a1 a⅛", {}, 1, "a⅛"),  # and do not pass a large one
    ],
)
def test_a_project_gets_no_more_than_its_share_of_a_pool_although_there_is_room(
    waiting: str, taken: dict[str, float], share: float, expected: str
) -> None:
    messages: dict[str, list[DueMessage]] = {}
    for n, word in enumerate(waiting.split()):
        message = replace(_messages(word[0], 1)[0], id=n, slot_weight=1 / 8 if word[1] == "⅛" else 1)
        messages.setdefault(word[0], []).append(message)
    of_pool = SlotShare(share, dict(taken))

    chosen = choose(messages, {}, {}, 100, share=of_pool)

    assert [f"{message.project_id}{'⅛' if message.slot_weight < 1 else 1}" for message in chosen] == expected.split()
    assert of_pool.taken == {
        project: taken.get(project, 0) + sum(m.slot_weight for m in chosen if m.project_id == project)
        for project in {*taken, *(message.project_id for message in chosen)}
    }


@pytest.mark.parametrize(("slots", "share"), [(1, 1), (2, 1), (3, 2), (4, 2), (7, 4), (8, 4)])
def test_a_project_may_take_half_of_the_slots_and_never_all_of_several(slots: int, share: int) -> None:
    assert largest_share(slots) == share


def test_each_project_keeps_its_own_order() -> None:
    chosen = choose({"a": _messages("a", 4), "b": _messages("b", 4)}, {}, {}, 8)

    assert [message.shard_n for message in chosen if message.project_id == "a"] == [0, 1, 2, 3]


def test_small_work_takes_a_part_of_the_room_and_of_a_turn() -> None:
    small = [replace(message, slot_weight=1 / 4) for message in _messages("a", 20)]

    chosen = choose({"a": small, "b": _messages("b", 9)}, {}, {}, 4)

    assert "".join(message.project_id for message in chosen) == "abaaaabaaa"
    assert len(choose({"a": small}, {}, {}, 2)) == 8


def _served(projects: dict[str, float], slots: int, rounds: int, fair_schedule: FairSchedule) -> list[str]:
    """Who is served when in each round one place becomes free: that of whoever has it for longest."""
    running: list[str] = []
    order: list[str] = []
    for _ in range(rounds):
        load = {name: running.count(name) for name in projects}
        waiting = {name: _messages(name, 2) for name in projects}
        chosen = choose(waiting, load, projects, slots - len(running), fair_schedule=fair_schedule)
        running += [message.project_id for message in chosen]
        order += [message.project_id for message in chosen]
        running.pop(0)
    return order


def test_more_projects_than_places_take_turns() -> None:
    projects = {f"p{n:02}": 1.0 for n in range(20)}

    order = _served(projects, 4, 40, FairSchedule())

    assert set(order[:20]) == set(order[20:40]) == set(projects)


def test_projects_take_turns_by_weight() -> None:
    projects = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 3.0}

    order = _served(projects, 1, 60, FairSchedule())

    assert {name: order.count(name) for name in projects} == {"a": 10, "b": 10, "c": 10, "d": 30}


def test_late_project_gets_no_credit_for_earlier_rounds() -> None:
    fair_schedule = FairSchedule()
    _served({"a": 1.0, "b": 1.0}, 1, 100, fair_schedule)

    order = _served({"a": 1.0, "b": 1.0, "c": 1.0}, 1, 9, fair_schedule)

    assert {name: order.count(name) for name in "abc"} == {"a": 3, "b": 3, "c": 3}


def _rounds(fair_schedule: FairSchedule, load: dict[str, int], projects: Sequence[str], rounds: int) -> str:
    """Who is served when in each round one message of whoever has most out is answered."""
    order = ""
    for _ in range(rounds):
        load[max(load, key=lambda name: load[name])] -= 1
        (message,) = choose({name: _messages(name, 2) for name in projects}, load, {}, 1, fair_schedule=fair_schedule)
        load[message.project_id] = load.get(message.project_id, 0) + 1
        order += message.project_id
    return order


def test_late_project_catches_up_to_equal_share_of_busy_slots() -> None:
    fair_schedule = FairSchedule(head_start=4)
    assert _rounds(fair_schedule, {"big": 4}, ["big"], 4) == "big" * 4
    load = {"big": 4}

    assert _rounds(fair_schedule, load, ["big", "new"], 3) == "new" * 3
    assert load == {"big": 1, "new": 3}
    assert _rounds(fair_schedule, load, ["big", "new"], 2) == "new" + "big"
    assert load == {"big": 2, "new": 2}


def test_head_start_ends_with_its_messages() -> None:
    """Also of who was alone then, and came before its turn because there was nobody else."""
    fair_schedule, load = FairSchedule(head_start=2), {"old": 4}
    choose({"old": _messages("old", 4)}, {}, {}, 4, fair_schedule=fair_schedule)

    assert _rounds(fair_schedule, load, ["new", "old"], 2) == "newnew"
    assert fair_schedule.favoured_projects(["old", "new"]) == []


def test_schedule_forgets_projects_not_ahead_of_others() -> None:
    fair_schedule = FairSchedule()
    for n in range(100):
        _served({f"once-{n}": 1.0, "always": 1.0}, 1, 4, fair_schedule)

    assert len(fair_schedule._time) <= 3
