"""The leader sends the head of the audit chain: to a file or a receiver, again after a failure, once a day."""

import json
from pathlib import Path

import pytest

from jobs.db.engine import Database
from jobs.ledger import anchors, audit
from jobs.settings import Settings
from jobs.webhooks.sending import new_secret
from tests.support.receiver import Receiver
from workers.dispatcher.anchoring import Anchoring


@pytest.fixture
def chain(sqlite: Database) -> Database:
    with sqlite.write() as session:
        audit.record(session, actor="key:a", action="x", target="y")
    with sqlite.write() as session:
        audit.seal(session)
    return sqlite


def settings(db: Database, **given: object) -> Settings:
    return Settings(database_url=db.url, **given)  # type: ignore[arg-type]


def ended(anchoring: Anchoring) -> None:
    """Wait for the post in flight, and note its outcome."""
    assert anchoring._posting is not None
    anchoring._posting.join(30)
    anchoring.run()


def test_nothing_is_sent_without_the_setting(chain: Database) -> None:
    Anchoring(settings(chain), chain).run()

    with chain.read() as session:
        assert anchors.is_due(session)


def test_anchor_file_gets_single_line_per_day(chain: Database, tmp_path: Path) -> None:
    file = tmp_path / "anchors.jsonl"
    anchoring = Anchoring(settings(chain, audit_anchor=str(file)), chain)

    anchoring.run()
    anchoring.run()

    with chain.read() as session:
        assert anchors.read(file) == [audit.head_of(session)]


def test_failed_anchor_write_is_retried(chain: Database, tmp_path: Path) -> None:
    file = tmp_path / "away" / "anchors.jsonl"
    anchoring = Anchoring(settings(chain, audit_anchor=str(file)), chain)
    anchoring.run()

    file.parent.mkdir()
    anchoring.run()

    assert len(anchors.read(file)) == 1


def test_signed_anchor_is_resent_until_receiver_accepts_it(chain: Database) -> None:
    secret = new_secret()
    with Receiver() as receiver:

        def run(path: str) -> None:
            """As a leader that has begun anew does."""
            given = {"audit_anchor": receiver.url(path), "audit_anchor_secret": secret, "webhook_allow_private": True}
            anchoring = Anchoring(settings(chain, **given), chain)
            anchoring.run()
            ended(anchoring)

        run("500")
        run("ok")
        requests = receiver.requests

    assert len({request.headers["webhook-id"] for request in requests}) == 1
    told = json.loads(json.dumps(requests[-1].verify(secret)))
    with chain.read() as session:
        assert (told["type"], (told["data"]["seal"], told["data"]["hash"])) == ("audit.anchor", audit.head_of(session))
        assert not anchors.is_due(session)


def test_an_anchor_does_not_reach_inside(chain: Database) -> None:
    with Receiver() as receiver:
        given = {"audit_anchor": receiver.url("ok"), "audit_anchor_secret": new_secret()}
        anchoring = Anchoring(settings(chain, **given), chain)
        anchoring.run()
        ended(anchoring)

        assert receiver.connections == 0
    with chain.read() as session:
        assert anchors.is_due(session)


@pytest.mark.parametrize("secret", ["", "whsec_", "sesame", "whsec_!!!!"])
def test_an_anchor_by_webhook_needs_a_secret(secret: str) -> None:
    with pytest.raises(ValueError, match="NIGHTMILL_AUDIT_ANCHOR_SECRET"):
        Settings(audit_anchor="https://example.com/", audit_anchor_secret=secret)
