"""Rate limits of a project for a model: requests and tokens of interactive clients, and enqueued tokens of batches.

Null is no limit, 0 is nothing at all. The limits of requests are counted in Redis: `jobs.inference.rate_limiter`.
"""

from collections.abc import Mapping
from typing import Final

from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.usage.tables import RateLimit

#: OpenAI's name of each limit.
NAMES: Final[Mapping[str, str]] = {
    "requests_per_minute": "max_requests_per_1_minute",
    "tokens_per_minute": "max_tokens_per_1_minute",
    "requests_per_day": "max_requests_per_1_day",
    "enqueued_tokens": "batch_1_day_max_input_tokens",
}


def set_limits(session: Session, project_id: str, model: str, changes: Mapping[str, int | None]) -> RateLimit:
    """Set limits of a project for a model, by their names in NAMES; the others stay. The project is locked."""
    row = session.get(RateLimit, (project_id, model))
    if row is None:
        row = RateLimit(project_id=project_id, model=model)
        session.add(row)
    for name, value in changes.items():
        setattr(row, name, value)
    row.updated_at = now()
    session.flush()
    return row


def public_fields(limits: Mapping[str, int | None]) -> dict[str, int | None]:
    """Return limits by OpenAI's names, as the audit log holds them."""
    return {NAMES[name]: limit for name, limit in limits.items()}
