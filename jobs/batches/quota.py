"""How many tokens a project may have waiting, estimated from bytes: no tokenizer is asked."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.batches.lines import Bad
from jobs.files.tables import File
from jobs.ledger import kinds
from jobs.ledger.states import LIVE
from jobs.ledger.tables import Job

BYTES_PER_TOKEN = 4


def queued_bytes(session: Session, project_id: str, besides: str | None = None) -> int:
    """Bytes of input that the project's live jobs still read, all or `besides` one."""
    total = session.scalar(
        select(func.sum(File.bytes))
        .join(Job, Job.input_file_id == File.id)
        .where(Job.project_id == project_id, Job.state.in_(LIVE), Job.in_progress_at.is_not(None))
        .where(Job.id != (besides or ""), Job.kind.in_(kinds.names(lambda kind: kind.counted)))
    )
    return int(total or 0)


def is_over(queued: int, more: int, limit: int) -> bool:
    """Whether `more` bytes of input are too many for a project; a limit of 0 is none."""
    return bool(limit) and (queued + more) // BYTES_PER_TOKEN > limit


def refusal(limit: int) -> Bad:
    return Bad("token_limit_exceeded", f"The project would have more than {limit} tokens queued.")
