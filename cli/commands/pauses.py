"""`nightmill workers`, `pause`, `resume`, `drain`: show and stop work. Uses the database directly."""

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli.errors import CliError
from cli.options import AsJson, DataDir
from cli.terminal import say, show, show_json, show_table

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from jobs.fleet.models_file import Registry
    from jobs.ledger.pauses import Scope

_ACTOR = "operator"
_LOOK = 0.5  # seconds
Kind = Annotated[
    Literal["queue", "model", "project", "worker"],
    typer.Argument(metavar="KIND", help="One of queue, model, project, worker."),
]
_NAMES = "A queue such as gpu.generate, a model or its alias, a project, or a worker as `nightmill workers` has it."
Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help=_NAMES, show_default=False),
]


def pause(kind: Kind, name: Name, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Start no new work of a queue, model, project or worker. Running work goes on, and jobs are still accepted."""
    _set(kind, name, data_dir, on=True, as_json=as_json)


def resume(kind: Kind, name: Name, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Start work again that was paused or drained. This also starts a model again whose engine died too often."""
    _set(kind, name, data_dir, on=False, as_json=as_json)


def drain(
    kind: Kind,
    name: Name,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for running work.")] = 3600.0,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Pause a queue, model, project or worker, and wait until its running work has ended.

    Exit code 1 if work still runs after the timeout.
    """
    from cli.up.effective import opened
    from jobs.fleet import workers as fleet
    from jobs.ledger.pauses import Scope

    scope = Scope(kind)
    names = _set(kind, name, data_dir, on=True, as_json=as_json)
    acknowledgement = fleet.Acknowledgement(scope, set(names))
    ends = time.monotonic() + timeout
    with opened(data_dir) as db:
        while True:
            with db.read() as session:
                unacknowledged = acknowledgement.unacknowledged(session)
                claims = sum(fleet.claims_at(session, scope, target) for target in names)
                other_work = sum(fleet.other_work_at(session, scope, target) for target in names)
            if not (unacknowledged or claims or other_work):
                show(
                    {"kind": kind, "name": name, "running": 0}, f"{kind} {name}: nothing runs any more", as_json=as_json
                )
                return
            if time.monotonic() > ends:
                raise CliError(f"{kind} {name}: {_left(claims, other_work, unacknowledged)}; it stays paused")
            threading.Event().wait(_LOOK)


def _left(claims: int, other_work: int, unacknowledged: list[str]) -> str:
    text = f"{claims} claims still run, and {other_work} clients, deliveries or removals"
    return f"{text}; not heard from since: {', '.join(unacknowledged)}" if unacknowledged else text


def workers(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show the live workers, everything that is paused, and the models whose engines died too often."""
    from cli.up.effective import opened
    from jobs.db.base import row_of
    from jobs.fleet import quarantine
    from jobs.fleet import workers as fleet
    from jobs.ledger import pauses

    with opened(data_dir) as db, db.read() as session:
        off = pauses.paused(session)
        rows = [
            {
                "id": worker.id,
                "pool": worker.pool,
                "host": worker.host,
                "pid": worker.pid,
                "state": "paused" if worker.id in off.of(pauses.Scope.WORKER) else worker.state,
                "loading": [asdict(loading) for loading in fleet.loads(worker)],
                "queues": worker.queues,
                "models": worker.models,
                "running": fleet.claims_at(session, pauses.Scope.WORKER, worker.id),
                "other_work": fleet.other_work_at(session, pauses.Scope.WORKER, worker.id),
                "slots": worker.slots,
                "engine_restarts": worker.restarts,
            }
            for worker in fleet.everyone(session)
        ]
        held = _held(session, data_dir)
        left = [(row_of(row), quarantine.describe(row)) for row in quarantine.listed(session)]
    if as_json:
        show_json({"workers": rows, "paused": held, "quarantined": [row for row, _ in left]})
        return
    _table(rows)
    for entry in held:
        also = f" (also as {', '.join(entry['aliases'])})" if entry.get("aliases") else ""
        say(f"paused: {entry['kind']} {entry['name']}{also}")
        for line in (entry["reason"] or "").splitlines():
            say(f"    {line}")
    for _, (first, *more) in left:
        say(first)
        for line in more:
            say(f"    {line}")


def _held(session: "Session", data_dir: Path | None) -> list[dict[str, Any]]:
    """Return what is paused. The entry of a model includes its aliases, which are paused with it."""
    from cli.up.effective import running
    from jobs.fleet.models_file import ModelsFileError, Registry
    from jobs.ledger import pauses

    aliases: Mapping[str, str] = {}
    with suppress(ModelsFileError):  # an invalid file: aliases are shown as models
        aliases = Registry.load(running(data_dir)).aliases
    names = pauses.paused(session).of(pauses.Scope.MODEL)
    folded = {alias: model for alias, model in aliases.items() if {alias, model} <= names}
    entries: list[dict[str, Any]] = []
    for row in pauses.listed(session):
        is_model = row.scope == pauses.Scope.MODEL
        if is_model and row.name in folded:
            continue
        entry = {"kind": row.scope, "name": _shown(session, row.scope, row.name), "reason": row.reason}
        also = sorted(alias for alias, model in folded.items() if model == row.name)
        entries.append(entry | {"aliases": also} if is_model else entry)
    return entries


def _table(rows: list[dict[str, object]]) -> None:
    from cli.wording import model_progress

    cells = []
    for row in rows:
        queues, models = row["queues"], row["models"]
        assert isinstance(queues, list)
        assert isinstance(models, list)
        busy = f"{row['running']} of {row['slots']}"
        loading = row["loading"]
        assert isinstance(loading, list)
        state = "; ".join([str(row["state"]), *map(model_progress, loading)])
        columns = (state, busy, row["other_work"], row["host"], row["pid"])
        cells.append((row["id"], " ".join(queues), " ".join(models), *columns))
    show_table(("worker", "queues", "models", "state", "running", "other work", "host", "pid"), cells)


def _set(kind: str, name: str, data_dir: Path | None, *, on: bool, as_json: bool) -> list[str]:
    """Pause or resume, print the result, and return the names that `name` stands for."""
    from cli.up.effective import opened
    from jobs.fleet import quarantine
    from jobs.ledger import pauses

    scope = pauses.Scope(kind)
    change = pauses.pause if on else pauses.resume
    with opened(data_dir) as db, db.write() as session:
        names = _names(session, scope, name, data_dir)
        changed = [change(session, scope, target, actor=_ACTOR) for target in names]
        left = sum(quarantine.release(session, target, _ACTOR) for target in names if scope is scope.MODEL and not on)
    what = f"model {names[0]} ({name})" if scope is scope.MODEL and names[0] != name else f"{kind} {name}"
    if left:
        text = f"{what} is no longer quarantined"
    elif not any(changed):
        text = f"{what} was {'paused already' if on else 'not paused'}"
    else:
        text = f"{what} {'is paused' if on else 'goes on'}"
    result = {"kind": kind, "name": name, "paused": on, "changed": any(changed) or bool(left)}
    show(result, text, as_json=as_json)
    return names


def _names(session: "Session", scope: "Scope", name: str, data_dir: Path | None) -> list[str]:
    """Return the names that `name` stands for: the id of a project, or a model and its aliases.

    Raises:
        CliError: the name is unknown.
        ModelsFileError: the models file is needed to know the name, and is invalid.
    """
    from cli.up.effective import running
    from jobs.fleet import workers as fleet
    from jobs.fleet.models_file import Registry
    from jobs.ledger import pauses
    from jobs.ledger.pauses import Scope
    from jobs.queues import Queue
    from jobs.security import keys

    if scope is Scope.PROJECT:
        project = keys.find_project(session, name)
        if project is None:
            raise CliError(f"there is no project '{name}'; `nightmill keys list` shows them")
        return [project.id]
    if scope is Scope.MODEL:
        return _models(session, Registry.load(running(data_dir)), name)
    workers = fleet.everyone(session)
    known = {worker.id for worker in workers}
    if scope is Scope.QUEUE:
        known = {*map(str, Queue), *(queue for worker in workers for queue in worker.queues)}
        known |= pauses.paused(session).of(scope)
        if name not in known:  # read last: the file may be invalid
            known |= {model.queue for model in Registry.load(running(data_dir)).models.values()}
    if name not in known:
        raise CliError(f"there is no {scope} '{name}'; there are {', '.join(sorted(known)) or 'none'}")
    return [name]


def _models(session: "Session", registry: "Registry", name: str) -> list[str]:
    """Return a model and its aliases, found by one of these names. Raises CliError for an unknown name."""
    shown, known = _known(session, name)
    model = name if name in registry.models or shown else registry.aliases.get(name, name)
    if model == name and not (name in registry.models or shown or known):
        raise CliError(f"there is no model '{name}'; `nightmill models list` shows them")
    return [model, *(alias for alias, target in registry.aliases.items() if target == model)]


def _known(session: "Session", name: str) -> tuple[bool, bool]:
    """Return whether an endpoint listed a model, and whether a job, worker, pause or quarantine has its name."""
    from sqlalchemy import or_, select

    from jobs.fleet import quarantine
    from jobs.fleet import workers as fleet
    from jobs.fleet.models_file import ANY_MODEL
    from jobs.fleet.tables import Model as Shown
    from jobs.ledger import pauses
    from jobs.ledger.states import LIVE
    from jobs.ledger.tables import Job

    served = {model for worker in fleet.everyone(session) for model in worker.models}
    paused = name in pauses.paused(session).of(pauses.Scope.MODEL)
    used = (
        session.scalar(
            select(Job.id).where(Job.state.in_(LIVE), or_(Job.model == name, Job.serves_as == name)).limit(1)
        )
        is not None
    )
    known = used or paused or not served.isdisjoint({name, ANY_MODEL}) or bool(quarantine.listed(session, name))
    return session.get(Shown, name) is not None, known


def _shown(session: "Session", scope: str, name: str) -> str:
    """Return the name of a project, and any other name unchanged."""
    from jobs.security.tables import Project

    project = session.get(Project, name) if scope == "project" else None
    return project.name if project else name
