"""A source that is due is synced for its key, as long as the key may."""

from collections.abc import Callable

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import Database
from jobs.ledger.tables import Audit, Job
from jobs.retrieval import sources
from jobs.retrieval.tables import Source, VectorStore
from jobs.security import keys, roles
from jobs.security.tables import Account, ApiKey, Project

Rule = Callable[[Session, ApiKey], object]


def add_source(session: Session, name: str) -> ApiKey:
    """Add a project of this name whose key has a source that is due; return the key."""
    key = session.get_one(ApiKey, keys.id_of(keys.create_key(session, name)))
    facts = {"project_id": key.project_id, "chunking": {}, "created_at": 1.0}
    session.add(VectorStore(id=f"vs_{name}", name="", model="m", active_at=1.0, **facts))
    due = {"cron": "* * * * *", "timezone": "UTC", "next_at": 1.0, "status": "completed"}
    session.add(
        Source(id=f"vss_{name}", key_id=key.id, store_id=f"vs_{name}", type="url", spec={"urls": []}, **due, **facts)
    )
    session.flush()
    return key


def fire(db: Database, name: str) -> tuple[Source, Job | None]:
    with db.write() as session:
        job = sources.fire(session, f"vss_{name}")
        return session.get_one(Source, f"vss_{name}"), job


def belong(session: Session, key: ApiKey) -> None:
    """Make the key that of a person without any role, whose login has ended."""
    session.add(Account(id="user_1", email="ann@example.com", created_at=now()))
    key.owner_id, key.expires_at = "user_1", 1.0


def join(session: Session, key: ApiKey) -> None:
    belong(session, key)
    roles.assign(session, "role-project-member", "user_1", key.project_id, "operator")


def narrow(_session: Session, key: ApiKey) -> None:
    key.scopes = ["api.vector_stores.write"]


def archive(session: Session, key: ApiKey) -> None:
    session.get_one(Project, key.project_id).archived_at = 1.0


REFUSED: dict[str, tuple[Rule, str]] = {
    "revoked key": (lambda _, key: setattr(key, "revoked_at", 1.0), "key_revoked"),
    "expired key": (lambda _, key: setattr(key, "expires_at", 1.0), "key_expired"),
    "narrowed key": (lambda _, key: setattr(key, "scopes", ["api.vector_stores.read"]), "missing_scope"),
    "person without the role": (belong, "missing_scope"),
    "archived project": (archive, "project_archived"),
}


@pytest.mark.parametrize(("rule", "code"), REFUSED.values(), ids=REFUSED)
def test_due_source_of_a_refused_key_fails_with_its_code_and_others_are_synced(
    db: Database, rule: Rule, code: str
) -> None:
    with db.write() as session:
        rule(session, add_source(session, "mine"))
        add_source(session, "other")

    source, job = fire(db, "mine")
    other, other_job = fire(db, "other")

    assert (job, source.status, (source.last_error or {})["code"], source.paused_at) == (None, "failed", code, None)
    assert source.next_at is not None
    assert source.next_at > now()
    assert other_job is not None
    assert (other_job.key_id, other.status, other.last_error) == (other.key_id, "in_progress", None)
    with db.read() as session:
        rows = session.execute(select(Audit.actor, Audit.action).where(Audit.target == source.id)).all()
    assert [tuple(row) for row in rows] == [(f"source:{source.id}", "vector_store.source.miss")]


@pytest.mark.parametrize("rule", [join, narrow], ids=["person with the role", "narrow key that may"])
def test_due_source_is_synced_for_its_key(db: Database, rule: Rule) -> None:
    with db.write() as session:
        key = add_source(session, "mine")
        rule(session, key)

    source, job = fire(db, "mine")

    assert job is not None
    assert (job.key_id, source.key_id, source.status) == (key.id, key.id, "in_progress")


def test_due_source_of_an_older_version_is_synced_without_a_key(db: Database) -> None:
    with db.write() as session:
        add_source(session, "mine").revoked_at = 1.0
        session.get_one(Source, "vss_mine").key_id = None

    source, job = fire(db, "mine")

    assert job is not None
    assert (job.key_id, source.key_id, source.status) == (None, None, "in_progress")


def test_source_that_syncs_is_not_failed_by_the_end_of_its_key(db: Database) -> None:
    """The end of its job says what has become of it."""
    with db.write() as session:
        key = add_source(session, "mine")
    fire(db, "mine")
    with db.write() as session:
        session.get_one(Source, "vss_mine").next_at = 1.0
        session.get_one(ApiKey, key.id).revoked_at = 1.0

    source, job = fire(db, "mine")

    assert (job, source.status, source.last_error) == (None, "in_progress", None)
