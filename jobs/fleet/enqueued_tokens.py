"""The input tokens that a project may have enqueued in batches that have not ended.

    a limit of the project for the model (`rate_limit.enqueued_tokens`)     counts the project's jobs of that model
    without one: the project's limit `max_queued_tokens`                    counts all of its jobs

The tokens are summed from the live jobs, never counted up and down: nothing has to be given back, whatever ends a job.
"""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, or_
from sqlalchemy.orm import Session

from jobs.batches.batches import queued_bytes
from jobs.batches.lines import Bad, quote
from jobs.fleet import routing
from jobs.fleet.models_file import Registry
from jobs.ledger.tables import Job
from jobs.registry.models import NAME_PREFIX
from jobs.requests.token_estimates import input_tokens
from jobs.settings import Settings
from jobs.usage.project_limits import limit_of
from jobs.usage.tables import RateLimit


@dataclass(frozen=True, slots=True)
class EnqueuedLimit:
    """The limit of a project's jobs: of those that meet the condition `which`, of all without one."""

    project_id: str
    subject: str
    tokens: int
    which: ColumnElement[bool] | None = None

    def refusal(self, session: Session, more: int, excluded: str | None = None) -> Bad | None:
        """Return the error of a batch with `more` bytes of input, beside the other live jobs; None where it fits."""
        queued = queued_bytes(session, self.project_id, excluded, self.which)
        if input_tokens(queued + more) <= self.tokens:
            return None
        used, requested = input_tokens(queued), input_tokens(more)
        message = (
            f"Enqueued token limit reached for {self.subject}. Limit: {self.tokens:,} enqueued tokens. Used: {used:,}. "
            f"Requested: {requested:,}. Please try again once some in_progress batches have been completed."
        )
        return Bad("token_limit_exceeded", message)


def limit_for(
    session: Session, config: Settings, registry: Registry, project_id: str, model: str
) -> EnqueuedLimit | None:
    """Return the limit that holds for a batch of a project which asks `model`; None where there is none."""
    aliases = routing.live_aliases(session, registry)
    target = routing.target_of(model, aliases)
    row = session.get(RateLimit, (project_id, target))
    if row is not None and row.enqueued_tokens is not None:
        tuned = Job.model.startswith(f"{NAME_PREFIX}{target}:", autoescape=True)
        which = or_(Job.model.in_(routing.names_of_model(target, aliases)), tuned)
        return EnqueuedLimit(project_id, f"{quote(target)} in this project", row.enqueued_tokens, which)
    tokens = limit_of(session, config, project_id, "max_queued_tokens")
    return EnqueuedLimit(project_id, "this project", tokens) if tokens else None
