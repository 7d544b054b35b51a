"""Aliases: the names by which a project asks for models that have other names. An alias never stands for an alias.

    a request ─▶ draw by the weights ─▶ the target, if live workers serve it ─▶ else the first fallback that they serve
                                             └─ it fails, or is silent for too long, before its answer begins ─┘

A draw takes a point from 0 up to 1. A sticky alias takes the hash of who asks, so that each of its users has the same
point in each draw. The targets are laid along the points backwards, the last one first: a last target that grows keeps
the users that it had. `jobs.fleet.access` says which model answers: what has the name itself comes before an alias.

A shadow is a model that is asked the same as the target, after the client has its answer, which nobody is shown.

Each change of a routing is a move. Moves stay for ever, so that what answered a name at a time can be said later.
"""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import Select, and_, case, func, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.errors import Conflict
from jobs.ids import new_id
from jobs.inference.tables import ShadowMinute
from jobs.ledger import events
from jobs.registry.tables import Alias, AliasMove, MoveAction
from jobs.security.tables import Project

MAX_ALIASES: Final = 1000  # of a project
MAX_MOVES: Final = 100_000  # of a project
MAX_WATCHED: Final = 100  # aliases that are compared in one round
MAX_TARGETS: Final = 8
MAX_FALLBACKS: Final = 4
MAX_FALLBACK_AFTER: Final = 600  # seconds
MAX_IN_FLIGHT: Final = 64  # requests of a shadow
WHOLE: Final = 100  # the sum of the weights
PREFIX: Final = "amove_"
MOVED: Final = "model.alias.moved"
ROLLED_BACK: Final = "model.alias.rolled_back"
SHADOW_SILENT: Final = "model.alias.shadow_silent"
#: By `grader` the answers are kept for online evaluations of the alias.
Comparison = Literal["exact_match", "length", "grader"]
_SILENCE: Final = 600  # seconds of requests without one that was sent to the shadow
_MINUTE: Final = 60
_POINTS: Final = 1 << 64


class WeightedModel(msgspec.Struct, frozen=True):
    """A model, and the percentage of the requests that it is to answer."""

    model: str
    weight: int


class Shadow(msgspec.Struct, frozen=True):
    """A model that is asked a percentage of the requests again, at most `max_in_flight` at once."""

    model: str
    share: int = WHOLE
    max_in_flight: int = 4
    compare: Comparison | None = None


class AliasRouting(msgspec.Struct, frozen=True):
    """The models of an alias. The weights of `targets` sum to 100; the first one is the incumbent.

    With `sticky` each user has the same target. `fallbacks` answer where no live worker serves the target, and clients
    also where the target fails, or has not begun to answer within `fallback_after` seconds; None is no such limit. With
    `rollback` the dispatcher drops targets that do worse than the incumbent.
    """

    targets: tuple[WeightedModel, ...]
    sticky: bool = False
    fallbacks: tuple[str, ...] = ()
    rollback: bool = True
    shadow: Shadow | None = None
    fallback_after: int | None = None

    @property
    def incumbent(self) -> str:
        """The target that stays when the others are dropped."""
        return self.targets[0].model

    @property
    def models(self) -> frozenset[str]:
        """The targets, the fallbacks and the shadow."""
        shadow = (self.shadow.model,) if self.shadow else ()
        return frozenset((*(target.model for target in self.targets), *self.fallbacks, *shadow))

    def model_at(self, point: float) -> str:
        """Return the target at a point, which is at least 0 and below 1."""
        ends = accumulate(target.weight for target in reversed(self.targets))
        reached = (t for t, end in zip(reversed(self.targets), ends, strict=True) if point * WHOLE < end)
        return next(reached, self.targets[0]).model

    def to_json(self) -> dict[str, Any]:
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return fields


def single(model: str) -> AliasRouting:
    """Return the routing of all requests to one model."""
    return AliasRouting((WeightedModel(model, WHOLE),))


def read_routing(fields: Mapping[str, Any]) -> AliasRouting:
    """Return the routing that a row stores."""
    return msgspec.convert(fields, AliasRouting)


def routing_of(alias: Alias) -> AliasRouting:
    """Return the routing of an alias. An older version of this service has changed `model` alone."""
    routing = None if alias.routing is None else read_routing(alias.routing)
    return routing if routing is not None and routing.incumbent == alias.model else single(alias.model)


def point_of(project_id: str, name: str, subject: str) -> float:
    """Return the point of a subject, who asks, in each draw of a sticky alias."""
    digest = hashlib.sha256("\0".join((project_id, name, subject)).encode(errors="replace")).digest()
    return (int.from_bytes(digest[:8]) >> 11 << 11) / _POINTS  # 53 bits: a double below 1


def find(session: Session, name: str, project_id: str, *, lock: bool = False) -> Alias | None:
    """Return the alias that a project has of this name; with `lock` this transaction alone changes the project's."""
    if lock:
        session.get_one(Project, project_id, with_for_update={"key_share": True})
    return session.get(Alias, (project_id, name), populate_existing=lock)


def aliases_of(session: Session, project_id: str) -> Sequence[Alias]:
    """Return the aliases of a project, the oldest first."""
    rows = select(Alias).where(Alias.project_id == project_id)
    return session.scalars(rows.order_by(Alias.created_at, Alias.name)).all()


def count(session: Session, project_id: str) -> int:
    """Return how many aliases a project has."""
    return session.scalar(select(func.count()).select_from(Alias).where(Alias.project_id == project_id)) or 0


# ── moves ──


def move(
    session: Session,
    alias: Alias,
    routing: AliasRouting | None,
    action: MoveAction,
    *,
    actor: str,
    reason: str | None = None,
    gate: Mapping[str, Any] | None = None,
) -> AliasMove:
    """Give an alias, which `find` has locked, its routing, or delete it where that is None; add the move and its event.

    Raises: Conflict, where the project has as many moves as it may have; its aliases can still be deleted.
    """
    last = session.scalar(select(func.max(AliasMove.number)).where(AliasMove.project_id == alias.project_id)) or 0
    if last >= MAX_MOVES and routing is not None:
        message = f"The aliases of a project move at most {MAX_MOVES} times. Use another project."
        raise Conflict(message, param="alias", code="too_many_alias_moves")
    made = AliasMove(
        id=new_id(PREFIX),
        project_id=alias.project_id,
        name=alias.name,
        number=last + 1,
        at=now(),
        action=action,
        actor=actor,
        reason=reason,
    )
    if gate is not None:  # JSON null is not NULL
        made.gate = dict(gate)
    if routing is None:
        session.delete(alias)
    else:  # `model` is what an older version of this service asks, alone
        alias.model, alias.updated_at = routing.incumbent, made.at
        alias.routing = made.routing = routing.to_json()
        alias.watched_since = made.at if routing.rollback and len(routing.targets) > 1 else None
        alias.rollback_id = made.id if action == "rollback" else None
        alias.shadow_since = made.at if routing.shadow else None
        session.add(alias)
    session.add(made)
    _tell(session, made, MOVED, 1)
    return made


def confirm_rollback(session: Session, alias: Alias, move_id: str) -> bool:
    """Tell that the restored model answers; return False where the alias, which `find` has locked, moved meanwhile."""
    if alias.rollback_id != move_id:
        return False
    alias.rollback_id = None
    _tell(session, session.get_one(AliasMove, move_id), ROLLED_BACK, 2)
    return True


def _tell(session: Session, move: AliasMove, type_: str, seq: int) -> None:
    """Add an event of a move."""
    fields = {"id": move.id, "alias": move.name, "action": move.action, "routing": move.routing, "reason": move.reason}
    event = events.record(session, subject_id=move.id, seq=seq, project_id=move.project_id, type=type_, data=fields)
    session.flush()
    events.fan_out(session, event)


def list_for_comparison(session: Session, after: float) -> Sequence[Alias]:
    """Return aliases whose targets are to be compared, the next ones that are watched from later than a time."""
    rows = select(Alias).where(Alias.watched_since > after).order_by(Alias.watched_since)
    return session.scalars(rows.limit(MAX_WATCHED)).all()


def find_rollback(session: Session, after: str) -> Alias | None:
    """Return the next alias after the roll-back `after`, in the order of their ids, whose roll-back is unconfirmed."""
    rows = select(Alias).where(Alias.rollback_id.is_not(None)).order_by(Alias.rollback_id <= after, Alias.rollback_id)
    return session.scalar(rows.limit(1))


def list_silent(session: Session) -> list[tuple[str, str]]:
    """Return some aliases, each with its project, whose shadow was sent none of the requests of the last minutes.

    The requests of the last whole minute may be on their way.
    """
    at = int(now())
    counted = (
        ShadowMinute.project_id == Alias.project_id,
        ShadowMinute.alias == Alias.name,
        ShadowMinute.minute >= at - _SILENCE - 2 * _MINUTE,
    )
    asked = func.sum(case((ShadowMinute.minute < at - 2 * _MINUTE, ShadowMinute.requests), else_=0))
    rows = select(Alias.project_id, Alias.name).join(ShadowMinute, and_(*counted))
    rows = rows.where(Alias.shadow_since < at - _SILENCE - 2 * _MINUTE).group_by(Alias.project_id, Alias.name)
    silent = rows.having(and_(func.sum(ShadowMinute.sent) == 0, asked > 0)).limit(MAX_WATCHED)
    return [(project_id, name) for project_id, name in session.execute(silent)]


def tell_silence(session: Session, project_id: str, name: str) -> bool:
    """Add the event of a shadow that was sent nothing, once for each move; return False where it has been told."""
    alias = find(session, name, project_id, lock=True)
    if alias is None or alias.shadow_since is None:
        return False
    last = last_move(session, name, project_id)
    assert last is not None
    alias.shadow_since = None
    _tell(session, last, SHADOW_SILENT, 3)
    return True


def moves_of(name: str, project_id: str) -> Select[AliasMove]:
    """Select the moves of a project's alias, and of former ones of its name."""
    return select(AliasMove).where(AliasMove.project_id == project_id, AliasMove.name == name)


def last_move(session: Session, name: str, project_id: str, *, until: float | None = None) -> AliasMove | None:
    """Return the last move of an alias, or the last one before the time `until`."""
    moves = moves_of(name, project_id)
    if until is not None:
        moves = moves.where(AliasMove.at < until)
    return session.scalar(moves.order_by(AliasMove.number.desc()).limit(1))


def creation_of(session: Session, of: AliasMove) -> AliasMove:
    """Return the move that made the alias that a move is of."""
    made = moves_of(of.name, of.project_id).where(AliasMove.number <= of.number, AliasMove.action == "create")
    return session.scalars(made.order_by(AliasMove.number.desc()).limit(1)).one()


def former_routing(session: Session, alias: Alias) -> AliasRouting | None:
    """Return the routing that an alias had before its last move; None where it has moved only when it was made."""
    moves = moves_of(alias.name, alias.project_id).order_by(AliasMove.number.desc()).limit(2)
    before = session.scalars(moves).all()[1:]
    return read_routing(before[0].routing) if before and before[0].routing is not None else None
