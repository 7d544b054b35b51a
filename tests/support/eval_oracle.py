"""Runs of evals as their clients know them, and what must be true of them.

Evaluation   a run: its key, for each of its items whether the answer is right, and what its client did to it
Outcome      the run and its output items as the server shows them in the end
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from openai import OpenAI

from jobs.evals import runs
from tests.support.oracle import Told, told_once

#: The criteria of all runs. No answer of the stub is a judgement: the judge's results are errors.
SAME: Mapping[str, Any] = {
    "type": "string_check",
    "name": "same",
    "input": "{{ sample.output_text }}",
    "operation": "eq",
    "reference": "{{ item.answer }}",
}
_LIVE = ("queued", "in_progress")
_EVENTS = {"completed": runs.EVENTS["succeeded"], "canceled": runs.EVENTS["cancelled"]}


@dataclass(slots=True)
class Evaluation:
    """A run of an eval. `right` says for each item whether the model's answer is that of the item."""

    key: str
    right: Sequence[bool]
    is_judged: bool = False
    eval_id: str = ""
    id: str = ""
    cancelled: bool = False
    deleted: bool = False
    status: str = ""

    @property
    def ended(self) -> bool:
        return self.deleted or self.status not in ("", *_LIVE)

    def items(self) -> list[dict[str, Any]]:
        """Return the items as a request has them."""
        questions = [f"Say {self.key}-{n:04d}" for n in range(len(self.right))]
        return [
            {"item": {"question": question, "answer": answer_to(question) if right else "no"}}
            for question, right in zip(questions, self.right, strict=True)
        ]

    def criteria(self, model: str) -> list[dict[str, Any]]:
        judge = {
            "type": "score_model",
            "name": "judge",
            "model": model,
            "input": [{"role": "user", "content": "Grade {{ item.question }}: {{ sample.output_text }}"}],
        }
        return [dict(SAME), *([judge] if self.is_judged else [])]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run that has ended: its status, its counts, those of each criterion, and the number and status of each item."""

    status: str
    counts: Mapping[str, int]
    criteria: Sequence[Mapping[str, Any]]
    items: Sequence[tuple[int, str]]


def answer_to(question: str) -> str:
    """Return what the stub answers."""
    return f"echo {sha256(question.encode()).hexdigest()[:16]}"


def fetch(client: OpenAI, evaluation: Evaluation) -> Outcome:
    """Return the outcome of a run that has ended, as its client sees it."""
    run = client.evals.runs.retrieve(evaluation.id, eval_id=evaluation.eval_id)
    items = client.evals.runs.output_items.list(evaluation.id, eval_id=evaluation.eval_id, limit=100)
    return Outcome(
        run.status,
        run.result_counts.to_dict(),  # type: ignore[arg-type]
        [row.to_dict() for row in run.per_testing_criteria_results or ()],
        [(item.datasource_item_id, item.status) for item in items],
    )


def judge(evaluation: Evaluation, outcome: Outcome) -> Iterator[str]:
    """Yield what is wrong with a run: items graded twice, not at all or wrongly, and counts that do not add up."""
    key = evaluation.key
    if outcome.status != "completed" and not (evaluation.cancelled and outcome.status == "canceled"):
        yield f"{key} {outcome.status}"
    numbers = Counter(number for number, _ in outcome.items)
    if twice := [number for number, count in numbers.items() if count > 1]:
        yield f"{key}: the items {twice} are graded more than once"
    if outcome.status == "completed" and sorted(numbers) != list(range(len(evaluation.right))):
        yield f"{key}: {len(numbers)} of {len(evaluation.right)} items are graded"
    for number, status in outcome.items:
        if status != _expected(evaluation, number):
            yield f"{key}: item {number} is {status}, not {_expected(evaluation, number)}"
    yield from _counts(evaluation, outcome)


def _expected(evaluation: Evaluation, number: int) -> str:
    if evaluation.is_judged:
        return runs.ERRORED
    return runs.PASSED if evaluation.right[number] else runs.FAILED


def _counts(evaluation: Evaluation, outcome: Outcome) -> Iterator[str]:
    statuses = Counter(status for _, status in outcome.items)
    words = {"passed": runs.PASSED, "failed": runs.FAILED, "errored": runs.ERRORED}
    counts = {name: statuses[word] for name, word in words.items()} | {"total": len(outcome.items)}
    if outcome.counts != counts:
        yield f"{evaluation.key}: it counts {dict(outcome.counts)}, its items are {counts}"
    if outcome.status != "completed":
        return
    right, total = sum(evaluation.right), len(evaluation.right)
    expected = [("same", right, total - right, 0)] + [("judge", 0, 0, total)] * evaluation.is_judged
    rows = [(row["testing_criteria"], row["passed"], row["failed"], row["errored"]) for row in outcome.criteria]
    if rows != expected:
        yield f"{evaluation.key}: its criteria count {rows}, not {expected}"


def told(evaluation: Evaluation, hooks: Iterable[Told]) -> list[str]:
    """Return why the end of a run was not told as one event, under one webhook-id."""
    return told_once(evaluation.key, evaluation.id, evaluation.status, _EVENTS.get(evaluation.status), hooks)
