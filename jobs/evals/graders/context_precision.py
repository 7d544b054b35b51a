"""Measure whether useful contexts stand before the others."""

from collections.abc import Mapping
from typing import Any, Literal

from jobs.evals.graders.base import OTHER, GradingCase, GradingError, ModelName, Template, Values
from jobs.evals.graders.grounded import DATA, Grounded
from jobs.evals.graders.judge import SamplingParams, object_schema
from jobs.retrieval import metrics


class ContextPrecision(Grounded):
    """Measure whether the contexts that are useful for the reference stand before the others."""

    model: ModelName
    sampling_params: SamplingParams | None = None
    type: Literal["context_precision"]
    question: Template
    context: Template
    reference: Template

    def texts(self, case: GradingCase) -> dict[str, Any]:
        texts = super().texts(case)
        if not texts["contexts"]:
            raise GradingError(OTHER, "There are no contexts.")
        return texts

    def task(self, case: GradingCase) -> tuple[str, Values]:
        task = (
            f"{DATA} Decide for each of the 'contexts', by its number, whether it is useful for finding the "
            "'reference' as an answer to the 'question'. The result has true or false for each number."
        )
        return task, object_schema({number: {"type": "boolean"} for number in self.texts(case)["contexts"]})

    def score_result(self, result: Any, case: GradingCase) -> float:
        numbers = list(self.texts(case)["contexts"])
        if not isinstance(result, Mapping) or set(result) != set(numbers):
            raise ValueError("The result has no verdict for each context.")
        if not all(isinstance(verdict, bool) for verdict in result.values()):
            raise ValueError("A verdict is neither true nor false.")
        grades = {number: int(result[number]) for number in numbers}
        return metrics.average_precision(numbers, grades, len(numbers)) if any(grades.values()) else 0.0
