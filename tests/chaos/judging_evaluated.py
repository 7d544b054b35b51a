"""Judge the runs of evals of a campaign."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import openai

from tests.chaos.judging import await_jobs
from tests.support import eval_oracle
from tests.support.eval_oracle import Evaluation

if TYPE_CHECKING:
    from tests.chaos.campaign import Campaign


def await_evaluated(campaign: "Campaign") -> None:
    """I1: every run that was accepted ends."""
    await_jobs(campaign, campaign.load.evaluators, "not evaluated in time")


def judge_evaluated(campaign: "Campaign") -> None:
    """Judge all runs that have ended: every item graded once, counts that add up, one event, nothing of the deleted."""
    for evaluation in campaign.load.evaluators.jobs:
        if evaluation.ended:
            campaign.journal.violation(*_faults(campaign, evaluation))


def _faults(campaign: "Campaign", evaluation: Evaluation) -> Iterator[str]:
    client = campaign.load.client.sdk
    if evaluation.deleted:
        try:
            client.evals.retrieve(evaluation.eval_id)
        except openai.NotFoundError:
            return
        yield f"{evaluation.key} was deleted, and is there"
        return
    runs = [run.id for run in client.evals.runs.list(evaluation.eval_id)]
    if runs != [evaluation.id]:
        yield f"{evaluation.key} is {evaluation.id}, and its eval has the runs {runs}"
    yield from eval_oracle.judge(evaluation, eval_oracle.fetch(client, evaluation))
    yield from eval_oracle.told(evaluation, campaign.load.told)
