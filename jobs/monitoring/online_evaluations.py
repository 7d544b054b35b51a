"""Online evaluations: a sampled share of stored answers, or of those of a shadow, graded again and again by an eval.

    due ──▶ draw: the answers since the mark that hashes of their ids choose
              └▶ start_round: submit the run and move the mark, in one transaction: no answer is graded twice
                    └─ refused (the eval was deleted, the key may not): miss, the mark stays
    run ended ──▶ end_round: count it, and compare the last rounds with the threshold ──crossed──▶ one event

The items of a run are written before its transaction; those of one that there is not are left over, and swept.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from sqlalchemy import delete, func, or_, select
from sqlalchemy.orm import Session

from jobs.batches.lines import quote
from jobs.clock import now
from jobs.errors import (
    Conflict,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    StorageFull,
    StorageUnavailable,
    TooManyLiveJobs,
)
from jobs.evals import evals, run_requests, runs
from jobs.evals.run_requests import RunRequest
from jobs.evals.tables import Eval, EvalRun
from jobs.fleet.models_file import Registry
from jobs.ids import new_id
from jobs.inference import shadow_answers
from jobs.ledger import audit, events, ledger
from jobs.ledger.progress import outcomes
from jobs.ledger.states import TERMINAL, JobState
from jobs.ledger.tables import Job
from jobs.monitoring.monitors import AnswerSource, find_answers
from jobs.monitoring.tables import OnlineEvaluation, OnlineRound
from jobs.requests.cron import next_after
from jobs.security.ended_keys import REFUSALS, find_refusal
from jobs.settings import Settings
from jobs.usage import stored_bytes
from jobs.usage.project_limits import limit_of
from jobs.webhooks.tables import Event

PREFIX: Final = "onleval_"
PERMISSIONS: Final = ("api.monitoring.write", "api.evals.write")
ALERT: Final = "online_evaluation.alert"
RESOLVED: Final = "online_evaluation.resolved"
#: Of a project.
MAX_EVALUATIONS: Final = 100
#: Rounds of an online evaluation that are kept with their runs: those of a day, where there is one each minute.
MAX_ROUNDS: Final = 2_000
#: Graded answers that are compared with a threshold: with less, a mean is chance.
MIN_WINDOW: Final = 20
MAX_WINDOW: Final = 10_000
MAX_ANSWERS_PER_DAY: Final = 10_000
#: Seconds after which no answer of a time is still to be stored: streams may last.
SETTLED: Final = 60.0
#: Why a round that is due does not begin.
Refused: Final = (
    Conflict,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    StorageFull,
    StorageUnavailable,
    TooManyLiveJobs,
)
_DAY: Final = 86_400.0
_REMOVED_AT_ONCE: Final = 20


class ShadowSource(BaseModel):
    """The answers of the shadow of an alias, beside those that the clients got."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["shadow"]
    alias: str


_parse_source: Final = TypeAdapter[AnswerSource | ShadowSource](
    Annotated[AnswerSource | ShadowSource, Field(discriminator="type")]
).validate_python


class OnlineThreshold(BaseModel):
    """The least value that raises no alert: a pass rate, or the mean score of a criterion.

    It is compared with that of the last rounds which together have `window` graded answers. Without a `criterion` an
    answer passes if it passes all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    measure: Literal["pass_rate", "mean_score"]
    criterion: str | None = None
    minimum: float
    window: int


@dataclass(frozen=True, slots=True)
class Draw:
    """The answers of the next round: `lines` has the items of the run, and none where there are none."""

    evaluation_id: str
    run_id: str
    since: float
    until: float
    next_at: float
    lines: bytes
    answers: int


# ── rounds ──


def due(session: Session, limit: int = 20) -> Sequence[str]:
    """Return online evaluations whose next round is due."""
    ready = select(OnlineEvaluation.id).where(OnlineEvaluation.paused_at.is_(None), OnlineEvaluation.next_at <= now())
    return session.scalars(ready.order_by(OnlineEvaluation.next_at).limit(limit)).all()


def draw(session: Session, evaluation_id: str) -> Draw | None:
    """Return the answers of the next round of an online evaluation; None where none is due any more.

    Raises: those of `Refused`.
    """
    evaluation = session.get(OnlineEvaluation, evaluation_id)
    if evaluation is None or evaluation.paused_at is not None or evaluation.next_at > now():
        return None
    row = session.get(Eval, evaluation.eval_id)
    if row is None:
        raise _missing_eval(evaluation)
    own = OnlineRound.online_evaluation_id == evaluation.id
    if session.scalar(select(OnlineRound.id).where(own, OnlineRound.ended_at.is_(None)).limit(1)) is not None:
        raise Conflict("The last round has not ended.", code="round_in_progress")
    graded = select(func.coalesce(func.sum(OnlineRound.answers), 0)).where(own, OnlineRound.created_at > now() - _DAY)
    room = evaluation.max_answers_per_day - int(session.scalar(graded) or 0)
    if room <= 0:
        raise Conflict("The answers of the last 24 hours are as many as there may be.", code="too_many_answers")
    since, until = evaluation.marked_at, max(evaluation.marked_at, now() - SETTLED)
    answers = _sample(_items_of(session, evaluation, row, since, until), evaluation, room)
    lines = b"".join(item + b"\n" for item in answers)
    return Draw(evaluation.id, new_id(runs.PREFIX), since, until, evaluation.next_at, lines, len(answers))


def _items_of(
    session: Session, evaluation: OnlineEvaluation, row: Eval, since: float, until: float
) -> Iterator[tuple[str, bytes]]:
    """Yield the answers of a time by their ids, each as the item of a run."""
    source = _parse_source(evaluation.source)
    if isinstance(source, ShadowSource):
        for name, line in shadow_answers.find(session, evaluation.project_id, source.alias, since, until):
            yield name, line.encode()
        return
    metadata = {**(row.data_source_config.get("metadata") or {}), **(source.metadata or {})}
    of_time = source.model_copy(update={"created_after": since, "created_before": until, "metadata": metadata})
    for name, stored in find_answers(session, evaluation.project_id, of_time):
        yield name, msgspec.json.encode({"id": name, "metadata": stored or {}})


def _sample(answers: Iterable[tuple[str, bytes]], evaluation: OnlineEvaluation, count: int) -> list[bytes]:
    """Return the share of the items that an online evaluation samples, those with the least hashes where too many."""
    hashed = ((_point(evaluation.id, name), item) for name, item in answers)
    sampled = sorted(row for row in hashed if row[0] < evaluation.share / 100)[:count]
    return [item for _, item in sampled]


def _point(seed: str, name: str) -> float:
    """Return a number from 0 to 1, always the same for an answer of an online evaluation."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:6]) / (1 << 48)


def start_round(
    session: Session, config: Settings, registry: Registry, drawn: Draw
) -> tuple[OnlineRound | None, list[str]]:
    """Submit the run over drawn answers, and move the mark; return the round, and folders that are to be deleted.

    Without answers the mark moves alone. Nothing happens where the round is not due any more.

    Raises: those of `Refused`, for which the caller records a `miss` in another transaction.
    """
    evaluation = _lock_due(session, drawn.evaluation_id, drawn.next_at)
    if evaluation is None or evaluation.marked_at != drawn.since:
        return None, []
    _advance(evaluation)
    evaluation.marked_at = drawn.until
    if not drawn.answers:
        evaluation.last_error = None
        return None, []
    for permission in PERMISSIONS:
        if evaluation.key_id and (code := find_refusal(session, evaluation.key_id, permission)):
            raise PermissionDenied(REFUSALS[code], code=code)
    project_id = evaluation.project_id
    stored_bytes.check_not_full(session, project_id, limit_of(session, config, project_id, "max_bytes"))
    ledger.check_room(session, project_id, runs.NAME, limit_of(session, config, project_id, "eval_runs"))
    row = evals.lock(session, evaluation.eval_id, project_id)
    if row is None:
        raise _missing_eval(evaluation)
    run_requests.submit(
        session,
        config,
        registry,
        row,
        _request_of(evaluation, drawn),
        run_id=drawn.run_id,
        key_id=evaluation.key_id,
        actor=_actor(evaluation),
        size=len(drawn.lines),
    )
    folders = _remove_oldest(session, evaluation)
    made = OnlineRound(
        id=drawn.run_id,
        online_evaluation_id=evaluation.id,
        project_id=project_id,
        eval_id=row.id,
        since=drawn.since,
        until=drawn.until,
        answers=drawn.answers,
        created_at=now(),
    )
    session.add(made)
    evaluation.last_error = None
    return made, folders


def miss(session: Session, evaluation_id: str, reason: str) -> None:
    """Record why a round that is due does not begin. Its answers are those of the next one."""
    evaluation = _lock_due(session, evaluation_id)
    if evaluation is not None:
        _advance(evaluation)
        evaluation.last_error = reason


def _lock_due(session: Session, evaluation_id: str, next_at: float | None = None) -> OnlineEvaluation | None:
    """Return an online evaluation that is due, locked; None where it is not, or has another next time than given."""
    evaluation = session.get(OnlineEvaluation, evaluation_id, with_for_update=True)
    if evaluation is None or evaluation.paused_at is not None or evaluation.next_at > now():
        return None
    return evaluation if next_at in (None, evaluation.next_at) else None


def _advance(evaluation: OnlineEvaluation) -> None:
    """Set the next time. Without the time zone, which the system no longer knows, the online evaluation is paused."""
    try:
        evaluation.next_at = next_after(evaluation.cron, evaluation.timezone, now())
    except InvalidRequest as error:
        evaluation.paused_at, evaluation.last_error = now(), error.message


def _request_of(evaluation: OnlineEvaluation, drawn: Draw) -> RunRequest:
    source, metadata = _parse_source(evaluation.source), {"online_evaluation_id": evaluation.id}
    if isinstance(source, ShadowSource):
        shown = {"type": "jsonl", "source": {"type": "file_content", "content": []}}
        return RunRequest(name=evaluation.name, data_source=shown, metadata=metadata)
    times = {"created_after": int(drawn.since), "created_before": int(drawn.until)}
    shown = {
        "type": "completions" if source.type == "stored_completions" else "responses",
        "source": {**source.model_dump(exclude_none=True), **times, "limit": drawn.answers},
    }
    return RunRequest(name=evaluation.name, data_source=shown, metadata=metadata, stored=source.type)


def _remove_oldest(session: Session, evaluation: OnlineEvaluation) -> list[str]:
    """Remove the oldest rounds with their runs where there are too many; return folders that are to be deleted."""
    own = select(OnlineRound.id).where(OnlineRound.online_evaluation_id == evaluation.id)
    excess = (session.scalar(select(func.count()).select_from(own.subquery())) or 0) - MAX_ROUNDS + 1
    if excess <= 0:
        return []
    oldest = own.order_by(OnlineRound.created_at, OnlineRound.id).limit(min(excess, _REMOVED_AT_ONCE))
    ids = session.scalars(oldest).all()
    session.execute(delete(OnlineRound).where(OnlineRound.id.in_(ids)))
    return evals.remove_runs(session, ids, actor=_actor(evaluation))


# ── results ──


def rounds_to_count(session: Session, limit: int = 100) -> Sequence[str]:
    """Return rounds whose run has ended, or was deleted, and that are not counted yet."""
    rows = select(OnlineRound.id).outerjoin(EvalRun, EvalRun.id == OnlineRound.id)
    rows = rows.outerjoin(Job, Job.id == EvalRun.id).where(or_(Job.id.is_(None), Job.state.in_(TERMINAL)))
    rows = rows.where(OnlineRound.ended_at.is_(None))
    return session.scalars(rows.order_by(OnlineRound.created_at).limit(limit)).all()


def end_round(session: Session, round_id: str) -> str | None:
    """Count the results of a round whose run has ended, and compare the last rounds with the threshold.

    Return the type of the event where the threshold was crossed.
    """
    evaluation_id = session.scalar(select(OnlineRound.online_evaluation_id).where(OnlineRound.id == round_id))
    evaluation = session.get(OnlineEvaluation, evaluation_id or "", with_for_update=True)
    ended = session.get(OnlineRound, round_id)
    if evaluation is None or ended is None or ended.ended_at is not None:
        return None
    run, job = session.get(EvalRun, round_id), session.get(Job, round_id)
    ended.ended_at = now()
    if run is None or job is None:
        ended.error = "The run was deleted, or its eval."
    elif job.state != JobState.SUCCEEDED:
        ended.error = (job.errors or [{"message": f"The run was {job.state}."}])[0]["message"]
    else:
        counts = outcomes(session, job)
        ended.passed, ended.failed = (counts.get(word, 0) for word in (runs.PASSED, runs.FAILED))
        ended.errored, ended.criteria = sum(counts.values()) - ended.passed - ended.failed, run.criteria or []
    session.flush()
    evaluation.value = _value(session, evaluation)
    return _compare(session, evaluation, ended)


def _value(session: Session, evaluation: OnlineEvaluation) -> float | None:
    """Return what is compared with the threshold; None without one, and as long as too few answers are graded."""
    if evaluation.threshold is None:
        return None
    threshold, count, total = OnlineThreshold.model_validate(evaluation.threshold), 0, 0.0
    own = OnlineRound.online_evaluation_id == evaluation.id, OnlineRound.passed.is_not(None)
    newest = select(OnlineRound).where(*own).order_by(OnlineRound.created_at.desc(), OnlineRound.id.desc())
    for row in session.scalars(newest.limit(MAX_ROUNDS)):
        graded, sum_ = _sum(row, threshold)
        count, total = count + graded, total + sum_
        if count >= threshold.window:
            return total / count
    return None


def _sum(row: OnlineRound, threshold: OnlineThreshold) -> tuple[int, float]:
    """Return how many answers of a round have what a threshold measures, and the sum of that."""
    passed, failed = row.passed or 0, row.failed or 0
    if threshold.criterion is None:
        return passed + failed, passed
    for counts in row.criteria or ():
        if counts["testing_criteria"] == threshold.criterion:
            if threshold.measure == "mean_score":
                return counts["scored"], counts["scored"] * (counts["mean_score"] or 0.0)
            return counts["passed"] + counts["failed"], counts["passed"]
    return 0, 0.0


def _compare(session: Session, evaluation: OnlineEvaluation, ended: OnlineRound) -> str | None:
    """Note whether the value is below the threshold, and tell of it where that has changed."""
    if evaluation.value is None or evaluation.threshold is None:
        return None
    is_below = evaluation.value < evaluation.threshold["minimum"]
    if is_below == evaluation.is_alerting:
        return None
    evaluation.is_alerting, type_ = is_below, ALERT if is_below else RESOLVED
    last = select(func.coalesce(func.max(Event.seq), 0) + 1).where(Event.subject_id == evaluation.id)
    data = {
        "id": evaluation.id,
        "name": evaluation.name,
        "eval_id": ended.eval_id,
        "round_id": ended.id,
        "value": evaluation.value,
        "threshold": evaluation.threshold,
    }
    event = events.record(
        session,
        subject_id=evaluation.id,
        seq=session.scalar(last) or 1,
        project_id=evaluation.project_id,
        type=type_,
        data=data,
    )
    session.flush()
    events.fan_out(session, event)
    audit.record(
        session, actor="dispatcher", action=type_, target=evaluation.id, project_id=evaluation.project_id, details=data
    )
    return type_


# ── changes ──


def check_threshold(row: Eval, threshold: OnlineThreshold) -> None:
    """Check that the eval has the criterion of a threshold. Raises InvalidRequest."""
    names = [definition["name"] for definition in row.testing_criteria]
    if threshold.criterion is not None and threshold.criterion not in names:
        message = f"The eval has no such criterion; it has {', '.join(names)}."
        raise InvalidRequest(message[:1000], param="threshold.criterion", code="criterion_not_found")


def resume(evaluation: OnlineEvaluation) -> None:
    """Let rounds begin again. Answers of the pause are left out. Raises InvalidRequest."""
    evaluation.next_at = next_after(evaluation.cron, evaluation.timezone, now())
    evaluation.paused_at, evaluation.marked_at = None, now()


def remove(session: Session, evaluation: OnlineEvaluation, *, actor: str) -> None:
    """Remove a locked online evaluation with its rounds, and cancel the run that has not ended. Other runs stay."""
    own = OnlineRound.online_evaluation_id == evaluation.id
    for run_id in session.scalars(select(OnlineRound.id).where(own, OnlineRound.ended_at.is_(None))).all():
        with suppress(Conflict, NotFound):  # it ends at this moment, or was deleted
            ledger.cancel(session, run_id, actor=actor)
    session.execute(delete(OnlineRound).where(own))
    session.delete(evaluation)


def _actor(evaluation: OnlineEvaluation) -> str:
    return f"online_evaluation:{evaluation.id}"


def _missing_eval(evaluation: OnlineEvaluation) -> InvalidRequest:
    message = f"No eval found with id '{quote(evaluation.eval_id)}'."
    return InvalidRequest(message, param="eval_id", code="eval_not_found")
