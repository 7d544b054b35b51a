"""Doses for the intake of batches.

F9   the database dies, is frozen or is held, while 50 batches a second are created: 200, or 503 in time; what was
     answered with 200 exists and runs
F11  kill -9 of web up to 50 ms after a create was sent, or just between its commit and its answer, then the same key
     again: one job
"""

import fcntl
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.doses.deployment import Answer, Posting, Site, line, site
from tests.chaos.doses.dose import Given, Outcome, p95
from tests.support import oracle
from tests.support.services import Postgres
from tests.support.system import MODEL, ROOT, free_port, pause, signal_all

_RATE = 50.0
_REFUSED_SECONDS = 2.0  # I8
_HUNG_SECONDS = 5.0  # longer than a machine under load takes; less than any outage here
_DRAIN_SECONDS = 300.0
_FROZEN_SECONDS = 20.0
_HELD_SECONDS = 15.0
_CUT_SECONDS = 0.05


def answered(
    outcome: Outcome, answers: Sequence[Answer], *, refused: float = _REFUSED_SECONDS, hung: float = _HUNG_SECONDS
) -> None:
    """I8: 200, or 503 with Retry-After within two seconds, and nothing else; nobody waits for the outage to end."""
    statuses = Counter(one.status for one in answers)
    busy = [one for one in answers if one.status == 503]
    others = [one for one in answers if one.status not in {200, 503}]
    outcome.judge(
        f"{len(answers)} creates: {statuses[200]} of 200, {statuses[503]} of 503, {len(others)} others",
        *(f"{one.key}: {one.status} after {one.seconds:.1f} s {one.told}" for one in others[:5]),
        "" if statuses[200] else "no create was answered with 200",
    )
    without = [one.key for one in busy if not one.retry_after]
    outcome.judge("503 has Retry-After", *([f"{len(without)} have none: {without[:3]}"] if without else []))
    times = {status: [one.seconds for one in answers if one.status == status] for status in (200, 503)}
    outcome.at_most("503 after, worst", max(times[503], default=0), refused, " s")
    outcome.at_most("200 after, worst", max(times[200], default=0), hung, " s")
    outcome.judge(f"200 after {p95(times[200]):.2f} s (p95)")


def exist(answers: Sequence[Answer], jobs: Sequence[dict[str, Any]]) -> list[str]:
    """Return what is wrong: a create that was answered with 200 is one job under its key, and all have succeeded."""
    found = Counter(str(job["idempotency_key"]) for job in jobs)
    ids = {str(job["id"]) for job in jobs}
    lost = [f"{one.job} was created and is not there" for one in answers if one.status == 200 and one.job not in ids]
    twice = [f"{times} jobs for {key}" for key, times in found.items() if times > 1]
    strays = [f"a job of {key}, which nobody posted" for key in found.keys() - {one.key for one in answers}]
    unwell = [f"{job['id']} is {job['state']}" for job in jobs if job["state"] != "succeeded"]
    return lost + twice + strays + unwell


def _run(outcome: Outcome, made: Site, strikes: Callable[[], None]) -> Outcome:
    file_id = made.upload(line("r0", "Say the word"))
    with Posting(made, file_id, _RATE).going_on() as posting:
        pause(2)
        strikes()
        pause(2)
    if not made.await_ended(_DRAIN_SECONDS):
        outcome.violations.append(f"not all ended within {_DRAIN_SECONDS:g} s")
    answered(outcome, posting.answers)
    jobs = made.jobs()
    outcome.judge(f"{len(jobs)} jobs, one for each key and every 200", *exist(posting.answers, jobs)[:10])
    judge_audit(outcome, made)
    return outcome


def judge_audit(outcome: Outcome, made: Site) -> None:
    verdict = made.system.cli("audit", "verify")
    outcome.judge("audit chain", *([verdict.stdout + verdict.stderr] if verdict.returncode else []))


@contextmanager
def _on_postgres(given: Given) -> Iterator[tuple[Site, Postgres]]:
    server = Postgres()
    try:
        with server.database() as url, site(given, rivals=True, NIGHTMILL_DATABASE_URL=url) as made:
            yield made, server
    finally:
        server.close()


def postgres_killed(given: Given) -> Outcome:
    kills = given.part(10)
    outcome = Outcome(f"PostgreSQL kill -9, {kills} times during {_RATE:g} POST/s")
    with _on_postgres(given) as (made, server):

        def strikes() -> None:
            for _ in range(kills):
                server.kill()
                pause(given.rng.uniform(0.5, 4))
                server.start()
                pause(given.rng.uniform(1, 3))

        return _run(outcome, made, strikes)


def postgres_frozen(given: Given) -> Outcome:
    times = given.part(3)
    outcome = Outcome(f"PostgreSQL SIGSTOP {_FROZEN_SECONDS:g} s, {times} times during {_RATE:g} POST/s")
    with _on_postgres(given) as (made, server):

        def strikes() -> None:
            for _ in range(times):
                processes = server.processes()
                signal_all(processes, signal.SIGSTOP)
                pause(_FROZEN_SECONDS)
                signal_all(processes, signal.SIGCONT)
                pause(3)

        return _run(outcome, made, strikes)


def sqlite_held(given: Given) -> Outcome:
    """By turns the writer lock, and SQLite's own lock by a program that does not know of it."""
    times = given.part(5)
    outcome = Outcome(f"SQLite's write lock held {_HELD_SECONDS:g} s, {times} times during {_RATE:g} POST/s")
    with site(given, rivals=True) as made:
        database = made.system.data / "nightmill.db"

        def strikes() -> None:
            for number in range(times):
                with (_locked if number % 2 else _gated)(database):
                    pause(_HELD_SECONDS)
                pause(3)

        return _run(outcome, made, strikes)


@contextmanager
def _gated(database: Path) -> Iterator[None]:
    with Path(f"{database}.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


@contextmanager
def _locked(database: Path) -> Iterator[None]:
    with closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


# -- F11


@dataclass(slots=True)
class Webs:
    """Web processes beside those of `up`, to be killed. The next one starts while the one before is used."""

    made: Site
    module: str
    _next: "tuple[int, subprocess.Popen[bytes]] | None" = None

    def take(self) -> tuple[int, psutil.Process]:
        """Start a process that answers; return its port and the process."""
        port, process = self._next or self._start()
        self._next = self._start()
        self.made.await_web(port)
        return port, psutil.Process(process.pid)

    def close(self) -> None:
        if self._next:
            self._next[1].kill()

    def _start(self) -> "tuple[int, subprocess.Popen[bytes]]":
        port = free_port()
        environment = psutil.Process(self.made.system.pid("web")).environ() | {"NIGHTMILL_PORT": str(port)}
        log = self.made.system.data / "logs" / "killed.out"
        with log.open("ab") as output:
            command = [sys.executable, "-m", self.module]
            return port, subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)


def web_killed(given: Given) -> Outcome:
    kills = given.part(200)
    outcome = Outcome(f"kill -9 of web 0 to {_CUT_SECONDS * 1000:g} ms after POST, {kills} times, the same key again")

    def strike(web: psutil.Process) -> None:
        pause(given.rng.uniform(0, _CUT_SECONDS))
        web.kill()

    return _cut(given, outcome, kills, "api", strike)


def web_dies_before_its_answer(given: Given) -> Outcome:
    """Kill the web process at a failpoint, so that each kill falls between the commit and the answer."""
    kills = given.part(50)
    outcome = Outcome(f"kill -9 of web between a create's commit and its answer, {kills} times, the same key again")
    return _cut(given, outcome, kills, "tests.chaos.doses.failpoint", lambda web: web.wait(60), heard=False)


def _cut(
    given: Given,
    outcome: Outcome,
    kills: int,
    module: str,
    strike: Callable[[psutil.Process], object],
    *,
    heard: bool = True,
) -> Outcome:
    """By turns a batch and a response in the background; what was cut is asked again of another process at once.

    `heard`: some creates may be answered before the kill.
    """
    cut: list[Answer] = []
    again: list[Answer] = []
    with site(given) as made, closing(Webs(made, module)) as webs:
        file_id = made.upload(line("r0", "Say the word"))
        for number in range(kills):
            port, web = webs.take()
            first, second = _cut_off(made, file_id, number, port, partial(strike, web))
            cut.append(first)
            again.append(second)
        if not made.await_ended(_DRAIN_SECONDS):
            outcome.violations.append(f"not all ended within {_DRAIN_SECONDS:g} s")
        answers = [f"{one.key}: {one.status}" for one in cut if one.status]
        outcome.judge(f"{len(answers)} of {kills} were answered before the kill", *(() if heard else answers))
        outcome.judge("the second time 200, and the same job", *same(cut, again))
        outcome.judge("one job for each key, all run", *exist(again, made.jobs()))
        outcome.judge("no request twice", *_asked_once(made))
        judge_audit(outcome, made)
    return outcome


def _cut_off(made: Site, file_id: str, number: int, port: int, strike: Callable[[], object]) -> tuple[Answer, Answer]:
    key, said = f"cut-{number:04d}", list[Answer]()

    def post(port: int) -> Answer:
        if number % 2:
            return made.batch(file_id, key, port)
        body = {"model": MODEL, "input": f"Tell {key}", "background": True}
        return made.post("responses", body, key, port)

    thread = threading.Thread(target=lambda: said.append(post(port)), daemon=True)
    thread.start()
    strike()
    thread.join(60)
    again = post(made.system.port)
    for _ in range(120):  # 409: as far as its lease tells, the first is being answered still
        if again.status not in {409, 503}:
            break
        pause(0.5)
        again = post(made.system.port)
    return said[0], again


def same(cut: Sequence[Answer], again: Sequence[Answer]) -> list[str]:
    """Return what is wrong: a repeated create is answered, with the job that the first answer named, if any."""
    unanswered = [f"{one.key}: {one.status} {one.told}" for one in again if one.status != 200]
    pairs = zip(cut, again, strict=True)
    return unanswered + [
        f"{one.key} was {one.job} and is {two.job}" for one, two in pairs if one.job not in {"", two.job}
    ]


def _asked_once(made: Site) -> list[str]:
    """Return the faults of the responses, each of which has a prompt of its own."""
    told = [prompt for prompt in made.prompts() if "Tell" in prompt]
    again = oracle.rework(told)
    return [f"{again} prompts were asked again, and no worker was killed"] if again else []
