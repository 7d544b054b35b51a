"""Feedback: scores from -1 to 1 that users give to answers, and what they say about models.

    save         one row for each answer and user: what a user says later takes the place of what they said before
    summarize    by model: how many, the mean score, the share that is positive
    difference   of two models: how far apart these shares are, and the interval in which that lies

Both intervals hold the true value with 95 %, for shares near 0 and 1 and for few scores too.
"""

import hashlib
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Final

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.errors import InvalidRequest
from jobs.ids import new_id
from jobs.registry.tables import Feedback
from jobs.security.tables import Project

PREFIX: Final = "fb_"
MAX_FEEDBACK: Final = 100_000  # of a project
MAX_COMMENT: Final = 4096  # characters
#: Models of a summary.
MAX_MODELS: Final = 100
_Z: Final = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class RatedAnswer:
    """An answer that feedback is about, by the columns of its row."""

    target_type: str
    target_id: str
    item_id: str | None = None
    model: str | None = None
    requested_model: str | None = None


@dataclass(frozen=True, slots=True)
class ShareDifference:
    """The share of one model less that of another, and the interval in which the true difference lies."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ModelFeedback:
    """The feedback on the answers of one model: how many scores, their mean, and how many of them are above 0."""

    model: str | None
    count: int
    mean_score: float
    positive: int

    @property
    def positive_share(self) -> float:
        return self.positive / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """Return the interval of the share that is positive."""
        return share_interval(self.positive, self.count)

    def difference(self, baseline: "ModelFeedback") -> ShareDifference:
        """Return the difference to the share of a baseline.

        The interval is Newcombe's, from those of the two shares (Statistics in Medicine 17, 1998, method 10).
        """
        share, other = self.positive_share, baseline.positive_share
        (low, high), (other_low, other_high) = self.interval, baseline.interval
        value = share - other
        below, above = math.hypot(share - low, other_high - other), math.hypot(high - share, other - other_low)
        return ShareDifference(value, value - below, value + above)


def share_interval(positive: int, count: int) -> tuple[float, float]:
    """Return the interval in which the true share of what is positive lies with 95 %.

    It is Wilson's (Journal of the American Statistical Association 22, 1927).
    """
    share, squared = positive / count, _Z**2 / count
    middle = share + squared / 2
    margin = math.sqrt(squared * (share * (1 - share) + squared / 4))
    return max(0.0, (middle - margin) / (1 + squared)), min(1.0, (middle + margin) / (1 + squared))


def save(
    session: Session, project_id: str, answer: RatedAnswer, *, user: str | None, actor: str, **opinion: Any
) -> tuple[Feedback, bool]:
    """Save what a user, or else a key, says about an answer; return the row, and whether that is new.

    The project is locked, so that requests at the same moment find each other's rows and count them.

    Raises: InvalidRequest.
    """
    session.get_one(Project, project_id, with_for_update={"key_share": True})
    rater = ["key", actor] if user is None else ["user", user]
    parts = [project_id, answer.target_type, answer.target_id, answer.item_id, *rater]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    at = now()
    row = session.scalar(select(Feedback).where(Feedback.digest == digest))
    is_new = row is None
    if row is None:
        _check_count(session, project_id)
        columns = {"project_id": project_id, "digest": digest, "user": user, "created_at": at, "created_by": actor}
        row = Feedback(id=new_id(PREFIX), **columns)
        session.add(row)
    for name, value in {**asdict(answer), **opinion, "updated_at": at}.items():
        setattr(row, name, value)
    return row, is_new


def _check_count(session: Session, project_id: str) -> None:
    own = select(func.count()).select_from(Feedback).where(Feedback.project_id == project_id)
    if (session.scalar(own) or 0) >= MAX_FEEDBACK:
        message = f"A project has feedback on at most {MAX_FEEDBACK} answers and users. Delete some first."
        raise InvalidRequest(message, code="too_much_feedback")


def summarize(
    session: Session,
    project_id: str,
    *,
    models: Collection[str] = (),
    requested_model: str | None = None,
    since: float = 0,
) -> Sequence[ModelFeedback]:
    """Return the feedback since a time by model, the one with the most first, of one model more than `MAX_MODELS`.

    `models` are the only ones where there are any, `requested_model` is the name by which they were asked for.
    """
    count, is_positive = func.count(), case((Feedback.score > 0, 1), else_=0)
    columns = Feedback.model, count, func.avg(Feedback.score), func.sum(is_positive)
    own = select(*columns).where(Feedback.project_id == project_id, Feedback.created_at >= since)
    if models:
        own = own.where(Feedback.model.in_(models))
    if requested_model is not None:
        own = own.where(Feedback.requested_model == requested_model)
    grouped = own.group_by(Feedback.model).order_by(count.desc(), Feedback.model).limit(MAX_MODELS + 1)
    return [
        ModelFeedback(model, number, float(mean), int(positive))
        for model, number, mean, positive in session.execute(grouped)
    ]
