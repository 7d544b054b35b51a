"""Feedback: what users say of answers, as a score from -1 to 1 with a comment, and what that says about models.

A thumb up is 1, a thumb down -1. The answer must exist; its feedback stays when the answer is deleted or expires.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import Query
from fastapi.responses import Response
from pydantic import BaseModel, Field
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from api.batches.routes import get_batch
from api.deps import Call, CallContext
from api.errors import clip
from api.evals.output_items import retrieve_output_item
from api.http.bodies import Body, resource
from api.http.fields import Metadata, MetadataField
from api.http.idempotency import Idempotent
from api.http.paging import After, Limit20, Order, Page, cursor_details, deletion_details, find, page
from api.inference.chat_completions import get_completion
from api.inference.stored_answers import STORED_RESPONSES, model_name
from jobs.errors import InvalidRequest, NotFound
from jobs.evals.tables import EvalRun
from jobs.registry import feedback
from jobs.registry.feedback import ModelFeedback, RatedAnswer
from jobs.registry.tables import Feedback

router = resource("Feedback", area="feedback")

Id = Annotated[str, Field(min_length=1, max_length=64)]
Score = Annotated[float, Field(ge=-1, le=1)]
User = Annotated[str, Field(min_length=1, max_length=255)]
ModelFilter = Annotated[str | None, Query(max_length=255, description="The model that answered.")]
RequestedFilter = Annotated[
    str | None, Query(max_length=255, description="The name that the request had as `model`, such as an alias.")
]


# ── what feedback is about ──


class ResponseTarget(Body):
    """A stored response."""

    type: Literal["response"]
    response_id: Id

    def find(self, call: CallContext) -> RatedAnswer:
        """Return the response. Raises NotFound."""
        with call.db.read() as session:
            row = STORED_RESPONSES.row(session, call, self.response_id)
        return RatedAnswer(self.type, row.id, None, row.model, row.requested_model)


class CompletionTarget(Body):
    """A stored chat completion."""

    type: Literal["chat.completion"]
    completion_id: Id

    def find(self, call: CallContext) -> RatedAnswer:
        """Return the chat completion. Raises NotFound."""
        with call.db.read() as session:
            row = get_completion(session, call, self.completion_id)
        return RatedAnswer(self.type, row.id, None, row.model, row.requested_model)


class LineTarget(Body):
    """A line of a batch. The batch must exist; its files, which may be long, are not searched for the line."""

    type: Literal["batch.line"]
    batch_id: Id
    custom_id: Annotated[str, Field(min_length=1, max_length=512)]

    def find(self, call: CallContext) -> RatedAnswer:
        """Return the line, with the model of its batch. Raises NotFound."""
        with call.db.read() as session:
            job = get_batch(session, call, self.batch_id)
        return RatedAnswer(self.type, job.id, self.custom_id, job.model)


class OutputItemTarget(Body):
    """An output item of a run of an eval."""

    type: Literal["eval.run.output_item"]
    run_id: Id
    output_item_id: Id

    def find(self, call: CallContext) -> RatedAnswer:
        """Return the item, with the model of its sample. Raises NotFound."""
        own = select(EvalRun).where(EvalRun.project_id == call.project_id, EvalRun.id == self.run_id)
        with call.db.read() as session:
            run = session.scalar(own)
        if run is None:
            raise NotFound(f"No run found with id '{clip(self.run_id)}'.", param="run_id")
        item = retrieve_output_item(call, run.eval_id, run.id, self.output_item_id)
        names = (_text(item.sample, "model"), _text(run.data_source, "model"))
        return RatedAnswer(self.type, run.id, item.id, *names)


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    return model_name(value) if isinstance(value, str) else None


Target = ResponseTarget | CompletionTarget | LineTarget | OutputItemTarget
_TARGETS = {
    "response": ("response_id", None),
    "chat.completion": ("completion_id", None),
    "batch.line": ("batch_id", "custom_id"),
    "eval.run.output_item": ("run_id", "output_item_id"),
}


class CreateFeedback(Body):
    target: Annotated[Target, Field(discriminator="type")]
    score: Score = Field(description="1 for a thumb up, -1 for a thumb down, or anything between.")
    comment: str | None = Field(default=None, max_length=feedback.MAX_COMMENT)
    user: User | None = Field(
        default=None, description="Your id of the person, as in `safety_identifier`. Without it the key is the rater."
    )
    metadata: MetadataField


# ── objects ──


class FeedbackObject(BaseModel):
    """The opinion of one user, or else one key, on an answer. `model` answered, `requested_model` was asked for."""

    id: str
    object: Literal["feedback"] = "feedback"
    target: Target
    score: float
    comment: str | None
    user: str | None
    model: str | None
    requested_model: str | None
    metadata: Metadata
    created_at: int
    updated_at: int
    created_by: str


class FeedbackDeleted(BaseModel):
    id: str
    object: Literal["feedback.deleted"] = "feedback.deleted"
    deleted: bool = True


class ModelSummary(BaseModel):
    """The feedback on one model. The true share lies between `low` and `high` with 95 %: Wilson's interval."""

    model: str | None
    count: int
    mean_score: float
    positive: int = Field(description="Scores above 0.")
    positive_share: float
    low: float
    high: float


class SummaryDifference(BaseModel):
    """The share of `model` that is positive, less that of the baseline; with 95 % it lies between `low` and `high`."""

    model: str
    baseline: str
    difference: float
    low: float
    high: float


class FeedbackSummary(BaseModel):
    """The feedback by model, the one with the most first, at most 100. `difference` is null without a `baseline`."""

    object: Literal["feedback.summary"] = "feedback.summary"
    data: list[ModelSummary]
    has_more: bool
    difference: SummaryDifference | None


def _show(row: Feedback) -> FeedbackObject:
    id_field, item_field = _TARGETS[row.target_type]
    target = {"type": row.target_type, id_field: row.target_id} | ({item_field: row.item_id} if item_field else {})
    return FeedbackObject.model_validate(
        {
            "target": target,
            "metadata": row.metadata_,
            "created_at": int(row.created_at),
            "updated_at": int(row.updated_at),
            **{
                name: getattr(row, name)
                for name in ("id", "score", "comment", "user", "model", "requested_model", "created_by")
            },
        }
    )


def _show_model(summary: ModelFeedback) -> ModelSummary:
    low, high = summary.interval
    return ModelSummary(
        model=summary.model,
        count=summary.count,
        mean_score=summary.mean_score,
        positive=summary.positive,
        positive_share=summary.positive_share,
        low=low,
        high=high,
    )


# ── routes ──


@router.post("/feedback", response_model=FeedbackObject)
def create_feedback(call: Call, once: Idempotent, body: CreateFeedback) -> Response:
    """Save feedback on an answer. It takes the place of what the same user, or else the same key, said before."""
    fields = body.fields()
    replayed = once.replay(fields)
    if replayed is not None:
        return replayed
    try:
        answer = body.target.find(call)
    except NotFound as error:
        raise NotFound(str(error), param=f"target.{error.param}", code=error.code) from None

    def make(session: Session) -> FeedbackObject:
        opinion = {"score": body.score, "comment": body.comment, "metadata_": body.metadata or {}}
        row, is_new = feedback.save(session, call.project_id, answer, user=body.user, actor=call.actor, **opinion)
        call.record(session, "feedback.create" if is_new else "feedback.update", row.id, {"target": row.target_id})
        return _show(row)

    return once.run(fields, make)


@router.get("/feedback")
def list_feedback(
    call: Call,
    after: After = None,
    limit: Limit20 = 20,
    order: Order = "desc",
    model: ModelFilter = None,
    requested_model: RequestedFilter = None,
    target_id: Annotated[
        str | None, Query(max_length=64, description="The response, chat completion, batch or run.")
    ] = None,
    user: Annotated[str | None, Query(max_length=255)] = None,
    min_score: Annotated[float, Query(ge=-1, le=1)] = -1,
    max_score: Annotated[float, Query(ge=-1, le=1)] = 1,
) -> Page[FeedbackObject]:
    """List the project's feedback."""
    own = _feedback_of(call)
    given = {"model": model, "requested_model": requested_model, "target_id": target_id, "user": user}
    equal = [getattr(Feedback, name) == value for name, value in given.items() if value is not None]
    chosen = own.where(*equal, Feedback.score >= min_score, Feedback.score <= max_score)
    deletions = deletion_details(call, "feedback.delete")
    with call.db.read() as session:
        rows, more = find(
            session, chosen, Feedback, after=after, limit=limit, order=order, among=own, deletions=deletions
        )
    return page(rows, more, _show)


@router.get("/feedback/summary")
def summarize_feedback(
    call: Call,
    model: ModelFilter = None,
    baseline: Annotated[str | None, Query(max_length=255, description="Another model to compare `model` with.")] = None,
    requested_model: RequestedFilter = None,
    since: Annotated[int, Query(ge=0, lt=1 << 40, description="Created at this time or later, in Unix seconds.")] = 0,
) -> FeedbackSummary:
    """Sum up the feedback by model, and compare two models."""
    if baseline is not None and model in (None, baseline):
        message = "A 'baseline' is compared with another model: give that as 'model'."
        raise InvalidRequest(message, param="baseline", code="invalid_value")
    models = [name for name in (model, baseline) if name is not None]
    with call.db.read() as session:
        rows = feedback.summarize(session, call.project_id, models=models, requested_model=requested_model, since=since)
    shown = rows[: feedback.MAX_MODELS]
    return FeedbackSummary(
        data=[_show_model(row) for row in shown],
        has_more=len(rows) > len(shown),
        difference=_compare({row.model: row for row in shown}, model, baseline),
    )


@router.get("/feedback/{feedback_id}")
def retrieve_feedback(call: Call, feedback_id: str) -> FeedbackObject:
    """Return the feedback of one user, or key, on an answer."""
    with call.db.read() as session:
        return _show(_get(session, call, feedback_id))


@router.delete("/feedback/{feedback_id}")
def delete_feedback(call: Call, feedback_id: str) -> FeedbackDeleted:
    """Delete feedback. The answer stays."""
    with call.db.write() as session:
        row = _get(session, call, feedback_id, lock=True)
        session.delete(row)
        call.record(session, "feedback.delete", row.id, cursor_details(row))
    return FeedbackDeleted(id=row.id)


def _feedback_of(call: CallContext) -> Select[Feedback]:
    return select(Feedback).where(Feedback.project_id == call.project_id)


def _get(session: Session, call: CallContext, feedback_id: str, *, lock: bool = False) -> Feedback:
    statement = _feedback_of(call).where(Feedback.id == feedback_id)
    row = session.scalar(statement.with_for_update() if lock else statement)
    if row is None:
        raise NotFound(f"No feedback found with id '{clip(feedback_id)}'.", param="feedback_id")
    return row


def _compare(
    summaries: Mapping[str | None, ModelFeedback], model: str | None, baseline: str | None
) -> SummaryDifference | None:
    """Return the difference of two models; None where one of them is not named, or has no feedback."""
    if model is None or baseline is None or not {model, baseline} <= summaries.keys():
        return None
    difference = summaries[model].difference(summaries[baseline])
    return SummaryDifference(
        model=model, baseline=baseline, difference=difference.value, low=difference.low, high=difference.high
    )
