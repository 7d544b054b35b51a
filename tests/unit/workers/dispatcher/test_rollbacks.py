"""Roll-backs by themselves: which targets are worse, what is compared, and what the move says."""

import threading
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import select

from jobs.clock import now
from jobs.db.engine import Database
from jobs.fleet.models_file import Registry
from jobs.inference import request_counts
from jobs.inference.request_counts import SECONDS, Distribution, ModelRequests, RequestKey, bucket_of
from jobs.ledger.tables import Audit
from jobs.registry import aliases
from jobs.registry.aliases import AliasRouting, WeightedModel
from jobs.registry.tables import Alias, AliasMove
from jobs.requests.endpoints import CHAT
from jobs.security import keys
from jobs.settings import Settings
from jobs.webhooks.tables import Event
from tests.support import sample_jobs
from tests.support.system import eventually
from workers.dispatcher import rollbacks
from workers.dispatcher.rollbacks import Rollbacks, compare

NAME, OLD, NEW = "support-bot", "tone-1", "tone-2"


def requests(count: int, seconds: float, errors: int = 0, slow: int = 0) -> ModelRequests:
    """Return answered requests that took so long, some of them ten times as long, and failed ones."""
    duration = Distribution(SECONDS)
    for value in [seconds] * (count - slow) + [10 * seconds] * slow:
        index = int(bucket_of("duration", value))
        duration.buckets[index] = duration.buckets.get(index, 0) + 1
        duration.count, duration.total = duration.count + 1, duration.total + value
    return ModelRequests({"duration": duration}, {}, {"engine_error": errors} if errors else {})


@pytest.mark.parametrize(
    ("incumbent", "side", "reason"),
    [
        (requests(100, 0.3), requests(100, 0.3), None),
        (requests(100, 0.3), requests(94, 0.3, errors=6), "errors"),
        (requests(100, 0.3), requests(95, 0.3, errors=5), None),  # not above 5 points
        (requests(90, 0.3, errors=10), requests(86, 0.3, errors=14), None),
        (requests(100, 0.3), requests(40, 0.3, errors=9), None),  # too few
        (requests(49, 0.3), requests(100, 0.3, errors=100), None),
        (requests(100, 0.3), requests(0, 0.3, errors=50), "errors"),
        (requests(100, 0.3), requests(100, 0.9), "p95"),
        (requests(100, 0.24), requests(100, 0.26), None),  # neighbours on both sides of a bound
        (requests(100, 0.3), requests(100, 0.3, slow=20), "p95"),
        (requests(100, 0.3), requests(100, 0.3, slow=2), None),
        (requests(100, 0.9), requests(100, 0.3), None),
    ],
)
def test_target_is_worse_by_errors_or_by_its_times(
    incumbent: ModelRequests, side: ModelRequests, reason: str | None
) -> None:
    told = compare(incumbent, side)

    assert told is None if reason is None else told is not None and reason in told


class Deployment:
    """A project with an alias of two models, and the roll-backs of a leader without workers."""

    def __init__(self, db: Database, folder: Path, **fields: Any) -> None:
        self.db = db
        self.rollbacks = Rollbacks(Settings(data_dir=folder, database_url=db.url), db, lambda: None)
        self.routing = AliasRouting((WeightedModel(OLD, 80), WeightedModel(NEW, 20)), fallbacks=(OLD,), **fields)
        with db.write() as session:
            self.project = keys.ensure_project(session, "acme").id
            alias = Alias(project_id=self.project, name=NAME, created_at=now(), created_by="test")
            aliases.move(session, alias, self.routing, "create", actor="test")
            alias.watched_since = now() - 3600

    def count(self, model: str, answers: int, errors: int, minutes_ago: int = 1, project: str | None = None) -> None:
        """Count answers of half a second, and errors, in a minute of the past."""
        minute = int(now()) // 60 * 60 - 60 * minutes_ago
        key = RequestKey(project or self.project, minute, model, "duration", bucket_of("duration", 0.5))
        failed = key._replace(measure="errors", bucket="engine_error")
        with self.db.write() as session:
            request_counts.write(session, {key: (answers, answers * 0.5), failed: (errors, errors)})

    def routing_now(self) -> AliasRouting:
        with self.db.read() as session:
            return aliases.routing_of(session.get_one(Alias, (self.project, NAME)))

    def new_leader(self) -> Rollbacks:
        """Return the roll-backs of another leader, which knows nothing of the probes of the former one."""
        return Rollbacks(self.rollbacks._config, self.db, lambda: cast(Registry, object()))


def fail(deployment: Deployment) -> None:
    """Let the new model fail."""
    deployment.count(OLD, 100, 0)
    deployment.count(NEW, 50, 50)


def told(deployment: Deployment) -> list[tuple[str, list[str]]]:
    """Return the moves of the alias, each with its events."""
    with deployment.db.read() as session:
        moves = session.scalars(select(AliasMove).order_by(AliasMove.number)).all()
        events = session.scalars(select(Event).order_by(Event.seq)).all()
        return [(move.action, [event.type for event in events if event.subject_id == move.id]) for move in moves]


def is_told(leaders: list[Rollbacks], deployment: Deployment) -> bool:
    """Let each leader take a step, and return whether a roll-back is complete."""
    for leader in leaders:
        leader.run()
    return aliases.ROLLED_BACK in told(deployment)[-1][1]


def answer_probes(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let each probe be answered at once; return the event of the first answer."""
    answered = threading.Event()

    async def ask(_: object) -> bool:
        answered.set()
        return True

    monkeypatch.setattr(rollbacks._Probe, "_ask", ask)
    monkeypatch.setattr(rollbacks, "_find_route", lambda *_: (CHAT, None))
    monkeypatch.setattr(rollbacks, "_SETTLED", 0.0)
    return answered


@pytest.fixture
def deployment(db: Database, tmp_path: Path) -> Deployment:
    return Deployment(db, tmp_path)


def test_alias_stands_for_its_incumbent_once_a_target_fails(deployment: Deployment) -> None:
    deployment.count(OLD, 100, 1)
    deployment.count(NEW, 50, 10)

    for _ in range(3):
        deployment.rollbacks.run()

    assert deployment.routing_now() == AliasRouting((WeightedModel(OLD, 100),), fallbacks=(OLD,))
    with deployment.db.read() as session:
        moves = session.scalars(select(AliasMove).order_by(AliasMove.number)).all()
        audited = session.scalars(select(Audit).where(Audit.action == "alias.rollback")).all()
        events = session.scalars(select(Event.type).order_by(Event.seq)).all()
        alias = session.get_one(Alias, (deployment.project, NAME))
        assert (alias.watched_since, alias.rollback_id) == (None, moves[-1].id)
    assert [(move.action, move.actor) for move in moves] == [("create", "test"), ("rollback", "dispatcher")]
    assert moves[-1].reason == f"{NEW} has 16.7 % errors, above the 1.0 % of {OLD}"
    assert moves[-1].gate is not None
    assert {model: numbers["errors"] for model, numbers in moves[-1].gate.items()} == {OLD: 1, NEW: 10}
    assert [row.target for row in audited] == [moves[-1].id]
    assert aliases.ROLLED_BACK not in events  # no worker has answered


@pytest.mark.parametrize("minutes_ago", [15, 0])
def test_requests_of_before_the_last_move_or_long_ago_are_not_compared(
    deployment: Deployment, minutes_ago: int
) -> None:
    if not minutes_ago:
        with deployment.db.write() as session:
            session.get_one(Alias, (deployment.project, NAME)).watched_since = now()
    deployment.count(OLD, 100, 0, minutes_ago)
    deployment.count(NEW, 50, 50, minutes_ago)

    deployment.rollbacks.run()

    assert deployment.routing_now() == deployment.routing


def test_requests_of_another_project_are_not_compared(deployment: Deployment) -> None:
    deployment.count(OLD, 100, 0)
    deployment.count(NEW, 50, 50, project="proj_other")

    deployment.rollbacks.run()

    assert deployment.routing_now() == deployment.routing


def test_alias_without_rollback_is_not_watched(db: Database, tmp_path: Path) -> None:
    deployment = Deployment(db, tmp_path)
    with db.write() as session:
        alias = aliases.find(session, NAME, deployment.project, lock=True)
        assert alias is not None
        plain = AliasRouting(deployment.routing.targets, rollback=False)
        aliases.move(session, alias, plain, "update", actor="test")
        assert alias.watched_since is None
    deployment.count(OLD, 100, 0)
    deployment.count(NEW, 50, 50)

    deployment.rollbacks.run()

    assert deployment.routing_now() == plain


def test_more_aliases_than_a_round_compares_have_their_turn(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aliases, "MAX_WATCHED", 1)
    deployment = Deployment(db, tmp_path)
    with db.write() as session:
        other = Alias(project_id=deployment.project, name="first", created_at=now(), created_by="test")
        aliases.move(
            session, other, AliasRouting((WeightedModel("a", 50), WeightedModel("b", 50))), "create", actor="test"
        )
        other.watched_since = 1.0
    deployment.count(OLD, 100, 0)
    deployment.count(NEW, 50, 50)

    for _ in range(2):
        deployment.rollbacks.run()

    assert len(deployment.routing_now().targets) == 1


def test_rollback_is_not_confirmed_after_another_move(deployment: Deployment) -> None:
    deployment.count(OLD, 100, 0)
    deployment.count(NEW, 50, 50)
    deployment.rollbacks.run()
    with deployment.db.write() as session:
        alias = aliases.find(session, NAME, deployment.project, lock=True)
        assert alias is not None
        move_id = alias.rollback_id
        assert move_id is not None
        aliases.move(session, alias, deployment.routing, "update", actor="test")

        assert not aliases.confirm_rollback(session, alias, move_id)
        assert aliases.ROLLED_BACK not in session.scalars(select(Event.type)).all()


# ── killed ──


def test_leader_that_dies_before_its_commit_has_moved_nothing(deployment: Deployment) -> None:
    fail(deployment)
    with sample_jobs.rolled_back(deployment.db) as session:
        assert rollbacks.roll_back(session, deployment.project, NAME)
    assert (deployment.routing_now(), told(deployment)) == (deployment.routing, [("create", [aliases.MOVED])])

    deployment.rollbacks.run()

    assert told(deployment) == [("create", [aliases.MOVED]), ("rollback", [aliases.MOVED])]


def test_leader_that_dies_after_the_move_leaves_the_probe_to_the_next_leader(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(deployment)
    deployment.rollbacks.run()
    answered, dead = answer_probes(monkeypatch), deployment.new_leader()
    dead.run()
    eventually(answered.is_set, 30, "the probe of the leader that dies is answered")
    assert told(deployment)[-1] == ("rollback", [aliases.MOVED])

    leader = deployment.new_leader()
    eventually(lambda: is_told([leader], deployment), 30, "the roll-back is complete")

    assert told(deployment)[-1] == ("rollback", [aliases.MOVED, aliases.ROLLED_BACK])


def test_probe_that_ends_after_the_event_of_another_leader_adds_none(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(deployment)
    deployment.rollbacks.run()
    answer_probes(monkeypatch)
    leaders = [deployment.new_leader() for _ in range(2)]

    for leader in leaders:
        leader.run()
    eventually(lambda: is_told(leaders, deployment), 30, "the roll-back is complete")
    for leader in leaders:
        leader.run()

    assert told(deployment)[-1] == ("rollback", [aliases.MOVED, aliases.ROLLED_BACK])


def test_two_leaders_at_the_same_moment_roll_back_once(deployment: Deployment) -> None:
    fail(deployment)
    leaders = [deployment.new_leader() for _ in range(2)]

    sample_jobs.at_once(2, lambda number: leaders[number].run())

    assert [action for action, _ in told(deployment)] == ["create", "rollback"]
