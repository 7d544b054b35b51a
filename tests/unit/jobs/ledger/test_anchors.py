"""Anchors of the audit chain: once a day, the same one again after a crash, in a file that a crash may cut."""

import json
from pathlib import Path

import pytest

from jobs.clock import now
from jobs.db.engine import Database
from jobs.ledger import anchors, audit
from jobs.ledger.anchors import EVERY_SECONDS, Anchor


@pytest.fixture
def chain(db: Database) -> Database:
    """Return a database with a sealed row."""
    grow(db)
    return db


def grow(db: Database) -> None:
    with db.write() as session:
        audit.record(session, actor="key:a", action="x", target="y")
    with db.write() as session:
        audit.seal(session)


def is_due(db: Database) -> bool:
    with db.read() as session:
        return anchors.is_due(session)


def begin(db: Database) -> Anchor:
    with db.write() as session:
        return anchors.begin(session)


def test_an_empty_chain_has_no_anchor(db: Database) -> None:
    assert not is_due(db)


def test_an_anchor_is_due_until_it_is_sent_and_a_day_later(chain: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_due(chain)
    first = begin(chain)
    grow(chain)
    assert is_due(chain)
    assert begin(chain) == first

    with chain.write() as session:
        anchors.finish(session, first)
    assert not is_due(chain)

    at = now()
    monkeypatch.setattr(anchors, "now", lambda: at + EVERY_SECONDS)
    assert is_due(chain)
    second = begin(chain)
    assert (first.seal, second.seal) == (1, 2)
    assert first.id != second.id


def test_a_line_that_a_crash_cut_spoils_no_other(chain: Database, tmp_path: Path) -> None:
    file, anchor = tmp_path / "anchors.jsonl", begin(chain)
    anchors.append(file, anchor)
    with file.open("ab") as half:
        half.write(anchor.body()[:40])

    assert anchors.read(file) == [(anchor.seal, anchor.hash)]
    anchors.append(file, anchor)

    assert anchors.read(file) == [(anchor.seal, anchor.hash)] * 2
    assert json.loads(file.read_text().splitlines()[0])["id"] == anchor.id
