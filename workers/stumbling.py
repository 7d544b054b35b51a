"""A job that can't be planned or finished is tried again, later each time, and fails in the end.

What keeps us may pass (a mount that is away, a process that is being replaced); what never passes must not go on for
as long as the job's window.
"""

from contextlib import suppress

from jobs import ledger
from jobs.errors import Fenced
from jobs.ledger import JobClaim
from workers.context import Context


class Abandoned(Exception):
    """The claim ended, or the work has to wait; `delay` and `waiting_for` say how it goes on."""

    def __init__(self, delay: float = 0.0, waiting_for: str | None = None) -> None:
        super().__init__(waiting_for)
        self.delay = delay
        self.waiting_for = waiting_for


def stumble(context: Context, claim: JobClaim, error: Exception, what: str, code: str = "internal_error") -> None:
    """Give the claim back with a delay; the last time the job fails and says what could not be done, and why."""
    told = f"{what}: {error}" if code != "internal_error" else f"{what}: an internal error, see the worker's log."
    said = {"code": code, "message": told, "line": None, "param": None}
    delay = context.config.rering_seconds * (1 + claim.job.stumbles)
    with suppress(Fenced):
        context.db.retrying(
            lambda session: ledger.stumble(session, claim, tries=context.config.finish_tries, delay=delay, error=said)
        )
