"""F22: an upgrade with work in flight. The older version is the last tagged one.

Where no version is tagged yet, it is the last commit before a migration came that the last release lacks, or, without
any, before the newest one. The commit before the baseline has the schema of the baseline: nothing is migrated then.

F22         the old version is stopped, the new one starts on its folder, and its release step migrates
F22-mixed   a host of the new version starts beside one of the old, migrates the database that they share, and both
            work for a minute; no request is answered with 5xx. If the schema has changed, the old version does not
            start on it. `make verify` has a short one
"""

import itertools
import re
import subprocess
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import httpx2
from sqlalchemy import func, select

from jobs.db.engine import Database
from jobs.ledger.tables import Audit
from migrations.compatibility import RELEASED
from tests.chaos.doses.deployment import Site
from tests.chaos.doses.dose import Given, Outcome
from tests.chaos.doses.intake import answered, exist, judge_audit
from tests.chaos.doses.known import Known, all_unlike
from tests.support.distributed import Servers, servers
from tests.support.system import EMBED_MODEL, MODEL, ROOT, StubEngine, System, pause, wait_for

_JOBS = 200
_LARGE, _LARGE_LINES = 6, 300
_SMALL = (1, 2, 3)
_DELAY_MS = 200.0
_ENDED_SECONDS = 300.0
_RESUME_SECONDS = 30.0
_MIXED_SECONDS = 60.0
_LEAST_SECONDS = 10.0
_RATE = 4.0
_ASK_SECONDS = 0.5


class NoOldVersion(Exception):
    """There is no older version to upgrade from."""


def older_commit(root: Path) -> str:
    """Return the commit of the version to upgrade from. Raises NoOldVersion."""
    with suppress(subprocess.CalledProcessError):
        return _git(root, "rev-list", "-1", _git(root, "describe", "--tags", "--abbrev=0", "--match", "v*", "HEAD^"))
    return _before_unreleased(root)


def _before_unreleased(root: Path) -> str:
    """Return the commit before the one that added the first migration since the last release. Raises NoOldVersion."""
    revisions = sorted((root / "migrations" / "versions").glob("[0-9]*.py"))
    newer = [revision for revision in revisions if revision.name.partition("_")[0] > RELEASED]
    first = next(iter(newer), revisions[-1]).relative_to(root)
    if subprocess.run(
        ["git", "rev-parse", "--is-inside-work-tree"], cwd=root, capture_output=True, check=False
    ).returncode:
        raise NoOldVersion("this is no clone with a history")
    added = _git(root, "log", "-m", "--first-parent", "--diff-filter=A", "--format=%H", "-1", "--", str(first))
    if not added:
        raise NoOldVersion(f"no commit brings {first.name}")
    commit = added
    try:
        while commit == added or not _is_one_line(root, commit):
            commit = _git(root, "rev-parse", "--verify", f"{commit}^")
    except subprocess.CalledProcessError as error:
        raise NoOldVersion(f"{added}, which brings {first.name}, has nothing before it here") from error
    return commit


def _is_one_line(root: Path, commit: str) -> bool:
    """Return whether each number of a migration is there once: a version with two branches of them does not start."""
    names = _git(root, "ls-tree", "--name-only", commit, "migrations/versions/").splitlines()
    numbers = [Path(name).name.partition("_")[0] for name in names if name.endswith(".py")]
    return len(numbers) == len(set(numbers))


@contextmanager
def old_version(folder: Path) -> Iterator[Path]:
    """Yield a checkout of the old version, and remove it at the end."""
    commit, path = older_commit(ROOT), folder / "old"
    _git(ROOT, "worktree", "add", "--detach", str(path), commit)
    try:
        yield path
    finally:
        _git(ROOT, "worktree", "remove", "--force", str(path))


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.strip()


# -- stopped, migrated, started


def upgraded(given: Given) -> Outcome:
    times = given.part(2)
    with old_version(given.folder) as old:
        outcome = Outcome(f"{_what(old)}: stopped with {_JOBS} jobs in flight, the new one started, {times} times")
        for number in range(times):
            folder = given.folder / f"{number}"
            folder.mkdir()
            _upgrade(folder, old, outcome)
    return outcome


def _what(old: Path) -> str:
    return f"from {_git(old, 'rev-parse', '--short', 'HEAD')} (schema {_schema(old)})"


def _schema(root: Path) -> str:
    return max((root / "migrations" / "versions").glob("[0-9]*.py")).name.partition("_")[0]


def _upgrade(folder: Path, old: Path, outcome: Outcome) -> None:
    with ExitStack() as stack:
        host = partial(_host, stack, _engines(stack, folder))
        before = host(folder, root=old)
        known = Known(before, before.system.ports)
        known.post_all([(f"large-{n}", _LARGE_LINES) for n in range(_LARGE)])
        known.post_all([(f"small-{n:03d}", _SMALL[n % len(_SMALL)]) for n in range(_JOBS - _LARGE)])
        in_flight = sum(job["state"] not in {"succeeded", "failed"} for job in before.jobs())
        code = before.system.stop()
        outcome.judge(f"stopped with {in_flight} in flight", f"its exit code is {code}" if code else "")
        began, heard = time.monotonic(), before.engine.heard()
        after = host(folder)
        wait_for(lambda: after.engine.heard() > heard, 120, "the engine is asked again")
        outcome.at_most("goes on after, with its start", time.monotonic() - began, _RESUME_SECONDS, " s")
        _judge(outcome, after, known)


# -- both at once


def mixed(given: Given) -> Outcome:
    times, seconds = given.part(2), max(_LEAST_SECONDS, _MIXED_SECONDS * given.share)
    with old_version(given.folder) as old:
        outcome = Outcome(f"{_what(old)} and the new one on one database for {seconds:g} s, {times} times")
        for number in range(times):
            folder = given.folder / f"{number}"
            folder.mkdir()
            with servers(folder / "servers", migrated=False) as shared:
                mix(folder, old, shared, outcome, seconds)
    return outcome


def mix(folder: Path, old: Path, shared: Servers, outcome: Outcome, seconds: float) -> None:
    """Run a host of each version side by side for `seconds`, and judge what clients and jobs saw of it."""
    with ExitStack() as stack:
        host = partial(_host, stack, _engines(stack, folder), **shared.variables)
        before = host(_made(folder / "before"), root=old)
        ports = [before.system.port]
        known = Known(before, ports)
        known.post_all([(f"large-{n}", _LARGE_LINES) for n in range(_LARGE)])
        with known.going_on(_RATE, _SMALL), _asking(before, ports) as said:
            pause(5)
            after = host(_made(folder / "after"))
            ports.append(after.system.port)
            pause(seconds)
            ports.remove(before.system.port)
            pause(5)  # what was on its way there
            drained = [before.system.cli("drain", "worker", name) for name in _generators(before.system)]
            outcome.judge("its worker is drained", *(done.stderr[-300:] for done in drained if done.returncode))
            code = before.system.stop()
            outcome.judge("the old one stops", f"its exit code is {code}" if code else "")
            if _schema(old) != _schema(ROOT):
                outcome.judge("and is refused by the new schema", *_starts(before.system))
            pause(5)
        _judge(outcome, after, known)
        told = {version: said[one.system.port] for version, one in (("old", before), ("new", after))}
        outcome.judge(
            f"interactive clients: { ({version: dict(one) for version, one in told.items()}) }", *unserved(told)
        )
        statuses = sum(said.values(), Counter(answer.status for answer in known.answers))
        broken = statuses.total() - statuses[200]
        outcome.judge(
            f"{statuses.total()} requests to both APIs, {broken} of them 5xx or broken",
            *(f"{answer.key}: {answer.status} {answer.told}" for answer in known.answers if answer.status != 200),
        )
        moved = {version: _moves(shared.database, one.system) for version, one in (("old", before), ("new", after))}
        outcome.judge(f"moves of jobs by workers of each: {moved}", *idle(moved))
        for name, lines in {**_errors("old", before.system), **_errors("new", after.system)}.items():
            outcome.judge(f"{name} logged {len(lines)} errors: {lines[0][:300]}")


@contextmanager
def _asking(made: Site, ports: Sequence[int]) -> Iterator[dict[int, Counter[int]]]:
    """Interactive clients, at each port by turns; the statuses that they get there."""
    said, stop = defaultdict[int, Counter[int]](Counter), threading.Event()

    def ask() -> None:
        for number in itertools.count():
            if stop.wait(_ASK_SECONDS):
                return
            port = ports[number % len(ports)]
            body = {"model": MODEL, "max_tokens": 8, "messages": [{"role": "user", "content": f"Ask {number}"}]}
            try:
                said[port][made.http.post(made.url("chat/completions", port), json=body).status_code] += 1
            except httpx2.HTTPError:
                said[port][0] += 1

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield said
    finally:
        stop.set()
        thread.join(60)


def unserved(told: Mapping[str, Mapping[int, int]]) -> list[str]:
    """Interactive clients are answered at each; nothing else."""
    faults = [f"nobody was answered by the {version} version" for version, said in told.items() if not said.get(200)]
    wrong = [(version, status) for version, said in told.items() for status in said if status != 200]
    return faults + [f"{status} from the {version} version" for version, status in wrong]


def _starts(system: System) -> list[str]:
    try:
        system.start(120)
    except RuntimeError:  # `up` has ended
        return []
    return ["the old version started anew"]


def idle(moved: Mapping[str, int]) -> list[str]:
    return [f"no worker of the {version} version did anything" for version, moves in moved.items() if not moves]


def _moves(url: str, system: System) -> int:
    """Return how often a `gpu` worker of this host advanced a job."""
    actors = [f"worker:{worker}" for worker in _generators(system)]
    with closing(Database(url)) as db, db.read() as session:
        return session.scalar(select(func.count()).select_from(Audit).where(Audit.actor.in_(actors))) or 0


def _generators(system: System) -> list[str]:
    """Return the names of the `gpu` workers that this host has started."""
    log = (system.data / "logs" / "gpu.log").read_text()
    return re.findall(r'"event": "worker_started".*?"worker": "([^"]+)"', log)


def _errors(version: str, system: System) -> dict[str, list[str]]:
    """But for the release step, which has refused."""
    return {f"{name} ({version})": lines for name, lines in system.errors().items() if name != "release"}


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _engines(stack: ExitStack, folder: Path) -> tuple[StubEngine, StubEngine]:
    engine = stack.enter_context(StubEngine(folder, MODEL, delay_ms=_DELAY_MS))
    return engine, stack.enter_context(StubEngine(folder, EMBED_MODEL))


def _host(
    stack: ExitStack, engines: tuple[StubEngine, StubEngine], folder: Path, root: Path = ROOT, **environment: str
) -> Site:
    engine, embed = engines
    system = System(folder, engine_url=engine.url, embed_url=embed.url, root=root, **environment)
    stack.callback(system.destroy)
    system.start(180)
    made = Site(system, engine)
    stack.callback(made.http.close)
    return made


def _judge(outcome: Outcome, made: Site, known: Known) -> None:
    began = time.monotonic()
    ended = made.await_ended(_ENDED_SECONDS)
    outcome.at_most("all ended after", time.monotonic() - began if ended else float("inf"), _ENDED_SECONDS, " s")
    answered(outcome, known.answers)
    jobs = made.jobs()
    states = Counter(str(job["state"]) for job in jobs)
    outcome.judge(f"{len(jobs)} jobs {dict(states)}, one for each key", *exist(known.answers, jobs)[:10])
    ids = {str(job["idempotency_key"]): str(job["id"]) for job in jobs}
    outcome.judge("each line once", *all_unlike(made, ((known.jobs[key], ids[key]) for key in ids))[:10])
    judge_audit(outcome, made)
