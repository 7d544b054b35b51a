"""Sends the head of the audit chain to where `NIGHTMILL_AUDIT_ANCHOR` says, once a day. See `jobs.ledger.anchors`."""

import asyncio
import logging
import threading
from concurrent.futures import Future
from pathlib import Path

from jobs.db.engine import Database
from jobs.ledger import anchors
from jobs.ledger.anchors import Anchor
from jobs.settings import Settings
from jobs.webhooks.sending import Outcome, post_once

log = logging.getLogger(__name__)


class Anchoring:
    """The anchor that the leader is sending. A receiver that hangs holds a thread, and never the leader."""

    def __init__(self, config: Settings, db: Database) -> None:
        self._config = config
        self._db = db
        self._posting: tuple[Anchor, Future[Outcome]] | None = None

    def run(self) -> None:
        """Send what is due, and note what was sent. Raises DatabaseBusy."""
        if not self._config.audit_anchor:
            return
        if self._posting is not None:
            self._finish_post(*self._posting)
            return
        with self._db.read() as session:
            if not anchors.is_due(session):
                return
        with self._db.write() as session:
            anchor = anchors.begin(session)
        self._db.breathe()
        if self._config.anchors_by_webhook:
            self._posting = anchor, _post(self._config, anchor)
        else:
            self._append(anchor)

    def _append(self, anchor: Anchor) -> None:
        try:
            anchors.append(Path(self._config.audit_anchor), anchor)
        except OSError as error:
            log.warning("audit_anchor_not_written", extra={"anchor": anchor.id, "error": error.strerror})
        else:
            self._sent(anchor)

    def _finish_post(self, anchor: Anchor, posting: "Future[Outcome]") -> None:
        if not posting.done():
            return
        outcome = posting.result()
        if outcome.delivered:
            self._sent(anchor)
        else:
            log.warning("audit_anchor_not_delivered", extra={"anchor": anchor.id, "failure": outcome.error})
        self._posting = None  # what was not delivered is sent again, under its id

    def _sent(self, anchor: Anchor) -> None:
        with self._db.write() as session:
            anchors.finish(session, anchor)
        self._db.breathe()
        log.info("audit_anchored", extra={"anchor": anchor.id, "seal": anchor.seal})


def _post(config: Settings, anchor: Anchor) -> "Future[Outcome]":
    """Post a signed anchor in a daemon thread, so that it holds up no process's exit."""
    future: Future[Outcome] = Future()
    given = config.audit_anchor, [config.audit_anchor_secret], anchor.id, anchor.body()

    def work() -> None:
        try:
            future.set_result(asyncio.run(post_once(config, *given)))
        except Exception as error:  # a fault of ours counts as a failed attempt
            log.exception("audit_anchor_broken")
            future.set_result(Outcome(None, type(error).__name__, None, 0.0))

    threading.Thread(target=work, name="anchor", daemon=True).start()
    return future
