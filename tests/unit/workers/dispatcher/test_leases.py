"""Leases are judged by what the observer saw, on the observer's clock."""

import os
import subprocess
import sys

from jobs.platform import processes
from workers.dispatcher.leases import Observer, Since


class Clock:
    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


def test_heartbeat_that_stands_still_for_a_lease_is_stale() -> None:
    clock = Clock()
    observer = Observer[str](30, clock)

    seen = []
    for step in range(4):
        clock.at = 1000 + 10 * step
        seen.append(observer.find_stale([("dead", 7), ("alive", step)]))

    assert seen == [[], [], [], [("dead", 7)]]


def test_new_observer_waits_a_whole_lease_before_it_judges() -> None:
    clock = Clock()
    Observer[str](30, clock).find_stale([("k", 1)])
    clock.at += 1000

    assert Observer[str](30, clock).find_stale([("k", 1)]) == []


def test_unobserved_time_does_not_count_towards_lease() -> None:
    """All stand still together: a paused deployment, a suspended machine."""
    clock = Clock()
    observer = Observer[str](30, clock)
    observer.find_stale([("k", 1)])
    clock.at += 1000

    seen = []
    for _ in range(3):
        seen.append(observer.find_stale([("k", 1)]))
        clock.at += 10

    assert seen == [[], [], [("k", 1)]]


def test_reset_observer_waits_full_lease() -> None:
    clock = Clock()
    observer = Observer[str](30, clock)
    seen = []
    for step in range(7):
        if step == 3:
            observer.start_afresh()
        seen.append(bool(observer.find_stale([("k", 1)])))
        clock.at += 10

    assert seen == [False] * 6 + [True]


def test_key_that_went_and_came_back_starts_afresh() -> None:
    clock = Clock()
    observer = Observer[str](30, clock)
    observer.find_stale([("k", 1)])
    clock.at += 20
    observer.find_stale([])
    clock.at += 20

    assert observer.find_stale([("k", 1)]) == []


def test_age_counts_from_first_sight() -> None:
    clock = Clock()
    since = Since[str](clock)
    since.ages(["a"])
    clock.at += 5

    assert since.ages(["a", "b"]) == {"a": 5, "b": 0}
    assert since.ages([]) == {}
    assert since.ages(["a"]) == {"a": 0}


def test_has_ended_detects_ended_local_process_and_reused_pid() -> None:
    host, pid, start = processes.me()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    begun = processes.start_time(child.pid)
    child.kill()
    child.communicate()

    assert pid == os.getpid()
    assert not processes.has_ended(host, pid, start)
    assert processes.has_ended(host, pid, start + 1), "the pid was reused"
    assert begun is not None
    assert processes.has_ended(host, child.pid, begun)
    assert not processes.has_ended("another-host", child.pid, begun), "of another host nothing is certain"
