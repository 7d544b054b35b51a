"""Compute a score from those of other graders."""

import keyword
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from jobs.evals.formulas import FUNCTIONS, MAX_LENGTH, Formula, FormulaError
from jobs.evals.graders.base import (
    FORMULA,
    MAX_SCORE,
    Grade,
    GraderError,
    GradingCase,
    GradingParts,
    MissingPart,
    ModelRequest,
    Thresholded,
)

if TYPE_CHECKING:  # the registry knows all graders that may be combined, and completes this one
    from jobs.evals.graders.base import Grader as Single

_MAX_GRADERS: Final = 20


def _check_variable(name: str) -> str:
    if not (name.isascii() and name.isidentifier()) or keyword.iskeyword(name) or name in FUNCTIONS:
        raise ValueError("The key of a grader is a name of letters, digits and '_' that no function has.")
    return name


_Variable = Annotated[str, Field(max_length=64), AfterValidator(_check_variable)]


class MultiGrader(Thresholded):
    """Compute a score by the formula `calculate_output` from the scores of `graders`, none of which is a `multi`."""

    is_openai: ClassVar[bool] = True
    combines: ClassVar[bool] = True
    scores: ClassVar[str] = f"the value of `calculate_output`, up to ±{MAX_SCORE:g}"
    limits: ClassVar[str] = f"{_MAX_GRADERS} graders, {MAX_LENGTH:,} characters of a formula"

    type: Literal["multi"]
    graders: Annotated[dict[_Variable, "Single"], Field(min_length=1, max_length=_MAX_GRADERS)]
    calculate_output: Annotated[str, Field(min_length=1, max_length=MAX_LENGTH)]

    def models(self, embedding_model: str | None) -> list[tuple[str, str]]:
        models = [asked for grader in self.graders.values() for asked in grader.models(embedding_model)]
        return list(dict.fromkeys(models))

    def templates(self) -> Iterator[str]:
        for grader in self.graders.values():
            yield from grader.templates()

    def sources(self) -> Iterator[tuple[str, str]]:
        for key, grader in self.graders.items():
            yield from ((f"graders.{key}.{path}", code) for path, code in grader.sources())

    def missing(self, deployment: GradingParts) -> MissingPart | None:
        """Return why one of the graders cannot be run, first one that never can."""
        missing = filter(None, (grader.missing(deployment) for grader in self.graders.values()))
        return min(missing, key=lambda part: part.is_temporary, default=None)

    def requests(self, case: GradingCase) -> list[ModelRequest]:
        return [asked for key, grader in self.graders.items() for asked in grader.requests(replace(case, key=key))]

    def grade(self, case: GradingCase) -> Grade:
        """Return the grade of a case: without a score where one of the graders has none."""
        grades = {key: grader.grade(replace(case, key=key)) for key, grader in self.graders.items()}
        error = next((sub.error for sub in grades.values() if sub.error is not None), None)
        scores = {name: sub.score for name, sub in grades.items() if sub.score is not None}
        if len(scores) < len(grades):
            return Grade(self.name, self.type, None, None, error, sub_grades=grades)
        try:
            score = self._formula.evaluate(scores)
            if abs(score) > MAX_SCORE:
                raise FormulaError(f"The formula's value is not between -{MAX_SCORE:g} and {MAX_SCORE:g}.")
        except FormulaError as fault:
            return Grade(self.name, self.type, None, None, GraderError(FORMULA, str(fault)), sub_grades=grades)
        return Grade(self.name, self.type, score, self.passes(score), error, sub_grades=grades)

    @model_validator(mode="after")
    def _check_formula(self) -> "MultiGrader":
        if any(grader.classes for grader in self.graders.values()):
            raise ValueError("A grader with 'labels' or 'human' stands alone: a formula has no classification.")
        Formula(self.calculate_output, self.graders)
        return self

    @cached_property
    def _formula(self) -> Formula:
        return Formula(self.calculate_output, self.graders)
