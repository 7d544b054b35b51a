"""Online evaluations: evals that grade a sampled share of the stored answers again and again, and their rounds."""

from typing import Annotated, Any, Literal

from fastapi.responses import Response
from pydantic import BaseModel, Field
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.errors import clip
from api.evals.routes import get_eval
from api.http.bodies import Body, resource
from api.http.fields import Metadata, MetadataField, unix_seconds
from api.http.idempotency import Idempotent
from api.http.paging import After, Limit20, Order, Page, cursor_details, deletion_details, find, page
from api.monitoring.schemas import ShadowAnswersSource, StoredAnswersSource
from jobs.clock import now
from jobs.errors import InvalidRequest, MissingPermission, NotFound
from jobs.evals.tables import Eval
from jobs.ids import new_id
from jobs.monitoring import online_evaluations
from jobs.monitoring.online_evaluations import MAX_ANSWERS_PER_DAY, MAX_WINDOW, MIN_WINDOW, OnlineThreshold
from jobs.monitoring.tables import OnlineEvaluation, OnlineRound
from jobs.registry.feedback import share_interval
from jobs.requests.cron import next_after
from jobs.security.tables import Project

router = resource("Online evaluations", area="monitoring")

Measure = Literal["pass_rate", "mean_score"]
_Name = Annotated[str, Field(min_length=1, max_length=255)]
_Share = Annotated[float, Field(gt=0, le=100, description="Percent of the answers, chosen by the hash of their ids.")]
_Cron = Annotated[str, Field(min_length=1, max_length=128, description="The times of rounds: `0 * * * *`.")]
_Zone = Annotated[str, Field(min_length=1, max_length=64, description="As `Europe/Zurich`.")]
_PerDay = Annotated[int, Field(ge=1, le=MAX_ANSWERS_PER_DAY, description="Answers graded in 24 hours, at most.")]


# ── requests ──


class AlertThreshold(Body):
    """There is an alert while the value of the last `window` graded answers, or some more, is below `minimum`.

    A pass rate is from 0 to 1. A mean score is that of a `criterion`.
    """

    measure: Measure = "pass_rate"
    criterion: _Name | None = Field(default=None, description="Without one, an answer passes if it passes all.")
    minimum: Annotated[float, Field(ge=-1e300, le=1e300)]
    window: int = Field(default=100, ge=MIN_WINDOW, le=MAX_WINDOW)

    def build_threshold(self, row: Eval) -> dict[str, Any]:
        """Return the threshold as it is stored. Raises InvalidRequest."""
        if self.measure == "mean_score" and self.criterion is None:
            message = "Missing required parameter: 'threshold.criterion'. A mean score is that of a criterion."
            raise InvalidRequest(message, param="threshold.criterion", code="missing_required_parameter")
        if self.measure == "pass_rate" and not 0 <= self.minimum <= 1:
            message = "Invalid 'threshold.minimum': a pass rate is from 0 to 1."
            raise InvalidRequest(message, param="threshold.minimum", code="invalid_value")
        threshold = OnlineThreshold(**self.model_dump())
        online_evaluations.check_threshold(row, threshold)
        return threshold.model_dump()


class CreateOnlineEvaluation(Body):
    """An online evaluation of the answers that are stored from now on. Without a `threshold` there are no alerts."""

    name: _Name
    eval_id: str = Field(min_length=1, max_length=64)
    source: Annotated[StoredAnswersSource | ShadowAnswersSource, Field(discriminator="type")]
    share: _Share = 10
    cron: _Cron = "0 * * * *"
    timezone: _Zone = "UTC"
    max_answers_per_day: _PerDay = 1000
    threshold: AlertThreshold | None = None
    metadata: MetadataField


class UpdateOnlineEvaluation(Body):
    """The fields to change. A threshold or metadata of null is removed. Answers of a pause are not graded."""

    name: _Name | None = None
    share: _Share | None = None
    cron: _Cron | None = None
    timezone: _Zone | None = None
    max_answers_per_day: _PerDay | None = None
    threshold: AlertThreshold | None = None
    paused: bool | None = None
    metadata: MetadataField


# ── objects ──


class ShownThreshold(BaseModel):
    measure: Measure
    criterion: str | None
    minimum: float
    window: int


class OnlineEvaluationObject(BaseModel):
    """An online evaluation. `value` is that of the last round, null while less than `window` answers are graded.

    `last_error` says why no round began at the last time; it is null when one did, or there was no answer.
    """

    id: str
    object: Literal["online_evaluation"] = "online_evaluation"
    name: str
    eval_id: str
    source: dict[str, Any]
    share: float
    cron: str
    timezone: str
    max_answers_per_day: int
    threshold: ShownThreshold | None
    status: Literal["active", "paused"]
    value: float | None
    is_alerting: bool
    next_round_at: int
    last_error: str | None
    metadata: Metadata | None
    created_at: int


class OnlineEvaluationDeleted(BaseModel):
    id: str
    object: Literal["online_evaluation.deleted"] = "online_evaluation.deleted"
    deleted: bool = True


class RoundCriterion(BaseModel):
    testing_criteria: str
    passed: int
    failed: int
    errored: int
    mean_score: float | None


class RoundObject(BaseModel):
    """A round: the run `id` of the eval, over answers of the time from `since` to `until`.

    `pass_rate` is the share of those that passed of those that passed or failed; the true one lies between `low` and
    `high` with 95 % (Wilson's interval). All are null until the run completes, and where it has not: `error` says why.
    """

    id: str
    object: Literal["online_evaluation.round"] = "online_evaluation.round"
    online_evaluation_id: str
    eval_id: str
    status: Literal["in_progress", "completed", "failed"]
    since: int
    until: int
    answers: int
    passed: int | None
    failed: int | None
    errored: int | None
    pass_rate: float | None
    low: float | None
    high: float | None
    per_testing_criteria: list[RoundCriterion] | None
    error: str | None
    created_at: int
    ended_at: int | None


# ── routes ──


@router.post("/online_evaluations", response_model=OnlineEvaluationObject)
def create_online_evaluation(call: Call, once: Idempotent, body: CreateOnlineEvaluation) -> Response:
    """Create an online evaluation, whose rounds begin at the times of the cron expression."""
    for permission in online_evaluations.PERMISSIONS:
        if permission not in call.caller.permissions:
            raise MissingPermission(permission)

    def make(session: Session) -> OnlineEvaluationObject:
        session.get_one(Project, call.project_id, with_for_update={"key_share": True})  # counts them alone
        _check_count(session, call)
        at = now()
        row = get_eval(session, call, body.eval_id)
        evaluation = OnlineEvaluation(
            id=new_id(online_evaluations.PREFIX),
            project_id=call.project_id,
            key_id=call.caller.key_id,
            name=body.name,
            eval_id=row.id,
            source=body.source.model_dump(exclude_none=True),
            share=body.share,
            cron=body.cron,
            timezone=body.timezone,
            max_answers_per_day=body.max_answers_per_day,
            marked_at=at,
            next_at=next_after(body.cron, body.timezone, at),
            is_alerting=False,
            created_at=at,
        )
        if body.threshold is not None:  # JSON null is not NULL
            evaluation.threshold = body.threshold.build_threshold(row)
        if body.metadata is not None:
            evaluation.metadata_ = body.metadata
        session.add(evaluation)
        call.record(session, "online_evaluation.create", evaluation.id)
        return _show(evaluation)

    return once.run(body.fields(), make)


@router.get("/online_evaluations")
def list_online_evaluations(
    call: Call, after: After = None, limit: Limit20 = 20, order: Order = "desc"
) -> Page[OnlineEvaluationObject]:
    """List the project's online evaluations."""
    deletions = deletion_details(call, "online_evaluation.delete")
    own = _evaluations_of(call)
    with call.db.read() as session:
        rows, more = find(session, own, OnlineEvaluation, after=after, limit=limit, order=order, deletions=deletions)
    return page(rows, more, _show)


@router.get("/online_evaluations/{online_evaluation_id}")
def retrieve_online_evaluation(call: Call, online_evaluation_id: str) -> OnlineEvaluationObject:
    """Return one online evaluation, with the value that is compared with its threshold."""
    with call.db.read() as session:
        return _show(_get(session, call, online_evaluation_id))


@router.post("/online_evaluations/{online_evaluation_id}", response_model=OnlineEvaluationObject)
def update_online_evaluation(
    call: Call, once: Idempotent, online_evaluation_id: str, body: UpdateOnlineEvaluation
) -> Response:
    """Change an online evaluation, pause it or resume it. A round that has begun goes on."""

    def make(session: Session) -> OnlineEvaluationObject:
        evaluation = _get(session, call, online_evaluation_id, lock=True)
        for name in ("name", "share", "max_answers_per_day"):
            if (value := getattr(body, name)) is not None:
                setattr(evaluation, name, value)
        if body.cron is not None or body.timezone is not None:
            cron, zone = body.cron or evaluation.cron, body.timezone or evaluation.timezone
            evaluation.next_at = next_after(cron, zone, now())
            evaluation.cron, evaluation.timezone = cron, zone
        _update_nullable(session, call, evaluation, body)
        if body.paused and evaluation.paused_at is None:
            evaluation.paused_at = now()
        elif body.paused is False and evaluation.paused_at is not None:
            online_evaluations.resume(evaluation)
        call.record(session, "online_evaluation.update", evaluation.id)
        return _show(evaluation)

    return once.run(body.fields(), make)


@router.delete("/online_evaluations/{online_evaluation_id}")
def delete_online_evaluation(call: Call, online_evaluation_id: str) -> OnlineEvaluationDeleted:
    """Delete an online evaluation with its rounds. The runs of these stay; one that goes on is cancelled."""
    with call.db.write() as session:
        evaluation = _get(session, call, online_evaluation_id, lock=True)
        call.record(session, "online_evaluation.delete", evaluation.id, cursor_details(evaluation))
        online_evaluations.remove(session, evaluation, actor=call.actor)
        return OnlineEvaluationDeleted(id=evaluation.id)


@router.get("/online_evaluations/{online_evaluation_id}/rounds")
def list_rounds(
    call: Call, online_evaluation_id: str, after: After = None, limit: Limit20 = 20, order: Order = "desc"
) -> Page[RoundObject]:
    """List the rounds of an online evaluation: how the pass rate went on."""
    with call.db.read() as session:
        evaluation = _get(session, call, online_evaluation_id)
        own = select(OnlineRound).where(OnlineRound.online_evaluation_id == evaluation.id)
        rows, more = find(session, own, OnlineRound, after=after, limit=limit, order=order)
    return page(rows, more, _show_round)


def _evaluations_of(call: CallContext) -> Select[OnlineEvaluation]:
    return select(OnlineEvaluation).where(OnlineEvaluation.project_id == call.project_id)


def _get(session: Session, call: CallContext, evaluation_id: str, *, lock: bool = False) -> OnlineEvaluation:
    query = _evaluations_of(call).where(OnlineEvaluation.id == evaluation_id)
    evaluation = session.scalar(query.with_for_update() if lock else query)
    if evaluation is None:
        message = f"No online evaluation found with id '{clip(evaluation_id)}'."
        raise NotFound(message, param="online_evaluation_id")
    return evaluation


def _check_count(session: Session, call: CallContext) -> None:
    own = _evaluations_of(call).with_only_columns(func.count())
    if (session.scalar(own) or 0) >= online_evaluations.MAX_EVALUATIONS:
        message = f"A project has at most {online_evaluations.MAX_EVALUATIONS} online evaluations. Delete some first."
        raise InvalidRequest(message, code="too_many_online_evaluations")


def _update_nullable(
    session: Session, call: CallContext, evaluation: OnlineEvaluation, body: UpdateOnlineEvaluation
) -> None:
    """Set the threshold and the metadata that a body gives, or remove those that are null."""
    if "threshold" in body.model_fields_set:
        evaluation.value = None
        if body.threshold is None:
            evaluation.threshold, evaluation.is_alerting = None, False
        else:
            evaluation.threshold = body.threshold.build_threshold(get_eval(session, call, evaluation.eval_id))
    if "metadata" in body.model_fields_set:
        evaluation.metadata_ = body.metadata


def _show(evaluation: OnlineEvaluation) -> OnlineEvaluationObject:
    threshold = evaluation.threshold
    return OnlineEvaluationObject(
        id=evaluation.id,
        name=evaluation.name,
        eval_id=evaluation.eval_id,
        source=evaluation.source,
        share=evaluation.share,
        cron=evaluation.cron,
        timezone=evaluation.timezone,
        max_answers_per_day=evaluation.max_answers_per_day,
        threshold=None if threshold is None else ShownThreshold.model_validate(threshold),
        status="active" if evaluation.paused_at is None else "paused",
        value=evaluation.value,
        is_alerting=evaluation.is_alerting,
        next_round_at=int(evaluation.next_at),
        last_error=evaluation.last_error,
        metadata=evaluation.metadata_,
        created_at=int(evaluation.created_at),
    )


def _show_round(row: OnlineRound) -> RoundObject:
    passed, graded = row.passed or 0, (row.passed or 0) + (row.failed or 0)
    low, high = share_interval(passed, graded) if graded else (None, None)
    status = "in_progress" if row.ended_at is None else "completed" if row.error is None else "failed"
    criteria = row.criteria
    return RoundObject(
        id=row.id,
        online_evaluation_id=row.online_evaluation_id,
        eval_id=row.eval_id,
        status=status,
        since=int(row.since),
        until=int(row.until),
        answers=row.answers,
        passed=row.passed,
        failed=row.failed,
        errored=row.errored,
        pass_rate=passed / graded if graded else None,
        low=low,
        high=high,
        per_testing_criteria=None if criteria is None else [RoundCriterion.model_validate(each) for each in criteria],
        error=row.error,
        created_at=int(row.created_at),
        ended_at=unix_seconds(row.ended_at),
    )
