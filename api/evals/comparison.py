"""Compare two runs of evals over the items that both have: by the statistics of `nightmill evals compare`.

A child process computes; this process passes it the stored lines.
"""

from dataclasses import asdict
from typing import Annotated, Final, Literal

from fastapi import Query
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.errors import clip
from api.evals.output_items import lines_of
from api.evals.runs import get_run, runs_of
from api.http.bodies import resource
from jobs.errors import Conflict, InvalidRequest, NotFound
from jobs.evals import comparison_process
from jobs.evals.comparison import MIN_ITEMS, PairedComparison, Verdict
from jobs.evals.comparison_process import ComparedRuns
from jobs.evals.tables import EvalRun
from jobs.ledger.progress import outcomes
from jobs.ledger.states import TERMINAL
from jobs.ledger.tables import Job
from jobs.platform.children import ChildFailed

router = resource("Evals", area="evals")

#: Items of a run, times its criteria.
MAX_SCORES: Final = 100_000

Baseline = Annotated[str, Query(min_length=1, max_length=64, description="The run to compare with.")]


class CriterionComparison(BaseModel):
    """Two runs by one criterion, over the items that both could grade.

    `low` and `high` bound the difference of the means with 95 %. `better` and `worse` count the items that changed.
    """

    criterion: str
    items: int
    samples: int = Field(description="Pairs of samples: an item has several where its run asked for `n`.")
    baseline: float
    run: float
    difference: float
    low: float
    high: float
    better: int
    worse: int
    p_value: float = Field(
        description="How likely so large a difference is by chance: McNemar's exact test, of scores the sign-flip test."
    )
    p_adjusted: float = Field(description="`p_value` with Holm's correction for the number of criteria.")
    verdict: Verdict = Field(
        description=(
            f"Whether the run is better or worse than the baseline: `inconclusive` unless at least {MIN_ITEMS} items "
            f"are compared, `p_adjusted` is below 0.05, and 0 is not between `low` and `high`."
        )
    )
    is_significant: bool = Field(description="Whether the verdict is not `inconclusive`.")
    items_needed: int | None = Field(
        description="An estimate of how many more items would decide, from the difference and its spread so far."
    )


class Regression(BaseModel):
    """The output items of one item that became worse."""

    baseline_item_id: str
    run_item_id: str


class RunComparison(BaseModel):
    """The comparison of a run with a baseline, over the items that both have. Samples of one run only are left out.

    The first of `data` is whether items pass all criteria. `regressions` are the items that became worst, at most 50.
    """

    object: Literal["eval.run.comparison"] = "eval.run.comparison"
    run_id: str
    baseline_run_id: str
    baseline_eval_id: str
    items: int
    samples: int
    only_in_run: int
    only_in_baseline: int
    data: list[CriterionComparison]
    regressions: list[Regression]


@router.get("/evals/{eval_id}/runs/{run_id}/comparison")
def compare_run(call: Call, eval_id: str, run_id: str, baseline: Baseline) -> RunComparison:
    """Compare a run with another run of the project, item by item."""
    with call.db.read() as session:
        run, job = get_run(session, call, eval_id, run_id)
        other, other_job = _baseline(session, call, baseline, run.eval_id)
        _check_ended(job, "run_id")
        _check_ended(other_job, "baseline")
        _check_sizes(session, job, other_job)
    compared = _compare_items(call, other.id, run.id)
    return RunComparison(
        run_id=run.id,
        baseline_run_id=other.id,
        baseline_eval_id=other.eval_id,
        items=compared.items,
        samples=compared.samples,
        only_in_run=compared.only_second,
        only_in_baseline=compared.only_first,
        data=[_show_criterion(row) for row in compared.rows],
        regressions=[Regression(baseline_item_id=first, run_item_id=second) for first, second in compared.regressions],
    )


def _baseline(session: Session, call: CallContext, run_id: str, eval_id: str) -> tuple[EvalRun, Job]:
    """Return a run of the project by its id or, within the eval, by the id that it had elsewhere. Raises NotFound."""
    statement = select(EvalRun).where(EvalRun.project_id == call.project_id, EvalRun.id == run_id)
    imported = runs_of(call, eval_id).where(EvalRun.imported_from == run_id)
    run = session.scalar(statement) or session.scalar(imported)
    if run is None:
        raise NotFound(f"No run found with id '{clip(run_id)}'.", param="baseline")
    return run, session.get_one(Job, run.id)


def _check_ended(job: Job, param: str) -> None:
    """Raise Conflict for a run that still gets items."""
    if job.state not in TERMINAL:
        raise Conflict(f"The run '{job.id}' has not ended.", param=param, code="run_not_ended")


def _check_sizes(session: Session, *jobs: Job) -> None:
    """Raise InvalidRequest for runs with too many scores to compare while a client waits."""
    for job in jobs:
        items, criteria = sum(outcomes(session, job).values()), len(job.payload["criteria"]) + 1
        if items * criteria > MAX_SCORES:
            message = (
                f"The run '{job.id}' has {items} items of {criteria} scores; at most {MAX_SCORES} scores are compared "
                f"here. `nightmill evals compare` has no limit."
            )
            raise InvalidRequest(message, param="baseline", code="run_too_large")


def _compare_items(call: CallContext, baseline: str, run: str) -> ComparedRuns:
    """Return the comparison of the runs' items. Raises ProjectBusy, and InvalidRequest where it was too much."""
    try:
        with call.services.computations.slot(call.project_id):
            return comparison_process.compare(lines_of(call, baseline), lines_of(call, run))
    except ChildFailed as failure:
        message = f"The runs could not be compared: {failure}."
        raise InvalidRequest(message, param="baseline", code="comparison_gave_up") from failure


def _show_criterion(row: PairedComparison) -> CriterionComparison:
    numbers = asdict(row)
    return CriterionComparison(
        baseline=numbers.pop("first"),
        run=numbers.pop("second"),
        difference=row.difference,
        verdict=row.verdict,
        is_significant=row.is_significant,
        **numbers,
    )
