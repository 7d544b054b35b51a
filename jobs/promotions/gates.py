"""Gates of promotions: a rule for the runs of an eval, and the report of what they gave.

minimum                     reached whatever errored samples are worth ─▶ passed, missed whatever they are worth
                            ─▶ failed; else, and for fewer than `MIN_ITEMS` items ─▶ inconclusive
not_worse_than_incumbent    `jobs.evals.regression`: not worse ─▶ passed, worse ─▶ failed, else inconclusive
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from jobs.evals import runs
from jobs.evals.comparison import MIN_ITEMS, OVERALL
from jobs.evals.comparison_process import ComparedRuns
from jobs.evals.graders.base import MAX_SCORE
from jobs.evals.regression import Outcome, decide_rows
from jobs.evals.run_requests import EvalRunRequest
from jobs.evals.runs import Evaluation

_MARGIN: Final = 5.0
GateOutcome = Literal["passed", "failed", "inconclusive"]
_OUTCOMES: Final[Mapping[Outcome, GateOutcome]] = {
    "not worse": "passed", "worse": "failed", "inconclusive": "inconclusive",
}  # fmt: skip


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Minimum(_Stored):
    """The mean score of the candidate is at least `score`; by "all criteria" that is the share that passes."""

    type: Literal["minimum"]
    score: Annotated[float, Field(ge=-MAX_SCORE, le=MAX_SCORE)]


class NotWorse(_Stored):
    """The candidate loses at most `margin` points to the incumbent: paired by items, with 95 %.

    A point is a hundredth of the range of a criterion's scores.
    """

    type: Literal["not_worse_than_incumbent"]
    margin: Annotated[float, Field(ge=0, le=100)] = _MARGIN

    @field_validator("margin", mode="before")
    @classmethod
    def _take_default(cls, margin: Any) -> Any:
        """Take null for the default, as all requests do."""
        return _MARGIN if margin is None else margin


Rule = Annotated[Minimum | NotWorse, Field(discriminator="type")]


class GateRequest(_Stored):
    """A gate as it is asked for: the run that asks the target, and the rule for the criterion, or for all of them."""

    run: EvalRunRequest
    criterion: str | None = None
    rule: Rule


class CriterionReport(_Stored):
    """A gate by one criterion. `low` and `high` bound `difference`, and with the incumbent are null for a minimum.

    `further_items` estimates how many more items would decide.
    """

    criterion: str
    outcome: GateOutcome
    items: int
    candidate: float | None
    incumbent: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    further_items: int | None = None


class GateReport(_Stored):
    """Report what a gate has found. `reasons` say why it has its outcome."""

    outcome: GateOutcome
    reasons: list[str]
    criteria: list[CriterionReport] = []


class Gate(_Stored):
    """A gate with its runs. A minimum needs no run of the incumbent."""

    eval_id: str
    criterion: str | None
    rule: Rule
    candidate_run_id: str
    incumbent_run_id: str | None = None
    report: GateReport | None = None


def inconclusive(reason: str) -> GateReport:
    """Return the report of a gate whose runs cannot be judged."""
    return GateReport(outcome="inconclusive", reasons=[reason])


@dataclass(frozen=True, slots=True)
class CriterionScores:
    """The scores of a run by one criterion: their mean, None without any, and the number of samples and items.

    `scored` samples of `samples` have a score between `low` and `high`; the others are errored.
    """

    mean: float | None
    scored: int
    samples: int
    items: int
    low: float
    high: float

    def mean_with(self, score: float) -> float:
        """Return the mean score, were `score` that of each errored sample."""
        if self.mean is None or self.scored == self.samples:
            return score if self.mean is None else self.mean
        return (self.mean * self.scored + score * (self.samples - self.scored)) / self.samples


def scores_of(
    run: Evaluation, criterion: str | None, counts: Mapping[str, int], results: Sequence[Mapping[str, Any]]
) -> CriterionScores:
    """Return the scores of an ended run by a criterion, or by whether all criteria are passed.

    `counts` are its samples by status, `results` those by criterion.
    """
    definition = next((row for row in run.criteria if row.get("name") == criterion), {})
    low, high = definition.get("range") or (0.0, 1.0)
    per_item = run.sampled.n if run.sampled else 1
    if criterion is None:
        passed, samples = counts.get(runs.PASSED, 0), sum(counts.values())
        scored = passed + counts.get(runs.FAILED, 0)
        mean = passed / scored if scored else None
    else:
        row = next(row for row in results if row["testing_criteria"] == criterion)
        mean, scored, samples = row["mean_score"], row["scored"], row["passed"] + row["failed"] + row["errored"]
    return CriterionScores(mean, scored, samples, scored // per_item, low, high)


def judge_minimum(rule: Minimum, criterion: str | None, scores: CriterionScores) -> GateReport:
    """Return the report of a minimum."""
    name, outcome = criterion or OVERALL, _reaches(rule.score, scores)
    reason = {
        "passed": f"the mean score of {scores.items} items is at least {rule.score:g}",
        "failed": f"the mean score of {scores.items} items is less than {rule.score:g}",
        "inconclusive": f"{scores.items} items have a score, at least {MIN_ITEMS} are needed"
        if scores.items < MIN_ITEMS
        else f"{scores.samples - scores.scored} errored samples decide whether the mean score is {rule.score:g}",
    }[outcome]
    row = CriterionReport(criterion=name, outcome=outcome, items=scores.items, candidate=scores.mean)
    return GateReport(outcome=outcome, reasons=[f"{name}: {reason}"], criteria=[row])


def _reaches(minimum: float, scores: CriterionScores) -> GateOutcome:
    if scores.items < MIN_ITEMS:
        return "inconclusive"
    if scores.mean_with(scores.low) >= minimum:
        return "passed"
    return "failed" if scores.mean_with(scores.high) < minimum else "inconclusive"


def judge_comparison(
    rule: NotWorse, criterion: str | None, compared: ComparedRuns, criteria: Sequence[Mapping[str, Any]]
) -> GateReport:
    """Return the report of a comparison of the incumbent's run with the candidate's, by the `criteria` of the eval."""
    names = [criterion] if criterion else [OVERALL, *(str(row["name"]) for row in criteria)]
    rows = [row for row in compared.rows if row.criterion in names]
    decision = decide_rows(rows, names, rule.margin, criteria)
    reports = [
        CriterionReport(
            criterion=test.row.criterion,
            outcome=_OUTCOMES[test.outcome],
            items=test.row.items,
            candidate=test.row.second,
            incumbent=test.row.first,
            difference=test.row.difference,
            low=test.row.low,
            high=test.row.high,
            further_items=test.further_items,
        )
        for test in decision.tests
    ]
    return GateReport(outcome=_OUTCOMES[decision.outcome], reasons=decision.reasons, criteria=reports)
