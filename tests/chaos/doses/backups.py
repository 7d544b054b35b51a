"""F23: a backup is taken while batches run, everything is killed, and the backup starts with an empty broker.

    the database, at one moment ──▶ the folder of files ──▶ work goes on ──▶ kill -9 ──▶ both in a new folder

What was in progress ends, with each line once. What had ended is as it was, to the byte. What was deleted meanwhile is
back, and each webhook that is pending in the backup comes, under the id that it has come with.
"""

import shutil
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from jobs.db.engine import Database
from jobs.ledger.states import TERMINAL
from jobs.ledger.tables import Job, Segment
from jobs.webhooks.tables import Delivery
from tests.chaos.doses.deployment import Site, site
from tests.chaos.doses.dose import Given, Outcome
from tests.chaos.doses.hooks import Listeners, told_once, verifying
from tests.chaos.doses.intake import judge_audit, same
from tests.chaos.doses.known import Known, all_unlike
from tests.support.receiver import Received, Receiver
from tests.support.services import Postgres
from tests.support.system import System, pause, wait_for

_RATE = 4.0
_SMALL = (1, 3, 20)
_LARGE = (2_000, 3_000)
_DELAY_MS = 100.0
_BEFORE_SECONDS = 5.0  # small ones alone, some of which end
_ENDED_SECONDS = 240.0
_TOLD_SECONDS = 60.0
_UNFINISHED = ".partial-"
_KEYS = ("operator.key", "audit.key")

Row = Mapping[str, Any]


@dataclass(slots=True)
class Books:
    """Jobs of a database, its deliveries, and the progress of its running jobs."""

    jobs: dict[str, Row] = field(default_factory=dict)
    deliveries: dict[str, str] = field(default_factory=dict)  # their states, by id
    segments: int = 0  # of jobs in progress

    @classmethod
    def read(cls, url: str) -> "Books":
        with closing(Database(url)) as db, db.read() as session:
            jobs: dict[str, Row] = {row.id: row._asdict() for row in session.execute(select(*Job.__table__.columns))}
            deliveries = {row.id: row.state for row in session.execute(select(Delivery.id, Delivery.state))}
            done = select(func.count()).select_from(Segment).join(Job, Job.id == Segment.job_id)
            segments = session.scalar(done.where(Job.state.not_in(TERMINAL))) or 0
        return cls(jobs, deliveries, segments)

    @property
    def ended(self) -> dict[str, Row]:
        return {name: row for name, row in self.jobs.items() if row["state"] in TERMINAL}

    @property
    def open(self) -> dict[str, Row]:
        return {name: row for name, row in self.jobs.items() if row["state"] not in TERMINAL}


def copied(files: Path, to: Path) -> list[str]:
    """Copy the folder as `cp -a` does while it changes; return what is missing, except for unfinished work."""
    said = subprocess.run(["cp", "-a", str(files), str(to)], capture_output=True, text=True, timeout=300, check=False)
    return [line for line in said.stderr.splitlines() if _UNFINISHED not in line]


# -- judges


def changed(before: Mapping[str, Row], after: Mapping[str, Row]) -> list[str]:
    """Jobs that had ended and are not as they were."""
    faults = [f"{name} has ended and is not there" for name in before if name not in after]
    for name, row in before.items():
        now = after.get(name, row)
        others = {column: (value, now[column]) for column, value in row.items() if now[column] != value}
        faults += [f"{name} has changed: {others}"] if others else []
    return faults


def unfinished(before: Iterable[str], after: Mapping[str, Row]) -> list[str]:
    """Jobs that were in progress and have not succeeded."""
    states = {name: after[name]["state"] if name in after else "not there" for name in before}
    return [f"{name} is {state}" for name, state in states.items() if state != "succeeded"]


def misheard(
    pending: Mapping[str, str], known: Iterable[str], before: Sequence[Received], after: Sequence[Received]
) -> list[str]:
    """`pending`: deliveries at the end, `known`: those of the backup. All have come; each under one id, as one body."""
    told = {one.webhook_id for one in (*before, *after)}
    faults = [f"delivery {name} is {state} and did not come" for name, state in pending.items() if name not in told]
    ours = set(known)
    _, first = told_once([one for one in (*before, *after) if one.webhook_id in ours])
    _, second = told_once([one for one in after if one.webhook_id not in ours])
    return faults + first + second


def other(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Files that are not what they were, or not there."""
    return [
        f"{name} is {'another' if digest else 'not there'}"
        for name, digest in after.items()
        if digest != before.get(name)
    ]


# -- the dose

Save = Callable[[System, Path], None]  # the database of a deployment, into a folder
Bring = Callable[[Path, Path], str]  # back out of it, into a data folder; its URL
#: SQLite belongs to its host, whose name is in it; without, it belongs to the next one that opens it.
MOVE = "DELETE FROM meta WHERE key = 'sqlite_host'"


@dataclass(slots=True)
class _Backup:
    folder: Path
    with_key: bool
    missed: list[str] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)  # of the files as they were
    deleted: str = ""  # the one that goes after it was taken


@dataclass(slots=True)
class _Restored:
    """The deployment out of a backup, and what its database said before the first process ran."""

    site: Site
    url: str
    books: Books


def sqlite_restored(given: Given) -> Outcome:
    """By turns with VACUUM INTO and SQLite's online backup; each comes from another host."""

    def bring(backup: Path, data: Path) -> str:
        shutil.copy(backup / "nightmill.db", data)
        with closing(sqlite3.connect(data / "nightmill.db", isolation_level=None)) as copy:
            copy.execute("UPDATE meta SET value = 'another' WHERE key = 'sqlite_host'")
            copy.execute(MOVE)
        return f"sqlite:///{data / 'nightmill.db'}"

    return _restored(given, "SQLite", (_vacuum, _online), bring)


def postgres_restored(given: Given) -> Outcome:
    """With pg_dump and pg_restore."""
    with ExitStack() as stack:
        server = Postgres()
        stack.callback(server.close)
        urls: list[str] = []

        def fresh() -> str:
            urls.append(stack.enter_context(server.database()))
            return urls[-1]

        def dump(_: System, backup: Path) -> None:
            server.run("pg_dump", urls[-1], "--format=custom", f"--file={backup / 'nightmill.dump'}")

        def bring(backup: Path, _: Path) -> str:
            new = stack.enter_context(server.database(migrated=False))
            server.run("pg_restore", new, "--no-owner", str(backup / "nightmill.dump"))
            return new

        return _restored(given, "PostgreSQL", (dump,), bring, fresh)


def _vacuum(system: System, backup: Path) -> None:
    with closing(sqlite3.connect(system.data / "nightmill.db", isolation_level=None)) as source:
        source.execute("VACUUM INTO ?", [str(backup / "nightmill.db")])


def _online(system: System, backup: Path) -> None:
    with (
        closing(sqlite3.connect(system.data / "nightmill.db")) as source,
        closing(sqlite3.connect(backup / "nightmill.db")) as target,
    ):
        source.backup(target)


def _restored(
    given: Given, name: str, ways: Sequence[Save], bring: Bring, fresh: Callable[[], str] | None = None
) -> Outcome:
    """Restore a backup; every other time the operator's key is not in it."""
    times = given.part(3)
    outcome = Outcome(f"a backup of {name} and of the files during load, restored with an empty broker, {times} times")
    for number in range(times):
        folder = given.folder / f"{number}"
        folder.mkdir()
        with ExitStack() as stack:
            environment = {"NIGHTMILL_DATABASE_URL": fresh()} if fresh else {}
            made = stack.enter_context(site(Given(folder, given.rng), delay_ms=_DELAY_MS, **environment))
            receiver = stack.enter_context(Receiver())
            listeners = Listeners(made)
            for path in ("ok", "500"):  # some of the second's are always pending
                listeners.listen(receiver, path)
            stack.enter_context(verifying(listeners, receiver))
            known, backup = Known(made, made.system.ports), _Backup(folder / "backup", number % 2 == 0)
            _take(given, known, backup, ways[number % len(ways)])
            _judge_creates(outcome, known, backup)
            heard = len(receiver.requests)
            again = _start(stack, made, backup, bring)
            _judge_jobs(outcome, again, known)
            _judge_files(outcome, again, backup)
            _judge_told(outcome, again, receiver, heard)
            outcome.judge("all are signed", *listeners.unsigned[:3])
    return outcome


def _take(given: Given, known: Known, backup: _Backup, save: Save) -> None:
    """While it runs; then it goes on for a while, a file is deleted, and everything is killed."""
    made = known.site
    backup.folder.mkdir()
    with known.going_on(_RATE, _SMALL):
        pause(_BEFORE_SECONDS)
        output = _an_output(made)
        for number, lines in enumerate(_LARGE):
            known.post(f"large-{number}", lines)
        pause(given.rng.uniform(2, 6))
        save(made.system, backup.folder)
        pause(given.rng.uniform(0, 2))
        backup.missed = copied(made.system.data / "files", backup.folder)
        if backup.with_key:
            for name in _KEYS:
                shutil.copy(made.system.data / name, backup.folder)
        files = made.system.data / "files" / "files"
        backup.digests = {path.name: _digest(path.read_bytes()) for path in files.iterdir()}
        made.http.delete(made.url(f"files/{output}")).raise_for_status()
        backup.deleted = output
        pause(given.rng.uniform(2, 5))
    made.system.destroy()


def _an_output(made: Site) -> str:
    found: list[str] = []

    def is_there() -> bool:
        batches = made.get("batches", limit=100)["data"]
        found[:] = [one["output_file_id"] for one in batches if one["status"] == "completed"]
        return bool(found)

    wait_for(is_there, _TOLD_SECONDS, "a batch has ended", every=0.5)
    return found[0]


def _start(stack: ExitStack, made: Site, backup: _Backup, bring: Bring) -> _Restored:
    folder = backup.folder.with_name("restored")
    data = folder / "data"
    data.mkdir(parents=True)
    url = bring(backup.folder, data)
    shutil.copytree(backup.folder / "files", data / "files")
    if backup.with_key:
        for name in _KEYS:
            shutil.copy(backup.folder / name, data)
    books = Books.read(url)
    environment = {} if url.startswith("sqlite") else {"NIGHTMILL_DATABASE_URL": url}
    system = System(folder, engine_url=made.engine.url, embed_url=made.engine.url, **environment)
    stack.callback(system.destroy)
    system.start(180)
    again = Site(system, made.engine)
    stack.callback(again.http.close)
    return _Restored(again, url, books)


def _judge_creates(outcome: Outcome, known: Known, backup: _Backup) -> None:
    statuses = Counter(one.status for one in known.answers)
    wrong = [f"{one.key}: {one.status} {one.told}" for one in known.answers if one.status not in {200, 503}]
    outcome.judge(f"{statuses[200]} creates of 200, {statuses[503]} of 503", *wrong[:5])
    outcome.judge("cp misses nothing that is whole", *backup.missed[:5])


def _judge_jobs(outcome: Outcome, again: _Restored, known: Known) -> None:
    began, books = time.monotonic(), again.books
    if not again.site.await_ended(_ENDED_SECONDS):
        outcome.violations.append(f"not all ended within {_ENDED_SECONDS:g} s")
    took, after = time.monotonic() - began, Books.read(again.url)
    begun = sum(row["state"] != "queued" for row in books.open.values())
    wrong = unfinished(books.open, after.jobs)[:5] if begun else ["nothing was in progress in the backup"]
    begun_with = f"{len(books.open)} in progress, with {books.segments} segments"
    outcome.judge(f"{begun_with}; all ended {took:.0f} s later", *wrong)
    outcome.judge(f"{len(books.ended)} that had ended are as they were", *changed(books.ended, after.jobs)[:5])
    keys = {row["idempotency_key"]: name for name, row in books.jobs.items()}
    outcome.judge("each line once", *all_unlike(again.site, ((known.jobs[key], keys[key]) for key in keys))[:10])
    cut = [one for one in known.answers if one.job in books.jobs]
    outcome.judge("the same keys have the same jobs", *same(cut, known.again(again.site, [one.key for one in cut])))
    judge_audit(outcome, again.site)


def _judge_files(outcome: Outcome, again: _Restored, backup: _Backup) -> None:
    """Judge the files of jobs that had ended, and a deleted one."""
    ended = again.books.ended.values()
    names = [row[which] for row in ended for which in ("output_file_id", "error_file_id") if row[which]]
    found = {name: again.site.http.get(again.site.url(f"files/{name}/content")) for name in {*names, backup.deleted}}
    digests = {name: _digest(said.content) if said.status_code == 200 else "" for name, said in found.items()}
    outcome.judge(
        f"{len(names)} files too, to the byte, and one that was deleted since", *other(backup.digests, digests)[:5]
    )


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()


def _judge_told(outcome: Outcome, again: _Restored, receiver: Receiver, heard: int) -> None:
    """`heard`: how much had come before."""

    def faults() -> list[str]:
        pending, seen = Books.read(again.url).deliveries, list(receiver.requests)
        return misheard(pending, again.books.deliveries, seen[:heard], seen[heard:])

    until = time.monotonic() + _TOLD_SECONDS
    while (found := faults()) and time.monotonic() < until:
        pause(1)
    twice = {one.webhook_id for one in receiver.requests[:heard]} & {
        one.webhook_id for one in receiver.requests[heard:]
    }
    outcome.judge(f"webhooks: {len(again.books.deliveries)} in the backup, {len(twice)} sent again", *found[:5])
