"""Old versions of many documents go at once, with the removals that follow, and not statement by statement."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, select

from jobs.db.engine import Database
from jobs.files.tables import File
from jobs.ledger.tables import Audit
from jobs.retrieval import attachments, source_items
from jobs.retrieval.tables import VectorRemoval, VectorStoreFile
from tests.unit.jobs.retrieval.test_attachments import make_store

MANY = 450


def given(db: Database, count: int) -> list[str]:
    """Files of two stores; the last one is on its way still, in both."""
    names = [f"file-{n:04}" for n in range(count)]
    for store in (make_store(db, "vs_1"), make_store(db, "vs_2")):
        with db.write() as session:
            session.add_all(row(store.id, name, name != names[-1]) for name in names)
    with db.write() as session:
        facts = {"project_id": "p", "purpose": "assistants", "filename": "a", "bytes": 1, "created_at": 1.0}
        session.add_all(File(id=name, path=f"files/{name}", **facts) for name in names)
    return names


def row(store: str, name: str, whole: bool) -> VectorStoreFile:
    facts: dict[str, Any] = {"status": "completed" if whole else "in_progress", "chunking": {}, "created_at": 1.0}
    facts |= {"document": f"{store}-{name}.1" if whole else None, "version": f"{store}-{name}"}
    return VectorStoreFile(store_id=store, id=name, project_id="p", filename="a", job_id="j", line=0, **facts)


@contextmanager
def counted(db: Database) -> Iterator[list[str]]:
    """Count the statements that the database gets in the block."""
    asked: list[str] = []

    def note(_: object, __: object, statement: str, *___: object) -> None:
        asked.append(statement)

    with db.write() as session:
        engine = session.get_bind()
    event.listen(engine, "before_cursor_execute", note)
    yield asked
    event.remove(engine, "before_cursor_execute", note)


@pytest.mark.parametrize("count", [1, MANY])
def test_drop_removes_files_from_all_stores_with_bounded_statement_count(db: Database, count: int) -> None:
    names = given(db, count + 1)

    with counted(db) as asked, db.write() as session:
        source_items.drop(session, names[1:], actor="source:s")

    assert len(asked) < 40
    with db.read() as session:
        assert session.scalars(select(VectorStoreFile.id)).all() == [names[0]] * 2
        assert session.scalars(select(File.id).where(File.deleted_at.is_(None))).all() == [names[0]]
        told = session.execute(select(Audit.target, Audit.project_id, Audit.actor, Audit.action)).all()
        removals = session.execute(select(VectorRemoval.store_id, VectorRemoval.what, VectorRemoval.document)).all()
    assert sorted(map(tuple, told)) == [(name, "p", "source:s", "file.delete") for name in names[1:]]
    documents = [(store, f"{store}-{name}.1") for store in ("vs_1", "vs_2") for name in names[1:-1]]
    assert sorted((store, key) for store, what, key in removals if what == attachments.DOCUMENT) == documents
    assert sorted((store, what) for store, what, key in removals if key is None) == [
        ("vs_1", attachments.LEFTOVERS),
        ("vs_2", attachments.LEFTOVERS),
    ]
