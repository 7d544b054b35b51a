"""Measure how much of an answer its contexts support."""

from typing import ClassVar, Literal

from pydantic import model_validator

from jobs.evals.graders.base import GradingCase, ModelName, Template, Values
from jobs.evals.graders.grounded import Grounded
from jobs.evals.graders.judge import SamplingParams
from jobs.retrieval import words


class Faithfulness(Grounded):
    """Measure how much of the answer `input` the contexts support.

    With a `model` the model judges statements; without one, words are compared.
    """

    split: ClassVar[str] = "answer"
    decision: ClassVar[str] = "is supported by the 'contexts'"

    type: Literal["faithfulness"]
    input: Template
    context: Template
    model: ModelName | None = None
    sampling_params: SamplingParams | None = None

    def score(self, case: GradingCase) -> tuple[float, Values]:
        """Return the judge's score, or the share of the answer's words that citations and refusals count."""
        if self.model is not None:
            return super().score(case)
        texts = self.texts(case)
        return words.support(texts["answer"], texts["contexts"].values()), {}

    @model_validator(mode="after")
    def _check_judge(self) -> "Faithfulness":
        if self.sampling_params is not None and self.model is None:
            raise ValueError("The 'sampling_params' are those of a 'model', and there is none.")
        return self
