"""Let a model give a score."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from jobs.evals.graders.base import MAX_SCORE, Finite, GradingCase, Thresholded, Values
from jobs.evals.graders.judge import PromptedJudge, SamplingParams


class ScoreModel(PromptedJudge, Thresholded):
    """Let a model give a score within `range`."""

    is_openai: ClassVar[bool] = True
    scores: ClassVar[str] = "within `range`, by default 0 to 1"

    type: Literal["score_model"]
    range: Annotated[list[Finite], Field(min_length=2, max_length=2)] | None = None
    sampling_params: SamplingParams | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """Return the lowest and the highest score."""
        lowest, highest = self.range or (0.0, 1.0)
        return lowest, highest

    @property
    def threshold(self) -> float:
        lowest, highest = self.bounds
        return lowest / 2 + highest / 2 if self.pass_threshold is None else self.pass_threshold

    def task(self, _case: GradingCase) -> tuple[str, Values]:
        lowest, highest = self.bounds
        return f"Give a score from {lowest:g} to {highest:g}.", {"type": "number"}

    def score_result(self, result: Any, _case: GradingCase) -> float:
        """Return the score, moved to the nearest end of the range. NaN and larger integers are no scores."""
        if type(result) not in (int, float) or not -MAX_SCORE <= result <= MAX_SCORE:
            raise ValueError("The result is not a number.")
        lowest, highest = self.bounds
        return min(max(float(result), lowest), highest)

    @model_validator(mode="after")
    def _check_range(self) -> "ScoreModel":
        lowest, highest = self.bounds
        if lowest >= highest:
            raise ValueError("The first number of 'range' is below the second.")
        if not lowest <= self.threshold <= highest:
            raise ValueError("The 'pass_threshold' is within the 'range'.")
        return self
