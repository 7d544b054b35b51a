"""Let a model choose a label."""

import json
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field, model_validator

from jobs.evals.graders.base import Grade, GradingCase, Label, Values
from jobs.evals.graders.judge import PromptedJudge

_MAX_LABELS: Final = 200
_Labels = Annotated[list[Label], Field(min_length=1, max_length=_MAX_LABELS)]


class LabelModel(PromptedJudge):
    """Let a model choose one of `labels`; `passing_labels` pass."""

    is_openai: ClassVar[bool] = True
    limits: ClassVar[str] = f"{_MAX_LABELS} labels"

    type: Literal["label_model"]
    labels: _Labels
    passing_labels: _Labels

    @property
    def verdicts(self) -> list[str]:
        return self.labels

    def judge_verdict(self, graded: Grade) -> str:
        return str(graded.details["result"])

    def task(self, _case: GradingCase) -> tuple[str, Values]:
        task = f"Choose the label that fits best: {json.dumps(self.labels, ensure_ascii=False)}."
        return task, {"type": "string", "enum": self.labels}

    def score_result(self, result: Any, _case: GradingCase) -> float:
        if result not in self.labels:
            raise ValueError("The result is not one of the labels.")
        return float(result in self.passing_labels)

    @model_validator(mode="after")
    def _check_labels(self) -> "LabelModel":
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("Each of the 'labels' is given once.")
        if not set(self.passing_labels) <= set(self.labels):
            raise ValueError("The 'passing_labels' are among the 'labels'.")
        return self
