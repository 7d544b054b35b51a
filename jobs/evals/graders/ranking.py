"""Measure a list of ranked names by the relevant names."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from jobs.evals.graders.base import OTHER, GradingCase, GradingError, Template, Thresholded, Values
from jobs.retrieval import metrics

_MAX_GRADE: Final = 1000  # of the relevance of a name
_MAX_RANK: Final = 1000


class Ranking(Thresholded):
    """Measure the first `k` of the ranked names `input` by the relevant names `reference`."""

    limits: ClassVar[str] = f"`k` up to {_MAX_RANK:,}"

    type: Literal["ranking"]
    input: Template
    reference: Template
    evaluation_metric: Literal["recall", "precision", "ndcg", "mrr", "map"]
    k: Annotated[int, Field(ge=1, le=_MAX_RANK)]

    def score(self, case: GradingCase) -> tuple[float, Values]:
        """Return the measure of a ranking. A name that occurs again does not count again."""
        ranked, relevant = case.value_of(self.input), case.value_of(self.reference)
        if not _are_names(ranked):
            raise GradingError(OTHER, "The 'input' is not a list of names.")
        grades = dict.fromkeys(relevant, 1) if _are_names(relevant) else relevant
        if not isinstance(grades, Mapping) or not all(_is_grade(value) for value in grades.values()):
            message = "The 'reference' is neither a list of names nor an object of names and their grades."
            raise GradingError(OTHER, message)
        if not any(value > 0 for value in grades.values()):
            raise GradingError(OTHER, "The 'reference' has no relevant name.")
        return metrics.MEASURES[self.evaluation_metric](list(dict.fromkeys(ranked)), grades, self.k), {}


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_grade(value: Any) -> bool:
    return type(value) is int and abs(value) <= _MAX_GRADE
