"""Quarantine engines that die repeatedly; deaths are counted across restarts of their worker.

    death ──▶ row ──┬─ fewer than `engine_deaths` ──▶ the engine is built again
                    └─ as many ──▶ quarantined on these devices ──until──▶ one trial ──┬─ lives ──▶ free again
                                        ▲                                          │
                                        └────── dies: twice as long as before ─────┘
    free at once   `nightmill resume model NAME`, or another entry in the models file

`host_devices` is a host and the devices that the process may use. The deaths of the last
`engine_deaths_seconds` count, and all deaths since the engine last started successfully: an engine that takes minutes
to fail would otherwise never reach the limit. A trial postpones the next trial before it begins, also when its worker
is killed.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Self

from sqlalchemy import ColumnElement, and_, delete, or_, select, update
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.base import row_of
from jobs.db.engine import insert_into
from jobs.fleet.models_file import ModelConfig
from jobs.fleet.tables import EngineDeath, Quarantine, Worker
from jobs.ledger import audit
from jobs.ledger.states import ShardState
from jobs.ledger.tables import Job, Shard
from jobs.settings import Settings

#: Lines that are told as suspects, of all that were in flight.
SUSPECTS: Final = 10
_MAX_REST: Final = 86_400.0
_FORGOTTEN: Final = 7 * 86_400.0  # no worker has used these devices since
_ACTOR: Final = "engine"


@dataclass(frozen=True, slots=True)
class QuarantineLimits:
    """The limits of quarantine: `deaths` within `seconds` lead to it, and the first quarantine lasts `rest` seconds."""

    deaths: int
    seconds: float
    rest: float

    @classmethod
    def of(cls, config: Settings) -> Self:
        return cls(config.engine_deaths, config.engine_deaths_seconds, config.engine_rest_seconds)

    def pause(self, tries: int) -> float:
        return min(self.rest * 2.0 ** min(tries, 20), max(_MAX_REST, self.rest))


def entry_of(model: ModelConfig) -> str:
    """Return a hash of what is loaded and how: a changed entry in the models file is another engine."""
    what = [model.engine, model.source.model_dump(mode="json"), model.engine_args]
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:32]


def note(session: Session, death: EngineDeath, bounds: QuarantineLimits) -> bool:
    """Count a death once, however often this runs; return whether its engine is quarantined."""
    at = now()
    session.execute(insert_into(session, EngineDeath).values(row_of(death)).on_conflict_do_nothing())
    session.execute(delete(EngineDeath).where(_is_same_engine(death), ~_counts(at, bounds)))
    row = session.get(Quarantine, (death.host_devices, death.model), with_for_update=True)
    if row is not None and row.entry == death.entry and row.trial is None:
        return True  # it is quarantined already
    query = select(EngineDeath).where(_is_same_engine(death), EngineDeath.entry == death.entry)
    deaths = session.scalars(query.order_by(EngineDeath.created_at, EngineDeath.id)).all()
    on_trial = row is not None and row.entry == death.entry
    if len(deaths) < bounds.deaths and not on_trial:
        return False
    _quarantine(session, row if on_trial else None, deaths, at, bounds)
    session.execute(delete(EngineDeath).where(_is_same_engine(death)))
    audit.record(
        session,
        actor=_ACTOR,
        action="model.quarantine",
        target=death.model,
        details={"host_devices": death.host_devices},
    )
    return True


def _quarantine(
    session: Session, trial: Quarantine | None, deaths: Sequence[EngineDeath], at: float, bounds: QuarantineLimits
) -> None:
    last = deaths[-1]
    columns = {
        "error": last.error,
        "suspects": describe_suspects(deaths),
        "lines": next((death.lines for death in reversed(deaths) if death.lines), []),
        "trial": None,
    }
    if trial is not None:  # its next trial was postponed when this one began
        for name, value in columns.items():
            setattr(trial, name, value)
        trial.deaths += len(deaths)
        return
    key = {"host_devices": last.host_devices, "model": last.model}
    fresh = {"entry": last.entry, "deaths": len(deaths), "tries": 0, "created_at": at, "until": at + bounds.pause(0)}
    insert = insert_into(session, Quarantine).values(key | fresh | columns)
    session.execute(insert.on_conflict_do_update(index_elements=list(key), set_=fresh | columns))


def describe_suspects(deaths: Iterable[EngineDeath]) -> list[str]:
    """Return the lines that were in flight, those of most deaths first."""
    counts = Counter(name for death in deaths for name in dict.fromkeys(death.suspects))
    return [f"{name} ({times} times)" for name, times in counts.most_common(SUSPECTS)]


def handle_worker_death(
    session: Session, worker: Worker, aliases: Mapping[str, str], bounds: QuarantineLimits
) -> list[str]:
    """Count the deaths of the engines of a worker that ended unexpectedly; return the models that are quarantined now.

    Call it while the claims are still there. A second call for the same worker counts nothing more.
    """
    at, quarantined = now(), []
    shards = _shards_of(session, worker.id)
    for name, how in _culprits(worker.engines or {}, {aliases.get(model, model) for model in shards.values()}).items():
        death = EngineDeath(
            id=f"{worker.id}/{how['entry']}",
            host_devices=worker.host_devices or worker.host,
            model=name,
            entry=how["entry"],
            worker_id=worker.id,
            starting=not how["up"],
            error="the worker process was gone all of a sudden",
            suspects=[shard for shard, model in shards.items() if aliases.get(model, model) == name],
            lines=[],
            created_at=at,
        )
        if note(session, death, bounds):
            quarantined.append(name)
    excuse(session, worker.id)
    return quarantined


def _shards_of(session: Session, worker_id: str) -> dict[str, str]:
    """Return the shards that the worker held, as text, and their models."""
    query = select(Job.id, Job.model, Shard.n, Shard.isolated_line).join(Shard, Shard.job_id == Job.id)
    query = query.where(Shard.worker_id == worker_id, Shard.state == ShardState.RUNNING).order_by(Job.id, Shard.n)
    return {
        f"{job_id} shard {n}" + (f" line {line}" if line is not None else ""): model or ""
        for job_id, model, n, line in session.execute(query)
    }


def _culprits(held: Mapping[str, Mapping[str, Any]], busy: Collection[str]) -> dict[str, Mapping[str, Any]]:
    """Return the engines that were starting, otherwise those that executed lines, otherwise all."""
    building = {name: how for name, how in held.items() if not how["up"]}
    return building or {name: held[name] for name in busy if name in held} or dict(held)


def set_engines(session: Session, worker_id: str, host_devices: str, engines: Mapping[str, Any]) -> None:
    """Record the engines that a worker has or is starting."""
    worker = update(Worker).where(Worker.id == worker_id)
    session.execute(worker.values(host_devices=host_devices, engines=dict(engines)))


def excuse(session: Session, worker_id: str) -> None:
    """Clear the worker's engines: it ends on purpose, so its end is not counted as a death of an engine."""
    session.execute(update(Worker).where(Worker.id == worker_id).values(engines={}))


def lives(session: Session, worker_id: str) -> None:
    """Delete the deaths of a worker that was wrongly taken for dead."""
    session.execute(delete(EngineDeath).where(EngineDeath.id.startswith(f"{worker_id}/", autoescape=True)))


def add_log_lines(session: Session, host_devices: str, models: Iterable[str], lines: Sequence[str]) -> None:
    """Add the last log lines of the previous process to deaths and quarantines that have no lines."""
    names = list(models)
    deaths = select(EngineDeath).where(EngineDeath.host_devices == host_devices, EngineDeath.model.in_(names))
    left = select(Quarantine).where(Quarantine.host_devices == host_devices, Quarantine.model.in_(names))
    for row in (*session.scalars(deaths), *session.scalars(left)):
        if not row.lines:
            row.lines = list(lines)


def quarantines_at(
    session: Session, host_devices: str, entries: Mapping[str, str], known: Collection[str] | None = None
) -> dict[str, Quarantine]:
    """Return which of these models are quarantined at this host and devices.

    With `known`, all names of the models file, release those that are no longer in the file or are another engine by
    now.
    """
    rows = {}
    for row in session.scalars(select(Quarantine).where(Quarantine.host_devices == host_devices)):
        if entries.get(row.model) == row.entry:
            rows[row.model] = row
        elif known is not None and (row.model in entries or row.model not in known):
            _free(session, row, "models file")
    return rows


def begin_trial(session: Session, host_devices: str, model: str, worker_id: str, bounds: QuarantineLimits) -> bool:
    """Return whether the worker may build the engine once. The next trial is postponed first. Idempotent."""
    row = session.get(Quarantine, (host_devices, model), with_for_update=True)
    if row is None or row.trial == worker_id:
        return row is not None
    at = now()
    if row.until > at:
        return False
    row.tries, row.trial, row.until = row.tries + 1, worker_id, at + bounds.pause(row.tries + 1)
    return True


def end_trial(session: Session, host_devices: str, model: str, worker_id: str) -> None:
    """Release the engine: it has lived long enough."""
    row = session.get(Quarantine, (host_devices, model), with_for_update=True)
    if row is not None and row.trial == worker_id:
        _free(session, row, _ACTOR)


def leave(session: Session, worker_id: str) -> None:
    """Give back the trials of a worker that ends on purpose, so that its successor may start them at once."""
    session.execute(update(Quarantine).where(Quarantine.trial == worker_id).values(trial=None, until=now()))


def record_start(session: Session, host_devices: str, model: str) -> None:
    """Delete the deaths of the engine's start, because it came up."""
    session.execute(
        delete(EngineDeath).where(
            EngineDeath.host_devices == host_devices, EngineDeath.model == model, EngineDeath.starting
        )
    )


def release(session: Session, model: str, actor: str) -> int:
    """Release a model everywhere for the operator, without its history; return from how many hosts and devices."""
    session.execute(delete(EngineDeath).where(EngineDeath.model == model))
    rows = session.scalars(select(Quarantine).where(Quarantine.model == model)).all()
    for row in rows:
        _free(session, row, actor)
    return len(rows)


def forget(session: Session) -> None:
    """Delete what is left of hosts and devices that no worker has used for a week."""
    long_ago = now() - _FORGOTTEN
    session.execute(delete(EngineDeath).where(EngineDeath.created_at < long_ago))
    session.execute(delete(Quarantine).where(Quarantine.until < long_ago))


def all_quarantines(session: Session, model: str | None = None) -> Sequence[Quarantine]:
    """Return the quarantined engines, those on trial included."""
    query = select(Quarantine).order_by(Quarantine.model, Quarantine.host_devices)
    return session.scalars(query if model is None else query.where(Quarantine.model == model)).all()


def describe(row: Quarantine) -> list[str]:
    """Describe a quarantine: the engine, the reason, the end, the requests in flight, the last lines of the log."""
    when = datetime.fromtimestamp(row.until, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    standing = "is on trial" if row.trial else f"is quarantined until {when}"
    sentences = [
        f"model {row.model} {standing} at {row.host_devices}: its engine died {row.deaths} times, last of: {row.error}"
    ]
    sentences += [f"in flight then: {', '.join(row.suspects)}"] if row.suspects else []
    return sentences + [f"its log: {line}" for line in row.lines]


def _free(session: Session, row: Quarantine, actor: str) -> None:
    session.delete(row)
    audit.record(
        session, actor=actor, action="model.release", target=row.model, details={"host_devices": row.host_devices}
    )


def _is_same_engine(death: EngineDeath) -> ColumnElement[bool]:
    return and_(EngineDeath.host_devices == death.host_devices, EngineDeath.model == death.model)


def _counts(at: float, bounds: QuarantineLimits) -> ColumnElement[bool]:
    return or_(EngineDeath.starting, EngineDeath.created_at >= at - bounds.seconds)
