"""Judge the fine-tuning jobs of a run, what they left in the storage, and the answers of their models."""

from typing import TYPE_CHECKING

from tests.chaos.judging import opened
from tests.support import tuning_oracle

if TYPE_CHECKING:
    from tests.chaos.campaign import Campaign

_SETTLE_SECONDS = 120.0


def await_trained(campaign: "Campaign") -> None:
    """I1: every job that was accepted ends, and so does every batch that asks for its models."""
    tuners = campaign.load.tuners
    if not tuners.await_idle(_SETTLE_SECONDS * campaign.patience):
        late = [f"{tuning.key} {tuning.status}" for tuning in tuners.open] + list(tuners.batches)
        campaign.journal.violation(f"I1: not trained or answered in time: {', '.join(late)}")


def judge_tuned(campaign: "Campaign") -> None:
    """Judge all jobs that have ended: each step once, whole checkpoints, one result, answers of the right adapter."""
    load, blame = campaign.load, campaign.journal.violation
    tunings = [tuning for tuning in load.tuners.jobs if tuning.ended]
    for tuning in tunings:
        blame(*tuning_oracle.judge(load.client.sdk, tuning), *tuning_oracle.told(tuning, load.told))
    with opened(campaign) as stores:
        blame(*tuning_oracle.stored(stores.db, stores.storage, tunings))
    blame(*tuning_oracle.answered(load.tuners.answers, load.tuners.jobs))
