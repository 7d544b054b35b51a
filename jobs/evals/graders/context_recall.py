"""Measure how much of a reference the contexts support."""

from typing import ClassVar, Literal

from jobs.evals.graders.base import ModelName, Template
from jobs.evals.graders.grounded import Grounded
from jobs.evals.graders.judge import SamplingParams


class ContextRecall(Grounded):
    """Measure how much of the reference the contexts support."""

    split: ClassVar[str] = "reference"
    decision: ClassVar[str] = "is supported by the 'contexts'"

    model: ModelName
    sampling_params: SamplingParams | None = None
    type: Literal["context_recall"]
    context: Template
    reference: Template
