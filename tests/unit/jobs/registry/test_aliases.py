"""The draw of an alias, and its moves: their numbers, their order, and what stood at a time."""

from collections import Counter
from random import Random
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import Conflict
from jobs.inference import request_counts
from jobs.inference.request_counts import ShadowCounts, ShadowKey
from jobs.registry import aliases
from jobs.registry.aliases import AliasRouting, Shadow, WeightedModel
from jobs.registry.tables import Alias, AliasMove
from jobs.security import keys
from jobs.webhooks.tables import Event

NAME = "support-bot"


def routed(*weights: int, **fields: Any) -> AliasRouting:
    """Return a routing whose targets `a`, `b` … have these weights."""
    return AliasRouting(tuple(map(WeightedModel, "abcdefgh", weights)), **fields)


@pytest.mark.parametrize("weights", [(100,), (80, 20), (1, 99), (50, 30, 20), (13, 12, 13, 12, 13, 12, 13, 12)])
def test_targets_are_drawn_by_their_weights(weights: tuple[int, ...]) -> None:
    random = Random(39)

    drawn = Counter(routed(*weights).model_at(random.random()) for _ in range(20_000))

    for model, weight in zip("abcdefgh", weights, strict=False):
        assert drawn[model] / 200 == pytest.approx(weight, abs=1)


@pytest.mark.parametrize("point", [0.0, 0.1999, 0.2, 1 - 2**-53])
def test_last_target_begins_at_point_zero(point: float) -> None:
    assert routed(80, 20).model_at(point) == ("b" if point < 0.2 else "a")


def test_user_keeps_the_canary_while_it_grows() -> None:
    points = [aliases.point_of("proj_1", NAME, f"user-{n}") for n in range(2000)]
    share: set[int] = set()
    for weight in (1, 5, 20, 50, 99):
        has_canary = {n for n, point in enumerate(points) if routed(100 - weight, weight).model_at(point) == "b"}
        assert share <= has_canary
        assert len(has_canary) / 20 == pytest.approx(weight, abs=4)
        share = has_canary


def test_point_depends_on_project_name_and_subject() -> None:
    parts = [("p", "n", "s"), ("q", "n", "s"), ("p", "m", "s"), ("p", "n", "t"), ("p", "ns", ""), ("pn", "s", "")]
    points = {aliases.point_of(*each) for each in parts}

    assert len(points) == 6
    assert all(0 <= point < 1 for point in points)
    assert aliases.point_of("p", "n", "\ud800") < 1  # a lone surrogate is no UTF-8


def test_routing_of_an_alias_that_an_older_version_has_changed_is_its_model() -> None:
    alias = Alias(model="a", routing=routed(80, 20).to_json())
    assert aliases.routing_of(alias) == routed(80, 20)

    alias.model = "z"

    assert aliases.routing_of(alias) == aliases.routing_of(Alias(model="z")) == aliases.single("z")


class Moves:
    """The alias of a project, and its moves at the times 10, 20 …"""

    def __init__(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        self.session, self.at = session, 0.0
        self.project = keys.ensure_project(session, "acme").id
        monkeypatch.setattr(aliases, "now", lambda: self.at)

    def move(self, action: Any, routing: AliasRouting | None, name: str = NAME) -> AliasMove:
        self.at += 10
        alias = aliases.find(self.session, name, self.project, lock=True)
        alias = alias or Alias(project_id=self.project, name=name, created_at=self.at, created_by="key:1")
        return aliases.move(self.session, alias, routing, action, actor="key:1", reason=f"at {self.at}")

    def routing_until(self, at: float) -> Any:
        last = aliases.last_move(self.session, NAME, self.project, until=at)
        return last.routing and aliases.read_routing(last.routing) if last else "none yet"


def test_alias_is_found_as_it_stood_at_each_time(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with db.write() as session:
        moves = Moves(session, monkeypatch)
        moves.move("create", routed(100))
        canary = moves.move("update", routed(80, 20, sticky=True, fallbacks=("a",)))
        moves.move("create", routed(100), "other")
        moves.move("delete", None)
        again = moves.move("create", routed(50, 50))

        stood = [moves.routing_until(at) for at in (10, 11, 21, 41, 51)]
        assert stood == ["none yet", routed(100), routed(80, 20, sticky=True, fallbacks=("a",)), None, routed(50, 50)]
        assert aliases.creation_of(session, canary).at == 10
        assert aliases.creation_of(session, again) is again
        rows = session.scalars(select(AliasMove).order_by(AliasMove.number)).all()
        assert [(row.number, row.name, row.action) for row in rows] == [
            (1, NAME, "create"), (2, NAME, "update"), (3, "other", "create"), (4, NAME, "delete"), (5, NAME, "create")
        ]  # fmt: skip
        events = session.scalars(select(Event).where(Event.type == aliases.MOVED)).all()
        assert {event.data["id"] for event in events} == {row.id for row in rows}


def test_former_routing_is_that_before_the_last_move_of_this_alias(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with db.write() as session:
        moves = Moves(session, monkeypatch)

        def former() -> AliasRouting | None:
            alias = aliases.find(session, NAME, moves.project)
            assert alias is not None
            return aliases.former_routing(session, alias)

        moves.move("create", routed(100))
        assert former() is None
        moves.move("update", routed(50, 50))
        assert former() == routed(100)
        moves.move("revert", routed(100))
        assert former() == routed(50, 50)
        moves.move("delete", None)
        moves.move("create", routed(100))
        assert former() is None


def test_project_has_a_bounded_number_of_moves_and_can_still_delete(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aliases, "MAX_MOVES", 2)
    with db.write() as session:
        moves = Moves(session, monkeypatch)
        moves.move("create", routed(100))
        moves.move("update", routed(50, 50))

        with pytest.raises(Conflict, match="at most 2 times"):
            moves.move("update", routed(100))
        moves.move("delete", None)
        assert aliases.find(session, NAME, moves.project) is None


# ── silent shadows ──


class ShadowedAlias:
    """An alias with a shadow since so many seconds, and counts of its requests."""

    def __init__(self, db: Database, seconds: float = 3600) -> None:
        self.db = db
        with db.write() as session:
            self.project = keys.ensure_project(session, "acme").id
            alias = Alias(project_id=self.project, name=NAME, created_at=now(), created_by="test")
            aliases.move(session, alias, routed(100, shadow=Shadow("b")), "create", actor="test")
            alias.shadow_since = now() - seconds

    def count(self, minutes_ago: int, **counts: int) -> None:
        key = ShadowKey(self.project, NAME, "b", int(now()) // 60 * 60 - 60 * minutes_ago)
        with self.db.write() as session:
            request_counts.write(session, {key: ShadowCounts(**counts)})

    @property
    def is_silent(self) -> bool:
        with self.db.read() as session:
            return aliases.list_silent(session) == [(self.project, NAME)]

    def tell(self) -> bool:
        with self.db.write() as session:
            return aliases.tell_silence(session, self.project, NAME)


def test_shadow_is_silent_where_no_request_was_sent(db: Database) -> None:
    shadowed = ShadowedAlias(db)
    assert not shadowed.is_silent
    shadowed.count(15, requests=9)
    assert not shadowed.is_silent  # it was long ago
    shadowed.count(0, requests=9)
    assert not shadowed.is_silent  # they may be on their way

    shadowed.count(5, requests=9, dropped=9)

    assert shadowed.is_silent
    shadowed.count(0, sent=1)
    assert not shadowed.is_silent


@pytest.mark.parametrize(("seconds", "is_silent"), [(60, False), (600, False), (1200, True)])
def test_shadow_has_minutes_since_its_move_before_it_is_silent(db: Database, seconds: int, is_silent: bool) -> None:
    shadowed = ShadowedAlias(db, seconds)
    shadowed.count(5, requests=9)

    assert shadowed.is_silent == is_silent


def test_each_move_has_a_single_event_of_silence(db: Database) -> None:
    shadowed = ShadowedAlias(db)
    shadowed.count(5, requests=9)

    assert shadowed.tell()
    assert not shadowed.tell()
    assert not shadowed.is_silent

    with db.write() as session:
        alias = aliases.find(session, NAME, shadowed.project, lock=True)
        assert alias is not None
        aliases.move(session, alias, routed(100, shadow=Shadow("c")), "update", actor="test")
        assert alias.shadow_since is not None
        aliases.move(session, alias, routed(100), "update", actor="test")
        assert alias.shadow_since is None
        events = session.execute(select(Event.type, Event.subject_id).where(Event.type == aliases.SHADOW_SILENT)).all()
        moves = session.scalars(select(AliasMove.id).order_by(AliasMove.number)).all()
    assert [event.subject_id for event in events] == [moves[0]]
    assert not shadowed.tell()
