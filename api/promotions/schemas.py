"""The bodies of requests about promotions, and the objects that clients see."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from api.evals.schemas import CreateRun
from api.http.bodies import Body, Many
from api.http.fields import MetadataField, unix_seconds
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.promotions.gates import Gate, Rule
from jobs.promotions.promotions import MAX_GATES, Promotion, outcome_of
from jobs.promotions.targets import Target

# ── requests ──


class CreateGate(CreateRun):
    """A run of the eval `eval_id` that asks the target, and the rule for what it gives.

    The items are those of a file. The run is made for the candidate, and for the incumbent where the rule compares.
    """

    eval_id: str = Field(min_length=1, max_length=64)
    criterion: Annotated[str, Field(min_length=1, max_length=255)] | None = Field(
        default=None, description="A criterion of the eval. Without one the rule is for all of them."
    )
    rule: Rule


class CreatePromotion(Body):
    """A promotion with gates, or one that is forced for a reason."""

    target: Target
    gates: Annotated[Many[CreateGate], Field(max_length=MAX_GATES)] = Field(default=[])
    force: bool = Field(default=False, description="Move the target without gates.")
    reason: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    metadata: MetadataField


# ── objects ──

PromotionStatus = Literal["in_progress", "promoted", "refused", "inconclusive", "cancelling", "cancelled"]


class PromotionError(BaseModel):
    code: str
    message: str


class PromotionObject(BaseModel):
    """A promotion. `incumbent` is what the target had when the promotion began.

    `error` says why the promotion was refused or is inconclusive. The gates have their reports when it has ended.
    """

    id: str
    object: Literal["promotion"] = "promotion"
    status: PromotionStatus
    target: Target
    incumbent: str
    gates: list[Gate]
    force: bool
    reason: str | None
    error: PromotionError | None
    created_at: int
    ended_at: int | None
    metadata: dict[str, str] | None


#: The status of a promotion without an outcome.
_STATUS: Mapping[str, PromotionStatus] = {JobState.CANCELLED: "cancelled", JobState.CANCELLING: "cancelling"}


def status_of(job: Job) -> PromotionStatus:
    return outcome_of(job) or _STATUS.get(job.state, "in_progress")


def show_promotion(job: Job) -> PromotionObject:
    payload = Promotion.model_validate(job.payload)
    errors = job.errors or []
    return PromotionObject(
        id=job.id,
        status=status_of(job),
        target=payload.target,
        incumbent=payload.incumbent,
        gates=payload.gates,
        force=payload.force,
        reason=payload.reason,
        error=PromotionError(code=errors[0]["code"], message=errors[0]["message"]) if errors else None,
        created_at=int(job.created_at),
        ended_at=unix_seconds(job.completed_at or job.failed_at or job.expired_at or job.cancelled_at),
        metadata=job.metadata_,
    )
