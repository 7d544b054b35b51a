"""A job that can't be planned or finished is tried again, later each time, and fails in the end.

What keeps us may pass (a mount that is away, a process that is being replaced); what never passes must not go on for
as long as the job's window.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from jobs.errors import DatabaseBusy, Fenced, TookTooLong
from jobs.ledger import ledger
from jobs.ledger.ledger import JobClaim
from jobs.ledger.payloads import INGESTION
from jobs.ledger.states import JobState
from jobs.retrieval import ingestions
from workers.runtime.context import Context

AWAY_SECONDS: Final = 5.0  # until a database that could not be read is read again


class Abandoned(Exception):
    """The claim ended, or the work has to wait; `delay` and `waiting_for` say how it goes on."""

    def __init__(self, delay: float = 0.0, waiting_for: str | None = None) -> None:
        super().__init__(waiting_for)
        self.delay = delay
        self.waiting_for = waiting_for


def is_away(error: Exception) -> bool:
    """Whether the database could not be asked, which is not the job's fault; a question that takes too long is."""
    return isinstance(error, DatabaseBusy) and not isinstance(error, TookTooLong)


def stumble(context: Context, claim: JobClaim, error: Exception, what: str, code: str = "internal_error") -> None:
    """Give the claim back with a delay; the last time the job fails and says what could not be done, and why."""
    told = f"{what}: {error}" if code != "internal_error" else f"{what}: an internal error, see the worker's log."
    said = {"code": code, "message": told, "line": None, "param": None}
    delay = context.config.rering_seconds * (1 + claim.job.stumbles)
    with suppress(Fenced):
        if claim.job.stumbles + 1 >= context.config.finish_tries:
            stop_files(context, claim, JobState.FAILED, [said])
        context.db.retrying(
            lambda session: ledger.stumble(session, claim, tries=context.config.finish_tries, delay=delay, error=said)
        )


def stop_files(context: Context, claim: JobClaim, end: JobState, errors: Sequence[Mapping[str, Any]] = ()) -> None:
    """Before an ingestion comes to this `end`: the files it will not make, so many a transaction. Raises Fenced."""
    stop = partial(ingestions.stop, claim=claim, end=end, errors=errors)
    while claim.job.kind == INGESTION and context.db.retrying(stop):
        context.db.breathe(context.stop)
