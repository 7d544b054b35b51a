"""The workers' half of the table of kinds: how the jobs of each kind are planned, run and finished.

    jobs.known_kinds   what the ledger, the API and the dispatcher know of a kind
    HANDLERS           what a worker does for it; `workers.lifecycle` claims, calls the handler and records the end

Every function raises Abandoned where the work has to wait, ClaimLost where the claim was lost, StorageFull,
StorageUnavailable.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import jobs.known_kinds  # noqa: F401 (fills the table that every move of a job looks at)
from jobs.batches import batches
from jobs.datasets import dataset_versions
from jobs.evals import runs
from jobs.finetuning import jobs as tuning
from jobs.finetuning import model_imports as imports
from jobs.inference import responses
from jobs.ledger.kinds import UnknownKind
from jobs.ledger.ledger import JobClaim
from jobs.ledger.tables import Job
from jobs.monitoring import monitors
from jobs.pipelines import pipelines
from jobs.promotions import promotions
from jobs.queues import Queue
from jobs.retrieval import ingestions
from workers.batches import finishing, planning
from workers.batches.running import LineRun
from workers.datasets import version_builder
from workers.evals import evaluation, sampling
from workers.finetuning import model_imports, results, training_plan
from workers.finetuning.training_run import TrainingRun
from workers.inference import background_responses
from workers.monitoring import drift_checks
from workers.pipelines import pipeline_steps
from workers.promotions import conclusion
from workers.retrieval.ingestion import job as ingestion
from workers.retrieval.ingestion.index import Indexing
from workers.retrieval.ingestion.parse import Parsing
from workers.runtime.attempts import ShardRun
from workers.runtime.context import Context
from workers.runtime.heartbeat import ClaimHandle


@dataclass(frozen=True, slots=True)
class Handler:
    """The functions of a worker for the jobs of a kind."""

    plan: Callable[[Context, JobClaim, ClaimHandle], None]
    """Read the input of a job and cut it into shards."""

    runs: Mapping[Queue, Callable[..., ShardRun]]
    """Make the run of one shard, by the queue of the process; `GENERATE` stands for all queues of engines.

    The arguments are the `Context`, the tools of the process (an `EngineHost`, a `Parser`, or none), the `ShardClaim`
    and the `ClaimHandle`. The run resumes after the lines that its claim says are covered.
    """

    finish: Callable[[Context, JobClaim, ClaimHandle], None]
    """Assemble the results of a job whose shards have ended, and close it."""

    tend: Callable[[Context, Job], None] | None = None
    """Do what follows each attempt to finish a job, whether it succeeded or not."""


_BATCH: Final = Handler(planning.plan, {Queue.GENERATE: LineRun}, finishing.finish)

HANDLERS: Final[dict[str, Handler]] = {
    **dict.fromkeys(batches.NAMES, _BATCH),
    responses.KIND: Handler(
        planning.plan, {Queue.GENERATE: background_responses.ResponseRun}, background_responses.respond
    ),
    tuning.NAME: Handler(training_plan.plan, {Queue.FINETUNE: TrainingRun}, results.finish),
    imports.NAME: Handler(model_imports.plan, {}, model_imports.finish),
    runs.NAME: Handler(evaluation.plan, {Queue.EVALUATE: evaluation.GradingRun}, evaluation.finish),
    runs.SAMPLING: Handler(sampling.plan, {Queue.GENERATE: sampling.SamplingRun}, sampling.finish),
    promotions.NAME: Handler(conclusion.plan, {}, conclusion.finish),
    monitors.NAME: Handler(drift_checks.plan, {Queue.GENERATE: drift_checks.EmbeddingRun}, drift_checks.finish),
    pipelines.NAME: Handler(pipeline_steps.plan_pipeline, {}, pipeline_steps.finish),
    pipelines.STEP: Handler(pipeline_steps.plan_step, {}, pipeline_steps.finish),
    ingestions.NAME: Handler(
        ingestion.plan, {Queue.INGEST: Parsing, Queue.GENERATE: Indexing}, ingestion.conclude, ingestion.tend
    ),
    dataset_versions.NAME: Handler(version_builder.plan, {}, version_builder.finish),
}


def handler_of(job: Job) -> Handler:
    """Return the handler of a job. Raises UnknownKind."""
    if (handler := HANDLERS.get(job.kind)) is None:
        raise UnknownKind(f"This version runs no jobs of kind '{job.kind}'.")
    return handler
