"""Send the head of the audit chain away once a day. See `jobs.ledger.anchors`."""

import asyncio
import logging
import threading
from pathlib import Path

from jobs.db.engine import Database
from jobs.ledger import anchors
from jobs.ledger.anchors import Anchor
from jobs.settings import Settings
from jobs.webhooks.sending import AttemptOutcome, post_once

log = logging.getLogger(__name__)


class Anchoring:
    """Send the head of the audit chain to where `NIGHTMILL_AUDIT_ANCHOR` says, once a day. See `jobs.ledger.anchors`.

    A receiver that hangs holds a thread, and never the leader.
    """

    def __init__(self, config: Settings, db: Database) -> None:
        self._config = config
        self._db = db
        self._posting: _Post | None = None

    def run(self) -> None:
        """Send what is due, and note what was sent. Raises DatabaseBusy."""
        if not self._config.audit_anchor:
            return
        if self._posting is not None:
            self._finish_post(self._posting)
            return
        with self._db.read() as session:
            if not anchors.is_due(session):
                return
        with self._db.write() as session:
            anchor = anchors.begin(session)
        self._db.breathe()
        if self._config.anchors_by_webhook:
            self._posting = _Post(self._config, anchor)
            self._posting.start()
        else:
            self._append(anchor)

    def _append(self, anchor: Anchor) -> None:
        try:
            anchors.append(Path(self._config.audit_anchor), anchor)
        except OSError as error:
            log.warning("audit_anchor_not_written", extra={"anchor": anchor.id, "error": error.strerror})
        else:
            self._finish(anchor)

    def _finish_post(self, post: "_Post") -> None:
        if post.is_alive():
            return
        if post.outcome.delivered:
            self._finish(post.anchor)
        else:
            log.warning("audit_anchor_not_delivered", extra={"anchor": post.anchor.id, "failure": post.outcome.error})
        self._posting = None  # what was not delivered is sent again, under its id

    def _finish(self, anchor: Anchor) -> None:
        with self._db.write() as session:
            anchors.finish(session, anchor)
        self._db.breathe()
        log.info("audit_anchored", extra={"anchor": anchor.id, "seal": anchor.seal})


class _Post(threading.Thread):
    """Post a signed anchor in a daemon thread, so that a receiver that hangs keeps no process from ending.

    `outcome` is that of an error in our own code until there is another one.
    """

    def __init__(self, config: Settings, anchor: Anchor) -> None:
        super().__init__(name="anchor", daemon=True)
        self.anchor, self.outcome = anchor, AttemptOutcome(None, "internal error", None, 0.0)
        self._config = config

    def run(self) -> None:
        config, anchor = self._config, self.anchor
        post = post_once(config, config.audit_anchor, [config.audit_anchor_secret], anchor.id, anchor.body())
        self.outcome = asyncio.run(post)
