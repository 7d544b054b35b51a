"""Let a model choose the better of two answers."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from jobs.evals.graders.base import Grade, GradingCase, ModelName, ModelRequest, Template, Thresholded, Values
from jobs.evals.graders.grounded import DATA
from jobs.evals.graders.judge import Judge, SamplingParams

_MAX_CRITERIA: Final = 10_000
_SWAPPED: Final = ".swapped"  # ends the key of the request in the other order
#: The score of the answer that is shown first.
_SCORES: Final = {"first": 1.0, "tie": 0.5, "second": 0.0}
_WINNERS: Final = {1.0: "input", 0.5: "tie", 0.0: "reference"}


class Pairwise(Judge, Thresholded):
    """Let a model choose the better of the answers `input` and `reference`, which it gets in both orders.

    Judges prefer the answer that they read first or last (Zheng and others: Judging LLM-as-a-Judge with MT-Bench and
    Chatbot Arena, NeurIPS 2023, §3.4): an answer wins only if it is chosen in both orders.
    """

    scores: ClassVar[str] = "1 if `input` wins, 0 if `reference` does, 0.5 for a tie or where the orders disagree"
    limits: ClassVar[str] = f"{_MAX_CRITERIA:,} characters of `criteria`"

    type: Literal["pairwise"]
    model: ModelName
    input: Template
    reference: Template
    question: Template | None = None
    criteria: Annotated[str, Field(min_length=1, max_length=_MAX_CRITERIA)] | None = None
    sampling_params: SamplingParams | None = None

    @property
    def verdicts(self) -> list[str]:
        return list(_WINNERS.values())

    def judge_verdict(self, graded: Grade) -> str:
        return str(graded.details["winner"])

    def requests(self, case: GradingCase) -> list[ModelRequest]:
        return [asked for grader, ordered in self._orders(case) for asked in Judge.requests(grader, ordered)]

    def score(self, case: GradingCase) -> tuple[float, Values]:
        """Return the score of `input`, the winner, and what the judge answered in each order. Raises: GradingError."""
        (score, details), (swapped, swapped_details) = (
            Judge.score(grader, ordered) for grader, ordered in self._orders(case)
        )
        agreed = score if score == 1 - swapped else _SCORES["tie"]
        orders = [
            {"winner": _WINNERS[winner], "steps": answer.get("steps")}
            for winner, answer in ((score, details), (1 - swapped, swapped_details))
        ]
        return agreed, {"winner": _WINNERS[agreed], "orders": orders}

    def judge_messages(self, case: GradingCase) -> list[dict[str, Any]]:
        question = {} if self.question is None else {"question": case.render(self.question)}
        texts = {**question, "first": case.render(self.input), "second": case.render(self.reference)}
        return [{"role": "user", "content": json.dumps(texts, ensure_ascii=False)}]

    def task(self, _case: GradingCase) -> tuple[str, Values]:
        asked = "" if self.question is None else " to the 'question'"
        criteria = "" if self.criteria is None else f" The criteria: {self.criteria}"
        task = f"{DATA} Decide which answer{asked} is better, the 'first' or the 'second', or whether it is a tie."
        return task + criteria, {"type": "string", "enum": list(_SCORES)}

    def score_result(self, result: Any, _case: GradingCase) -> float:
        return _SCORES[result]

    def _orders(self, case: GradingCase) -> Iterator[tuple["Pairwise", GradingCase]]:
        """Yield the grader and the case as they are, and with the answers swapped."""
        yield self, case
        swapped = self.model_copy(update={"input": self.reference, "reference": self.input})
        yield swapped, replace(case, key=case.key + _SWAPPED)
