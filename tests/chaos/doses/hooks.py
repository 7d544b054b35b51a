"""Doses for the sender of webhooks.

F15  nine receivers that fail in every way, one that is gone, and a good one, which must not notice
F16  kill -9 of the sender, again and again: each event arrives, under one id, and little of it twice
"""

import itertools
import json
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import psutil
from sqlalchemy import select
from standardwebhooks import WebhookVerificationError

from jobs.db.engine import Database
from jobs.settings import Settings
from jobs.webhooks.tables import Event
from tests.chaos.doses.deployment import Site, line, site
from tests.chaos.doses.dose import Given, Outcome, p95
from tests.support.receiver import Received, Receiver, certificate
from tests.support.system import pause, signal_all, wait_for
from workers.webhooks.loop import AHEAD

_SCHEDULE = (0.0, 2.0, 4.0, 8.0)
_RETRY_AFTER = 7.0
_GOOD_SECONDS = 2.0
_OFF = 0.25
_GROWN = 64.0  # MiB
_RATE = 8.0  # events a second
_SLOW_RATE = 2.0  # while the sender is killed: the supervisor waits up to 15 s with the next one
_RECEIVERS = 4
_DRAIN_SECONDS = 300.0
_PATHS = ("500", "hang", "trickle", "reset", "410", "throttle?after=7", "huge", "bomb")


@dataclass(slots=True)
class Listeners:
    """Receivers, the secrets of their endpoints, and what each was told, verified as it comes."""

    site: Site
    secrets: dict[str, str] = field(default_factory=dict)  # by path
    ids: dict[str, str] = field(default_factory=dict)
    unsigned: list[str] = field(default_factory=list)
    _verified: dict[int, int] = field(default_factory=dict)

    def listen(self, receiver: Receiver, path: str) -> None:
        body = {"name": path, "url": receiver.url(path), "event_types": ["batch.completed"]}
        made = self.site.http.post(self.site.url("webhook_endpoints"), json=body)
        made.raise_for_status()
        name = f"/{path}".split("?")[0]
        self.ids[name], self.secrets[name] = made.json()["id"], made.json()["signing_secret"]

    def verify(self, receiver: Receiver) -> None:
        """Verify what has arrived since the last call; signatures are good for five minutes."""
        start = self._verified.get(receiver.port, 0)
        for request in receiver.requests[start:]:
            start += 1
            path = urlsplit(request.path).path
            try:
                request.verify(self.secrets[path])
            except (WebhookVerificationError, KeyError) as error:
                self.unsigned.append(f"{path}: {error}")
        self._verified[receiver.port] = start


@contextmanager
def verifying(listeners: Listeners, receiver: Receiver) -> Iterator[None]:
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(1):
            listeners.verify(receiver)
        listeners.verify(receiver)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def happen(made: Site, events: Iterable[int], rate: float = _RATE) -> None:
    """Batches of one line, at a rate: an event each."""
    file_id, began = made.upload(line("r0", "Say the word")), time.monotonic()
    for count, number in enumerate(events, 1):
        answer = made.batch(file_id, f"event-{number:05d}")
        if answer.status != 200:
            raise RuntimeError(f"{answer}")
        pause(max(0.0, began + count / rate - time.monotonic()))


def happened(made: Site) -> dict[str, float]:
    """Return when each batch completed, by its id: from the database, since HTTP has whole seconds only."""
    db = Database(Settings(data_dir=made.system.data).database)
    try:
        with db.read() as session:
            rows = session.execute(select(Event.subject_id, Event.created_at).where(Event.type == "batch.completed"))
            return {row.subject_id: row.created_at for row in rows}
    finally:
        db.close()


# -- judges


def punctual(firsts: Mapping[str, float], events: Mapping[str, float]) -> tuple[float, list[str]]:
    """Return the p95 of the waits for the first attempt, and the events without any attempt."""
    waits = [firsts[subject] - at for subject, at in events.items() if subject in firsts]
    missing = events.keys() - firsts.keys()
    return p95(waits), [f"{len(missing)} events did not arrive: {sorted(missing)[:3]}"] if missing else []


def firsts(requests: Sequence[Received]) -> dict[str, float]:
    """Return when each subject was first mentioned."""
    found: dict[str, float] = {}
    for request in requests:
        found.setdefault(subject(request), request.at)
    return found


def subject(request: Received) -> str:
    told: dict[str, Any] = json.loads(request.body)
    return str(told["data"]["id"])


def off_schedule(requests: Sequence[Received], schedule: Sequence[float]) -> dict[int, float]:
    """Return how far the wait before the n-th attempt is off the schedule, in the median: jitter cancels out."""
    times: dict[str, list[float]] = defaultdict(list)
    for request in requests:
        times[request.webhook_id].append(request.at)
    waits: dict[int, list[float]] = defaultdict(list)
    for seen in times.values():
        for n, (sooner, later) in enumerate(itertools.pairwise(seen), 1):
            waits[n].append(later - sooner)
    return {n: median(found) / schedule[n] - 1 for n, found in waits.items() if n < len(schedule)}


def told_once(requests: Sequence[Received]) -> tuple[int, list[str]]:
    """Return how many came more than once, and the faults: another body under an id, two ids of an event."""
    bodies: dict[tuple[str, str], set[bytes]] = defaultdict(set)
    ids: dict[tuple[str, str], set[str]] = defaultdict(set)
    for request in requests:
        bodies[request.path, request.webhook_id].add(request.body)
        ids[request.path, subject(request)].add(request.webhook_id)
    times = Counter((request.path, request.webhook_id) for request in requests)
    faults = [f"{path} {name}: {len(kinds)} bodies" for (path, name), kinds in bodies.items() if len(kinds) > 1]
    faults += [f"{path} {name}: {len(kinds)} ids" for (path, name), kinds in ids.items() if len(kinds) > 1]
    return times.total() - len(times), faults


# -- F15


def bad_receivers(given: Given) -> Outcome:
    events = given.part(1000)
    outcome = Outcome(f"{events} events at {_RATE:g}/s to ten bad receivers and a good one")
    retries = ",".join(f"{wait:g}" for wait in _SCHEDULE)
    settings = {"NIGHTMILL_WEBHOOK_RETRY_SECONDS": retries, "NIGHTMILL_WEBHOOK_TIMEOUT_SECONDS": "2"}
    with ExitStack() as stack:
        made = stack.enter_context(site(given, **settings))
        receiver, canary = stack.enter_context(Receiver()), stack.enter_context(Receiver())
        server, _ = certificate(given.folder, "localhost")
        untrusted = stack.enter_context(Receiver(tls=server))
        listeners = Listeners(made)
        for path in (*_PATHS, "ok", f"redirect?to={canary.url()}"):
            listeners.listen(receiver, path)
        listeners.listen(untrusted, "tls")
        stack.enter_context(verifying(listeners, receiver))
        happen(made, range(events // 10))
        before = _weight(made)
        happen(made, range(events // 10, events))
        _await_good(outcome, made, receiver)
        _judge_receivers(outcome, made, listeners, receiver)
        outcome.judge("no redirect followed", *([f"{canary.connections} were"] if canary.connections else []))
        outcome.judge("nothing sent over bad TLS", *(["something was"] if untrusted.requests else []))
        outcome.at_most("io grew by", _weight(made) - before, _GROWN, " MiB")
    return outcome


def _weight(made: Site) -> float:
    return sum(_resident(process) for process in made.system.tree("io")) / (1 << 20)


def _resident(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0.0


def _await_good(outcome: Outcome, made: Site, receiver: Receiver) -> None:
    if not made.await_ended(_DRAIN_SECONDS):
        outcome.violations.append("not all batches ended")
    events = happened(made)
    try:
        wait_for(lambda: len(firsts(receiver.of("ok"))) >= len(events), 60, "the good one has all", every=0.5)
        wait_for(lambda: len(receiver.of("500")) >= len(events) * len(_SCHEDULE), 120, "500 has all", every=0.5)
    except TimeoutError as error:
        outcome.violations.append(str(error))


def _judge_receivers(outcome: Outcome, made: Site, listeners: Listeners, receiver: Receiver) -> None:
    wait, missing = punctual(firsts(receiver.of("ok")), happened(made))
    outcome.judge("the good one has every event", *missing)
    outcome.at_most("its first attempt, p95", wait, _GOOD_SECONDS, " s")
    off = off_schedule(receiver.of("500"), _SCHEDULE)
    told = ", ".join(f"{late:+.0%}" for _, late in sorted(off.items()))
    wrong = [f"attempt {n} is {late:+.0%} off" for n, late in off.items() if abs(late) > _OFF]
    outcome.judge(f"schedule of 500: {told} (±{_OFF:.0%})", *wrong, "" if off else "nothing was sent again")
    throttled = off_schedule(receiver.of("throttle"), [_RETRY_AFTER] * len(_SCHEDULE))
    soon = [f"attempt {n} came {late:+.0%}" for n, late in throttled.items() if late < -0.01]
    outcome.judge("Retry-After: 7 is waited for", *soon, "" if throttled else "nothing was sent again")
    gone = made.get(f"webhook_endpoints/{listeners.ids['/410']}")["disabled_reason"]
    outcome.judge("410 is disabled", *([] if gone == "gone" else [f"disabled: {gone}"]))
    outcome.judge("all are signed", *listeners.unsigned[:3])


# -- F16


def sender_killed(given: Given) -> Outcome:
    kills, events = given.part(30), given.part(1000)
    outcome = Outcome(f"kill -9 of io, {kills} times in {events} events to {_RECEIVERS} receivers")
    with ExitStack() as stack:
        made = stack.enter_context(site(given))
        receiver = stack.enter_context(Receiver())
        listeners = Listeners(made)
        for number in range(_RECEIVERS):
            listeners.listen(receiver, f"slow/{number}")
        stack.enter_context(verifying(listeners, receiver))
        feeder = threading.Thread(target=happen, args=(made, range(events), _SLOW_RATE), daemon=True)
        feeder.start()
        _kill_sender(given, made, receiver, kills)
        feeder.join()
        if not made.await_ended(_DRAIN_SECONDS):
            outcome.violations.append("not all batches ended")
        due = len(happened(made)) * _RECEIVERS
        try:
            wait_for(lambda: _different(receiver) >= due, 120, "every event has arrived", every=0.5)
        except TimeoutError as error:
            outcome.violations.append(str(error))
        wait_for(
            lambda: not any(_pending(made, name) for name in listeners.ids.values()), 120, "none is pending", every=1
        )
        _judge_sent(outcome, made, listeners, receiver, kills)
    return outcome


def _kill_sender(given: Given, made: Site, receiver: Receiver, kills: int) -> None:
    """Kill the sender some times while it is at work: a moment after a delivery."""
    for _ in range(kills):
        seen = len(receiver.requests)
        wait_for(lambda seen=seen: len(receiver.requests) > seen, 60, "it sends")  # type: ignore[misc]
        pause(given.rng.uniform(0, 0.5))
        signal_all(made.system.tree("io"), signal.SIGKILL)


def _different(receiver: Receiver) -> int:
    return len({(request.path, request.webhook_id) for request in receiver.requests})


def _pending(made: Site, endpoint: str) -> int:
    return len(made.get(f"webhook_endpoints/{endpoint}/deliveries", state="pending", limit=1)["data"])


def _judge_sent(outcome: Outcome, made: Site, listeners: Listeners, receiver: Receiver, kills: int) -> None:
    events = happened(made)
    for number in range(_RECEIVERS):
        _, missing = punctual(firsts(receiver.of(f"slow/{number}")), events)
        outcome.violations += missing
    outcome.judge(f"{len(events)} events at each of {_RECEIVERS}")
    again, faults = told_once(receiver.requests)
    outcome.at_most("sent twice", again, kills * AHEAD * _RECEIVERS)
    outcome.judge("one id and one body for each", *faults[:5])
    outcome.judge("all are signed", *listeners.unsigned[:3])
