"""Measure how much of an answer helps to answer the question."""

from typing import ClassVar, Literal

from jobs.evals.graders.base import ModelName, Template
from jobs.evals.graders.grounded import Grounded
from jobs.evals.graders.judge import SamplingParams


class AnswerRelevance(Grounded):
    """Measure how much of the answer `input` helps to answer the question."""

    split: ClassVar[str] = "answer"
    decision: ClassVar[str] = "helps to answer the 'question'"

    model: ModelName
    sampling_params: SamplingParams | None = None
    type: Literal["answer_relevance"]
    question: Template
    input: Template
